"""Access lists as the kernel has them in system.posix_acl_* (include/uapi/linux/posix_acl_xattr.h), version 2."""

import errno
from collections.abc import Callable
from struct import Struct

from ...filesystem import failure

NAMES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_VERSION = (2).to_bytes(4, "little")
_USER, _GROUP = 0x02, 0x08
_entry = Struct("<HHI")  # e_tag, e_perm, e_id


def translated(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The same list with its users and groups translated. EINVAL for what is no access list."""
    if value[:4] != _VERSION or (len(value) - 4) % _entry.size:
        raise failure(errno.EINVAL)
    found = bytearray(_VERSION)
    for tag, permissions, number in _entry.iter_unpack(value[4:]):
        if tag == _USER:
            number = uid(number)
        elif tag == _GROUP:
            number = gid(number)
        found += _entry.pack(tag, permissions, number)
    return bytes(found)
