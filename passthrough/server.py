"""One request to one call to one reply: the only place where an OSError becomes -errno. Knows no transport.

A transport gives each request with a Channel (where the reply's body is put) and gets back the length of the body, a
negative errno, or None where nothing is to be answered now. A malformed request fails alone; StreamError, which only
read_header raises, tells the transport to halt that queue.
"""

import errno
import logging
from collections.abc import Callable
from functools import partial
from os import strerror
from typing import Any, Protocol

from . import trace
from .filesystem import FileSystem, Kernel
from .protocol import constants as c
from .protocol import structs as s
from .protocol.dirents import put_dirents, put_dirents_plus
from .protocol.errors import RequestError
from .protocol.negotiation import Agreement, FeatureError, VersionError, Wishes, negotiate, put_init, read_init
from .protocol.operations import BY_NAME, BY_OPCODE, OPCODE_LIMIT, OPERATIONS, Operation, Out
from .protocol.replies import encoder, join_names, put_attr, put_entry, put_ioctl, put_text, put_xattr
from .protocol.requests import Header, decoder, read_forgets, read_groups, read_name, split_name
from .protocol.values import Buffers, Context, FileLock, FileRange, SetAttr
from .waiting import Waiters

log = logging.getLogger(__name__)

ERRNO_LIMIT = 512  # the kernel refuses a reply with a larger one (fuse_dev_do_write)


class Channel(Protocol):
    """Where a request came from and its reply goes: what a transport gives with each request."""

    body: memoryview
    """Room for the reply's body, after fuse_out_header; as long as the largest reply that was agreed on."""

    def pull(self, source: FileRange) -> int:
        """Read the file's bytes straight to where the body goes and return how many there were."""

    def defer(self, unique: int) -> Callable[[int], None]:
        """Keep this request open; the function that is returned answers it, from any thread, with 0 or -errno."""


_COMPLAINTS = 100

Call = Callable[[Context, int, memoryview, int, memoryview, int, int, Channel, Buffers | None], int | None]
"""(ctx, nodeid, args, offset of the struct, payload, start, end, channel, data) to length, -errno or None."""


def _fail(number: int) -> OSError:
    return OSError(number, strerror(number))


def _negative(error: OSError) -> int:
    """-errno as the kernel takes it; an OSError may carry no number (None, a word) or one out of range."""
    number = error.errno
    return -number if isinstance(number, int) and 0 < number < ERRNO_LIMIT else -errno.EIO


class Server:
    """Serves one FileSystem to one session. Thread-safe: queues call handle side by side.

    owner, where given, is the one uid besides root that is served (allow_root): others get EACCES, but for what they
    may do with files that they already hold. After INIT either agreement is set, or failure says why there is none.
    """

    def __init__(
        self,
        fs: FileSystem,
        wishes: Wishes,
        *,
        kernel: Kernel | None = None,
        debug: Callable[[str], None] | None = None,
        owner: int | None = None,
    ) -> None:
        self._fs = fs
        self._wishes = wishes
        self._kernel = kernel
        self._debug = debug
        self._owner = owner
        self._complaints = 0
        self._waiters = Waiters()
        self._before: list[tuple[int, Call]] = [(0, _refuse)] * OPCODE_LIMIT
        self._before[BY_NAME["init"].opcode] = (0, self._init)
        self._calls = self._before
        self.agreement: Agreement | None = None
        self.failure: str | None = None

    # Requests

    def handle(self, header: Header, buffer: memoryview, channel: Channel) -> int | None:
        """A request that lies in one buffer, header first (header.len bytes, as read_header has checked)."""
        size, call = self._calls[header.opcode] if header.opcode < OPCODE_LIMIT else _UNKNOWN
        start = c.IN_HEADER_SIZE + size
        return self._run(call, header, buffer, c.IN_HEADER_SIZE, buffer, start, header.len, channel, None)

    def handle_split(
        self,
        header: Header,
        args: memoryview,
        payload: memoryview,
        payload_size: int,
        channel: Channel,
        data: Buffers | None = None,
    ) -> int | None:
        """A request in pieces: the opcode's struct in args, names and extensions in payload, WRITE's data in data."""
        size, call = self._calls[header.opcode] if header.opcode < OPCODE_LIMIT else _UNKNOWN
        if len(args) < size:
            payload_size = -1  # it ends before its struct does: refused as in one buffer
        return self._run(call, header, args, 0, payload, 0, payload_size, channel, data)

    def _run(
        self,
        call: Call,
        header: Header,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int | None:
        _, opcode, unique, nodeid, uid, gid, pid, extensions = header
        ctx = Context(unique, uid, gid, pid)
        extensions *= 8
        end -= extensions
        if self._debug:
            size = self._calls[opcode][0] if opcode < OPCODE_LIMIT else 0
            self._debug(trace.request_line(header, size, args, at, payload, start, end))
        result: int | None
        try:
            if end < start:
                raise RequestError(f"{header.len} bytes are too few")
            if self._owner is not None and uid not in (0, self._owner) and opcode not in _ANYBODY:
                raise _fail(errno.EACCES)
            if extensions:
                ctx.groups = read_groups(payload, end, end + extensions)
            result = call(ctx, nodeid, args, at, payload, start, end, channel, data)
        except OSError as error:
            result = _negative(error)
        except (RequestError, OverflowError) as error:  # the latter: a number that fits no argument of its system call
            result = self._malformed(header, str(error))
        except MemoryError:
            result = -errno.ENOMEM
        except Exception:
            log.exception("a bug of ours: %s failed, the caller gets EIO", _name(header))
            result = -errno.EIO
        if opcode in _NO_REPLY:
            result = None
        if self._debug:
            self._debug(trace.reply_line(unique, BY_OPCODE.get(opcode), result))
        return result

    def _malformed(self, header: Header, why: str) -> int | None:
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:  # a peer that sends nothing else must not fill the log
            log.warning("request %d (%s) is malformed: %s", header.unique, _name(header), why)
        if self._complaints == _COMPLAINTS:
            log.warning("further malformed requests are answered and not logged")
        return None if header.opcode in _NO_REPLY else -errno.EINVAL

    # The session

    def _init(
        self,
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        # The struct's length depends on the peer's version, so the whole message counts as payload here.
        args, at, available = (args, at, end - at) if args is payload else (args, at, len(args) - at)
        offer = read_init(args, at, available)
        try:
            agreement = negotiate(offer, self._wishes)
        except (VersionError, FeatureError) as error:
            self.failure = str(error)
            raise _fail(errno.EPROTO) from error
        if agreement is not None:
            self._begin(agreement)
        return put_init(channel.body, agreement, offer.minor)

    def _begin(self, agreement: Agreement) -> None:
        if self.agreement is not None:
            self._end()
        try:
            self._fs.init(agreement, self._kernel)
        except Exception as error:
            self.failure = f"the file system could not begin: {error}"
            raise
        self.agreement = agreement
        self.failure = None
        self._calls = self._table(agreement)

    def _end(self) -> None:
        self._calls = self._before
        self.agreement = None
        self._waiters.close()
        self._waiters = Waiters()
        self._fs.destroy()

    def _destroy(self, *_: Any) -> int:
        self._end()
        return 0

    def interrupt_waiting(self) -> None:
        """End the requests that wait for a lock: the session is about to end."""
        self._waiters.close()

    def close(self) -> None:
        """The door is shut (unmounted, aborted): end what waits and tell the file system, if DESTROY did not."""
        if self.agreement is not None:
            self._end()

    # The table of calls

    def _table(self, agreement: Agreement) -> list[tuple[int, Call]]:
        """For each opcode how many bytes of arguments it has and what to call: made once per session."""
        table = [_UNKNOWN] * OPCODE_LIMIT
        special: dict[str, tuple[int, Call]] = {
            "init": (0, self._init),
            "destroy": (0, self._destroy),
            "interrupt": (s.FUSE_INTERRUPT_IN.size, self._interrupt),
        }
        for operation in OPERATIONS:
            if operation.name in special:
                table[operation.opcode] = special[operation.name]
            elif operation.name not in _UNSERVED:
                table[operation.opcode] = self._bind(operation, agreement)
        return table

    def _bind(self, operation: Operation, agreement: Agreement) -> tuple[int, Call]:
        name, fs = operation.name, self._fs
        layout = operation.struct
        if name == "setxattr" and not agreement.has(c.FUSE_SETXATTR_EXT):
            layout = s.FUSE_SETXATTR_IN_COMPAT
        size = layout.size if layout else 0
        make = _SPECIAL.get(name)
        if make is not None:
            return size, make(fs, layout, agreement)
        if name == "setlkw":
            return size, partial(_setlkw, fs, self._waiters)
        return size, _plain(operation, getattr(fs, _METHODS.get(name, name)), _ADAPT.get(name))

    def _interrupt(self, ctx: Context, nodeid: int, args: memoryview, at: int, *_: Any) -> None:
        (unique,) = s.FUSE_INTERRUPT_IN.struct.unpack_from(args, at)
        self._waiters.interrupt(unique)


def _name(header: Header) -> str:
    operation = BY_OPCODE.get(header.opcode)
    return operation.name.upper() if operation else f"opcode {header.opcode}"


def _unknown(*_: Any) -> int:
    return -errno.ENOSYS


def _refuse(*_: Any) -> int:
    """Before INIT nothing is served."""
    return -errno.EIO


_UNKNOWN: tuple[int, Call] = (0, _unknown)
_NO_REPLY = frozenset(row.opcode for row in OPERATIONS if row.out is Out.NO_REPLY)
_HELD = (
    "init read write flush fsync release lseek fallocate copy_file_range copy_file_range_64 getlk setlk setlkw"
    " readdir readdirplus fsyncdir releasedir destroy"
)
_ANYBODY = _NO_REPLY | {BY_NAME[name].opcode for name in _HELD.split()}
_UNSERVED = frozenset({"setupmapping", "removemapping", "notify_reply"})  # DAX windows and RETRIEVE: nothing asks
_COPY_LIMIT = 0xFFFFF000  # UINT_MAX & PAGE_MASK, as fuse_copy_file_range has it since COPY_FILE_RANGE_64
_METHODS = {"rename": "rename2", "copy_file_range_64": "copy_file_range"}


# Calls: how a request's pieces become a method's arguments and its result a body


def _plain(operation: Operation, method: Callable[..., Any], adapt: Callable[..., Any] | None) -> Call:
    """Names, then values, then the result: what most opcodes are. `adapt` reorders the values first."""
    decode, encode = decoder(operation), encoder(operation)

    def call(
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        return encode(channel.body, method(ctx, nodeid, *decode(args, at, payload, start, end)))

    def adapted(
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        return encode(channel.body, method(ctx, nodeid, *adapt(*decode(args, at, payload, start, end))))  # type: ignore[misc]

    return adapted if adapt else call


def _fh_if_asked(getattr_flags: int, fh: int, *rest: int) -> tuple[int | None, ...]:
    return (fh if getattr_flags & c.FUSE_GETATTR_FH else None, *rest)


_ADAPT: dict[str, Callable[..., tuple[Any, ...]]] = {
    "statx": _fh_if_asked,
    "setattr": lambda *values: (SetAttr._make(values),),
    "rename": lambda name, newname, newdir: (name, newname, newdir, 0),
    # The reply has 32 bits, and kernels before 6.18 ask for any length.
    "copy_file_range": lambda *values: (*values[:5], min(values[5], _COPY_LIMIT), values[6]),
    "getlk": lambda fh, owner, start, end, kind, pid, flags: (fh, owner, FileLock(start, end, kind, pid), flags),
    "setlk": lambda fh, owner, start, end, kind, pid, flags: (fh, owner, FileLock(start, end, kind, pid), flags, False),
}


def _lookup(fs: FileSystem, layout: s.Layout | None, agreement: Agreement) -> Call:
    """The commonest request, without the general way's detours."""
    lookup = fs.lookup

    def call(
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        return put_entry(channel.body, lookup(ctx, nodeid, read_name(payload, start, end)))

    return call


def _getattr(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    """The next commonest."""
    unpack, ask = layout.struct.unpack_from, fs.getattr

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int:
        flags, fh = unpack(args, at)
        return put_attr(rest[3].body, ask(ctx, nodeid, fh if flags & c.FUSE_GETATTR_FH else None))

    return call


def _forget(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack = layout.struct.unpack_from
    return lambda ctx, nodeid, args, at, *_: fs.forget(nodeid, unpack(args, at)[0])


def _batch_forget(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack = layout.struct.unpack_from
    return lambda ctx, nodeid, args, at, payload, start, end, *_: fs.batch_forget(
        read_forgets(payload, start, end, unpack(args, at)[0])
    )


def _read(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack, limit = layout.struct.unpack_from, _reply_limit(agreement)

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int:
        channel: Channel = rest[3]
        fh, offset, size, _read_flags, _lock_owner, flags = unpack(args, at)
        if size > limit or offset + size >= 1 << 63:
            raise RequestError(f"READ of {size} bytes at {offset}")
        found = fs.read(ctx, nodeid, fh, offset, size, flags)
        return channel.pull(found) if isinstance(found, FileRange) else put_text(channel.body, found[:size])

    return call


def _write(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack = layout.struct.unpack_from
    encode = encoder(BY_NAME["write"])

    def call(
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        fh, offset, size, write_flags, _lock_owner, flags = unpack(args, at)
        held = end - start if data is None else sum(map(len, data))
        if size != held or size > agreement.max_write or offset + size >= 1 << 63:
            raise RequestError(f"WRITE of {size} bytes at {offset} brings {held}")
        buffers = (payload[start:end],) if data is None else data
        return encode(channel.body, fs.write(ctx, nodeid, fh, offset, buffers, write_flags, flags))

    return call


def _readdir(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack, limit = layout.struct.unpack_from, _reply_limit(agreement)

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int:
        fh, offset, size = unpack(args, at)[:3]
        size = min(size, limit)
        return put_dirents(rest[3].body, size, fs.readdir(ctx, nodeid, fh, offset, size))

    return call


def _readdirplus(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack, limit = layout.struct.unpack_from, _reply_limit(agreement)

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int:
        fh, offset, size = unpack(args, at)[:3]
        size = min(size, limit)
        length, left = put_dirents_plus(rest[3].body, size, fs.readdirplus(ctx, nodeid, fh, offset, size))
        if left is not None and left.nodeid:
            fs.forget(left.nodeid, 1)
        return length

    return call


def _getxattr(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    decode = decoder(BY_NAME["getxattr"])
    limit = _reply_limit(agreement)

    def call(
        ctx: Context, nodeid: int, args: memoryview, at: int, payload: memoryview, start: int, end: int, *rest: Any
    ) -> int:
        name, size = decode(args, at, payload, start, end)
        return _sized(rest[0], fs.getxattr(ctx, nodeid, name), min(size, limit))

    return call


def _listxattr(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack, limit = layout.struct.unpack_from, _reply_limit(agreement)

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int:
        (size,) = unpack(args, at)
        return _sized(rest[3], join_names(fs.listxattr(ctx, nodeid)), min(size, limit))

    return call


def _sized(channel: Channel, value: bytes, size: int) -> int:
    length = put_xattr(channel.body, value, size)
    if length < 0:
        raise _fail(errno.ERANGE)
    return length


def _setxattr(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack = layout.struct.unpack_from

    def call(
        ctx: Context, nodeid: int, args: memoryview, at: int, payload: memoryview, start: int, end: int, *_: Any
    ) -> int:
        size, flags, *more = unpack(args, at)
        name, start = split_name(payload, start, end)
        if size != end - start:
            raise RequestError(f"SETXATTR of {size} bytes brings {end - start}")
        fs.setxattr(ctx, nodeid, name, bytes(payload[start:end]), flags, more[0] if more else 0)
        return 0

    return call


def _ioctl(fs: FileSystem, layout: s.Layout, agreement: Agreement) -> Call:
    unpack, limit = layout.struct.unpack_from, _reply_limit(agreement)

    def call(
        ctx: Context, nodeid: int, args: memoryview, at: int, payload: memoryview, start: int, end: int, *rest: Any
    ) -> int:
        fh, flags, cmd, arg, in_size, out_size = unpack(args, at)
        if in_size != end - start or out_size + s.FUSE_IOCTL_OUT.size > limit:
            raise RequestError(f"IOCTL of {in_size} bytes brings {end - start}, takes {out_size}")
        reply = fs.ioctl(ctx, nodeid, fh, cmd, arg, flags, bytes(payload[start:end]), out_size)
        return put_ioctl(rest[0].body, reply, out_size)

    return call


def _setlkw(
    fs: FileSystem,
    waiters: Waiters,
    ctx: Context,
    nodeid: int,
    args: memoryview,
    at: int,
    payload: memoryview,
    start: int,
    end: int,
    channel: Channel,
    data: Buffers | None,
) -> int | None:
    fh, owner, first, last, kind, pid, flags = s.FUSE_LK_IN.struct.unpack_from(args, at)
    lock = FileLock(first, last, kind, pid)
    try:
        fs.setlk(ctx, nodeid, fh, owner, lock, flags, False)
        return 0
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise

    def work() -> int:
        try:
            fs.setlk(ctx, nodeid, fh, owner, lock, flags, True)
        except OSError as error:
            return _negative(error)
        except MemoryError:
            return -errno.ENOMEM
        except Exception:
            log.exception("a bug of ours: SETLKW failed, the caller gets EIO")
            return -errno.EIO
        return 0

    waiters.start(ctx, work, channel.defer(ctx.unique))
    return None


def _reply_limit(agreement: Agreement) -> int:
    """The most bytes that a reply's body may have: what a read of the largest agreed size brings."""
    return max(agreement.max_write, agreement.max_pages * 4096, 1 << 16)


_SPECIAL: dict[str, Callable[[FileSystem, Any, Agreement], Call]] = {
    "lookup": _lookup,
    "getattr": _getattr,
    "forget": _forget,
    "batch_forget": _batch_forget,
    "read": _read,
    "write": _write,
    "readdir": _readdir,
    "readdirplus": _readdirplus,
    "getxattr": _getxattr,
    "listxattr": _listxattr,
    "setxattr": _setxattr,
    "ioctl": _ioctl,
}
