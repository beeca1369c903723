"""Which threads serve: one reads, and another joins only while that one is stuck in a request.

Waking a thread on another CPU costs more than a request itself, so threads that take turns are slower than one that
stays awake. Yet one alone would let a slow fsync hold up everybody. So a worker that finishes while another is reading
rests; and a monitor, which looks every few milliseconds while there is work and sleeps while there is none, calls
further workers when all that are at work have been in the same request since its last look, each time as many again.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

log = logging.getLogger(__name__)

_TICK_S = 0.005
_IDLE_TICKS = 20  # how long the monitor stays awake without work


class Worker(Protocol):
    """What serves: `idle` while it waits for a request, `served` counts the requests that it began."""

    idle: bool
    served: int

    def run(self, crew: "Crew") -> bool:
        """Serve until there will be no more requests (False), or until this worker alone cannot go on (True)."""


class Crew:
    """The workers of one session. on_end is called by the last thread when all have ended.

    A worker looks at `crowded` between requests and at `asleep` when it begins one, and calls rest() and wake().
    """

    def __init__(self, workers: Sequence[Worker], on_end: Callable[[], None]) -> None:
        self.crowded = False
        self.asleep = True
        self.stopping = False
        self.failure: str | None = None
        self._on_end = on_end
        self._lock = threading.Lock()
        self._active: list[Worker] = []
        self._resting: list[Worker] = list(workers)
        self._permits = {id(worker): threading.Semaphore(0) for worker in workers}
        self._threads: dict[int, threading.Thread] = {}
        self._alive = 0
        self._work = threading.Event()
        self._stop = threading.Event()
        self._monitor: threading.Thread | None = None

    def start(self) -> None:
        """One worker begins; the others begin when they are needed."""
        if len(self._resting) > 1:
            self._monitor = threading.Thread(target=self._watch, name="monitor", daemon=True)
            self._monitor.start()
        self._call(1)

    def _call(self, count: int) -> None:
        """Up to count workers more."""
        with self._lock:
            called, self._resting = self._resting[:count], self._resting[count:]
            self._active += called
            self.crowded = len(self._active) > 1
            for worker in called:
                if id(worker) in self._threads:
                    self._permits[id(worker)].release()
                    continue
                name = f"queue-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, args=(worker,), name=name, daemon=True)
                self._threads[id(worker)] = thread
                self._alive += 1
                thread.start()

    def rest(self, worker: Worker) -> None:
        """Between requests: rest until called again, if another worker is reading already."""
        with self._lock:
            if self.stopping or not any(other.idle for other in self._active if other is not worker):
                return
            self._active.remove(worker)
            self._resting.insert(0, worker)
            self.crowded = len(self._active) > 1
            worker.idle = True
        self._permits[id(worker)].acquire()

    def pause(self, seconds: float) -> None:
        """Between requests: wait so long, or until the crew is told to stop."""
        self._stop.wait(seconds)

    def wake(self) -> None:
        """There is work: the monitor looks again."""
        self.asleep = False
        self._work.set()

    def _serve(self, worker: Worker) -> None:
        try:
            others_go_on = worker.run(self)
        except Exception:
            self.failure = "a bug of ours ended a queue; the log has the traceback"
            log.exception("a bug of ours ended a queue")
            others_go_on = True
        worker.idle = True
        with self._lock:
            self._active.remove(worker)
        if others_go_on:
            self._call(1)
        with self._lock:
            self._alive -= 1
            last = self._alive == 0
        if last or not others_go_on:
            self.stop()
        if last:
            self._on_end()

    def stop(self) -> None:
        """No further requests: whoever rests, ends; whoever reads, ends after its next request."""
        self.stopping = True
        self._stop.set()
        self._work.set()
        with self._lock:
            resting, self._resting = self._resting, []
            self._active += [worker for worker in resting if id(worker) in self._threads]
        for worker in resting:
            self._permits[id(worker)].release()

    def join(self, timeout: float) -> bool:
        """Whether all threads ended within timeout seconds each."""
        threads = list(self._threads.values())
        if self._monitor is not None and self.stopping:
            threads.append(self._monitor)
        for thread in threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in threads)

    def _watch(self) -> None:
        seen: dict[int, int] = {}
        quiet = 0
        while not self._stop.wait(_TICK_S):
            active = list(self._active)
            now = {id(worker): worker.served for worker in active}
            stuck = [worker for worker in active if not worker.idle and seen.get(id(worker)) == worker.served]
            if active and len(stuck) == len(active):
                self._call(len(active))
            quiet = 0 if stuck or now != seen else quiet + 1
            seen = now
            if quiet >= _IDLE_TICKS:
                self._sleep()
                quiet = 0

    def _sleep(self) -> None:
        self._work.clear()
        self.asleep = True
        # A worker that began before it could see `asleep` will not wake us: look once more.
        if all(worker.idle for worker in list(self._active)) and not self.stopping:
            self._work.wait()
        self.asleep = False
