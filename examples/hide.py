#!/usr/bin/env python3
"""Show SRC on MNT, but for what has a certain name: .venv/bin/python examples/hide.py SRC MNT '*.key' .git

What is hidden cannot be found, listed, opened, removed, moved or replaced through the mount (ENOENT), and nothing can
be made that would be hidden (EPERM). A file is hidden by its name: another hard link of it, with a name that is not
hidden, shows it. A directory that seems empty but hides something cannot be removed (ENOTEMPTY). A name that becomes
hidden because SRC is changed from outside may be seen until the kernel looks it up again, a second later (cache=auto).
"""

import sys
from collections.abc import Sequence
from errno import ENOENT, EPERM
from fnmatch import fnmatchcase
from os import fsencode

from passthrough import Context, Dirent, Entry, Opened, Tree, UserError, failure, mount


class Hiding(Tree):
    """The shared directory without the names that one of the patterns fits."""

    def __init__(self, source: str, patterns: Sequence[str]) -> None:
        self.patterns = [fsencode(pattern) for pattern in patterns]
        super().__init__(source)

    def hides(self, name: bytes) -> bool:
        """Whether a name is hidden, whoever asks: the kernel keeps for all users what it was told."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def shown(self, name: bytes, error: int = ENOENT) -> bytes:
        """The name, if it is not hidden."""
        if self.hides(name):
            raise failure(error)
        return name

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        """Every path is walked through here, name by name; b".." is asked for file handles alone (NFS)."""
        if name == b"..":
            raise failure(ENOENT)  # it may lead to what is hidden
        return super().lookup(ctx, nodeid, self.shown(name))

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        """readdirplus lists these as well. None at all would mean the end: go on where a whole piece is hidden."""
        while entries := super().readdir(ctx, nodeid, fh, offset, size):
            if shown := [entry for entry in entries if not self.hides(entry.name)]:
                return shown
            offset = entries[-1].off
        return []

    # What is hidden is not there to be removed or moved, and nothing is made that would be hidden.

    def unlink(self, ctx: Context, nodeid: int, name: bytes) -> None:
        super().unlink(ctx, nodeid, self.shown(name))

    def rmdir(self, ctx: Context, nodeid: int, name: bytes) -> None:
        super().rmdir(ctx, nodeid, self.shown(name))

    def rename2(self, ctx: Context, nodeid: int, name: bytes, newname: bytes, newdir: int, flags: int) -> None:
        super().rename2(ctx, nodeid, self.shown(name), self.shown(newname, EPERM), newdir, flags)

    def link(self, ctx: Context, nodeid: int, newname: bytes, oldnodeid: int) -> Entry:
        return super().link(ctx, nodeid, self.shown(newname, EPERM), oldnodeid)

    def symlink(self, ctx: Context, nodeid: int, name: bytes, link: bytes) -> Entry:
        return super().symlink(ctx, nodeid, self.shown(name, EPERM), link)

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, *mode: int) -> Entry:
        return super().mkdir(ctx, nodeid, self.shown(name, EPERM), *mode)

    def mknod(self, ctx: Context, nodeid: int, name: bytes, *mode: int) -> Entry:
        return super().mknod(ctx, nodeid, self.shown(name, EPERM), *mode)

    def create(self, ctx: Context, nodeid: int, name: bytes, *how: int) -> tuple[Entry, Opened]:
        return super().create(ctx, nodeid, self.shown(name, EPERM), *how)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: hide.py SRC MNT PATTERN...")
    try:
        mount(Hiding(sys.argv[1], sys.argv[3:]), sys.argv[2]).run()
    except (OSError, UserError) as failed:
        sys.exit(str(failed))
