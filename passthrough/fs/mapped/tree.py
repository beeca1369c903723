"""The shared directory with virtual owners and modes: what is made, changed and shown is kept in xattrs (virtual.py).

Every real file that is made here is the daemon's own, a regular file of mode 0600 or a directory of mode 0700, so that
the daemon can open it whatever its virtual mode. Devices, fifos, sockets and symlinks (the target is the content) are
regular files too. The kernel that asks checks permissions, by what it is shown (default_permissions).

The kernel of the source does not know of the virtual mode, so it is for us to let umask and SGID directories decide
what a new file is, and to clear SUID and SGID when a file is changed.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ... import syscalls
from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import (
    Attr,
    Buffers,
    Context,
    Dirent,
    Entry,
    Opened,
    SetAttr,
    Statx,
    decode_dev,
    encode_dev,
)
from .. import acl
from ..tree import Tree
from ..tree.inodes import Inode
from ..tree.names import check_name
from . import virtual
from .rights import OwnRights
from .virtual import Virtual

_FILE_MODE, _DIR_MODE = 0o600, 0o700
_KINDS = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_PATH_MAX = 4096
_DT_UNKNOWN, _DT_REG = 0, 8


class New(NamedTuple):
    """What a file is to be that is being made: what clients see, and its access lists."""

    virtual: Virtual
    access: bytes | None
    default: bytes | None


def _keep_new(fd: int, new: New) -> None:
    mode, uid, gid, rdev = new.virtual
    virtual.write(fd, mode=mode, uid=uid, gid=gid, rdev=os.makedev(*rdev) if stat.S_IFMT(mode) in _DEVICES else None)
    for name, value in ((acl.ACCESS, new.access), (acl.DEFAULT, new.default)):
        if value is not None:
            virtual.write_list(fd, name, value)


def taken_by_writing(mode: int) -> int:
    """Which of SUID and SGID a change of the data takes from a file of this mode (setattr_should_drop_suidgid)."""
    if stat.S_ISDIR(mode):
        return 0
    return mode & (stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


class VirtualOwners(Tree):
    """The whole of it; what is not overridden is the same for real files and virtual ones."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """As a Tree is made; the configuration must have default_permissions."""
        super().__init__(*arguments, **more)
        self.credentials = OwnRights()
        self._changing = threading.Lock()  # a mode is read, changed and written: the three must be one
        self._begin()

    def _begin(self) -> None:
        """For what a subclass remembers."""

    # What is shown

    def _shown(self, inode: Inode, real: Virtual) -> Virtual:
        found = virtual.read(self.proc_path(inode), real)
        inode.kind = stat.S_IFMT(found.mode)
        return found

    def _attr(self, inode: Inode, attr: Attr) -> Attr:
        found = self._shown(inode, Virtual(attr.mode, attr.uid, attr.gid))
        rdev = encode_dev(*found.rdev) if any(found.rdev) else attr.rdev
        return attr._replace(mode=found.mode, uid=found.uid, gid=found.gid, rdev=rdev)

    def _now(self, inode: Inode) -> Virtual:
        st = os.stat(self.proc_path(inode))
        return self._shown(inode, Virtual(st.st_mode, st.st_uid, st.st_gid))

    def entry(self, found: tuple[Inode, Attr]) -> Entry:
        """What a lookup answers; it is taken back where the xattrs cannot be read."""
        inode, attr = found
        try:
            return super().entry((inode, self._attr(inode, attr)))
        except OSError:
            self.inodes.forget(inode.nodeid, 1)
            raise

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        """One statx, and what is kept."""
        attr, timeout = super().getattr(ctx, nodeid, fh)
        return self._attr(self.inodes.get(nodeid), attr), timeout

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> tuple[Statx, int]:
        """statx(2), with what is kept."""
        st, timeout = super().statx(ctx, nodeid, fh, flags, mask | syscalls.STATX_BASIC_STATS)
        found = self._shown(self.inodes.get(nodeid), Virtual(st.mode, st.uid, st.gid))
        major, minor = found.rdev if any(found.rdev) else (st.rdev_major, st.rdev_minor)
        shown = st._replace(mode=found.mode, uid=found.uid, gid=found.gid, rdev_major=major, rdev_minor=minor)
        return shown, timeout

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        """The content of what stands for a symlink; or a real symlink's target."""
        inode = self.inodes.get(nodeid)
        if not stat.S_ISREG(os.stat(inode.fd).st_mode):
            return super().readlink(ctx, nodeid)
        if inode.kind != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        fd = self._open_real(inode, os.O_RDONLY)
        try:
            return os.pread(fd, _PATH_MAX - 1, 0).partition(b"\0")[0]
        finally:
            os.close(fd)

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        """A regular file may stand for something else: its type is left open."""
        entries = super().readdir(ctx, nodeid, fh, offset, size)
        return [entry._replace(type=_DT_UNKNOWN) if entry.type == _DT_REG else entry for entry in entries]

    def readdirplus(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int
    ) -> Iterator[tuple[Dirent, Entry | None]]:
        """Here the type is known."""
        for dirent, entry in super().readdirplus(ctx, nodeid, fh, offset, size):
            yield (dirent._replace(type=entry.attr.mode >> 12) if entry else dirent), entry

    # What is made

    def _new(self, ctx: Context, parent: Inode, mode: int, umask: int) -> New:
        """What a new file is: a SGID directory gives its group, and to directories its SGID bit; a default list takes
        the place of the umask."""
        if c.FUSE_INVALID_UIDGID in (ctx.uid, ctx.gid):
            raise failure(errno.EOVERFLOW)
        mode, access, default = self._permitted(parent, mode, umask)
        gid = ctx.gid
        above = self._now(parent)
        if above.mode & stat.S_ISGID:
            gid = above.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        return New(Virtual(mode, ctx.uid, gid), access, default)

    def _permitted(self, parent: Inode, mode: int, umask: int) -> tuple[int, bytes | None, bytes | None]:
        lists = self.config.posix_acl and not stat.S_ISLNK(mode)
        default = virtual.read_list(self.proc_path(parent), acl.DEFAULT) if lists else None
        if default is None:
            return self.credentials.masked(mode, umask), None, None
        access, mode = acl.inherited(default, mode)
        return mode, access, default if stat.S_ISDIR(mode) else None

    def _made(
        self,
        parent: Inode,
        name: bytes,
        new: New,
        make: Callable[[], int],
        fill: Callable[[int], object] = lambda fd: None,
    ) -> int:
        """Make the real file, keep what it stands for, and return its descriptor. Where that fails it goes again."""
        self.afford()
        fd = make()
        try:
            fill(fd)
            _keep_new(fd, new)
        except BaseException:
            os.close(fd)
            if name:
                (os.rmdir if stat.S_ISDIR(new.virtual.mode) else os.unlink)(name, dir_fd=parent.fd)
            raise
        return fd

    def _file(self, parent: Inode, name: bytes, flags: int = os.O_RDWR) -> Callable[[], int]:
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return lambda: os.open(name, flags, _FILE_MODE, dir_fd=parent.fd)

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        """A file with the target in it."""
        parent = self._parent(nodeid, name)
        new = self._new(ctx, parent, stat.S_IFLNK | 0o777, 0)
        os.close(self._made(parent, name, new, self._file(parent, name), lambda fd: _write_all(fd, link)))
        return self.entry(self.find(parent, name, surely_new=True))

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """An empty file, whatever it stands for."""
        parent = self._parent(nodeid, name)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in _KINDS:
            raise failure(errno.EINVAL)
        new = self._new(ctx, parent, kind | stat.S_IMODE(mode), umask)
        if kind in _DEVICES:
            new = new._replace(virtual=new.virtual._replace(rdev=decode_dev(rdev)))
        os.close(self._made(parent, name, new, self._file(parent, name)))
        return self.entry(self.find(parent, name, surely_new=True))

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        """A directory that the daemon can use."""
        parent = self._parent(nodeid, name)
        new = self._new(ctx, parent, stat.S_IFDIR | stat.S_IMODE(mode), umask)

        def make() -> int:
            os.mkdir(name, _DIR_MODE, dir_fd=parent.fd)
            try:
                return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent.fd)
            except OSError:
                os.rmdir(name, dir_fd=parent.fd)
                raise

        os.close(self._made(parent, name, new, make))
        return self.entry(self.find(parent, name, surely_new=True))

    def create(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """As the real tree does it: ESTALE for a name that is there after all."""
        parent = self._parent(nodeid, name)
        new = self._new(ctx, parent, stat.S_IFREG | stat.S_IMODE(mode), umask)
        try:
            fd = self._made(parent, name, new, self._file(parent, name, self.open_flags(flags)))
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
        new = self._new(ctx, parent, stat.S_IFREG | stat.S_IMODE(mode), umask)
        wanted = self.open_flags(flags) | flags & os.O_EXCL | os.O_TMPFILE
        fd = self._made(parent, b"", new, lambda: os.open(b".", wanted, _FILE_MODE, dir_fd=parent.fd))
        return self._opened_new(fd, flags)

    def rename2(self, ctx: Context, nodeid: int, name: bytes, newname: bytes, newdir: int, flags: int) -> None:
        """The xattrs go along with the inode. A whiteout would be a real device: EINVAL."""
        if flags & syscalls.RENAME_WHITEOUT:
            check_name(name)
            raise failure(errno.EINVAL)
        super().rename2(ctx, nodeid, name, newname, newdir, flags)

    # What is changed

    def _keep(self, inode: Inode, **fields: int | None) -> None:
        """Keep these; a file of the daemon's that it may not write is made writable for it."""
        path = self.proc_path(inode)
        try:
            virtual.write(path, **fields)
        except PermissionError:
            st = os.stat(path)
            needed = _DIR_MODE if stat.S_ISDIR(st.st_mode) else _FILE_MODE
            if st.st_mode & needed == needed:
                raise
            fd = inode.fd
            os.chmod(str(fd), stat.S_IMODE(st.st_mode) | needed, dir_fd=self.proc)
            virtual.write(path, **fields)

    def _chown(self, inode: Inode, attrs: SetAttr) -> None:
        uid = attrs.uid if attrs.valid & c.FATTR_UID else None
        gid = attrs.gid if attrs.valid & c.FATTR_GID else None
        if c.FUSE_INVALID_UIDGID in (uid, gid):
            raise failure(errno.EINVAL)
        self._special(inode)
        self._kill(inode)  # first: it must never be the new owner's SUID program
        self._keep(inode, uid=uid, gid=gid)
        fd = inode.fd
        os.chown(str(fd), -1, -1, dir_fd=self.proc)  # file capabilities go, as they do with an owner

    def _chmod(self, inode: Inode, mode: int) -> None:
        self._special(inode)
        with self._changing:
            self._keep(inode, mode=stat.S_IFMT(self._now(inode).mode) | stat.S_IMODE(mode))
            access = virtual.read_list(self.proc_path(inode), acl.ACCESS) if self.config.posix_acl else None
            if access is not None:
                virtual.write_list(self.proc_path(inode), acl.ACCESS, acl.with_mode(access, mode))

    @staticmethod
    def _special(inode: Inode) -> None:
        """EPERM for a real symlink or special file, which cannot have user xattrs (xattr(7))."""
        if stat.S_IFMT(os.stat(inode.fd).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise failure(errno.EPERM)

    def _kill(self, inode: Inode) -> None:
        """Clear SUID, and SGID where it is not the sign of mandatory locks, as a change of the file's data does."""
        with self._changing:
            mode = self._now(inode).mode
            lost = taken_by_writing(mode)
            if lost:
                self._keep(inode, mode=mode & ~lost)

    def _truncate(self, inode: Inode, handle: Any, size: int, kill: int) -> None:
        if kill:
            self._kill(inode)
        super()._truncate(inode, handle, size, kill)

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """What stands for a device, fifo, socket or symlink is not opened: EBADF."""
        opened = super().open(ctx, nodeid, flags, open_flags)
        if open_flags & c.FUSE_OPEN_KILL_SUIDGID:
            self._kill(self.inodes.get(nodeid))
        return opened

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int:
        """The bits go first, as in the kernel."""
        if write_flags & c.FUSE_WRITE_KILL_SUIDGID:
            self._kill(self.files.get(fh, nodeid).inode)
        return super().write(ctx, nodeid, fh, offset, data, write_flags, flags)

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """As with a write."""
        if ctx.uid:
            self._kill(self.files.get(fh, nodeid).inode)
        super().fallocate(ctx, nodeid, fh, offset, length, mode)

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
        """As with a write."""
        if ctx.uid:
            self._kill(self.files.get(fh_out, nodeid_out).inode)
        return super().copy_file_range(ctx, nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)

    def _open_real(self, inode: Inode, flags: int) -> int:
        self.afford()
        fd = inode.fd
        return os.open(str(fd), flags | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.proc)


def _write_all(fd: int, data: bytes) -> None:
    """ENOSPC where not all of it fits."""
    if os.write(fd, data) != len(data):
        raise failure(errno.ENOSPC)
