"""Extended attributes: by a path through /proc/self/fd, since no call takes an O_PATH descriptor."""

import errno
import os

from ...filesystem import failure, unsupported
from ...protocol import constants as c
from ...protocol.values import Context
from .base import TreeBase
from .inodes import Inode

_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
SEES_TRUSTED = (0, c.FUSE_INVALID_UIDGID)
"""Who is shown trusted.*: root, and whoever it is where the kernel does not tell (FUSE_ALLOW_IDMAP)."""
_SYSTEM, _TRUSTED = b"system.", b"trusted."


class Xattrs(TreeBase):
    """getxattr, setxattr, listxattr, removexattr.

    With no_xattr all answer ENOSYS, and the kernel asks no more. Access lists that the kernel does not enforce are
    refused and hidden: shown, they would promise a protection that is not there. So are all other names in `system.`:
    the kernel leaves it to a file system who may touch them, and ours would do it with its own rights.
    """

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """The value."""
        inode = self._asked(nodeid, name)
        return os.getxattr(self.proc_path(inode), name)

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        """Set; an access list may cost the SGID bit, which the kernel then asks for."""
        inode = self._asked(nodeid, name)
        with self.credentials.killing_privileges(setxattr_flags & c.FUSE_SETXATTR_ACL_KILL_SGID):
            os.setxattr(self.proc_path(inode), name, value, flags)

    def listxattr(self, ctx: Context, nodeid: int) -> list[bytes]:
        """The names, without those that are hidden; trusted.* are root's to see (xattr(7))."""
        inode = self._asked(nodeid, b"")
        names = [os.fsencode(name) for name in os.listxattr(self.proc_path(inode))]
        hidden = ctx.uid not in SEES_TRUSTED
        return [name for name in names if not self._refused(name) and not (hidden and name.startswith(_TRUSTED))]

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """Remove."""
        inode = self._asked(nodeid, name)
        os.removexattr(self.proc_path(inode), name)

    def _asked(self, nodeid: int, name: bytes) -> Inode:
        if not self.config.xattr:
            unsupported()
        if self._refused(name):
            raise failure(errno.ENOTSUP)
        return self.inodes.get(nodeid)

    def _refused(self, name: bytes) -> bool:
        return name.startswith(_SYSTEM) and not (self.config.posix_acl and name in _ACLS)
