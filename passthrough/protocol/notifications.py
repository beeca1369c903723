"""Messages that nobody asked for: what a daemon may tell the kernel (fuse_out_header with unique 0 and a code).

Rules of this file: bytes out, no I/O. Each function returns the whole message. The kernel answers a write of one with
ENOENT where it does not know the node, EINVAL where it is too old for the code; neither is an error of the daemon's.
"""

import struct
from collections.abc import Sequence

from . import structs as s
from .constants import (
    FUSE_EXPIRE_ONLY,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INC_EPOCH,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_RESEND,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    OUT_HEADER_SIZE,
)


def message(code: int, body: bytes = b"") -> bytes:
    """The frame around a notification's body."""
    return s.FUSE_OUT_HEADER.struct.pack(OUT_HEADER_SIZE + len(body), code, 0) + body


def inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """Forget the attributes of a node, and its cached data from offset for length bytes.

    length 0 means to the end of the file; a negative offset means the attributes alone (7.12, Linux 2.6.31).
    """
    return message(FUSE_NOTIFY_INVAL_INODE, s.FUSE_NOTIFY_INVAL_INODE_OUT.struct.pack(nodeid, offset, length))


def inval_entry(parent: int, name: bytes) -> bytes:
    """Forget a name, whether it was there or not (7.12). Do not send it from within a request on that directory."""
    return _entry(parent, name, 0)


def expire_entry(parent: int, name: bytes) -> bytes:
    """Let a name be looked up again at its next use, keeping what hangs on it (7.38, Linux 6.2)."""
    return _entry(parent, name, FUSE_EXPIRE_ONLY)


def _entry(parent: int, name: bytes, flags: int) -> bytes:
    body = s.FUSE_NOTIFY_INVAL_ENTRY_OUT.struct.pack(parent, len(name), flags) + name + b"\0"
    return message(FUSE_NOTIFY_INVAL_ENTRY, body)


def delete(parent: int, child: int, name: bytes) -> bytes:
    """A name is gone: like inval_entry, and inotify watchers are told, if it still is that child (7.18, Linux 3.3)."""
    body = s.FUSE_NOTIFY_DELETE_OUT.struct.pack(parent, child, len(name)) + name + b"\0"
    return message(FUSE_NOTIFY_DELETE, body)


def store(nodeid: int, offset: int, data: bytes) -> bytes:
    """Put data into the page cache of a node (7.15, Linux 2.6.36)."""
    return message(FUSE_NOTIFY_STORE, s.FUSE_NOTIFY_STORE_OUT.struct.pack(nodeid, offset, len(data)) + data)


def retrieve(notify_unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Ask for cached data; it comes as a NOTIFY_REPLY request whose unique is notify_unique (7.15)."""
    body = s.FUSE_NOTIFY_RETRIEVE_OUT.struct.pack(notify_unique, nodeid, offset, size)
    return message(FUSE_NOTIFY_RETRIEVE, body)


def resend() -> bytes:
    """Send again the requests that were read and not answered (7.40, Linux 6.9; needs FUSE_HAS_RESEND)."""
    return message(FUSE_NOTIFY_RESEND)


def inc_epoch() -> bytes:
    """Let every name be looked up again at its next use (7.44, Linux 6.17)."""
    return message(FUSE_NOTIFY_INC_EPOCH)


def prune(nodeids: Sequence[int]) -> bytes:
    """Drop these nodes from the caches where nothing uses them; FORGETs follow (7.45, Linux 6.18)."""
    body = s.FUSE_NOTIFY_PRUNE_OUT.struct.pack(len(nodeids))
    return message(FUSE_NOTIFY_PRUNE, body + struct.pack(f"={len(nodeids)}Q", *nodeids))
