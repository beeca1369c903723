"""Kernel passthrough: regular files that the kernel reads and writes itself (FUSE_PASSTHROUGH, Linux 6.9).

One backing id per inode, shared by its opens, because the kernel refuses an open that names another id, or none, while
one is in use (fs/fuse/iomode.c). So what is decided for an inode holds for all of its opens: an inode that was refused
once is served through the daemon for as long as it is remembered. An id is kept as long, too, rather than closed with
the last open: it holds no more than our own descriptor does, with which it goes where that is let go, and a file is
opened more often than it is forgotten.

The O_PATH descriptor is registered: each open of the mount makes the kernel open the file anew with that open's flags,
and with the credentials of the registering thread. They lack CAP_FSETID, so a write clears SUID and SGID; the kernel
leaves that to us (FUSE_HANDLE_KILLPRIV_V2), and a write that we do not see we cannot do it for. Root's own writes would
keep the bits, so a file that has them when it is opened for writing is served through the daemon.
"""

import contextlib
import errno
import logging
import os
import stat
import threading

from ...filesystem import Kernel
from .credentials import Credentials
from .inodes import Inode

log = logging.getLogger(__name__)

_PRIVILEGES = stat.S_ISUID | stat.S_ISGID
_FOR_ALL = frozenset({errno.EPERM, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP})


class Backing:
    """The id of one inode (0: its data passes through the daemon) and how many opens use it; it goes with the inode."""

    __slots__ = ("_kernel", "backing_id", "opens")

    def __init__(self, kernel: Kernel, backing_id: int) -> None:
        self._kernel = kernel
        self.backing_id = backing_id
        self.opens = 0

    def __del__(self) -> None:
        if self.backing_id:
            with contextlib.suppress(OSError):  # the session has ended, and its ids with it
                self._kernel.close_backing(self.backing_id)


def _can_be_opened(fd: int) -> bool:
    """Whether the kernel could open this anew for us: what was opened by its handle may have no path, which Landlock
    refuses."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Backings:
    """The backing ids of one session. What an inode has is decided under one lock; the ioctl touches no file system."""

    def __init__(self, kernel: Kernel, credentials: Credentials) -> None:
        self._kernel = kernel
        self._credentials = credentials
        self._lock = threading.Lock()
        self._off = False
        self._refused = Backing(kernel, 0)

    def open(self, inode: Inode, *, writing: bool, mode: int | None = None) -> int:
        """The id for one more open of this inode, or 0 where its data must pass through the daemon.

        mode is the file's, where the caller knows it.
        """
        backing = inode.backing
        privileged = False
        if writing and (backing is None or not backing.opens):
            privileged = bool((os.stat(inode.fd).st_mode if mode is None else mode) & _PRIVILEGES)
        fd = inode.fd  # before the lock: to open it by its handle others may have to be let go, which takes the lock
        with self._lock:
            backing = inode.backing
            if privileged and (backing is None or not backing.opens):
                inode.backing = self._refused
                return 0
            if backing is None:
                if self._off:
                    return 0
                backing = inode.backing = self._registered(inode, fd)
            if backing.backing_id:
                backing.opens += 1
            return backing.backing_id

    def _registered(self, inode: Inode, fd: int) -> Backing:
        if not inode.connected and not _can_be_opened(fd):
            return self._refused
        try:
            with self._credentials.killing_privileges(True):
                return Backing(self._kernel, self._kernel.open_backing(fd))
        except OSError as error:
            if error.errno in _FOR_ALL:
                self._off = True
                log.warning("kernel passthrough is refused (%s): data passes through the daemon", error.strerror)
            return self._refused

    def let_go(self, inode: Inode) -> None:
        """Keep no id that no open uses; the next one registers the file again. What was refused stays so."""
        with self._lock:
            backing = inode.backing
            if backing is not None and backing is not self._refused and not backing.opens:
                inode.backing = None

    def close(self, inode: Inode) -> None:
        """One open less."""
        with self._lock:
            if inode.backing is not None:
                inode.backing.opens -= 1
