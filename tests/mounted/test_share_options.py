"""What the options of a shared directory do on a real mount: an effect each, with the option and without.

Where a kernel's own reading and writing would go before the daemon's, passthrough is off.
"""

import errno
import fcntl
import mmap
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough import exitcodes
from passthrough.protocol import constants as c

from .harness import ROOT, Harness, command, is_mounted, wait_until
from .posix.calls import listxattr_size, opened
from .posix.children import as_user
from .posix.modes import attempt
from .posix.sources import KINDS

_FS_IOC_FIEMAP, _DELALLOC = 0xC020660B, 4
_LINE = "the kernel does not read and write the files itself: passthrough=off"


def _ext4(harness: Harness) -> Path:
    """An ext4 of its own, which allocates blocks when it writes them out."""
    return next(make for name, make, _ in KINDS if name == "ext4")(harness).share


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


# xattrmap


def test_programs_set_capabilities_which_the_host_does_not_see_and_writing_takes(harness: Harness) -> None:
    mount = harness.mount("-o", "allow_other,xattrmap=:map::user.guest.:")
    shown, real = mount.point / "program", mount.source / "program"
    shown.write_bytes(Path("/bin/true").read_bytes())
    harness.run_program("setcap", "cap_net_raw+ep", shown)
    assert "cap_net_raw=ep" in harness.run_program("getcap", shown)
    assert harness.run_program("getcap", real) == ""
    assert os.listxattr(real) == ["user.guest.security.capability"]
    _append(shown)
    assert os.listxattr(real) == []
    assert harness.run_program("getcap", shown) == ""


def test_kernel_passthrough_goes_where_writes_must_be_seen_and_it_is_said_once(harness: Harness) -> None:
    """In the foreground, where it can be read."""
    for option, reason in (
        ("xattrmap=:map::user.guest.:", "an xattrmap"),
        ("writeout=immediate", "writeout=immediate"),
    ):
        source, point = harness.directory("source"), harness.directory("mount")
        words = command("mount", "-f", "-o", option, source, point)
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                wait_until(lambda at=point: is_mounted(at), "it is mounted")  # type: ignore[misc]
            finally:
                process.terminate()
                assert process.stderr
                said = process.stderr.read().splitlines()
        lines = [line for line in said if _LINE in line]
        assert len(lines) == 1, said
        assert f"with {reason}" in lines[0]


def test_sizes_are_those_of_the_names_that_are_shown(harness: Harness) -> None:
    mount = harness.mount(
        "-o", "allow_other,xattrmap=/prefix/all/user.a/user.prefix./ /bad/all/user./user./ /ok/all///"
    )
    shown, real = mount.point / "file", mount.source / "file"
    shown.touch()
    for name in ("user.a1", "user.a2"):
        os.setxattr(shown, name, b"guest")
    for name in ("user.hidden", "user.prefix.hidden", "user.a1"):
        os.setxattr(real, name, b"host")
    names = b"user.a1\0user.a2\0"
    assert sorted(os.listxattr(shown)) == ["user.a1", "user.a2"]
    assert os.getxattr(shown, "user.a1") == b"guest"
    for size, expected in (
        (0, len(names)),
        (len(names) - 1, "ERANGE"),
        (len(names), len(names)),
        (1 << 16, len(names)),
    ):
        assert attempt(lambda size=size: listxattr_size(shown, size)) == expected  # type: ignore[misc]
    assert _outcome(lambda: os.setxattr(shown, "user.hidden", b"x")) == "EPERM"
    assert _outcome(lambda: os.getxattr(shown, "user.hidden")) == "ENODATA"
    assert _outcome(lambda: os.setxattr(shown, "user.a" + "x" * 240, b"")) == "ERANGE"
    assert _outcome(lambda: os.setxattr(shown, "user.a3", bytes(1 << 17))) == "E2BIG"


def test_an_ordinary_user_writes_a_new_file_that_is_read_only(harness: Harness, user: int) -> None:
    """As git does. Capabilities that are not there need no permission to be removed."""
    mount = harness.mount("-o", "xattrmap=:map::user.guest.:", user=user)

    def write() -> bytes:
        with opened(mount.point / "object", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444) as fd:
            os.write(fd, b"content")
            os.setxattr(fd, "user.seen", b"")  # EACCES, as on any file system
        return (mount.point / "object").read_bytes()

    assert as_user(lambda: attempt(write), user) == "EACCES"
    assert (mount.source / "object").read_bytes() == b"content"


def test_an_overlay_has_its_upper_layer_on_a_share_without_privilege(harness: Harness) -> None:
    """The daemon keeps no CAP_SYS_ADMIN, without which there is no trusted.* on the host."""
    mount = harness.mount("-o", "allow_other,dev,passthrough=off,xattrmap=overlay")
    lower, merged = harness.directory("lower"), harness.directory("merged")
    for name in ("gone", "kept", "changed"):
        (lower / name).write_text("below")
    (lower / "again").mkdir()
    (lower / "again" / "below").touch()
    (lower / "link").symlink_to("kept")
    for name in ("upper", "work"):
        (mount.point / name).mkdir()
    layers = f"lowerdir={lower},upperdir={mount.point}/upper,workdir={mount.point}/work"

    def attach() -> None:
        harness.run_program("mount", "-t", "overlay", "-o", layers, "overlay", merged)

    attach()
    try:
        (merged / "gone").unlink()
        (merged / "changed").write_text("above")
        (merged / "again" / "below").unlink()
        (merged / "again").rmdir()
        (merged / "again").mkdir()
        os.lchown(merged / "link", 1, 1)
        os.rename(merged / "kept", merged / "moved")
        harness.run_program("umount", merged)
        attach()  # what it knows now stands in attributes
        assert sorted(os.listdir(merged)) == ["again", "changed", "link", "moved"]
        assert os.listdir(merged / "again") == []
        assert ((merged / "changed").read_text(), (merged / "moved").read_text()) == ("above", "below")
    finally:
        subprocess.run(["umount", str(merged)], check=True)
    upper = mount.source / "upper"
    assert os.getxattr(upper / "again", "user.virtiofs.trusted.overlay.opaque") == b"y"
    assert os.getxattr(mount.point / "upper" / "again", "trusted.overlay.opaque") == b"y"
    for path in (upper, *upper.iterdir()):
        names = os.listxattr(path, follow_symlinks=False)
        assert not [name for name in names if not name.startswith("user.virtiofs.trusted.overlay.")]
    assert as_user(lambda: os.listxattr(mount.point / "upper" / "again")) == []


@pytest.mark.parametrize(
    "options", [("passthrough=on",), ("passthrough=off", "modcaps=+sys_admin")], ids=["passthrough", "modcaps"]
)
def test_labels_of_the_guest_are_not_the_hosts(harness: Harness, options: tuple[str, ...]) -> None:
    mount = harness.mount("-o", ",".join(("allow_other,xattrmap=selinux,security_label", *options)))
    shown, real = mount.point / "file", mount.source / "file"
    shown.touch()  # the kernel's request has room for a label, and this machine's modules give none
    os.setxattr(real, "security.selinux", b"the host's")
    assert os.listxattr(shown) == []
    os.setxattr(shown, "security.selinux", b"the guest's")
    assert os.getxattr(shown, "security.selinux") == b"the guest's"
    assert os.getxattr(real, "security.selinux") == b"the host's"
    assert os.getxattr(real, "trusted.virtiofs.security.selinux") == b"the guest's"
    assert _outcome(lambda: os.setxattr(shown, "trusted.virtiofs.x", b"x")) == "EPERM"
    assert as_user(lambda: os.listxattr(shown)) == ["security.selinux"]  # everyone's to see
    (mount.point / "directory").mkdir()
    (mount.point / "link").symlink_to("file")
    os.mkfifo(mount.point / "fifo")
    with opened(mount.point, os.O_TMPFILE | os.O_RDWR) as fd:
        assert os.write(fd, b"x") == 1


def test_requests_with_room_for_labels_come_by_the_rings_too(harness: Harness, enabled: None) -> None:
    """Behind the names, where the rings have what follows them."""
    mount = harness.mount("-o", "io_uring=on,security_label,xattrmap=selinux")
    (mount.point / "directory").mkdir()
    (mount.point / "link").symlink_to("x" * 1000)
    os.mkfifo(mount.point / "fifo")
    (mount.point / "file").write_bytes(b"content")
    assert sorted(os.listdir(mount.source)) == ["directory", "fifo", "file", "link"]
    assert os.readlink(mount.source / "link") == "x" * 1000


# What a kernel must have

_ASK = """
import sys
from passthrough import server
from passthrough.cli import main
from passthrough.protocol import constants as c
old = server.negotiate
server.negotiate = lambda offer, wishes: old(offer._replace(flags=offer.flags & ~c.{flag}), wishes)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("posix_acl", "FUSE_POSIX_ACL"),
        ("posix_acl", "FUSE_DONT_MASK"),
        ("posix_acl", "FUSE_SETXATTR_EXT"),
        ("security_label", "FUSE_SECURITY_CTX"),
    ],
)
def test_what_was_asked_for_is_there_or_the_mount_fails(harness: Harness, option: str, flag: str) -> None:
    """Not asked for, it is left out."""
    for options, status in ((("-o", option), exitcodes.KERNEL), ((), exitcodes.OK)):
        source, point = harness.directory("source"), harness.directory("mount")
        words = [sys.executable, "-c", _ASK.format(flag=flag), "mount", *options, source, point]
        result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        assert result.returncode == status, result.stderr
        assert is_mounted(point) is (status == exitcodes.OK)
        if status:
            assert flag.removeprefix("FUSE_") in result.stderr
            assert result.stderr.count("\n") == 1
        else:
            harness.run_program("umount", point)


# Access lists


@pytest.mark.parametrize("options", ["posix_acl", "no_posix_acl", "xattrmap=:map::user.guest.:"])
def test_access_lists_are_there_and_enforced_or_hidden(harness: Harness, options: str) -> None:
    mount = harness.mount("-o", f"allow_other,{options}")
    (mount.source / "file").touch(0o600)
    harness.run_program("setfacl", "-m", "u:65534:rw", mount.source / "file")
    opens = as_user(lambda: _outcome(lambda: os.close(os.open(mount.point / "file", os.O_RDWR))))
    assert opens == ("done" if options == "posix_acl" else "EACCES")
    assert os.listxattr(mount.point / "file") == (["system.posix_acl_access"] if options == "posix_acl" else [])
    result = subprocess.run(["setfacl", "-m", "u:1:r", str(mount.point / "file")], capture_output=True, check=False)
    assert (result.returncode == 0) is (options == "posix_acl")


# writeout


def _unallocated(path: Path) -> bool:
    """Whether some of the file's bytes are in memory alone (ext4's delayed allocation)."""
    asked = bytearray(struct.pack("=QQIIII", 0, (1 << 64) - 1, 0, 0, 8, 0) + bytes(8 * 56))
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, asked)
    (count,) = struct.unpack_from("=I", asked, 20)
    return any(struct.unpack_from("=I", asked, 32 + at * 56 + 40)[0] & _DELALLOC for at in range(count))


@pytest.mark.parametrize("options", ["", "writeback", "cache=never"])
def test_immediate_writeout_does_not_wait_for_the_kernel(harness: Harness, options: str) -> None:
    """Without it the kernel of the source would begin after seconds, and no sooner."""
    source = _ext4(harness)
    mount = harness.mount("-o", f"writeout=immediate,{options}".rstrip(","), source=source)
    plain = source / "plain"
    plain.write_bytes(bytes(1 << 16))
    was_delayed = _unallocated(plain)
    for _ in range(3):
        with opened(mount.point / "file", os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd:
            os.write(fd, bytes(1 << 16))  # with writeback sent by the close
    assert not _unallocated(source / "file")
    with opened(mount.point / "file") as fd, opened(mount.point / "copy", os.O_CREAT | os.O_RDWR) as copy:
        os.copy_file_range(fd, copy, 1 << 16, 0, 0)
    assert not _unallocated(source / "copy")
    assert was_delayed, "a file that was just written had no delayed blocks: the test shows nothing"


# Opening


@pytest.mark.parametrize(("word", "unaligned"), [("allow_direct_io", "EINVAL"), ("no_allow_direct_io", "done")])
def test_direct_io_reaches_the_source_or_ends_at_its_cache(harness: Harness, word: str, unaligned: str) -> None:
    """ext4 asks for alignment, the page cache does not."""
    source = _ext4(harness)
    (source / "file").write_bytes(bytes(8192))
    mount = harness.mount("-o", f"passthrough=off,{word}", source=source)
    with opened(mount.point / "file", os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8192) as page:
        assert os.preadv(fd, [page], 0) == 8192
        assert _outcome(lambda: os.pread(fd, 10, 1)) == unaligned
        assert _outcome(lambda: os.pwrite(fd, b"x", 1)) == unaligned


@pytest.mark.parametrize(("word", "changes"), [("preserve_noatime", False), ("no_preserve_noatime", True)])
def test_noatime_is_for_the_source_too_or_for_the_mount_alone(harness: Harness, word: str, changes: bool) -> None:
    source = _ext4(harness)
    (source / "file").write_bytes(b"content")
    os.utime(source / "file", (1, 2))  # older than mtime, so that relatime would change it
    mount = harness.mount("-o", f"passthrough=off,cache=never,{word}", source=source)
    with opened(mount.point / "file", os.O_RDONLY | os.O_NOATIME) as fd:
        assert os.read(fd, 10) == b"content"
    assert ((source / "file").stat().st_atime != 1) is changes


@pytest.mark.parametrize("cache", ["never", "metadata"])
@pytest.mark.parametrize(("word", "outcome"), [("allow_mmap", "done"), ("no_allow_mmap", "ENODEV")])
def test_shared_mappings_without_a_cache(harness: Harness, cache: str, word: str, outcome: str) -> None:
    mount = harness.mount("-o", f"passthrough=off,cache={cache},{word}")
    (mount.point / "file").write_bytes(bytes(4096))

    def store() -> None:
        with opened(mount.point / "file") as fd, mmap.mmap(fd, 4096) as page:
            page[:6] = b"stored"

    assert _outcome(store) == outcome
    assert (mount.source / "file").read_bytes()[:6] == (b"stored" if outcome == "done" else bytes(6))


def test_readonly_is_the_daemons_refusal_too(harness: Harness) -> None:
    """A remount changes the kernel's mind and not the daemon's."""
    source = harness.directory("source")
    (source / "file").write_bytes(b"content")
    mount = harness.mount("-o", "readonly", source=source)
    for _ in range(2):
        for change in (
            lambda: (mount.point / "file").write_bytes(b"x"),
            lambda: (mount.point / "new").mkdir(),
            lambda: os.setxattr(mount.point / "file", "user.x", b""),
            lambda: os.chmod(mount.point / "file", 0o600),
        ):
            assert _outcome(change) == "EROFS"
        assert (mount.point / "file").read_bytes() == b"content"
        subprocess.run(["mount", "-o", "remount,rw", str(mount.point)], check=False, capture_output=True)


@pytest.mark.parametrize(("word", "here"), [("killpriv_v2", True), ("no_killpriv_v2", False)])
def test_who_clears_suid_is_a_choice_and_that_it_is_cleared_is_not(harness: Harness, word: str, here: bool) -> None:
    """The write says so to the daemon, or the kernel sets the mode by a request of its own."""
    source, point = harness.directory("source"), harness.directory("mount")
    words = command("mount", "-o", f"debug,allow_other,passthrough=off,{word}", source, point)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            wait_until(lambda: is_mounted(point), "it is mounted", 20)
            (source / "file").write_bytes(b"content")
            (source / "file").chmod(0o6777)
            as_user(lambda: _append(point / "file"))
            mode = (source / "file").stat().st_mode & 0o7777
        finally:
            subprocess.run(["umount", str(point)], check=False)
            said = process.stderr.read() if process.stderr else ""
    assert mode == 0o777
    written = next(line for line in said.splitlines() if " WRITE " in line)
    assert f"write_flags={c.FUSE_WRITE_KILL_SUIDGID if here else 0} " in written
    changed = [int(valid) & c.FATTR_MODE for valid in re.findall(r" SETATTR .*valid=(\d+)", said)]
    assert any(changed) is not here
