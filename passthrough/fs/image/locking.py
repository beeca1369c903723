"""The locks that QEMU's programs keep on an image (block/file-posix.c, raw_apply_lock_bytes), as its exports take them.

A byte from 100 on says what its holder does with the image, one from 200 on what it does not bear in others. An export
bears everything, so it only says what it does, and stays away where that is not borne: from the disk of a guest that
runs, say, which then does not start on an image that is being written here either. Where the file system has no locks
there are none, as with QEMU's locking=auto.
"""

import errno
import fcntl
import os
import struct

from .source import ImageError

CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3
_DOES, _BEARS_NOT = 100, 200
_WORDS = {CONSISTENT_READ: "read", WRITE: "written", RESIZE: "resized"}
_flock = struct.Struct("=hhxxxxqqi4x")  # struct flock on 64-bit machines


def claim(fd: int, image: str, *, writable: bool) -> None:
    """Keep the locks for as long as fd's open file lives. ImageError where another program does not bear it."""
    does = (CONSISTENT_READ, WRITE, RESIZE) if writable else (CONSISTENT_READ,)
    try:
        for what in does:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, _DOES + what))
        taken = next((what for what in does if _is_held(fd, _BEARS_NOT + what)), None)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return
        raise ImageError(f"{image}: another program has it for itself: {os.strerror(error.errno)}") from error
    if taken is not None:
        raise ImageError(
            f"{image}: QEMU has it (as a guest's disk, perhaps), and does not bear that it is {_WORDS[taken]} here"
        )


def _lock(kind: int, byte: int) -> bytes:
    return _flock.pack(kind, os.SEEK_SET, byte, 1, 0)


def _is_held(fd: int, byte: int) -> bool:
    """Whether somebody else has a lock on this byte."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
    return bool(_flock.unpack(found)[0] != fcntl.F_UNLCK)
