"""A file system that cannot be changed: another one, with every change refused (EROFS)."""

import errno
import os
from typing import Any, NoReturn

from ..filesystem import Context, FileSystem, IoctlReply, Opened, failure
from .decorator import Decorator

CHANGES = frozenset(
    "setattr symlink mknod mkdir unlink rmdir rename2 link create tmpfile write fallocate copy_file_range setxattr"
    " removexattr".split()
)
"""Methods that change something whatever their arguments."""
_IOC_WRITE = 1 << 30


def _refuse(*_: Any) -> NoReturn:
    raise failure(errno.EROFS)


class ReadOnly(Decorator):
    """Stands before another FileSystem. Reading may still change access times there: that is the host's affair."""

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(fs)
        for name in CHANGES:
            setattr(self, name, _refuse)

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """For reading alone."""
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            _refuse()
        return self.fs.open(ctx, nodeid, flags, open_flags)

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, cmd: int, arg: int, flags: int, data: bytes, out_size: int
    ) -> IoctlReply:
        """Those that ask, and none that set (_IOC_WRITE: data for us)."""
        if cmd & _IOC_WRITE:
            _refuse()
        return self.fs.ioctl(ctx, nodeid, fh, cmd, arg, flags, data, out_size)
