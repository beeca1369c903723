"""Where an inode's virtual owner, mode and device number are kept, in the form of QEMU's 9p (hw/9pfs/9p-local.c).

user.virtfs.uid, .gid and .mode are 32 bits, little-endian; .mode is st_mode with the file type. user.virtfs.rdev is 64
bits, little-endian, a dev_t as makedev(3) makes it. user.virtfs.system.posix_acl_access and _default are access lists
as the kernel has them. What is not there, or has another length, is the real file's.
"""

import errno
import os
import stat
from struct import Struct
from typing import NamedTuple

RESERVED = b"user.virtfs."
"""Names that begin so are ours: clients neither see nor touch them."""

_UID, _GID, _MODE, _RDEV = (RESERVED + name for name in (b"uid", b"gid", b"mode", b"rdev"))
_le32, _le64 = Struct("<I"), Struct("<Q")
_NONE_THERE = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EACCES, errno.EPERM})
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_IN_A_FILE = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})


class Virtual(NamedTuple):
    """What clients see: st_mode, owner, and (major, minor) of a device."""

    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int] = (0, 0)


def _number(path: str, name: bytes, form: Struct) -> int | None:
    try:
        value = os.getxattr(path, name)
    except OSError as error:
        if error.errno in _NONE_THERE:
            return None
        raise
    return form.unpack(value)[0] if len(value) == form.size else None


def read(path: str, real: Virtual) -> Virtual:
    """What is kept of the file at path (that of a descriptor below /proc), else what it really has.

    A directory stays one, and what is stored as a file never becomes one; real symlinks and special files, which can
    have no user xattrs, are what they are.
    """
    kind = stat.S_IFMT(real.mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        return real
    mode, uid, gid = (_number(path, name, _le32) for name in (_MODE, _UID, _GID))
    if mode is not None and kind == stat.S_IFREG and stat.S_IFMT(mode) in _IN_A_FILE:
        kind = stat.S_IFMT(mode)
    rdev = _number(path, _RDEV, _le64) if kind in _DEVICES else None
    return Virtual(
        real.mode if mode is None else kind | stat.S_IMODE(mode),
        real.uid if uid is None else uid,
        real.gid if gid is None else gid,
        (0, 0) if rdev is None else (os.major(rdev), os.minor(rdev)),
    )


def write(
    where: int | str,
    *,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    rdev: int | None = None,
) -> None:
    """Keep these of the file at a descriptor or path; rdev as makedev(3) makes it. OSError as setxattr(2) has it."""
    for name, form, number in ((_UID, _le32, uid), (_GID, _le32, gid), (_MODE, _le32, mode), (_RDEV, _le64, rdev)):
        if number is not None:
            os.setxattr(where, name, form.pack(number))


def read_list(path: str, name: bytes) -> bytes | None:
    """The access list that is kept by this name (system.posix_acl_*), or None."""
    try:
        return os.getxattr(path, RESERVED + name)
    except OSError as error:
        if error.errno in _NONE_THERE:
            return None
        raise


def write_list(where: int | str, name: bytes, value: bytes | None) -> None:
    """Keep it; with None, none is kept any more."""
    if value is not None:
        os.setxattr(where, RESERVED + name, value)
        return
    try:
        os.removexattr(where, RESERVED + name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def can_hold(fd: int) -> bool:
    """Whether the file system that fd (O_PATH will do) is on has user xattrs."""
    try:
        os.getxattr(f"/proc/self/fd/{fd}", _MODE)
    except OSError as error:
        return error.errno != errno.ENOTSUP
    return True
