"""The whole machine as the guest's root file system, read-only; in it, programs and the conformance list on a share."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..mounted.harness import ROOT
from .daemons import PEER, Daemons
from .kernel import Guest
from .machine import Machine, Share

LIST_S = 300.0

_SETUP = """set -e
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/work /mnt/behind /mnt/tmp
mount -t virtiofs work /mnt/work
mount -t virtiofs behind /mnt/behind
export TMPDIR=/mnt/tmp HOME=/mnt/tmp PYTHONDONTWRITEBYTECODE=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd {root}
"""
# But for two that make and remove thousands of names, for half a minute under emulation: `find` below has as many.
_LIST = """ulimit -n 4096
export PASSTHROUGH_GUEST=/mnt/behind:/mnt/work
{python} -m pytest -p no:cacheprovider --color=no -q -m core {words} \\
    -k 'not changes_while_listing and not positions_hold' tests/mounted/posix
"""
_PROGRAMS = """cd /mnt/work
fio --name=verify --filename=fio --size=8M --rw=randrw --bs=4k --direct=1 --verify=crc32c --do_verify=1 \\
    --verify_fatal=1 --ioengine=psync --output=/mnt/tmp/fio
fio --name=mapped --filename=mapped --size=2M --rw=randwrite --bs=4k --ioengine=mmap --verify=crc32c --do_verify=1 \\
    --verify_fatal=1 --output=/mnt/tmp/fio
mkdir tree
tar -C tree -xf {base}/tree.tar
tar -C tree -cf {to} .
(cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum) >sums
setfattr -n user.colour -v blue fio
echo "@xattr $(getfattr --only-values -n user.colour fio)"
{python} -c '
import fcntl
with open("fio") as one, open("fio") as other:
    fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("@locked")
'
cd many
echo "@found $(find . -type f | wc -l)"
"""


def _root(daemons: Daemons) -> Share:
    return daemons.ours(Path("/"), "--readonly", "--cache=always", tag="root")


def _run(guest: Guest, daemons: Daemons, shares: list[Share], script: str, **words: object) -> str:
    path = daemons.base / "script"
    path.write_text((_SETUP + script).format(root=ROOT, base=daemons.base, python=sys.executable, **words))
    line = f"pt.root=root pt.script={path}"
    with Machine(guest, shares, line, daemons=daemons.running, memory="1G") as machine:
        machine.wait_for("@ready")
        return machine.wait_for_end(LIST_S)


def _pack(daemons: Daemons) -> dict[str, str]:
    """A real tree as an archive: this repository's sources. What each file's content is."""
    (daemons.base / "tree").mkdir()
    files = {}
    for package in ("passthrough", "tests", "man"):
        shutil.copytree(ROOT / package, daemons.base / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted((daemons.base / "tree").rglob("*")):
        if path.is_file():
            files[f"./{path.relative_to(daemons.base / 'tree')}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    subprocess.run(["tar", "-C", daemons.base / "tree", "-cf", daemons.base / "tree.tar", "."], check=True)
    return files


def _sums(path: Path) -> dict[str, str]:
    return {name: digest for digest, name in (line.split("  ", 1) for line in path.read_text().splitlines())}


def _programs(guest: Guest, daemons: Daemons, shared: Path, shares: list[Share], *, beside: bool = False) -> str:
    """In the guest and behind it, everything must be what it was packed as."""
    files = _pack(daemons)
    (shared / "many").mkdir()
    for number in range(20000):
        (shared / "many" / str(number)).touch()
    script = f"({_LIST}) >/mnt/tmp/list 2>&1 &\n{_PROGRAMS}wait $! || bad=1; cat /mnt/tmp/list; [ -z $bad ]\n"
    said = _run(guest, daemons, shares, script if beside else _PROGRAMS, words="", to="/mnt/tmp/again.tar")
    for word in ("@xattr blue", "@locked", "@found 20000"):
        assert word in said
    assert _sums(shared / "sums") == files
    behind = {
        f"./{path.relative_to(shared / 'tree')}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (shared / "tree").rglob("*")
        if path.is_file()
    }
    assert behind == files
    return said


def test_the_conformance_list_and_real_programs(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """Side by side, on a virtual CPU each: that is quicker, and the queues are shared."""
    options = ("--modcaps=+sys_admin", "--posix-acl", "--flock", "--posix-lock")
    shares = [
        _root(daemons),
        daemons.ours(shared, *options, tag="work", queues=2),
        daemons.ours(shared, *options, "--cache=never", "--allow-mmap", tag="behind"),
    ]
    said = _programs(guest, daemons, shared, shares, beside=True)
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said[-4000:]


def test_real_programs_on_the_peer(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """The same with Debian's C virtiofsd: what is asked of ours is asked of it. It locks files where it is told to."""
    if not PEER.exists():
        pytest.skip("Debian's C virtiofsd (qemu-system-common) is not installed")
    shares = [
        _root(daemons),
        daemons.peer(shared, "xattr", "flock", tag="work"),
        daemons.peer(shared, "cache=none", tag="behind"),
    ]
    _programs(guest, daemons, shared, shares)


_OTHERWISE: dict[str, tuple[str, ...]] = {
    "it has no TMPFILE (FUSE 7.37): O_TMPFILE is EOPNOTSUPP": (
        "test_creating.py::test_unnamed_files[guest]",
        "test_users.py::test_what_a_user_makes_is_the_user_s[guest]",
        "test_xattrs.py::test_a_default_access_list_overrides_the_umask[guest-0]",
        "test_xattrs.py::test_a_default_access_list_overrides_the_umask[guest-18]",
        "test_xattrs.py::test_a_default_access_list_overrides_the_umask[guest-63]",
    ),
    "it takes no lock that might have to wait (EOPNOTSUPP for SETLKW)": (
        "test_locks.py::test_exclusion[guest-flock]",
        "test_locks.py::test_exclusion[guest-posix_lock]",
        "test_locks.py::test_waiting[guest-flock]",
        "test_locks.py::test_waiting[guest-posix_lock]",
        "test_locks.py::test_waiting_does_not_hold_up_others[guest-flock]",
        "test_locks.py::test_waiting_does_not_hold_up_others[guest-posix_lock]",
        "test_locks.py::test_ranges[guest]",
        "test_locks.py::test_posix_locks_go_with_any_close[guest]",
        "test_locks.py::test_flocks_go_with_the_last_close[guest]",
        "test_locks.py::test_locks_go_with_the_process[guest-flock]",
        "test_locks.py::test_locks_go_with_the_process[guest-posix_lock]",
    ),
    "it creates as the caller's user and group, without the groups by which the guest's kernel has allowed it": (
        "test_users.py::test_creating_by_way_of_a_supplementary_group[guest]",
        "test_users.py::test_creating_by_way_of_a_group_in_an_access_list[guest]",
    ),
    "O_TRUNC leaves SUID and SGID (with -o killpriv_v2, fallocate and copy_file_range do)": (
        "test_users.py::test_changes_take_suid_and_sgid[guest-65534-O_TRUNC]",
        "test_users.py::test_changes_take_suid_and_sgid[guest-65534-O_CREAT and O_TRUNC]",
    ),
    "it lists trusted attributes to everyone": (
        "test_xattrs.py::test_trusted_attributes_are_not_for_everyone[guest-file]",
        "test_xattrs.py::test_trusted_attributes_are_not_for_everyone[guest-directory]",
    ),
    "every ioctl is ENOTTY, so that there is no chattr": (
        "test_xattrs.py::test_inode_flags[guest-file]",
        "test_xattrs.py::test_inode_flags[guest-directory]",
        "test_xattrs.py::test_chattr_and_lsattr[guest]",
    ),
}
"""What Debian's C virtiofsd (QEMU 7.2) does otherwise than a plain directory, and why."""


@pytest.mark.peer
def test_the_conformance_list_on_the_peer(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """The list asks for what others do as well: what this one does otherwise is in the table, and nothing else is."""
    if not PEER.exists():
        pytest.skip("Debian's C virtiofsd (qemu-system-common) is not installed")
    behind = ("--modcaps=+sys_admin", "--posix-acl", "--flock", "--posix-lock", "--cache=never", "--allow-mmap")
    options = ("xattr", "posix_acl", "flock", "posix_lock", "modcaps=+sys_admin")
    shares = [
        _root(daemons),
        daemons.peer(shared, *options, tag="work"),
        daemons.ours(shared, *behind, tag="behind"),
    ]
    script = f"({_LIST}) >/mnt/tmp/list 2>&1 || true; cat /mnt/tmp/list\n"
    said = _run(guest, daemons, shares, script, words="-rf --tb=short")
    assert re.search(r"\d+ passed", said), said[-4000:]
    failed = set(re.findall(r"^FAILED (?:\S*/)?(.+?)(?: - .*)?\s*$", said, re.MULTILINE))
    assert failed == {name for names in _OTHERWISE.values() for name in names}, said
