"""Whose turn it is: queues of several CPUs that are busy at once take turns of SLICE_NS, each for many requests.

The interpreter runs one thread at a time, and lets go of its lock in every system call. Two busy queues would hand it
over several times in each request, and each time a thread must be woken on another CPU, which takes longer than the
request. So the queue whose turn it is goes on alone, and the others wait; one that is stuck in a request is passed over
after PATIENCE_S, and one that is about to move much data gives its turn away, since the lock is free meanwhile.

Nothing depends on a turn but speed. Rules of this file: no lock but the permit that a waiting queue sleeps on. The rest
is read and changed under the interpreter's lock, which may change hands between two steps: then two queues are served
at once, or one waits PATIENCE_S.
"""

import threading
from collections import deque
from time import perf_counter_ns

SLICE_NS = 1_000_000
PATIENCE_S = 0.004


class Turns:
    """What the queues of one session share."""

    __slots__ = ("given", "owner", "waiting")

    def __init__(self) -> None:
        self.owner: Turn | None = None
        self.waiting: deque[Turn] = deque()
        self.given = 0


class Turn:
    """One queue's part, for the thread of that queue. `held` from take() to give()."""

    __slots__ = ("_permit", "_turns", "_until", "held")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._permit = threading.Lock()
        self._permit.acquire()
        self._until = 0
        self.held = False

    def take(self) -> None:
        """There is a request: wait until it is our turn, or until whoever has it seems to be stuck."""
        turns = self._turns
        if turns.owner is None:
            turns.owner = self
        else:
            self._wait(turns)
        self.held = True
        self._until = perf_counter_ns() + SLICE_NS

    def _wait(self, turns: Turns) -> None:
        turns.waiting.append(self)
        given = turns.given
        while not self._permit.acquire(timeout=PATIENCE_S):
            if turns.given == given:
                try:
                    turns.waiting.remove(self)
                except ValueError:  # it is being given to us this moment
                    self._permit.acquire()
                turns.owner = self
                return
            given = turns.given

    @property
    def wanted(self) -> bool:
        """Whether another queue waits for its turn."""
        return bool(self._turns.waiting)

    def goes_on(self) -> bool:
        """After a request: whether the next one still belongs to this turn. Else the turn is given away."""
        turns = self._turns
        if turns.waiting and turns.owner is self and perf_counter_ns() < self._until:
            return True
        self.give()
        return False

    def give(self) -> None:
        """The turn is over; also where it was not ours any more."""
        self.held = False
        turns = self._turns
        if turns.owner is not self:
            return
        turns.given += 1
        try:
            following = turns.waiting.popleft()
        except IndexError:
            turns.owner = None
            return
        turns.owner = following
        following._permit.release()
