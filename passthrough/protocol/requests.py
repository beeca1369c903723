"""Bytes to values: the header, names, data and extensions of requests. Every length is checked here.

Rules of this file: no I/O, no policy. A request comes in two pieces, which may lie in one buffer: `args`, the opcode's
fixed struct, and the payload (names, data, extensions) at payload[start:end]. What does not fit raises RequestError
(that request is answered EINVAL) or StreamError (the queue halts).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .constants import FUSE_EXT_GROUPS, FUSE_MAX_NR_SECCTX, IN_HEADER_SIZE
from .errors import RequestError, StreamError
from .operations import Operation
from .structs import FUSE_EXT_HEADER, FUSE_FORGET_ONE, FUSE_IN_HEADER, FUSE_SECCTX, FUSE_SUPP_GROUPS, Layout

Arguments = tuple[Any, ...]
Decoder = Callable[[memoryview, int, memoryview, int, int], Arguments]
"""(args, offset of the struct, payload, start, end) to the arguments of a method: names first, then the values."""

Labels = tuple[tuple[bytes, bytes], ...]
"""Security labels: the name of the attribute and its value, each."""

MAX_SUPPLEMENTARY_GROUPS = 32
_XATTR_NAME_MAX = 255


class Header(NamedTuple):
    """fuse_in_header. len counts the whole request in bytes; total_extlen counts extensions in units of 8 bytes."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int


_unpack_header = FUSE_IN_HEADER.struct.unpack_from
_new_tuple = tuple.__new__  # half the cost of Header._make, which is Python


def read_header(buffer: memoryview, received: int) -> Header:
    """The header of a request of which `received` bytes came. StreamError where the lengths disagree."""
    if received < IN_HEADER_SIZE:
        raise StreamError(f"a request of {received} bytes, shorter than its header of {IN_HEADER_SIZE}")
    header = _new_tuple(Header, _unpack_header(buffer))
    if header.len != received:
        raise StreamError(f"request {header.unique} says {header.len} bytes, {received} came")
    return header


def read_names(payload: memoryview, start: int, end: int, count: int) -> tuple[bytes, ...]:
    """Exactly `count` names, each ended by a NUL, filling payload[start:end]."""
    raw = bytes(payload[start:end])
    names = raw.split(b"\0")
    if len(names) != count + 1 or names[-1]:
        raise RequestError(f"{count} names were due in {len(raw)} bytes")
    return tuple(names[:-1])


def decoder(operation: Operation, layout: Layout | None = None) -> Decoder:
    """How this operation's names and values are read; `layout` replaces the row's struct (SETXATTR without EXT).

    For an operation with data, its names end at the first NULs and the data follows: see split_name.
    """
    layout = layout or operation.struct
    count = operation.names
    if layout is None:
        if count == 0:
            return lambda args, at, payload, start, end: ()
        if count == 1:
            return lambda args, at, payload, start, end: (read_name(payload, start, end),)
        return lambda args, at, payload, start, end: read_names(payload, start, end, count)
    unpack = layout.struct.unpack_from
    if count == 0:
        return lambda args, at, payload, start, end: unpack(args, at)
    return lambda args, at, payload, start, end: read_names(payload, start, end, count) + unpack(args, at)


def read_name(payload: memoryview, start: int, end: int) -> bytes:
    """Exactly one name, ended by a NUL and filling payload[start:end]: the commonest shape, without a list."""
    raw = bytes(payload[start:end])
    if raw.find(0) != len(raw) - 1 or not raw:
        raise RequestError(f"a name was due in {len(raw)} bytes")
    return raw[:-1]


def split_name(payload: memoryview, start: int, end: int, limit: int = 4096) -> tuple[bytes, int]:
    """(the name at the start, the offset of what follows its NUL): SETXATTR's name before its value."""
    raw = bytes(payload[start : min(end, start + limit)])
    length = raw.find(0)
    if length < 0:
        raise RequestError("a name without its NUL")
    return raw[:length], start + length + 1


def read_forgets(payload: memoryview, start: int, end: int, count: int) -> list[tuple[int, int]]:
    """(nodeid, nlookup) pairs of BATCH_FORGET. RequestError where `count` is not what the payload holds."""
    if count * FUSE_FORGET_ONE.size != end - start:
        raise RequestError(f"BATCH_FORGET counts {count} in {end - start} bytes")
    return list(FUSE_FORGET_ONE.struct.iter_unpack(payload[start:end]))


def read_extensions(payload: memoryview, start: int, end: int) -> tuple[tuple[int, ...] | None, Labels]:
    """(the supplementary groups among a request's extensions, or None where it brings none (Linux 6.3, 7.38); the
    security labels for what it creates (Linux 5.17, 7.36)).

    Extensions are a chain of fuse_ext_header; in the place of its type, fuse_secctx_header has the number of security
    contexts, which is at most FUSE_MAX_NR_SECCTX, and 0 where no security module is at work.
    """
    groups: tuple[int, ...] | None = None
    labels: Labels | None = None
    position = start
    while position < end:
        if end - position < FUSE_EXT_HEADER.size:
            raise RequestError("an extension shorter than its header")
        size, kind = FUSE_EXT_HEADER.struct.unpack_from(payload, position)
        if size < FUSE_EXT_HEADER.size or size > end - position:
            raise RequestError(f"an extension of {size} bytes where {end - position} are left")
        if kind == FUSE_EXT_GROUPS:
            groups = _groups(payload, position + FUSE_EXT_HEADER.size, position + size)
        elif kind > FUSE_MAX_NR_SECCTX:
            raise RequestError(f"an extension of unknown type {kind}")
        elif labels is not None:
            raise RequestError("two extensions with security labels")
        else:
            labels = _labels(payload, position + FUSE_EXT_HEADER.size, position + size, kind)
        position += size
    return groups, labels or ()


def _labels(payload: memoryview, start: int, end: int, count: int) -> Labels:
    """Security contexts: fuse_secctx (the value's size), the name with its NUL, the value, padded to 8 bytes each."""
    found: list[tuple[bytes, bytes]] = []
    for _ in range(count):
        if end - start < FUSE_SECCTX.size:
            raise RequestError(f"{count} security labels were due, {len(found)} came")
        (size,) = FUSE_SECCTX.struct.unpack_from(payload, start)
        name, at = split_name(payload, start + FUSE_SECCTX.size, end)
        if not 0 < len(name) <= _XATTR_NAME_MAX or size > end - at:
            raise RequestError(f"a security label of {size} bytes, with a name of {len(name)}, in {end - start} bytes")
        found.append((name, bytes(payload[at : at + size])))
        start += (at + size - start + 7) & ~7
    if end > start:
        raise RequestError(f"{end - start} bytes follow the security labels")
    return tuple(found)


def _groups(payload: memoryview, start: int, end: int) -> tuple[int, ...]:
    if end - start < FUSE_SUPP_GROUPS.size:
        raise RequestError("a group extension without its count")
    (count,) = FUSE_SUPP_GROUPS.struct.unpack_from(payload, start)
    start += FUSE_SUPP_GROUPS.size
    if count > MAX_SUPPLEMENTARY_GROUPS or count * 4 > end - start:
        raise RequestError(f"{count} groups in {end - start} bytes")
    return tuple(payload[start : start + count * 4].cast("I"))
