"""The inode map: by nodeid, and by (inode, device, mount id). Lookup counts change here and nowhere else.

An inode is held by an O_PATH descriptor, so its number cannot be reused meanwhile; nodeids are never reused. Where
descriptors are scarce one may instead be kept as its file handle (filehandles.py), which has a generation number: then
the key alone says nothing, and the handle is compared before a name is answered with that nodeid.

The descriptor is closed when the last reference to it goes (pins.py): neither a FORGET nor an eviction that comes while
another thread works on the inode can pull it from under that thread, as long as the call was given the descriptor
itself, or the thread holds it in a variable of its own.
"""

import errno
import itertools
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...filesystem import failure
from ...protocol.constants import FUSE_ROOT_ID
from .pins import Descriptor, Pins

if TYPE_CHECKING:
    from .backing import Backing
    from .filehandles import Keeping, Sealed
    from .locks import LockFile

Key = tuple[int, int, int, int]
"""(inode number, device major, device minor, mount id): what tells one inode from all others."""


_FORGET_CHUNK = 64  # a kernel that drops its caches sends tens of thousands in one request; lookups go on meanwhile


class Inode:
    """A remembered file: nodeid, an O_PATH descriptor, its key, its file type (S_IFMT), and what hangs on it.

    held is the descriptor, or None while there is only its handle (sealed); who needs it takes fd. connected: it was
    opened by a name, and so has a path; by a handle it may have none.

    ino_mask makes inode numbers of other devices differ from the root's: the mount shows one device number for all.
    """

    __slots__ = (
        "backing",
        "connected",
        "held",
        "ino_mask",
        "key",
        "kind",
        "locks",
        "nlookup",
        "nodeid",
        "pins",
        "sealed",
        "unexplored",
    )

    def __init__(self, nodeid: int, fd: int, key: Key, kind: int, ino_mask: int, pins: Pins) -> None:
        self.held: Descriptor | None = pins.hold(fd)
        self.sealed: Sealed | None = None
        self.connected = True
        self.pins = pins
        self.nodeid = nodeid
        self.key = key
        self.kind = kind
        self.ino_mask = ino_mask
        self.nlookup = 1
        self.unexplored = True  # of a directory: whether the name last looked up in it was of an inode not yet known
        self.backing: Backing | None = None
        self.locks: dict[int, LockFile] | None = None

    @property
    def fd(self) -> Descriptor:
        """The O_PATH descriptor, opened by its handle where it was let go. ESTALE where the file is gone."""
        held = self.held
        return self.revive() if held is None else held

    def revive(self) -> Descriptor:
        """Open by its handle what was let go. ESTALE where the file is gone."""
        assert self.sealed is not None
        return self.sealed.revive(self)

    def lock_owners(self) -> "dict[int, LockFile]":
        """The POSIX lock owners' files, by owner; a table that most inodes never need."""
        with _lock_owners:
            if self.locks is None:
                self.locks = {}
            return self.locks


_lock_owners = threading.Lock()


class InodeMap:
    """All remembered inodes. The root is never forgotten, and always held."""

    def __init__(self, root: Inode, keeping: "Keeping | None" = None) -> None:
        """keeping: how inodes are kept that are not held, if any are."""
        self._lock = threading.Lock()
        self._by_nodeid = {root.nodeid: root}
        self._by_key = {root.key: root}
        self._numbers = itertools.count(FUSE_ROOT_ID + 1)
        self._held: dict[int, Inode] = self._by_nodeid if keeping is None else {}
        self.keeping = keeping
        if keeping is not None:
            keeping.begin(self)
        self.root = root

    @property
    def held(self) -> int:
        """How many have a descriptor."""
        return len(self._held)

    @property
    def all_held(self) -> bool:
        """Whether every inode has a descriptor."""
        return len(self._held) >= len(self._by_nodeid) - 1  # the root is not among them

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

    def remembers(self, inode: Inode) -> bool:
        """Whether it has not been forgotten."""
        return self._by_nodeid.get(inode.nodeid) is inode

    def take(self, key: Key) -> Inode | None:
        """The inode with this key, one lookup counted; None where none is held that has it.

        One that is held now was there when the caller saw the key, be it that it was not held then.
        """
        with self._lock:
            inode = self._by_key.get(key)
            if inode is None or inode.held is None:
                return None
            inode.nlookup += 1
            return inode

    def add(self, fd: int, key: Key, kind: int, ino_mask: int) -> Inode:
        """Remember the inode behind fd (which is taken over), one lookup counted; another may have been first.

        One that is kept by its handle gets fd if it is the same, and else has gone: its number is another's now.
        """
        gone: Inode | None = None
        while True:
            with self._lock:
                inode = self._by_key.get(key)
                if inode is None or inode is gone:
                    inode = Inode(next(self._numbers), fd, key, kind, ino_mask, self.root.pins)
                    self._by_nodeid[inode.nodeid] = self._held[inode.nodeid] = inode
                    self._by_key[key] = inode
                    return inode
                if inode.held is not None:
                    inode.nlookup += 1
                    break
            assert inode.sealed is not None
            if inode.sealed.is_of(fd):
                if self._now_held(inode, fd, connected=True, nlookup=1):
                    return inode
            else:
                gone = inode
        os.close(fd)
        return inode

    def revived(self, inode: Inode, fd: int) -> Descriptor:
        """An inode has a descriptor again (taken over), opened by its handle; another thread may have been first."""
        if not self._now_held(inode, fd, connected=False, nlookup=0):
            os.close(fd)
        return inode.fd

    def _now_held(self, inode: Inode, fd: int, *, connected: bool, nlookup: int) -> bool:
        """Whether fd was taken over, and the lookup counted: not where the inode is held or forgotten by now."""
        with self._lock:
            remembered = self.remembers(inode)
            if inode.held is not None or (nlookup and not remembered):
                return False
            inode.held = self.root.pins.hold(fd)
            inode.connected = connected
            inode.nlookup += nlookup
            if remembered:
                self._held[inode.nodeid] = inode
            return True

    def let_go(self, inode: Inode) -> Descriptor | None:
        """It is no longer held; what held it, which is closed when the caller is through with it."""
        with self._lock:
            held, inode.held = inode.held, None
            self._held.pop(inode.nodeid, None)
            return held

    def hold_on(self, inode: Inode, held: Descriptor) -> None:
        """What was let go is held by that descriptor after all."""
        with self._lock:
            if inode.held is None:
                inode.held = held
                if self.remembers(inode):
                    self._held[inode.nodeid] = inode

    def touch(self, inode: Inode) -> None:
        """See that it is held, and that it is not among the next to be let go."""
        if inode.held is None:
            inode.revive()
        with self._lock:
            if self._held.pop(inode.nodeid, None) is not None:
                self._held[inode.nodeid] = inode

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
                    if self._by_key.get(inode.key) is inode:
                        del self._by_key[inode.key]
                    self._held.pop(nodeid, None)
                    dropped.append(inode)
        if self.keeping is not None:
            self.keeping.forgotten(dropped)

    def oldest(self, count: int) -> list[Inode]:
        """The count inodes that have been held (or were returned by this method) longest; never the root.

        They move to the end, so that the next call returns others.
        """
        with self._lock:
            chosen = list(itertools.islice((i for i in self._held.values() if i is not self.root), count))
            for inode in chosen:
                self._held[inode.nodeid] = self._held.pop(inode.nodeid)
        return chosen

    def clear(self) -> None:
        """Forget all but the root."""
        with self._lock:
            dropped = (self._by_nodeid, self._by_key)
            self._by_nodeid = {self.root.nodeid: self.root}
            self._by_key = {self.root.key: self.root}
            self._held = self._by_nodeid if self.keeping is None else {}
        if self.keeping is not None:
            self.keeping.forgotten(dropped[0].values())
        del dropped
