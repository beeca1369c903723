"""io_uring, as little of it as is needed: set up, submit, complete. Knows nothing of FUSE.

Rules of this file: numbers and layouts are those of include/uapi/linux/io_uring.h (Linux 6.1 and newer). A submission
entry keeps the slot that it was given, and the ring's index array names the slots to submit: what stays the same in an
entry is written once. A ring belongs to the thread that made it (IORING_SETUP_SINGLE_ISSUER).
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from struct import Struct
from time import perf_counter_ns

from .. import syscalls

SETUP_CQSIZE = 1 << 3
SETUP_SQE128 = 1 << 10
SETUP_SINGLE_ISSUER = 1 << 12
SETUP_DEFER_TASKRUN = 1 << 13
ENTER_GETEVENTS = 1
OP_NOP = 0
OP_POLL_ADD = 6
OP_URING_CMD = 46
SQE_SIZE = 128
_OFF_SQES = 0x10000000
_FEAT_SINGLE_MMAP = 1

_params = Struct("=IIIIIII12x10I10I")  # struct io_uring_params, with sq_off and cq_off (40 bytes each)
_cqe = Struct("=Qi").unpack_from  # struct io_uring_cqe: user_data, res, then flags
CQE_SIZE = 16
SOON_NS = 60_000
"""How long take_soon() waits for a completion."""


class Ring:
    """One submission and one completion queue. `entries` (a power of two) is how many slots there are."""

    def __init__(self, entries: int) -> None:
        """OSError where the kernel, a sysctl (kernel.io_uring_disabled) or a seccomp filter refuses."""
        flags = SETUP_SQE128 | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN
        params = bytearray(_params.pack(0, 0, flags, *(0,) * 24))
        self.fd = syscalls.io_uring_setup(entries, params)
        values = _params.unpack(params)
        sq_entries, cq_entries, features = values[0], values[1], values[5]
        sq, cq = values[7:17], values[17:27]
        if not features & _FEAT_SINGLE_MMAP:
            os.close(self.fd)
            raise OSError(errno.ENOSYS, "io_uring without IORING_FEAT_SINGLE_MMAP")
        size = max(sq[6] + sq_entries * 4, cq[5] + cq_entries * CQE_SIZE)
        self._ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self._slots = mmap.mmap(self.fd, sq_entries * SQE_SIZE, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQES)
        words = memoryview(self._ring).cast("I")
        self._words = words
        self.slots = memoryview(self._slots)
        self.entries = sq_entries
        self._sq_tail = sq[1] // 4
        self._sq_mask = words[sq[2] // 4]
        self._array = sq[6] // 4
        self._cq_head = cq[0] // 4
        self._cq_tail = cq[1] // 4
        self._cq_mask = words[cq[2] // 4]
        self._cqes = cq[5]
        self._queued = 0
        self._tail = words[self._sq_tail]
        self._head = words[self._cq_head]

    def write(self, slot: int, entry: bytes) -> None:
        """Fill a slot with a submission entry."""
        self.slots[slot * SQE_SIZE : slot * SQE_SIZE + len(entry)] = entry

    def queue(self, slot: int) -> None:
        """Submit this slot with the next enter()."""
        words, tail = self._words, self._tail
        words[self._array + (tail & self._sq_mask)] = slot
        words[self._sq_tail] = self._tail = (tail + 1) & 0xFFFFFFFF
        self._queued += 1

    def enter(self, wait: int = 1) -> None:
        """Submit what was queued and wait for at least `wait` completions: one system call. Signals interrupt it."""
        queued, self._queued = self._queued, 0
        try:
            syscalls.io_uring_enter(self.fd, queued, wait, ENTER_GETEVENTS)
        except InterruptedError:
            return

    def take(self) -> tuple[int, int]:
        """(user_data, res) of the next completion; while there is none, submits what was queued and waits."""
        words, head, tail = self._words, self._head, self._cq_tail
        while head == words[tail]:
            self.enter()
        user_data, res = _cqe(self._ring, self._cqes + (head & self._cq_mask) * CQE_SIZE)
        words[self._cq_head] = self._head = (head + 1) & 0xFFFFFFFF
        return user_data, res

    def take_soon(self) -> tuple[int, int] | None:
        """take(), without going to sleep: lets others run on this CPU meanwhile. None where nothing comes in SOON_NS.

        A wait that ends by a timer would be simpler, but setting the timer takes longer here than a request.
        """
        end = 0
        while self._head == self._words[self._cq_tail]:
            if not end:
                end = perf_counter_ns() + SOON_NS
            elif perf_counter_ns() > end:
                return None
            else:
                os.sched_yield()
            self.enter(0)
        return self.take()

    def completions(self) -> Iterator[tuple[int, int]]:
        """The completions that are there; each is taken when it is yielded."""
        while self._head != self._words[self._cq_tail]:
            yield self.take()

    def close(self) -> None:
        """Give the ring back; what was submitted is cancelled. The mappings go as well: each has a descriptor."""
        self._words.release()
        self.slots.release()
        self._ring.close()
        self._slots.close()
        os.close(self.fd)


def address_of(buffer: mmap.mmap) -> int:
    """Where a mapping lies, for the kernel."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def unavailable() -> str | None:
    """None where a ring can be made and answers a NOP; else why not."""
    try:
        ring = Ring(1)
    except OSError as error:
        if error.errno == errno.EPERM:
            return "io_uring is switched off (sysctl kernel.io_uring_disabled) or filtered"
        return f"io_uring_setup: {error.strerror}"
    try:
        ring.write(0, Struct("=B31xQ88x").pack(OP_NOP, 7))
        ring.queue(0)
        ring.enter()
        answers = list(ring.completions())
    finally:
        ring.close()
    return None if answers == [(7, 0)] else f"io_uring answered a NOP with {answers}"
