"""Making files, directories and links, and what open's flags do."""

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import link_descriptor, opened, umask
from .modes import Tree

_MODES = (0o000, 0o600, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o1777, 0o7777)
_UMASKS = (0o000, 0o022, 0o027, 0o077, 0o777)


def _create(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))


_MAKERS: dict[str, Callable[[Path, int], None]] = {
    "create": _create,
    "mkdir": lambda path, mode: os.mkdir(path, mode),
    "mknod": lambda path, mode: os.mknod(path, mode | stat.S_IFREG),
    "mkfifo": lambda path, mode: os.mkfifo(path, mode),
}


@pytest.mark.core
@pytest.mark.parametrize("maker", _MAKERS)
def test_modes_and_umasks(tree: Tree, maker: str) -> None:
    def made(d: Path) -> list[int]:
        found = []
        for mask in _UMASKS:
            for mode in _MODES:
                path = d / f"{mask:o}-{mode:o}"
                with umask(mask):
                    _MAKERS[maker](path, mode)
                found.append(path.lstat().st_mode)
        return found

    modes = tree.same(made)
    assert isinstance(modes, list)
    assert stat.S_IMODE(modes[len(_MODES) + _MODES.index(0o777)]) == 0o755


@pytest.mark.core
def test_creating_what_exists(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "file").write_bytes(b"old content")
        (d / "file").chmod(0o640)
        with opened(d / "file", os.O_CREAT | os.O_RDWR, 0o777) as fd:
            os.write(fd, b"NEW")
        return (d / "file").read_bytes(), (d / "file").stat().st_mode

    assert tree.same(act) == (b"NEW content", stat.S_IFREG | 0o640)
    for flags in (os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_EXCL | os.O_TRUNC):
        assert tree.same(lambda d, flags=flags: os.open(d / "file", flags | os.O_RDWR)) == "EEXIST"  # type: ignore[misc]
    assert (tree.source / "file").read_bytes() == b"NEW content"


@pytest.mark.core
def test_truncation_by_opening(tree: Tree) -> None:
    def act(d: Path) -> object:
        found = []
        for flags in (os.O_TRUNC | os.O_WRONLY, os.O_TRUNC | os.O_CREAT | os.O_RDWR):
            (d / "file").write_bytes(b"x" * 10000)
            with opened(d / "file", flags) as fd:
                found.append(os.fstat(fd).st_size)
                os.write(fd, b"short")
            found.append(len((d / "file").read_bytes()))
        return found

    assert tree.same(act) == [0, 5, 0, 5]


def test_creating_through_a_symlink(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "link").symlink_to("target")
    assert tree.same(lambda d: os.open(d / "link", os.O_CREAT | os.O_EXCL | os.O_RDWR)) == "EEXIST"
    assert tree.same(lambda d: os.open(d / "link", os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR)) == "ELOOP"
    assert tree.same(lambda d: os.open(d / "link", os.O_RDONLY)) == "ENOENT"
    assert tree.same(lambda d: (d / "link").write_bytes(b"made")) == 4
    assert (tree.source / "target").read_bytes() == b"made"


def test_what_cannot_be_opened(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()
        (d / "directory").mkdir()
        (d / "link").symlink_to("directory")
    for name, flags, expected in (
        ("file", os.O_RDONLY | os.O_DIRECTORY, "ENOTDIR"),
        ("directory", os.O_RDWR, "EISDIR"),
        ("directory", os.O_WRONLY | os.O_CREAT, "EISDIR"),
        ("directory", os.O_RDONLY | os.O_CREAT, "EISDIR"),
        ("link", os.O_RDONLY | os.O_NOFOLLOW, "ELOOP"),
        ("link", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY, "ENOTDIR"),
        ("file/below", os.O_RDWR | os.O_CREAT, "ENOTDIR"),
        ("missing/below", os.O_RDWR | os.O_CREAT, "ENOENT"),
    ):
        assert tree.same(lambda d, name=name, flags=flags: os.open(d / name, flags)) == expected, name  # type: ignore[misc]


def test_path_descriptors(tree: Tree) -> None:
    (tree.mount / "link").symlink_to("x")
    (tree.mount / "file").write_bytes(b"content")
    with opened(tree.mount / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert os.readlink("", dir_fd=fd) == "x"
    with opened(tree.mount / "file", os.O_PATH) as fd:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(fd, 1)
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"content"


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400])
def test_a_new_file_is_open_as_asked_whatever_its_mode(tree: Tree, mode: int) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
        assert os.write(fd, b"written") == 7
        assert os.pread(fd, 10, 0) == b"written"
    assert stat.S_IMODE((tree.source / "file").stat().st_mode) == mode


def test_access_modes_are_kept_to(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"content")
    with opened(tree.mount / "file", os.O_RDONLY) as fd, pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    with opened(tree.mount / "file", os.O_WRONLY) as fd, pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC", "O_NOATIME", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"])
def test_flags_that_change_little(tree: Tree, flag: str) -> None:
    flags = getattr(os, flag)
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR | flags) as fd:
        assert os.write(fd, b"content") == 7
    with opened(tree.mount / "file", os.O_RDWR | flags) as fd:
        assert os.read(fd, 10) == b"content"
    assert (tree.source / "file").read_bytes() == b"content"


@pytest.mark.core
def test_direct_io(tree: Tree) -> None:
    def act(d: Path) -> object:
        with mmap.mmap(-1, 8192) as buffer, opened(d / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
            buffer[:] = bytes(range(256)) * 32
            written = os.pwrite(fd, buffer, 4096)
            buffer[:] = bytes(8192)
            read = os.preadv(fd, [buffer], 8192)
            return written, read, buffer[:]

    assert tree.same(act) in ((8192, 4096, bytes(range(256)) * 16 + bytes(4096)), "EINVAL")
    if (tree.source / "file").stat().st_size:
        assert (tree.source / "file").read_bytes() == bytes(4096) + bytes(range(256)) * 32


@pytest.mark.core
@pytest.mark.needs("unnamed files")
def test_unnamed_files(tree: Tree) -> None:
    def act(d: Path) -> object:
        with opened(d, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
            os.write(fd, b"unnamed")
            before = os.fstat(fd).st_nlink, os.listdir(d), os.pread(fd, 10, 0)
            link_descriptor(fd, d / "named")
            return before, os.fstat(fd).st_nlink, stat.S_IMODE((d / "named").stat().st_mode), os.listdir(d)

    assert tree.same(act) == ((0, [], b"unnamed"), 1, 0o640, ["named"])
    assert (tree.source / "named").read_bytes() == b"unnamed"


@pytest.mark.needs("unnamed files")
def test_unnamed_files_that_stay_so(tree: Tree) -> None:
    def act(d: Path) -> None:
        with opened(d, os.O_TMPFILE | os.O_EXCL | os.O_WRONLY) as fd:
            os.write(fd, b"unnamed")
            link_descriptor(fd, d / "named")

    assert tree.same(act) == "ENOENT"
    assert tree.same(os.listdir) == []


def test_symlinks(tree: Tree) -> None:
    for number, target in enumerate(("x", "/etc/passwd", "../" * 10, "t" * 4095, "\udcff", "new\nline")):
        (tree.mount / f"l{number}").symlink_to(target)
        assert os.readlink(tree.source / f"l{number}") == target
        assert os.readlink(tree.mount / f"l{number}") == target
        assert (tree.mount / f"l{number}").lstat().st_size == len(os.fsencode(target))
    assert tree.same(lambda d: os.symlink("t" * 4096, d / "too long")) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.symlink("", d / "empty")) == "ENOENT"
    (tree.mount / "file").write_bytes(b"content")
    (tree.mount / "to file").symlink_to("file")
    assert (tree.mount / "to file").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        (tree.mount / "file").symlink_to("x")


@pytest.mark.core
def test_hard_links_are_one_file(tree: Tree) -> None:
    (tree.mount / "one").write_bytes(b"content")
    (tree.mount / "sub").mkdir()
    os.link(tree.mount / "one", tree.mount / "sub/two")
    for place in (tree.mount, tree.source):
        one, two = (place / "one").stat(), (place / "sub/two").stat()
        assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
    with opened(tree.mount / "one") as fd:
        os.write(fd, b"CON")
        os.fsync(fd)
        assert (tree.mount / "sub/two").read_bytes() == b"CONtent"
    (tree.mount / "one").unlink()
    assert (tree.mount / "sub/two").stat().st_nlink == 1
    assert (tree.source / "sub/two").read_bytes() == b"CONtent"


def test_hard_links_to_other_things(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "link").symlink_to("nowhere")
        (d / "directory").mkdir()
        (d / "file").touch()
        os.mkfifo(d / "fifo")
        os.link(d / "link", d / "link 2", follow_symlinks=False)
        os.link(d / "fifo", d / "fifo 2")
    assert os.readlink(tree.source / "link 2") == "nowhere"
    assert (tree.mount / "link 2").lstat().st_nlink == 2
    assert (tree.mount / "fifo 2").lstat().st_ino == (tree.mount / "fifo").lstat().st_ino
    assert tree.same(lambda d: os.link(d / "directory", d / "other")) == "EPERM"
    assert tree.same(lambda d: os.link(d / "file", d / "directory")) == "EEXIST"
    assert tree.same(lambda d: os.link(d / "file", d / "file")) == "EEXIST"


@pytest.mark.core
def test_directories(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "a").mkdir(mode=0o711)
        (d / "a/b").mkdir()
        (d / "file").touch()
        return d.stat().st_nlink, (d / "a").stat().st_nlink, (d / "a").stat().st_mode

    assert isinstance(tree.same(act), tuple)
    assert tree.same(lambda d: os.mkdir(d / "a")) == "EEXIST"
    assert tree.same(lambda d: os.mkdir(d / "file")) == "EEXIST"
    assert tree.same(lambda d: os.rmdir(d / "a")) == "ENOTEMPTY"
    assert tree.same(lambda d: os.rmdir(d / "file")) == "ENOTDIR"
    assert tree.same(lambda d: os.rmdir(f"{d}/a/.")) == "EINVAL"
    assert tree.same(lambda d: os.rmdir(f"{d}/a/..")) == "ENOTEMPTY"
    assert tree.same(lambda d: os.unlink(d / "a")) == "EISDIR"
    assert tree.same(lambda d: os.rmdir(d / "a/b")) is None
    assert tree.same(lambda d: os.rmdir(d / "a")) is None
    assert os.listdir(tree.source) == ["file"]
    assert isinstance(tree.same(lambda d: d.stat().st_nlink), int)


def test_programs_run_from_the_mount(tree: Tree) -> None:
    program = tree.mount / "program"
    program.write_text("#!/bin/sh\nexit 7\n")
    assert tree.same(lambda d: os.access(d / "program", os.X_OK)) is False
    program.chmod(0o755)
    assert os.waitstatus_to_exitcode(os.system(f"'{program}'")) == 7


def test_a_program_that_runs_is_not_written_to(tree: Tree) -> None:
    """ETXTBSY where the kernel knows; never a crash."""
    (tree.mount / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (tree.mount / "sleep").chmod(0o755)
    pid = os.posix_spawn(tree.mount / "sleep", ["sleep", "60"], os.environ)
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.open(tree.mount / "sleep", os.O_WRONLY)
        assert raised.value.errno == errno.ETXTBSY
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
