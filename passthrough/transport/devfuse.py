"""The kernel's own door: requests read from /dev/fuse and replies written to it, a queue per thread.

Rules of this file: it moves bytes and decides when a queue ends; what a request means is the server's. Each queue has a
descriptor of its own (FUSE_DEV_IOC_CLONE) where the device can be opened again, and buffers that live as long as it
does. Both buffers are laid so that a request's data and a reply's data start on a page: direct I/O asks for that, and
copies like it.

What the device says (fs/fuse/dev.c, fuse_dev_do_read and fuse_dev_do_write):
  read   ENODEV, ECONNABORTED: the mount is gone; ENOENT: that request was aborted, read the next; EINTR, EAGAIN: again;
         EINVAL, EIO: our buffer is too small, which cannot be mended.
  write  ENOENT: that request was aborted meanwhile, nobody waits; ENODEV, ECONNABORTED, EPERM: the mount is gone.
"""

import errno
import fcntl
import logging
import mmap
import os
import select
import struct
import threading
from collections.abc import Callable

from ..protocol.constants import FUSE_DEV_IOC_CLONE, FUSE_MIN_READ_BUFFER, OUT_HEADER_SIZE
from ..protocol.errors import StreamError
from ..protocol.replies import put_header
from ..protocol.requests import read_header
from ..protocol.structs import FUSE_IN_HEADER, FUSE_WRITE_IN
from ..protocol.values import FileRange
from ..server import Server
from .mounting import DEVICE
from .workers import Crew

log = logging.getLogger(__name__)

_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF})
_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_POLL_S = 0.005
_WRITE_PREFIX = FUSE_IN_HEADER.size + FUSE_WRITE_IN.size


def _buffer(size: int, prefix: int) -> memoryview:
    """Memory of `size` bytes and more whose byte `prefix` lies on a page boundary."""
    room = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    return memoryview(room)[mmap.PAGESIZE - prefix :]


class Queue:
    """One descriptor, one thread, one request at a time. Also the Channel that its requests came through.

    The buffers are mapped when the queue is made and take memory when it is first used.
    """

    def __init__(self, fd: int, server: Server, payload: int) -> None:
        self._fd = fd
        self._server = server
        self._request = _buffer(max(payload + _WRITE_PREFIX, FUSE_MIN_READ_BUFFER), _WRITE_PREFIX)
        self._reply = _buffer(max(payload, 1 << 16) + OUT_HEADER_SIZE, OUT_HEADER_SIZE)
        self.body = self._reply[OUT_HEADER_SIZE:]
        self.idle = True
        self.served = 0
        self.halted: str | None = None

    def run(self, crew: Crew) -> bool:
        """Serve until the mount is gone (False), or the stream from this descriptor cannot be trusted (True)."""
        request, reply = self._request, self._reply
        handle, write, fd = self._server.handle, os.write, self._fd
        while True:
            if crew.crowded:
                crew.rest(self)
            if crew.stopping:
                return False
            received = self._read(request)
            if received < 0:
                return self.halted is not None
            self.idle = False
            self.served += 1
            if crew.asleep:
                crew.wake()
            try:
                header = read_header(request, received)
            except StreamError as error:
                self.halted = f"the stream from {DEVICE} cannot be trusted: {error}"
                log.error("%s; this queue halts", self.halted)
                return True
            length = handle(header, request, self)
            if length is not None:
                if length >= 0:
                    size = OUT_HEADER_SIZE + length
                    put_header(reply, 0, size, 0, header.unique)
                else:
                    size = OUT_HEADER_SIZE
                    put_header(reply, 0, size, length, header.unique)
                try:
                    write(fd, reply[:size])
                except OSError as error:
                    if not self._survives(error, header.unique):
                        return False
            self.idle = True

    def _read(self, buffer: memoryview) -> int:
        """The next request's length in bytes, or -1 at the end."""
        buffers = (buffer,)
        while True:
            try:
                received = os.readv(self._fd, buffers)
                return received or -1
            except BlockingIOError:
                self._wait_readable()
            except OSError as error:
                if error.errno in _GONE:
                    return -1
                if error.errno not in _AGAIN:
                    self.halted = f"cannot read {DEVICE}: {error.strerror}"
                    log.error("%s; this queue halts", self.halted)
                    return -1

    def _wait_readable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()

    def _survives(self, error: OSError, unique: int) -> bool:
        if error.errno in _GONE or error.errno == errno.EPERM:
            return False
        if error.errno != errno.ENOENT:
            log.error("the kernel refused the reply to request %d: %s", unique, error.strerror)
        return True

    # Channel

    def pull(self, source: FileRange) -> int:
        """One preadv from the file to the reply."""
        return os.preadv(source.fd, (self.body[: source.size],), source.offset)

    def defer(self, unique: int) -> Callable[[int], None]:
        """The reply goes to the descriptor that the request came from, as the kernel demands."""

        def answer(error: int) -> None:
            message = bytearray(OUT_HEADER_SIZE)
            put_header(message, 0, OUT_HEADER_SIZE, error, unique)
            try:
                os.write(self._fd, message)
            except OSError as failure:
                self._survives(failure, unique)

        return answer


class Session:
    """All queues of one mount. `ended` is an eventfd that becomes readable when the last queue has ended."""

    def __init__(self, fd: int, threads: int, payload: int) -> None:
        """fd is the mounted device; threads is how many requests may be served side by side; payload the most bytes
        of data that a request or a reply brings."""
        self.fd = fd
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._descriptors = [fd, *(_clone(fd) for _ in range(threads - 1))]
        self._payload = payload
        self._queues: list[Queue] = []
        self._crew: Crew | None = None

    def start(self, server: Server) -> None:
        """Start to serve; the first request that the kernel sends is INIT."""
        self._queues = [Queue(fd, server, self._payload) for fd in self._descriptors]
        self._crew = Crew(self._queues, lambda: os.eventfd_write(self.ended, 1))
        self._crew.start()

    def notify(self, message: bytes) -> bool:
        """Send a notification; False where the kernel does not know the node or the code (Notifier)."""
        try:
            os.write(self.fd, message)
        except OSError as error:
            if error.errno not in _GONE and error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY):
                log.debug("notification refused: %s", error.strerror)
            return False
        return True

    @property
    def failure(self) -> str | None:
        """Why the session ended early, or None where it was unmounted or asked to stop."""
        halted = next((queue.halted for queue in self._queues if queue.halted), None)
        return halted or (self._crew.failure if self._crew else None)

    def quiesce(self, timeout: float) -> bool:
        """Take no further requests and wait (at most timeout seconds) until those in flight are answered."""
        if self._crew is None:
            return True
        self._crew.stop()
        pause = threading.Event()
        for _ in range(int(timeout / _POLL_S)):
            if all(queue.idle for queue in self._queues):
                return True
            pause.wait(_POLL_S)
        return all(queue.idle for queue in self._queues)

    def join(self, timeout: float) -> bool:
        """Wait until every queue has ended; False where one still sits in read(2) after timeout seconds."""
        return self._crew is None or self._crew.join(timeout)

    def close(self) -> None:
        """Close all descriptors, after join(); the connection is aborted if it still stands."""
        for fd in (self.ended, *self._descriptors):
            os.close(fd)


def _clone(fd: int) -> int:
    """Another descriptor with a processing list of its own, or the same one where the device cannot be opened."""
    try:
        clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)
    try:
        fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(clone)
        return os.dup(fd)
    return clone
