"""A part of an image, from an offset for a length: a partition, or what --offset and --size say."""

from ...protocol.values import Buffers, FileRange, Fill, Later
from .source import BlockSource, Extent, count_data


class Window(BlockSource):
    """`length` bytes of another source from `start` on. It never gets longer, and shorter only with the source."""

    def __init__(self, source: BlockSource, start: int, length: int) -> None:
        self._source = source
        self._start = start
        self._length = length
        self.alignment = source.alignment
        self.optimal = source.optimal
        self.writable = source.writable

    @property
    def size(self) -> int:
        """The window's, or what the source has left of it."""
        return max(0, min(self._length, self._source.size - self._start))

    def read(self, offset: int, size: int) -> FileRange | Fill | Later:
        """Further on in the source."""
        return self._source.read(self._start + offset, size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Further on in the source."""
        return self._source.read_into(self._start + offset, buffer)

    def write(self, offset: int, data: Buffers) -> int | Later:
        """Further on in the source."""
        return self._source.write(self._start + offset, data)

    def write_from(self, offset: int, data: Buffers) -> int:
        """Further on in the source."""
        return self._source.write_from(self._start + offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Further on in the source."""
        self._source.zero(self._start + offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Further on in the source."""
        self._source.discard(self._start + offset, length)

    def flush(self) -> None:
        """All of the source."""
        self._source.flush()

    def finish(self) -> None:
        """The source's."""
        self._source.finish()

    def status(self, offset: int, length: int) -> Extent:
        """Further on in the source."""
        return self._source.status(self._start + offset, length)

    def allocated(self) -> int:
        """What the window's data takes, as far as the source can tell it."""
        return count_data(self)

    def park(self) -> None:
        """Of what is behind."""
        self._source.park()

    def close(self) -> None:
        """The source goes."""
        self._source.close()
