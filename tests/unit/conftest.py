"""Fixtures: a directory with one of each kind of file, and trees of it."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.fs.tree import Covered, Opener, Tree, TreeConfig
from tests.unit.helpers import path_fd


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with one of each kind."""
    path = tmp_path / "source"
    (path / "dir" / "below").mkdir(parents=True)
    (path / "file").write_bytes(b"0123456789")
    (path / "dir" / "inner").write_bytes(b"inner")
    (path / "link").symlink_to("/etc/passwd")
    (path / "away").symlink_to("..")
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{(fd := os.open(path, os.O_PATH))}/socket")
        os.close(fd)
    if os.geteuid() == 0:
        os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(path / "loop", stat.S_IFBLK | 0o666, os.makedev(7, 250))
    return path


@pytest.fixture
def make(source: Path) -> Iterator[Callable[..., Tree]]:
    """Trees of the source with this configuration; what they hold is let go afterwards."""
    made: list[Tree] = []

    def tree(covered: Covered | None = None, opener: Opener | None = None, **config: object) -> Tree:
        made.append(Tree(path_fd(source), TreeConfig(**config), covered, opener=opener))  # type: ignore[arg-type]
        return made[-1]

    yield tree
    for each in made:
        janitor = each._janitor and each._janitor._thread
        each.destroy()
        if janitor:
            janitor.join(30)
        os.close(each.proc)


@pytest.fixture
def tree(make: Callable[..., Tree]) -> Tree:
    """A tree as it is by default."""
    return make()
