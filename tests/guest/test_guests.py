"""What happens to a guest, and between guests: a reboot, a second guest, a crash."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..mounted.harness import run, wait_until
from .daemons import Daemons
from .kernel import Guest
from .machine import Machine


def _script(shared: Path, text: str) -> None:
    (shared / "script").write_text("set -e\ncd /share\n" + text)


def test_a_reboot_onto_the_same_daemon(guest: Guest, daemons: Daemons, shared: Path) -> None:
    _script(
        shared,
        """echo boot >>boots
cat boots | wc -l | sed 's/^/@boot /'
if [ $(cat boots | wc -l) -lt 3 ]; then
    exec 5>held   # open when the machine goes
    sync
    reboot -f
fi
""",
    )
    share = daemons.ours(shared)
    with Machine(guest, [share], "pt.tag=work pt.script=script", daemons=daemons.running, reboots=True) as machine:
        machine.wait_for_end(120)
    assert (shared / "boots").read_text() == "boot\n" * 3


def test_a_guest_that_is_killed_leaves_the_daemon_to_the_next(guest: Guest, daemons: Daemons, shared: Path) -> None:
    _script(shared, "echo @writing; while :; do cat script >copy; done")
    share = daemons.ours(shared)
    with Machine(guest, [share], "pt.tag=work pt.script=script", daemons=daemons.running) as machine:
        machine.wait_for("@writing")
        wait_until(lambda: (shared / "copy").exists(), "it writes")
    _script(shared, "echo again >again")
    with Machine(guest, [share], "pt.tag=work pt.script=script", daemons=daemons.running) as machine:
        machine.wait_for_end()
    assert (shared / "again").read_text() == "again\n"


def test_two_guests_on_one_directory(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """They hand a file to and fro, each seeing what the other wrote."""
    wait = "wait_for() { i=0; while ! [ -e $1 ]; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ]; done; }\n"
    _script(shared, wait + "for n in 1 2 3; do echo ping $n >t1; mv t1 ping$n; wait_for pong$n; cat pong$n; done\n")
    (shared / "other").write_text(
        "set -e\ncd /share\n"
        + wait
        + "for n in 1 2 3; do wait_for ping$n; sed s/ping/pong/ ping$n >t2; mv t2 pong$n; done\n"
    )
    first, second = daemons.ours(shared), daemons.ours(shared, "--cache=never")
    with (
        Machine(guest, [first], "pt.tag=work pt.script=script", daemons=daemons.running) as one,
        Machine(guest, [second], "pt.tag=work pt.script=other", daemons=daemons.running) as other,
    ):
        other.wait_for_end(120)
        assert "pong 3" in one.wait_for_end(120)


def test_a_regular_file_and_another_file_system(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """A directory of /proc in a share shows as a mount of its own in the guest. One file as the share is refused by
    Linux, which takes every virtio-fs for a directory (virtio_fs.c, rootmode), and the guest goes on."""
    _script(shared, "cat /share/script | wc -l; mkdir -p /m; mount -t virtiofs root /m; ls /m/proc/self >/dev/null\n")
    with open(shared / "script", "a", encoding="utf-8") as script:
        script.write("grep -c ' /m/proc ' /proc/mounts | sed 's/^/@submounts /'\n")
        script.write("touch /f; mount -t virtiofs single /f 2>&1 | sed 's/^/@on a file: /'\n")
        script.write(
            "mkdir /d; mount -t virtiofs single /d && ls /d 2>&1 | sed 's/^/@on a directory: /'; umount /d; true\n"
        )
    one = shared / "one"
    one.write_text("one")
    shares = [
        daemons.ours(shared),
        daemons.ours(Path("/"), "--readonly", tag="root"),
        daemons.ours(one, tag="single"),
    ]
    with Machine(guest, shares, "pt.tag=work pt.script=script", daemons=daemons.running) as machine:
        said = machine.wait_for_end()
    assert "@submounts 1" in said, said
    assert "@on a file: mount: mounting single on /f failed: Not a directory" in said, said
    assert "@on a directory: ls: /d: Input/output error" in said, said


@contextlib.contextmanager
def _exported(image: Path, file: Path) -> Iterator[Path]:
    """The image as a file that the guest's machine can have, while this lasts."""
    file.touch()
    result = run("export", "--writable", "--format=raw", image, file)
    assert result.returncode == 0, result.stderr
    try:
        yield file
    finally:
        assert run("umount", file).returncode == 0


def test_an_exported_image_is_the_guests_drive(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """What lies in the image is on the drive, what the guest writes there is in the image, and no byte more."""
    image = daemons.base / "image"
    content = os.urandom(8 << 20)
    image.write_bytes(content)
    _script(
        shared,
        """sha256sum </dev/vda | sed 's/^/@drive /'
dd if=/share/new of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null
""",
    )
    new = os.urandom(1 << 20)
    (shared / "new").write_bytes(new)
    with _exported(image, daemons.base / "drive") as drive:
        share = daemons.ours(shared)
        words = "pt.tag=work pt.script=script"
        with Machine(guest, [share], words, drives=[drive], daemons=daemons.running) as machine:
            said = machine.wait_for_end()
    assert f"@drive {hashlib.sha256(content).hexdigest()}" in said, said
    assert image.read_bytes() == content[: 1 << 20] + new + content[2 << 20 :]
