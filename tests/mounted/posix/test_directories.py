"""Listing: every entry once, positions that hold, and changes while it goes on."""

import os
import stat
from pathlib import Path

import pytest

from .calls import DirectoryStream, directory_stream, getdents, opened
from .modes import Tree, attempt

_MANY = 20_000
_SOME = 400  # more than one reply brings


def test_a_large_directory_is_listed_once_each(tree: Tree) -> None:
    tree.compared = False
    expected = {f"entry-{number:05}" for number in range(_MANY)}
    with opened(tree.source, os.O_RDONLY) as fd:
        for name in expected:
            os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=fd)
    for _ in range(2):
        listed = os.listdir(tree.mount)
        assert len(listed) == _MANY
        assert set(listed) == expected


def test_long_names_in_a_listing(tree: Tree) -> None:
    names = {f"{number:03}" + "x" * 252 for number in range(300)}
    for name in names:
        (tree.source / name).touch()
    assert sorted(os.listdir(tree.mount)) == sorted(names)


@pytest.mark.core
def test_kinds_and_inode_numbers_in_a_listing(tree: Tree) -> None:
    (tree.mount / "file").touch()
    (tree.mount / "directory").mkdir()
    (tree.mount / "link").symlink_to("x")
    os.mkfifo(tree.mount / "fifo")
    os.mknod(tree.mount / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(tree.mount / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with directory_stream(tree.mount) as stream:
        listed = stream.rest()
    assert sorted(entry.name for entry in listed) == sorted([b".", b"..", *map(os.fsencode, os.listdir(tree.source))])
    for entry in listed:
        st = (tree.mount / os.fsdecode(entry.name)).lstat()
        if entry.name != b"..":
            assert entry.ino == st.st_ino == (tree.source / os.fsdecode(entry.name)).lstat().st_ino
        assert entry.kind == stat.S_IFMT(st.st_mode) >> 12


def test_an_empty_directory(tree: Tree) -> None:
    (tree.mount / "empty").mkdir()
    with directory_stream(tree.mount / "empty") as stream:
        assert sorted(entry.name for entry in stream.rest()) == [b".", b".."]
        assert stream.read() is None
        stream.rewind()
        assert len(stream.rest()) == 2


@pytest.mark.core
@pytest.mark.parametrize("number", [1, 3])
def test_a_rewind_after_one_reply_shows_what_is_new(tree: Tree, number: int) -> None:
    """So little has been read that position 0 is where the daemon still is."""

    def names(stream: DirectoryStream) -> list[bytes]:
        return sorted(entry.name for entry in stream.rest())

    def act(d: Path) -> object:
        (d / "first").touch()
        with directory_stream(d) as stream:
            for _ in range(number):
                assert stream.read()
            (d / "first").unlink()
            (d / "second").touch()
            stream.rewind()
            found = [names(stream)]
            (d / "third").touch()
            stream.rewind()
            return [*found, names(stream)]

    assert tree.same(act) == [[b".", b"..", b"second"], [b".", b"..", b"second", b"third"]]


@pytest.mark.core
def test_positions_hold(tree: Tree) -> None:
    for number in range(500):
        (tree.source / f"{number}").touch()
    with directory_stream(tree.mount) as stream:
        positions, names = [stream.tell()], []
        while entry := stream.read():
            names.append(entry.name)
            positions.append(stream.tell())
        assert len(set(names)) == 502
        for index in (0, 1, 250, 499, 501, 17):
            stream.seek(positions[index])
            assert [entry.name for entry in stream.rest()] == names[index:]
        stream.seek(positions[-1])
        assert stream.read() is None
        stream.rewind()
        assert [entry.name for entry in stream.rest()] == names


def test_two_listings_side_by_side(tree: Tree) -> None:
    for number in range(300):
        (tree.source / f"{number}").touch()
    with directory_stream(tree.mount) as one, directory_stream(tree.mount) as two:
        first = [one.read() for _ in range(100)]
        assert len(two.rest()) == 302
        assert len(one.rest()) + len(first) == 302


@pytest.mark.core
def test_changes_while_listing(tree: Tree) -> None:
    """What stays is listed once; what comes or goes may be, once."""
    stays = {b"stays-%d" % number for number in range(_SOME)}
    goes = {b"goes-%d" % number for number in range(_SOME)}
    for name in stays | goes:
        (tree.mount / os.fsdecode(name)).touch()
    with directory_stream(tree.mount) as stream:
        listed = [entry.name for entry in (stream.read() for _ in range(50)) if entry]
        for number in range(_SOME):
            (tree.mount / f"goes-{number}").unlink()
            (tree.mount / f"comes-{number}").touch()
        listed += [entry.name for entry in stream.rest()]
        assert len(listed) == len(set(listed))
        assert set(listed) >= stays
        stream.rewind()
        again = {entry.name for entry in stream.rest()}
        assert again == stays | {b"comes-%d" % number for number in range(_SOME)} | {b".", b".."}


def test_removing_all_while_listing(tree: Tree) -> None:
    for number in range(_SOME):
        (tree.source / f"{number}").touch()
    with os.scandir(tree.mount) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(tree.source) == []
    assert os.listdir(tree.mount) == []


def test_a_new_name_is_listed_at_once(tree: Tree) -> None:
    for number in range(5):
        (tree.mount / f"{number}").touch()
        assert len(os.listdir(tree.mount)) == number + 1
    os.rename(tree.mount / "0", tree.mount / "renamed")
    (tree.mount / "1").unlink()
    assert sorted(os.listdir(tree.mount)) == ["2", "3", "4", "renamed"]


def test_listing_through_descriptors(tree: Tree) -> None:
    (tree.mount / "sub/below").mkdir(parents=True)
    with opened(tree.mount, os.O_RDONLY) as fd, opened("sub", os.O_RDONLY, dir_fd=fd) as sub:
        assert os.listdir(fd) == ["sub"]
        assert os.listdir(sub) == ["below"]
        assert os.listdir(fd) == ["sub"]
    with opened(tree.mount / "sub", os.O_PATH) as fd, pytest.raises(OSError, match="Bad file descriptor"):
        getdents(fd, 4096)


def test_buffers_that_are_too_small(tree: Tree) -> None:
    name = "n" * 200
    (tree.source / name).touch()
    (tree.plain / name).touch()

    def act(d: Path) -> object:
        with opened(d, os.O_RDONLY) as fd:
            found = set()
            while True:
                records = attempt(lambda: getdents(fd, 100))
                if isinstance(records, str) or not records:
                    return records, name in os.listdir(fd)
                found.add(records)

    assert tree.same(act) in (("EINVAL", True), ("EINVAL", False))
    with opened(tree.mount, os.O_RDONLY) as fd:
        records = b""
        while part := getdents(fd, 240):
            records += part
    assert records.count(name.encode()) == 1


def test_what_is_no_directory(tree: Tree) -> None:
    (tree.mount / "file").touch()
    (tree.plain / "file").touch()
    assert tree.same(lambda d: os.listdir(d / "file")) == "ENOTDIR"
    assert tree.same(lambda d: os.listdir(d / "missing")) == "ENOENT"
    with opened(tree.mount / "file") as fd, pytest.raises(NotADirectoryError):
        getdents(fd, 4096)
    with opened(tree.mount, os.O_RDONLY) as fd, pytest.raises(IsADirectoryError):
        os.read(fd, 1)
