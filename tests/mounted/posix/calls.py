"""System calls that Python lacks, for the tests alone: they share no code with what they test."""

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint, c_void_p
from pathlib import Path
from typing import NamedTuple

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NODUMP_FL, FS_NOATIME_FL = 0x20, 0x10, 0x40, 0x80
STATX_BTIME = 0x800
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_FOLLOW = 0x400

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (c_int, c_char_p, c_int, c_char_p, c_uint)
_libc.fallocate.argtypes = (c_int, c_int, c_long, c_long)
_libc.linkat.argtypes = (c_int, c_char_p, c_int, c_char_p, c_int)
_libc.utimensat.argtypes = (c_int, c_char_p, c_char_p, c_int)
_libc.futimens.argtypes = (c_int, c_char_p)
_libc.statx.argtypes = (c_int, c_char_p, c_int, c_uint, c_void_p)
_libc.getxattr.argtypes = (c_char_p, c_char_p, c_void_p, c_size_t)
_libc.getxattr.restype = c_ssize_t
_libc.listxattr.argtypes = (c_char_p, c_void_p, c_size_t)
_libc.listxattr.restype = c_ssize_t
_libc.syncfs.argtypes = (c_int,)
_libc.getdents64.argtypes = (c_int, c_void_p, c_size_t)
_libc.getdents64.restype = c_ssize_t
_libc.opendir.argtypes = (c_char_p,)
_libc.opendir.restype = c_void_p
for _name in ("readdir64", "telldir", "closedir", "rewinddir"):
    getattr(_libc, _name).argtypes = (c_void_p,)
_libc.readdir64.restype = c_void_p
_libc.telldir.restype = c_long
_libc.seekdir.argtypes = (c_void_p, c_long)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, offset, length))


def link_descriptor(fd: int, new: Path) -> None:
    """Give a name to what fd is open on, through /proc, as open(2) describes for O_TMPFILE."""
    _check(_libc.linkat(_AT_FDCWD, b"/proc/self/fd/%d" % fd, _AT_FDCWD, os.fsencode(new), _AT_SYMLINK_FOLLOW))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """Times are (seconds, ns); ns also UTIME_NOW or UTIME_OMIT."""
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    _check(_libc.utimensat(_AT_FDCWD, os.fsencode(path), struct.pack("=qqqq", *atime, *mtime), flags))


def futimens(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    _check(_libc.futimens(fd, struct.pack("=qqqq", *atime, *mtime)))


def birth(path: Path) -> tuple[int, int] | None:
    """The time of birth as (seconds, ns), None where it is not told."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, STATX_BTIME, buffer))
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, ns = struct.unpack_from("=qI", buffer, 80)
    return (seconds, ns) if mask & STATX_BTIME else None


def getxattr_size(path: Path, name: str, size: int) -> int:
    """The raw call with a buffer of this size: what it returns."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _check(_libc.getxattr(os.fsencode(path), os.fsencode(name), buffer, size))


def listxattr_size(path: Path, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _check(_libc.listxattr(os.fsencode(path), buffer, size))


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def getdents(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    length = _check(_libc.getdents64(fd, buffer, size))
    return buffer.raw[:length]


def get_flags(fd: int) -> int:
    """The inode's flags, as lsattr reads them."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, buffer)
    return struct.unpack("=I", buffer[:4])[0]  # type: ignore[no-any-return]


def set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, bytearray(struct.pack("=Q", flags)))


class DirectoryEntry(NamedTuple):
    """What readdir(3) tells."""

    name: bytes
    ino: int
    kind: int


class DirectoryStream:
    """opendir(3) and its family."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _check(-1)

    def read(self) -> DirectoryEntry | None:
        address = _libc.readdir64(self._stream)
        if not address:
            return None
        ino, _, _, kind = struct.unpack("=QqHB", ctypes.string_at(address, 19))
        return DirectoryEntry(ctypes.string_at(address + 19), ino, kind)

    def rest(self) -> list[DirectoryEntry]:
        """All that is still to come."""
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@contextlib.contextmanager
def directory_stream(path: Path) -> Iterator[DirectoryStream]:
    stream = DirectoryStream(path)
    try:
        yield stream
    finally:
        stream.close()


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDWR, mode: int = 0o666, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor that is closed with the block."""
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
