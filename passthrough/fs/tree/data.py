"""Data of open files: reading, writing, and what else works on a descriptor."""

import contextlib
import errno
import os

from ... import syscalls
from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import Buffers, Context, FileRange, Opened
from .base import TreeBase
from .handles import Handle
from .locks import release_locks

_U32_LIMIT = 0xFFFFF000  # COPY_FILE_RANGE answers in 32 bits


class Data(TreeBase):
    """Everything that needs an fh of OPEN or CREATE."""

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """Re-open the inode; one that is no regular file is EBADF."""
        return self.open_inode(self.inodes.get(nodeid), flags, open_flags)

    def read(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int) -> FileRange:
        """Where the bytes are; the transport fetches them."""
        handle = self.files.get(fh, nodeid)
        return FileRange(handle.fd, offset, size, handle)

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int:
        """One pwritev; a short one goes on, an error after some bytes is told by the count alone."""
        handle = self.files.get(fh, nodeid)
        append = 0
        if flags & os.O_APPEND and not self.writeback and not write_flags & c.FUSE_WRITE_CACHE:
            append = os.RWF_APPEND
        with self.credentials.killing_privileges(write_flags & c.FUSE_WRITE_KILL_SUIDGID):
            written = os.pwritev(handle.fd, data, offset, append)
            total = sum(map(len, data))
            if written != total:
                written = self._write_rest(handle, data, offset, written, append)
        if self.config.writeout:
            _begin_writeout(handle, 0 if append else offset, 0 if append else written)
        return written

    @staticmethod
    def _write_rest(handle: Handle, data: Buffers, offset: int, written: int, append: int) -> int:
        rest = memoryview(b"".join(data))
        while written < len(rest):
            try:
                count = os.pwritev(handle.fd, (rest[written:],), offset + written, append)
            except OSError:
                break
            if count == 0:
                break
            written += count
        return written

    def flush(self, ctx: Context, nodeid: int, fh: int, lock_owner: int) -> None:
        """Closing a duplicate brings out what close(2) has to say (NFS, quotas), and this owner's locks go."""
        handle = self.files.get(fh, nodeid)
        release_locks(handle.inode, lock_owner)
        os.close(os.dup(handle.fd))

    def release(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        """The descriptor is closed when the last request that uses it is done; flock locks go with it."""
        self.closed(self.files.pop(fh, nodeid))

    def fsync(self, ctx: Context, nodeid: int, fh: int, fsync_flags: int) -> None:
        """To the disk."""
        self.files.get(fh, nodeid).sync(fsync_flags)

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """All modes: the source's file system decides. SUID and SGID go as with a write."""
        handle = self.files.get(fh, nodeid)
        with self.credentials.killing_privileges(ctx.uid):
            syscalls.fallocate(handle.fd, mode, *_signed(offset, length))

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE."""
        handle = self.files.get(fh, nodeid)
        (position,) = _signed(offset)
        return os.lseek(handle.fd, position, whence)

    def copy_file_range(
        self,
        ctx: Context,
        nodeid: int,
        fh_in: int,
        off_in: int,
        nodeid_out: int,
        fh_out: int,
        off_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Within the source, so it may share extents there."""
        source, target = self.files.get(fh_in, nodeid), self.files.get(fh_out, nodeid_out)
        off_in, off_out = _signed(off_in, off_out)
        if flags:
            raise failure(errno.EINVAL)
        with self.credentials.killing_privileges(ctx.uid):
            copied = os.copy_file_range(source.fd, target.fd, min(length, _U32_LIMIT), off_in, off_out)
        if self.config.writeout and copied:
            _begin_writeout(target, off_out, copied)
        return copied


def _begin_writeout(handle: Handle, offset: int, size: int) -> None:
    """Start to write these bytes (size 0: all from there) to the disk, and wait for nothing. Errors are fsync's to
    tell: the write itself has been done."""
    with contextlib.suppress(OSError):
        syscalls.sync_file_range(handle.fd, offset, size, syscalls.SYNC_FILE_RANGE_WRITE)


def _signed(*offsets: int) -> tuple[int, ...]:
    """Offsets that fit off_t. EINVAL for larger ones, before C truncates them."""
    if any(offset >= 1 << 63 for offset in offsets):
        raise failure(errno.EINVAL)
    return offsets
