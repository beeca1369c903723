"""One connection to an NBD server, through libnbd: many requests in flight, and none lost when the server goes.

Each call of libnbd lets go of the interpreter lock, and then waits for whoever took it: so there are as few as can be.

Rules: a request is issued by the thread that brings it, and its answer is given by the connection's own thread, which
starts with the first request and waits for the socket. A request that the connection took with it is issued again on
the next one; reading and writing twice does no harm, since nobody was told that the first time had worked. libnbd locks
its handle by itself, but its nbd_poll() would hold that lock while it waits: so the waiting is done here.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import nbd

log = logging.getLogger(__name__)

Issue = Callable[[Any, Callable[[Any], int]], object]
"""(handle, completion): start the request on this handle."""
Attach = Callable[[Any], None]
"""Connect a fresh handle. nbd.Error where that fails."""
_LOST = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT})
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it
_SEND_BUFFER = 2 << 20
_FIRST_PAUSE_MS, _LAST_PAUSE_MS = 50, 1000


class Request:
    """Something that is asked of the server; done gets 0 or an errno, once, from any thread. `large` where it may be
    more than the socket takes at once."""

    __slots__ = ("done", "issue", "large")

    def __init__(self, issue: Issue, done: Callable[[int], None], *, large: bool = False) -> None:
        self.issue = issue
        self.done = done
        self.large = large


def _widen(handle: Any) -> None:
    """Let the socket take a large write at once, so that fewer turns are needed for it."""
    try:
        with socket.socket(fileno=os.dup(handle.aio_get_fd())) as connected:
            if connected.family == socket.AF_UNIX:
                connected.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except (OSError, nbd.Error):
        pass  # an ordinary user may not


class Connection:
    """A handle, and the thread that waits for its socket.

    reconnect_s: how long requests wait for a server that is gone; 0: they fail at once, and None: there is no way back.
    `check` is asked whether a new connection still leads to the same export, and says why not.
    """

    def __init__(
        self, handle: Any, attach: Attach, check: Callable[[Any], str | None], reconnect_s: float | None
    ) -> None:
        self._attach = attach
        self._check = check
        self._reconnect_s = reconnect_s
        self._lock = threading.Lock()
        self._handle: Any = handle  # None while there is no connection
        self._waiting: list[Request] = []
        self._hopeless = False  # gone for longer than requests wait
        self._dropped = False  # the server is going down: it says so
        self._closing = False
        self._parked = True
        self.load = 0  # about how many requests are in flight: it is counted without a lock
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def _unpark(self) -> None:
        with self._lock:
            if self._parked and not self._closing:
                self._parked = False
                self._thread = threading.Thread(target=self._run, name="nbd", daemon=True)
                self._thread.start()

    def park(self) -> None:
        """End the thread until the next request, when nothing is in flight: before a fork, say."""
        with self._lock:
            thread, self._thread, self._parked = self._thread, None, True
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()

    def submit(self, request: Request) -> None:
        """Start a request, now or when the server is back. Does not raise: what fails is answered."""
        self.load += 1
        if self._parked:
            self._unpark()
        while True:
            handle = self._handle
            if handle is not None:
                if self._issued(handle, request):
                    return
                continue
            with self._lock:
                if self._handle is None:
                    if not self._hopeless and not self._closing:
                        self._waiting.append(request)
                        return
                    break
        self._done(request, errno.EIO)

    def _done(self, request: Request, number: int) -> None:
        self.load -= 1
        try:
            request.done(number)
        except Exception:
            log.exception("a bug of ours: an answer of the NBD server was not taken")

    def _issued(self, handle: Any, request: Request) -> bool:
        """Whether this handle has the request, or it was answered."""
        try:
            request.issue(handle, lambda error: self._completed(handle, request, error))
        except nbd.Error as error:
            if handle.aio_is_ready():
                self._done(request, error.errnum or errno.EIO)
                return True
            self._lose(handle)
            return False
        # The socket may be full: its thread goes on when there is room. It can be full of small requests as well, but
        # then there are answers to come, and its thread looks after each.
        if request.large and handle.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
            os.eventfd_write(self._wake, 1)
        return True

    def _completed(self, handle: Any, request: Request, error: Any) -> int:
        number = getattr(error, "value", error)
        if number in _LOST and not self._closing:
            number = errno.EIO
            if self._kept(handle, request):
                return 1
        self._done(request, number)
        return 1  # libnbd may forget the command

    def _kept(self, handle: Any, request: Request) -> bool:
        """Whether a request that this handle took with it will be issued again."""
        with self._lock:
            current = self._handle is handle
            if self._hopeless or not self._reconnect_s:
                again = False
            else:
                again = True
                moved_on = self._handle is not None and not current
                if not moved_on:
                    self._waiting.append(request)
        if current:
            self._dropped = True
            os.eventfd_write(self._wake, 1)
        if again and moved_on:  # told late: there is another connection already
            self.load -= 1
            self.submit(request)
        return again

    def _lose(self, handle: Any) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None
        os.eventfd_write(self._wake, 1)

    # The connection's own thread

    def _run(self) -> None:
        try:
            while not self._ending():
                handle = self._handle
                if handle is not None:
                    self._wait_for(handle)
                    if self._ending():
                        break  # the handle is still good: whoever ends this thread takes leave of the server
                    self._lose(handle)
                    del handle
                if self._reconnect_s is None:
                    break
                if not self._ending():
                    self._come_back(self._reconnect_s)
        except Exception:
            log.exception("a bug of ours ended a connection")
        if not self._parked:
            self._fail_waiting()

    def _ending(self) -> bool:
        return self._closing or self._parked

    def _wait_for(self, handle: Any) -> None:
        """Until the handle is dead."""
        _widen(handle)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        try:
            fd, watched = handle.aio_get_fd(), -1
            while not (self._ending() or self._dropped):
                direction = handle.aio_get_direction()
                if not direction:
                    break  # dead, or closed by the server
                events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
                events |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
                if events != watched:
                    poll.register(fd, events)
                    watched = events
                for ready, what in poll.poll():
                    if ready == self._wake:
                        self._drain()
                    elif what & (select.POLLIN | select.POLLHUP | select.POLLERR) and watched & select.POLLIN:
                        handle.aio_notify_read()
                    elif what:
                        handle.aio_notify_write()
        except nbd.Error as error:
            log.debug("the NBD connection ended: %s", error)

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _come_back(self, patience_s: float) -> None:
        """Connect again, for as long as it takes; requests wait for patience_s of that."""
        log.warning("the NBD server is gone")
        self._dropped = False
        deadline = time.monotonic() + patience_s
        pause = _FIRST_PAUSE_MS
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._ending():
            handle = self._try()
            if handle is not None:
                break
            if time.monotonic() >= deadline or not self._reconnect_s:
                self._fail_waiting()
            if poll.poll(pause):
                self._drain()
            pause = min(pause * 2, _LAST_PAUSE_MS)
        else:
            return
        log.warning("the NBD server is back")
        with self._lock:
            self._handle, self._hopeless, waiting = handle, False, self._waiting
            self._waiting = []
        for request in waiting:
            self.load -= 1
            self.submit(request)

    def _try(self) -> Any:
        handle = nbd.NBD()
        try:
            self._attach(handle)
        except nbd.Error as error:
            log.debug("no NBD server: %s", error)
            return None
        why = self._check(handle)
        if why is not None:
            log.error("the NBD server is back with another export: %s", why)
            return None
        return handle

    def _fail_waiting(self) -> None:
        with self._lock:
            self._hopeless = True
            waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._done(request, errno.EIO)

    def give_up(self) -> None:
        """From now on a server that is gone, or goes, is not waited for."""
        self._reconnect_s = 0 if self._reconnect_s is not None else None
        if self._handle is None:
            self._fail_waiting()

    def close(self, timeout: float = 5.0) -> None:
        """Say goodbye to the server, once nothing is in flight or timeout seconds are over."""
        end = time.monotonic() + timeout
        while (handle := self._handle) is not None and handle.aio_in_flight() and time.monotonic() < end:
            threading.Event().wait(0.005)
        with self._lock:
            self._closing, thread = True, self._thread
        os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join(timeout)
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                handle.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)
            except nbd.Error as error:
                log.debug("no goodbye to the NBD server: %s", error)
        if thread is None or not thread.is_alive():
            os.close(self._wake)
