"""Unlinking and renaming, above all of what is open."""

import os
import stat
from pathlib import Path

import pytest

from .calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, opened, renameat2
from .modes import Tree, attempt


@pytest.mark.core
def test_unlinked_while_open(tree: Tree) -> None:
    path = tree.mount / "file"
    path.write_bytes(b"content")
    with opened(path) as fd:
        path.unlink()
        assert os.listdir(tree.source) == []
        assert os.listdir(tree.mount) == []
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == b"content"
        assert os.pwrite(fd, b"more", 7) == 4
        assert os.pread(fd, 100, 0) == b"contentmore"
        os.fsync(fd)
        os.ftruncate(fd, 3)
        os.fchmod(fd, 0o600)
        os.fchown(fd, 1, 2)
        os.utime(fd, ns=(1, 2))
        st = os.fstat(fd)
        assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns) == (3, 0o600, 1, 2, 2)
        path.write_bytes(b"another of that name")
        assert os.pread(fd, 100, 0) == b"con"
    assert path.read_bytes() == b"another of that name"


def test_unlinked_while_open_and_opened_again(tree: Tree) -> None:
    path = tree.mount / "file"
    path.write_bytes(b"content")
    with opened(path) as fd:
        path.unlink()
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            assert os.read(again, 100) == b"content"


def test_one_of_two_links_unlinked_while_open(tree: Tree) -> None:
    (tree.mount / "one").write_bytes(b"content")
    os.link(tree.mount / "one", tree.mount / "two")
    with opened(tree.mount / "one") as fd:
        (tree.mount / "one").unlink()
        assert os.fstat(fd).st_nlink == 1
        os.pwrite(fd, b"C", 0)
    assert (tree.source / "two").read_bytes() == b"Content"


@pytest.mark.core
def test_directory_removed_while_open(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "sub").mkdir()
        with opened(d / "sub", os.O_RDONLY) as fd:
            (d / "sub").rmdir()
            return (
                attempt(lambda: os.fstat(fd).st_nlink),
                attempt(lambda: os.listdir(fd)),
                attempt(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
                attempt(lambda: os.mkdir("new", dir_fd=fd)),
                attempt(lambda: os.stat("new", dir_fd=fd)),
            )

    found = tree.same(act)
    assert isinstance(found, tuple)
    assert found[2:] == ("ENOENT", "ENOENT", "ENOENT")


@pytest.mark.core
def test_rename_over_what_exists(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "old").write_bytes(b"old")
        (d / "new").write_bytes(b"new")
        ino = (d / "old").stat().st_ino
        with opened(d / "new", os.O_RDONLY) as fd:
            os.rename(d / "old", d / "new")
            replaced = os.fstat(fd).st_nlink, os.read(fd, 10)
        return replaced, (d / "new").read_bytes(), (d / "new").stat().st_ino == ino, sorted(os.listdir(d))

    assert tree.same(act) == ((0, b"new"), b"old", True, ["new"])


def test_rename_between_kinds(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()
        (d / "empty").mkdir()
        (d / "full/sub").mkdir(parents=True)
        (d / "moved").mkdir()
    assert tree.same(lambda d: os.rename(d / "file", d / "empty")) == "EISDIR"
    assert tree.same(lambda d: os.rename(d / "empty", d / "file")) == "ENOTDIR"
    assert tree.same(lambda d: os.rename(d / "moved", d / "full")) == "ENOTEMPTY"
    assert tree.same(lambda d: os.rename(d / "full", d / "full/sub/deeper")) == "EINVAL"
    assert tree.same(lambda d: os.rename(d / "full", d / "full/sub")) == "EINVAL"
    assert tree.same(lambda d: os.rename(d / "full/sub", d / "full")) == "ENOTEMPTY"
    assert tree.same(lambda d: os.rename(d / "full", d / "full")) is None
    assert tree.same(lambda d: os.rename(d / "full", d / "empty")) is None
    assert tree.same(lambda d: sorted(os.listdir(d))) == ["empty", "file", "moved"]
    assert tree.same(lambda d: os.listdir(d / "empty")) == ["sub"]


def test_rename_onto_another_link_does_nothing(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "one").touch()
        os.link(d / "one", d / "two")
        os.rename(d / "one", d / "two")
        return sorted(os.listdir(d))

    assert tree.same(act) == ["one", "two"]


@pytest.mark.core
def test_rename_to_another_directory(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "a/sub").mkdir(parents=True)
        (d / "a/sub/file").write_bytes(b"content")
        (d / "b").mkdir()
        os.rename(d / "a/sub", d / "b/sub")
        return (
            (d / "a").stat().st_nlink,
            (d / "b").stat().st_nlink,
            (d / "b/sub/file").read_bytes(),
            os.path.samefile(d / "b/sub/..", d / "b"),
            attempt(lambda: os.stat(d / "a/sub")),
        )

    found = tree.same(act)
    assert isinstance(found, tuple)
    assert found[2:] == (b"content", True, "ENOENT")


def test_rename_of_what_is_open(tree: Tree) -> None:
    (tree.mount / "dir/sub").mkdir(parents=True)
    with (
        opened(tree.mount / "dir/sub/file", os.O_CREAT | os.O_RDWR) as fd,
        opened(tree.mount / "dir", os.O_RDONLY) as directory,
    ):
        os.write(fd, b"before")
        os.rename(tree.mount / "dir/sub/file", tree.mount / "dir/sub/renamed")
        os.write(fd, b" after")
        os.rename(tree.mount / "dir", tree.mount / "moved")
        os.write(fd, b" again")
        assert os.listdir(directory) == ["sub"]
        with opened("sub/renamed", os.O_RDONLY, dir_fd=directory) as other:
            assert os.read(other, 100) == b"before after again"
        os.mkdir("new", dir_fd=directory)
    assert (tree.source / "moved/sub/renamed").read_bytes() == b"before after again"
    assert (tree.source / "moved/new").is_dir()


@pytest.mark.core
def test_rename_without_replacing(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "old").write_bytes(b"old")
        (d / "there").write_bytes(b"there")
    assert tree.same(lambda d: renameat2(d / "old", d / "there", RENAME_NOREPLACE)) == "EEXIST"
    assert (tree.source / "there").read_bytes() == b"there"
    assert tree.same(lambda d: renameat2(d / "old", d / "new", RENAME_NOREPLACE)) is None
    assert sorted(os.listdir(tree.source)) == ["new", "there"]


@pytest.mark.core
def test_rename_as_an_exchange(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").write_bytes(b"file")
        (d / "sub/below").mkdir(parents=True)
        (d / "other").write_bytes(b"other")
    exchanged = tree.same(lambda d: renameat2(d / "file", d / "sub", RENAME_EXCHANGE))
    assert exchanged in (None, "EINVAL")
    if exchanged is None:
        assert (tree.source / "sub").read_bytes() == b"file" == (tree.mount / "sub").read_bytes()
        assert (tree.mount / "file/below").is_dir()
        assert tree.same(lambda d: renameat2(d / "sub", d / "other", RENAME_EXCHANGE)) is None
        assert (tree.mount / "sub").read_bytes() == b"other"
        assert tree.same(lambda d: renameat2(d / "sub", d / "missing", RENAME_EXCHANGE)) == "ENOENT"
    assert tree.same(lambda d: renameat2(d / "sub", d / "x", RENAME_EXCHANGE | RENAME_NOREPLACE)) == "EINVAL"


@pytest.mark.core
@pytest.mark.needs("whiteout")
def test_rename_that_leaves_a_whiteout(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "file").write_bytes(b"content")
        renameat2(d / "file", d / "moved", RENAME_WHITEOUT)
        st = (d / "file").lstat()
        return stat.S_IFMT(st.st_mode), st.st_rdev, (d / "moved").read_bytes()

    assert tree.same(act) in ((stat.S_IFCHR, 0, b"content"), "EINVAL")


def test_rename_with_flags_unknown(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()
    assert tree.same(lambda d: renameat2(d / "file", d / "new", 0x80)) == "EINVAL"
    assert os.listdir(tree.source) == ["file"]


def test_times_of_directories_follow(tree: Tree) -> None:
    """Each change of names is a change of the directory, told at once."""
    for change in ("mkdir", "rmdir", "create", "link", "rename", "unlink"):
        os.utime(tree.mount, ns=(0, 0))
        assert tree.mount.stat().st_mtime_ns == 0
        if change == "mkdir":
            (tree.mount / "d").mkdir()
        elif change == "rmdir":
            (tree.mount / "d").rmdir()
        elif change == "create":
            (tree.mount / "f").touch()
        elif change == "link":
            os.link(tree.mount / "f", tree.mount / "l")
        elif change == "rename":
            os.rename(tree.mount / "l", tree.mount / "r")
        else:
            (tree.mount / "r").unlink()
        assert tree.mount.stat().st_mtime_ns == tree.source.stat().st_mtime_ns > 0, change
