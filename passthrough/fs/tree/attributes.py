"""Attributes: getattr, setattr, statx, access, statfs."""

import errno
import os
import stat

from ... import syscalls
from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import Attr, Context, SetAttr, StatFs, Statx
from .base import MASK, TreeBase, attr_of
from .handles import Handle
from .inodes import Inode

_OWNER = c.FATTR_UID | c.FATTR_GID
_NO_CHANGE = c.FATTR_FH | c.FATTR_LOCKOWNER | c.FATTR_CTIME
_TIMES = c.FATTR_ATIME | c.FATTR_MTIME
_STATX_FLAGS = 0x6000  # AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC: what a caller may choose
_MODE_BITS = 0o7777
_NOT_ALLOWED = (errno.EPERM, errno.EINVAL)  # the latter for an id that an ordinary user's sandbox does not know
_KEEP = -1  # chown(2): leave this id


class Attributes(TreeBase):
    """Everything that concerns a node and not its names or data."""

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        """One statx, through the O_PATH descriptor: it sees the same inode as any handle."""
        inode = self.inodes.get(nodeid)
        return attr_of(syscalls.statx(inode.fd, b"", syscalls.AT_EMPTY_PATH, MASK), inode.ino_mask), self.attr_ns

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> tuple[Statx, int]:
        """statx(2) with the caller's mask; btime above all."""
        inode = self.inodes.get(nodeid)
        flags = flags & _STATX_FLAGS | syscalls.AT_EMPTY_PATH
        st = syscalls.statx(inode.fd, b"", flags, mask & (syscalls.STATX_BASIC_STATS | syscalls.STATX_BTIME))
        found = Statx._make(st[:23])._replace(ino=st[7] ^ inode.ino_mask)
        return found, self.attr_ns

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        """Owner before mode, because a change of owner clears SUID and SGID; times last, because the rest sets them.

        A request to change nothing is chown(-1, -1), which clears those bits as well (fs/fuse/dir.c, fuse_setattr).
        """
        inode = self.inodes.get(nodeid)
        valid = attrs.valid
        handle = self.files.get(attrs.fh, nodeid) if valid & c.FATTR_FH and inode.kind == stat.S_IFREG else None
        if valid & _OWNER or not valid & ~_NO_CHANGE:
            self._chown(inode, attrs)
        if valid & c.FATTR_MODE:
            self._chmod(inode, attrs.mode & _MODE_BITS)
        if valid & c.FATTR_SIZE:
            self._truncate(inode, handle, attrs.size, valid & c.FATTR_KILL_SUIDGID)
        if valid & _TIMES:
            self._utime(inode, attrs)
        return self.getattr(ctx, nodeid, None)

    def _chown(self, inode: Inode, attrs: SetAttr) -> None:
        uid = attrs.uid if attrs.valid & c.FATTR_UID else _KEEP
        gid = attrs.gid if attrs.valid & c.FATTR_GID else _KEEP
        if c.FUSE_INVALID_UIDGID in (uid, gid):
            raise failure(errno.EINVAL)
        fd = inode.fd
        try:
            os.chown(str(fd), uid, gid, dir_fd=self.proc)
        except OSError as error:
            if not self.config.lenient_owners or error.errno not in _NOT_ALLOWED:
                raise

    def _chmod(self, inode: Inode, mode: int) -> None:
        fd = inode.fd
        os.chmod(str(fd), mode, dir_fd=self.proc)

    def _truncate(self, inode: Inode, handle: Handle | None, size: int, kill: int) -> None:
        if size >= 1 << 63:
            raise failure(errno.EFBIG)
        if inode.kind != stat.S_IFREG:
            raise failure(errno.EINVAL)
        if handle is None:
            handle = Handle(self.reopen(inode, os.O_WRONLY), inode)
        with self.credentials.killing_privileges(kill):
            os.ftruncate(handle.fd, size)

    def _utime(self, inode: Inode, attrs: SetAttr) -> None:
        valid = attrs.valid
        atime = (attrs.atime, attrs.atimensec) if valid & c.FATTR_ATIME else (0, syscalls.UTIME_OMIT)
        mtime = (attrs.mtime, attrs.mtimensec) if valid & c.FATTR_MTIME else (0, syscalls.UTIME_OMIT)
        if valid & c.FATTR_ATIME_NOW:
            atime = (0, syscalls.UTIME_NOW)
        if valid & c.FATTR_MTIME_NOW:
            mtime = (0, syscalls.UTIME_NOW)
        fd = inode.fd
        syscalls.utimensat(self.proc, str(fd).encode(), atime, mtime)

    def access(self, ctx: Context, nodeid: int, mask: int) -> None:
        """access(2) as the caller; asked only without default_permissions."""
        fd = self.inodes.get(nodeid).fd
        with self.credentials.caller(ctx, strict=True):
            allowed = os.access(str(fd), mask & 7, dir_fd=self.proc, effective_ids=True)
        if not allowed:
            raise failure(errno.EACCES)

    def statfs(self, ctx: Context, nodeid: int) -> StatFs:
        """Of the file system that the node lies on."""
        inode = self.inodes.get(nodeid)
        st = os.statvfs(inode.fd)
        return StatFs(
            st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
        )
