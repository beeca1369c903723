"""What the process outside the sandbox and the daemon inside say to each other: a word, a status, a text, descriptors.

    pid N          whoever made the pid namespace: its first process is N, and I end now
    placed         the daemon: my namespaces and my root are there
    fds            outside: what is to be served is open to you (the last of several messages; the others are `more`)
    again          the daemon: the kernel would not, make it anew without io_uring
    ready          the daemon: I serve
    alive          the daemon: requests are being answered (where the manager wants to know, and nobody else can see)
    waiting, connected    the daemon: so is its front end
    leaving        the daemon: what was in flight is answered, undo it
    undone         outside: it is
    failed         the daemon: status and text are for the user
The other end's closing is its end, however it came. After `ready` nothing is heard of the daemon but these words,
without waiting, without texts and descriptors.
"""

import array
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

_BATCH = 200  # the kernel passes at most 253 descriptors in a message (SCM_MAX_FD)
_LONGEST = 1 << 14


class Message(NamedTuple):
    """word is empty where the other end is closed."""

    word: str
    status: int = 0
    text: str = ""
    descriptors: tuple[int, ...] = ()


class Channel:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """What to poll: readable for a message, hung up at the end."""
        return self._end.fileno()

    def close(self) -> None:
        """This process has no more to say."""
        self._end.close()

    def say(self, word: str, status: int = 0, text: str = "", descriptors: Sequence[int] = ()) -> None:
        """Send; the descriptors remain open here. OSError EPIPE where the other end is closed."""
        rest = list(descriptors)
        while len(rest) > _BATCH:
            self._send("more", rest[:_BATCH])
            rest = rest[_BATCH:]
        self._send(f"{word} {status} {text}"[: _LONGEST // 4], rest)

    def _send(self, text: str, descriptors: list[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._end.sendmsg([text.encode(errors="surrogateescape")], ancillary, socket.MSG_NOSIGNAL)

    def hear(self) -> Message:
        """The next message; waits for it."""
        found: list[int] = []
        while True:
            size = array.array("i").itemsize * _BATCH
            data, ancillary, _, _ = self._end.recvmsg(_LONGEST, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
            for level, kind, packed in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found += array.array("i", packed[: len(packed) - len(packed) % array.array("i").itemsize])
            if not data:
                return Message("")
            if data != b"more":
                break
        word, _, rest = data.decode(errors="surrogateescape").partition(" ")
        status, _, text = rest.partition(" ")
        return Message(word, int(status) if status.isdecimal() else 0, text, tuple(found))

    def overhear(self) -> str | None:
        """The first word of the next message, without waiting for one (None) and taking none of its descriptors; empty
        where the other end is closed."""
        try:
            data = self._end.recv(_LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return ""
        return data.decode(errors="replace").partition(" ")[0]


def pair() -> tuple[Channel, Channel]:
    """Two ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


def close_all(descriptors: Sequence[int]) -> None:
    """Descriptors that were given away."""
    for fd in descriptors:
        os.close(fd)
