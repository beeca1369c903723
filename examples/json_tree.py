#!/usr/bin/env python3
"""Show a JSON document as a read-only tree: .venv/bin/python examples/json_tree.py FILE.json MNT

Objects and arrays are directories, their members are named by key or by number. Everything else is a file with the
value on one line; where the document is no more than such a value, MNT is a file. A key that no file can be named by
(empty, `.`, `..`, with a slash) is left out.
"""

import json
import stat
import sys
from errno import EBADF, ENOENT, ENOTDIR
from typing import Any

from passthrough import Attr, Context, Dirent, Entry, FileSystem, StatFs, UserError, failure, mount

FOREVER_NS = 86_400 * 10**9  # nothing here ever changes, so the kernel may remember it


class JsonTree(FileSystem):
    """A file system from scratch. open, opendir and the rest are not there: the kernel does without (ENOSYS)."""

    def __init__(self, value: Any) -> None:
        self.nodes: dict[int, bytes | dict[bytes, int]] = {}  # a file's content, or the nodes of a directory's names
        self.add(value)

    def add(self, value: Any) -> int:
        """Make a node of a value and of what is in it; the first is the root, which is number 1."""
        nodeid = len(self.nodes) + 1
        if not isinstance(value, dict | list):
            text = value if isinstance(value, str) else json.dumps(value)
            self.nodes[nodeid] = text.encode(errors="surrogatepass") + b"\n"
            return nodeid
        self.nodes[nodeid] = names = {}
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            name = str(key).encode(errors="surrogatepass")
            if name not in (b"", b".", b"..") and not {0, ord("/")} & set(name) and len(name) < 256:
                names[name] = self.add(member)
        return nodeid

    def node(self, nodeid: int) -> bytes | dict[bytes, int]:
        """EBADF for what was never handed out: a guest may ask for anything."""
        if nodeid not in self.nodes:
            raise failure(EBADF)
        return self.nodes[nodeid]

    def names(self, nodeid: int) -> dict[bytes, int]:
        """What is in a directory."""
        node = self.node(nodeid)
        if isinstance(node, bytes):
            raise failure(ENOTDIR)
        return node

    def getattr(self, ctx: Context, nodeid: int, fh: int | None = None) -> tuple[Attr, int]:
        """What stat(2) shows: fields that say nothing are 0."""
        node = self.node(nodeid)
        size, mode = (len(node), stat.S_IFREG | 0o444) if isinstance(node, bytes) else (0, stat.S_IFDIR | 0o555)
        return Attr(nodeid, size, (size + 511) // 512, *(0,) * 6, mode, 1, 0, 0, 0), FOREVER_NS

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        found = self.names(nodeid).get(name)
        if found is None:
            raise failure(ENOENT)
        return Entry(found, self.getattr(ctx, found)[0], FOREVER_NS, FOREVER_NS)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Nothing is counted: nodes stay as long as the tree."""

    def statfs(self, ctx: Context, nodeid: int) -> StatFs:
        return StatFs(0, 0, 0, len(self.nodes), 0, bsize=4096, namelen=255, frsize=4096)

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        """An entry's offset is the number of the one after it, where the kernel goes on; type 0 leaves that open."""
        listed = [(b".", nodeid), (b"..", nodeid), *self.names(nodeid).items()]
        return [Dirent(name, number, at + 1, 0) for at, (name, number) in enumerate(listed)][offset:]

    def read(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int) -> bytes:
        content = self.node(nodeid)
        return content[offset : offset + size] if isinstance(content, bytes) else b""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: json_tree.py FILE.json MNT")
    try:
        with open(sys.argv[1], encoding="utf-8") as document:
            tree = JsonTree(json.load(document))
        mount(tree, sys.argv[2], ro=True, fsname=sys.argv[1]).run()
    except (OSError, ValueError, UserError) as failed:
        sys.exit(str(failed))
