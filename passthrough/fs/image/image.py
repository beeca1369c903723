"""The file system of `passthrough export`: one node, the root, which is a regular file whose bytes are an image.

Rules: what QEMU's FUSE export (block/export/fuse.c) answers, this answers; where it does not, the man page says why.
An open that comes to us names FOPEN_DIRECT_IO, so that each request comes as it was made, and
FOPEN_PARALLEL_DIRECT_WRITES, so that they come side by side.

Kernel passthrough: while a backing id is in use on an inode, the kernel refuses an open without one
(fuse_file_io_open), but an open with both FOPEN_PASSTHROUGH and FOPEN_DIRECT_IO has its reads and writes sent to us
(fuse_file_read_iter: "FOPEN_DIRECT_IO overrides FOPEN_PASSTHROUGH") and only its mmap goes to the file, which cannot
make it longer. So where an image must not grow, opens for reading pass through, and opens for writing come here.
"""

import errno
import itertools
import logging
import os
import stat
import threading
import time
from dataclasses import dataclass, replace

from ...filesystem import FileSystem, Kernel, failure
from ...protocol import constants as c
from ...protocol.negotiation import Agreement
from ...protocol.values import (
    NS_PER_S,
    Attr,
    Buffers,
    Context,
    Entry,
    FileRange,
    Fill,
    Later,
    Opened,
    SetAttr,
    StatFs,
)
from ..choice import Choice
from ..stacking import stack_depth
from .file import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from .source import BlockSource

log = logging.getLogger(__name__)

ATTR_TIMEOUT_NS = NS_PER_S
MAX_SIZE = (1 << 63) - 1  # off_t
_LEAST_BLOCK = 4096
"""stdio reads in pieces of st_blksize, so it must not be 1, although some images could be read so."""
_WRITE_BITS = 0o222
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_IGNORED = c.FATTR_FH | c.FATTR_LOCKOWNER | c.FATTR_CTIME | c.FATTR_KILL_SUIDGID
_TIMES = c.FATTR_ATIME | c.FATTR_MTIME | c.FATTR_ATIME_NOW | c.FATTR_MTIME_NOW
_SETTABLE = c.FATTR_MODE | c.FATTR_SIZE | _TIMES | _IGNORED


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the file may do. uid and gid own it at first; growable: a write past the end makes the image longer."""

    writable: bool = False
    growable: bool = False
    allow_other: bool = False
    passthrough: Choice = Choice.AUTO
    uid: int = 0
    gid: int = 0


class Image(FileSystem):
    """One image as one file. The source is closed by destroy()."""

    flags = (
        c.FUSE_ASYNC_READ
        | c.FUSE_ATOMIC_O_TRUNC
        | c.FUSE_BIG_WRITES
        | c.FUSE_ASYNC_DIO
        | c.FUSE_MAX_PAGES
        | c.FUSE_DIRECT_IO_ALLOW_MMAP
    )

    def __init__(self, source: BlockSource, config: ImageConfig) -> None:
        self.source = source
        self.config = config
        self._mode = 0o600 if config.writable else 0o400
        self._uid, self._gid = config.uid, config.gid
        now = time.time_ns()
        self._atime, self._mtime, self._ctime = now, now, now
        self._lock = threading.Lock()  # sizes change one at a time, and so do attributes
        self._numbers = itertools.count(1)
        self._open: dict[int, bool] = {}  # fh: whether it may write
        self._backed_mtime = -1  # the source's own, when ours was last set
        self._kernel: Kernel | None = None
        self._backing_id = 0
        wants = config.passthrough is not Choice.OFF and source.descriptor is not None
        if wants and source.descriptor is not None:
            self.flags = type(self).flags | c.FUSE_PASSTHROUGH
            self.stack_depth = stack_depth(source.descriptor)
        self.required = c.FUSE_PASSTHROUGH if config.passthrough is Choice.ON else 0

    def others_may_not(self) -> None:
        """The mount was made without allow_other after all."""
        self.config = replace(self.config, allow_other=False)

    # The session

    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        """A session begins. The image is registered with the kernel on its first open: until INIT is answered the
        kernel refuses that."""
        self._kernel = kernel if self.source.descriptor is not None and agreement.has(c.FUSE_PASSTHROUGH) else None

    def _backing(self) -> int:
        """The backing id, one for the whole session; 0 where there is none to be had."""
        kernel, descriptor = self._kernel, self.source.descriptor
        if self._backing_id or kernel is None or descriptor is None:
            return self._backing_id
        with self._lock:
            if not self._backing_id and self._kernel is not None:
                try:
                    self._backing_id = kernel.open_backing(descriptor)
                    self._backed_mtime = self.source.mtime_ns()
                except OSError as error:
                    self._kernel = None  # and so for all later opens: the kernel wants them alike
                    log.warning("kernel passthrough is refused (%s): data passes through the daemon", error.strerror)
        return self._backing_id

    def destroy(self) -> None:
        """The session is over: what was written is made safe."""
        kernel, self._kernel = self._kernel, None
        backing_id, self._backing_id = self._backing_id, 0
        if kernel is not None and backing_id:
            try:
                kernel.close_backing(backing_id)
            except OSError as error:
                log.debug("the backing id could not be given back: %s", error)
        self._open.clear()
        try:
            if self.config.writable:
                self.source.finish()
        except OSError as error:
            log.error("the image could not be flushed at the end: %s", error.strerror)

    # Attributes

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        """There are no names."""
        raise failure(errno.ENOENT)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The root stays."""

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        """The image's length, what it takes where it lies, and the mode and times that are kept here."""
        self._root(nodeid)
        return self._attr(), ATTR_TIMEOUT_NS

    def _attr(self) -> Attr:
        source = self.source
        self._look_at_times()
        atime, mtime, ctime = (divmod(ns, NS_PER_S) for ns in (self._atime, self._mtime, self._ctime))
        return Attr(
            ino=c.FUSE_ROOT_ID,
            size=source.size,
            blocks=-(-source.allocated() // 512),
            atime=atime[0],
            mtime=mtime[0],
            ctime=ctime[0],
            atimensec=atime[1],
            mtimensec=mtime[1],
            ctimensec=ctime[1],
            mode=stat.S_IFREG | self._mode,
            nlink=1,
            uid=self._uid,
            gid=self._gid,
            rdev=0,
            blksize=max(source.alignment, _LEAST_BLOCK),
        )

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        """Mode, length and times; owner and group with allow_other. All is checked before anything is changed."""
        self._root(nodeid)
        settable = _SETTABLE | (c.FATTR_UID | c.FATTR_GID if self.config.allow_other else 0)
        if attrs.valid & (c.FATTR_UID | c.FATTR_GID) and not self.config.allow_other:
            raise failure(errno.EPERM)
        if attrs.valid & ~settable:
            raise failure(errno.ENOTSUP)
        self._check_mode(attrs)
        with self._lock:
            if attrs.valid & c.FATTR_SIZE:
                self._truncate(attrs.size)
            self._set_facts(attrs)
            return self._attr(), ATTR_TIMEOUT_NS

    def _check_mode(self, attrs: SetAttr) -> None:
        if attrs.valid & c.FATTR_MODE:
            if attrs.mode & _OTHERS and not self.config.allow_other:
                raise failure(errno.EPERM)  # nobody else could ever use the file
            if attrs.mode & _WRITE_BITS and not self.config.writable:
                raise failure(errno.EROFS)
        if attrs.valid & c.FATTR_SIZE and not self.config.writable:
            raise failure(errno.EACCES)

    def _truncate(self, size: int) -> None:
        if size > MAX_SIZE:
            raise failure(errno.EFBIG)
        if size != self.source.size:
            self.source.resize(size)
        self._touch()

    def _set_facts(self, attrs: SetAttr) -> None:
        self._look_at_times()
        now = time.time_ns()
        if attrs.valid & c.FATTR_MODE:
            self._mode = attrs.mode & 0o7777
        if attrs.valid & c.FATTR_UID:
            self._uid = attrs.uid
        if attrs.valid & c.FATTR_GID:
            self._gid = attrs.gid
        if attrs.valid & (c.FATTR_ATIME | c.FATTR_ATIME_NOW):
            given = attrs.atime * NS_PER_S + attrs.atimensec
            self._atime = now if attrs.valid & c.FATTR_ATIME_NOW else given
        if attrs.valid & (c.FATTR_MTIME | c.FATTR_MTIME_NOW):
            given = attrs.mtime * NS_PER_S + attrs.mtimensec
            self._mtime = now if attrs.valid & c.FATTR_MTIME_NOW else given
        self._ctime = now

    def statfs(self, ctx: Context, nodeid: int) -> StatFs:
        """A file system that is as large as the image, and full."""
        self._root(nodeid)
        return StatFs(-(-self.source.size // _LEAST_BLOCK), 0, 0, 1, 0, _LEAST_BLOCK, 255, _LEAST_BLOCK)

    # Opening

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """A handle. EACCES for writing where the export is read-only; root's own rights do not open it either.

        O_TRUNC cuts nothing off, as on a disk: cp(1) and dd(1) say it who mean to write over an image.
        """
        self._root(nodeid)
        reads = flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC
        if not reads and not self.config.writable:
            raise failure(errno.EACCES)
        fh = next(self._numbers)
        self._open[fh] = not reads
        found = c.FOPEN_NOFLUSH if reads else 0
        backing_id = self._backing()
        if backing_id:
            found |= c.FOPEN_PASSTHROUGH
        if not backing_id or not (reads or self.config.growable):
            found |= c.FOPEN_DIRECT_IO | c.FOPEN_PARALLEL_DIRECT_WRITES
        return Opened(fh, found, backing_id)

    def release(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        """The handle goes."""
        self._handle(nodeid, fh)
        self._open.pop(fh, None)

    def flush(self, ctx: Context, nodeid: int, fh: int, lock_owner: int) -> None:
        """close(2) makes safe what was written, and reports what failed."""
        if self._handle(nodeid, fh):
            self.source.flush()

    def fsync(self, ctx: Context, nodeid: int, fh: int, fsync_flags: int) -> None:
        """To where the image lies, and there to the disk."""
        self._handle(nodeid, fh)
        self.source.flush()

    # Data

    def read(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int
    ) -> bytes | FileRange | Fill | Later:
        """As far as the image goes."""
        self._handle(nodeid, fh)
        left = self.source.size - offset
        if left <= 0:
            return b""
        return self.source.read(offset, min(size, left))

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        """A write across the end is cut there, and one at or past it is ENOSPC as on a disk, unless growable."""
        self._for_writing(nodeid, fh)
        total = sum(map(len, data))
        if offset + total > MAX_SIZE:
            raise failure(errno.EFBIG)
        size = self.source.size
        if offset + total > size:
            if self.config.growable:
                self._grow(offset + total)
            else:
                if offset >= size:
                    raise failure(errno.ENOSPC)
                data, total = _first(data, size - offset), size - offset
        self._touch()
        return self.source.write(offset, data)

    def _grow(self, size: int) -> None:
        with self._lock:
            if self.source.size < size:
                self.source.resize(size)

    def _touch(self) -> None:
        self._mtime = self._ctime = time.time_ns()

    def _look_at_times(self) -> None:
        """What the kernel writes by itself, it does not tell us: the image's own mtime does."""
        if self._backing_id and self.config.writable:
            seen = self.source.mtime_ns()
            if seen != self._backed_mtime:
                self._mtime = self._ctime = self._backed_mtime = seen

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """Room at the end (mode 0), a hole, or zeros; every other mode is EOPNOTSUPP."""
        self._for_writing(nodeid, fh)
        if offset + length > MAX_SIZE:
            raise failure(errno.EFBIG)
        keep = mode & FALLOC_FL_KEEP_SIZE
        kind = mode & ~FALLOC_FL_KEEP_SIZE
        if kind == FALLOC_FL_PUNCH_HOLE and not keep:
            raise failure(errno.EINVAL)
        if mode == 0:
            self._extend(offset, length)
        elif kind in (FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE):
            self._clear(offset, length, kind, keep=bool(keep))
        else:
            raise failure(errno.EOPNOTSUPP)

    def _extend(self, offset: int, length: int) -> None:
        with self._lock:
            size = self.source.size
            if offset < size:
                raise failure(errno.EOPNOTSUPP)  # what is there cannot be said to have room
            if offset > size:
                self.source.resize(offset)
            self._touch()
            self.source.preallocate(offset, length)

    def _clear(self, offset: int, length: int, kind: int, *, keep: bool) -> None:
        size = self.source.size
        if not keep and offset + length > size:
            self._grow(offset + length)
            size = offset + length
        length = min(length, size - offset)
        if length <= 0:
            return
        self._touch()
        if kind == FALLOC_FL_PUNCH_HOLE:
            self.source.discard(offset, length)
        else:
            self.source.zero(offset, length, unmap=False)

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE by what the source knows; the end counts as a hole."""
        self._handle(nodeid, fh)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise failure(errno.EINVAL)
        size = self.source.size
        if offset >= size:
            raise failure(errno.ENXIO)
        while offset < size:
            extent = self.source.status(offset, size - offset)
            if extent.data == (whence == os.SEEK_DATA):
                return offset
            offset += extent.length
        if whence == os.SEEK_DATA:
            raise failure(errno.ENXIO)
        return size

    # What is not there

    def opendir(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """It is no directory."""
        raise failure(errno.ENOTDIR)

    def _root(self, nodeid: int) -> None:
        if nodeid != c.FUSE_ROOT_ID:
            raise failure(errno.EBADF)

    def _handle(self, nodeid: int, fh: int) -> bool:
        """Whether this open file may write. EBADF for an unknown one."""
        self._root(nodeid)
        try:
            return self._open[fh]
        except KeyError:
            raise failure(errno.EBADF) from None

    def _for_writing(self, nodeid: int, fh: int) -> None:
        if not self._handle(nodeid, fh):
            raise failure(errno.EBADF)


def _first(data: Buffers, size: int) -> Buffers:
    """The first size bytes of the buffers."""
    found = []
    for part in data:
        if size <= 0:
            break
        found.append(part[:size])
        size -= len(part)
    return found
