"""Space: holes, preallocation, and what the file system as a whole says of itself."""

import os
from functools import partial
from pathlib import Path

import pytest

from ..harness import wait_until
from .calls import COLLAPSE, INSERT, KEEP_SIZE, PUNCH_HOLE, UNSHARE, ZERO_RANGE, fallocate, opened
from .modes import Tree, attempt
from .test_data import pattern

_BLOCK = 65536


def _extents(fd: int) -> list[tuple[str, int]]:
    """Where data and holes begin, until the end."""
    found, offset = [], 0
    for _ in range(100):
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            break
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        found += [("data", data), ("hole", hole)]
        offset = hole
    return found


@pytest.mark.core
@pytest.mark.needs("holes")
def test_holes(tree: Tree) -> None:
    def act(d: Path) -> object:
        with opened(d / "file", os.O_CREAT | os.O_RDWR) as fd:
            os.pwrite(fd, b"x" * _BLOCK, _BLOCK)
            os.pwrite(fd, b"y" * _BLOCK, 16 * _BLOCK)
            os.ftruncate(fd, 32 * _BLOCK)
            os.fsync(fd)
            return (
                _extents(fd),
                attempt(lambda: os.lseek(fd, 32 * _BLOCK, os.SEEK_DATA)),
                attempt(lambda: os.lseek(fd, 40 * _BLOCK, os.SEEK_HOLE)),
                attempt(lambda: os.lseek(fd, 20 * _BLOCK, os.SEEK_HOLE)),
                attempt(lambda: os.lseek(fd, -1, os.SEEK_SET)),
                os.lseek(fd, -5, os.SEEK_END),
            )

    found = tree.same(act)
    assert isinstance(found, tuple)
    assert found[1:] == ("ENXIO", "ENXIO", 20 * _BLOCK, "EINVAL", 32 * _BLOCK - 5)
    assert (tree.mount / "file").stat().st_blocks == (tree.source / "file").stat().st_blocks
    with opened(tree.source / "file", os.O_RDONLY) as fd:
        assert found[0] == _extents(fd)


_KINDS = {
    "allocate": 0,
    "keep size": KEEP_SIZE,
    "punch": PUNCH_HOLE | KEEP_SIZE,
    "zero": ZERO_RANGE,
    "zero, keep size": ZERO_RANGE | KEEP_SIZE,
    "punch without keep size": PUNCH_HOLE,
}


@pytest.mark.core
@pytest.mark.needs("fallocate")
@pytest.mark.parametrize("kind", _KINDS)
def test_fallocate(tree: Tree, kind: str) -> None:
    """Within the file, across its end, and beyond it."""

    def act(d: Path) -> object:
        found = []
        for offset, length in ((_BLOCK, _BLOCK), (100, 70000), (3 * _BLOCK, 3 * _BLOCK), (1 << 20, 1)):
            with opened(d / f"{offset}", os.O_CREAT | os.O_RDWR) as fd:
                os.write(fd, pattern(4 * _BLOCK))
                result = attempt(partial(fallocate, fd, _KINDS[kind], offset, length))
                found.append((result, os.fstat(fd).st_size, hash(os.pread(fd, 2 << 20, 0))))
        return found

    found = tree.same(act)
    assert isinstance(found, list)
    assert {result for result, *_ in found} <= {None, "EOPNOTSUPP", "EINVAL"}
    for path in tree.source.iterdir():
        assert path.read_bytes() == (tree.plain / path.name).read_bytes()


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT, UNSHARE], ids=["collapse", "insert", "unshare"])
def test_fallocate_of_the_rarer_kinds(tree: Tree, mode: int) -> None:
    """Done as the source does it, or refused with nothing changed."""
    (tree.mount / "file").write_bytes(pattern(4 * _BLOCK))
    (tree.plain / "file").write_bytes(pattern(4 * _BLOCK))

    def act(d: Path) -> None:
        with opened(d / "file") as fd:
            fallocate(fd, mode, _BLOCK, _BLOCK)

    shown, plain = attempt(lambda: act(tree.mount)), attempt(lambda: act(tree.plain))
    if "collapse" in tree.mode.lacks:
        assert shown == "EOPNOTSUPP"
        assert (tree.mount / "file").read_bytes() == pattern(4 * _BLOCK)
    else:
        assert shown == plain
        assert (tree.mount / "file").read_bytes() == (tree.plain / "file").read_bytes()


def test_fallocate_refuses_nonsense(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()

    def act(d: Path, offset: int, length: int, flags: int = os.O_RDWR) -> None:
        with opened(d / "file", flags) as fd:
            fallocate(fd, 0, offset, length)

    assert tree.same(lambda d: act(d, 0, 0)) == "EINVAL"
    assert tree.same(lambda d: act(d, -1, 10)) == "EINVAL"
    assert tree.same(lambda d: act(d, 0, 10, os.O_RDONLY)) == "EBADF"
    assert tree.same(lambda d: act(d, (1 << 63) - 10, 100)) == "EFBIG"


@pytest.mark.core
def test_statvfs(tree: Tree) -> None:
    shown, real = os.statvfs(tree.mount), os.statvfs(tree.source)
    assert (shown.f_bsize, shown.f_frsize, shown.f_blocks, shown.f_namemax) == (
        real.f_bsize,
        real.f_frsize,
        real.f_blocks,
        real.f_namemax,
    )

    def agree() -> bool:
        """Others use this file system too: at some moment the two calls see the same."""
        one, two = os.statvfs(tree.mount), os.statvfs(tree.source)
        return all(getattr(one, name) == getattr(two, name) for name in ("f_bfree", "f_bavail", "f_files", "f_ffree"))

    wait_until(agree, "mount and source have the same room")
