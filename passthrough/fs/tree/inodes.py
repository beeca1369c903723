"""The inode map: by nodeid, and by (inode, device, mount id). Lookup counts change here and nowhere else.

An inode is pinned by an O_PATH descriptor, so its number cannot be reused while it is remembered, and nodeids are never
reused, so generation numbers are not needed. The descriptor is closed when the last reference to the Inode object goes:
a FORGET that comes while another thread works on the inode cannot pull the descriptor from under it, as long as that
thread holds the Inode in a variable of its own.
"""

import errno
import itertools
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...filesystem import failure
from ...protocol.constants import FUSE_ROOT_ID
from .pins import Pins

if TYPE_CHECKING:
    from .backing import Backing
    from .locks import LockFile

Key = tuple[int, int, int, int]
"""(inode number, device major, device minor, mount id): what tells one inode from all others."""


_FORGET_CHUNK = 64  # a kernel that drops its caches sends tens of thousands in one request; lookups go on meanwhile


class Inode:
    """A remembered file: nodeid, an O_PATH descriptor, its key, its file type (S_IFMT), and what hangs on it.

    ino_mask makes inode numbers of other devices differ from the root's: the mount shows one device number for all.
    """

    __slots__ = ("backing", "fd", "ino_mask", "key", "kind", "locks", "nlookup", "nodeid", "pins", "unexplored")

    def __init__(self, nodeid: int, fd: int, key: Key, kind: int, ino_mask: int, pins: Pins) -> None:
        pins.take()
        self.pins = pins
        self.nodeid = nodeid
        self.fd = fd
        self.key = key
        self.kind = kind
        self.ino_mask = ino_mask
        self.nlookup = 1
        self.unexplored = True  # of a directory: whether the name last looked up in it was of an inode not yet known
        self.backing: Backing | None = None
        self.locks: dict[int, LockFile] | None = None

    def lock_owners(self) -> "dict[int, LockFile]":
        """The POSIX lock owners' files, by owner; a table that most inodes never need."""
        with _lock_owners:
            if self.locks is None:
                self.locks = {}
            return self.locks

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        finally:
            self.pins.give_back()


_lock_owners = threading.Lock()


class InodeMap:
    """All remembered inodes. The root is never forgotten."""

    def __init__(self, root: Inode) -> None:
        self._lock = threading.Lock()
        self._by_nodeid = {root.nodeid: root}
        self._by_key = {root.key: root}
        self._numbers = itertools.count(FUSE_ROOT_ID + 1)
        self.root = root

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode with this nodeid. EBADF for one that was never handed out, or was forgotten."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise failure(errno.EBADF)
        return inode

    def known(self, key: Key) -> Inode | None:
        """The inode with this key, without counting a lookup."""
        return self._by_key.get(key)

    def take(self, key: Key) -> Inode | None:
        """The inode with this key, one lookup counted, or None."""
        with self._lock:
            inode = self._by_key.get(key)
            if inode is not None:
                inode.nlookup += 1
            return inode

    def add(self, fd: int, key: Key, kind: int, ino_mask: int) -> Inode:
        """Remember the inode behind fd (which is taken over), one lookup counted; another may have been first."""
        with self._lock:
            inode = self._by_key.get(key)
            if inode is not None:
                inode.nlookup += 1
            else:
                inode = Inode(next(self._numbers), fd, key, kind, ino_mask, self.root.pins)
                self._by_nodeid[inode.nodeid] = inode
                self._by_key[key] = inode
                return inode
        os.close(fd)
        return inode

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Take nlookup lookups back, but not more than there are; at 0 the inode is dropped."""
        self.forget_all(((nodeid, nlookup),))

    def forget_all(self, forgets: Sequence[tuple[int, int]]) -> None:
        """Many at once, some under each hold of the lock; the descriptors are closed after it."""
        for start in range(0, len(forgets), _FORGET_CHUNK):
            self._forget_some(forgets[start : start + _FORGET_CHUNK])

    def _forget_some(self, forgets: Sequence[tuple[int, int]]) -> None:
        dropped = []
        with self._lock:
            for nodeid, nlookup in forgets:
                inode = self._by_nodeid.get(nodeid)
                if inode is None or inode is self.root:
                    continue
                inode.nlookup -= min(nlookup, inode.nlookup)
                if inode.nlookup == 0:
                    del self._by_nodeid[nodeid]
                    del self._by_key[inode.key]
                    dropped.append(inode)

    def oldest(self, count: int) -> list[Inode]:
        """The count inodes that were remembered (or returned by this method) longest ago; never the root.

        They move to the end, so that the next call returns others.
        """
        with self._lock:
            chosen = list(itertools.islice((i for i in self._by_nodeid.values() if i is not self.root), count))
            for inode in chosen:
                self._by_nodeid[inode.nodeid] = self._by_nodeid.pop(inode.nodeid)
        return chosen

    def clear(self) -> None:
        """Forget all but the root."""
        with self._lock:
            dropped = (self._by_nodeid, self._by_key)
            self._by_nodeid = {self.root.nodeid: self.root}
            self._by_key = {self.root.key: self.root}
        del dropped
