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
from collections.abc import Callable

from ..protocol.constants import FUSE_DEV_IOC_CLONE, FUSE_MIN_READ_BUFFER, OUT_HEADER_SIZE
from ..protocol.errors import StreamError
from ..protocol.operations import BY_NAME
from ..protocol.replies import put_header
from ..protocol.requests import read_header
from ..protocol.structs import FUSE_IN_HEADER, FUSE_WRITE_IN
from ..protocol.values import Answer, FileRange
from ..server import Server
from .mounting import DEVICE
from .workers import Crew

log = logging.getLogger(__name__)

GONE = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF})
_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
_FORGETS = frozenset({BY_NAME["forget"].opcode, BY_NAME["batch_forget"].opcode})
_GATHER_S = 0.005
_WRITE_PREFIX = FUSE_IN_HEADER.size + FUSE_WRITE_IN.size


def _buffer(size: int, prefix: int) -> memoryview:
    """Memory of `size` bytes and more whose byte `prefix` lies on a page boundary."""
    room = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    return memoryview(room)[mmap.PAGESIZE - prefix :]


class Queue:
    """One descriptor, one thread, one request at a time. Also the Channel that its requests came through.

    The buffers are mapped when the queue is made and take memory when it is first used. Where `forgetful` is set,
    little but FORGET comes here, and a pause after each lets the kernel gather the next ones into one BATCH_FORGET:
    nobody waits for them, and a thread that wakes for each takes the interpreter from those that serve somebody.
    """

    def __init__(self, fd: int, server: Server, payload: int, stop: int | None = None) -> None:
        """stop: a descriptor that becomes readable when this queue is to end, though the mount is there; fd must then
        be one that does not block. It costs a call for each request."""
        self.forgetful = False
        self._fd = fd
        self._stop = stop
        self._server = server
        self._payload = payload
        self._spare: list[tuple[memoryview, memoryview]] = []
        self._kept: set[int] = set()
        self._take_buffers()
        self.idle = True
        self.served = 0
        self.halted: str | None = None

    def _take_buffers(self) -> None:
        """For a request and its reply: a pair that a kept request has given back, or a new one."""
        try:
            self._request, self._reply = self._spare.pop()
        except IndexError:
            self._request = _buffer(max(self._payload + _WRITE_PREFIX, FUSE_MIN_READ_BUFFER), _WRITE_PREFIX)
            self._reply = _buffer(max(self._payload, 1 << 16) + OUT_HEADER_SIZE, OUT_HEADER_SIZE)
        self.body = self._reply[OUT_HEADER_SIZE:]

    @property
    def kept(self) -> int:
        """How many requests are open that were kept."""
        return len(self._kept)

    def run(self, crew: Crew) -> bool:
        """Serve until the mount is gone (False), or the stream from this descriptor cannot be trusted (True)."""
        handle = self._server.handle
        while True:
            if crew.crowded:
                crew.rest(self)
            if crew.stopping:
                return False
            request = self._request
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
            if length is not None and not self._answer(header.unique, length):
                return False
            self.idle = True
            if self.forgetful and header.opcode in _FORGETS:
                crew.pause(_GATHER_S)

    def negotiate(self) -> None:
        """Answer the requests up to the one that INIT ends with: an agreement, or a reason why there is none."""
        server = self._server
        while server.agreement is None and server.failure is None:
            received = self._read(self._request)
            if received < 0:
                return
            header = read_header(self._request, received)
            length = server.handle(header, self._request, self)
            if length is not None:
                self._answer(header.unique, length)

    def _answer(self, unique: int, length: int) -> bool:
        """Write a reply whose body is in place; False where the mount is gone."""
        return self._write(self._reply, unique, length)

    def _write(self, reply: memoryview, unique: int, length: int) -> bool:
        if length >= 0:
            size = OUT_HEADER_SIZE + length
            put_header(reply, 0, size, 0, unique)
        else:
            size = OUT_HEADER_SIZE
            put_header(reply, 0, size, length, unique)
        try:
            os.write(self._fd, reply[:size])
        except OSError as error:
            return self._survives(error, unique)
        return True

    def _read(self, buffer: memoryview) -> int:
        """The next request's length in bytes, or -1 at the end."""
        buffers = (buffer,)
        while True:
            if self._stop is not None and self._told_to_stop(self._stop):
                return -1
            try:
                received = os.readv(self._fd, buffers)
                return received or -1
            except BlockingIOError:
                self._wait_readable()
            except OSError as error:
                if error.errno in GONE:
                    return -1
                if error.errno not in _AGAIN:
                    self.halted = f"cannot read {DEVICE}: {error.strerror}"
                    log.error("%s; this queue halts", self.halted)
                    return -1

    def _wait_readable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()

    def _told_to_stop(self, stop: int) -> bool:
        """Wait for a request, or for the word to end; whether it is that."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        return stop in {fd for fd, _ in poll.poll()}

    def close(self) -> None:
        """The descriptor is about to be closed: an answer that comes late must not go to who has its number next."""
        self._fd = -1

    def _survives(self, error: OSError, unique: int) -> bool:
        if error.errno in GONE or error.errno == errno.EPERM:
            return False
        if error.errno != errno.ENOENT:
            log.error("the kernel refused the reply to request %d: %s", unique, error.strerror)
        return True

    # Channel

    def pull(self, source: FileRange) -> int:
        """One preadv from the file to the reply."""
        return os.preadv(source.fd, (self.body[: source.size],), source.offset)

    def keep(self, unique: int) -> tuple[memoryview, Answer]:
        """The buffers are this request's own until it is answered; the queue goes on with others."""
        buffers = self._request, self._reply
        body = self.body
        self._kept.add(unique)
        self._take_buffers()

        def answer(length: int) -> None:
            self._write(buffers[1], unique, length)
            self._spare.append(buffers)
            self._kept.discard(unique)

        return body, answer

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


def clone(fd: int) -> int:
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


def notify(fd: int, message: bytes) -> bool:
    """Send a notification; False where the kernel does not know the node or the code, or the mount is gone."""
    try:
        os.write(fd, message)
    except OSError as error:
        if error.errno not in GONE and error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY):
            log.debug("notification refused: %s", error.strerror)
        return False
    return True


def clone_all(fd: int, count: int) -> list[int]:
    """So many clones; none is left open where one cannot be had."""
    found: list[int] = []
    try:
        for _ in range(count):
            found.append(clone(fd))
    except BaseException:
        for made in found:
            os.close(made)
        raise
    return found
