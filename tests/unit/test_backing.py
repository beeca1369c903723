"""Backing ids: one per inode, kept while it is remembered, given back with it, and not for what a write must change."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.fs.tree import Tree
from passthrough.fs.tree.config import Choice
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from passthrough.protocol.values import Context

from ..doubles import DeafKernel

ME = Context(1, 0, 0, 1)


class Backing(DeafKernel):
    """A kernel that hands out ids and knows which are in use."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.live: set[int] = set()

    def open_backing(self, fd: int) -> int:
        """The next id."""
        number = next(self.numbers)
        self.live.add(number)
        return number

    def close_backing(self, backing_id: int) -> None:
        """KeyError for one that is not in use: given back twice."""
        self.live.remove(backing_id)


@pytest.fixture
def kernel() -> Backing:
    """Fresh."""
    return Backing()


@pytest.fixture
def tree(make: Callable[..., Tree], kernel: Backing) -> Tree:
    """A tree whose session has kernel passthrough."""
    tree = make(passthrough=Choice.AUTO)
    tree.init(Agreement(minor=45, flags=c.FUSE_PASSTHROUGH, max_stack_depth=1), kernel)
    return tree


def opened(tree: Tree, nodeid: int, flags: int) -> tuple[int, int]:
    """(fh, backing id or 0) of an OPEN."""
    found = tree.open(ME, nodeid, flags, 0)
    assert bool(found.open_flags & c.FOPEN_PASSTHROUGH) == bool(found.backing_id)
    return found.fh, found.backing_id


def release(tree: Tree, nodeid: int, fh: int) -> None:
    tree.release(ME, nodeid, fh, 0, 0, 0)


def test_one_id_for_all_opens_at_once_and_one_after_the_other(tree: Tree, kernel: Backing) -> None:
    node = tree.lookup(ME, 1, b"file").nodeid
    first, backing_id = opened(tree, node, os.O_RDONLY)
    second, same = opened(tree, node, os.O_RDWR)
    release(tree, node, first)
    release(tree, node, second)
    assert opened(tree, node, os.O_WRONLY)[1] == backing_id == same
    assert kernel.live == {backing_id}


def test_the_id_goes_when_the_inode_is_forgotten_and_closed(tree: Tree, kernel: Backing) -> None:
    node = tree.lookup(ME, 1, b"file").nodeid
    fh, backing_id = opened(tree, node, os.O_RDONLY)
    tree.forget(node, 1)
    assert kernel.live == {backing_id}, "still open"
    tree.files.pop(fh, node)
    assert not kernel.live


def test_all_ids_go_with_the_session(tree: Tree, kernel: Backing) -> None:
    for name in (b"file", b"dir"):
        node = tree.lookup(ME, 1, name).nodeid
    inner = tree.lookup(ME, node, b"inner").nodeid
    opened(tree, inner, os.O_RDONLY)
    tree.destroy()
    assert not kernel.live


def test_a_kernel_that_is_gone_is_no_trouble(tree: Tree, kernel: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(backing_id: int) -> None:
        raise OSError(9, "closed")

    opened(tree, tree.lookup(ME, 1, b"file").nodeid, os.O_RDONLY)
    monkeypatch.setattr(kernel, "close_backing", gone)
    tree.destroy()  # an exception in a finaliser would fail this test as a warning


def test_a_file_that_gains_suid_between_opens_is_written_through_the_daemon(
    tree: Tree, kernel: Backing, source: Path
) -> None:
    node = tree.lookup(ME, 1, b"file").nodeid
    fh, backing_id = opened(tree, node, os.O_RDWR)
    os.chmod(source / "file", 0o4755)
    assert opened(tree, node, os.O_WRONLY)[1] == backing_id, "the kernel refuses two ways at once"
    assert backing_id
    release(tree, node, fh)
    release(tree, node, fh + 1)
    assert opened(tree, node, os.O_WRONLY)[1] == 0
    assert not kernel.live


def test_a_new_file_with_suid_is_written_through_the_daemon(tree: Tree, kernel: Backing) -> None:
    _, found = tree.create(ME, 1, b"new", os.O_WRONLY, 0o104755, 0, 0)
    assert found.backing_id == 0
    assert not kernel.live


def test_what_was_refused_stays_with_the_daemon(tree: Tree, kernel: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fd: int) -> int:
        raise OSError(22, "Invalid argument")

    node = tree.lookup(ME, 1, b"file").nodeid
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "open_backing", refused)
        assert opened(tree, node, os.O_RDONLY)[1] == 0
    assert opened(tree, node, os.O_RDONLY)[1] == 0
    other = tree.lookup(ME, tree.lookup(ME, 1, b"dir").nodeid, b"inner").nodeid
    assert opened(tree, other, os.O_RDONLY)[1], "another file is asked for anew"
