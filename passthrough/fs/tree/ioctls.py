"""ioctl: the inode flags (chattr, lsattr) and the project quota attributes, on files and directories; nothing else.

Numbers and sizes are those of include/uapi/linux/fs.h. The kernel sends the flags of fileattr_get as 4 bytes although
the command's number says 8 (fs/fuse/ioctl.c).
"""

import errno
import fcntl
import stat

from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import Context, IoctlReply
from .base import TreeBase

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC32_GETFLAGS = 0x80046601
FS_IOC32_SETFLAGS = 0x40046602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

# What the kernel's number stands for on our side, and how many bytes go in and out.
_KNOWN = {
    FS_IOC_GETFLAGS: (FS_IOC_GETFLAGS, 0, 4),
    FS_IOC32_GETFLAGS: (FS_IOC_GETFLAGS, 0, 4),
    FS_IOC_SETFLAGS: (FS_IOC_SETFLAGS, 4, 0),
    FS_IOC32_SETFLAGS: (FS_IOC_SETFLAGS, 4, 0),
    FS_IOC_FSGETXATTR: (FS_IOC_FSGETXATTR, 0, 28),
    FS_IOC_FSSETXATTR: (FS_IOC_FSSETXATTR, 28, 0),
}


class Ioctls(TreeBase):
    """ioctl; poll and bmap are not overridden: regular files are always ready, and blocks are the source's affair."""

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, cmd: int, arg: int, flags: int, data: bytes, out_size: int
    ) -> IoctlReply:
        """With the caller's rights: an ordinary user can set no flag that takes a capability."""
        inode = self.inodes.get(nodeid)
        handle = (self.dirs if inode.kind == stat.S_IFDIR else self.files).get(fh, nodeid)
        if cmd not in _KNOWN or flags & c.FUSE_IOCTL_UNRESTRICTED:
            raise failure(errno.ENOTTY)
        number, takes, gives = _KNOWN[cmd]
        if len(data) < takes or out_size < gives:
            raise failure(errno.EINVAL)
        buffer = bytearray(max(takes, gives, 8))
        buffer[:takes] = data[:takes]
        with self.credentials.caller(ctx, strict=True):
            fcntl.ioctl(handle.fd, number, buffer)
        return IoctlReply(0, bytes(buffer[:gives]))
