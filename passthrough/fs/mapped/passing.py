"""Kernel passthrough where modes are virtual: a write that the daemon does not see must take SUID and SGID as well.

The kernel of the source takes SUID from the real file when it is written so (the registering thread has no CAP_FSETID,
see fs/tree/backing.py). So while a file that somebody may write past us has such bits, they are not kept in its xattrs:
they are remembered here, and hold as long as the real file has a SUID bit, which is set for that purpose and means
nothing else, since nobody can execute the real file: one that was not made here loses its x bits with it. At the last
close what is left goes to the xattrs.
"""

import contextlib
import os
import stat

from ...filesystem import Opened
from ..tree.handles import Handle
from ..tree.inodes import Inode, Key
from .tree import VirtualOwners, taken_by_writing
from .virtual import Virtual

_EXECUTE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


class Passing(VirtualOwners):
    """Adds to a tree with virtual owners what makes kernel passthrough right."""

    def _begin(self) -> None:
        super()._begin()
        self._armed: dict[Key, tuple[Inode, int]] = {}

    def _shown(self, inode: Inode, real: Virtual) -> Virtual:
        found = super()._shown(inode, real)
        armed = self._armed.get(inode.key) if self._armed else None
        return found._replace(mode=found.mode | armed[1]) if armed and real.mode & stat.S_ISUID else found

    def _keep(self, inode: Inode, **fields: int | None) -> None:
        """A mode, under the lock: its bits are remembered instead where a write could pass us by."""
        mode = fields.get("mode")
        if mode is not None:
            self._disarm(inode)
            bits = taken_by_writing(mode)
            if bits and inode.backing is not None and inode.backing.opens:
                super()._keep(inode, **{**fields, "mode": mode & ~bits})
                self._armed[inode.key] = inode, bits
                self._chmod_real(inode, stat.S_ISUID)
                return
        super()._keep(inode, **fields)

    def _disarm(self, inode: Inode) -> None:
        if self._armed.pop(inode.key, None) is not None:
            self._chmod_real(inode, 0)

    def _chmod_real(self, inode: Inode, bit: int) -> None:
        fd = inode.fd
        mode = stat.S_IMODE(os.stat(fd).st_mode) & ~stat.S_ISUID
        if bit:
            mode = mode & ~_EXECUTE | bit
        os.chmod(str(fd), mode, dir_fd=self.proc)

    def opened(self, inode: Inode, fd: int, flags: int, mode: int | None = None) -> Opened:
        """A file that has the bits goes through the daemon, unless it is open past it already."""
        if self._backings is None:
            return super().opened(inode, fd, flags, mode)
        with self._changing:
            mode = self._now(inode).mode
            opened = super().opened(inode, fd, flags, mode)
            if opened.backing_id and taken_by_writing(mode):
                self._keep(inode, mode=mode)
        return opened

    def closed(self, handle: Handle) -> None:
        """At the last close the bits that are left are kept."""
        super().closed(handle)
        inode = handle.inode
        if self._armed:
            with self._changing:
                if inode.backing is None or not inode.backing.opens:
                    self._settle(inode)

    def _settle(self, inode: Inode) -> None:
        if inode.key in self._armed:
            mode = self._now(inode).mode
            self._disarm(inode)
            super()._keep(inode, mode=mode)

    def destroy(self) -> None:
        """The session is over: nobody writes any more."""
        with self._changing:
            for inode, _ in tuple(self._armed.values()):
                with contextlib.suppress(OSError):
                    self._settle(inode)
        super().destroy()
