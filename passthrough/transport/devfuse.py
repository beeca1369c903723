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

log = logging.getLogger(__name__)

_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF})
_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_WRITE_PREFIX = FUSE_IN_HEADER.size + FUSE_WRITE_IN.size


def _buffer(size: int, prefix: int) -> memoryview:
    """Memory of `size` bytes and more whose byte `prefix` lies on a page boundary."""
    room = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    return memoryview(room)[mmap.PAGESIZE - prefix :]


class Queue:
    """One descriptor, one thread, one request at a time. Also the Channel that its requests came through."""

    def __init__(self, fd: int, server: Server, payload: int) -> None:
        self._fd = fd
        self._server = server
        self._request = _buffer(max(payload + _WRITE_PREFIX, FUSE_MIN_READ_BUFFER), _WRITE_PREFIX)
        self._reply = _buffer(max(payload, 1 << 16) + OUT_HEADER_SIZE, OUT_HEADER_SIZE)
        self.body = self._reply[OUT_HEADER_SIZE:]
        self.idle = True
        self.halted: str | None = None

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve until the mount is gone, the stream lies, or stopping() is true after a request."""
        request, reply = self._request, self._reply
        handle, write, fd = self._server.handle, os.write, self._fd
        while not stopping():
            received = self._read(request)
            if received < 0:
                return
            self.idle = False
            try:
                header = read_header(request, received)
            except StreamError as error:
                self.halted = f"the stream from {DEVICE} cannot be trusted: {error}"
                log.error("%s; this queue halts", self.halted)
                return
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
                        return
            self.idle = True

    def _read(self, buffer: memoryview) -> int:
        """The next request's length in bytes, or -1 at the end."""
        buffers = (buffer,)
        while True:
            try:
                received = os.readv(self._fd, buffers)
                return received or -1
            except BlockingIOError:
                select.select([self._fd], [], [])
            except OSError as error:
                if error.errno in _GONE:
                    return -1
                if error.errno not in _AGAIN:
                    self.halted = f"cannot read {DEVICE}: {error.strerror}"
                    log.error("%s; this queue halts", self.halted)
                    return -1

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
        self.fd = fd
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._threads = threads
        self._payload = payload
        self._queues: list[Queue] = []
        self._running: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._alive = 0
        self._stopping = False

    def start(self, server: Server) -> None:
        """Start a thread per queue; the first request that the kernel sends is INIT."""
        descriptors = [self.fd]
        for _ in range(self._threads - 1):
            descriptors.append(_clone(self.fd))
        self._queues = [Queue(fd, server, self._payload) for fd in descriptors]
        self._alive = len(self._queues)
        for number, queue in enumerate(self._queues):
            thread = threading.Thread(target=self._run, args=(queue,), name=f"queue-{number}", daemon=True)
            self._running.append(thread)
            thread.start()

    def _run(self, queue: Queue) -> None:
        try:
            queue.run(lambda: self._stopping)
        except Exception:
            log.exception("a bug of ours ended a queue")
            queue.halted = "a bug of ours ended a queue"
        queue.idle = True
        with self._lock:
            self._alive -= 1
            last = self._alive == 0
        if last:
            os.eventfd_write(self.ended, 1)

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
        return next((queue.halted for queue in self._queues if queue.halted), None)

    def quiesce(self, timeout: float) -> bool:
        """Take no further requests and wait (at most timeout seconds) until those in flight are answered."""
        self._stopping = True
        end = threading.Event()
        waited = 0.0
        while not all(queue.idle for queue in self._queues):
            if waited >= timeout:
                return False
            end.wait(0.005)
            waited += 0.005
        return True

    def join(self, timeout: float) -> bool:
        """Wait until every queue has ended; False where one still sits in read(2) after timeout seconds."""
        for thread in self._running:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._running)

    def close(self) -> None:
        """Close the descriptors of queues that have ended; closing the last one aborts the connection."""
        os.close(self.ended)
        for queue, thread in zip(self._queues, self._running, strict=True):
            if not thread.is_alive():
                os.close(queue._fd)


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
