"""What the tests of the shared directory have in common."""

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.filesystem import Context, Entry
from passthrough.fs.tree import Tree
from passthrough.protocol import constants as c

ME = Context(1, os.getuid(), os.getgid(), os.getpid())
ROOT_ID = c.FUSE_ROOT_ID


def raises(number: int) -> "pytest.RaisesExc[OSError]":
    """An OSError with this errno and no other."""
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def path_fd(path: str | Path = "/") -> int:
    """An O_PATH descriptor."""
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    """Whether a descriptor number is in use."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def descriptors() -> int:
    """How many descriptors are open, without those that wait for the garbage collector (errors keep their frames)."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def in_thread(work: Callable[[], object]) -> object:
    """What work() returns, run in a thread of its own: credentials and umasks are a thread's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


def at_once(work: Callable[[int], object], count: int = 4) -> list[object]:
    """work(0), work(1) ... side by side, begun together; their results."""
    barrier = threading.Barrier(count)

    def run(number: int) -> object:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count), timeout=120))


def find(tree: Tree, *names: bytes) -> Entry:
    """The entry at the end of a path below the root."""
    nodeid, entry = ROOT_ID, None
    for name in names:
        entry = tree.lookup(ME, nodeid, name)
        nodeid = entry.nodeid
    assert entry
    return entry
