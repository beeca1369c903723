"""What an image is to the export: blocks that can be read, written, zeroed, discarded, flushed and asked about.

Rules: offsets and lengths are in bytes and lie within `size`, which whoever calls has seen to; a source that takes only
multiples of its `alignment` is wrapped (aligned.py). Failure is an OSError. Methods are called from several threads.
"""

import errno
from enum import Enum
from functools import partial
from typing import NamedTuple

from ...filesystem import failure
from ...protocol.values import Buffers, FileRange, Fill, Later


class CacheMode(Enum):
    """How an image's data is cached where it lies, in QEMU's words.

    WRITEBACK: the host's page cache, and an fsync makes it safe. NONE: past the page cache (O_DIRECT). WRITETHROUGH: a
    write is answered when it is safe. DIRECTSYNC: both. UNSAFE: as WRITEBACK, and an fsync does nothing.
    """

    WRITEBACK = "writeback"
    NONE = "none"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def direct(self) -> bool:
        """Past the page cache."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def through(self) -> bool:
        """A write is safe when it is answered."""
        return self in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)


class ImageError(Exception):
    """An image that cannot be exported: one line that names it, what is wrong, and the remedy."""


class Extent(NamedTuple):
    """What a range begins with: `length` bytes that are data, or that read as zeros."""

    length: int
    data: bool


class BlockSource:
    """One image. Subclasses override what they can do; the rest is said to be unsupported.

    alignment: requests begin and end at multiples of it, in bytes. optimal: such requests are quick. descriptor: where
    the image is a regular file, byte for byte, an open descriptor of it that the kernel may read and write (kernel
    passthrough); None elsewhere. writable: whether it may be written. resizable: whether resize() can be asked at all.
    """

    alignment: int = 1
    optimal: int = 4096
    descriptor: int | None = None
    writable: bool = False
    resizable: bool = False

    @property
    def size(self) -> int:
        """The length of the image in bytes, now."""
        raise NotImplementedError

    def read(self, offset: int, size: int) -> FileRange | Fill | Later:
        """Where the bytes are, or who brings them."""
        return Fill(partial(self.read_into, offset), size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer and return how many bytes there were; fewer only where the image has become shorter."""
        raise NotImplementedError

    def write(self, offset: int, data: Buffers) -> int | Later:
        """Write the buffers and return how many bytes went in."""
        return self.write_from(offset, data)

    def write_from(self, offset: int, data: Buffers) -> int:
        """The same, without a Later."""
        raise failure(errno.EROFS)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros; with unmap it may be given back to where the image lies."""
        raise failure(errno.EOPNOTSUPP)

    def discard(self, offset: int, length: int) -> None:
        """The range is not needed any more: it reads as zeros afterwards, so that a punched hole is one."""
        self.zero(offset, length, unmap=True)

    def flush(self) -> None:
        """What was written is safe when this returns."""

    def finish(self) -> None:
        """The last flush, which waits for no server that is gone: its error is then that of what was not safe."""
        self.flush()

    def status(self, offset: int, length: int) -> Extent:
        """What the range begins with. Where nothing is known it is data."""
        return Extent(length, True)

    def allocated(self) -> int:
        """How many bytes the image takes where it lies."""
        return self.size

    def mtime_ns(self) -> int:
        """When the image was last written, where `descriptor` is one; in ns."""
        return 0

    def resize(self, size: int) -> None:
        """A new length; what is added reads as zeros. EOPNOTSUPP where it is fixed."""
        raise failure(errno.EOPNOTSUPP)

    def preallocate(self, offset: int, length: int) -> None:
        """Extend the image, which ends at offset, and have the room for that. EOPNOTSUPP where it is fixed."""
        raise failure(errno.EOPNOTSUPP)

    def park(self) -> None:
        """End threads until the next request; to be called before a fork, when nothing is in flight."""

    def close(self) -> None:
        """No further requests: let go of everything."""


def count_data(source: BlockSource, most: int = 64) -> int:
    """How many bytes of the source are data, by its status; after `most` questions the rest counts as data."""
    found, offset, size = 0, 0, source.size
    for _ in range(most):
        if offset >= size:
            return found
        extent = source.status(offset, size - offset)
        found += extent.length if extent.data else 0
        offset += extent.length
    return found + max(0, size - offset)


def read_all(source: BlockSource, offset: int, size: int) -> bytes:
    """A small piece, as bytes; shorter at the end."""
    size = max(0, min(size, source.size - offset))
    buffer = bytearray(size)
    return bytes(buffer[: source.read_into(offset, memoryview(buffer))])
