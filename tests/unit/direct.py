"""What opens by file handle, without a process of its own: for tests of the tree alone, which are root's."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from passthrough import syscalls
from passthrough.fs.tree.filehandles import Token
from passthrough.fs.tree.pins import Descriptor
from tests.unit.helpers import path_fd


class Direct:
    """Opens by handle itself, in this process; `ended`: it can no more."""

    def __init__(self, share: Path) -> None:
        self.mounts: dict[int, int] = {}
        self.dropped: list[int] = []
        self.opened = 0
        self.ended = False
        (token,) = self.seal([Descriptor(path_fd(share))])
        assert token
        self.root = token.mount

    def _known(self) -> None:
        if self.ended:
            raise OSError(errno.EIO, "ended")

    def seal(self, fds: Sequence[int]) -> list[Token | None]:
        self._known()
        return [self._seal(fd) for fd in fds]

    def _seal(self, fd: int) -> Token | None:
        mount, handle = syscalls.name_to_handle_at(fd)
        if mount not in self.mounts:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                return None
            self.mounts[mount] = os.open(".", os.O_RDONLY, dir_fd=fd)
        return Token(mount, handle, b"proof")

    def open(self, token: Token, flags: int) -> int:
        self._known()
        assert token.proof == b"proof"
        self.opened += 1
        return syscalls.open_by_handle_at(self.mounts[token.mount], token.handle, flags)

    def drop(self, mount: int) -> None:
        self.dropped.append(mount)
        os.close(self.mounts.pop(mount))

    def close(self) -> None:
        for fd in self.mounts.values():
            os.close(fd)
