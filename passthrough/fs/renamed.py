"""Extended attributes under other names: what an xattrmap says, before any FileSystem.

Rules of this file: names that come in are the caller's, names that go on are the host's. Nobody but the map decides
which names of the host's can be reached, and what is listed by one name is not reached by another, since the kernel
that asks checks rights by names. Who may see `trusted.` is asked of the caller's names, since the kernel checks
those and not the host's; and `system.`, which names what a file system does and not what it stores, is never renamed.
"""

import errno

from ..filesystem import Context, FileSystem, failure
from .decorator import Decorator
from .tree.xattrs import SEES_TRUSTED
from .xattrmap import NAME_LIMIT, Kind, XattrMap

_SYSTEM, _TRUSTED = b"system.", b"trusted."


def ourselves(ctx: Context) -> Context:
    """The same request, made by us and not by its caller."""
    return Context(ctx.unique, 0, 0, ctx.pid)


class RenamedXattrs(Decorator):
    """Stands before another FileSystem, and tells it of attributes by the names that the map gives them."""

    def __init__(self, fs: FileSystem, xattrmap: XattrMap) -> None:
        super().__init__(fs)
        self.xattrmap = xattrmap

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """ENODATA for a name that the map refuses, or that is too long on the host: no attribute can have it."""
        host = self._host(name, errno.ENODATA)
        if len(host) > NAME_LIMIT:
            raise failure(errno.ENODATA)
        return self.fs.getxattr(ctx, nodeid, host)

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        """EPERM for a name that the map refuses; ERANGE for one that is too long on the host."""
        host = self._host(name, errno.EPERM)
        if len(host) > NAME_LIMIT:
            raise failure(errno.ERANGE)
        self.fs.setxattr(ctx, nodeid, host, value, flags, setxattr_flags)

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """EPERM for a name that the map refuses."""
        host = self._host(name, errno.EPERM)
        if len(host) > NAME_LIMIT:
            raise failure(errno.ENODATA)
        self.fs.removexattr(ctx, nodeid, host)

    def listxattr(self, ctx: Context, nodeid: int) -> list[bytes]:
        """The names that the map shows; it never makes one longer, so the list fits where the host's does."""
        hidden = ctx.uid not in SEES_TRUSTED
        found = (self.xattrmap.to_guest(host) for host in self.fs.listxattr(ourselves(ctx), nodeid))
        return [
            name
            for name in found
            if name and not self._is_renamed_system(name) and not (hidden and name.startswith(_TRUSTED))
        ]

    def _host(self, name: bytes, bad: int) -> bytes:
        kind, host = self.xattrmap.to_host(name)
        if kind is Kind.UNSUPPORTED or self._is_renamed_system(name):
            raise failure(errno.ENOTSUP)
        if kind is Kind.BAD or self.xattrmap.to_guest(host) not in (name, None):
            raise failure(bad)
        return host

    def _is_renamed_system(self, name: bytes) -> bool:
        return name.startswith(_SYSTEM) and self.xattrmap.renamed(name) is not None
