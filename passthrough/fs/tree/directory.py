"""An open directory: a descriptor, and the entries that were read from it and not yet asked for."""

import os
import threading
from struct import Struct

from ... import syscalls
from ...protocol.values import Dirent
from .handles import Handle
from .inodes import Inode

_unpack_record = Struct("=QQHB").unpack_from  # struct linux_dirent64: d_ino, d_off, d_reclen, d_type, then the name
_NAME = 19
_SMALLEST, _LARGEST = 4096, 1 << 16


def parse(records: bytes) -> list[Dirent]:
    """The entries in what getdents64(2) returned."""
    found = []
    position, end = 0, len(records)
    while position < end:
        ino, off, length, kind = _unpack_record(records, position)
        name = records[position + _NAME : records.index(b"\0", position + _NAME)]
        found.append(Dirent(name, ino, off, kind))
        position += length
    return found


class DirHandle(Handle):
    """Reading goes on where the last reply ended, or anywhere else that the kernel asks for.

    Its lock is held across getdents64: the descriptor's position and what was read belong together.
    """

    __slots__ = ("_at", "_entries", "_lock", "_start")

    def __init__(self, fd: int, inode: Inode) -> None:
        super().__init__(fd, inode)
        self._lock = threading.Lock()
        self._entries: list[Dirent] = []
        self._start = 0  # where in _entries the next reply begins
        self._at = 0  # the offset that this is

    def entries(self, offset: int, size: int) -> list[Dirent]:
        """The entries after offset, as many as one system call brings; none at the end."""
        with self._lock:
            if offset == 0 or (offset != self._at and not self._advance(offset)):
                os.lseek(self.fd, offset, os.SEEK_SET)
                self._entries, self._start, self._at = [], 0, offset
            if self._start == len(self._entries):
                self._entries = parse(syscalls.getdents64(self.fd, min(max(size, _SMALLEST), _LARGEST)))
                self._start = 0
            return self._entries[self._start :]

    def _advance(self, offset: int) -> bool:
        """Whether offset is that of an entry already read; then the next reply begins behind it."""
        for index in range(self._start, len(self._entries)):
            if self._entries[index].off == offset:
                self._start, self._at = index + 1, offset
                return True
        return False
