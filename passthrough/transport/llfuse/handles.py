"""Open files: llfuse hands back a number alone, and a FileSystem wants the node, the flags and who asks."""

import itertools
import threading
from errno import EBADF
from typing import NamedTuple

from ...filesystem import Context, failure


class Held(NamedTuple):
    """An open file or directory. ctx is who opened it: llfuse does not say who reads, writes and closes."""

    nodeid: int
    fh: int
    flags: int
    ctx: Context


class Handles:
    """The numbers that are given to llfuse; none is used twice."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> int:
        """Its number."""
        with self._lock:
            number = next(self._numbers)
            self._held[number] = held
            return number

    def get(self, number: int) -> Held:
        """EBADF for one that is not open."""
        try:
            return self._held[number]
        except KeyError:
            raise failure(EBADF) from None

    def pop(self, number: int) -> Held:
        """It is closed. EBADF for one that is not open."""
        with self._lock:
            held = self._held.pop(number, None)
        if held is None:
            raise failure(EBADF)
        return held
