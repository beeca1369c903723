"""Opening by file handle for programs: a thread of this process, where the command has a process of its own."""

import socket
import threading

from ..fs.opener import Client, Process
from ..fs.tree import FileHandles
from ..opening import can_open, is_wanted


class OpenerThread(Client):
    """The thread and what it is asked by. It has all rights of the thread that makes it, whoever those that serve act
    as at that moment."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours)
        self._thread = threading.Thread(target=_run, args=(theirs,), name="opener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let it end, and wait for that."""
        super().close()
        self._thread.join()


def _run(end: socket.socket) -> None:
    with end:
        Process(end).run()


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
