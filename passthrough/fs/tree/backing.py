"""Kernel passthrough: regular files that the kernel reads and writes itself (FUSE_PASSTHROUGH, Linux 6.9).

One backing id per inode, shared by its opens and closed with the last of them, because the kernel refuses an open that
names another id, or none, while one is in use (fs/fuse/iomode.c). So what is decided for an inode holds for all of its
opens: an inode that was refused once is served through the daemon for as long as it is remembered.

The O_PATH descriptor is registered: each open of the mount makes the kernel open the file anew with that open's flags,
and with the credentials of the registering thread. They lack CAP_FSETID, so a write clears SUID and SGID; the kernel
leaves that to us (FUSE_HANDLE_KILLPRIV_V2), and a write that we do not see we cannot do it for. Root's own writes would
keep the bits, so a file that has them when it is opened for writing is served through the daemon.
"""

import errno
import logging
import os
import stat
import threading

from ...filesystem import Kernel
from .credentials import Credentials
from .inodes import Inode

log = logging.getLogger(__name__)

REFUSED = -1
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID
_FOR_ALL = frozenset({errno.EPERM, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP})


class Backings:
    """The backing ids of one session. Everything happens under one lock: an id and its count belong together, and the
    two ioctls touch no file system."""

    def __init__(self, kernel: Kernel, credentials: Credentials) -> None:
        self._kernel = kernel
        self._credentials = credentials
        self._lock = threading.Lock()
        self._off = False

    def open(self, inode: Inode, *, writing: bool) -> int:
        """The id for one more open of this inode, or 0 where its data must pass through the daemon."""
        privileged = writing and inode.backing_id == 0 and os.stat(inode.fd).st_mode & _PRIVILEGES
        with self._lock:
            if inode.backing_id == 0 and not self._off:
                if privileged:
                    inode.backing_id = REFUSED
                else:
                    self._register(inode)
            if inode.backing_id <= 0:
                return 0
            inode.backed_opens += 1
            return inode.backing_id

    def _register(self, inode: Inode) -> None:
        try:
            with self._credentials.killing_privileges(True):
                inode.backing_id = self._kernel.open_backing(inode.fd)
        except OSError as error:
            inode.backing_id = REFUSED
            if error.errno in _FOR_ALL:
                self._off = True
                log.warning("kernel passthrough is refused (%s): data passes through the daemon", error.strerror)

    def close(self, inode: Inode) -> None:
        """One open less."""
        with self._lock:
            inode.backed_opens -= 1
            if inode.backed_opens == 0:
                backing_id, inode.backing_id = inode.backing_id, 0
                self._kernel.close_backing(backing_id)
