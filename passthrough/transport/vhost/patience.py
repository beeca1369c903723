"""Looking at a ring for a moment before sleeping: a wake-up on another CPU costs more than the request that it is for.

Rules of this file: no rings, no threads; a look is a function. What it costs is bounded: looking lasts 100 us at most,
and becomes rare where nothing comes, or where others want this CPU. So it does where there is one CPU, or one that is
free: who is waited for cannot run, or runs in our place. Other threads of this process can always go on meanwhile.
"""

import select
import time
from collections.abc import Callable

_WINDOW_NS = 100_000
_LOOKS = 8
"""How often the ring is looked at between two times that the clock is read and other threads are let in."""
_GAP_NS = 20_000
"""Eight looks take 2 us; after so long somebody else has had the CPU, or the interpreter."""
_MOST_SLEEPS = 256


class Patience:
    """Of one thread."""

    def __init__(self) -> None:
        self._sleeps = 0  # that are still to be made without a look
        self._penalty = 1
        self._let_others = select.poll().poll  # nothing to wait for, and the interpreter is free during the call

    def awaits(self, waiting: Callable[[], bool]) -> bool:
        """Look for a while; True as soon as waiting() is, False where it is time to sleep."""
        if self._sleeps:
            self._sleeps -= 1
            return False
        now = before = time.perf_counter_ns()
        end = now + _WINDOW_NS
        while now < end:
            for _ in range(_LOOKS):
                if waiting():
                    self._found(before)
                    return True
            before = now
            self._let_others(0)
            now = time.perf_counter_ns()
        self._lost()
        return False

    def _found(self, before: int) -> None:
        if time.perf_counter_ns() - before > _GAP_NS:
            self._lost()  # whoever put it there ran in our place: sleeping would have been as quick
        else:
            self._penalty = 1

    def _lost(self) -> None:
        """The next sleeps come without a look: 2, 4, ... 256."""
        self._penalty = self._sleeps = min(self._penalty * 2, _MOST_SLEEPS)
