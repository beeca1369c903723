"""Requests that wait: a thread each, so that no other request waits with them, and INTERRUPT ends them.

A signal is the only thing that ends a blocking fcntl(2). It may come a moment before the thread enters the call, so it
is sent again until the request is done. SIGURG is used because a process that has not prepared for it ignores it.
"""

import errno
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

from . import syscalls
from .protocol.values import Context

log = logging.getLogger(__name__)

WAKE_SIGNAL = signal.SIGURG
_RESEND_S = 0.01
# To those who wait when the session ends. EINTR is for callers who gave up: Linux makes ERESTARTSYS of it (fuse_setlk),
# and a program that no signal has come to would see that number, 512.
_ENDED = errno.ECONNABORTED


def install_wake_signal() -> None:
    """Let WAKE_SIGNAL interrupt system calls of the thread that it is sent to. Main thread only."""
    signal.signal(WAKE_SIGNAL, lambda number, frame: None)


class _Waiter:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.done = threading.Event()  # the work is over: no more signals
        self.answered = threading.Event()
        self.thread: threading.Thread | None = None


class Waiters:
    """A session's requests that are waiting now.

    At most `limit` (ENOLCK beyond), and no number twice: a peer cannot make threads without end.
    """

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiter] = {}
        self._unanswered: set[_Waiter] = set()  # these, and those whose answer is on its way
        self._closed = False
        self._early: deque[int] = deque(maxlen=limit)  # interrupts that overtook their request on another queue

    def start(self, ctx: Context, work: Callable[[], int], answer: Callable[[int], None]) -> None:
        """Run work in a thread of its own and give what it returns (0 or -errno) to answer. OSError ENOLCK if full."""
        waiter = _Waiter(ctx)
        with self._lock:
            if self._closed:  # it came while the session ended
                raise OSError(_ENDED, os.strerror(_ENDED))
            if ctx.unique in self._waiting:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if len(self._unanswered) >= self._limit:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            self._waiting[ctx.unique] = waiter
            self._unanswered.add(waiter)
            if ctx.unique in self._early:
                self._early.remove(ctx.unique)
                ctx.interrupted = True
        waiter.thread = threading.Thread(target=self._run, args=(waiter, work, answer), name="waiting", daemon=True)
        try:
            waiter.thread.start()
        except RuntimeError as error:  # no more threads to be had
            with self._lock:
                del self._waiting[ctx.unique]
                self._unanswered.remove(waiter)
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from error

    def _run(self, waiter: _Waiter, work: Callable[[], int], answer: Callable[[int], None]) -> None:
        result = work()
        if result == -errno.EINTR and self._closed:
            result = -_ENDED
        waiter.done.set()
        with self._lock:  # before the answer: the peer may use the number again as soon as it has it
            del self._waiting[waiter.ctx.unique]
        try:
            answer(result)
        finally:
            with self._lock:
                self._unanswered.remove(waiter)
            waiter.answered.set()

    def interrupt(self, unique: int) -> None:
        """The caller of this request gave up."""
        with self._lock:
            waiter = self._waiting.get(unique)
            if waiter is None:
                self._early.append(unique)
                return
            if waiter.ctx.interrupted:
                return
            waiter.ctx.interrupted = True
        threading.Thread(target=self._wake, args=(waiter,), name="interrupt", daemon=True).start()

    @staticmethod
    def _wake(waiter: _Waiter) -> None:
        pid = os.getpid()
        while not waiter.done.wait(_RESEND_S):
            native = waiter.thread.native_id if waiter.thread else None
            if native is not None and not waiter.done.is_set():
                syscalls.tgkill(pid, native, WAKE_SIGNAL)

    def close(self, timeout: float = 5.0) -> None:
        """For good: interrupt all that wait, and wait until they are answered (at most timeout seconds in all)."""
        with self._lock:
            self._closed = True
            waiters = list(self._unanswered)
        for waiter in waiters:
            self.interrupt(waiter.ctx.unique)
        deadline = time.monotonic() + timeout
        for waiter in waiters:
            waiter.answered.wait(max(0.0, deadline - time.monotonic()))
