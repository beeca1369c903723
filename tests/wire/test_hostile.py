"""Short, lying and impossible requests: an errno for that request, no call, no exception; the next is served."""

import errno
import logging
import struct
from collections.abc import Callable
from typing import Any

import pytest

from passthrough.protocol.errors import StreamError
from passthrough.protocol.negotiation import Wishes
from passthrough.protocol.operations import BY_NAME, BY_OPCODE, OPERATIONS, Out
from passthrough.protocol.requests import read_header
from passthrough.protocol.values import Entry, IoctlReply, Opened
from passthrough.server import Server
from tests.wire.exchanges import EXCHANGES, Exchange, unhex
from tests.wire.fake import (
    ATTR,
    BODY_SIZE,
    ENTRY,
    MAX_WRITE,
    FakeChannel,
    FakeFileSystem,
    handle,
    init_request,
    labels_extension,
    request,
    serve_split,
    serving,
)

REQUESTS = {row.name: unhex(row.request) for row in EXCHANGES}
UNSERVED = {"setupmapping", "removemapping"}


def _error(raw: bytes, served: int = errno.EINVAL) -> int | None:
    """What a malformed request is answered: -errno, or nothing where the kernel waits for nothing."""
    row = BY_OPCODE[struct.unpack_from("=I", raw, 4)[0]]
    if row.out is Out.NO_REPLY:
        return None
    return -errno.ENOSYS if row.name in UNSERVED else -served


def _still_serves(server: Server, fs: FakeFileSystem) -> None:
    fs.calls.clear()
    fs.results["lookup"] = ENTRY
    assert handle(server, REQUESTS["lookup"]) == 128
    assert fs.calls == [("lookup", (1, b"hello"))]


def _no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def _refused(server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture, raw: bytes) -> None:
    """EINVAL, one warning that says why, and no call."""
    caplog.clear()
    assert handle(server, raw) == _error(raw)
    assert fs.calls == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "malformed" in caplog.text


# Lengths


@pytest.mark.parametrize("received", range(40))
def test_a_truncated_header_breaks_the_stream(received: int) -> None:
    raw = REQUESTS["lookup"][:received]
    with pytest.raises(StreamError):
        read_header(memoryview(raw.ljust(64, b"\xff")), received)


@pytest.mark.parametrize("length", [0, 1, 39, 40, 45, 47, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_lies_breaks_the_stream(length: int) -> None:
    raw = struct.pack("=I", length) + REQUESTS["lookup"][4:]
    assert len(raw) == 46
    with pytest.raises(StreamError):
        read_header(memoryview(raw), len(raw))


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_truncated_at_every_length(exchange: Exchange, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture) -> None:
    """In one buffer, with the missing bytes still lying behind the end: they must not be read."""
    server = serving(fs, exchange.flags)
    whole = unhex(exchange.request)
    for length in range(40, len(whole)):
        raw = struct.pack("=I", length) + whole[4:length]
        assert handle(server, raw, stale=whole[length:]) == _error(raw), f"at {length} bytes"
    assert fs.calls == []
    _no_traceback(caplog)
    _still_serves(server, fs)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_pieces_truncated_at_every_length(
    exchange: Exchange, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving(fs, exchange.flags)
    whole = unhex(exchange.request)
    for length in range(40, len(whole)):
        raw = struct.pack("=I", length) + whole[4:length]
        reply = serve_split(server, raw, exchange.args_size)
        error = _error(raw)
        assert reply == (error if error is None else struct.pack("=IiQ", 16, error, 11)), f"at {length} bytes"
    assert fs.calls == []
    _no_traceback(caplog)
    _still_serves(server, fs)


@pytest.mark.parametrize("size", range(16))
def test_init_that_is_too_short(size: int, caplog: pytest.LogCaptureFixture, fs: FakeFileSystem) -> None:
    server = serving(fs)
    raw = init_request()
    assert handle(server, struct.pack("=I", 40 + size) + raw[4 : 40 + size], stale=raw[40 + size :]) == -errno.EINVAL
    assert fs.session == ["init"]
    _still_serves(server, fs)


# Names

NAMED = [row for row in OPERATIONS if row.names and row.name != "setxattr"]
BAD_NAMES = {
    1: [b"", b"name", b"\0\0", b"a\0b\0", b"a\0b", b"\0b", b"a\0\0"],
    2: [b"", b"ab", b"a\0", b"a\0b", b"\0b", b"a\0b\0c", b"a\0b\0c\0", b"a\0b\0\0"],
}


@pytest.mark.parametrize(
    ("row", "names"),
    [(row, names) for row in NAMED for names in BAD_NAMES[row.names]],
    ids=lambda value: value.decode("latin-1").replace("\0", "0") if isinstance(value, bytes) else value.name,
)
def test_names_that_are_none(
    row: Any, names: bytes, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    args = bytes(row.struct.size) if row.struct else b""
    _refused(server, fs, caplog, request(row.opcode, args + names))


@pytest.mark.parametrize("name", [b"/", b"..", b".", b"a/b", b"\n", b"\xff\xfe", b"x" * 255, b"x" * 5000])
def test_names_are_not_judged_here(name: bytes, server: Server, fs: FakeFileSystem) -> None:
    """What a name may be is the file system's business; it must get the very bytes."""
    assert handle(server, request(1, name + b"\0")) == 128
    assert fs.calls == [("lookup", (0x22, name))]


# Sizes, counts and offsets


def _write(offset: int, size: int, data: bytes) -> bytes:
    return request(16, struct.pack("=QQIIQII", 5, offset, size, 0, 0, 0, 0) + data)


def _read(offset: int, size: int, opcode: int = 15) -> bytes:
    return request(opcode, struct.pack("=QQIIQII", 5, offset, size, 0, 0, 0, 0))


@pytest.mark.parametrize("size", [0, 2, 4, 0x80000003, 0xFFFFFFFF])
def test_write_size_that_lies(size: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture) -> None:
    _refused(server, fs, caplog, _write(0, size, b"abc"))


@pytest.mark.parametrize("held", [0, 2, 4])
def test_write_size_that_lies_about_scattered_data(held: int, server: Server, fs: FakeFileSystem) -> None:
    reply = serve_split(server, _write(0, 3, b"abc"), 40, data=(memoryview(bytes(held)), memoryview(b"")))
    assert reply == struct.pack("=IiQ", 16, -errno.EINVAL, 11)
    assert fs.calls == []


def test_write_of_more_than_was_agreed(server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture) -> None:
    _refused(server, fs, caplog, _write(0, MAX_WRITE + 1, bytes(MAX_WRITE + 1)))
    assert handle(server, _write(0, MAX_WRITE, bytes(MAX_WRITE))) == 8


@pytest.mark.parametrize("offset", [2**63 - 3, 2**63 - 1, 2**63, 2**64 - 4, 2**64 - 3, 2**64 - 1])
@pytest.mark.parametrize("make", [lambda at: _write(at, 3, b"abc"), lambda at: _read(at, 3)], ids=["write", "read"])
def test_data_past_the_largest_file(
    make: Callable[[int], bytes], offset: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, make(offset))


def test_data_at_the_end_of_the_largest_file(server: Server, fs: FakeFileSystem) -> None:
    last = 2**63 - 4
    assert handle(server, _write(last, 3, b"abc")) == 8
    assert handle(server, _read(last, 3)) == 3
    assert [call[1][2] for call in fs.calls] == [last, last]


@pytest.mark.parametrize("size", [BODY_SIZE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_read_of_more_than_a_reply_holds(
    size: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, _read(0, size))


def test_read_of_a_whole_reply(server: Server, fs: FakeFileSystem) -> None:
    fs.results["read"] = bytes(BODY_SIZE)
    assert handle(server, _read(0, BODY_SIZE)) == BODY_SIZE


@pytest.mark.parametrize("name", ["readdir", "readdirplus"])
def test_directory_reply_is_capped_by_its_room(name: str, server: Server, fs: FakeFileSystem) -> None:
    assert handle(server, _read(0, 0xFFFFFFFF, BY_NAME[name].opcode)) in (64, 320)
    assert fs.calls == [(name, (0x22, 5, 0, BODY_SIZE))]


@pytest.mark.parametrize("count", [0, 1, 3, 0x10000000, 0x10000002, 0xFFFFFFFF])
def test_batch_forget_count_that_lies(
    count: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, request(42, struct.pack("=II4Q", count, 0, 1, 1, 2, 1)))


def test_batch_forget_of_nothing(server: Server, fs: FakeFileSystem) -> None:
    assert handle(server, request(42, bytes(8))) is None
    assert fs.calls == [("batch_forget", ([],))]


# 2^32-7 and 2^32-2 are what a sum in 32 bits would take for 0 and 5: the name has 7 bytes.
@pytest.mark.parametrize("size", [0, 4, 6, 0x7FFFFFFF, 2**32 - 7, 2**32 - 2, 2**32 - 1])
def test_setxattr_size_that_lies(
    size: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, request(21, struct.pack("=IIII", size, 0, 0, 0) + b"user.k\0value"))


@pytest.mark.parametrize("rest", [b"", b"user.k", b"x" * 4096 + b"\0value"], ids=["none", "no NUL", "too long"])
def test_setxattr_without_a_name(
    rest: bytes, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, request(21, struct.pack("=IIII", 5, 0, 0, 0) + rest))


@pytest.mark.parametrize("name", ["getxattr", "listxattr"])
@pytest.mark.parametrize("size", [BODY_SIZE, 0xFFFFFFFF])
def test_an_attribute_larger_than_a_reply(name: str, size: int, server: Server, fs: FakeFileSystem) -> None:
    rest = struct.pack("=II", size, 0) + (b"user.k\0" if name == "getxattr" else b"")
    fits = bytes(BODY_SIZE)
    fs.results["getxattr"], fs.results["listxattr"] = fits, [fits[:-1]]
    assert handle(server, request(BY_NAME[name].opcode, rest)) == BODY_SIZE
    fs.results["getxattr"], fs.results["listxattr"] = fits + b"x", [fits]
    assert handle(server, request(BY_NAME[name].opcode, rest)) == -errno.ERANGE


@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [(0, 8), (7, 8), (9, 8), (0xFFFFFFFF, 8), (8, BODY_SIZE), (8, BODY_SIZE - 15), (8, 0xFFFFFFFF)],
)
def test_ioctl_sizes_that_lie(
    in_size: int, out_size: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, request(39, struct.pack("=QIIQII", 5, 0, 1, 0, in_size, out_size) + bytes(8)))


def test_ioctl_that_fills_a_reply(server: Server, fs: FakeFileSystem) -> None:
    fs.results["ioctl"] = IoctlReply(0, b"x" * (BODY_SIZE - 16))
    assert handle(server, request(39, struct.pack("=QIIQII", 5, 0, 1, 0, 0, BODY_SIZE - 16))) == BODY_SIZE


@pytest.mark.parametrize(
    ("opcode", "asked"),
    [(47, [2**32 - 4096, 2**32 - 4096, 7]), (53, [2**64 - 1, 2**32, 7])],
    ids=["32 bits", "64 bits"],
)
def test_a_copy_is_no_longer_than_its_reply_can_tell(
    opcode: int, asked: list[int], server: Server, fs: FakeFileSystem
) -> None:
    """COPY_FILE_RANGE answers with 32 bits, but kernels before 6.18 pass on any length."""
    for length in (2**64 - 1, 2**32, 7):
        fs.results["copy_file_range"] = min(length, 2**32 - 4096)
        assert handle(server, request(opcode, struct.pack("=7Q", 5, 0, 0x23, 6, 0, length, 0))) == 8
    assert [call[1][6] for call in fs.calls] == asked


# Extensions


def _ext(kind: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("=II", 8 + len(body) if size is None else size, kind) + body


def _groups(*groups: int, count: int | None = None) -> bytes:
    body = struct.pack(f"=I{len(groups)}I", len(groups) if count is None else count, *groups)
    return _ext(32, body + bytes(-(len(body)) % 8))


def _label(name: bytes, value: bytes, size: int | None = None, pad: int | None = None) -> bytes:
    """One security context, whose size may lie."""
    raw = struct.pack("=I4x", len(value) if size is None else size) + name + value
    return raw + bytes(-len(raw) % 8 if pad is None else pad)


MKDIR = struct.pack("=II", 0o755, 0) + b"dir\0"
_X = _label(b"security.x\0", b"value")
BAD_EXTENSIONS = {
    "size 0": _ext(32, bytes(8), size=0),
    "size 7": _ext(32, bytes(8), size=7),
    "size 0 for ever": _ext(1, bytes(8), size=0),  # a chain that never moves on
    "size 7 of a security context": _ext(1, bytes(8), size=7),
    "size beyond the end": _ext(32, bytes(8), size=17),
    "size of 4 GiB": _ext(32, bytes(8), size=0xFFFFFFFF),
    "second one beyond the end": _groups(1) + _ext(32, bytes(8), size=24),
    "size that leaves 4 bytes": _ext(1, bytes(16), size=20),
    "type 33": _ext(33, bytes(8)),
    "type 2^32-1": _ext(0xFFFFFFFF, bytes(8)),
    "no count": _ext(32, b""),
    "33 groups": _groups(*range(33)),
    "4 groups where 3 are": _groups(1, 2, 3, count=4),
    "2^32-1 groups": _groups(1, count=0xFFFFFFFF),
    "2^30 groups": _groups(1, count=1 << 30),
    "a label that is not there": _ext(1, b""),
    "two labels where one is": _ext(2, _X),
    "31 labels where one is": _ext(31, _X),
    "one label where two are": _ext(1, _X + _X),
    "no label where one is": _ext(0, _X),
    "a label's value beyond the end": _ext(1, _label(b"security.x\0", b"value", size=6)),
    "a label's value a page beyond": _ext(1, _label(b"security.x\0", b"value", size=4096)),
    "a label's value of 2^31": _ext(1, _label(b"security.x\0", b"value", size=1 << 31)),
    "a label's value of 4 GiB": _ext(1, _label(b"security.x\0", b"value", size=0xFFFFFFFF)),
    "a label's value that takes in the next label": _ext(2, _label(b"a\0", b"b", size=40) + _X),
    "a label that hides behind a shorter value": _ext(1, _label(b"a\0", bytes(30), size=1)),
    "a label without a name": _ext(1, _label(b"\0", b"value")),
    "a label's name without its NUL": _ext(1, _label(b"security.x!!!!!!", b"")),
    "a label's name of 256 bytes": _ext(1, _label(b"x" * 256 + b"\0", b"value")),
    "half a label": _ext(1, bytes(8)),
    "labels, then labels": labels_extension([(b"a", b"b")]) + labels_extension([(b"a", b"b")]),
    "none, then labels": labels_extension([]) + labels_extension([(b"a", b"b")]),
    "labels that lie, after groups": _groups(7) + _ext(2, _X),
}


@pytest.mark.parametrize("extension", BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS)
def test_extension_that_lies(
    extension: bytes, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(extension) % 8 == 0
    _refused(server, fs, caplog, request(9, MKDIR + extension, extlen=len(extension) // 8))


@pytest.mark.parametrize("extlen", [2, 3, 100, 0x7FFF, 0x8000, 0xFFFF])
def test_extensions_longer_than_the_request(
    extlen: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    raw = request(9, MKDIR, extlen=extlen)
    _refused(server, fs, caplog, raw)
    assert serve_split(server, raw, 8) == struct.pack("=IiQ", 16, -errno.EINVAL, 11)
    assert fs.calls == []


def test_extension_of_a_request_without_reply(
    server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(server, fs, caplog, request(2, bytes(8) + _ext(32, b"", size=0), extlen=1))


@pytest.mark.parametrize(
    ("extension", "groups", "labels"),
    [
        (b"", None, ()),
        (_ext(0, b""), None, ()),
        (_ext(0, b"") + _groups(7), (7,), ()),
        (_ext(1, _X), None, ((b"security.x", b"value"),)),
        (_ext(1, _label(b"security.x\0", b"")), None, ((b"security.x", b""),)),
        (_ext(2, _X + _X), None, ((b"security.x", b"value"),) * 2),
        (_ext(31, _X * 31), None, ((b"security.x", b"value"),) * 31),
        (_ext(1, _label(b"x" * 255 + b"\0", b"v" * 60000)), None, ((b"x" * 255, b"v" * 60000),)),
        (_groups(), (), ()),
        (_groups(7), (7,), ()),
        (_groups(*range(32)), tuple(range(32)), ()),
        (_groups(0xFFFFFFFF, 0), (0xFFFFFFFF, 0), ()),
        (_ext(1, _X) + _groups(7), (7,), ((b"security.x", b"value"),)),
        (_groups(7) + _ext(1, _X), (7,), ((b"security.x", b"value"),)),
    ],
)
def test_extensions_that_are_well_formed(
    extension: bytes,
    groups: tuple[int, ...] | None,
    labels: tuple[tuple[bytes, bytes], ...],
    server: Server,
    fs: FakeFileSystem,
) -> None:
    raw = request(9, MKDIR + extension, extlen=len(extension) // 8)
    assert handle(server, raw) == 128
    assert serve_split(server, raw, 8) is not None
    assert [ctx.groups for ctx in fs.contexts] == [groups, groups]
    assert [ctx.labels for ctx in fs.contexts] == [labels, labels]
    assert fs.calls == [("mkdir", (0x22, b"dir", 0o755, 0))] * 2


# Opcodes and the session

UNKNOWN = [0, 7, 19, 54, 0x1000, 0x100000, 0x1A000000, 0x7FFFFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize("opcode", UNKNOWN)
@pytest.mark.parametrize("rest", [b"", bytes(200)], ids=["bare", "long"])
def test_unknown_opcode(opcode: int, rest: bytes, server: Server, fs: FakeFileSystem) -> None:
    assert handle(server, request(opcode, rest)) == -errno.ENOSYS
    assert serve_split(server, request(opcode, rest), 0) == struct.pack("=IiQ", 16, -errno.ENOSYS, 11)
    assert fs.calls == []
    _still_serves(server, fs)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_before_init_nothing_is_served(
    exchange: Exchange, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(fs, Wishes())
    raw = unhex(exchange.request)
    row = BY_OPCODE[struct.unpack_from("=I", raw, 4)[0]]
    assert handle(server, raw) == (None if row.out is Out.NO_REPLY else -errno.EIO)
    assert fs.calls == []
    _no_traceback(caplog)


def test_destroy_before_init(fs: FakeFileSystem) -> None:
    assert handle(Server(fs, Wishes()), request(38)) == -errno.EIO
    assert fs.session == []


# A file system that fails


@pytest.mark.parametrize("wrong", [ValueError("oops"), KeyError(1), RecursionError(), struct.error()], ids=repr)
@pytest.mark.parametrize("name", ["lookup", "read", "readdirplus", "getxattr", "setlkw without a wait"])
def test_a_bug_in_a_method_is_eio_and_one_traceback(
    wrong: Exception, name: str, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    method = "setlk" if name.startswith("setlkw") else name
    fs.results[method] = wrong
    raw = REQUESTS.get(name) or REQUESTS["getxattr that just fits"]
    assert handle(server, raw) == -errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is wrong
    assert name.split()[0].upper() in record.getMessage()
    _still_serves(server, fs)


@pytest.mark.parametrize("name", ["forget", "batch_forget"])
def test_a_bug_in_a_method_without_reply_is_a_traceback_alone(
    name: str, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    fs.results[name] = ValueError("oops")
    assert handle(server, REQUESTS[name]) is None
    assert [record.exc_info is not None for record in caplog.records] == [True]
    _still_serves(server, fs)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("lookup", Entry(-1, ATTR)),
        ("lookup", Entry(2**64, ATTR)),
        ("lookup", Entry(1, ATTR._replace(mode=1 << 32))),
        ("lookup", None),
        ("getattr by node", (ATTR, -1)),
        ("open", Opened(1, -1)),
        ("write", 2**32),
        ("copy_file_range", 2**32),
        ("readdir", 5),
        ("readdirplus", [(1, 2)]),
    ],
)
def test_a_result_that_fits_no_reply_is_a_bug(
    name: str, result: Any, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    fs.results[name.split()[0]] = result
    assert handle(server, REQUESTS[name]) == -errno.EIO
    assert [record.exc_info is not None for record in caplog.records] == [True]
    _still_serves(server, fs)


def test_a_number_that_fits_no_system_call_is_the_peers_fault(
    server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    """An offset past 2^63 that reaches Python's own wrappers: no traceback, or a guest could fill the log with them."""
    fs.results["lseek"] = OverflowError("Python int too large to convert to C long")
    assert handle(server, REQUESTS["lseek"]) == -errno.EINVAL
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "too large" in caplog.text
    _still_serves(server, fs)


def test_an_ioctl_reply_that_is_too_long_is_a_bug(
    server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    fs.results["ioctl"] = IoctlReply(0, bytes(9))
    assert handle(server, REQUESTS["ioctl FS_IOC_GETFLAGS"]) == -errno.EIO
    assert "malformed" not in caplog.text
    _still_serves(server, fs)


ERRORS = [
    (OSError(errno.ENOENT, "gone"), -errno.ENOENT),
    (OSError(511, "the last one"), -511),
    (OSError(), -errno.EIO),
    (OSError("without a number"), -errno.EIO),
    (OSError(0, "no error"), -errno.EIO),
    (OSError(512, "ERESTARTSYS"), -errno.EIO),
    (OSError(600, "too large"), -errno.EIO),
    (OSError(1 << 40, "far too large"), -errno.EIO),
    (OSError(-2, "negative"), -errno.EIO),
    (OSError("ENOENT", "a word"), -errno.EIO),
    (TimeoutError("without a number"), -errno.EIO),
    (MemoryError(), -errno.ENOMEM),
]


@pytest.mark.parametrize(("error", "result"), ERRORS, ids=[repr(error) for error, _ in ERRORS])
def test_errno(
    error: Exception, result: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    fs.results["lookup"] = error
    assert handle(server, REQUESTS["lookup"]) == result
    _no_traceback(caplog)
    _still_serves(server, fs)


def test_a_reply_with_no_room_is_an_errno(server: Server, fs: FakeFileSystem) -> None:
    """A channel with less room than was agreed must not raise out of the loop either."""
    assert handle(server, REQUESTS["lookup"], FakeChannel(size=20)) == -errno.EIO
    _still_serves(server, fs)


# The log


_TOLD = 100


@pytest.mark.parametrize("sent", [1, _TOLD - 1, _TOLD, _TOLD + 1, 5 * _TOLD])
def test_a_peer_that_talks_nonsense_cannot_fill_the_log(
    sent: int, server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    for unique in range(sent):
        assert handle(server, request(1, b"no end", unique=unique)) == -errno.EINVAL
    told = [record.getMessage() for record in caplog.records]
    assert [f"request {unique} (LOOKUP) is malformed" in line for unique, line in enumerate(told[:_TOLD])] == (
        [True] * min(sent, _TOLD)
    )
    assert told[_TOLD:] == (["further malformed requests are answered and not logged"] if sent >= _TOLD else [])
    _no_traceback(caplog)
    _still_serves(server, fs)


def test_what_nobody_answers_counts_as_well(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3 * _TOLD):
        assert handle(server, request(BY_NAME["batch_forget"].opcode, struct.pack("=II", 3, 0))) is None
    assert len(caplog.records) == _TOLD + 1
