"""The record of requests in flight, in memory that the front end keeps (INFLIGHT_SHMFD).

What was taken and not answered is found there by whoever serves next.

Rules of this file: the layout of struct QueueRegionSplit of vhost-user.rst. The memory is the front end's to change:
what is read is checked.
"""

import os
from struct import Struct

from .memory import MappedRegion

_VERSION = 1
_HEADER = Struct("=QHHHH")  # features, version, desc_num, last_batch_head, used_idx
_LAST_BATCH_HEAD, _USED_IDX = 12, 14
_STATE = Struct("=B5xHQ")  # inflight, next, counter
_ALIGN = 64
_word = Struct("=H")


def queue_region_size(queue_size: int) -> int:
    """The bytes for one queue."""
    size = _HEADER.size + queue_size * _STATE.size
    return -(-size // _ALIGN) * _ALIGN


def create(queues: int, queue_size: int) -> tuple[int, int]:
    """A new, empty region: (memfd, its size in bytes). It cannot shrink under whoever maps it."""
    size = queues * queue_region_size(queue_size)
    fd = os.memfd_create("passthrough-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd, size


class InflightQueue:
    """One queue's part of the region."""

    def __init__(self, region: MappedRegion, index: int, queue_size: int) -> None:
        size = queue_region_size(queue_size)
        self._view = region.view[index * size : (index + 1) * size]
        self._size = queue_size
        self._counter = 0
        _, version, number, _, _ = _HEADER.unpack_from(self._view)
        if version != _VERSION or number != queue_size:
            _HEADER.pack_into(self._view, 0, 0, _VERSION, queue_size, 0, 0)

    def resume(self, used_index: int, ring_size: int) -> list[int]:
        """Heads that were taken and never given back, oldest first; used_index is the ring's own."""
        (recorded,) = _word.unpack_from(self._view, _USED_IDX)
        if recorded != used_index:  # it ended between giving a chain back and recording that
            (head,) = _word.unpack_from(self._view, _LAST_BATCH_HEAD)
            if head < self._size:
                self._view[_HEADER.size + head * _STATE.size] = 0
            _word.pack_into(self._view, _USED_IDX, used_index)
        found = []
        for head in range(min(self._size, ring_size)):
            inflight, _, counter = _STATE.unpack_from(self._view, _HEADER.size + head * _STATE.size)
            if inflight:
                found.append((counter, head))
        found.sort()
        self._counter = found[-1][0] + 1 if found else 0
        return [head for _, head in found]

    def taken(self, head: int) -> None:
        """A chain was taken."""
        if head < self._size:
            _STATE.pack_into(self._view, _HEADER.size + head * _STATE.size, 1, 0, self._counter & (1 << 64) - 1)
            self._counter += 1

    def giving_back(self, head: int) -> None:
        """The used ring is about to have it."""
        if head < self._size:
            _word.pack_into(self._view, _LAST_BATCH_HEAD, head)

    def given_back(self, head: int, used_index: int) -> None:
        """The used ring has it, and its index is this."""
        if head < self._size:
            self._view[_HEADER.size + head * _STATE.size] = 0
            _word.pack_into(self._view, _USED_IDX, used_index)
