"""Around the mount: mountinfo, the helper's options, what is wrong with a mount point, and telling mounts apart."""

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passthrough import exitcodes
from passthrough.errors import UserError
from passthrough.transport import mountinfo, mounting
from passthrough.transport.mounting import Mounted, MountRequest

_LINES = (
    r"22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw",
    r"28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro",
    r"90 28 0:45 /a\040b /mnt/a\040b\134c\011d\012e ro - fuse.passthrough /srv/x\040y rw,user_id=0",
    r"91 28 0:46 / /mnt/twice rw shared:5 master:6 - tmpfs tmpfs rw",
    r"92 91 0:47 / /mnt/twice rw - fuse none rw",
    r"93 28 0:48 / /mnt/plain rw - fuseblk /dev/vdb rw",
    "94 28 0:49 / /mnt/\udcff rw - ext4  rw,a b",
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mountinfo of our own."""
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(_LINES) + "\n", encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", str(path))


@pytest.mark.usefixtures("table")
def test_mountinfo_is_read_and_unescaped() -> None:
    found = list(mountinfo.mounts())
    assert [mount.id for mount in found] == [22, 28, 90, 91, 92, 93, 94]
    assert found[2] == mountinfo.Mount(
        90, 28, "0:45", "/a b", "/mnt/a b\\c\td\ne", "ro", "fuse.passthrough", "/srv/x y", "rw,user_id=0"
    )
    assert (found[1].fstype, found[1].source, found[1].super_options) == ("ext4", "/dev/vda", "rw,errors=remount-ro")
    assert [mount.is_fuse for mount in found] == [False, False, True, False, True, True, False]


@pytest.mark.usefixtures("table")
def test_a_source_of_no_letters_and_a_name_that_is_no_utf8() -> None:
    last = list(mountinfo.mounts())[-1]
    assert (last.source, last.super_options) == ("", "rw,a b")
    assert os.fsencode(last.point) == b"/mnt/\xff"


@pytest.mark.usefixtures("table")
def test_the_last_mount_on_a_point_is_on_top() -> None:
    top = mountinfo.top_mount("/mnt/twice")
    assert top is not None
    assert top.id == 92
    assert mountinfo.top_mount("/mnt/twice/") is None
    assert mountinfo.top_mount("/mnt") is None


@pytest.mark.usefixtures("table")
def test_a_mount_by_its_number() -> None:
    assert (mountinfo.mount_by_id(93) or pytest.fail("it is there")).device == "0:48"
    assert mountinfo.mount_by_id(95) is None


def test_this_machine_has_a_root() -> None:
    root = mountinfo.top_mount("/")
    assert root is not None
    assert not mounting.is_dead("/")


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x17F), max_size=20))
def test_unescaping_undoes_what_the_kernel_does(text: str) -> None:
    escaped = "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in text)
    assert mountinfo._unescape(escaped) == text


@pytest.mark.usefixtures("table")
def test_a_mount_is_told_from_another_on_the_same_path() -> None:
    ours = Mounted(-1, "/mnt/twice", by_helper=False)
    ours.locate()
    assert (ours.mount_id, ours.device) == (92, "0:47")
    assert ours.is_there()
    assert not Mounted(-1, "/mnt/twice", by_helper=False, mount_id=92, device="0:99").is_there()
    assert not Mounted(-1, "/mnt/twice", by_helper=False, mount_id=4, device="0:47").is_there()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("point", ["/", "/proc", "/mnt/nothing"])
def test_what_is_no_mount_of_fuse_is_not_located(point: str) -> None:
    other = Mounted(-1, point, by_helper=False)
    other.locate()
    assert (other.mount_id, other.device) == (0, "")
    assert not other.is_there()


def helper_words(request: MountRequest) -> list[str]:
    """The options for fusermount3, split as libfuse splits them: a backslash takes the next character as it is."""
    words, word, text = [], "", iter(mounting._helper_options(request))
    for char in text:
        if char == ",":
            words.append(word)
            word = ""
        else:
            word += next(text) if char == "\\" else char
    return [*words, word]


def test_the_helpers_options() -> None:
    plain = MountRequest("/mnt", "/srv", flags=frozenset())
    assert helper_words(plain) == ["default_permissions", "fsname=/srv", "subtype=passthrough"]
    flags = frozenset({"ro", "nosuid", "noatime"})
    full = MountRequest("/mnt", "/srv", "", flags, allow_other=True, default_permissions=False, max_read=8192)
    assert helper_words(full) == ["noatime", "nosuid", "ro", "allow_other", "max_read=8192", "fsname=/srv"]


@given(st.text(max_size=30))
def test_no_name_becomes_an_option(name: str) -> None:
    words = helper_words(MountRequest("/mnt", name, flags=frozenset()))
    assert words == ["default_permissions", "fsname=" + name, "subtype=passthrough"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A directory to share."""
    (tmp_path / "source").mkdir()
    return str(tmp_path / "source")


def refused(point: str | Path, source: str, *, nonempty: bool = False) -> str:
    """The line about a mount point that must not be taken."""
    with pytest.raises(UserError) as caught:
        mounting.check_mountpoint(str(point), source, nonempty=nonempty)
    assert caught.value.status == exitcodes.MOUNTPOINT
    assert str(caught.value).startswith(f"{point}: ")
    return str(caught.value)


def test_a_mount_point_that_is_not_there(tmp_path: Path, source: str) -> None:
    for nonempty in (False, True):
        assert "mkdir -p" in refused(tmp_path / "none", source, nonempty=nonempty)
    (tmp_path / "link").symlink_to("none")
    assert "does not exist" in refused(tmp_path / "link", source)


def test_a_mount_point_that_is_no_directory(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").write_text("")
    for nonempty in (False, True):
        assert "no directory" in refused(tmp_path / "file", source, nonempty=nonempty)
    assert "cannot use the mount point" in refused(tmp_path / "file" / "below", source)


def test_a_mount_point_in_a_loop_of_symlinks(tmp_path: Path, source: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot use the mount point" in refused(tmp_path / "loop", source)


def test_a_mount_point_that_is_not_empty(tmp_path: Path, source: str) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    assert "not empty" in refused(full, source)
    assert mounting.check_mountpoint(str(full), source, nonempty=True) == str(full)


def test_a_mount_over_a_full_source_is_meant(source: str) -> None:
    Path(source, "file").write_text("")
    assert mounting.check_mountpoint(source, source) == source


def test_a_mount_point_that_is_one_already(source: str) -> None:
    assert "already a mount point (proc from " in refused("/proc", source)
    assert mounting.check_mountpoint("/proc", source, nonempty=True) == "/proc"


def test_the_mount_point_comes_without_symlinks_and_dots(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    real = str(tmp_path / "empty")
    assert mounting.check_mountpoint(str(tmp_path / "link"), source) == real
    assert mounting.check_mountpoint(f"{real}/../empty/.", source) == real


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_dead_mount_says_how_to_clear_it(number: int, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def dead(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "statvfs", dead)
    assert mounting.is_dead(source)
    assert "clear it: passthrough umount /proc" in refused("/proc", source)


def test_another_failure_is_no_death(tmp_path: Path) -> None:
    assert not mounting.is_dead(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("fusermount3: option allow_other only allowed if 'user_allow_other' is set", exitcodes.PERMISSION),
        ("fusermount3: failed to open /dev/fuse: Permission denied", exitcodes.NO_DEVICE),
        ("fusermount3: user has no write access to mountpoint /mnt", exitcodes.PERMISSION),
        ("fusermount3: mount failed: Operation not permitted", exitcodes.PERMISSION),
        ("fusermount3: mount failed: Invalid argument", exitcodes.MOUNT_FAILED),
        ("", exitcodes.MOUNT_FAILED),
    ],
)
def test_what_the_helper_says_becomes_one_line(text: str, status: int) -> None:
    error = mounting._helper_error(MountRequest("/mnt", "/srv"), text + "\n")
    assert error.status == status
    assert "\n" not in str(error)
    assert "fusermount3:" not in str(error)


_REASONS = [
    ("bad mount point {}: No such file or directory", exitcodes.MOUNT_FAILED),
    ("mount failed: {}: Invalid argument", exitcodes.MOUNT_FAILED),
    ("user has no write access to mountpoint {}", exitcodes.PERMISSION),
    ("mounting over filesystem type 0x9fa0 is forbidden: {}", exitcodes.MOUNT_FAILED),
    ("bad mount point {}: Permission denied", exitcodes.PERMISSION),
    ("failed to open /dev/fuse: Permission denied", exitcodes.NO_DEVICE),
]


@pytest.mark.parametrize(("text", "status"), _REASONS)
@pytest.mark.parametrize(
    "point",
    ["/mnt", "/home/ermission", "/mnt/Permission denied", "/x/dev/fuse/y", "/mnt/not permitted", "/mnt/allow_other"],
)
def test_the_words_of_a_mount_point_are_no_reason(point: str, text: str, status: int) -> None:
    error = mounting._helper_error(MountRequest(point, "/srv"), f"fusermount3: {text.format(point)}\n")
    assert error.status == status


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENODEV, exitcodes.KERNEL),
        (errno.EPERM, exitcodes.PERMISSION),
        (errno.EACCES, exitcodes.PERMISSION),
        (errno.EINVAL, exitcodes.MOUNT_FAILED),
    ],
)
def test_what_mount_says_becomes_a_status(number: int, status: int) -> None:
    error = mounting._mount_error(MountRequest("/mnt", "/srv"), OSError(number, os.strerror(number)))
    assert error.status == status


def test_no_device_and_no_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(UserError, match="modprobe fuse") as caught:
        mounting.open_device()
    assert caught.value.status == exitcodes.NO_DEVICE
    monkeypatch.setattr(mounting, "helper_path", lambda: None)
    with pytest.raises(UserError, match="apt install fuse3") as caught:
        mounting._need_helper()
    assert caught.value.status == exitcodes.NO_HELPER


def test_a_descriptor_comes_over_the_helpers_socket(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(tmp_path / "sent", "wb") as sent:
        socket.send_fds(theirs, [b"x"], [sent.fileno()])
        received = mounting._receive_descriptor(ours)
        assert received is not None
        try:
            assert os.path.sameopenfile(received, sent.fileno())
            assert not os.get_inheritable(received)
        finally:
            os.close(received)


def test_a_helper_that_dies_sends_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert mounting._receive_descriptor(ours) is None


@pytest.mark.parametrize(
    ("stderr", "number"), [("fusermount3: failed to unmount /mnt: Device or resource busy", errno.EBUSY), ("x", None)]
)
def test_an_unmount_by_the_helper(stderr: str, number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[bytes]":
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, b"", stderr.encode())

    monkeypatch.setattr(mounting, "may_mount", lambda: False)
    monkeypatch.setattr(mounting, "helper_path", lambda: "/usr/bin/fusermount3")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises((OSError, UserError)) as caught:
        mounting.unmount("-x", lazy=True)
    assert getattr(caught.value, "errno", None) == number
    assert asked == [["/usr/bin/fusermount3", "-u", "-z", "--", "-x"]]


def test_a_mount_of_another_user_is_not_unmounted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"/usr/bin/fusermount3: entry for /mnt not found in /etc/mtab"
    monkeypatch.setattr(mounting, "may_mount", lambda: False)
    monkeypatch.setattr(mounting, "helper_path", lambda: "/usr/bin/fusermount3")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, b"", said))
    with pytest.raises(UserError, match=r"^/mnt: this user has not mounted it; whoever has, or root"):
        mounting.unmount("/mnt")
