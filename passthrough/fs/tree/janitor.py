"""Keeping within the descriptors: when most are pinned, and file handles (filehandles.py) do not help, the kernel is
asked to drop what it does not use.

A thread of its own does it: a notification that makes the kernel drop an inode can wait for that inode's writeback,
which another request must be able to answer. Linux 6.18 takes node numbers (NOTIFY_PRUNE); older kernels are told the
name, which /proc/self/fd still knows; a stale one does no harm, it is a cache.
"""

import os
import threading
from typing import TYPE_CHECKING

from ... import syscalls
from ...filesystem import Kernel
from ...protocol import notifications
from .inodes import Inode

if TYPE_CHECKING:
    from .base import TreeBase

_BATCH = 256
_JOIN_S = 5.0


class Janitor:
    """Wakes when asked, and prunes until half of what clients may pin is free or everything was tried once."""

    def __init__(self, tree: "TreeBase", kernel: Kernel, *, can_prune: bool) -> None:
        self._tree = tree
        self._kernel = kernel
        self._can_prune = can_prune
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._passed = threading.Condition()
        self._passes = 0

    def wake(self) -> None:
        """Ask for room; returns at once. The thread starts with the first call."""
        if self._wanted.is_set():
            return
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)
                self._thread.start()
        self._wanted.set()

    def wait_for_pass(self, seconds: float) -> None:
        """Wake it, and hold on until it has been through once: who asks for descriptors waits for them to be freed."""
        with self._passed:
            before = self._passes
            self.wake()
            self._passed.wait_for(lambda: self._passes != before or self._stopped, seconds)

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._wanted.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _run(self) -> None:
        while self._wanted.wait():
            self._wanted.clear()
            if self._stopped:
                return
            self._prune()
            with self._passed:
                self._passes += 1
                self._passed.notify_all()

    def _prune(self) -> None:
        tree = self._tree
        left = tree.inodes.held
        while left > 0 and tree.inodes.held * 2 > tree.limit and not self._stopped:
            chosen = tree.inodes.oldest(min(_BATCH, left))
            left -= _BATCH
            if not chosen:
                return
            if self._can_prune:
                self._kernel.notify(notifications.prune([inode.nodeid for inode in chosen]))
            else:
                for inode in chosen:
                    self._invalidate(inode)

    def _invalidate(self, inode: Inode) -> None:
        try:
            link = self._tree.proc_path(inode)
            path = os.readlink(os.fsencode(link))
            parent, name = os.path.split(path)
            mask = syscalls.STATX_BASIC_STATS | syscalls.STATX_MNT_ID
            st = syscalls.statx(-1, parent, syscalls.AT_SYMLINK_NOFOLLOW, mask)
        except OSError:
            return
        known = self._tree.inodes.known((st[7], st[21], st[22], st[23]))
        if known is not None:
            self._kernel.notify(notifications.inval_entry(known.nodeid, name))
