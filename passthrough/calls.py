"""From a request's pieces to a method's arguments, and from its result to a reply's body: one call per opcode.

Made once per session out of the rows of protocol.operations; most are alike (names, then values, then the result), and
a few opcodes need more than their row can say. A call raises what the method raises, and RequestError.
"""

import errno
from collections.abc import Callable
from typing import Any, Protocol

from .filesystem import FileSystem, failure
from .protocol import constants as c
from .protocol import structs as s
from .protocol.dirents import put_dirents, put_dirents_plus
from .protocol.errors import RequestError
from .protocol.negotiation import Agreement
from .protocol.operations import BY_NAME, OPCODE_LIMIT, OPERATIONS, Operation
from .protocol.replies import encoder, join_names, put_attr, put_entry, put_ioctl, put_text, put_xattr
from .protocol.requests import Decoder, decoder, read_forgets, read_name, split_name
from .protocol.values import Answer, Buffers, Context, FileLock, FileRange, Fill, Later, SetAttr


class Channel(Protocol):
    """Where a request came from and its reply goes: what a transport gives with each request."""

    body: memoryview
    """Room for the reply's body, after fuse_out_header; as long as the largest reply that was agreed on."""

    def pull(self, source: FileRange) -> int:
        """Read the file's bytes straight to where the body goes and return how many there were."""

    def keep(self, unique: int) -> tuple[memoryview, Answer]:
        """Keep this request open, its payload as it is, and room for the body of its reply; the function answers it,
        from any thread, with the length of that body or with -errno."""

    def defer(self, unique: int) -> Callable[[int], None]:
        """Keep this request open; the function that is returned answers it, from any thread, with 0 or -errno."""


Call = Callable[[Context, int, memoryview, int, memoryview, int, int, Channel, Buffers | None], int | None]
"""(ctx, nodeid, args, offset of the struct, payload, start, end, channel, data) to length, -errno or None."""


def _unknown(*_: Any) -> int:
    return -errno.ENOSYS


UNKNOWN: tuple[int, Call] = (0, _unknown)
"""An opcode that nobody knows, or that nobody serves."""
_SESSION = frozenset({"init", "destroy", "interrupt", "setlkw"})  # the server's own
_UNSERVED = frozenset({"setupmapping", "removemapping", "notify_reply"})  # DAX windows and RETRIEVE: nothing asks
_COPY_LIMIT = 0xFFFFF000  # UINT_MAX & PAGE_MASK, as fuse_copy_file_range has it since COPY_FILE_RANGE_64
_METHODS = {"rename": "rename2", "copy_file_range_64": "copy_file_range"}


def table(fs: FileSystem, agreement: Agreement) -> list[tuple[int, Call]]:
    """For each opcode how many bytes of arguments it has and what to call; the session's own opcodes are left out."""
    found = [UNKNOWN] * OPCODE_LIMIT
    for operation in OPERATIONS:
        if operation.name not in _UNSERVED and operation.name not in _SESSION:
            found[operation.opcode] = _bind(fs, operation, agreement)
    return found


def _bind(fs: FileSystem, operation: Operation, agreement: Agreement) -> tuple[int, Call]:
    name, layout = operation.name, operation.struct
    if name == "setxattr" and not agreement.has(c.FUSE_SETXATTR_EXT):
        layout = s.FUSE_SETXATTR_IN_COMPAT
    size = layout.size if layout else 0
    make = _SPECIAL.get(name)
    if make is not None:
        return size, make(fs, layout, agreement)
    return size, _plain(operation, getattr(fs, _METHODS.get(name, name)), _ADAPT.get(name))


def _plain(operation: Operation, method: Callable[..., Any], adapt: Callable[..., Any] | None) -> Call:
    """Names, then values, then the result: what most opcodes are. `adapt` reorders the values first."""
    decode, encode = decoder(operation), encoder(operation)
    if adapt is not None:
        decode = _adapted(decode, adapt)

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

    return call


def _adapted(decode: Decoder, adapt: Callable[..., tuple[Any, ...]]) -> Decoder:
    return lambda args, at, payload, start, end: adapt(*decode(args, at, payload, start, end))


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

    def call(ctx: Context, nodeid: int, args: memoryview, at: int, *rest: Any) -> int | None:
        channel: Channel = rest[3]
        fh, offset, size, _read_flags, _lock_owner, flags = unpack(args, at)
        if size > limit or offset + size >= 1 << 63:
            raise RequestError(f"READ of {size} bytes at {offset}")
        found = fs.read(ctx, nodeid, fh, offset, size, flags)
        if isinstance(found, FileRange):
            return channel.pull(found)
        if isinstance(found, Later):
            _begin(found, channel, ctx.unique, size)
            return None
        if isinstance(found, Fill):
            return found.into(channel.body[: min(size, found.size)])
        return put_text(channel.body, found[:size])

    return call


def _begin(found: Later, channel: Channel, unique: int, size: int) -> None:
    room, answer = channel.keep(unique)
    found.begin(room[:size], answer)


def _begin_write(written: Later, channel: Channel, unique: int, encode: Callable[[memoryview, int], int]) -> None:
    room, answer = channel.keep(unique)
    written.begin(room, lambda result: answer(encode(room, result) if result >= 0 else result))


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
    ) -> int | None:
        fh, offset, size, write_flags, _lock_owner, flags = unpack(args, at)
        held = end - start if data is None else sum(map(len, data))
        if size != held or size > agreement.max_write or offset + size >= 1 << 63:
            raise RequestError(f"WRITE of {size} bytes at {offset} brings {held}")
        buffers = (payload[start:end],) if data is None else data
        written = fs.write(ctx, nodeid, fh, offset, buffers, write_flags, flags)
        if isinstance(written, Later):
            _begin_write(written, channel, ctx.unique, encode)
            return None
        return encode(channel.body, written)

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
        raise failure(errno.ERANGE)
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
