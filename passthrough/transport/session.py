"""A mount's session: INIT, then all its queues until the mount is gone; and what may be asked of the kernel meanwhile.

With FUSE over io_uring agreed, a queue per CPU serves; /dev/fuse then brings FORGET and INTERRUPT alone.
"""

import errno
import fcntl
import logging
import os
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..protocol.constants import FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN, FUSE_OVER_IO_URING
from ..protocol.errors import StreamError
from ..protocol.structs import FUSE_BACKING_MAP
from ..server import Server
from .devfuse import Queue, clone_all, notify
from .turns import Turns
from .uring import UringQueue, possible_cpus
from .workers import Crew

log = logging.getLogger(__name__)

_POLL_S = 0.005


class Session:
    """All queues of one mount. `ended` is an eventfd that becomes readable when the last queue has ended."""

    def __init__(
        self,
        fd: int,
        threads: int,
        payload: int,
        clones: Sequence[int] | None = None,
        cpus: Sequence[int] | None = None,
        *,
        stoppable: bool = False,
    ) -> None:
        """fd is the mounted device; threads is how many slow requests may be served side by side; payload the most
        bytes of data that a request or a reply brings; clones are threads - 1 clones of fd (taken over), and cpus
        possible_cpus(), to be given where the device and /sys cannot be opened any more; stoppable: stop() will do."""
        self.fd = fd
        self._threads = threads
        self._descriptors = [fd, *(clone_all(fd, threads - 1) if clones is None else clones)]
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._cpus = cpus
        self._payload = payload
        self._queues: list[Queue] = []
        self._crew: Crew | None = None
        self._uring: list[UringQueue] = []
        self._uring_threads: list[threading.Thread] = []
        self._helpers: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._stop: int | None = None
        if stoppable:
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            for descriptor in self._descriptors:
                os.set_blocking(descriptor, False)
        self._parts = 1  # the crew, and each io_uring queue: the last to end says so

    def start(self, server: Server) -> None:
        """Agree on INIT, which is the first request that the kernel sends, and serve. The server says how it went."""
        self._queues = [Queue(fd, server, self._payload, self._stop) for fd in self._descriptors]
        try:
            self._queues[0].negotiate()
        except StreamError as error:
            server.failure = str(error)
        if server.failure is not None or server.agreement is None:
            server.failure = server.failure or "the mount ended before it began"
            return
        queues = self._queues
        if server.agreement.has(FUSE_OVER_IO_URING):
            if not self._start_uring(server):
                return
            queues = queues[:1]
            queues[0].forgetful = True
        self._crew = Crew(queues, self._part_ended)
        self._crew.start()

    def _start_uring(self, server: Server) -> bool:
        cpus = possible_cpus() if self._cpus is None else self._cpus
        self._helpers = ThreadPoolExecutor(self._threads, "helper")
        turns = Turns()
        self._uring = [UringQueue(self.fd, cpu, server, self._payload, self._helpers, turns) for cpu in cpus]
        self._parts += len(cpus)
        registered = threading.Semaphore(0)
        for queue in self._uring:
            thread = threading.Thread(
                target=self._run_uring, args=(queue, registered), name=f"uring-{queue.cpu}", daemon=True
            )
            self._uring_threads.append(thread)
            thread.start()
        for _ in cpus:
            registered.acquire()
        server.failure = next((queue.failure for queue in self._uring if queue.failure), None)
        return server.failure is None

    def _run_uring(self, queue: UringQueue, registered: threading.Semaphore) -> None:
        try:
            queue.run(registered.release)
        except Exception:
            queue.failure = "a bug of ours ended a queue; the log has the traceback"
            log.exception("a bug of ours ended a queue")
        self._part_ended()

    def _part_ended(self) -> None:
        with self._lock:
            self._parts -= 1
            last = self._parts == 0
        if last:
            os.eventfd_write(self.ended, 1)

    def notify(self, message: bytes) -> bool:
        """Send a notification; False where the kernel does not know the node or the code (Kernel)."""
        return notify(self.fd, message)

    def open_backing(self, fd: int) -> int:
        """FUSE_DEV_IOC_BACKING_OPEN (Kernel)."""
        # A mutable buffer: for an immutable one ioctl() returns the buffer and not the number.
        request = bytearray(FUSE_BACKING_MAP.struct.pack(fd, 0))
        return int(fcntl.ioctl(self.fd, FUSE_DEV_IOC_BACKING_OPEN, request))

    def close_backing(self, backing_id: int) -> None:
        """FUSE_DEV_IOC_BACKING_CLOSE (Kernel)."""
        if self.fd < 0:  # they went with the session
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fcntl.ioctl(self.fd, FUSE_DEV_IOC_BACKING_CLOSE, struct.pack("=I", backing_id))

    @property
    def failure(self) -> str | None:
        """Why the session ended early, or None where it was unmounted or asked to stop."""
        halted = [queue.halted for queue in self._queues] + [queue.failure for queue in self._uring]
        return next((why for why in halted if why), self._crew.failure if self._crew else None)

    @property
    def uring_failed(self) -> bool:
        """Whether it was io_uring that could not begin."""
        return any(queue.failure for queue in self._uring)

    def _idle(self) -> bool:
        return all(queue.idle and not queue.kept for queue in self._queues) and all(queue.idle for queue in self._uring)

    def quiesce(self, timeout: float) -> bool:
        """Wait (at most timeout seconds) until what is in flight is answered; /dev/fuse brings no more."""
        if self._crew is not None:
            self._crew.stop()
        pause = threading.Event()
        for _ in range(int(timeout / _POLL_S)):
            if self._idle():
                return True
            pause.wait(_POLL_S)
        return self._idle()

    def stop(self) -> None:
        """End all queues of a stoppable session, though the mount is there: then join(), and close() cuts it off."""
        if self._crew is not None:
            self._crew.stop()
        if self._stop is not None:
            os.eventfd_write(self._stop, 1)
        for queue in self._uring:
            queue.stop()

    def join(self, timeout: float) -> bool:
        """Wait until every queue has ended; False where one still waits for the kernel after timeout seconds each."""
        ended = self._crew is None or self._crew.join(timeout)
        for thread in self._uring_threads:
            thread.join(timeout)
        return ended and not any(thread.is_alive() for thread in self._uring_threads)

    def close(self) -> None:
        """Close all descriptors, after join(); the connection is aborted if it still stands.

        The numbers may be somebody else's right afterwards: nothing of ours uses them any more.
        """
        if self._helpers is not None:
            self._helpers.shutdown()
        for queue in self._uring:
            queue.close()
        for reader in self._queues:
            reader.close()
        descriptors = [self.ended, *self._descriptors, *([] if self._stop is None else [self._stop])]
        self.fd = -1
        for fd in descriptors:
            os.close(fd)
