"""Values to bytes: the bodies of replies, packed into a buffer that the transport owns.

Rules of this file: no I/O, no policy. Each put_ function packs at the buffer's start and returns the length in bytes;
the transport puts fuse_out_header in front. A value that does not fit its field is the FileSystem's mistake and raises.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .operations import Operation, Out
from .structs import (
    FUSE_ATTR_OUT,
    FUSE_BMAP_OUT,
    FUSE_COPY_FILE_RANGE_OUT,
    FUSE_ENTRY_OUT,
    FUSE_GETXATTR_OUT,
    FUSE_IOCTL_OUT,
    FUSE_LK_OUT,
    FUSE_LSEEK_OUT,
    FUSE_OPEN_OUT,
    FUSE_OUT_HEADER,
    FUSE_POLL_OUT,
    FUSE_STATFS_OUT,
    FUSE_STATX_OUT,
    FUSE_WRITE_OUT,
    Layout,
)
from .values import NS_PER_S, Attr, Entry, FileLock, IoctlReply, Opened, StatFs, Statx

Encoder = Callable[[memoryview, Any], int]

put_header = FUSE_OUT_HEADER.struct.pack_into
"""put_header(buffer, 0, length, error, unique): length counts the header; error is 0 or -errno."""

_pack_entry = FUSE_ENTRY_OUT.struct.pack_into
_pack_attr = FUSE_ATTR_OUT.struct.pack_into
_pack_open = FUSE_OPEN_OUT.struct.pack_into
_ENTRY_SIZE = FUSE_ENTRY_OUT.size
_NO_ATTR = (0,) * 16


def put_nothing(body: memoryview, result: None) -> int:
    """An empty body: success needs no words."""
    return 0


def put_entry(body: memoryview, entry: Entry, at: int = 0) -> int:
    """fuse_entry_out, also for a negative entry (nodeid 0)."""
    nodeid, attr, entry_ns, attr_ns, generation = entry
    entry_s, entry_nsec = divmod(entry_ns, NS_PER_S)
    attr_s, attr_nsec = divmod(attr_ns, NS_PER_S)
    _pack_entry(body, at, nodeid, generation, entry_s, attr_s, entry_nsec, attr_nsec, *(attr if nodeid else _NO_ATTR))
    return _ENTRY_SIZE


def put_attr(body: memoryview, result: tuple[Attr, int]) -> int:
    """fuse_attr_out of (attributes, timeout in ns)."""
    attr, timeout_ns = result
    seconds, nsec = divmod(timeout_ns, NS_PER_S)
    _pack_attr(body, 0, seconds, nsec, *attr)
    return FUSE_ATTR_OUT.size


def put_statx(body: memoryview, result: tuple[Statx, int]) -> int:
    """fuse_statx_out of (statx, timeout in ns)."""
    statx, timeout_ns = result
    seconds, nsec = divmod(timeout_ns, NS_PER_S)
    FUSE_STATX_OUT.struct.pack_into(body, 0, seconds, nsec, 0, *statx)
    return FUSE_STATX_OUT.size


def put_open(body: memoryview, opened: Opened) -> int:
    """fuse_open_out."""
    _pack_open(body, 0, *opened)
    return FUSE_OPEN_OUT.size


def put_entry_open(body: memoryview, result: tuple[Entry, Opened]) -> int:
    """CREATE and TMPFILE: fuse_entry_out, then fuse_open_out."""
    entry, opened = result
    size = put_entry(body, entry)
    _pack_open(body, size, *opened)
    return size + FUSE_OPEN_OUT.size


def put_text(body: memoryview, data: bytes) -> int:
    """Bytes as they are."""
    size = len(data)
    body[:size] = data
    return size


def put_xattr(body: memoryview, value: bytes, size: int) -> int:
    """An attribute's value, or its length alone where the caller asked with size 0.

    -ERANGE is the caller's business: this returns -1 where the value is larger than the caller's buffer.
    """
    if size == 0:
        FUSE_GETXATTR_OUT.struct.pack_into(body, 0, len(value))
        return FUSE_GETXATTR_OUT.size
    if len(value) > size:
        return -1
    return put_text(body, value)


def put_ioctl(body: memoryview, reply: IoctlReply, out_size: int) -> int:
    """fuse_ioctl_out and the caller's bytes, which may not be more than the caller takes."""
    if len(reply.data) > out_size:
        raise ValueError(f"an ioctl's caller takes {out_size} bytes, not {len(reply.data)}")
    FUSE_IOCTL_OUT.struct.pack_into(body, 0, reply.result, 0, 0, 0)
    end = FUSE_IOCTL_OUT.size + len(reply.data)
    body[FUSE_IOCTL_OUT.size : end] = reply.data
    return end


def put_statfs(body: memoryview, stat: StatFs) -> int:
    """fuse_statfs_out."""
    FUSE_STATFS_OUT.struct.pack_into(body, 0, *stat)
    return FUSE_STATFS_OUT.size


def put_lock(body: memoryview, lock: FileLock) -> int:
    """fuse_lk_out."""
    FUSE_LK_OUT.struct.pack_into(body, 0, *lock)
    return FUSE_LK_OUT.size


def join_names(names: Sequence[bytes]) -> bytes:
    """LISTXATTR's form: each name ended by a NUL."""
    return b"".join(name + b"\0" for name in names)


def _number(layout: Layout) -> Encoder:
    pack, size = layout.struct.pack_into, layout.size

    def put(body: memoryview, value: int) -> int:
        pack(body, 0, value)
        return size

    return put


_ENCODERS: dict[Out, Encoder] = {
    Out.NOTHING: put_nothing,
    Out.ENTRY: put_entry,
    Out.ATTR: put_attr,
    Out.STATX: put_statx,
    Out.OPEN: put_open,
    Out.ENTRY_OPEN: put_entry_open,
    Out.TEXT: put_text,
    Out.SIZE: _number(FUSE_WRITE_OUT),
    Out.SIZE64: _number(FUSE_COPY_FILE_RANGE_OUT),
    Out.STATFS: put_statfs,
    Out.LOCK: put_lock,
    Out.OFFSET: _number(FUSE_LSEEK_OUT),
    Out.BLOCK: _number(FUSE_BMAP_OUT),
    Out.REVENTS: _number(FUSE_POLL_OUT),
}


def encoder(operation: Operation) -> Encoder:
    """How this operation's result is written. KeyError for the few that need more than the result (READ, XATTR …)."""
    return _ENCODERS[operation.out]
