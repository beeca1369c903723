"""Directories: opening, reading with and without attributes."""

import os
import stat
from collections.abc import Iterator
from errno import ENOTDIR

from ... import syscalls
from ...filesystem import failure
from ...protocol import constants as c
from ...protocol.values import Context, Dirent, Entry, Opened
from .base import TreeBase
from .config import Cache
from .directory import DirHandle

_CACHED = c.FOPEN_CACHE_DIR | c.FOPEN_KEEP_CACHE


class Directories(TreeBase):
    """Everything that needs an fh of OPENDIR."""

    def opendir(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        """Re-open the directory for reading."""
        inode = self.inodes.get(nodeid)
        if inode.kind != stat.S_IFDIR:
            raise failure(ENOTDIR)
        handle = DirHandle(self.reopen(inode, os.O_RDONLY | os.O_DIRECTORY), inode)
        cached = self.config.cache in (Cache.METADATA, Cache.ALWAYS)
        return Opened(self.dirs.add(handle), _CACHED if cached else 0)

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        """Entries as the source's file system gives them, with its offsets."""
        handle = self.dirs.get(fh, nodeid)
        entries = handle.entries(offset, size)
        inode = handle.inode
        if inode is self.inodes.root:
            ino = inode.key[0]
            entries = [entry._replace(ino=ino) if entry.name == b".." else entry for entry in entries]
        if inode.ino_mask:
            entries = [entry._replace(ino=entry.ino ^ inode.ino_mask) for entry in entries]
        return entries

    def readdirplus(
        self, ctx: Context, nodeid: int, fh: int, offset: int, size: int
    ) -> Iterator[tuple[Dirent, Entry | None]]:
        """The same, each with its lookup; where that fails (gone meanwhile, no descriptor left) the name alone."""
        inode = self.dirs.get(fh, nodeid).inode
        known, find, entry, scarce = self.inodes.known, self.find, self.entry, self.scarce
        place, mask = inode.key[1:], inode.ino_mask
        for dirent in self.readdir(ctx, nodeid, fh, offset, size):
            name, ino, _, _ = dirent
            if name == b"." or name == b".." or scarce():
                yield dirent, None
                continue
            try:
                found = entry(find(inode, name, surely_new=known((ino ^ mask, *place)) is None))
            except OSError:
                found = None
            yield dirent, found

    def releasedir(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        """The handle goes."""
        self.dirs.pop(fh, nodeid)

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, fsync_flags: int) -> None:
        """To the disk."""
        self.dirs.get(fh, nodeid).sync(fsync_flags)

    def syncfs(self, ctx: Context, nodeid: int) -> None:
        """All of the file system that the root lies on."""
        fd = self.reopen(self.inodes.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
