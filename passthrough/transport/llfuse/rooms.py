"""Memory for a request's data, one room for each thread, on a page boundary: direct I/O asks for that."""

import mmap
import os
import threading

from ...filesystem import FileRange, Fill, Later, failure

_LEAST = 1 << 17  # what a request of protocol 7.19 brings at most


class Rooms(threading.local):
    """Each thread's is its own, until the thread's next request."""

    def __init__(self) -> None:
        self._room = memoryview(bytearray())

    def of(self, size: int) -> memoryview:
        """Room for so many bytes."""
        if len(self._room) < size:
            self._room = memoryview(mmap.mmap(-1, max(size, _LEAST)))
        return self._room[:size]

    def filled(self, found: bytes | FileRange | Fill | Later, size: int) -> bytes | memoryview:
        """The bytes that a READ of `size` comes to."""
        if isinstance(found, bytes):
            return found[:size]
        if isinstance(found, Later):
            room = self.of(size)
            return room[: waited_for(found, room)]
        room = self.of(min(size, found.size))
        if isinstance(found, Fill):
            return room[: found.into(room)]
        return room[: os.preadv(found.fd, (room,), found.offset)]


def waited_for(later: Later, room: memoryview) -> int:
    """What a request that is answered later comes to: llfuse answers when its handler returns, so a worker waits."""
    answered = threading.Event()
    results: list[int] = []

    def answer(result: int) -> None:
        results.append(result)
        answered.set()

    later.begin(room, answer)
    answered.wait()
    if results[0] < 0:
        raise failure(-results[0])
    return results[0]
