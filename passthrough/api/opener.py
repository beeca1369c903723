"""Opening by file handle for programs: a thread of this process, where the command has a process of its own.

Its descriptors are this process's too: all of them are among RESERVED_DESCRIPTORS (fs.tree.base).
"""

import socket
import threading
from collections.abc import Sequence

from .. import syscalls
from ..fs.opener import Client, Process
from ..fs.tree import FileHandles
from ..fs.tree.filehandles import Token
from ..opening import can_open, is_wanted

_AT_ONCE = 8
_MOST_MOUNTS = 16


class OpenerThread(Client):
    """The thread and what it is asked by. It has all rights of the thread that makes it, whoever those that serve act
    as at that moment."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours)
        self._thread = threading.Thread(target=_run, args=(theirs,), name="opener", daemon=True)
        self._thread.start()

    def seal(self, fds: Sequence[int]) -> list[Token | None]:
        """See fs.tree.Opener. A few at a time: each is in this process twice meanwhile."""
        parts = [super(OpenerThread, self).seal(fds[at : at + _AT_ONCE]) for at in range(0, len(fds), _AT_ONCE)]
        return [token for part in parts for token in part]

    def close(self) -> None:
        """Let it end, and wait for that."""
        super().close()
        self._thread.join()


def _run(end: socket.socket) -> None:
    with end:
        overrides = syscalls.has_capability(syscalls.CAP_DAC_OVERRIDE)
        Process(end, most_mounts=_MOST_MOUNTS, overrides=overrides).run()


def opener_of(root: int, mode: FileHandles | None) -> OpenerThread | None:
    """What opens the files of the directory that root (O_PATH) is open on, where this program may have it. UserError
    where handles are mandatory, and cannot be had."""
    if not is_wanted(mode):
        return None
    opener = OpenerThread()
    try:
        able = can_open(opener, root, mode)
    except BaseException:
        opener.close()
        raise
    if not able:
        opener.close()
    return opener if able else None
