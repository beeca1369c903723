"""A FileSystem that records its calls, a Channel that keeps its answers, and the smallest transport between them.

Nothing here reads or writes a file: what a test sees is bytes in, calls, bytes out.
"""

import logging
import queue
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from passthrough.filesystem import FileSystem, Kernel
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement, Wishes
from passthrough.protocol.requests import read_header
from passthrough.protocol.values import (
    Attr,
    Buffers,
    Context,
    Dirent,
    Entry,
    FileLock,
    FileRange,
    IoctlReply,
    Opened,
    StatFs,
    Statx,
)
from passthrough.server import Server

MAX_WRITE = 1 << 16
BODY_SIZE = 1 << 16  # the largest reply that MAX_WRITE agrees on, and not a byte more
WAIT_S = 20.0  # a test that waits this long has failed; nothing waits for it on the good path

ATTR = Attr(
    ino=0x1234,
    size=5,
    blocks=8,
    atime=1,
    mtime=-1,  # 1969: seconds are signed
    ctime=3,
    atimensec=4,
    mtimensec=5,
    ctimensec=6,
    mode=0o100644,
    nlink=1,
    uid=1000,
    gid=100,
    rdev=0,
    blksize=4096,
)
ENTRY = Entry(0x22, ATTR, entry_timeout_ns=1_500_000_000, attr_timeout_ns=2_000_000_250, generation=7)
STATX = Statx(
    mask=0xFFF,
    blksize=4096,
    attributes=0,
    nlink=1,
    uid=1000,
    gid=100,
    mode=0o100644,
    ino=0x22,
    size=5,
    blocks=8,
    attributes_mask=0x3F,
    atime=-2,
    atimensec=1,
    btime=2,
    btimensec=3,
    ctime=4,
    ctimensec=5,
    mtime=6,
    mtimensec=7,
    rdev_major=8,
    rdev_minor=9,
    dev_major=10,
    dev_minor=11,
)
OPENED = Opened(fh=5, open_flags=0x82, backing_id=3)
STATFS = StatFs(blocks=1000, bfree=500, bavail=400, files=300, ffree=200, bsize=4096, namelen=255, frsize=4096)
DOT = Dirent(b".", 1, 1, 4)
HELLO = Dirent(b"hello", 0x22, 2, 8)

RESULTS: dict[str, Any] = {
    "lookup": ENTRY,
    "getattr": (ATTR, 2_000_000_250),
    "setattr": (ATTR, 2_000_000_250),
    "statx": (STATX, 2_000_000_250),
    "readlink": b"../to",
    "symlink": ENTRY,
    "mknod": ENTRY,
    "mkdir": ENTRY,
    "unlink": None,
    "rmdir": None,
    "rename2": None,
    "link": ENTRY,
    "access": None,
    "statfs": STATFS,
    "open": OPENED,
    "create": (ENTRY, OPENED),
    "tmpfile": (ENTRY, OPENED),
    "read": b"data",
    "write": 3,
    "flush": None,
    "release": None,
    "fsync": None,
    "fallocate": None,
    "lseek": 4096,
    "copy_file_range": 30,
    "ioctl": IoctlReply(0, b""),
    "poll": 1,
    "bmap": 99,
    "opendir": OPENED,
    "readdir": (DOT, HELLO),
    "readdirplus": ((DOT, None), (HELLO, ENTRY)),
    "releasedir": None,
    "fsyncdir": None,
    "syncfs": None,
    "getxattr": b"value",
    "setxattr": None,
    "listxattr": (b"user.a", b"user.b"),
    "removexattr": None,
    "getlk": FileLock(10, 19, 0, 99),
    "setlk": None,
}
"""What each method of a FakeFileSystem returns unless a test says otherwise."""


class FakeFileSystem(FileSystem):
    """Records every call as (method, arguments without the context); `results` says what a method returns or raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.contexts: list[Context] = []
        self.results: dict[str, Any] = dict(RESULTS)
        self.session: list[str] = []

    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        self.session.append("init")

    def destroy(self) -> None:
        self.session.append("destroy")

    def forget(self, nodeid: int, nlookup: int) -> None:
        self.give("forget", nodeid, nlookup)

    def batch_forget(self, forgets: Any) -> None:
        self.give("batch_forget", list(forgets))

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int:
        self.contexts.append(ctx)
        # The buffers live as long as the call: keep what they held, each by itself.
        return int(self.give("write", nodeid, fh, offset, [bytes(part) for part in data], write_flags, flags))

    def give(self, method: str, *args: Any) -> Any:
        """Record a call and return (or raise) what the test has laid out for it."""
        self.calls.append((method, args))
        result = self.results.get(method)
        if isinstance(result, BaseException):
            raise result
        return result


def _recorder(method: str) -> Callable[..., Any]:
    def record(self: FakeFileSystem, ctx: Context, *args: Any) -> Any:
        self.contexts.append(ctx)
        return self.give(method, *args)

    return record


for _method in RESULTS:
    if _method != "write":
        setattr(FakeFileSystem, _method, _recorder(_method))


class FakeChannel:
    """Room for a body, and what came of the request: file ranges that were pulled, requests that were deferred."""

    def __init__(self, size: int = BODY_SIZE) -> None:
        self.body = memoryview(bytearray(size))
        self.pulled: list[FileRange] = []
        self.deferred: list[int] = []
        self.answers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def pull(self, source: FileRange) -> int:
        self.pulled.append(source)
        self.body[:4] = b"file"
        return 4

    def keep(self, unique: int) -> tuple[memoryview, Callable[[int], None]]:
        return self.body, self.defer(unique)

    def defer(self, unique: int) -> Callable[[int], None]:
        self.deferred.append(unique)
        return lambda result: self.answers.put((unique, result))

    def answer(self) -> tuple[int, int]:
        """The next deferred answer, as (unique, result)."""
        return self.answers.get(timeout=WAIT_S)


class Logs(logging.Handler):
    """Every log record of the package, for use where caplog cannot go (inside a hypothesis example)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def tracebacks(self) -> list[logging.LogRecord]:
        """The records that say "a bug of ours"."""
        return [record for record in self.records if record.exc_info]


@contextmanager
def logs() -> Iterator[Logs]:
    """Collect what the package logs meanwhile; nothing is printed."""
    logger = logging.getLogger("passthrough")
    handler = Logs()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def request(opcode: int, rest: bytes = b"", *, unique: int = 11, nodeid: int = 0x22, extlen: int = 0) -> bytes:
    """A request with a true header; rest is all that follows it, extensions (extlen units of 8 bytes) last."""
    return struct.pack("=IIQQIIIHxx", 40 + len(rest), opcode, unique, nodeid, 1000, 100, 42, extlen) + rest


def labels_extension(labels: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Security labels as Linux sends them (get_security_context() in fs/fuse/dir.c); none at all is a bare header."""
    parts = [struct.pack("=I4x", len(value)) + name + b"\0" + value for name, value in labels]
    body = b"".join(part + bytes(-len(part) % 8) for part in parts)
    return struct.pack("=II", 8 + len(body), len(labels)) + body


def handle(server: Server, raw: bytes, channel: FakeChannel | None = None, stale: bytes = b"") -> int | None:
    """Hand one request to the server in one buffer, which may hold stale bytes beyond; what Server.handle returns."""
    buffer = memoryview(bytearray(raw + stale))
    return server.handle(read_header(buffer, len(raw)), buffer, channel or FakeChannel())


def serve(server: Server, raw: bytes, channel: FakeChannel | None = None, stale: bytes = b"") -> bytes | None:
    """The same; the whole reply, header first, or None."""
    channel = channel or FakeChannel()
    return _reply(raw, handle(server, raw, channel, stale), channel)


def serve_split(
    server: Server, raw: bytes, args_size: int, channel: FakeChannel | None = None, data: Buffers | None = None
) -> bytes | None:
    """The same in pieces, each in memory of its own, as a transport over rings has them."""
    channel = channel or FakeChannel()
    header = read_header(memoryview(raw), len(raw))
    args = memoryview(raw[40 : 40 + args_size])
    payload = memoryview(raw[40 + args_size :])
    if data is None:
        result = server.handle_split(header, args, payload, len(payload), channel)
    else:
        result = server.handle_split(header, args, memoryview(b""), 0, channel, data)
    return _reply(raw, result, channel)


def _reply(raw: bytes, result: int | None, channel: FakeChannel) -> bytes | None:
    (unique,) = struct.unpack_from("=Q", raw, 8)
    if result is None:
        return None
    if result < 0:
        return struct.pack("=IiQ", 16, result, unique)
    return struct.pack("=IiQ", 16 + result, 0, unique) + bytes(channel.body[:result])


ALL_FLAGS = (1 << 43) - 1  # every INIT flag up to FUSE_REQUEST_TIMEOUT


def init_request(flags: int = ALL_FLAGS, minor: int = 45, major: int = 7, unique: int = 2) -> bytes:
    """INIT in its 64-byte form."""
    body = struct.pack("=IIIII44x", major, minor, 0x20000, flags & 0xFFFFFFFF, flags >> 32)
    return request(26, body, unique=unique, nodeid=0)


def serving(fs: FileSystem, flags: int = c.FUSE_SETXATTR_EXT, debug: Callable[[str], None] | None = None) -> Server:
    """A server past its INIT, with these flags agreed."""
    server = Server(fs, Wishes(flags=flags, max_write=MAX_WRITE), debug=debug)
    result = handle(server, init_request())
    assert result == 64, f"INIT failed: {result}"
    return server


def wait_for(event: threading.Event) -> None:
    """Wait for something that must come."""
    assert event.wait(WAIT_S), "it never came"
