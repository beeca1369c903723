"""Looking at a ring for a moment before sleeping: a wake-up on another CPU costs more than the request that it is for.

Rules of this file: no rings, no threads; a look is a function. What it costs is bounded three times: one look lasts
100 us at most, looks that found nothing become rare, and where somebody else wants the CPU there are none for a while.
Other threads of this process can always go on meanwhile.
"""

import os
import select
import time
from collections.abc import Callable

_WINDOW_NS = 100_000
_LOOKS = 8
"""How often the ring is looked at between two times that the clock is read and other threads are let in."""
_MOST_SLEEPS = 256
_REST_NS = 500_000_000


class Patience:
    """Of one thread. On a machine with one CPU there is none: who is waited for could not run."""

    def __init__(self) -> None:
        self._lasts = _WINDOW_NS if (os.cpu_count() or 1) > 1 else 0
        self._sleeps = 0  # that are still to be made without a look
        self._penalty = 1
        self._rests_until = 0
        self._let_others = select.poll().poll  # nothing to wait for, and the interpreter is free during the call

    def awaits(self, waiting: Callable[[], bool]) -> bool:
        """Look for a while; True as soon as waiting() is, False where it is time to sleep."""
        if self._sleeps:
            self._sleeps -= 1
            return False
        now = time.perf_counter_ns()
        if now < self._rests_until:
            return False
        end = now + self._lasts
        while now < end:
            for _ in range(_LOOKS):
                if waiting():
                    self._penalty = 1
                    return True
            self._let_others(0)
            now = time.perf_counter_ns()
        self._lost(end, now)
        return False

    def _lost(self, end: int, now: int) -> None:
        """The next sleeps come without a look: 2, 4, ... 256. Who comes back this late had to give the CPU away."""
        if now - end > _WINDOW_NS:
            self._rests_until = now + _REST_NS
        self._penalty = self._sleeps = min(self._penalty * 2, _MOST_SLEEPS)
