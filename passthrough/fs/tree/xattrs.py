"""Extended attributes: by a path through /proc/self/fd, since no call takes an O_PATH descriptor."""

import errno
import os

from ...filesystem import unsupported
from ...protocol import constants as c
from ...protocol.values import Context
from .base import TreeBase

_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


class Xattrs(TreeBase):
    """getxattr, setxattr, listxattr, removexattr.

    With no_xattr all answer ENOSYS, and the kernel asks no more. Access lists that the kernel does not enforce are
    refused and hidden: shown, they would promise a protection that is not there.
    """

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """The value."""
        return os.getxattr(self._path(nodeid, name), name)

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        """Set; an access list may cost the SGID bit, which the kernel then asks for."""
        path = self._path(nodeid, name)
        with self.credentials.killing_privileges(setxattr_flags & c.FUSE_SETXATTR_ACL_KILL_SGID):
            os.setxattr(path, name, value, flags)

    def listxattr(self, ctx: Context, nodeid: int) -> list[bytes]:
        """The names, without those that are hidden."""
        names = [os.fsencode(name) for name in os.listxattr(self._path(nodeid, b""))]
        return names if self.config.posix_acl else [name for name in names if name not in _ACLS]

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove."""
        os.removexattr(self._path(nodeid, name), name)

    def _path(self, nodeid: int, name: bytes) -> str:
        if not self.config.xattr:
            unsupported()
        if name in _ACLS and not self.config.posix_acl:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return self.proc_path(self.inodes.get(nodeid))
