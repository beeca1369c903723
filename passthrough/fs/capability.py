"""security.capability under another name: a change of a file takes it away, as the kernel does under the true name.

The kernel removes a file's capabilities before a write, a truncation and a change of owner (file_remove_privs() and
notify_change() in fs/). Under another name they are an attribute like any other to it, and a file that an attacker
changes would keep them (CVE-2021-20263). So it is done here, before the change: also for root, as there, and for pages
that the kernel collected and writes back. What this file system does not see it cannot follow: no kernel passthrough.
"""

import errno
import os

from ..filesystem import Attr, Buffers, Context, FileSystem, Later, Opened, SetAttr
from ..protocol import constants as c
from .decorator import Decorator
from .renamed import ourselves

CAPABILITY = b"security.capability"
_GONE = frozenset({errno.ENODATA, errno.ENOTSUP, errno.ENOSYS})
_KEPT = frozenset({errno.EPERM, errno.EACCES})
_CHANGES = c.FATTR_UID | c.FATTR_GID | c.FATTR_SIZE
_NO_CHANGE = c.FATTR_FH | c.FATTR_LOCKOWNER | c.FATTR_CTIME


class ClearedCapability(Decorator):
    """Stands before another FileSystem, which keeps security.capability as `host`, and removes that."""

    def __init__(self, fs: FileSystem, host: bytes) -> None:
        super().__init__(fs)
        self.flags = fs.flags & ~c.FUSE_PASSTHROUGH
        self.required = fs.required & ~c.FUSE_PASSTHROUGH
        self._host = host

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """O_TRUNC is a change."""
        if flags & os.O_TRUNC:
            self._clear(ctx, nodeid)
        return self.fs.open(ctx, nodeid, flags, open_flags)

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        """By whomever."""
        self._clear(ctx, nodeid)
        return self.fs.write(ctx, nodeid, fh, offset, data, write_flags, flags)

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """All modes."""
        self._clear(ctx, nodeid)
        self.fs.fallocate(ctx, nodeid, fh, offset, length, mode)

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
        """Of the file that is copied to."""
        self._clear(ctx, nodeid_out)
        return self.fs.copy_file_range(ctx, nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)

    def setattr(self, ctx: Context, nodeid: int, attrs: SetAttr) -> tuple[Attr, int]:
        """A new owner, a new size, and the request to change nothing, which is chown(-1, -1)."""
        if attrs.valid & _CHANGES or not attrs.valid & ~_NO_CHANGE:
            self._clear(ctx, nodeid)
        return self.fs.setattr(ctx, nodeid, attrs)

    def _clear(self, ctx: Context, nodeid: int) -> None:
        """An error is the change's own: it must not happen while the capabilities stay."""
        us = ourselves(ctx)
        try:
            self.fs.removexattr(us, nodeid, self._host)
        except OSError as error:
            if error.errno in _GONE:
                return
            # Permission is checked before existence, and a symlink can have no user.* at all.
            if error.errno not in _KEPT or self._host in self.fs.listxattr(us, nodeid):
                raise
