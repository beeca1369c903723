"""llfuse's Operations, each of which is one call of a FileSystem.

Rules of this file: the values of llfuse become those of the contract and back; nothing is decided here that the file
system decides. llfuse calls with its global lock held; each call lets it go for as long as the file system is at work,
so that workers serve side by side. Whatever is raised becomes a FUSEError (server.failed), also where a value is of
the wrong type: any other exception would end llfuse's main loop.

What llfuse does not hand over: the umask and the caller of requests for open files, flags of getattr, release and
write, the lock owner, the node that statfs asked about. What it cannot answer: FOPEN_* flags (it always sets
FOPEN_KEEP_CACHE; `drop_pages` makes up for that), a backing id, FUSE_ATTR_* flags.
"""

import errno
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...filesystem import Attr, Context, Dirent, Entry, FileSystem, Later, Opened, SetAttr, failure
from ...protocol import constants as c
from ...protocol.values import NS_PER_S
from ...server import failed
from .handles import Handles, Held
from .nodes import Nodes
from .rooms import Rooms, waited_for

log = logging.getLogger(__name__)

_UNSIGNED = (1 << 64) - 1
_BATCH = 4096  # bytes of directory entries that are asked for at a time: the kernel's buffer may be larger
_FIELDS = (
    ("update_mode", c.FATTR_MODE),
    ("update_uid", c.FATTR_UID),
    ("update_gid", c.FATTR_GID),
    ("update_size", c.FATTR_SIZE),
    ("update_atime", c.FATTR_ATIME),
    ("update_mtime", c.FATTR_MTIME),
)

P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate["Operations", P], R]


def served(method: Method[P, R]) -> Method[P, R]:
    """One request: without llfuse's lock, and with every failure as a FUSEError."""

    @functools.wraps(method)
    def call(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.library.lock_released:
            self.began()
            try:
                if self.stopping:
                    raise failure(errno.ECONNABORTED)
                return method(self, *args, **kwargs)
            except OverflowError:  # a number that fits no argument of its system call
                number = errno.EINVAL
            except Exception as error:
                number = -failed(error, method.__name__.strip("_").upper())
            finally:
                self.ended()
        raise self.library.FUSEError(number)

    return call


class Operations:
    """What llfuse.init is given. `fs` is set before the first request, which is INIT."""

    def __init__(self, library: Any) -> None:
        """library is the module llfuse."""
        self.library = library
        self.stopping = False
        self.nodes = Nodes()
        self.files = Handles()
        self.directories = Handles()
        self.fs = FileSystem()
        self.on_init: Callable[[], None] = lambda: None
        self.drop_pages: Callable[[int], None] = lambda number: None
        self._rooms = Rooms()
        self._lock = threading.Lock()
        self._running = 0

    def began(self) -> None:
        """A request is at work."""
        with self._lock:
            self._running += 1

    def ended(self) -> None:
        """It is done."""
        with self._lock:
            self._running -= 1

    @property
    def idle(self) -> bool:
        """Whether no request is at work."""
        return self._running == 0

    # The session

    def init(self) -> None:
        """INIT came."""
        self.on_init()

    def destroy(self) -> None:
        """The session's end is told by who ends it."""

    def stacktrace(self) -> None:
        """llfuse's own extended attribute fuse_stacktrace on the root: there is none."""
        raise self.library.FUSEError(errno.EOPNOTSUPP)

    # Names

    @served
    def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """LOOKUP."""
        return self._entry(self.fs.lookup(_context(ctx), self.nodes.nodeid(parent), name))

    def forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        """FORGET and BATCH_FORGET, which nothing answers."""
        told = [forget for forget in (self.nodes.forgotten(*pair) for pair in forgets) if forget is not None]
        with self.library.lock_released:
            try:
                self.fs.batch_forget(told)
            except Exception as error:
                failed(error, "FORGET")

    @served
    def getattr(self, number: int, ctx: Any) -> Any:
        """GETATTR."""
        attr, timeout = self.fs.getattr(_context(ctx), self.nodes.nodeid(number), None)
        return self._attributes(attr, number, timeout)

    @served
    def setattr(self, number: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        """SETATTR. A time that is to be now comes as the kernel's."""
        nodeid = self.nodes.nodeid(number)
        held = self.files.get(fh) if fh is not None else None
        valid = sum(flag for name, flag in _FIELDS if getattr(fields, name)) | (c.FATTR_FH if held else 0)
        atime, atimensec = divmod(attr.st_atime_ns, NS_PER_S)
        mtime, mtimensec = divmod(attr.st_mtime_ns, NS_PER_S)
        wanted = SetAttr(
            valid=valid,
            fh=held.fh if held else 0,
            size=attr.st_size,
            lock_owner=0,
            atime=atime,
            mtime=mtime,
            ctime=0,
            atimensec=atimensec,
            mtimensec=mtimensec,
            ctimensec=0,
            mode=attr.st_mode,
            uid=attr.st_uid,
            gid=attr.st_gid,
        )
        found, timeout = self.fs.setattr(_context(ctx), nodeid, wanted)
        return self._attributes(found, number, timeout)

    @served
    def readlink(self, number: int, ctx: Any) -> bytes:
        """READLINK."""
        return bytes(self.fs.readlink(_context(ctx), self.nodes.nodeid(number)))

    @served
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:
        """SYMLINK."""
        return self._entry(self.fs.symlink(_context(ctx), self.nodes.nodeid(parent), name, target))

    @served
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        """MKNOD. libfuse leaves rdev in the kernel's form."""
        nodeid = self.nodes.nodeid(parent)
        return self._entry(self.fs.mknod(_context(ctx), nodeid, name, mode, rdev, ctx.umask))

    @served
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        """MKDIR."""
        return self._entry(self.fs.mkdir(_context(ctx), self.nodes.nodeid(parent), name, mode, ctx.umask))

    @served
    def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """UNLINK."""
        self.fs.unlink(_context(ctx), self.nodes.nodeid(parent), name)

    @served
    def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """RMDIR."""
        self.fs.rmdir(_context(ctx), self.nodes.nodeid(parent), name)

    @served
    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, ctx: Any) -> None:
        """RENAME; the kernel refuses flags by itself, as RENAME2 is younger than libfuse 2."""
        nodeid, newdir = self.nodes.nodeid(parent), self.nodes.nodeid(newparent)
        self.fs.rename2(_context(ctx), nodeid, name, newname, newdir, 0)

    @served
    def link(self, number: int, newparent: int, newname: bytes, ctx: Any) -> Any:
        """LINK."""
        nodeid, newdir = self.nodes.nodeid(number), self.nodes.nodeid(newparent)
        return self._entry(self.fs.link(_context(ctx), newdir, newname, nodeid))

    @served
    def access(self, number: int, mode: int, ctx: Any) -> bool:
        """ACCESS."""
        self.fs.access(_context(ctx), self.nodes.nodeid(number), mode)
        return True

    @served
    def statfs(self, ctx: Any) -> Any:
        """STATFS, always of the root."""
        found = self.fs.statfs(_context(ctx), c.FUSE_ROOT_ID)
        answer = self.library.StatvfsData()
        for name in ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize"):
            setattr(answer, f"f_{name}", getattr(found, name))
        answer.f_favail = found.ffree
        answer.f_namemax = found.namelen
        return answer

    # Open files

    @served
    def open(self, number: int, flags: int, ctx: Any) -> int:
        """OPEN."""
        nodeid, who = self.nodes.nodeid(number), _context(ctx)
        opened = self.fs.open(who, nodeid, flags, 0)
        if not opened.open_flags & c.FOPEN_KEEP_CACHE:
            self.drop_pages(number)
        return self._held(nodeid, opened, flags, who)

    @served
    def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[int, Any]:
        """CREATE."""
        nodeid, who = self.nodes.nodeid(parent), _context(ctx)
        entry, opened = self.fs.create(who, nodeid, name, flags, mode, ctx.umask, 0)
        return self._held(entry.nodeid, opened, flags, who), self._entry(entry)

    def _held(self, nodeid: int, opened: Opened, flags: int, who: Context) -> int:
        return self.files.add(Held(nodeid, opened.fh, flags, who))

    @served
    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        """READ. llfuse has copied the bytes when it takes this thread's next request."""
        held = self.files.get(fh)
        return self._rooms.filled(self.fs.read(held.ctx, held.nodeid, held.fh, offset, size, held.flags), size)

    @served
    def write(self, fh: int, offset: int, data: bytes) -> int:
        """WRITE."""
        held = self.files.get(fh)
        room = self._rooms.of(len(data))
        room[:] = data
        written = self.fs.write(held.ctx, held.nodeid, held.fh, offset, (room,), 0, held.flags)
        return waited_for(written, memoryview(b"")) if isinstance(written, Later) else written

    @served
    def flush(self, fh: int) -> None:
        """FLUSH."""
        held = self.files.get(fh)
        self.fs.flush(held.ctx, held.nodeid, held.fh, 0)

    @served
    def release(self, fh: int) -> None:
        """RELEASE."""
        held = self.files.pop(fh)
        self.fs.release(held.ctx, held.nodeid, held.fh, held.flags, 0, 0)

    @served
    def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC."""
        held = self.files.get(fh)
        self.fs.fsync(held.ctx, held.nodeid, held.fh, c.FUSE_FSYNC_FDATASYNC if datasync else 0)

    # Directories

    @served
    def opendir(self, number: int, ctx: Any) -> int:
        """OPENDIR."""
        nodeid, who, flags = self.nodes.nodeid(number), _context(ctx), os.O_RDONLY | os.O_DIRECTORY
        return self.directories.add(Held(nodeid, self.fs.opendir(who, nodeid, flags, 0).fh, flags, who))

    def readdir(self, fh: int, offset: int) -> Iterator[tuple[bytes, Any, int]]:
        """READDIR: llfuse takes entries until its buffer is full. Offsets are off_t there, and may be negative."""
        batch = self._readdir(fh, offset & _UNSIGNED)
        while batch:
            yield from batch
            try:
                batch = self._readdir(fh, batch[-1][2] & _UNSIGNED)
            except self.library.FUSEError:  # told when it is asked for again: what was given is good
                return

    @served
    def _readdir(self, fh: int, offset: int) -> list[tuple[bytes, Any, int]]:
        held = self.directories.get(fh)
        found = self.fs.readdir(held.ctx, held.nodeid, held.fh, offset, _BATCH)
        return [(bytes(entry.name), self._listed(entry), entry.off - (entry.off >> 63 << 64)) for entry in found]

    @served
    def releasedir(self, fh: int) -> None:
        """RELEASEDIR."""
        held = self.directories.pop(fh)
        self.fs.releasedir(held.ctx, held.nodeid, held.fh, held.flags, 0, 0)

    @served
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FSYNCDIR."""
        held = self.directories.get(fh)
        self.fs.fsyncdir(held.ctx, held.nodeid, held.fh, c.FUSE_FSYNC_FDATASYNC if datasync else 0)

    # Extended attributes

    @served
    def getxattr(self, number: int, name: bytes, ctx: Any = None) -> bytes:
        """GETXATTR; llfuse also asks by itself, for XATTR_CREATE and XATTR_REPLACE, and then names no caller."""
        return bytes(self.fs.getxattr(_context(ctx), self.nodes.nodeid(number), name))

    @served
    def setxattr(self, number: int, name: bytes, value: bytes, ctx: Any) -> None:
        """SETXATTR; llfuse has looked whether the attribute may be there, where the caller's flags ask for that."""
        self.fs.setxattr(_context(ctx), self.nodes.nodeid(number), name, value, 0, 0)

    @served
    def listxattr(self, number: int, ctx: Any) -> list[bytes]:
        """LISTXATTR."""
        return list(map(bytes, self.fs.listxattr(_context(ctx), self.nodes.nodeid(number))))

    @served
    def removexattr(self, number: int, name: bytes, ctx: Any) -> None:
        """REMOVEXATTR."""
        self.fs.removexattr(_context(ctx), self.nodes.nodeid(number), name)

    # Values

    def _entry(self, entry: Entry) -> Any:
        if not entry.nodeid:
            answer = self.library.EntryAttributes()
            answer.st_ino = 0
        else:
            number = self.nodes.entered(entry.nodeid, entry.attr.ino)
            answer = self._attributes(entry.attr, number, entry.attr_timeout_ns)
        answer.generation = entry.generation
        answer.entry_timeout = entry.entry_timeout_ns / NS_PER_S
        return answer

    def _attributes(self, attr: Attr, number: int, timeout_ns: int) -> Any:
        answer = self.library.EntryAttributes()
        answer.st_ino = attr.ino if number == c.FUSE_ROOT_ID else number
        for name in ("mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize"):
            setattr(answer, f"st_{name}", getattr(attr, name))
        answer.st_atime_ns = attr.atime * NS_PER_S + attr.atimensec
        answer.st_mtime_ns = attr.mtime * NS_PER_S + attr.mtimensec
        answer.st_ctime_ns = attr.ctime * NS_PER_S + attr.ctimensec
        answer.attr_timeout = timeout_ns / NS_PER_S
        return answer

    def _listed(self, entry: Dirent) -> Any:
        """What a directory shows of an entry: its inode number and type."""
        answer = self.library.EntryAttributes()
        answer.st_ino = entry.ino
        answer.st_mode = entry.type << 12
        return answer


def _context(ctx: Any) -> Context:
    """llfuse gives no request's number and no supplementary groups."""
    return Context(0, ctx.uid, ctx.gid, ctx.pid) if ctx is not None else Context(0, 0, 0, 0)
