"""The split virtqueue (virtio 1.3, section 2.7): take a chain, give it back as used, and ask for no needless wake-ups.

Rules of this file: no FUSE, no threads but for the lock that its caller holds. Everything in the rings and tables is
the guest's: each value is read once, checked and then used. What breaks the rules raises RingError, and the ring ends.

The packed ring is not offered: no front end asks a virtio-fs back end for it by itself, and of nine accesses to guest
memory for a request it saves two, about 0.1 us (bench/NOTES.md).
"""

import platform
import threading
from struct import Struct
from typing import NamedTuple

from ... import syscalls
from .inflight import InflightQueue
from .memory import AddressError, Memory

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
_AVAIL_F_NO_INTERRUPT = 1
_USED_F_NO_NOTIFY = 1
MAX_SIZE = 32768
_CHAIN_LIMIT = 1024
"""Descriptors of one chain; a longer indirect table than the ring is customary (Linux), more than this is not."""
_PAGE = 4096
_MERGE_FROM = 8

_unpack_descriptor = Struct("=QIHH").unpack_from
_pack_used = Struct("=II").pack_into
_DESCRIPTOR_SIZE = 16
_USED_SIZE = 8

Row = tuple[int, int, int, int]
"""A descriptor: address, length, flags, next."""


class RingError(Exception):
    """The guest broke the rules of the ring: this queue stops, until it is set up anew."""


class Chain:
    """A request's memory: what the guest wrote for us, and what is ours to write. Lengths are never 0.

    ranges has the guest's addresses of the writable part where a log of written pages is kept. epoch tells a chain of
    before a reset from those of after; waits says that its answer may never come.
    """

    __slots__ = ("epoch", "head", "ranges", "readable", "waits", "writable")

    def __init__(self, head: int, epoch: int) -> None:
        self.head = head
        self.epoch = epoch
        self.waits = False
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.ranges: list[tuple[int, int]] = []


class Areas(NamedTuple):
    """Where a ring lies, in the front end's addresses; log is the guest address of the used ring, or None."""

    descriptors: int
    available: int
    used: int
    log: int | None = None


class Vring:
    """One running virtqueue. pop, push and the rest are called by one thread at a time."""

    def __init__(
        self,
        memory: Memory,
        size: int,
        areas: Areas,
        base: int,
        *,
        event_idx: bool,
        indirect: bool,
        epoch: int = 0,
        inflight: InflightQueue | None = None,
    ) -> None:
        """size: a power of two; base: the next available index. RingError where something is out of place."""
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise RingError(f"a queue of {size} descriptors: not a power of two up to {MAX_SIZE}")
        if areas.descriptors % 16 or areas.available % 2 or areas.used % 4:
            raise RingError("a ring that is not aligned")
        try:
            self._descriptors, _ = memory.user_view(areas.descriptors, size * _DESCRIPTOR_SIZE)
            available, _ = memory.user_view(areas.available, 6 + 2 * size)
            self._used, self._used_address = memory.user_view(areas.used, 6 + _USED_SIZE * size)
        except AddressError as error:
            raise RingError(f"the ring's place: {error}") from error
        self._available = available.cast("H")
        self._used_words = self._used.cast("H")
        self._memory = memory
        self._log = memory.log if areas.log is not None else None
        self._payload_log = memory.log
        if areas.log is not None:
            self._used_address = areas.log
        self._size = size
        self._mask = size - 1
        self._limit = max(size, _CHAIN_LIMIT)
        self._event_idx = event_idx
        self._indirect = indirect
        self._epoch = epoch
        self._hot = memory.largest()
        self._used_index = self._signalled = self._used_words[1]
        self.last = base & 0xFFFF
        self._inflight = inflight
        self._again: list[int] = []
        if inflight is not None:
            self._again = inflight.resume(self._used_index, size)
            self.last = (self._used_index + len(self._again)) & 0xFFFF

    # Taking

    def waiting(self) -> bool:
        """Whether the guest has put something in that was not taken yet."""
        return self._available[1] != self.last

    def backlog(self) -> int:
        """How many chains wait; one more than the ring has where the guest's index jumps, so that pop() says so."""
        return min((self._available[1] - self.last) & 0xFFFF, self._size + 1) + len(self._again)

    def pop(self) -> Chain | None:
        """The next chain, or None."""
        last = self.last
        if self._again:
            head = self._again.pop(0)
        else:
            available = self._available[1]
            if available == last:
                return None
            if (available - last) & 0xFFFF > self._size:
                raise RingError(f"the available index jumps from {last} to {available}, the ring has {self._size}")
            head = self._available[2 + (last & self._mask)]
            self.last = (last + 1) & 0xFFFF
        rows = self._rows(head)
        if self._inflight is not None:
            self._inflight.taken(head)
        return self._chain(head, rows if len(rows) <= _MERGE_FROM else _merged(rows))

    def _rows(self, head: int) -> list[Row]:
        """The chain's descriptors in order. Zero or more of the ring's own, then perhaps one indirect table."""
        table: memoryview | bytes = self._descriptors
        count, index, in_table = self._size, head, False
        rows: list[Row] = []
        while True:
            if index >= count:
                raise RingError(f"descriptor {index} of {count}")
            row = _unpack_descriptor(table, index << 4)
            flags = row[2]
            if flags & DESC_F_INDIRECT:
                if in_table or flags & DESC_F_NEXT or not self._indirect:
                    raise RingError("an indirect descriptor where none may be")
                table, count, index, in_table = self._table(row[0], row[1]), row[1] >> 4, 0, True
                continue
            rows.append(row)
            if not flags & DESC_F_NEXT:
                return rows
            if len(rows) >= self._limit:
                raise RingError(f"a chain of more than {self._limit} descriptors, or a loop")
            index = row[3]

    def _table(self, address: int, length: int) -> bytes:
        """A copy: the guest may not change what was checked."""
        if length % _DESCRIPTOR_SIZE or not 0 < length <= self._limit * _DESCRIPTOR_SIZE:
            raise RingError(f"an indirect table of {length} bytes")
        guest, end, view = self._hot
        if guest <= address and address + length <= end:
            return view[address - guest : address - guest + length].tobytes()
        try:
            return b"".join(self._memory.views(address, length))
        except AddressError as error:
            raise RingError(f"an indirect table: {error}") from error

    def _chain(self, head: int, rows: list[Row]) -> Chain:
        chain = Chain(head, self._epoch)
        readable, writable = chain.readable, chain.writable
        guest, end, view = self._hot
        for address, length, flags, _ in rows:
            if flags & DESC_F_WRITE:
                target = writable
            elif writable:
                raise RingError("a readable descriptor behind a writable one")
            else:
                target = readable
            if not length:
                raise RingError("a descriptor of no bytes")
            stop = address + length
            if guest <= address and stop <= end:
                target.append(view[address - guest : stop - guest])
            else:
                self._elsewhere(target, address, length)
            if self._payload_log is not None and target is writable:
                chain.ranges.append((address, length))
        return chain

    def _elsewhere(self, target: list[memoryview], address: int, length: int) -> None:
        try:
            target += self._memory.views(address, length)
        except AddressError as error:
            raise RingError(f"a descriptor: {error}") from error

    # Giving back

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, of whose writable part the first `written` bytes were written."""
        head, index = chain.head, self._used_index
        inflight = self._inflight
        if inflight is not None:
            inflight.giving_back(head)
        at = 4 + ((index & self._mask) << 3)
        _pack_used(self._used, at, head, written)
        self._used_index = index = (index + 1) & 0xFFFF
        self._used_words[1] = index
        if inflight is not None:
            inflight.given_back(head, index)
        if self._payload_log is not None:
            self._mark(chain, written, at)

    def _mark(self, chain: Chain, written: int, at: int) -> None:
        assert self._payload_log is not None
        for address, length in chain.ranges:
            if written <= 0:
                break
            self._payload_log.mark(address, min(length, written))
            written -= length
        if self._log is not None:
            self._log.mark(self._used_address + at, _USED_SIZE)
            self._log.mark(self._used_address, 4)

    def must_signal(self) -> bool:
        """Whether the guest wants to hear of what was given back since the last call. After a barrier."""
        old, new = self._signalled, self._used_index
        if old == new:
            return False
        self._signalled = new
        if self._event_idx:
            event = self._available[2 + self._size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._available[0] & _AVAIL_F_NO_INTERRUPT

    # Wake-ups

    def want_kicks(self) -> None:
        """Ask to be woken for what comes after `last`. A barrier must follow, and another look."""
        if self._event_idx:
            self._used_words[2 + 4 * self._size] = self.last
        else:
            self._used_words[0] = 0
        if self._log is not None:
            self._log.mark(self._used_address, 6 + _USED_SIZE * self._size)

    def spare_kicks(self) -> None:
        """No wake-ups, we are looking anyway. With event indexes there is nothing to do: the old one is passed."""
        if not self._event_idx:
            self._used_words[0] = _USED_F_NO_NOTIFY


def _merged(rows: list[Row]) -> list[Row]:
    """Neighbours in memory that are neighbours in the chain become one: pages of a buffer that lies in one piece.

    Only whole pages are: a header and what follows it stay apart.
    """
    found: list[Row] = []
    start, length, kind = rows[0][0], rows[0][1], rows[0][2] & DESC_F_WRITE
    for address, more, flags, _ in rows[1:]:
        if address == start + length and not length % _PAGE and flags & DESC_F_WRITE == kind and length:
            length += more
        else:
            found.append((start, length, kind, 0))
            start, length, kind = address, more, flags & DESC_F_WRITE
    found.append((start, length, kind, 0))
    return found


class Barrier:
    """A full memory barrier between the guest and us, who share memory without locks (virtio 1.3, 2.7.13).

    A store and a later load are the only two that x86 exchanges, and taking a lock is a locked instruction, which is a
    barrier there. Elsewhere membarrier(2) is one for its caller.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_enough = platform.machine() in ("x86_64", "i686")
        if not self._is_enough:
            syscalls.membarrier(syscalls.MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)

    def __call__(self) -> None:
        """Everything stored before is seen before anything is loaded after."""
        if self._is_enough:
            with self._lock:
                return
        syscalls.membarrier(syscalls.MEMBARRIER_CMD_PRIVATE_EXPEDITED)
