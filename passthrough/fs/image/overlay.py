"""Writes that are thrown away: they go to a file without a name, and the image below is never written.

A block of the overlay is either all there or not at all; a write of a part of a block brings the rest up first. The
file is sparse and as long as the image at most, so it takes the room of what was written, in $TMPDIR or /var/tmp.
"""

import errno
import os
import tempfile
import threading

from ... import syscalls
from ...filesystem import failure
from ...protocol.values import Buffers, FileRange, Fill, Later
from .file import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from .source import BlockSource, Extent, ImageError

BLOCK = 1 << 16
_ABSENT, _DATA, _ZERO = 0, 1, 2


class Overlay(BlockSource):
    """A source over another one. It can grow and shrink; what is added reads as zeros."""

    writable = True
    resizable = True

    def __init__(self, base: BlockSource) -> None:
        self._base = base
        self._base_size = base.size  # what lies below; less after it was cut off
        self._size = base.size
        self.optimal = BLOCK
        directory = os.environ.get("TMPDIR") or "/var/tmp"
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)
        except OSError as error:
            raise ImageError(
                f"{directory}: cannot keep the writes there: {error.strerror}; name another directory: TMPDIR=DIR"
            ) from error
        self._fd = self._file.fileno()
        os.ftruncate(self._fd, self._size)
        self._blocks = bytearray(-(-self._size // BLOCK))
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Its own."""
        return self._size

    def read(self, offset: int, size: int) -> FileRange | Fill | Later:
        """From the overlay's file or from below where it is one of them alone; else pieced together."""
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        kinds = set(self._blocks[first : last + 1])
        if kinds == {_DATA}:
            return FileRange(self._fd, offset, size, self)
        if kinds == {_ABSENT} and offset + size <= self._base_size:
            return self._base.read(offset, size)
        return Fill(lambda buffer: self.read_into(offset, buffer), size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Block after block."""
        done, size = 0, len(buffer)
        while done < size:
            at = offset + done
            count = min(BLOCK - at % BLOCK, size - done)
            part = buffer[done : done + count]
            kind = self._blocks[at // BLOCK] if at // BLOCK < len(self._blocks) else _ZERO
            if kind == _DATA:
                part[:] = os.pread(self._fd, count, at).ljust(count, b"\0")
            elif kind == _ZERO:
                part[:] = bytes(count)
            else:
                self._read_below(at, part)
            done += count
        return size

    def _read_below(self, offset: int, buffer: memoryview) -> None:
        left = max(0, min(len(buffer), self._base_size - offset))
        if left:
            left = self._base.read_into(offset, buffer[:left])
        buffer[left:] = bytes(len(buffer) - left)

    def write_from(self, offset: int, data: Buffers) -> int:
        """Into the file; blocks that are written in part are brought up before. One writer at a time."""
        total = sum(map(len, data))
        with self._lock:
            self._bring_up(offset, total)
            written = 0
            for part in data:
                written += self._write_all(offset + written, part)
            for block in range(offset // BLOCK, (offset + total - 1) // BLOCK + 1):
                self._blocks[block] = _DATA
        return total

    def _bring_up(self, offset: int, total: int) -> None:
        """What of the first and the last block is not written over."""
        for block in {offset // BLOCK, (offset + total - 1) // BLOCK}:
            begin, end = block * BLOCK, min((block + 1) * BLOCK, self._size)
            if self._blocks[block] == _DATA or (offset <= begin and offset + total >= end):
                continue
            room = memoryview(bytearray(end - begin))
            if self._blocks[block] == _ABSENT:
                self._read_below(begin, room)
            self._write_all(begin, room)
            self._blocks[block] = _DATA

    def _write_all(self, offset: int, part: memoryview) -> int:
        done = 0
        while done < len(part):
            done += os.pwrite(self._fd, part[done:], offset + done)
        return done

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Whole blocks are marked; the rest is written."""
        end = offset + length
        first = -(-offset // BLOCK) * BLOCK
        last = end // BLOCK * BLOCK if end < self._size else -(-end // BLOCK) * BLOCK
        if first >= last:
            self._write_zeros(offset, end)
            return
        self._write_zeros(offset, first)
        self._write_zeros(last, end)
        with self._lock:
            for block in range(first // BLOCK, min(last // BLOCK, len(self._blocks))):
                self._blocks[block] = _ZERO
            syscalls.fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, last - first)

    def _write_zeros(self, offset: int, end: int) -> None:
        if offset < end:
            self.write_from(offset, (memoryview(bytes(end - offset)),))

    def status(self, offset: int, length: int) -> Extent:
        """By the marks; of what lies below, what that knows."""
        kind = self._blocks[offset // BLOCK]
        end = (offset // BLOCK + 1) * BLOCK
        while end < offset + length and self._blocks[end // BLOCK] == kind:
            end += BLOCK
        length = min(length, end - offset)
        if kind != _ABSENT:
            return Extent(length, kind == _DATA)
        if offset >= self._base_size:
            return Extent(length, False)
        return self._base.status(offset, min(length, self._base_size - offset))

    def allocated(self) -> int:
        """What was written, and what lies below."""
        return self._base.allocated() + os.fstat(self._fd).st_blocks * 512

    def resize(self, size: int) -> None:
        """What is cut off is gone, below as well."""
        if size > 1 << 50:
            raise failure(errno.EFBIG)  # the marks alone would take 16 GiB
        with self._lock:
            if size < self._size:
                self._cut(size)
            else:
                self._blocks.extend(bytes(-(-size // BLOCK) - len(self._blocks)))
            os.ftruncate(self._fd, size)
            self._size = size

    def _cut(self, size: int) -> None:
        self._base_size = min(self._base_size, size)
        del self._blocks[-(-size // BLOCK) :]

    def preallocate(self, offset: int, length: int) -> None:
        """No room is kept: it is thrown away anyhow."""
        self.resize(offset + length)

    def park(self) -> None:
        """Of what is behind."""
        self._base.park()

    def close(self) -> None:
        """What was written is gone."""
        self._file.close()
        self._base.close()
