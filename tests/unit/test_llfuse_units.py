"""The llfuse adapter without a mount: numbers, handles, values, failures, notifications. The module is the real one."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llfuse  # type: ignore[import-not-found]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passthrough.filesystem import Agreement, Attr, Context, Dirent, Entry, FileSystem, Fill, Kernel, Later, Opened
from passthrough.protocol import constants as c
from passthrough.protocol import notifications
from passthrough.protocol.negotiation import Wishes
from passthrough.protocol.values import Buffers, FileRange, SetAttr, StatFs
from passthrough.transport.llfuse import session
from passthrough.transport.llfuse.handles import Handles, Held
from passthrough.transport.llfuse.nodes import Nodes
from passthrough.transport.llfuse.operations import Operations

WHO = llfuse.RequestContext()
ATTR = Attr(4711, 10, 8, -2, 3, 4, 999_999_999, 5, 6, 0o100644, 1, 1000, 1001, 0x803)


# Node numbers


def test_a_node_s_number_is_its_inode_s() -> None:
    nodes = Nodes()
    assert nodes.entered(17, 4711) == 4711
    assert (nodes.nodeid(4711), nodes.number(17)) == (17, 4711)
    assert (nodes.nodeid(1), nodes.number(1)) == (1, 1)


@pytest.mark.parametrize("ino", [0, 1, 1 << 63, (1 << 64) - 1])
def test_numbers_that_cannot_be_given_are_made_up(ino: int) -> None:
    nodes = Nodes()
    number = nodes.entered(17, ino)
    assert 1 << 63 <= number < 1 << 64
    assert nodes.nodeid(number) == 17


def test_two_nodes_of_one_inode_number() -> None:
    nodes = Nodes()
    first, second = nodes.entered(17, 5), nodes.entered(18, 5)
    assert first != second
    assert (nodes.nodeid(first), nodes.nodeid(second)) == (17, 18)
    assert nodes.forgotten(first, 1) == (17, 1)
    assert nodes.entered(19, 5) == 5
    assert nodes.nodeid(second) == 18


def test_the_root_is_never_forgotten() -> None:
    nodes = Nodes()
    nodes.entered(1, 99)
    assert nodes.forgotten(1, 5) == (1, 1)
    assert nodes.forgotten(1, 5) is None
    assert nodes.nodeid(1) == 1


_STEPS = st.lists(st.tuples(st.booleans(), st.integers(2, 6), st.integers(0, 3), st.integers(1, 3)), max_size=60)


@given(_STEPS)
def test_counts_are_those_that_the_file_system_keeps(steps: list[tuple[bool, int, int, int]]) -> None:
    """Whatever is entered and forgotten, each node has one number, and what is left over is what it is owed."""
    nodes, owed = Nodes(), dict.fromkeys(range(2, 7), 0)
    for enters, nodeid, ino, count in steps:
        if enters:
            number = nodes.entered(nodeid, ino)
            owed[nodeid] += 1
            assert nodes.nodeid(number) == nodeid
        elif (known := nodes.number(nodeid)) is not None:
            told = nodes.forgotten(known, count)
            assert told is not None
            owed[nodeid] -= told[1]
            assert told == (nodeid, min(count, owed[nodeid] + told[1]))
        for known_id, left in owed.items():
            assert (nodes.number(known_id) is not None) == (left > 0)
    numbers = [nodes.number(nodeid) for nodeid, left in owed.items() if left]
    assert len(set(numbers)) == len(numbers) == len(nodes)


@pytest.mark.parametrize("number", [0, 2, 1 << 63, 1 << 64])
def test_numbers_that_were_not_given(number: int) -> None:
    nodes, handles = Nodes(), Handles()
    for call in nodes.nodeid, handles.get, handles.pop:
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(number)
    assert nodes.forgotten(number, 1) is None


def test_handles_are_not_used_twice() -> None:
    handles, held = Handles(), Held(1, 7, 0, Context(0, 0, 0, 0))
    first = handles.add(held)
    assert handles.pop(first) is held
    assert handles.add(held) != first
    assert len(handles) == 1


# Operations


@pytest.fixture(autouse=True)
def _lock() -> Iterator[None]:
    """llfuse calls with its lock held."""
    with llfuse.lock:
        yield


def operations(fs: FileSystem) -> Operations:
    """With a node 4711 of nodeid 17 and an open file and directory of it, both numbered 1."""
    made = Operations(llfuse)
    made.fs = fs
    made.nodes.entered(17, 4711)
    made.files.add(Held(17, 70, os.O_APPEND, Context(0, 1, 2, 3)))
    made.directories.add(Held(17, 71, 0, Context(0, 1, 2, 3)))
    return made


_CALLS: dict[str, tuple[Any, ...]] = {
    "lookup": (4711, b"name", WHO),
    "getattr": (4711, WHO),
    "setattr": (4711, llfuse.EntryAttributes(), llfuse.SetattrFields(), None, WHO),
    "readlink": (4711, WHO),
    "symlink": (4711, b"name", b"target", WHO),
    "mknod": (4711, b"name", 0o644, 0, WHO),
    "mkdir": (4711, b"name", 0o755, WHO),
    "unlink": (4711, b"name", WHO),
    "rmdir": (4711, b"name", WHO),
    "rename": (4711, b"name", 1, b"new", WHO),
    "link": (4711, 1, b"new", WHO),
    "access": (4711, 4, WHO),
    "statfs": (WHO,),
    "open": (4711, os.O_RDONLY, WHO),
    "create": (4711, b"name", 0o644, os.O_RDWR, WHO),
    "read": (1, 0, 10),
    "write": (1, 0, b"data"),
    "flush": (1,),
    "release": (1,),
    "fsync": (1, True),
    "opendir": (4711, WHO),
    "readdir": (1, 0),
    "releasedir": (1,),
    "fsyncdir": (1, False),
    "getxattr": (4711, b"user.x", WHO),
    "setxattr": (4711, b"user.x", b"value", WHO),
    "listxattr": (4711, WHO),
    "removexattr": (4711, b"user.x", WHO),
}


def failure_of(made: Operations, name: str, *words: Any) -> int:
    """The errno of the FUSEError that a call raises; nothing else may come out of it."""
    call = getattr(made, name)
    with pytest.raises(llfuse.FUSEError) as raised:
        list(call(*words)) if name == "readdir" else call(*words)
    return int(raised.value.errno)


def test_every_operation_of_llfuse_is_there() -> None:
    public = {name for name in dir(llfuse.Operations) if not name.startswith("_")}
    assert public - {"init", "destroy", "forget", "stacktrace"} == set(_CALLS)
    assert all(callable(getattr(Operations, name)) for name in public)


@pytest.mark.parametrize("name", _CALLS)
def test_what_a_file_system_does_not_do(name: str) -> None:
    assert failure_of(operations(FileSystem()), name, *_CALLS[name]) == errno.ENOSYS


class Failing(FileSystem):
    """Every method raises the same."""

    error: BaseException

    def __getattribute__(self, name: str) -> Any:
        if name in ("flags", "error") or name.startswith("__"):
            return object.__getattribute__(self, name)

        def method(*_: Any) -> Any:
            raise self.error

        return method


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EPERM, "no"), errno.EPERM),
        (OSError("without a number"), errno.EIO),
        (OSError(99999, "too large"), errno.EIO),
        (OverflowError("too large"), errno.EINVAL),
        (MemoryError(), errno.ENOMEM),
    ],
    ids=["errno", "without a number", "too large", "overflow", "memory"],
)
@pytest.mark.parametrize("name", _CALLS)
def test_failures(name: str, error: BaseException, number: int) -> None:
    fs = Failing()
    fs.error = error
    made = operations(fs)
    assert failure_of(made, name, *_CALLS[name]) == number
    assert made.idle


@pytest.mark.parametrize("name", ["lookup", "read", "readdir"])
def test_a_bug_costs_one_request(name: str, caplog: pytest.LogCaptureFixture) -> None:
    fs = Failing()
    fs.error = ValueError("nobody expects this")
    assert failure_of(operations(fs), name, *_CALLS[name]) == errno.EIO
    assert caplog.text.count(f"a bug of ours: {name.upper()} failed") == 1


@pytest.mark.parametrize(
    "name", ["lookup", "getattr", "readlink", "statfs", "read", "readdir", "getxattr", "listxattr"]
)
def test_a_value_of_the_wrong_type_costs_one_request(name: str, caplog: pytest.LogCaptureFixture) -> None:
    class Mistaken(FileSystem):
        def __getattribute__(self, name: str) -> Any:
            return lambda *_: ["text"]

    assert failure_of(operations(Mistaken()), name, *_CALLS[name]) == errno.EIO
    assert f"a bug of ours: {name.upper()} failed" in caplog.text


def test_a_bug_in_forget_reaches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    fs = Failing()
    fs.error = ValueError("nobody expects this")
    operations(fs).forget([(4711, 1)])
    assert "FORGET failed" in caplog.text


@pytest.mark.parametrize("name", [name for name in _CALLS if name != "statfs"])
def test_nodes_and_handles_that_are_not_there(name: str) -> None:
    words = (99, *_CALLS[name][1:])
    assert failure_of(operations(FileSystem()), name, *words) == errno.EBADF


def test_after_the_end_nothing_is_asked_any_more() -> None:
    made = operations(FileSystem())
    made.stopping = True
    assert {failure_of(made, name, *words) for name, words in _CALLS.items()} == {errno.ECONNABORTED}


def test_llfuse_s_own_attribute() -> None:
    assert failure_of(operations(FileSystem()), "stacktrace") == errno.EOPNOTSUPP


class Recording(FileSystem):
    """Says what it was asked, and answers plausibly."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.data: bytes | FileRange | Fill | Later = b""
        self.entry = Entry(18, ATTR, 1_500_000_000, 250_000_000, 77)
        self.opened = Opened(90, 0)

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        return self.entry

    def batch_forget(self, forgets: Any) -> None:
        self.asked.append(tuple(forgets))

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        self.asked.append((nodeid, attrs))
        return ATTR, 0

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        return ATTR, 0

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        return self.opened

    def read(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int) -> Any:
        self.asked.append((ctx.uid, nodeid, fh, offset, size, flags))
        return self.data

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        (buffer,) = data
        address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer)) if buffer else 0
        self.asked.append((nodeid, fh, offset, bytes(buffer), address % 4096, flags))
        return Later(lambda room, answer: answer(len(buffer))) if self.data == b"later" else len(buffer)

    def statfs(self, ctx: Context, nodeid: int) -> StatFs:
        return StatFs(1, 2, 3, 4, 5, 4096, 255, 512)

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        self.asked.append((offset,))
        found = {0: [Dirent(b".", 1, 5, 4), Dirent(b"a", 2, 1 << 63, 8)], 1 << 63: [Dirent(b"b", 3, 9, 10)]}
        if offset == 9 and self.data == b"fails":
            raise OSError(errno.EIO, "read error")
        return found.get(offset, [])


def test_an_entry() -> None:
    found = operations(Recording()).lookup(1, b"name", WHO)
    assert found.st_ino != 4711, "another node has that number"
    assert (found.generation, found.entry_timeout, found.attr_timeout) == (77, 1.5, 0.25)
    assert (found.st_mode, found.st_size, found.st_uid, found.st_gid) == (0o100644, 10, 1000, 1001)
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_rdev) == (-1_000_000_001, 3_000_000_005, 0x803)


def test_a_name_that_is_not_there_may_be_remembered() -> None:
    fs = Recording()
    fs.entry = Entry(0, ATTR, 2_000_000_000)
    made = operations(fs)
    found = made.lookup(1, b"name", WHO)
    assert (found.st_ino, found.entry_timeout) == (0, 2.0)
    assert len(made.nodes) == 1


def test_the_root_shows_its_own_inode_number() -> None:
    assert operations(Recording()).getattr(1, WHO).st_ino == 4711


def test_forgets_go_by_the_file_system_s_numbers_and_never_too_far() -> None:
    fs = Recording()
    operations(fs).forget([(4711, 5), (99, 1), (4711, 1)])
    assert fs.asked == [((17, 1),)]


def test_statfs() -> None:
    found = operations(Recording()).statfs(WHO)
    assert (found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize) == (1, 2, 3, 512)
    assert (found.f_files, found.f_ffree, found.f_favail, found.f_namemax) == (4, 5, 5, 255)


class _Fields:
    """llfuse's SetattrFields cannot be filled from outside."""

    def __init__(self, *set_: str) -> None:
        for name in ("mode", "uid", "gid", "size", "atime", "mtime"):
            setattr(self, f"update_{name}", name in set_)


def test_setattr_names_what_is_to_be_set() -> None:
    fs = Recording()
    made, wanted = operations(fs), llfuse.EntryAttributes()
    wanted.st_size, wanted.st_mtime_ns, wanted.st_uid = 5, -1, 8
    made.setattr(4711, wanted, _Fields("size", "mtime", "uid"), 1, WHO)
    made.setattr(4711, wanted, _Fields(), None, WHO)
    nodeid, attrs = fs.asked[0]
    assert nodeid == 17
    assert attrs.valid == c.FATTR_SIZE | c.FATTR_MTIME | c.FATTR_UID | c.FATTR_FH
    assert (attrs.fh, attrs.size, attrs.uid, attrs.mtime, attrs.mtimensec) == (70, 5, 8, -1, 999_999_999)
    assert fs.asked[1][1].valid == 0


def test_an_open_that_is_not_to_keep_pages_drops_them() -> None:
    fs = Recording()
    dropped: list[int] = []
    made = operations(fs)
    made.drop_pages = dropped.append
    made.open(4711, os.O_RDONLY, WHO)
    fs.opened = Opened(91, c.FOPEN_KEEP_CACHE)
    made.open(4711, os.O_RDONLY, WHO)
    assert dropped == [4711]
    assert [made.files.get(number).fh for number in (2, 3)] == [90, 91]


def _later(result: int, data: bytes = b"") -> Later:
    def begin(room: memoryview, answer: Callable[[int], None]) -> None:
        room[: len(data)] = data
        answer(result)

    return Later(begin)


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    fs = Recording()
    made = operations(fs)

    def fill(room: memoryview) -> int:
        room[:3] = b"abc"
        return 3

    for data, expected in (
        (b"0123456789abc", b"0123456789"),
        (FileRange(fd, 4, 10), b"456789"),
        (Fill(fill, 8), b"abc"),
        (_later(4, b"late"), b"late"),
    ):
        fs.data = data
        assert bytes(made.read(1, 5, 10)) == expected
    os.close(fd)
    assert fs.asked[0] == (1, 17, 70, 5, 10, os.O_APPEND)
    fs.data = _later(-errno.EIO)
    assert failure_of(made, "read", 1, 0, 10) == errno.EIO


@pytest.mark.parametrize("way", [b"", b"later"])
@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 17, 1 << 20])
def test_writing(way: bytes, size: int) -> None:
    """On a page boundary, as direct I/O wants it."""
    fs = Recording()
    fs.data = way
    assert operations(fs).write(1, 3, b"x" * size) == size
    assert fs.asked == [(17, 70, 3, b"x" * size, 0, os.O_APPEND)]


@pytest.mark.parametrize("way", [b"", b"fails"])
def test_listing_goes_on_until_llfuse_has_enough(way: bytes) -> None:
    """Offsets are 64 bits without a sign to us, and off_t to llfuse; what was read is given before an error is."""
    fs = Recording()
    fs.data = way
    made = operations(fs)
    found = [(name, attr.st_ino, attr.st_mode, off) for name, attr, off in made.readdir(1, 0)]
    assert found == [(b".", 1, 0o040000, 5), (b"a", 2, 0o100000, -(1 << 63)), (b"b", 3, 0o120000, 9)]
    assert [name for name, *_ in made.readdir(1, -(1 << 63))] == [b"b"]
    assert fs.asked[-2:] == [(1 << 63,), (9,)]
    fs.asked.clear()
    next(iter(made.readdir(1, 0)))
    assert fs.asked == [(0,)]


# The session


def test_what_is_insisted_on_must_be_had() -> None:
    made = session.LlfuseSession(operations(FileSystem()), -1, 2)
    said = made.start(FileSystem(), Wishes(required=c.FUSE_POSIX_ACL | c.FUSE_BIG_WRITES))
    assert said == "llfuse does not offer POSIX_ACL"
    made.close()


def test_the_words_that_libfuse_is_given() -> None:
    said = session.words(1 << 20, owner_only=True, debug=False)
    assert {"max_write=131072", "allow_root", "big_writes"} <= said
    assert not said & {"debug", "atomic_o_trunc", "allow_other"}
    assert "max_write=4096" in session.words(4096, owner_only=False, debug=True)


@pytest.fixture
def told() -> Iterator[tuple[Kernel, Callable[[], bytes]]]:
    """A session whose device is a socket, and what arrives at its other end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield session.LlfuseSession(operations(FileSystem()), writer, 2), lambda: os.read(reader, 4096)
    os.close(reader)
    os.close(writer)


def test_notifications_name_nodes_as_the_kernel_knows_them(told: tuple[Kernel, Callable[[], bytes]]) -> None:
    kernel, heard = told
    made: tuple[Callable[[int], bytes], ...] = (
        lambda node: notifications.inval_inode(node, 1, 2),
        lambda node: notifications.inval_entry(node, b"name"),
        lambda node: notifications.expire_entry(node, b"name"),
        lambda node: notifications.delete(node, node, b"name"),
        lambda node: notifications.store(node, 0, b"data"),
        lambda node: notifications.prune([node, node]),
    )
    for make in made:
        assert kernel.notify(make(17))
        assert heard() == make(4711)


def test_notifications_about_nodes_that_the_kernel_does_not_know(told: tuple[Kernel, Callable[[], bytes]]) -> None:
    kernel, heard = told
    assert not kernel.notify(notifications.inval_inode(18))
    assert not kernel.notify(notifications.delete(17, 18, b"name"))
    assert not kernel.notify(notifications.inc_epoch())
    assert kernel.notify(notifications.prune([18, 17]))
    assert heard() == notifications.prune([4711])


def test_a_device_that_is_gone(told: tuple[Kernel, Callable[[], bytes]]) -> None:
    made = session.LlfuseSession(operations(FileSystem()), os.open("/dev/null", os.O_RDONLY), 2)
    assert not made.notify(notifications.inval_inode(17))
    os.close(made.fd)


def test_no_backing_files(told: tuple[Kernel, Callable[[], bytes]]) -> None:
    with pytest.raises(OSError, match="not supported"):
        told[0].open_backing(0)


def test_what_is_agreed_on() -> None:
    """Nothing of what libfuse 2 does not know, whatever the file system would like."""
    agreements: list[Agreement] = []

    class Listening(FileSystem):
        def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
            agreements.append(agreement)

    made = session.LlfuseSession(operations(FileSystem()), os.open("/dev/null", os.O_RDONLY), 2)
    made._init(Listening(), Wishes(flags=(1 << 64) - 1, max_write=1 << 20))
    os.close(made.fd)
    (agreed,) = agreements
    assert (agreed.minor, agreed.max_write, agreed.max_pages) == (19, 1 << 17, 32)
    assert agreed.flags == c.FUSE_ASYNC_READ | c.FUSE_BIG_WRITES
