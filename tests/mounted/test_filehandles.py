"""Few descriptors and many files: what is kept by its handle is the same file, wherever it is asked for."""

import errno
import os
import subprocess
from collections import deque
from functools import partial
from pathlib import Path

import pytest

from passthrough import exitcodes

from ..vhost.backend import backend
from ..vhost.fuse import Client, ReplyError
from .harness import Harness, Mount, ended, log_size, refusal, run, said_in_log, wait_until
from .posix.calls import link_descriptor
from .posix.modes import attempt
from .posix.sources import attach

_NOFILE = 1024
_DIRECTORIES, _EACH = 30, 1000
_FEW = 160


def walk(point: Path) -> int:
    """How many empty files find sees, each of which it must stat."""
    found = subprocess.run(["find", point, "-type", "f", "-size", "0"], check=False, capture_output=True)
    assert found.stderr == b""
    assert found.returncode == 0
    return len(found.stdout.splitlines())


def fill(source: Path, directories: int, each: int) -> None:
    """Empty files."""
    for number in range(directories):
        (source / f"{number}").mkdir()
        for below in range(each):
            os.close(os.open(source / f"{number}" / f"{below}", os.O_CREAT | os.O_WRONLY))


@pytest.mark.parametrize("options", ["cache=always", "inode_file_handles=mandatory,passthrough=off", "io_uring=off"])
def test_a_walk_over_far_more_files_than_descriptors(harness: Harness, options: str) -> None:
    """Nothing fails. cache=always lets the kernel remember all; nobody asks it to forget."""
    source = attach(harness, "-t", "tmpfs", "tmpfs")
    fill(source, _DIRECTORIES, _EACH)
    since = log_size()
    mount = harness.mount("-o", options, source=source, descriptors=_NOFILE)
    for _ in range(2):
        assert walk(mount.point) == _DIRECTORIES * _EACH
    assert len(os.listdir(f"/proc/{mount.server}/fd")) <= _NOFILE
    assert not ended(mount.server, 0)
    assert said_in_log(mount.pid, since=since) == []
    mount.umount()


def test_with_descriptors_alone_the_budget_is_honest(harness: Harness) -> None:
    """A listing with attributes goes on by names; the kernel is asked to forget; who has all open gets ENFILE."""
    source = harness.directory("source")
    fill(source, 5, 300)
    mount = harness.mount("-o", "inode_file_handles=never,cache=always", source=source, descriptors=_FEW)
    assert walk(mount.point) == 1500
    held: list[int] = []
    try:

        def spent() -> bool:
            more = (os.open(mount.point / "0" / f"{number}", os.O_PATH) for number in range(len(held), 300))
            return attempt(lambda: held.extend(more)) == "ENFILE"

        assert spent()
        wait_until(lambda: spent() and len(held) > 20, "what the kernel was asked to forget is to be had again")
    finally:
        for fd in held:
            os.close(fd)
    assert not ended(mount.server, 0)
    mount.umount()


@pytest.mark.parametrize("mode", ["namespace", "landlock"])
def test_all_those_files_can_be_in_use_at_once(harness: Harness, mode: str) -> None:
    """The same with handles: the kernel cannot forget what a program refers to."""
    source = harness.directory("source")
    fill(source, 1, 1000)
    mount = harness.mount("-o", f"cache=always,sandbox={mode}", source=source, descriptors=_FEW)
    held = [os.open(mount.point / "0" / f"{number}", os.O_PATH) for number in range(1000)]
    try:
        for number, fd in enumerate(held):
            assert os.fstat(fd).st_ino == (source / "0" / f"{number}").stat().st_ino
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    finally:
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("io_uring", ["off", "auto"])
def test_who_is_squashed_gets_no_more_by_a_handle(harness: Harness, io_uring: str) -> None:
    """What opens by handle has rights that a squashed caller has not."""
    source = harness.directory("source", 0o755)
    fill(source, 1, 600)
    for number in range(600):
        (source / "0" / f"{number}").chmod(0o644 if number % 2 else 0o600)
    words = f"allow_other,squash=all,anon_uid=4001,anon_gid=4002,cache=always,passthrough=off,io_uring={io_uring}"
    mount = harness.mount("-o", words, source=source, descriptors=_FEW)
    held = [os.open(mount.point / "0" / f"{number}", os.O_PATH) for number in range(600)]
    try:
        for number, fd in enumerate(held):
            opened = attempt(partial(_reopen, fd, os.O_RDONLY))
            assert opened == (None if number % 2 else "EACCES")
            written = attempt(partial(_reopen, fd, os.O_WRONLY))
            assert written == "EACCES"
    finally:
        for fd in held:
            os.close(fd)


@pytest.fixture
def disk(harness: Harness) -> Path:
    """A small ext4, whose inode numbers are used again at once."""
    image = harness.directory("image") / "image"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    harness.run_program("mkfs.ext4", "-q", image)
    return attach(harness, "-o", "loop", image)


@pytest.fixture
def crowded(harness: Harness, disk: Path) -> Mount:
    """A mount of it that lets go of whatever it can; `file` was looked at first."""
    (disk / "file").write_text("first")
    (disk / "many").mkdir()
    for number in range(400):
        (disk / "many" / f"{number}").touch()
    return harness.mount("-o", "cache=always", source=disk, descriptors=_FEW)


def crowd(mount: Mount) -> None:
    """Look at so many files that others are let go."""
    for number in range(400):
        os.lstat(mount.point / "many" / f"{number}")
        os.access(mount.point / "many" / f"{number}", os.R_OK)


def test_a_file_that_has_no_path_is_served_all_the_same(harness: Harness, crowded: Mount, disk: Path) -> None:
    """A remount makes the kernel forget the names of the disk: what is opened by its handle then has none. A Landlock
    before Linux 6.18 lets the daemon open nothing that has none."""
    fd = os.open(crowded.point / "file", os.O_PATH)
    try:
        assert os.fstat(fd).st_size == 5
        crowd(crowded)
        held = {os.readlink(each) for each in Path(f"/proc/{crowded.server}/fd").iterdir()}
        assert "/file" not in held, "it was let go"
        harness.run_program("mount", "-o", "remount", disk)
        path = f"/proc/self/fd/{fd}"
        assert Path(path).read_text() == "first"
        Path(path).write_text("second")
        with open(path, "a") as file:
            file.write(" third")
        os.chmod(path, 0o600)
        os.setxattr(path, "user.x", b"x")
        os.utime(path, (5, 5))
        os.truncate(path, 8)
        link_descriptor(fd, crowded.point / "linked")
    finally:
        os.close(fd)
    st = (disk / "file").stat()
    assert (st.st_mode & 0o7777, st.st_nlink, int(st.st_atime)) == (0o600, 2, 5)
    assert (disk / "linked").read_text() == "second t"
    assert os.getxattr(disk / "file", "user.x") == b"x"


def test_a_number_that_is_used_again_is_another_file(crowded: Mount, disk: Path) -> None:
    fd = os.open(crowded.point / "file", os.O_PATH)
    before = os.fstat(fd).st_ino
    crowd(crowded)
    try:
        (disk / "file").unlink()
        (disk / "again").write_text("another")
        assert (disk / "again").stat().st_ino == before, "ext4 takes the lowest number that is free"
        assert attempt(lambda: Path(f"/proc/self/fd/{fd}").read_text()) == "ESTALE"
        assert (crowded.point / "again").read_text() == "another"
        assert (crowded.point / "again").stat().st_ino == before
        assert attempt(lambda: Path(f"/proc/self/fd/{fd}").read_text()) == "ESTALE"
        assert attempt((crowded.point / "nothing").read_text) == "ENOENT"
    finally:
        os.close(fd)
    crowd(crowded)
    assert (crowded.point / "again").read_text() == "another"


def test_a_program_keeps_what_is_removed_through_the_mount(crowded: Mount, disk: Path) -> None:
    """Its working directory, and a file that it has open without a descriptor of ours."""
    (crowded.point / "dir").mkdir()
    crowd(crowded)
    directory, fd = os.open(crowded.point / "dir", os.O_PATH), os.open(crowded.point / "file", os.O_PATH)
    try:
        crowd(crowded)
        (crowded.point / "dir").rmdir()
        (crowded.point / "file").unlink()
        crowd(crowded)
        assert os.fstat(directory).st_nlink == 0
        assert Path(f"/proc/self/fd/{fd}").read_text() == "first"
    finally:
        os.close(directory)
        os.close(fd)


def test_another_file_system_below_without_handles(harness: Harness) -> None:
    """prefer holds its files, and says so once; mandatory does not serve them, nor what lies below."""
    source = harness.directory("source")
    (source / "over").mkdir()
    (source / "plain").touch()
    lower, upper, work = (harness.directory(name) for name in ("lower", "upper", "work"))
    for number in range(300):
        (lower / f"{number}").write_text(f"{number}")
    data = f"lowerdir={lower},upperdir={upper},workdir={work}"
    harness.run_program("mount", "-t", "overlay", "-o", data, "overlay", source / "over")
    harness.cleanups.append(lambda: subprocess.run(["umount", source / "over"], check=True))
    since = log_size()
    mount = harness.mount("-o", "inode_file_handles=prefer", source=source, descriptors=_FEW)
    for number in range(300):
        assert (mount.point / "over" / f"{number}").read_text() == f"{number}"
    lines = said_in_log(mount.pid, since=since)
    assert len([line for line in lines if "has no file handles" in line]) == 1, lines
    mount.umount()
    mount = harness.mount("-o", "inode_file_handles=mandatory", source=source)
    assert attempt(lambda: os.listdir(mount.point / "over")) == "EOPNOTSUPP"
    assert attempt((mount.point / "over" / "1").read_text) == "EOPNOTSUPP"
    assert sorted(os.listdir(mount.point)) == ["over", "plain"]
    assert (mount.point / "plain").read_text() == ""
    mount.umount()


def test_removing_the_capability_is_refused(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    line = refusal(run("mount", "-o", "modcaps=-dac_read_search", source, point), exitcodes.USAGE)
    assert "inode_file_handles=never" in line
    mount = harness.mount("-o", "modcaps=-dac_read_search,inode_file_handles=never")
    (mount.point / "file").touch()


@pytest.mark.parametrize("handles", ["prefer", "mandatory", "never"])
def test_a_guest_that_forgets_nothing(handles: str) -> None:
    """It cannot be asked to. With never it gets ENFILE, and the daemon lives; with handles it has all its files."""
    files = 600
    with backend(f"--inode-file-handles={handles}", "--rlimit-nofile=300") as made:
        names = [b"%d" % number for number in range(files)]
        for name in names:
            (made.shared / os.fsdecode(name)).write_bytes(name)
        with made.front() as front:
            client = Client(front)
            client.init()
            if handles == "never":
                with pytest.raises(ReplyError) as raised:
                    deque((client.lookup(1, name) for name in names), 0)
                assert raised.value.errno == errno.ENFILE
                assert client.getattr()["ino"] == made.shared.stat().st_ino
            else:
                nodes = [client.lookup(1, name) for name in names]
                assert len(set(nodes)) == files
                for name, nodeid in zip(names, nodes, strict=True):
                    assert client.getattr(nodeid)["ino"] == (made.shared / os.fsdecode(name)).stat().st_ino
                assert len(os.listdir(f"/proc/{made.serving()}/fd")) <= 300
        made.works()


def _reopen(fd: int, flags: int) -> None:
    os.close(os.open(f"/proc/self/fd/{fd}", flags))
