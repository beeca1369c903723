"""Access lists as the kernel has them in system.posix_acl_* (include/uapi/linux/posix_acl_xattr.h), version 2.

Values are the xattr's; what a list means for a mode is as in fs/posix_acl.c, whose functions are named.
"""

import errno
from collections.abc import Callable, Sequence
from struct import Struct

from ..filesystem import failure

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
NAMES = frozenset({ACCESS, DEFAULT})
_VERSION = (2).to_bytes(4, "little")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ALWAYS = (_USER_OBJ, _GROUP_OBJ, _OTHER)
_entry = Struct("<HHI")  # e_tag, e_perm, e_id

Entries = Sequence[tuple[int, int, int]]
"""(tag, permissions, id) each."""


def _entries(value: bytes) -> Entries:
    """EINVAL for what is no access list."""
    if value[:4] != _VERSION or (len(value) - 4) % _entry.size:
        raise failure(errno.EINVAL)
    return list(_entry.iter_unpack(value[4:]))


def _value(entries: Entries) -> bytes:
    return _VERSION + b"".join(_entry.pack(*entry) for entry in entries)


def _permissions(value: bytes) -> dict[int, int]:
    """The permissions of each tag (of the last one of several). EINVAL where one that must be there is not."""
    entries = _entries(value)
    found = {tag: permissions & 7 for tag, permissions, _ in entries}
    if not all([tag for tag, _, _ in entries].count(wanted) == 1 for wanted in _ALWAYS):
        raise failure(errno.EINVAL)
    if found.keys() - {*_ALWAYS, _USER, _GROUP, _MASK} or (found.keys() & {_USER, _GROUP} and _MASK not in found):
        raise failure(errno.EINVAL)
    return found


def translated(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The same list with its users and groups translated. EINVAL for what is no access list."""
    way = {_USER: uid, _GROUP: gid}
    return _value([(tag, perm, way[tag](owner) if tag in way else owner) for tag, perm, owner in _entries(value)])


def is_empty(value: bytes) -> bool:
    """Whether there is no entry: setting it removes the list."""
    return not _entries(value)


def mode_of(value: bytes) -> tuple[int, bool]:
    """The nine bits that a list comes to, and whether it says more than they do (posix_acl_equiv_mode)."""
    found = _permissions(value)
    group = found.get(_MASK, found[_GROUP_OBJ])
    return found[_USER_OBJ] << 6 | group << 3 | found[_OTHER], bool(found.keys() - set(_ALWAYS))


def with_mode(value: bytes, mode: int) -> bytes:
    """The list after a chmod (posix_acl_chmod)."""
    found = _permissions(value)
    bits = {_USER_OBJ: mode >> 6 & 7, _OTHER: mode & 7, _MASK if _MASK in found else _GROUP_OBJ: mode >> 3 & 7}
    return _value([(tag, bits.get(tag, permissions), owner) for tag, permissions, owner in _entries(value)])


def inherited(value: bytes, mode: int) -> tuple[bytes | None, int]:
    """The access list of a new file below a directory with this default list, if it needs one, and the file's mode
    (posix_acl_create)."""
    bits, extended = mode_of(value)
    mode &= ~0o777 | bits
    return (with_mode(value, mode) if extended else None), mode
