"""Before a source that takes only multiples of its alignment: the rest of a block is read, and for a write put back.

Writes of whole blocks go side by side; one that is not is alone, or two that share a block would undo each other.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...filesystem import failure
from ...protocol.values import Answer, Buffers, FileRange, Fill, Later
from .source import BlockSource, Extent


class Gate:
    """Many together, or one alone; who waits to be alone lets no others in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    def enter(self) -> None:
        """Join those who share."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._inside += 1

    def leave(self) -> None:
        """From any thread."""
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Together with others who share."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """When nobody else is inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class Aligned(BlockSource):
    """The same bytes without the constraint."""

    def __init__(self, source: BlockSource) -> None:
        self._source = source
        self._unit = source.alignment
        self._gate = Gate()
        self.alignment = source.alignment  # what is told to others: it is quicker so
        self.optimal = source.optimal
        self.writable = source.writable
        self.resizable = source.resizable

    @property
    def size(self) -> int:
        """The source's."""
        return self._source.size

    def _fits(self, *numbers: int) -> bool:
        return not any(number % self._unit for number in numbers)

    def read(self, offset: int, size: int) -> FileRange | Fill | Later:
        """As it is where it fits."""
        if self._fits(offset, size):
            return self._source.read(offset, size)
        return Fill(lambda buffer: self.read_into(offset, buffer), size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Whole blocks, and of them what was asked for."""
        if self._fits(offset, len(buffer)):
            return self._source.read_into(offset, buffer)
        first, end = self._around(offset, len(buffer))
        room = memoryview(bytearray(end - first))
        count = max(0, min(self._source.read_into(first, room) - (offset - first), len(buffer)))
        buffer[:count] = room[offset - first : offset - first + count]
        return count

    def _around(self, offset: int, size: int) -> tuple[int, int]:
        return offset // self._unit * self._unit, -(-(offset + size) // self._unit) * self._unit

    def write(self, offset: int, data: Buffers) -> int | Later:
        """As it is where it fits; others who would be alone wait until it is answered."""
        if not self._fits(offset, *map(len, data)):
            return self.write_from(offset, data)
        self._gate.enter()
        try:
            found = self._source.write(offset, data)
        except BaseException:
            self._gate.leave()
            raise
        if isinstance(found, int):
            self._gate.leave()
            return found
        return Later(self._leaving(found.begin))

    def _leaving(self, begin: Callable[[memoryview, Answer], None]) -> Callable[[memoryview, Answer], None]:
        def start(room: memoryview, answer: Answer) -> None:
            def answered(result: int) -> None:
                self._gate.leave()
                answer(result)

            begin(room, answered)

        return start

    def write_from(self, offset: int, data: Buffers) -> int:
        """The blocks around are read, changed and written."""
        if self._fits(offset, *map(len, data)):
            with self._gate.shared():
                return self._source.write_from(offset, data)
        payload = b"".join(data)
        first, end = self._around(offset, len(payload))
        room = memoryview(bytearray(end - first))
        with self._gate.alone():
            if self._source.read_into(first, room) < len(room):
                raise failure(errno.EIO)
            room[offset - first : offset - first + len(payload)] = payload
            written = self._source.write_from(first, (room,))
        return max(0, min(written - (offset - first), len(payload)))

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Whole blocks by the source, the edges by writing."""
        first, last = -(-offset // self._unit) * self._unit, (offset + length) // self._unit * self._unit
        if first >= last:
            self._write_zeros(offset, offset + length)
            return
        self._write_zeros(offset, first)
        with self._gate.shared():
            self._source.zero(first, last - first, unmap=unmap)
        self._write_zeros(last, offset + length)

    def _write_zeros(self, offset: int, end: int) -> None:
        if offset < end:
            self.write_from(offset, (memoryview(bytes(end - offset)),))

    def flush(self) -> None:
        """The source's."""
        self._source.flush()

    def finish(self) -> None:
        """The source's."""
        self._source.finish()

    def status(self, offset: int, length: int) -> Extent:
        """Of the blocks around."""
        first, end = self._around(offset, length)
        found = self._source.status(first, end - first)
        return Extent(max(1, min(found.length - (offset - first), length)), found.data)

    def allocated(self) -> int:
        """The source's."""
        return self._source.allocated()

    def resize(self, size: int) -> None:
        """The source's."""
        self._source.resize(size)

    def park(self) -> None:
        """Of what is behind."""
        self._source.park()

    def close(self) -> None:
        """The source goes."""
        self._source.close()
