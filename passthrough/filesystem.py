"""The contract between a file system and whoever serves it: one method per FUSE request, in the kernel's words.

Rules
* A method takes values and returns values; it never sees bytes of the protocol and never writes a reply.
* Failure is an OSError; its errno goes to the caller. Any other exception is a bug: the caller gets EIO, the log a
  traceback, and the mount lives on.
* Methods are called from several threads at once. A method that may wait for long must watch `ctx.interrupted`.
* nodeid and fh come from the peer, who may be hostile: an unknown one is EBADF, and so is an fh of another node.
* Names are bytes, one path component; whoever serves has split them, a FileSystem still refuses "/" and "..".
* Lookup counts: every Entry that lookup, mknod, mkdir, symlink, link, create, tmpfile or readdirplus hands out raises
  its node's count by one, and forget lowers it. A node may be dropped when the count is 0; the root (nodeid 1) never.
* Where FUSE_SECURITY_CTX was agreed, ctx.labels are set on what mknod, mkdir, symlink, create and tmpfile make before
  they return; where that fails, nothing is left of it.
* What is not overridden answers ENOSYS; for flush, fsync, fsyncdir, access, opendir, statx, lseek, poll, the xattr
  calls and the locks the kernel then stops asking and does what is right without us.
"""

from collections.abc import Iterable, Sequence
from errno import ENOSYS
from os import strerror
from typing import NoReturn, Protocol

from .protocol import constants
from .protocol.negotiation import Agreement
from .protocol.values import (
    Attr,
    Buffers,
    Context,
    Dirent,
    Entry,
    FileLock,
    FileRange,
    Fill,
    IoctlReply,
    Later,
    Opened,
    SetAttr,
    StatFs,
    Statx,
)

__all__ = [
    "Agreement",
    "Attr",
    "Buffers",
    "Context",
    "Dirent",
    "Entry",
    "FileLock",
    "FileRange",
    "FileSystem",
    "Fill",
    "IoctlReply",
    "Kernel",
    "Later",
    "Opened",
    "SetAttr",
    "StatFs",
    "Statx",
    "failure",
    "unsupported",
]

ROOT_ID = constants.FUSE_ROOT_ID


class Kernel(Protocol):
    """What a file system may ask of the kernel that it is mounted in."""

    def notify(self, message: bytes) -> bool:
        """Send a message made by protocol.notifications; False where the kernel does not know the node or the code.

        Never call it from within a request for the same directory: the kernel may hold the directory's lock until
        that request is answered.
        """

    def open_backing(self, fd: int) -> int:
        """A backing id for the regular file that fd (O_PATH will do) is open on, for Opened.backing_id.

        EPERM without CAP_SYS_ADMIN; EINVAL, EISDIR and ELOOP for files that the kernel cannot pass through.
        """

    def close_backing(self, backing_id: int) -> None:
        """Give such an id back."""


def failure(number: int) -> OSError:
    """The OSError of an errno, to be raised."""
    return OSError(number, strerror(number))


def unsupported() -> NoReturn:
    """ENOSYS: this file system does not do that."""
    raise failure(ENOSYS)


class FileSystem:
    """A file system that can do nothing yet: override what yours can.

    `flags` are the INIT flags (protocol.constants.FUSE_*) that this file system would like; whoever serves it adds
    those of the transport. `required` are flags without which the mount must fail rather than run without them.
    `stack_depth` (1 or 2) says, with FUSE_PASSTHROUGH, how many file systems lie on each other where the files are.
    `default_permissions` says whether the kernel of a mount checks modes and owners before it asks.
    """

    flags: int = 0
    required: int = 0
    stack_depth: int = 0
    default_permissions: bool = True

    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        """The session begins: what was agreed, and the kernel that is asked for more (a guest's cannot be: None)."""

    def destroy(self) -> None:
        """The session is over: forget every node and handle. Called at the end, and before a second init."""

    def will_cover(self, mountpoint: str) -> bool:
        """A mount is about to be made here (absolute, no symlinks): whether this very directory is what it will show.

        What lies there can be reached now and not afterwards.
        """
        return False

    def close(self) -> None:
        """Nobody serves it any more, nor will: let go of what destroy() leaves. Called once."""

    # Names

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        """Find a name in a directory; the entry found counts as one lookup.

        `.` and `..` come only where FUSE_EXPORT_SUPPORT was agreed. ENOENT where there is none, or an Entry with
        nodeid 0, which the kernel remembers for the entry's timeout.
        """
        unsupported()

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Lower a node's lookup count by nlookup, never below zero. Nothing is answered; must not raise."""

    def batch_forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        """Many forgets at once, (nodeid, nlookup) each. Must not raise."""
        for nodeid, nlookup in forgets:
            self.forget(nodeid, nlookup)

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        """Attributes and how long they may be believed (ns); fh is the open handle that was asked through, if any."""
        unsupported()

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        """Change what attrs.valid (FATTR_*) names, and return the attributes as they now are, with their timeout.

        FATTR_KILL_SUIDGID (7.33): with a new size, clear SUID and SGID as a write by an ordinary user would.
        """
        unsupported()

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> tuple[Statx, int]:
        """statx(2): flags AT_STATX_*, mask STATX_*; and the timeout in ns (7.39, Linux 6.6)."""
        unsupported()

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        """A symlink's target, without a NUL. EINVAL for anything else."""
        unsupported()

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        """Create the symlink `name` to `link`."""
        unsupported()

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Create a file, device, fifo or socket; rdev is in the kernel's 32-bit form (protocol.values.decode_dev)."""
        unsupported()

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        """Create a directory."""
        unsupported()

    def unlink(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        unsupported()

    def rmdir(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove an empty directory."""
        unsupported()

    def rename2(self, ctx: Context, nodeid: int, name: bytes, newname: bytes, newdir: int, flags: int) -> None:
        """Rename name to newname in the directory newdir; flags are renameat2's (RENAME_*). EINVAL for unknown ones."""
        unsupported()

    def link(self, ctx: Context, nodeid: int, newname: bytes, oldnodeid: int) -> Entry:
        """Give the node oldnodeid the further name newname in the directory nodeid. Its count rises by one."""
        unsupported()

    def access(self, ctx: Context, nodeid: int, mask: int) -> None:
        """access(2) for the caller; never asked where default_permissions is on."""
        unsupported()

    def statfs(self, ctx: Context, nodeid: int) -> StatFs:
        """statfs(2)."""
        unsupported()

    # Open files

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """Open a regular file; flags are open(2)'s without O_CREAT, O_EXCL and O_NOCTTY; open_flags FUSE_OPEN_*.

        O_TRUNC comes only with FUSE_ATOMIC_O_TRUNC. A handle that is handed out will be released once.
        """
        unsupported()

    def create(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """Create a regular file with the caller's ownership and open it.

        The kernel asks this for a name that it believes does not exist, and has checked no permission to open it: one
        that is there all the same is EEXIST with O_EXCL, else ESTALE, upon which the kernel looks again.
        """
        unsupported()

    def tmpfile(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """O_TMPFILE: a file without a name in this directory (7.37, Linux 6.1); `name` is the kernel's own word."""
        unsupported()

    def read(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int
    ) -> bytes | FileRange | Fill | Later:
        """At most size bytes from offset; fewer only at the end. A FileRange lets the transport fetch them itself, a
        Fill puts them where it wants them, and a Later does so and answers when they are there.

        flags are the file's open flags now.
        """
        unsupported()

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        """Write the buffers at offset and return how many bytes went in. flags are the file's open flags now.

        A Later answers with that number when they are in.

        FUSE_WRITE_CACHE: a writeback by the kernel, ctx is nobody's. FUSE_WRITE_KILL_SUIDGID: clear SUID and SGID.
        """
        unsupported()

    def flush(self, ctx: Context, nodeid: int, fh: int, lock_owner: int) -> None:
        """One descriptor of this handle was closed: what close(2) must report is reported here."""
        unsupported()

    def release(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        """The last descriptor of this handle is gone. Its errors reach nobody."""
        unsupported()

    def fsync(self, ctx: Context, nodeid: int, fh: int, fsync_flags: int) -> None:
        """fsync(2), or fdatasync(2) with FUSE_FSYNC_FDATASYNC."""
        unsupported()

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """fallocate(2): mode is FALLOC_FL_*."""
        unsupported()

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE (7.24, Linux 4.5); the others the kernel does alone. ENXIO past the end."""
        unsupported()

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
        """copy_file_range(2) between two open files of this mount; returns the bytes copied."""
        unsupported()

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, cmd: int, arg: int, flags: int, data: bytes, out_size: int
    ) -> IoctlReply:
        """A restricted ioctl: data is what the caller's buffer held, at most out_size bytes go back. ENOTTY else."""
        unsupported()

    def poll(self, ctx: Context, nodeid: int, fh: int, kh: int, flags: int, events: int) -> int:
        """poll(2): the events that are ready now. ENOSYS means: always ready."""
        unsupported()

    def bmap(self, ctx: Context, nodeid: int, block: int, blocksize: int) -> int:
        """FIBMAP, for block device mounts only."""
        unsupported()

    # Directories

    def opendir(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """Open a directory for reading; released once by releasedir."""
        unsupported()

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> Iterable[Dirent]:
        """Entries after offset (0: from the start; else the off of an entry given before), enough for size bytes.

        What does not fit the reply is asked for again. No entry at all means the end.
        """
        unsupported()

    def readdirplus(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int
    ) -> Iterable[tuple[Dirent, Entry | None]]:
        """The same with a lookup each, counted when it is yielded; the one that does not fit is given back by forget.

        None (for `.` and `..`, and where the lookup failed) lists the name without a lookup.
        """
        unsupported()

    def releasedir(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        """The directory handle is gone."""
        unsupported()

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, fsync_flags: int) -> None:
        """fsync(2) of a directory."""
        unsupported()

    def syncfs(self, ctx: Context, nodeid: int) -> None:
        """syncfs(2) (7.34, Linux 5.14; only virtio-fs mounts are asked)."""
        unsupported()

    # Extended attributes

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """The whole value (at most 64 KiB); sizes and ERANGE are the server's. ENODATA where there is none."""
        unsupported()

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        """flags are XATTR_CREATE and XATTR_REPLACE; setxattr_flags FUSE_SETXATTR_ACL_KILL_SGID."""
        unsupported()

    def listxattr(self, ctx: Context, nodeid: int) -> Sequence[bytes]:
        """The names."""
        unsupported()

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove one. ENODATA where there is none."""
        unsupported()

    # Locks

    def getlk(self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int) -> FileLock:
        """The first lock that would stand in the way, or one of type F_UNLCK."""
        unsupported()

    def setlk(self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int, wait: bool) -> None:
        """Set or clear a lock of `owner`; FUSE_LK_FLOCK: a flock(2) lock of the handle.

        wait=False: EAGAIN where another stands in the way. wait=True: in a thread of its own; wait for it, and raise
        EINTR once ctx.interrupted is true (a signal is sent to the thread, so that a blocking call returns).
        """
        unsupported()
