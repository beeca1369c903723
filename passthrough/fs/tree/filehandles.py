"""Inodes without a descriptor: kept as file handles (name_to_handle_at(2)), and opened again when they are needed.

Nothing is slower for it until descriptors are scarce: as long as there are enough, inodes are held by descriptors.
Then those that were held longest are let go; before that their handles are taken, which name the inode and its
generation, so that a number that was reused is not mistaken for it.

Who opens by handle can open any file of the file system, in the share or not. So this is not done here, but by an
Opener, a process of its own: it takes the handle of a descriptor that it is given, proves (by a key that it alone has)
that it did, and opens nothing without such a proof. What it opens was reached through the share before.

A mount is in use for as long as an inode of it is remembered, by its descriptors or by the Opener's.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from ... import syscalls
from ...filesystem import failure
from .inodes import Inode, InodeMap
from .pins import Descriptor

log = logging.getLogger(__name__)

BATCH = 64
"""How many inodes are let go at once, at most; the kernel passes at most 253 descriptors in a message (SCM_MAX_FD)."""
_PATH = os.O_PATH | os.O_NOFOLLOW
_FUSE = 0x65735546  # linux/magic.h
_NLINK = 3  # where it is in what syscalls.statx returns
_STATX_NLINK = 4
_GONE = frozenset({errno.ESTALE, errno.ENOENT})


class Token(NamedTuple):
    """What the Opener made of a descriptor: a number for its mount, its struct file_handle, and the proof of both."""

    mount: int
    handle: bytes
    proof: bytes


class Opener(Protocol):
    """What may open by handle. Its methods are called from several threads."""

    root: int
    """The number of the mount that the root of the share lies on."""

    def seal(self, fds: Sequence[int]) -> list[Token | None]:
        """The handles of these (O_PATH) descriptors, BATCH at most; None for one that has none, or whose mount is not
        known: that takes a directory of it, once. OSError where the Opener is gone."""

    def open(self, token: Token, flags: int) -> int:
        """The file, opened with these flags of open(2); without O_PATH a regular file or directory. ESTALE where it is
        gone."""

    def drop(self, mount: int) -> None:
        """No token of this mount is used again."""


class Sealed:
    """A file handle of one inode."""

    __slots__ = ("_keeping", "token")

    def __init__(self, keeping: "Keeping", token: Token) -> None:
        self._keeping = keeping
        self.token = token

    def is_of(self, fd: int) -> bool:
        """Whether a descriptor is open on this very file, and not on another that has its number now."""
        try:
            return syscalls.name_to_handle_at(fd)[1] == self.token.handle
        except OSError:
            return False

    def revive(self, inode: Inode) -> Descriptor:
        """Give its inode a descriptor again."""
        return self._keeping.revive(inode, self.token)

    def open(self, flags: int) -> int:
        """The file, opened with these flags."""
        return self._keeping.open(self.token, flags)


class Keeping:
    """The inodes of one tree that are kept so, and which file systems can have it."""

    def __init__(self, opener: Opener, afford: Callable[[], None], idle: Callable[[Inode], None]) -> None:
        """afford is what makes room for one more descriptor, and raises ENFILE where there is none; idle is told of
        each inode that is let go, so that nothing else keeps it open."""
        self._opener = opener
        self._afford = afford
        self._idle = idle
        self._ended = False
        self._inodes: InodeMap
        self._able: dict[tuple[int, ...], bool] = {}
        self._evicting = threading.Lock()
        self._counting = threading.Lock()
        self._uses = {opener.root: 1}

    def begin(self, inodes: InodeMap) -> None:
        """These are the tree's inodes."""
        self._inodes = inodes

    def able(self, device: tuple[int, ...], fd: int) -> bool:
        """Whether this descriptor's file system, on this device, has handles that can be relied on. Where not, the log
        says so once."""
        able = self._able.get(device) if not self._ended else False
        if able is None:
            able = has_handles(fd)
            if self._able.setdefault(device, able) is able and not able:
                log.warning(
                    "the file system of device %d:%d has no file handles: each of its files takes a descriptor", *device
                )
        return able

    def evict(self, count: int, *, wait: bool) -> None:
        """Let up to count descriptors of inodes go; with wait also where another thread is about it."""
        if not self._evicting.acquire(blocking=wait):
            return
        try:
            chosen = [inode for inode in self._inodes.oldest(count) if self._may_go(inode)]
            self._seal([inode for inode in chosen if inode.sealed is None])
            for inode in chosen:
                if inode.sealed is not None:
                    self._let_go(inode)
        finally:
            self._evicting.release()

    def _may_go(self, inode: Inode) -> bool:
        held = inode.held
        return held is not None and self.able(inode.key[1:3], held) and _has_name(held)

    def _seal(self, inodes: list[Inode]) -> None:
        with self._counting:  # who is forgotten from now on is counted, and waits for it
            held = [(inode, fd) for inode in inodes if (fd := inode.held) is not None and self._inodes.remembers(inode)]
            if not held:
                return
            try:
                tokens = self._opener.seal([fd for _, fd in held])
            except OSError as error:
                self._ended = True
                log.error("file handles are no longer to be had: %s", error.strerror)
                return
            for (inode, _), token in zip(held, tokens, strict=True):
                if token is not None:
                    inode.sealed = Sealed(self, token)
                    self._uses[token.mount] = self._uses.get(token.mount, 0) + 1

    def _let_go(self, inode: Inode) -> None:
        held = self._inodes.let_go(inode)
        if held is not None and not _has_name(held):  # its last one was removed just now
            self._inodes.hold_on(inode, held)
        else:
            self._idle(inode)

    def revive(self, inode: Inode, token: Token) -> Descriptor:
        """Open what only the handle is kept of. ESTALE where it is gone, ENFILE where no descriptor is left."""
        self._afford()
        return self._inodes.revived(inode, self.open(token, _PATH))

    def open(self, token: Token, flags: int) -> int:
        """Open by handle, for what is counted by who asks."""
        try:
            return self._opener.open(token, flags)
        except OSError as error:
            if error.errno in _GONE:
                raise failure(errno.ESTALE) from None
            raise

    def forgotten(self, inodes: Iterable[Inode]) -> None:
        """Inodes that are no longer remembered; a mount of which none is, is let go."""
        with self._counting:
            for token in [inode.sealed.token for inode in inodes if inode.sealed is not None]:
                self._uses[token.mount] -= 1
                if not self._uses[token.mount]:
                    del self._uses[token.mount]
                    self._opener.drop(token.mount)


def has_handles(fd: int) -> bool:
    """Whether this descriptor's file system has handles that can be relied on.

    A FUSE server may answer for a handle, or not, when its kernel has forgotten the file: nothing tells.
    """
    return syscalls.filesystem_type(fd) != _FUSE and syscalls.has_file_handles(fd)


def _has_name(fd: int) -> bool:
    """Whether the file would outlive the descriptor."""
    try:
        return syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH, _STATX_NLINK)[_NLINK] > 0
    except OSError:
        return False
