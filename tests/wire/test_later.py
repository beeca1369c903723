"""READ and WRITE that are filled in place or answered later: the same bytes as those of an ordinary answer."""

import errno
import struct

import pytest

from passthrough.filesystem import FileSystem
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Wishes
from passthrough.protocol.operations import BY_NAME
from passthrough.protocol.requests import Header
from passthrough.protocol.structs import FUSE_READ_IN, FUSE_WRITE_IN, FUSE_WRITE_OUT
from passthrough.protocol.values import Answer, Buffers, Context, Fill, Later
from passthrough.server import Server

from .fake import FakeChannel, logs


class Lazy(FileSystem):
    """Reads that are filled (fh 1) or late (fh 2), writes that are late, and a begin that fails (fh 3)."""

    def __init__(self) -> None:
        self.begun: list[tuple[memoryview, Answer]] = []

    def read(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int) -> Fill | Later:
        if fh == 1:
            return Fill(self._fill, size)
        return Later(self._fail if fh == 3 else self._begin)

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, data: Buffers, write_flags: int, flags: int
    ) -> int | Later:
        return Later(self._fail if fh == 3 else self._begin)

    def _fill(self, room: memoryview) -> int:
        room[:] = b"f" * len(room)
        return len(room)

    def _begin(self, room: memoryview, answer: Answer) -> None:
        self.begun.append((room, answer))

    def _fail(self, room: memoryview, answer: Answer) -> None:
        raise OSError(errno.EIO, "failed")


def ask(server: Server, channel: FakeChannel, name: str, args: bytes, payload: bytes = b"") -> int | None:
    """One request in pieces."""
    header = Header(40 + len(args) + len(payload), BY_NAME[name].opcode, 9, 1, 0, 0, 1, 0)
    return server.handle_split(header, memoryview(args), memoryview(bytearray(payload)), len(payload), channel)


@pytest.fixture
def served() -> tuple[Lazy, Server, FakeChannel]:
    """A session that has begun."""
    fs, channel = Lazy(), FakeChannel()
    server = Server(fs, Wishes())
    init = struct.pack("=IIIII11I", c.FUSE_KERNEL_VERSION, 45, 1 << 17, 0, 0, *(0,) * 11)
    length = ask(server, channel, "init", init)
    assert length
    assert length > 0
    return fs, server, channel


def reading(fh: int, size: int) -> bytes:
    return FUSE_READ_IN.struct.pack(fh, 0, size, 0, 0, 0)


def writing(fh: int, size: int) -> bytes:
    return FUSE_WRITE_IN.struct.pack(fh, 0, size, 0, 0, 0)


def test_a_fill_goes_to_the_body(served: tuple[Lazy, Server, FakeChannel]) -> None:
    _, server, channel = served
    assert ask(server, channel, "read", reading(1, 100)) == 100
    assert channel.body[:100] == b"f" * 100


def test_a_late_read_is_answered_with_its_length(served: tuple[Lazy, Server, FakeChannel]) -> None:
    fs, server, channel = served
    assert ask(server, channel, "read", reading(2, 100)) is None
    ((room, answer),) = fs.begun
    assert len(room) == 100
    room[:5] = b"later"
    answer(5)
    assert channel.answer() == (9, 5)
    assert bytes(channel.body[:5]) == b"later"


def test_a_late_write_is_answered_with_its_struct(served: tuple[Lazy, Server, FakeChannel]) -> None:
    fs, server, channel = served
    assert ask(server, channel, "write", writing(2, 4), b"data") is None
    fs.begun[0][1](4)
    assert channel.answer() == (9, FUSE_WRITE_OUT.size)
    assert FUSE_WRITE_OUT.struct.unpack_from(channel.body)[0] == 4
    assert ask(server, channel, "write", writing(2, 4), b"data") is None
    fs.begun[1][1](-errno.ENOSPC)
    assert channel.answer() == (9, -errno.ENOSPC)


@pytest.mark.parametrize("name", ["read", "write"])
def test_what_cannot_begin_fails_at_once(served: tuple[Lazy, Server, FakeChannel], name: str) -> None:
    _, server, channel = served
    args, payload = (reading(3, 4), b"") if name == "read" else (writing(3, 4), b"data")
    with logs() as found:
        assert ask(server, channel, name, args, payload) == -errno.EIO
    assert not found.tracebacks()
    assert channel.answers.empty()
