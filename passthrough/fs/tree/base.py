"""What all parts of the shared directory stand on: the maps, the configuration, and the way from a name to an inode."""

import errno
import logging
import os
import resource
import stat
import threading
from operator import itemgetter

from ... import syscalls
from ...filesystem import FileSystem, Kernel, failure
from ...protocol import constants as c
from ...protocol.negotiation import Agreement
from ...protocol.values import Attr, Entry, Opened, encode_dev
from ..stacking import stack_depth
from .backing import Backings
from .config import Cache, Choice, FileHandles, ReaddirPlus, TreeConfig
from .credentials import Credentials
from .directory import DirHandle
from .filehandles import BATCH, Keeping, Opener
from .handles import BackedHandle, Handle, HandleMap
from .inodes import Inode, InodeMap, Key
from .janitor import Janitor
from .pins import Descriptor, Pins

log = logging.getLogger(__name__)

MASK = syscalls.STATX_BASIC_STATS | syscalls.STATX_MNT_ID
BY_NAME = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
RESERVED_DESCRIPTORS = 64
"""Descriptors that clients may not pin: ours, and those that a request holds for a moment."""
_PASS_S = 0.05

_FOPEN = {
    Cache.NEVER: c.FOPEN_DIRECT_IO,
    Cache.METADATA: c.FOPEN_DIRECT_IO,
    Cache.AUTO: 0,
    Cache.ALWAYS: c.FOPEN_KEEP_CACHE,
}

_OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_NONBLOCK | os.O_DSYNC | os.O_SYNC
_NO_FLUSH = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x858458F6, 0xF2F52010})
"""statfs types whose files have no flush operation: ext2 to ext4, xfs, btrfs, tmpfs, ramfs, f2fs (linux/magic.h)."""

_S_IFMT = 0o170000
# Where things are in the result of syscalls.statx.
ST_MODE = 6
key_of = itemgetter(7, 21, 22, 23)
"""The Key in a statx result."""
_RDEV_MAJOR, _RDEV_MINOR = 19, 20
_in_fuse_order = itemgetter(7, 8, 9, 11, 17, 15, 12, 18, 16, 6, 3, 4, 5, _RDEV_MAJOR, 1, _RDEV_MAJOR)
"""Attr's fields in a statx result; the major device number, which is 0 for most, stands in for rdev and for flags."""
_new_tuple = tuple.__new__


def attr_of(st: tuple[int, ...], ino_mask: int) -> Attr:
    """fuse_attr out of a statx result."""
    if not (ino_mask or st[_RDEV_MINOR] or st[_RDEV_MAJOR]):
        return _new_tuple(Attr, _in_fuse_order(st))
    facts = _in_fuse_order(st)
    rdev = encode_dev(st[_RDEV_MAJOR], st[_RDEV_MINOR])
    return _new_tuple(Attr, (facts[0] ^ ino_mask, *facts[1:13], rdev, facts[14], 0))


class TreeBase(FileSystem):
    """State and helpers; the operations are in the classes that Tree is made of."""

    flags = (
        c.FUSE_ASYNC_READ
        | c.FUSE_EXPORT_SUPPORT
        | c.FUSE_BIG_WRITES
        | c.FUSE_DONT_MASK
        | c.FUSE_HAS_IOCTL_DIR
        | c.FUSE_ASYNC_DIO
        | c.FUSE_PARALLEL_DIROPS
        | c.FUSE_MAX_PAGES
        | c.FUSE_CREATE_SUPP_GROUP
        | c.FUSE_HAS_EXPIRE_ONLY
    )

    def __init__(
        self,
        root_fd: int,
        config: TreeConfig,
        covered: "Covered | None" = None,
        proc: int | None = None,
        opener: Opener | None = None,
    ) -> None:
        """Share the directory that root_fd (O_PATH, taken over) is open on.

        Create it in the process that serves: it looks at its own /proc/self/fd. Where that path leads nowhere, proc is
        a descriptor (O_PATH, taken over) of it, and must be the working directory of the process, for good. opener is
        what file handles are opened by; without one there are none.
        """
        config = config.resolved()
        self.config = config
        self.entry_ns = config.entry_timeout_ns or 0
        self.attr_ns = config.attr_timeout_ns or 0
        self._proc_prefix = "/proc/self/fd/" if proc is None else ""
        self.proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if proc is None else proc
        self.credentials = Credentials(trusting=config.default_permissions)
        self.writeback = False
        self.submounts = False
        self._kept_flags = _OPEN_FLAGS
        if config.direct_io:
            self._kept_flags |= os.O_DIRECT
        if config.noatime:
            self._kept_flags |= os.O_NOATIME
        self._quiet: dict[tuple[int, ...], bool] = {}
        self._masks: dict[tuple[int, int], int] = {}
        self._masks_lock = threading.Lock()
        self.pins = Pins()
        st = syscalls.statx(root_fd, b"", syscalls.AT_EMPTY_PATH, MASK)
        key = key_of(st)
        root = Inode(c.FUSE_ROOT_ID, root_fd, key, stat.S_IFMT(st[ST_MODE]), self.ino_mask(key), self.pins)
        keeping = None
        if opener is not None and config.file_handles is not FileHandles.NEVER:
            keeping = Keeping(opener, self.afford, self._idle)
        self._mandatory = keeping is not None and config.file_handles is FileHandles.MANDATORY
        self.inodes = InodeMap(root, keeping)
        self.files: HandleMap[Handle] = HandleMap()
        self.dirs: HandleMap[DirHandle] = HandleMap()
        self.covered = covered
        self.limit = config.descriptors or _default_limit()
        self._janitor: Janitor | None = None
        self._backings: Backings | None = None
        self._warned = False
        self.flags = self._wanted_flags()
        self.required = type(self).required | (c.FUSE_PASSTHROUGH if config.passthrough is Choice.ON else 0)
        self.stack_depth = stack_depth(root_fd)

    def _wanted_flags(self) -> int:
        config, flags = self.config, type(self).flags
        for wanted, flag in (
            (config.readdirplus is not ReaddirPlus.NO, c.FUSE_DO_READDIRPLUS),
            (config.readdirplus is ReaddirPlus.AUTO, c.FUSE_READDIRPLUS_AUTO),
            (config.writeback, c.FUSE_WRITEBACK_CACHE),
            (config.passthrough is not Choice.OFF, c.FUSE_PASSTHROUGH),
            (config.submounts, c.FUSE_SUBMOUNTS),
            (config.mmap, c.FUSE_DIRECT_IO_ALLOW_MMAP),
            # A kernel that clears SUID and SGID by itself does so when it truncates, not when it opens with O_TRUNC.
            (config.killpriv, c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_ATOMIC_O_TRUNC),
            (config.flock, c.FUSE_FLOCK_LOCKS),
            (config.posix_lock, c.FUSE_POSIX_LOCKS),
            (config.posix_acl, c.FUSE_POSIX_ACL | c.FUSE_SETXATTR_EXT),
            (config.cache in (Cache.METADATA, Cache.ALWAYS), c.FUSE_CACHE_SYMLINKS),
            (config.idmap and config.default_permissions, c.FUSE_ALLOW_IDMAP),  # INIT fails with it, were it otherwise
            (config.cache is not Cache.ALWAYS, c.FUSE_AUTO_INVAL_DATA),
        ):
            flags |= flag if wanted else 0
        return flags

    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        """A session begins."""
        self.writeback = agreement.has(c.FUSE_WRITEBACK_CACHE)
        self.submounts = agreement.has(c.FUSE_SUBMOUNTS)
        self.credentials.masks = agreement.has(c.FUSE_DONT_MASK)
        if kernel is not None and agreement.has(c.FUSE_PASSTHROUGH) and not self.writeback:
            self._backings = Backings(kernel, self.credentials)
        if kernel is not None:
            self._janitor = Janitor(self, kernel, can_prune=agreement.minor >= 45)

    def destroy(self) -> None:
        """Let go of every node and handle."""
        if self._janitor is not None:
            self._janitor.stop()
            self._janitor = None
        self._backings = None
        self.files.clear()
        self.dirs.clear()
        self.inodes.clear()

    # From names to inodes

    def find(self, parent: Inode, name: bytes, *, surely_new: bool = False) -> tuple[Inode, Attr]:
        """The inode behind a name, one lookup counted. A known one costs one statx; a new one is opened O_PATH.

        surely_new saves a new one the first of two statx calls; it is no mistake where it turns out wrong. So does the
        guess that new ones come after new ones, as they do when a tree is walked.
        """
        found = self._find(parent, name, surely_new)
        return self._announced(parent, found) if self.submounts else found

    @staticmethod
    def _announced(parent: Inode, found: tuple[Inode, Attr]) -> tuple[Inode, Attr]:
        """A directory of another file system, or another mount of the same, is told to be one."""
        inode, attr = found
        if inode.key[1:] == parent.key[1:] or inode.kind != stat.S_IFDIR:
            return found
        return inode, attr._replace(flags=c.FUSE_ATTR_SUBMOUNT)

    def _find(self, parent: Inode, name: bytes, surely_new: bool) -> tuple[Inode, Attr]:
        covered = self.covered
        if covered is not None and name == covered.name and parent.key[:3] == covered.parent:
            self.afford()
            return self.enter(os.dup(covered.fd))
        if not surely_new and (not parent.unexplored or self.tight()):
            st = syscalls.statx(parent.fd, name, BY_NAME, MASK)
            inode = self.inodes.take(key_of(st))
            if inode is not None:
                return inode, attr_of(st, inode.ino_mask)
            parent.unexplored = True
        self.afford()
        fd = os.open(name, PATH_FLAGS, dir_fd=parent.fd)
        found = self.enter(fd)
        if found[0].held != fd:
            parent.unexplored = False
        return found

    def enter(self, fd: int) -> tuple[Inode, Attr]:
        """Remember what an O_PATH descriptor (taken over) is open on, one lookup counted."""
        try:
            st = syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH, MASK)
            key = key_of(st)
            mask = self._masks.get(key[1:3])
            if mask is None:
                mask = self._first_of_device(fd, key)
        except BaseException:
            os.close(fd)
            raise
        inode = self.inodes.add(fd, key, st[ST_MODE] & _S_IFMT, mask)
        return inode, attr_of(st, mask)

    def _first_of_device(self, fd: int, key: Key) -> int:
        """The mask for a device's inode numbers. EOPNOTSUPP for one without handles, where they are mandatory."""
        if self._mandatory and self.inodes.keeping is not None and not self.inodes.keeping.able(key[1:3], fd):
            raise failure(errno.EOPNOTSUPP)
        return self.ino_mask(key)

    def entry(self, found: tuple[Inode, Attr]) -> Entry:
        """What a lookup answers."""
        inode, attr = found
        return _new_tuple(Entry, (inode.nodeid, attr, self.entry_ns, self.attr_ns, 0))

    def reopen(self, inode: Inode, flags: int) -> int:
        """Open for real what an inode's O_PATH descriptor stands for: regular files and directories, nothing else.

        Opening a device, fifo or socket could block, or act on the machine: EBADF. Opening a file on which somebody
        holds a lease would wait for that holder, and other requests with it: EAGAIN, and the lease is being broken.
        """
        if inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise failure(errno.EBADF)
        self.afford()
        fd = inode.fd
        try:
            return os.open(str(fd), flags | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.proc)
        except PermissionError:
            if inode.connected or os.geteuid() != 0:  # a thread that acts as somebody has that user's rights alone
                raise
        return self._open_by_handle(inode, flags)

    @staticmethod
    def _open_by_handle(inode: Inode, flags: int) -> int:
        """Open for real what was opened by its handle, and so may have no path, as Landlock wants one.

        Truncating is done here, because it is with the right of this thread that SUID and SGID are kept.
        """
        assert inode.sealed is not None
        fd = inode.sealed.open(flags & ~os.O_TRUNC)
        if flags & os.O_TRUNC:
            try:
                os.ftruncate(fd, 0)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def hold(self, parent: Inode, name: bytes) -> None:
        """What is about to lose a name that may be its last is held: a handle leads nowhere once a file has none, but
        a client may still use it."""
        keeping = self.inodes.keeping
        if keeping is None or (self.inodes.all_held and not self.tight()):
            return
        try:
            inode = self.inodes.known(key_of(syscalls.statx(parent.fd, name, BY_NAME, MASK)))
            if inode is not None and inode is not self.inodes.root:
                self.inodes.touch(inode)
        except OSError:  # the call itself will say so
            pass

    def open_flags(self, flags: int) -> int:
        """The flags to open the source's file with.

        O_APPEND is left to each write (RWF_APPEND), or with writeback to the kernel, which then must also read pages
        that it writes in part (O_RDWR). Unless configured otherwise, O_DIRECT is between the caller and the kernel (our
        page cache is the source's), and O_NOATIME, which would fail for files of others, is left out.
        """
        flags &= self._kept_flags
        if self.writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def fopen_flags(self, inode: Inode, flags: int) -> int:
        """What the kernel may do with an opened file.

        A flush says nothing where nothing was written, and where closing a file cannot fail; with locks of ours it is
        how we hear of a close.
        """
        found = _FOPEN[self.config.cache]
        if not self.config.posix_lock and (flags & os.O_ACCMODE == os.O_RDONLY or self._closes_quietly(inode)):
            found |= c.FOPEN_NOFLUSH
        return found

    def _closes_quietly(self, inode: Inode) -> bool:
        """Whether this file system's files have no flush operation, so that close(2) of them reports nothing."""
        device = inode.key[1:3]
        quiet = self._quiet.get(device)
        if quiet is None:
            quiet = self._quiet[device] = syscalls.filesystem_type(inode.fd) in _NO_FLUSH
        return quiet

    def open_inode(self, inode: Inode, flags: int, open_flags: int) -> Opened:
        """OPEN of a regular file.

        Where the kernel reads it by itself, one that is only read is not opened here at all; one that is written is,
        because only so the caller is told why it cannot be (ETXTBSY, EROFS): the kernel would make EIO of it.
        """
        if inode.kind != stat.S_IFREG:
            raise failure(errno.EBADF)
        if self._backings is not None and flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
            backing_id = self._backings.open(inode, writing=False)
            if backing_id:
                return self._backed(inode, None, flags, backing_id)
        with self.credentials.killing_privileges(open_flags & c.FUSE_OPEN_KILL_SUIDGID):
            fd = self._open_for(inode, flags)
        return self.opened(inode, fd, flags)

    def _open_for(self, inode: Inode, flags: int) -> int:
        wanted = self.open_flags(flags)
        try:
            return self.reopen(inode, wanted)
        except PermissionError:  # as asked, then: the file may not be read, or be written by appending alone
            exact = wanted & ~os.O_ACCMODE | flags & (os.O_ACCMODE | os.O_APPEND)
            if exact == wanted:
                raise
            return self.reopen(inode, exact)

    def opened(self, inode: Inode, fd: int, flags: int, mode: int | None = None) -> Opened:
        """A handle for a file that was opened or created here (fd is taken over; mode is the file's, where known)."""
        backing_id = self._backings.open(inode, writing=True, mode=mode) if self._backings is not None else 0
        if backing_id:
            return self._backed(inode, fd, flags, backing_id)
        return Opened(self.files.add(Handle(fd, inode)), self.fopen_flags(inode, flags))

    def _backed(self, inode: Inode, fd: int | None, flags: int, backing_id: int) -> Opened:
        handle = BackedHandle(inode, fd, lambda: self._open_for(inode, flags & ~os.O_TRUNC))
        quiet = self.fopen_flags(inode, flags) & c.FOPEN_NOFLUSH
        return Opened(self.files.add(handle), c.FOPEN_PASSTHROUGH | quiet, backing_id)

    def _idle(self, inode: Inode) -> None:
        if self._backings is not None:
            self._backings.let_go(inode)

    def closed(self, handle: Handle) -> None:
        """A handle was released."""
        if isinstance(handle, BackedHandle) and self._backings is not None:
            self._backings.close(handle.inode)

    def proc_path(self, inode: Inode) -> str:
        """A path that leads to an inode through its descriptor, for calls that take nothing else; the descriptor stays
        open for as long as this very string is kept."""
        fd = inode.fd
        return ProcPath(f"{self._proc_prefix}{fd}", fd)

    def ino_mask(self, key: Key) -> int:
        """What to XOR inode numbers of this device with, so that two devices' numbers differ on the one mount.

        The root's device has 0; the others get the upper 16 bits in the order in which they are met. Where mounts are
        announced, each has a device number of its own.
        """
        if self.submounts:
            return 0
        with self._masks_lock:
            return self._masks.setdefault(key[1:3], (len(self._masks) & 0xFFFF) << 48)

    def tight(self) -> bool:
        """Whether so many descriptors are pinned that the kernel is asked to let some go."""
        return len(self.pins) * 4 >= self.limit * 3

    def scarce(self) -> bool:
        """Whether so few descriptors are left that what is not necessary should not take one."""
        return len(self.pins) * 8 >= self.limit * 7

    def afford(self) -> None:
        """ENFILE when clients have pinned all descriptors that they may.

        Before that, inodes that were not used for longest are kept as file handles; where that does not do, the kernel
        is asked to let some go. Near the limit who asks must wait for that: a walk can pin faster than the janitor
        frees.
        """
        if not self.tight():
            return
        keeping = self.inodes.keeping
        if keeping is not None:
            keeping.evict(min(max(self.limit // 8, 1), BATCH), wait=self.scarce())
            if not self.tight():
                return
        pinned = len(self.pins)
        if self._janitor is not None:
            self._janitor.wake()
            if self.scarce():
                self._janitor.wait_for_pass(_PASS_S)
                pinned = len(self.pins)
        if pinned >= self.limit:
            if not self._warned:
                self._warned = True
                log.warning(
                    "all %d descriptors that clients may pin are in use: they get ENFILE; raise the limit: ulimit -n",
                    self.limit,
                )
            raise failure(errno.ENFILE)


class ProcPath(str):
    """A path to a descriptor, which it holds."""

    __slots__ = ("held",)
    held: Descriptor

    def __new__(cls, path: str, held: Descriptor) -> "ProcPath":
        """path, for as long as which held stays open."""
        made = super().__new__(cls, path)
        made.held = held
        return made


class Covered:
    """A directory of the share that our own mount covers: found by this descriptor, never by its name, which leads
    back to ourselves."""

    def __init__(self, fd: int, parent: tuple[int, int, int], name: bytes) -> None:
        self.fd = fd
        self.parent = parent
        self.name = name

    @classmethod
    def before_mount(cls, mountpoint: str) -> "Covered":
        """To be called before mounting there: afterwards the directory cannot be reached."""
        fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        parent, name = os.path.split(os.fsencode(mountpoint))
        st = syscalls.statx(-1, parent, 0, MASK)
        return cls(fd, key_of(st)[:3], name)


def _default_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - RESERVED_DESCRIPTORS, 16)
