"""A raw image in a regular file or on a block device: the bytes are where they are, and the transport fetches them.

With O_DIRECT there are two descriptors: a request that is not aligned goes by the page cache, alone, and is written
out before others go on, since a dirty page around it would overwrite what direct writes put beside it.
"""

import errno
import os
import stat

from ... import syscalls
from ...filesystem import failure
from ...protocol.values import Buffers, FileRange, Fill
from . import blkdev, locking
from .aligned import Gate
from .source import BlockSource, CacheMode, Extent

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 0x01, 0x02, 0x10
_ZEROS = bytes(1 << 20)
_NO_WAY = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL})


def open_raw(path: str, *, writable: bool, cache: CacheMode) -> "RawFile":
    """A regular file or a block device, opened and locked. OSError where it cannot be opened; its errno is the reason.

    ImageError where another program has it.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    flags |= os.O_DSYNC if cache.through else 0
    fd = os.open(path, flags)
    direct = -1
    try:
        locking.claim(fd, path, writable=writable)
        mode = os.fstat(fd).st_mode
        if cache.direct:
            direct = os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT)
        kind = BlockDevice if stat.S_ISBLK(mode) else RawFile
        return kind(fd, direct, writable=writable, cache=cache)
    except BaseException:
        os.close(fd)
        if direct >= 0:
            os.close(direct)
        raise


class RawFile(BlockSource):
    """A regular file."""

    resizable = True

    def __init__(self, fd: int, direct: int, *, writable: bool, cache: CacheMode) -> None:
        """fd is open as it should be; direct is the same with O_DIRECT, or -1. Both are taken over."""
        self._fd = fd
        self._direct = direct
        self._cache = cache
        self.writable = writable
        self.alignment = 1
        self._unit = self._direct_unit() if direct >= 0 else 1
        self._gate = Gate()
        if cache is CacheMode.WRITEBACK:
            self.descriptor = fd

    def _direct_unit(self) -> int:
        """What O_DIRECT asks for at most: a page fits every file system (statx's STATX_DIOALIGN is Linux 6.1)."""
        return 4096

    @property
    def size(self) -> int:
        """As it is now: others may have changed it. The descriptor's position means nothing to anybody."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, size: int) -> FileRange | Fill:
        """One preadv by the transport, unless the request is not aligned for O_DIRECT."""
        if self._direct < 0:
            return FileRange(self._fd, offset, size, self)
        if (offset | size) % self._unit == 0:
            return FileRange(self._direct, offset, size, self)
        return Fill(lambda buffer: os.preadv(self._fd, (buffer,), offset), size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """A short read is the end, or a signal: ask again."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, (buffer[done:],), offset + done)
            if count == 0:
                break
            done += count
        return done

    def write_from(self, offset: int, data: Buffers) -> int:
        """One pwritev; a short one goes on, and an error after some bytes is told by the count alone."""
        total = sum(map(len, data))
        if self._direct < 0:
            return self._write(self._fd, offset, data, total)
        if (offset | total) % self._unit == 0 and all(len(part) % self._unit == 0 for part in data):
            with self._gate.shared():
                return self._write(self._direct, offset, data, total)
        with self._gate.alone():
            written = self._write(self._fd, offset, data, total)
            os.fdatasync(self._fd)
            return written

    @staticmethod
    def _write(fd: int, offset: int, data: Buffers, total: int) -> int:
        written = os.pwritev(fd, data, offset)
        if written == total:
            return written
        rest = memoryview(b"".join(data))
        while written < total:
            try:
                count = os.pwritev(fd, (rest[written:],), offset + written)
            except OSError:
                break
            if count == 0:
                break
            written += count
        return written

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """A hole, or zeros that keep their room; written out where the file system has neither."""
        modes = (FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE) if unmap else (FALLOC_FL_ZERO_RANGE,)
        with self._gate.shared():
            for mode in modes:
                try:
                    syscalls.fallocate(self._fd, mode | FALLOC_FL_KEEP_SIZE, offset, length)
                    break
                except OSError as error:
                    if error.errno not in _NO_WAY:
                        raise
            else:
                self._write_zeros(offset, length)
        self._through()

    def _write_zeros(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            offset += os.pwrite(self._fd, _ZEROS[: end - offset], offset)

    def _through(self) -> None:
        """O_DSYNC is about writes alone."""
        if self._cache.through:
            os.fdatasync(self._fd)

    def flush(self) -> None:
        """To the disk."""
        if self._cache is not CacheMode.UNSAFE and self.writable:
            os.fdatasync(self._fd)

    def status(self, offset: int, length: int) -> Extent:
        """By SEEK_DATA and SEEK_HOLE."""
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return Extent(length, True)
            return Extent(length, False)  # no data from here on
        if data > offset:
            return Extent(min(length, data - offset), False)
        try:
            hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
        except OSError:
            return Extent(length, True)  # it has become shorter since
        return Extent(min(length, max(hole - offset, 1)), True)

    def allocated(self) -> int:
        """What stat(2) says of it."""
        return os.fstat(self._fd).st_blocks * 512

    def mtime_ns(self) -> int:
        """The file's own."""
        return os.fstat(self._fd).st_mtime_ns

    def resize(self, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(self._fd, size)
        self._through()

    def preallocate(self, offset: int, length: int) -> None:
        """fallocate(2), which extends a file; a hole where the file system has no such thing."""
        try:
            syscalls.fallocate(self._fd, 0, offset, length)
        except OSError as error:
            if error.errno not in _NO_WAY:
                raise
            os.ftruncate(self._fd, offset + length)

    def close(self) -> None:
        """The descriptors go."""
        os.close(self._fd)
        if self._direct >= 0:
            os.close(self._direct)


class BlockDevice(RawFile):
    """A disk, partition, loop device or logical volume: its length is fixed, and zeroing is an ioctl."""

    resizable = False

    def __init__(self, fd: int, direct: int, *, writable: bool, cache: CacheMode) -> None:
        super().__init__(fd, direct, writable=writable, cache=cache)
        self.descriptor = None  # the kernel takes regular files alone
        self.optimal = max(4096, blkdev.optimal_size(fd))
        self._sector = blkdev.sector_size(fd)

    def _direct_unit(self) -> int:
        return blkdev.sector_size(self._fd)

    @property
    def size(self) -> int:
        """BLKGETSIZE64: a loop device or a volume may have been resized."""
        return blkdev.size(self._fd)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """fallocate(2) on the device keeps its page cache right (Linux 4.9), BLKZEROOUT would not; the edges that are
        no whole sectors are written."""
        sector = self._sector
        first, last = -(-offset // sector) * sector, (offset + length) // sector * sector
        if first >= last:
            self._write_zeros(offset, length)
        else:
            self._write_zeros(offset, first - offset)
            if unmap:
                super().zero(first, last - first, unmap=True)
            else:
                blkdev.zero_out(self._fd, first, last - first)
            self._write_zeros(last, offset + length - last)
        self._through()

    def discard(self, offset: int, length: int) -> None:
        """BLKDISCARD where the device then reads zeros, which it does not promise: so zeros that may be unmapped."""
        self.zero(offset, length, unmap=True)

    def status(self, offset: int, length: int) -> Extent:
        """A device does not tell."""
        return Extent(length, True)

    def allocated(self) -> int:
        """All of it."""
        return self.size

    def resize(self, size: int) -> None:
        """Its length is not ours to change."""
        if size != self.size:
            raise failure(errno.EOPNOTSUPP)

    def preallocate(self, offset: int, length: int) -> None:
        """As resize()."""
        raise failure(errno.EOPNOTSUPP)
