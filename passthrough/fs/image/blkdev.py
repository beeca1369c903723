"""ioctls of block devices (include/uapi/linux/fs.h), which fcntl has no names for. Sizes in bytes."""

import fcntl
import struct

BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
BLKIOOPT = 0x1279
BLKGETSIZE64 = 0x80081272
BLKZEROOUT = 0x127F
IOCTLS = (BLKSSZGET, BLKPBSZGET, BLKIOOPT, BLKGETSIZE64, BLKZEROOUT)
"""All that are made here."""


def size(fd: int) -> int:
    """How long the device is."""
    return int.from_bytes(fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)), "little")


def sector_size(fd: int) -> int:
    """The logical sector: the unit of direct I/O."""
    return _number(fd, BLKSSZGET)


def optimal_size(fd: int) -> int:
    """The physical sector, or what the device likes to be asked for."""
    return max(_number(fd, BLKPBSZGET), _number(fd, BLKIOOPT))


def _number(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), "little")


def zero_out(fd: int, offset: int, length: int) -> None:
    """Zeros that stay allocated where the device can tell; whole sectors. The kernel drops its cached pages first."""
    fcntl.ioctl(fd, BLKZEROOUT, struct.pack("=QQ", offset, length))
