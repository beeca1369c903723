"""Node numbers. llfuse has one for two things, the nodeid and st_ino: the kernel gets the inode number as nodeid.

A number that is taken already, by another node of the same inode number or by the protocol (0 is no node, 1 the root),
is replaced by one that no file system gives out, and st_ino shows it.
"""

import itertools
import threading
from errno import EBADF

from ...filesystem import ROOT_ID, failure

_MADE_UP = 1 << 63


class Nodes:
    """Which number stands for which node of the file system, for as long as the kernel knows it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodeids: dict[int, int] = {ROOT_ID: ROOT_ID}
        self._numbers: dict[int, int] = {ROOT_ID: ROOT_ID}
        self._counts: dict[int, int] = {}
        self._made_up = itertools.count(_MADE_UP)

    def __len__(self) -> int:
        return len(self._counts)

    def nodeid(self, number: int) -> int:
        """The file system's own. EBADF for a number that the kernel was not given, or has forgotten."""
        try:
            return self._nodeids[number]
        except KeyError:
            raise failure(EBADF) from None

    def number(self, nodeid: int) -> int | None:
        """The kernel's for a node; None where it knows none."""
        return self._numbers.get(nodeid)

    def entered(self, nodeid: int, ino: int) -> int:
        """The kernel is about to be given this node once more: its number."""
        with self._lock:
            number = self._numbers.get(nodeid)
            if number is None:
                number = ino if 0 < ino < _MADE_UP and ino not in self._nodeids else self._another()
                self._numbers[nodeid] = number
                self._nodeids[number] = nodeid
            self._counts[number] = self._counts.get(number, 0) + 1
            return number

    def _another(self) -> int:
        return next(number for number in self._made_up if number not in self._nodeids)

    def forgotten(self, number: int, nlookup: int) -> tuple[int, int] | None:
        """The kernel forgets a number so many times: the forget that the file system is to be told, if any."""
        with self._lock:
            nodeid, count = self._nodeids.get(number), self._counts.get(number)
            if nodeid is None or count is None:
                return None
            nlookup = min(nlookup, count)
            if nlookup < count:
                self._counts[number] = count - nlookup
            else:
                del self._counts[number]
                if nodeid != ROOT_ID:
                    del self._nodeids[number], self._numbers[nodeid]
            return nodeid, nlookup
