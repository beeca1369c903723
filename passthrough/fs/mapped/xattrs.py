"""Extended attributes beside those that hold the virtual owners: clients neither see nor touch the reserved names.

Access lists are kept under such names as well, because the source's kernel would take them for the real owners'. The
kernel that asks enforces them; here they are brought in line with the mode, as a file system of the kernel does it.
"""

import errno
import stat

from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import Context
from .. import acl
from ..tree.inodes import Inode
from . import virtual
from .passing import Passing
from .virtual import RESERVED


class MappedTree(Passing):
    """A shared directory with virtual owners: the whole of it."""

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """ENODATA for what is ours."""
        if name not in acl.NAMES:
            self._not_ours(name, errno.ENODATA)
            return super().getxattr(ctx, nodeid, name)
        found = virtual.read_list(self.proc_path(self._asked(nodeid, name)), name)
        if found is None:
            raise failure(errno.ENODATA)
        return found

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        """EPERM for what is ours."""
        if name not in acl.NAMES:
            self._not_ours(name, errno.EPERM)
            super().setxattr(ctx, nodeid, name, value, flags, setxattr_flags)
            return
        inode = self._asked(nodeid, name)
        self._set_list(inode, name, None if acl.is_empty(value) else value)
        if setxattr_flags & c.FUSE_SETXATTR_ACL_KILL_SGID:
            with self._changing:
                self._keep(inode, mode=self._now(inode).mode & ~stat.S_ISGID)

    def listxattr(self, ctx: Context, nodeid: int) -> list[bytes]:
        """Without what is ours."""
        names = super().listxattr(ctx, nodeid)
        lists = [name.removeprefix(RESERVED) for name in names if self.config.posix_acl]
        return [
            *(name for name in names if not name.startswith(RESERVED) and name not in acl.NAMES),
            *(name for name in lists if name in acl.NAMES and RESERVED + name in names),
        ]

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """EPERM for what is ours; an access list that is not there is gone already."""
        if name not in acl.NAMES:
            self._not_ours(name, errno.EPERM)
            super().removexattr(ctx, nodeid, name)
            return
        self._set_list(self._asked(nodeid, name), name, None)

    @staticmethod
    def _not_ours(name: bytes, number: int) -> None:
        if name.startswith(RESERVED):
            raise failure(number)

    def _set_list(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """EACCES for a default list of what is no directory; one that the mode can say is not kept."""
        self._special(inode)
        path = self.proc_path(inode)
        with self._changing:
            now = self._now(inode).mode
            if name == acl.DEFAULT:
                if value is not None and not stat.S_ISDIR(now):
                    raise failure(errno.EACCES)
                if value is not None:
                    acl.mode_of(value)
            elif value is not None:
                bits, extended = acl.mode_of(value)
                self._keep(inode, mode=now & ~0o777 | bits)
                value = value if extended else None
            virtual.write_list(path, name, value)
