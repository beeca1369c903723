"""Locks: flock(2) on the handle, POSIX locks by open-file-description locks, one description per inode and owner.

The kernel names a lock's owner by a number; a description of ours stands for it (fcntl(2), "Open file description
locks", Linux 3.15), so owners stay apart, and processes on the source's side conflict as they should. Unlike the
kernel's own POSIX locks these find no deadlocks (EDEADLK is never raised).
"""

import errno
import fcntl
import os
from collections.abc import Callable
from struct import Struct

from ... import syscalls
from ...filesystem import failure, unsupported
from ...protocol import constants as c
from ...protocol.values import Context, FileLock
from .base import TreeBase
from .handles import Handle
from .inodes import Inode
from .pins import Pins

_flock = Struct("=hh4xqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_TO_END = (1 << 63) - 1
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})
_FLOCK = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}


class LockFile:
    """An owner's open file description for one inode; closing it drops the owner's locks."""

    __slots__ = ("fd", "pid", "pins")

    def __init__(self, fd: int, pid: int, pins: Pins) -> None:
        pins.take()
        self.fd = fd
        self.pid = pid
        self.pins = pins

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        finally:
            self.pins.give_back()


def _pack(lock: FileLock) -> bytearray:
    if lock.type not in _FLOCK or not 0 <= lock.start <= lock.end:
        raise failure(errno.EINVAL)
    if lock.start > _TO_END:
        raise failure(errno.EOVERFLOW)
    length = 0 if lock.end >= _TO_END else lock.end - lock.start + 1
    return bytearray(_flock.pack(lock.type, os.SEEK_SET, lock.start, length, 0))


def _unpack(raw: bytearray) -> FileLock:
    kind, _, start, length, pid = _flock.unpack(raw)
    return FileLock(start, start + length - 1 if length else _TO_END, kind, max(pid, 0))


class Locks(TreeBase):
    """getlk and setlk; without the options the kernel keeps locks among the mount's own users."""

    def getlk(self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int) -> FileLock:
        """What stands in the way; the pid is known where the holder came through this mount."""
        if not self.config.posix_lock:
            unsupported()
        handle = self.files.get(fh, nodeid)
        raw = _pack(lock)
        file = (handle.inode.locks or {}).get(owner) or self._new_lock_file(handle.inode, lock.pid)
        syscalls.fcntl_lock(file.fd, syscalls.F_OFD_GETLK, raw)
        found = _unpack(raw)
        if found.type == fcntl.F_UNLCK or found.pid:
            return found
        return found._replace(pid=self._holder(handle.inode, owner, found))

    def _holder(self, inode: Inode, asking: int, lock: FileLock) -> int:
        """The owner whose own description sees no conflict in that range is the one that holds it."""
        others = [file for owner, file in list((inode.locks or {}).items()) if owner != asking]
        for file in others:
            raw = _pack(lock._replace(type=fcntl.F_WRLCK))
            syscalls.fcntl_lock(file.fd, syscalls.F_OFD_GETLK, raw)
            if _unpack(raw).type == fcntl.F_UNLCK:
                return file.pid
        return 0

    def setlk(self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int, wait: bool) -> None:
        """Set or clear; a waiting one ends with EINTR when the caller gives up."""
        handle = self.files.get(fh, nodeid)
        if lk_flags & c.FUSE_LK_FLOCK:
            self._set_flock(ctx, handle, lock, wait)
        else:
            self._set_posix(ctx, handle, owner, lock, wait)

    def _set_flock(self, ctx: Context, handle: Handle, lock: FileLock, wait: bool) -> None:
        if not self.config.flock:
            unsupported()
        if lock.type not in _FLOCK:
            raise failure(errno.EINVAL)
        operation = _FLOCK[lock.type]
        if wait:
            _until_interrupted(ctx, lambda: syscalls.flock(handle.fd, operation))
        else:
            syscalls.flock(handle.fd, operation | fcntl.LOCK_NB)

    def _set_posix(self, ctx: Context, handle: Handle, owner: int, lock: FileLock, wait: bool) -> None:
        if not self.config.posix_lock:
            unsupported()
        raw = _pack(lock)
        if lock.type == fcntl.F_UNLCK and owner not in (handle.inode.locks or ()):
            return
        file = self._lock_file(handle, owner, lock.pid)
        if wait:
            _until_interrupted(ctx, lambda: syscalls.fcntl_lock(file.fd, syscalls.F_OFD_SETLKW, raw))
        else:
            syscalls.fcntl_lock(file.fd, syscalls.F_OFD_SETLK, raw)

    def _lock_file(self, handle: Handle, owner: int, pid: int) -> LockFile:
        owners = handle.inode.lock_owners()
        file = owners.get(owner)
        if file is None:
            file = owners.setdefault(owner, self._new_lock_file(handle.inode, pid))
        file.pid = pid
        return file

    def _new_lock_file(self, inode: Inode, pid: int) -> LockFile:
        return LockFile(self._open_for_locking(inode), pid, inode.pins)

    def _open_for_locking(self, inode: Inode) -> int:
        """For both where possible: a write lock wants a descriptor that is open for writing."""
        try:
            return self.reopen(inode, os.O_RDWR)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            return self.reopen(inode, os.O_RDONLY)


def release_locks(inode: Inode, owner: int) -> None:
    """An owner closed a descriptor: all its POSIX locks on the file go, as POSIX has it."""
    if inode.locks:
        inode.locks.pop(owner, None)


def _until_interrupted(ctx: Context, call: Callable[[], None]) -> None:
    """Repeat a call that signals end, until it succeeds or the caller gives up (EINTR)."""
    while not ctx.interrupted:
        try:
            return call()
        except InterruptedError:
            continue
    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
