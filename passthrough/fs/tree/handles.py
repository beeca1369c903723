"""The fd map and the dirp map: what OPEN and OPENDIR hand out, and what must match when it comes back.

A descriptor is closed when the last reference to its handle goes, so a RELEASE that races a READ is harmless; whoever
uses a handle's descriptor must therefore hold the handle for as long, in a variable of its own.
"""

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from ...filesystem import failure
from ...protocol.constants import FUSE_FSYNC_FDATASYNC
from .inodes import Inode


class Handle:
    """An open file: a descriptor of our own, and the inode that it belongs to."""

    __slots__ = ("fd", "inode")

    def __init__(self, fd: int, inode: Inode) -> None:
        inode.pins.take()
        self.fd = fd
        self.inode = inode

    def sync(self, fsync_flags: int) -> None:
        """To the disk, as FSYNC and FSYNCDIR ask."""
        if fsync_flags & FUSE_FSYNC_FDATASYNC:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        finally:
            self.inode.pins.give_back()


AnyHandle = TypeVar("AnyHandle", bound=Handle)


class BackedHandle(Handle):
    """An open file whose data the kernel moves itself: a descriptor of ours is opened when something else is asked."""

    __slots__ = ("_open", "_opening")

    def __init__(self, inode: Inode, fd: int | None, opener: Callable[[], int]) -> None:
        self.inode = inode
        self._open = opener
        self._opening = threading.Lock()
        if fd is not None:
            inode.pins.take()
            self.fd = fd

    def __getattr__(self, name: str) -> int:
        """Python asks this for `fd` only while there is none."""
        if name != "fd":
            raise AttributeError(name)
        with self._opening:
            try:
                return cast(int, object.__getattribute__(self, "fd"))
            except AttributeError:
                fd = self._open()
                self.inode.pins.take()
                self.fd = fd
                return fd

    def __del__(self) -> None:
        try:
            fd = object.__getattribute__(self, "fd")
        except AttributeError:
            return
        try:
            os.close(fd)
        finally:
            self.inode.pins.give_back()


class HandleMap(Generic[AnyHandle]):
    """Handles by fh. Numbers are not reused."""

    def __init__(self) -> None:
        self._by_fh: dict[int, AnyHandle] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_fh)

    def add(self, handle: AnyHandle) -> int:
        """Keep a handle and return its fh."""
        with self._lock:
            fh = next(self._numbers)
            self._by_fh[fh] = handle
        return fh

    def get(self, fh: int, nodeid: int) -> AnyHandle:
        """The handle fh of this very node. EBADF for an unknown one and for one of another node."""
        handle = self._by_fh.get(fh)
        if handle is None or handle.inode.nodeid != nodeid:
            raise failure(errno.EBADF)
        return handle

    def pop(self, fh: int, nodeid: int) -> AnyHandle:
        """The same, and it is no longer kept."""
        with self._lock:
            handle = self.get(fh, nodeid)
            del self._by_fh[fh]
        return handle

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            dropped, self._by_fh = self._by_fh, {}
        del dropped
