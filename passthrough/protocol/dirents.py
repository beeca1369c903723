"""Directory entries: fuse_dirent and fuse_direntplus, packed one after the other until the reply is full.

Rules of this file: no I/O, no policy. Every record is padded to 8 bytes, as FUSE_DIRENT_ALIGN has it.
"""

from collections.abc import Iterable

from .constants import FUSE_ROOT_ID
from .replies import put_entry
from .structs import FUSE_DIRENT, FUSE_ENTRY_OUT
from .values import Attr, Dirent, Entry

_pack_dirent = FUSE_DIRENT.struct.pack_into
_DIRENT = FUSE_DIRENT.size
_ENTRY = FUSE_ENTRY_OUT.size
_PADDING = bytes(8)
_NO_ENTRY = bytes(_ENTRY)


def dirent_size(namelen: int) -> int:
    """Bytes of one fuse_dirent with its name and padding."""
    return (_DIRENT + namelen + 7) & ~7


def put_dirents(body: memoryview, size: int, dirents: Iterable[Dirent]) -> int:
    """As many entries as fit `size` bytes; those left over are asked for again by their offset."""
    size = min(size, len(body))
    position = 0
    for name, ino, off, kind in dirents:
        namelen = len(name)
        end = position + ((_DIRENT + namelen + 7) & ~7)
        if end > size:
            break
        _pack_dirent(body, position, ino, off, namelen, kind)
        position += _DIRENT
        body[position:end] = name + _PADDING[: end - position - namelen]
        position = end
    return position


def put_dirents_plus(
    body: memoryview, size: int, entries: Iterable[tuple[Dirent, Entry | None]]
) -> tuple[int, Entry | None]:
    """As many entries as fit, each with what a lookup gives; None stands for an entry without one (`.`, a failed one).

    Returns the length and, where an entry did not fit, that entry: its lookup must be given back.
    """
    size = min(size, len(body))
    position = 0
    try:
        for (name, ino, off, kind), entry in entries:
            namelen = len(name)
            end = position + ((_ENTRY + _DIRENT + namelen + 7) & ~7)
            if end > size:
                return position, entry
            if entry is None:
                body[position : position + _ENTRY] = _NO_ENTRY
            else:
                put_entry(body, entry, position)
            position += _ENTRY
            _pack_dirent(body, position, ino, off, namelen, kind)
            position += _DIRENT
            body[position:end] = name + _PADDING[: end - position - namelen]
            position = end
    except OSError:
        if position == 0:
            raise
        # The entries packed so far have been looked up: they go out, and the next request meets the error.
    return position, None


def read_dirents(data: bytes) -> list[Dirent]:
    """The entries in a READDIR reply (for tests and for peers of ours)."""
    found = []
    position = 0
    while position < len(data):
        ino, off, namelen, kind = FUSE_DIRENT.struct.unpack_from(data, position)
        start = position + _DIRENT
        found.append(Dirent(data[start : start + namelen], ino, off, kind))
        position += dirent_size(namelen)
    return found


def read_dirents_plus(data: bytes) -> list[tuple[Dirent, Entry | None]]:
    """The entries in a READDIRPLUS reply (for tests and for peers of ours)."""
    found: list[tuple[Dirent, Entry | None]] = []
    position = 0
    while position < len(data):
        values = FUSE_ENTRY_OUT.struct.unpack_from(data, position)
        nodeid, generation, entry_s, attr_s, entry_nsec, attr_nsec = values[:6]
        entry = Entry(
            nodeid, Attr._make(values[6:]), entry_s * 10**9 + entry_nsec, attr_s * 10**9 + attr_nsec, generation
        )
        ino, off, namelen, kind = FUSE_DIRENT.struct.unpack_from(data, position + _ENTRY)
        start = position + _ENTRY + _DIRENT
        plus = entry if nodeid >= FUSE_ROOT_ID else None
        found.append((Dirent(data[start : start + namelen], ino, off, kind), plus))
        position += (_ENTRY + _DIRENT + namelen + 7) & ~7
    return found
