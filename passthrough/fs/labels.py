"""Security labels of new files: what a creating request brings (FUSE_SECURITY_CTX) is set before it is answered.

A file is never left without the label that it should have: where that cannot be set, the file goes again, and the
caller gets the error. Labels go the way of all attributes, so an xattrmap that lies below renames them.
"""

import contextlib
from collections.abc import Callable

from ..filesystem import Context, Entry, FileSystem, Opened
from ..protocol import constants as c
from .decorator import Decorator
from .renamed import ourselves


class SecurityLabels(Decorator):
    """Stands before another FileSystem. A kernel that does not bring labels is refused."""

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(fs)
        self.required = fs.required | c.FUSE_SECURITY_CTX

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        """Create, then label."""
        entry = self.fs.symlink(ctx, nodeid, name, link)
        self._label(ctx, entry, lambda: self._remove(ctx, nodeid, name, entry, self.fs.unlink))
        return entry

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Create, then label."""
        entry = self.fs.mknod(ctx, nodeid, name, mode, rdev, umask)
        self._label(ctx, entry, lambda: self._remove(ctx, nodeid, name, entry, self.fs.unlink))
        return entry

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        """Create, then label."""
        entry = self.fs.mkdir(ctx, nodeid, name, mode, umask)
        self._label(ctx, entry, lambda: self._remove(ctx, nodeid, name, entry, self.fs.rmdir))
        return entry

    def create(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """Create and open, then label."""
        entry, opened = self.fs.create(ctx, nodeid, name, flags, mode, umask, open_flags)

        def undo() -> None:
            self._release(ctx, entry, opened, flags)
            self._remove(ctx, nodeid, name, entry, self.fs.unlink)

        self._label(ctx, entry, undo)
        return entry, opened

    def tmpfile(
        self, ctx: Context, nodeid: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[Entry, Opened]:
        """Create and open, then label; a file without a name goes with its handle."""
        entry, opened = self.fs.tmpfile(ctx, nodeid, name, flags, mode, umask, open_flags)
        self._label(ctx, entry, lambda: self._release(ctx, entry, opened, flags))
        return entry, opened

    def _label(self, ctx: Context, entry: Entry, undo: Callable[[], None]) -> None:
        try:
            for label, value in ctx.labels:
                self.fs.setxattr(ourselves(ctx), entry.nodeid, label, value, 0, 0)
        except BaseException:
            undo()
            self.fs.forget(entry.nodeid, 1)
            raise

    def _release(self, ctx: Context, entry: Entry, opened: Opened, flags: int) -> None:
        with contextlib.suppress(OSError):
            self.fs.release(ctx, entry.nodeid, opened.fh, flags, 0, 0)

    def _remove(
        self, ctx: Context, nodeid: int, name: bytes, entry: Entry, remove: Callable[[Context, int, bytes], None]
    ) -> None:
        """The name, if it still is what was created: somebody on the host may have been quicker."""
        with contextlib.suppress(OSError):
            found = self.fs.lookup(ctx, nodeid, name)
            if found.nodeid:
                self.fs.forget(found.nodeid, 1)
            if found.nodeid == entry.nodeid:
                remove(ctx, nodeid, name)
