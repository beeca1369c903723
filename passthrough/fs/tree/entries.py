"""Names: looking them up, making them, moving and removing them."""

import errno
import os
import stat
from collections.abc import Sequence

from ... import syscalls
from ...filesystem import failure
from ...protocol.values import Attr, Context, Entry, Opened, decode_dev
from .base import PATH_FLAGS, TreeBase
from .inodes import Inode
from .names import check_name

_RENAME_FLAGS = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT
_MAX_DEPTH = 4096
_NO_ATTR = Attr(*(0,) * 14)


class Entries(TreeBase):
    """Everything that concerns a name in a directory."""

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        """A name; `.` and `..` for NFS export alone, and never above the root."""
        if name == b"." or name == b"..":
            return self.entry(self._dots(nodeid, name))
        parent = self.inodes.get(nodeid)
        check_name(name)
        try:
            return self.entry(self.find(parent, name))
        except FileNotFoundError:
            if self.config.negative_timeout_ns:
                return Entry(0, _NO_ATTR, self.config.negative_timeout_ns)
            raise

    def _dots(self, nodeid: int, name: bytes) -> tuple[Inode, Attr]:
        try:
            inode = self.inodes.get(nodeid)
        except OSError:
            raise failure(errno.ESTALE) from None  # an NFS handle of a forgotten node
        if inode.kind != stat.S_IFDIR and name == b"..":
            raise failure(errno.ENOTDIR)
        self.afford()
        if name == b"." or inode is self.inodes.root:
            return self.enter(os.dup(inode.fd))
        fd = os.open(b"..", PATH_FLAGS, dir_fd=inode.fd)
        if not self._below_root(fd):
            os.close(fd)
            raise failure(errno.ESTALE)
        return self.enter(fd)

    def _below_root(self, fd: int) -> bool:
        """Whether going up from here meets the root: a directory may have been moved out of the share."""
        root = os.stat(self.inodes.root.fd)
        at = os.dup(fd)
        try:
            for _ in range(_MAX_DEPTH):
                here = os.stat(at)
                if os.path.samestat(here, root):
                    return True
                above = os.open(b"..", PATH_FLAGS, dir_fd=at)
                os.close(at)
                at = above
                if os.path.samestat(os.stat(at), here):
                    return False
            return False
        finally:
            os.close(at)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Lookups given back."""
        self.inodes.forget(nodeid, nlookup)

    def batch_forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        """The same for many."""
        self.inodes.forget_all(forgets)

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        """Through the O_PATH descriptor; the name plays no part."""
        inode = self.inodes.get(nodeid)
        if inode.kind != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        return os.readlink(b"", dir_fd=inode.fd)

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        """Create a symlink, owned by the caller."""
        parent = self._parent(nodeid, name)
        self.afford()
        with self.credentials.caller(ctx):
            os.symlink(link, name, dir_fd=parent.fd)
        return self.entry(self.find(parent, name, surely_new=True))

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Create a file, fifo, socket or (with the right to) a device."""
        parent = self._parent(nodeid, name)
        self.afford()
        device = os.makedev(*decode_dev(rdev))
        mode = self.credentials.masked(mode, umask)
        with self.credentials.caller(ctx):
            os.mknod(name, mode, device, dir_fd=parent.fd)
        return self.entry(self.find(parent, name, surely_new=True))

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        """Create a directory, owned by the caller."""
        parent = self._parent(nodeid, name)
        self.afford()
        mode = self.credentials.masked(mode, umask)
        with self.credentials.caller(ctx):
            os.mkdir(name, mode, dir_fd=parent.fd)
        return self.entry(self.find(parent, name, surely_new=True))

    def unlink(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove a name."""
        parent = self._parent(nodeid, name)
        self.hold(parent, name)
        os.unlink(name, dir_fd=parent.fd)

    def rmdir(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove an empty directory."""
        parent = self._parent(nodeid, name)
        self.hold(parent, name)
        os.rmdir(name, dir_fd=parent.fd)

    def rename2(self, ctx: Context, nodeid: int, name: bytes, newname: bytes, newdir: int, flags: int) -> None:
        """renameat2(2); the inode is the same afterwards, so nothing of ours changes."""
        old, new = self._parent(nodeid, name), self._parent(newdir, newname)
        if flags & ~_RENAME_FLAGS:
            raise failure(errno.EINVAL)
        self.hold(new, newname)
        if flags:
            syscalls.renameat2(old.fd, name, new.fd, newname, flags)
        else:
            os.rename(name, newname, src_dir_fd=old.fd, dst_dir_fd=new.fd)

    def link(self, ctx: Context, nodeid: int, newname: bytes, oldnodeid: int) -> Entry:
        """A further name for an inode, symlinks and unnamed files (O_TMPFILE) too."""
        parent = self._parent(nodeid, newname)
        fd = self.inodes.get(oldnodeid).fd
        os.link(str(fd), newname, src_dir_fd=self.proc, dst_dir_fd=parent.fd, follow_symlinks=True)
        return self.entry(self.find(parent, newname))

    def create(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """Exclusively: the kernel believes that there is no such file, and has checked nobody's right to open it.

        Where it is mistaken it gets ESTALE, looks the name up again, and sends an OPEN whose permission it has checked.
        """
        parent = self._parent(nodeid, name)
        wanted = self.open_flags(flags)
        self.afford()
        masked = self.credentials.masked(mode, umask)
        try:
            with self.credentials.caller(ctx):
                fd = os.open(name, wanted | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, masked, dir_fd=parent.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise failure(errno.ESTALE) from None
        return self._opened_new(fd, flags)

    def tmpfile(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """O_TMPFILE in this directory."""
        parent = self.inodes.get(nodeid)
        self.afford()
        wanted = self.open_flags(flags) | flags & os.O_EXCL
        mode = self.credentials.masked(mode, umask)
        with self.credentials.caller(ctx):
            fd = os.open(b".", wanted | os.O_TMPFILE, mode, dir_fd=parent.fd)
        return self._opened_new(fd, flags)

    def _opened_new(self, fd: int, flags: int) -> tuple[Entry, Opened]:
        try:
            found = self.enter(os.open(str(fd), os.O_PATH | os.O_CLOEXEC, dir_fd=self.proc))
        except BaseException:
            os.close(fd)
            raise
        inode, attr = found
        return self.entry(found), self.opened(inode, fd, flags, attr.mode)

    def _parent(self, nodeid: int, name: bytes) -> Inode:
        check_name(name)
        return self.inodes.get(nodeid)
