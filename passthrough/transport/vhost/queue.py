"""A virtqueue's thread: it sleeps until the guest kicks, serves what is there, and tells the guest. No FUSE.

What serves a chain is a function of (chain, queue): it returns how many bytes it wrote to the writable part, or None
where it will call complete() later, from any thread. A queue that is stopped keeps such late answers, and gives them
when it goes on where it was (a paused machine); a queue that begins anew drops them (a rebooted one).
"""

import logging
import os
import select
import threading
from collections.abc import Callable

from .messages import MessageError
from .vring import Barrier, Chain, RingError, Vring

log = logging.getLogger(__name__)

_BATCH = 8
"""Chains that are given back before the guest hears of the first, as long as there are more to serve."""
_EDGE = select.EPOLLIN | select.EPOLLET
_POLL_S = 0.001
_JOIN_S = 10.0


class EventFd:
    """An eventfd(2) of the front end's. It is closed with the last reference, so never under a thread's hands."""

    __slots__ = ("fd",)

    def __init__(self, fd: int, proc: int) -> None:
        """Takes fd over; proc is a descriptor of /proc/self/fd, a path that may lead elsewhere in a sandbox.
        MessageError where it is no eventfd: a write to something else could block."""
        self.fd = fd
        try:
            kind = os.readlink(str(fd), dir_fd=proc)
        except OSError as error:
            raise MessageError(f"a descriptor that cannot be looked at: {error.strerror}") from error
        if kind != "anon_inode:[eventfd]":
            raise MessageError("a descriptor that is no eventfd")
        os.set_blocking(fd, False)

    def signal(self) -> None:
        """Wake whoever waits. A counter that is full has woken them already."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass

    def __del__(self) -> None:
        os.close(self.fd)


Serve = Callable[[Chain, "Queue"], int | None]


class Queue:
    """One virtqueue over the life of a connection: set up, started, stopped, started again."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.serve: Serve | None = None
        self.call: EventFd | None = None
        self.err: EventFd | None = None
        self.broken = False
        self.signals = 0
        """How often the guest was told."""
        self._kick: EventFd | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._barrier = Barrier()
        self._lock = threading.Condition(threading.Lock())
        self._vring: Vring | None = None
        self._thread: threading.Thread | None = None
        self._stopping = self._finish = False
        self._out = 0  # chains that were taken, and will be completed by another thread
        self._waits = 0  # those of them that may take for ever
        self._held: list[tuple[Chain, int]] = []
        self._epoch = 0
        self._left_at: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has a thread."""
        return self._thread is not None

    def epoch_for(self, base: int) -> int:
        """The epoch of a ring that begins at this index: a new one, unless it goes on where it was stopped."""
        if base != self._left_at:
            with self._lock:
                self._epoch += 1
                self._held.clear()
                self._out = self._waits = 0
        return self._epoch

    def forget(self) -> None:
        """The device was reset: what is still out will have no answer."""
        self._left_at = None
        self.broken = False

    # Start and stop

    def start(self, vring: Vring, kick: EventFd | None) -> None:
        """Serve this ring; without a kick it is looked at a thousand times a second."""
        self.broken = False
        self._kick = kick
        poll = select.epoll()
        try:
            poll.register(self._wake, _EDGE)
            if kick is not None:
                poll.register(kick.fd, _EDGE)
        except OSError as error:
            poll.close()
            raise MessageError(f"queue {self.index}: the kick cannot be waited for: {error.strerror}") from error
        with self._lock:
            self._vring = vring
            held, self._held = self._held, []
            for chain, written in held:
                vring.push(chain, written)
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, args=(vring, poll), name=f"virtqueue-{self.index}", daemon=True
        )
        self._thread.start()

    def halt(self, *, finish: bool = False) -> bool:
        """Take no further chains, but with finish those that are there; what was taken can still be answered.

        False where the thread does not end.
        """
        thread = self._thread
        if thread is None:
            return True
        self._finish = finish
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        thread.join(_JOIN_S)
        if thread.is_alive():
            log.error("queue %d: a request does not end; its thread is left alone", self.index)
            return False
        return True

    def wait_for_answers(self, timeout: float, *, waiting_too: bool) -> bool:
        """Until nothing is out any more, or only what may wait for ever; at most timeout seconds. After halt()."""
        with self._lock:
            return self._lock.wait_for(lambda: self._out == (0 if waiting_too else self._waits), timeout)

    def stop(self) -> int | None:
        """After halt(): the ring is no longer touched. The index to go on from, None where there was no ring."""
        with self._lock:
            vring, self._vring = self._vring, None
        self._thread = None
        if vring is not None:
            self._left_at = vring.last
        return self._left_at

    def nudge(self) -> int | None:
        """Let the thread look at its ring, kicked or not; the index that it is at where something waits, else None.

        From any thread. What the guest put in without a kick is nobody's fault, until the thread has looked.
        """
        with self._lock:
            if self._vring is None or self.broken:
                return None
            os.eventfd_write(self._wake, 1)
            return self._vring.last if self._vring.waiting() else None

    def close(self) -> None:
        """For good, after stop(). Lets go of whatever refers back to this queue, or to guest memory."""
        self.serve = self.call = self.err = self._kick = None
        self._held.clear()
        os.close(self._wake)

    # The thread

    def _run(self, vring: Vring, poll: select.epoll) -> None:
        timeout = -1 if self._kick is not None else _POLL_S
        try:
            with poll:
                while not self._stopping:
                    self._drain(vring)
                    poll.poll(timeout)
                if self._finish:
                    self._finish_up(vring)
        except RingError as error:
            self._break(f"the guest broke its rules: {error}")
        except Exception:
            log.exception("a bug of ours")
            self._break("a bug of ours")

    def _finish_up(self, vring: Vring) -> None:
        """What the guest had put in when it was time to end, and no more."""
        assert self.serve is not None
        for _ in range(vring.backlog()):
            chain = vring.pop()
            written = self.serve(chain, self) if chain is not None else None
            if chain is not None and written is not None:
                with self._lock:
                    vring.push(chain, written)
        self._tell(vring)

    def _break(self, why: str) -> None:
        log.error("queue %d stops, until the device is reset: %s", self.index, why)
        self.broken = True
        if self.err is not None:
            self.err.signal()

    def _drain(self, vring: Vring) -> None:
        """Serve until the ring is empty and the guest has been asked to kick for more."""
        serve, pop, lock = self.serve, vring.pop, self._lock
        assert serve is not None
        vring.spare_kicks()
        unsaid = 0
        try:
            while not self._stopping:
                chain = pop()
                if chain is None:
                    if unsaid:
                        unsaid = 0
                        self._tell(vring)
                    vring.want_kicks()
                    self._barrier()
                    if not vring.waiting():
                        return
                    vring.spare_kicks()
                    continue
                written = serve(chain, self)
                if written is None:
                    continue
                with lock:
                    vring.push(chain, written)
                unsaid += 1
                if unsaid >= _BATCH:
                    unsaid = 0
                    self._tell(vring)
        finally:
            if unsaid:
                self._tell(vring)

    def _tell(self, vring: Vring) -> None:
        with self._lock:  # which is a barrier, too
            must = vring.must_signal()
            call = self.call
        if must and call is not None:
            self.signals += 1
            call.signal()

    # Answers from other threads

    def lend(self, chain: Chain, *, waits: bool = False) -> None:
        """A chain will be completed by another thread; waits: perhaps never. Called before None is returned."""
        with self._lock:
            chain.waits = waits
            self._out += 1
            self._waits += waits

    def take_back(self, chain: Chain) -> None:
        """It will not, after all."""
        with self._lock:
            if chain.epoch == self._epoch:
                self._out -= 1
                self._waits -= chain.waits

    def complete(self, chain: Chain, written: int) -> None:
        """From any thread: this chain's answer is in its memory."""
        with self._lock:
            if chain.epoch != self._epoch:
                return
            self._out -= 1
            self._waits -= chain.waits
            self._lock.notify_all()
            vring = self._vring
            if vring is None:
                self._held.append((chain, written))
                return
            vring.push(chain, written)
        self._barrier()
        self._tell(vring)
