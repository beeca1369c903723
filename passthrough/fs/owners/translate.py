"""A file system whose ids are others than the source's: another one, with ids translated on their way in and out.

In: the caller's ids where a file is made, where the source's kernel decides by them, and where the file system behind
does; those of chown, and those in access lists that are set. Out: the owner in every reply that has one, and access
lists that are read. Everything else goes straight to the file system behind.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...filesystem import Attr, Context, Dirent, Entry, FileSystem, IoctlReply, Opened, SetAttr, Statx
from ...protocol import constants as c
from ..acl import NAMES, translated
from ..decorator import Decorator
from .idmap import IdTable, Line

_CALLER_IN = frozenset("symlink mknod mkdir create tmpfile access ioctl".split())
"""The methods below that translate the caller themselves."""


class Lowered(Context):
    """Who is root to the kernel that asks, which therefore allows everything, and another user on the source."""

    __slots__ = ()


class Translated(Decorator):
    """Stands before another FileSystem. Both tables are as IdTable has them."""

    def __init__(
        self, fs: FileSystem, uids: Sequence[Line], gids: Sequence[Line], by_caller: Iterable[str] = ()
    ) -> None:
        """by_caller: the methods for which fs looks at who asks. ValueError where two lines overlap."""
        super().__init__(fs)
        self._uids, self._gids = IdTable(uids), IdTable(gids)
        for name in by_caller:
            if name not in _CALLER_IN:
                setattr(self, name, self._by_caller(getattr(self, name)))

    # In

    def _caller(self, ctx: Context) -> Context:
        """Who asks, as the source knows it. EPERM where this id must not be used."""
        groups = tuple(map(self._gids.host, ctx.groups)) if ctx.groups else ctx.groups
        uid = self._uids.host(ctx.uid)
        kind = Lowered if uid and not ctx.uid else Context
        return kind(ctx.unique, uid, self._gids.host(ctx.gid), ctx.pid, groups)

    def _by_caller(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """For what makes nothing: an id that must not be used stays as it is."""

        def call(ctx: Context, *arguments: Any) -> Any:
            try:
                ctx = self._caller(ctx)
            except PermissionError:
                pass
            return method(ctx, *arguments)

        return call

    # Out

    def _attr(self, attr: Attr) -> Attr:
        return attr._replace(uid=self._uids.guest(attr.uid), gid=self._gids.guest(attr.gid))

    def _entry(self, entry: Entry) -> Entry:
        return entry._replace(attr=self._attr(entry.attr)) if entry.nodeid else entry

    # The requests that have an id in them

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        """Out."""
        return self._entry(self.fs.lookup(ctx, nodeid, name))

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        """Out."""
        attr, timeout = self.fs.getattr(ctx, nodeid, fh)
        return self._attr(attr), timeout

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        """The new owner in, and all out."""
        if attrs.valid & c.FATTR_UID:
            attrs = attrs._replace(uid=self._uids.host(attrs.uid))
        if attrs.valid & c.FATTR_GID:
            attrs = attrs._replace(gid=self._gids.host(attrs.gid))
        attr, timeout = self.fs.setattr(ctx, nodeid, attrs)
        return self._attr(attr), timeout

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> tuple[Statx, int]:
        """Out."""
        found, timeout = self.fs.statx(ctx, nodeid, fh, flags, mask)
        return found._replace(uid=self._uids.guest(found.uid), gid=self._gids.guest(found.gid)), timeout

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        """The caller in, and its file out."""
        return self._entry(self.fs.symlink(self._caller(ctx), nodeid, name, link))

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """The caller in, and its file out."""
        return self._entry(self.fs.mknod(self._caller(ctx), nodeid, name, mode, rdev, umask))

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        """The caller in, and its directory out."""
        return self._entry(self.fs.mkdir(self._caller(ctx), nodeid, name, mode, umask))

    def create(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """The caller in, and its file out."""
        entry, opened = self.fs.create(self._caller(ctx), nodeid, name, flags, mode, umask, open_flags)
        return self._entry(entry), opened

    def tmpfile(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """The caller in, and its file out."""
        entry, opened = self.fs.tmpfile(self._caller(ctx), nodeid, name, flags, mode, umask, open_flags)
        return self._entry(entry), opened

    def link(self, ctx: Context, nodeid: int, newname: bytes, oldnodeid: int) -> Entry:
        """Out."""
        return self._entry(self.fs.link(ctx, nodeid, newname, oldnodeid))

    def access(self, ctx: Context, nodeid: int, mask: int) -> None:
        """The caller in."""
        self.fs.access(self._caller(ctx), nodeid, mask)

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, cmd: int, arg: int, flags: int, data: bytes, out_size: int
    ) -> IoctlReply:
        """The caller in: the source's kernel decides who may set a flag."""
        return self.fs.ioctl(self._caller(ctx), nodeid, fh, cmd, arg, flags, data, out_size)

    def readdirplus(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int
    ) -> Iterator[tuple[Dirent, Entry | None]]:
        """Out."""
        for dirent, entry in self.fs.readdirplus(ctx, nodeid, fh, offset, size):
            yield dirent, entry and self._entry(entry)

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """Access lists out."""
        value = self.fs.getxattr(ctx, nodeid, name)
        return translated(value, self._uids.guest, self._gids.guest) if name in NAMES else value

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, *flags: Any) -> None:
        """Access lists in."""
        if name in NAMES:
            value = translated(value, self._uids.host, self._gids.host)
        self.fs.setxattr(ctx, nodeid, name, value, *flags)
