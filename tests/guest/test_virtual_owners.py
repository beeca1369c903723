"""A guest whose root file system an ordinary user's daemon keeps, with virtual owners."""

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..mounted.harness import Harness, for_other_users
from .daemons import Daemons
from .kernel import Guest
from .machine import Machine

_TOOLS = "sh mount stat mknod chown chmod id ls cat touch ln mkdir mkfifo sync su readlink echo rm sleep test".split()
_SCRIPT = """set -e
mount -o remount,rw /
stat -c '@before %n %a %u:%g %t:%T %F' /etc/shadow /bin/su /null /bin/sh
cd /home
mknod device c 1 3
mkfifo fifo
touch file
chown 1000:1001 file
chmod 4711 file
ln -s file link
mkdir -p set; chown 0:50 set; chmod 2775 set; mkdir set/below
su me -c 'cat /etc/shadow' && echo @leaked
su me -c 'echo mine >/home/me/file; id -u >>/home/me/file'
echo discarded >device
stat -c '@after %n %a %u:%g %t:%T %F' device fifo file link set/below me/file
cat me/file
sync
"""


@pytest.fixture
def harness(daemons: Daemons) -> Iterator[Harness]:
    """For the mount by which the root file system is made."""
    base = daemons.base / "mounts"
    base.mkdir()
    made = Harness(base)
    try:
        yield made
    finally:
        made.close()


def _fill(root: Path, script: str) -> None:
    for name in ("bin", "dev", "etc", "home/me", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for name in _TOOLS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "bin" / "su").unlink()
    shutil.copy("/bin/busybox", root / "bin" / "su")
    (root / "bin" / "su").chmod(0o4755)
    (root / "etc" / "passwd").write_text("root::0:0::/:/bin/sh\nme::1000:1001::/home/me:/bin/sh\n")
    (root / "etc" / "shadow").write_text("root::1::::::\nme::1::::::\n")
    (root / "etc" / "shadow").chmod(0o640)
    os.chown(root / "etc" / "shadow", 0, 42)
    os.chown(root / "home" / "me", 1000, 1001)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "null").chmod(0o666)
    (root / "script").write_text(script)


def test_a_guest_lives_on_an_ordinary_users_files(guest: Guest, daemons: Daemons, harness: Harness) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(daemons.base, user, user)
    model = "security_model=mapped-xattr"
    with for_other_users():
        mount = harness.mount("-o", f"allow_other,{model}", source=harness.directory("root"), user=user)
    _fill(mount.point, _SCRIPT)
    mount.umount()
    share = daemons.ours(mount.source, "--security-model=mapped-xattr", "--xattr", tag="root", user=user)
    with Machine(guest, [share], "pt.root=root pt.script=/script", daemons=daemons.running) as machine:
        said = machine.wait_for_end(120)
    for line in (
        "before /etc/shadow 640 0:42 0:0 regular file",
        "before /bin/su 4755 0:0 0:0 regular file",
        "before /null 666 0:0 1:3 character special file",
        "before /bin/sh 777 0:0 0:0 symbolic link",
        "after device 644 0:0 1:3 character special file",
        "after fifo 644 0:0 0:0 fifo",
        "after file 4711 1000:1001 0:0 regular",
        "after link 777 0:0 0:0 symbolic link",
        "after set/below 2755 0:50 0:0 directory",
        "after me/file 644 1000:1001 0:0 regular file",
        "1000",
    ):
        assert line in said, said
    assert "@leaked" not in said
    assert {path.lstat().st_uid for path in mount.source.rglob("*")} == {user}
    assert {stat.S_IFMT(path.lstat().st_mode) for path in mount.source.rglob("*")} == {stat.S_IFREG, stat.S_IFDIR}
