"""Peers of a daemon's manners: a service manager's socket, and the journal's."""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_WAIT_S = 30.0


class Listener:
    """A datagram socket at a path, or at an abstract name (@NAME)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)

    def next(self, timeout: float = _WAIT_S) -> bytes:
        """The next message."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        assert poll.poll(timeout * 1000), "nothing comes"
        return self._socket.recv(1 << 20)

    def states(self) -> dict[str, str]:
        """The next message of a service, as its assignments (sd_notify(3))."""
        return dict(line.split("=", 1) for line in self.next().decode().splitlines())

    def until(self, name: str) -> dict[str, str]:
        """The next message that has this assignment."""
        while name not in (found := self.states()):
            pass
        return found

    def falls_silent(self, seconds: float) -> None:
        """Wait until nothing has come for so long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        for _ in range(1000):
            if not poll.poll(seconds * 1000):
                return
            self._socket.recv(1 << 20)
        raise AssertionError("it goes on")

    def drain(self) -> None:
        """Forget what has come so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1 << 20, socket.MSG_DONTWAIT)

    def entry(self) -> dict[str, str]:
        """The next entry for a journal."""
        return journal_fields(self.next())

    def close(self) -> None:
        self._socket.close()


def journal_fields(message: bytes) -> dict[str, str]:
    """The fields of an entry, all in the form with a length (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md)."""
    found = {}
    while message:
        name, _, rest = message.partition(b"\n")
        (size,) = struct.unpack_from("<Q", rest)
        found[name.decode()] = rest[8 : 8 + size].decode()
        assert rest[8 + size : 9 + size] == b"\n"
        message = rest[9 + size :]
    return found


@contextlib.contextmanager
def listening(address: str | Path) -> Iterator[Listener]:
    """One, for the length of the block."""
    made = Listener(str(address))
    try:
        yield made
    finally:
        made.close()


def stream_of(path: Path) -> str:
    """What JOURNAL_STREAM says of this file."""
    found = os.stat(path)
    return f"{found.st_dev}:{found.st_ino}"
