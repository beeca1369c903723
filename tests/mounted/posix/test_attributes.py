"""Modes, owners and times: set, shown, and in the source."""

import os
import stat
from pathlib import Path

import pytest

from .calls import UTIME_NOW, UTIME_OMIT, birth, futimens, opened, utimensat
from .modes import Tree


def _populate(d: Path) -> None:
    (d / "file").write_bytes(b"content")
    (d / "directory").mkdir()
    (d / "link").symlink_to("file")
    os.mkfifo(d / "fifo")


@pytest.fixture
def filled(tree: Tree) -> Tree:
    """A tree with one of each, on both sides."""
    _populate(tree.mount)
    _populate(tree.plain)
    return tree


@pytest.mark.core
@pytest.mark.parametrize("name", ["file", "directory", "fifo"])
def test_chmod(filled: Tree, name: str) -> None:
    def act(d: Path) -> object:
        found = []
        for mode in (0o000, 0o777, 0o640, 0o4755, 0o2755, 0o1777, 0o7777, 0o6711):
            os.chmod(d / name, mode)
            found.append((d / name).stat().st_mode & 0o7777)
        return found

    assert filled.same(act) == [0o000, 0o777, 0o640, 0o4755, 0o2755, 0o1777, 0o7777, 0o6711]
    assert (filled.source / name).stat().st_mode & 0o7777 == 0o6711


def test_chmod_through_descriptors_and_links(filled: Tree) -> None:
    with opened(filled.mount / "file") as fd:
        os.fchmod(fd, 0o640)
    with opened(filled.mount / "directory", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o2710)
    assert stat.S_IMODE((filled.source / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((filled.source / "directory").stat().st_mode) == 0o2710
    os.chmod(filled.mount / "link", 0o600)
    assert stat.S_IMODE((filled.source / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((filled.source / "link").lstat().st_mode) == 0o777


@pytest.mark.core
@pytest.mark.parametrize("name", ["file", "directory", "fifo", "link"])
def test_chown(filled: Tree, name: str) -> None:
    def act(d: Path) -> object:
        found = []
        for uid, gid in ((1, 2), (-1, 3), (4, -1), (-1, -1), (65534, 65534), (0x7FFFFFFF, 0xFFFFFFFE), (0, 0), (7, 8)):
            os.chown(d / name, uid, gid, follow_symlinks=False)
            st = (d / name).lstat()
            found.append((st.st_uid, st.st_gid))
        return found

    found = filled.same(act)
    assert isinstance(found, list)
    assert found[:4] == [(1, 2), (1, 3), (4, 3), (4, 3)]
    st = (filled.source / name).lstat()
    assert (st.st_uid, st.st_gid) == (7, 8)


@pytest.mark.parametrize("mode", [0o6755, 0o2745, 0o4744, 0o6666])
def test_chown_takes_suid_and_sgid(filled: Tree, mode: int) -> None:
    def act(d: Path) -> object:
        found = []
        for name in ("file", "directory"):
            for uid, gid in ((1, -1), (-1, 1), (-1, -1)):
                os.chown(d / name, 0, 0)
                os.chmod(d / name, mode)
                os.chown(d / name, uid, gid)
                found.append(stat.S_IMODE((d / name).stat().st_mode))
        return found

    assert isinstance(filled.same(act), list)


@pytest.mark.core
@pytest.mark.parametrize("name", ["file", "directory", "fifo", "link"])
def test_times(filled: Tree, name: str) -> None:
    def act(d: Path) -> object:
        path, found = d / name, []
        for atime, mtime in (
            ((1, 2), (3, 999_999_999)),
            ((0, UTIME_OMIT), (5, 6)),
            ((7, 8), (0, UTIME_OMIT)),
            ((0, UTIME_OMIT), (0, UTIME_OMIT)),
            ((-1, 5), (-1000, 6)),
            ((1 << 31, 0), (1 << 32, 0)),
        ):
            utimensat(path, atime, mtime, follow=False)
            st = path.lstat()
            found.append((st.st_atime_ns, st.st_mtime_ns))
        return found

    found = filled.same(act)
    assert isinstance(found, list)
    second = 1_000_000_000
    assert found[:4] == [
        (second + 2, 4 * second - 1),
        (second + 2, 5 * second + 6),
        (7 * second + 8, 5 * second + 6),
        (7 * second + 8, 5 * second + 6),
    ]


@pytest.mark.core
def test_times_of_now(filled: Tree) -> None:
    for name in ("file", "directory", "link"):
        path = filled.mount / name
        utimensat(path, (1, 0), (1, 0), follow=False)
        utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT), follow=False)
        st, real = path.lstat(), (filled.source / name).lstat()
        assert st.st_atime_ns == real.st_atime_ns > 10**18
        assert st.st_mtime_ns == real.st_mtime_ns == 10**9
        utimensat(path, (2, 0), (0, UTIME_NOW), follow=False)
        st, real = path.lstat(), (filled.source / name).lstat()
        assert st.st_atime_ns == real.st_atime_ns == 2 * 10**9
        assert st.st_mtime_ns > 10**18
        if "mtime" not in filled.mode.lacks:
            assert st.st_mtime_ns == real.st_mtime_ns


def test_times_through_a_descriptor(filled: Tree) -> None:
    with opened(filled.mount / "file") as fd:
        os.write(fd, b"written before")
        futimens(fd, (11, 12), (13, 14))
        assert os.fstat(fd).st_mtime_ns == 13 * 10**9 + 14
    st = (filled.source / "file").stat()
    assert st.st_mtime_ns == 13 * 10**9 + 14 == (filled.mount / "file").stat().st_mtime_ns


def test_changes_set_times(filled: Tree) -> None:
    path = filled.mount / "file"
    for change in (
        lambda: path.write_bytes(b"other"),
        lambda: os.truncate(path, 2),
        lambda: os.truncate(path, 20000),
    ):
        os.utime(path, ns=(1, 1))
        before = path.stat().st_ctime_ns
        change()
        assert path.stat().st_mtime_ns > 10**18
        assert path.stat().st_ctime_ns >= before
        assert (filled.source / "file").stat().st_mtime_ns > 10**18
    os.utime(path, ns=(1, 1))
    os.chmod(path, 0o600)
    os.chown(path, 1, 1)
    os.rename(path, filled.mount / "renamed")
    assert (filled.mount / "renamed").stat().st_mtime_ns == 1 == (filled.source / "renamed").stat().st_mtime_ns


@pytest.mark.core
@pytest.mark.needs("birth")
def test_time_of_birth(filled: Tree) -> None:
    for name in ("file", "directory", "link", "fifo"):
        assert birth(filled.mount / name) == birth(filled.source / name)
    seconds = filled.source.stat().st_ctime_ns // 10**9
    told = birth(filled.mount / "file")
    assert told is None or abs(told[0] - seconds) < 600


def test_access_as_root(filled: Tree) -> None:
    os.chmod(filled.mount / "file", 0o000)
    os.chmod(filled.plain / "file", 0o000)
    for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
        for effective in (False, True):

            def act(d: Path, mode: int = mode, effective: bool = effective) -> bool:
                return os.access(d / "file", mode, effective_ids=effective)

            assert isinstance(filled.same(act), bool)
    assert not os.access(filled.mount / "file", os.X_OK)
    assert os.access(filled.mount / "directory", os.R_OK | os.W_OK | os.X_OK)
    assert not os.access(filled.mount / "missing", os.F_OK)


@pytest.mark.core
def test_inode_numbers_are_the_source_s_and_stay(filled: Tree) -> None:
    for name in ("file", "directory", "link", "fifo"):
        before = (filled.mount / name).lstat().st_ino
        assert before == (filled.source / name).lstat().st_ino
        os.rename(filled.mount / name, filled.mount / "moved")
        assert (filled.mount / "moved").lstat().st_ino == before
        os.rename(filled.mount / "moved", filled.mount / name)
