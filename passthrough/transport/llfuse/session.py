"""A mount's session over llfuse: INIT, then its workers until the mount is gone; and what may be asked of the kernel.

Of INIT libfuse 2.9 agrees on protocol 7.19 and what of that llfuse lets it have; of what the file system would like the
rest is left out, and what it insists on must be among that. The page cache is kept from one open to the next
(FOPEN_KEEP_CACHE, always), so at an open that is not to keep it the kernel is told to drop it. That may wait for a READ
of the same file, so one worker is always left to answer that.
"""

import errno
import logging
import os
import signal
import struct
import threading

from ... import syscalls
from ...filesystem import FileSystem, failure
from ...protocol import constants as c
from ...protocol import notifications
from ...protocol import structs as s
from ...protocol.negotiation import Agreement, Wishes, flag_names
from ..devfuse import notify
from .operations import Operations

log = logging.getLogger(__name__)

MINOR = 19
_MINOR_WITH_PRUNE = 45
FLAGS = c.FUSE_ASYNC_READ | c.FUSE_BIG_WRITES
MAX_WRITE = 1 << 17
"""FUSE_MAX_PAGES_PER_REQ before MAX_PAGES: 32 pages of 4096 bytes."""
_POLL_S = 0.005
_TOO_LATE = ("No such file or directory", "No such device")
"""How llfuse's line about a reply ends that came after its request was aborted: it finds nobody, as it should."""
_NODEIDS = {
    c.FUSE_NOTIFY_INVAL_INODE: 1,
    c.FUSE_NOTIFY_INVAL_ENTRY: 1,
    c.FUSE_NOTIFY_STORE: 1,
    c.FUSE_NOTIFY_DELETE: 2,
}
"""The notifications that protocol 7.19 has and that name nodes, and how many their body begins with."""


def words(max_write: int, *, owner_only: bool, debug: bool) -> frozenset[str]:
    """libfuse's options of a session. Those of the mount itself are given where that is made."""
    found = {"big_writes", f"max_write={min(max_write, MAX_WRITE)}"}
    found |= {"no_splice_read", "no_splice_write", "no_splice_move"}  # the sandbox has no pipes
    found |= {"allow_root"} if owner_only else set()
    return frozenset(found | ({"debug"} if debug else set()))


class LlfuseSession:
    """The one mount that llfuse serves. `ended` is an eventfd that becomes readable when its workers have ended."""

    def __init__(self, operations: Operations, fd: int, workers: int) -> None:
        """fd is what library.begin() said; workers how many requests are served side by side, at least 2."""
        self.ended = -1  # before take_over
        self.failure: str | None = None
        self._operations = operations
        self._library = operations.library
        self.fd = fd
        self._workers = max(2, workers)
        self._may_wait = threading.Semaphore(self._workers - 1)
        self._agreement: Agreement | None = None
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llfuse", daemon=True)

    def take_over(self, device: int) -> None:
        """In the process that serves, in its main thread: the mount's descriptor takes the place of libfuse's."""
        os.dup2(device, self.fd, inheritable=False)
        os.close(device)
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        # At its end llfuse wakes its workers by this signal, which would end a process that has not prepared for it.
        signal.signal(signal.SIGUSR1, lambda number, frame: None)

    def start(self, fs: FileSystem, wishes: Wishes) -> str | None:
        """Serve; returns when INIT has come, with the reason if the session could not begin."""
        missing = wishes.required & ~FLAGS
        if missing:
            return "llfuse does not offer " + " ".join(flag_names(missing))
        told = logging.getLogger("llfuse")
        told.setLevel(logging.INFO)
        told.addFilter(self._hear)
        self._operations.fs = fs
        self._operations.on_init = lambda: self._init(fs, wishes)
        self._operations.drop_pages = self._drop_pages
        self._thread.start()
        self._begun.wait()
        if self.failure is None and self._agreement is None:
            self.failure = "the mount ended before it began"
        return self.failure

    def _init(self, fs: FileSystem, wishes: Wishes) -> None:
        # The kernel takes a notification that it knows, whatever was agreed; an empty one tells whether it knows it.
        prunes = notify(self.fd, notifications.prune(()))
        agreement = Agreement(
            minor=_MINOR_WITH_PRUNE if prunes else MINOR,
            flags=wishes.flags & FLAGS,
            max_write=min(wishes.max_write, MAX_WRITE),
            max_readahead=wishes.max_readahead,
            max_background=wishes.max_background,
            max_pages=min(wishes.max_write, MAX_WRITE) // 4096,
        )
        try:
            fs.init(agreement, self)
        except Exception as error:
            self.failure = f"the file system could not begin: {error}"
            raise  # and so llfuse ends
        else:
            self._agreement = agreement
        finally:
            self._begun.set()

    def _run(self) -> None:
        try:
            self._library.main(workers=self._workers, handle_signals=False)
        except Exception as error:
            log.debug("llfuse ended", exc_info=True)
            self.failure = self.failure or f"llfuse ended: {error}"
        self._begun.set()
        self._over.set()
        os.eventfd_write(self.ended, 1)

    def _hear(self, record: logging.LogRecord) -> bool:
        """Whether a line of llfuse's log is worth telling. Of a loop that is about to end by an exception nothing else
        tells, and main() says which it was only when all workers have ended."""
        said = record.getMessage()
        if "terminating main loop" in said or "aborting processing" in said:
            threading.Thread(target=self._wake_workers, name="wake", daemon=True).start()
            return False
        return not said.endswith(_TOO_LATE)

    def _wake_workers(self) -> None:
        """llfuse wakes each worker once, which one that is about to read does not notice."""
        pid = os.getpid()
        while not self._over.wait(_POLL_S):
            for thread in threading.enumerate():
                if thread.name.startswith("fuse-worker-") and thread.native_id is not None:
                    syscalls.tgkill(pid, thread.native_id, signal.SIGUSR1)

    # What the file system may ask of the kernel

    def notify(self, message: bytes) -> bool:
        """Send a notification, with the numbers by which the kernel knows the nodes (Kernel)."""
        code = s.FUSE_OUT_HEADER.struct.unpack_from(message)[1]
        body = bytearray(message[c.OUT_HEADER_SIZE :])
        if code == c.FUSE_NOTIFY_PRUNE:
            nodeids = (nodeid for (nodeid,) in struct.iter_unpack("=Q", body[s.FUSE_NOTIFY_PRUNE_OUT.size :]))
            numbers = (self._operations.nodes.number(nodeid) for nodeid in nodeids)
            return notify(self.fd, notifications.prune([number for number in numbers if number is not None]))
        for at in range(_NODEIDS.get(code, 0)):
            number = self._operations.nodes.number(struct.unpack_from("=Q", body, 8 * at)[0])
            if number is None:
                return False
            struct.pack_into("=Q", body, 8 * at, number)
        return code in _NODEIDS and notify(self.fd, notifications.message(code, bytes(body)))

    def _drop_pages(self, number: int) -> None:
        if not self._may_wait.acquire(blocking=False):
            self._library.invalidate_inode(number)  # by a thread of llfuse's, soon
            return
        try:
            notify(self.fd, notifications.inval_inode(number))
        finally:
            self._may_wait.release()

    def open_backing(self, fd: int) -> int:
        """EOPNOTSUPP: FUSE_PASSTHROUGH is not agreed (Kernel)."""
        raise failure(errno.EOPNOTSUPP)

    def close_backing(self, backing_id: int) -> None:
        """There is none (Kernel)."""

    # The end

    def quiesce(self, timeout: float) -> bool:
        """Refuse what comes now, and wait (at most timeout seconds) until what is in flight is answered."""
        self._operations.stopping = True
        pause = threading.Event()
        for _ in range(int(timeout / _POLL_S)):
            if self._operations.idle:
                return True
            pause.wait(_POLL_S)
        return self._operations.idle

    def join(self, timeout: float) -> bool:
        """Wait until all workers have ended; False where one still waits for the kernel after timeout seconds."""
        return self._over.wait(timeout)

    def interrupt_waiting(self) -> None:
        """Nothing waits: locks are the kernel's."""

    def close(self) -> None:
        """After the end: the file system is told."""
        with self._lock:
            begun, self._agreement = self._agreement is not None, None
        if begun:
            self._operations.fs.destroy()
