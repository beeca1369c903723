"""Descriptors that clients pin: each is counted for as long as it is open, and there are never more than they may."""

import errno
import fcntl
import os
import random
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.filesystem import Entry, FileLock, SetAttr
from passthrough.fs.tree import Choice, Tree
from passthrough.fs.tree.handles import BackedHandle, Handle
from passthrough.fs.tree.inodes import Inode
from passthrough.fs.tree.locks import LockFile
from passthrough.fs.tree.pins import Pins
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from tests.doubles import DeafKernel
from tests.unit.helpers import ME, ROOT_ID, at_once, descriptors, find, is_open, path_fd, raises

_FILES = 12
_ALL = (1 << 64) - 1


def open_now() -> int:
    """How many descriptors this process has, this very listing's among them (as often as one compares)."""
    return len(os.listdir("/proc/self/fd"))


def fill(source: Path) -> list[bytes]:
    """Files and directories for a walk, and their names."""
    for number in range(_FILES):
        (source / f"f{number}").write_bytes(b"x")
        (source / f"d{number}").mkdir()
    return [b"f%d" % number for number in range(_FILES)]


class Client:
    """Asks for whatever pins and unpins, in an order that its seed decides; ENFILE is an answer like any other."""

    def __init__(self, tree: Tree, seed: int) -> None:
        self.tree = tree
        self.order = random.Random(seed)
        self.nodes: list[int] = []
        self.files: list[tuple[int, int]] = []
        self.dirs: list[tuple[int, int]] = []
        self.refused = 0
        self.made = 0

    def step(self) -> None:
        """One request."""
        steps = (
            self.lookup,
            self.forget,
            self.open,
            self.release,
            self.opendir,
            self.releasedir,
            self.create,
            self.make,
            self.loop,
            self.truncate,
            self.lock,
            self.unlock,
            self.ask,
            self.close,
            self.list,
        )
        try:
            self.order.choice(steps)()
        except OSError as error:
            if error.errno not in (errno.ENFILE, errno.EBADF, errno.EAGAIN):
                raise
            self.refused += error.errno == errno.ENFILE

    def _name(self, kind: bytes) -> bytes:
        return kind + b"%d" % self.order.randrange(_FILES)

    def _take(self, of: list[tuple[int, int]]) -> tuple[int, int]:
        return of.pop(self.order.randrange(len(of))) if of else (ROOT_ID, 0)

    def _any(self) -> tuple[int, int]:
        return self.order.choice(self.files) if self.files else (ROOT_ID, 0)

    def lookup(self) -> Entry:
        entry = self.tree.lookup(ME, ROOT_ID, self._name(b"f"))
        self.nodes.append(entry.nodeid)
        return entry

    def forget(self) -> None:
        if self.nodes:
            self.tree.forget(self.nodes.pop(self.order.randrange(len(self.nodes))), self.order.choice((1, _ALL)))

    def open(self) -> None:
        if self.nodes:
            nodeid = self.order.choice(self.nodes)
            self.files.append((nodeid, self.tree.open(ME, nodeid, os.O_RDWR, 0).fh))

    def release(self) -> None:
        nodeid, fh = self._take(self.files)
        self.tree.release(ME, nodeid, fh, 0, 0, 0)

    def opendir(self) -> None:
        entry = self.tree.lookup(ME, ROOT_ID, self._name(b"d"))
        try:
            self.dirs.append((entry.nodeid, self.tree.opendir(ME, entry.nodeid, 0, 0).fh))
        finally:
            self.tree.forget(entry.nodeid, 1)

    def releasedir(self) -> None:
        nodeid, fh = self._take(self.dirs)
        self.tree.releasedir(ME, nodeid, fh, 0, 0, 0)

    def create(self) -> None:
        self.made += 1
        entry, opened = self.tree.create(ME, ROOT_ID, b"c%d" % self.made, os.O_RDWR, 0o600, 0, 0)
        self.nodes.append(entry.nodeid)
        self.files.append((entry.nodeid, opened.fh))

    def make(self) -> None:
        self.made += 1
        self.nodes.append(self.tree.mkdir(ME, ROOT_ID, b"m%d" % self.made, 0o700, 0).nodeid)

    def loop(self) -> None:
        """LOOKUP, OPEN, FORGET: the handle keeps the inode, and the next LOOKUP makes another."""
        entry = self.lookup()
        try:
            self.files.append((entry.nodeid, self.tree.open(ME, entry.nodeid, os.O_RDONLY, 0).fh))
        finally:
            self.tree.forget(entry.nodeid, _ALL)

    def truncate(self) -> None:
        attrs = dict.fromkeys(SetAttr._fields, 0) | {"valid": c.FATTR_SIZE}
        self.tree.setattr(ME, self._any()[0] if self.files else 0, SetAttr(**attrs))

    def lock(self) -> None:
        nodeid, fh = self._any()
        lock = FileLock(0, 9, self.order.choice((fcntl.F_RDLCK, fcntl.F_WRLCK)), 1)
        self.tree.setlk(ME, nodeid, fh, self.order.randrange(5), lock, 0, False)

    def unlock(self) -> None:
        nodeid, fh = self._any()
        self.tree.setlk(ME, nodeid, fh, self.order.randrange(5), FileLock(0, 9, fcntl.F_UNLCK, 1), 0, False)

    def ask(self) -> None:
        nodeid, fh = self._any()
        self.tree.getlk(ME, nodeid, fh, self.order.randrange(1 << 60), FileLock(0, 9, fcntl.F_WRLCK, 1), 0)

    def close(self) -> None:
        nodeid, fh = self._any()
        self.tree.flush(ME, nodeid, fh, self.order.randrange(5))

    def list(self) -> None:
        nodeid, fh = ROOT_ID, self.tree.opendir(ME, ROOT_ID, 0, 0).fh
        try:
            for _, entry in self.tree.readdirplus(ME, nodeid, fh, 0, 4096):
                if entry:
                    self.nodes.append(entry.nodeid)
        finally:
            self.tree.releasedir(ME, nodeid, fh, 0, 0, 0)


class Backing(DeafKernel):
    """A kernel that passes every file through, so that the daemon opens none that is only read."""

    def open_backing(self, fd: int) -> int:
        return 7

    def close_backing(self, backing_id: int) -> None:
        assert backing_id == 7


def begun(make: Callable[..., Tree], passing: bool, **config: object) -> Tree:
    """A tree in a session, with locks, with or without passthrough."""
    choice = Choice.AUTO if passing else Choice.OFF
    tree = make(passthrough=choice, posix_lock=True, **config)
    kernel = Backing() if passing else None
    tree.init(Agreement(minor=45, flags=c.FUSE_PASSTHROUGH if passing else 0), kernel)
    return tree


@pytest.mark.parametrize("passing", [False, True], ids=["daemon", "passthrough"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_counted_is_what_is_open(make: Callable[..., Tree], source: Path, seed: int, passing: bool) -> None:
    fill(source)
    tree = begun(make, passing, descriptors=10_000)
    before = descriptors() - 1  # the root is pinned as well
    client = Client(tree, seed)
    for _ in range(600):
        client.step()
        assert len(tree.pins) == open_now() - before
    assert len(tree.pins) > 20
    tree.destroy()
    assert len(tree.pins) == 1
    assert descriptors() == before + 1


@pytest.mark.parametrize("passing", [False, True], ids=["daemon", "passthrough"])
@pytest.mark.parametrize("seed", range(6))
def test_no_client_pins_more_than_it_may(make: Callable[..., Tree], source: Path, seed: int, passing: bool) -> None:
    limit = 15
    fill(source)
    tree = begun(make, False, descriptors=limit)
    if passing:
        tree._backings = begun(make, True)._backings  # without the janitor, which nobody here would hear
    before = descriptors() - 1
    client = Client(tree, seed)
    for _ in range(600):
        client.step()
        assert open_now() - before <= limit + 1  # CREATE takes two where it has seen one free
        assert len(tree.pins) == open_now() - before
    assert client.refused > 20


def test_handles_keep_what_was_forgotten_pinned(make: Callable[..., Tree], source: Path) -> None:
    """An inode that a handle keeps is open, and counts, though no FORGET can reach it any more."""
    limit = 11
    tree = make(descriptors=limit)
    before = descriptors()
    (source / "other").mkdir()
    opened: list[tuple[int, int]] = []
    with raises(errno.ENFILE):
        while True:
            entry = tree.lookup(ME, ROOT_ID, b"file")
            opened.append((entry.nodeid, tree.open(ME, entry.nodeid, os.O_RDONLY, 0).fh))
            tree.forget(entry.nodeid, 1)
            assert descriptors() - before < limit
    assert len(opened) == (limit - 1) // 2
    assert descriptors() - before == limit - 1
    for nodeid, fh in opened:
        tree.release(ME, nodeid, fh, 0, 0, 0)
    assert (descriptors() - before, len(tree.pins)) == (0, 1)


def test_directories_keep_what_was_forgotten_pinned(make: Callable[..., Tree]) -> None:
    tree = make(descriptors=11)
    before = descriptors()
    with raises(errno.ENFILE):
        while True:
            entry = tree.lookup(ME, ROOT_ID, b"dir")
            tree.opendir(ME, entry.nodeid, 0, 0)
            tree.forget(entry.nodeid, 1)
    assert descriptors() - before == 10


# Locks


def test_asking_about_a_lock_pins_nothing(make: Callable[..., Tree]) -> None:
    tree = make(posix_lock=True)
    nodeid = find(tree, b"file").nodeid
    fh = tree.open(ME, nodeid, os.O_RDWR, 0).fh
    held, pinned = descriptors(), len(tree.pins)
    for owner in range(200):
        found = tree.getlk(ME, nodeid, fh, owner, FileLock(0, 9, fcntl.F_WRLCK, 1), 0)
        assert found.type == fcntl.F_UNLCK
    assert not tree.inodes.get(nodeid).locks
    assert (descriptors(), len(tree.pins)) == (held, pinned)


def test_asking_sees_the_locks_of_others_and_not_ones_own(make: Callable[..., Tree]) -> None:
    tree = make(posix_lock=True)
    nodeid = find(tree, b"file").nodeid
    fh = tree.open(ME, nodeid, os.O_RDWR, 0).fh
    tree.setlk(ME, nodeid, fh, 1, FileLock(0, 9, fcntl.F_WRLCK, 4711), 0, False)
    pinned = len(tree.pins)
    lock = FileLock(5, 5, fcntl.F_RDLCK, 1)
    assert tree.getlk(ME, nodeid, fh, 1, lock, 0).type == fcntl.F_UNLCK
    for owner in range(2, 50):
        assert tree.getlk(ME, nodeid, fh, owner, lock, 0) == FileLock(0, 9, fcntl.F_WRLCK, 4711)
    assert len(tree.pins) == pinned
    tree.flush(ME, nodeid, fh, 1)
    assert len(tree.pins) == pinned - 1
    assert tree.getlk(ME, nodeid, fh, 2, lock, 0).type == fcntl.F_UNLCK


def test_lock_owners_count(make: Callable[..., Tree]) -> None:
    tree = make(posix_lock=True, descriptors=8)
    nodeid = find(tree, b"file").nodeid
    fh = tree.open(ME, nodeid, os.O_RDWR, 0).fh
    before = descriptors()

    def lock(owner: int) -> None:
        tree.setlk(ME, nodeid, fh, owner, FileLock(owner, owner, fcntl.F_WRLCK, 1), 0, False)

    for owner in range(5):
        lock(owner)
    with raises(errno.ENFILE):
        lock(5)
    assert (descriptors() - before, len(tree.pins)) == (5, 8)
    tree.flush(ME, nodeid, fh, 3)
    lock(5)
    tree.release(ME, nodeid, fh, 0, 0, 0)
    tree.forget(nodeid, 1)
    assert len(tree.pins) == 1


# The pieces


def test_every_kind_counts_once_until_it_is_closed() -> None:
    pins = Pins()
    kinds: tuple[Callable[[], object], ...] = (
        lambda: Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFDIR, 0, pins),
        lambda: Handle(path_fd(), Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFDIR, 0, pins)),
        lambda: LockFile(path_fd(), 1, pins),
    )
    for kind, count in zip(kinds, (1, 2, 1), strict=True):
        before = open_now()
        held: object | None = kind()
        assert (len(pins), open_now() - before) == (count, count)
        assert held
        held = None
        assert (len(pins), open_now() - before) == (0, 0)


def test_a_close_that_fails_has_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = Pins()
    held: object | None = Handle(path_fd(), Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFREG, 0, pins))
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    assert held
    held = None
    assert len(pins) == 0


def ask_at_once(handle: Handle) -> set[object]:
    """What several threads are told its descriptor is."""
    return set(at_once(lambda _: handle.fd))


def test_a_backed_handle_is_opened_and_counted_once() -> None:
    pins = Pins()
    inode = Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFREG, 0, pins)
    opened: list[int] = []

    def opener() -> int:
        opened.append(path_fd())
        return opened[-1]

    handle: BackedHandle | None = BackedHandle(inode, None, opener)
    assert handle
    assert len(pins) == 1
    assert ask_at_once(handle) == set(opened)
    assert (len(opened), len(pins)) == (1, 2)
    assert is_open(opened[0])
    handle = None
    assert (is_open(opened[0]), len(pins)) == (False, 1)


def test_a_backed_handle_that_was_never_asked_counts_nothing() -> None:
    pins = Pins()
    inode = Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFREG, 0, pins)
    handle: BackedHandle | None = BackedHandle(inode, None, path_fd)
    assert handle
    handle = None
    assert len(pins) == 1
    fd = path_fd()
    handle = BackedHandle(inode, fd, path_fd)
    assert (handle.fd, len(pins)) == (fd, 2)
    handle = None
    assert (is_open(fd), len(pins)) == (False, 1)


def test_a_backed_handle_that_cannot_be_opened_counts_nothing() -> None:
    pins = Pins()
    inode = Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFREG, 0, pins)

    def opener() -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    handle = BackedHandle(inode, None, opener)
    for _ in range(3):
        with raises(errno.ENFILE):
            handle.fd  # noqa: B018
    assert len(pins) == 1
    del handle
    assert len(pins) == 1


def test_one_slow_opening_stops_no_other_handle() -> None:
    inode = Inode(ROOT_ID, path_fd(), (0, 0, 0, 0), stat.S_IFREG, 0, Pins())
    opening, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        opening.set()
        assert go_on.wait(30)
        return path_fd()

    stuck, other = BackedHandle(inode, None, slow), BackedHandle(inode, None, path_fd)
    thread = threading.Thread(target=lambda: stuck.fd)
    thread.start()
    assert opening.wait(30)
    answered: list[int] = []
    asking = threading.Thread(target=lambda: answered.append(other.fd))
    asking.start()
    asking.join(5)
    before = list(answered)
    go_on.set()
    thread.join(30)
    asking.join(30)
    assert before == [other.fd]
    assert len(inode.pins) == 3


def test_counting_from_many_threads() -> None:
    pins = Pins()

    def work(_: int) -> None:
        for _ in range(2000):
            pins.take()
            pins.take()
            pins.give_back()

    at_once(work, 8)
    assert len(pins) == 16_000


# Nothing is made that cannot be handed out


_MAKING: dict[str, Callable[[Tree], object]] = {
    "mkdir": lambda tree: tree.mkdir(ME, ROOT_ID, b"new", 0o755, 0),
    "mknod": lambda tree: tree.mknod(ME, ROOT_ID, b"new", stat.S_IFREG | 0o644, 0, 0),
    "mkfifo": lambda tree: tree.mknod(ME, ROOT_ID, b"new", stat.S_IFIFO | 0o644, 0, 0),
    "symlink": lambda tree: tree.symlink(ME, ROOT_ID, b"new", b"x"),
    "create": lambda tree: tree.create(ME, ROOT_ID, b"new", os.O_RDWR, 0o644, 0, 0),
}


@pytest.mark.parametrize("what", _MAKING)
def test_nothing_is_made_at_the_limit(make: Callable[..., Tree], source: Path, what: str) -> None:
    tree = make(descriptors=2)
    nodeid = find(tree, b"file").nodeid
    before = sorted(source.iterdir())
    with raises(errno.ENFILE):
        _MAKING[what](tree)
    assert sorted(source.iterdir()) == before
    tree.forget(nodeid, 1)
    _MAKING[what](tree)
    assert os.path.lexists(source / "new")


def test_going_up_is_counted_as_well(make: Callable[..., Tree], source: Path) -> None:
    """LOOKUP of `..` (NFS export) pins a directory like any other LOOKUP."""
    limit, path = 6, source
    tree = make(descriptors=limit)
    entry = None
    for number in range(20):
        path /= f"n{number}"
        path.mkdir()
        below = tree.lookup(ME, entry.nodeid if entry else ROOT_ID, path.name.encode())
        if entry:
            tree.forget(entry.nodeid, 1)
        entry = below
    assert entry
    before = len(tree.pins)
    with raises(errno.ENFILE):
        for _ in range(20):
            entry = tree.lookup(ME, entry.nodeid, b"..")
    assert before < len(tree.pins) <= limit
