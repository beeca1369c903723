"""Directory replies: what fits is packed, what does not is asked for again, and no lookup is ever lost."""

import errno
import logging
import struct
from collections.abc import Callable, Iterator

import pytest

from passthrough.filesystem import Dirent, Entry
from passthrough.protocol.dirents import dirent_size, put_dirents, put_dirents_plus, read_dirents, read_dirents_plus
from passthrough.server import Server
from tests.wire.fake import ATTR, DOT, ENTRY, HELLO, FakeChannel, FakeFileSystem, handle, request

READDIR, READDIRPLUS = 28, 44


def _request(opcode: int, size: int) -> bytes:
    return request(opcode, struct.pack("=QQIIQII", 6, 0, size, 0, 0, 0, 0), nodeid=1)


def _entry(number: int) -> tuple[Dirent, Entry]:
    return Dirent(b"%08d" % number, number, number, 8), Entry(number, ATTR)


class Listing:
    """A directory that is read lazily, and how far it was read: an entry that is yielded has been looked up."""

    def __init__(self, count: int, fails_at: int = 0, error: Exception | None = None) -> None:
        self.read: list[int] = []
        self._numbers = range(2, 2 + count)
        self._fails_at = fails_at
        self._error = error

    def __iter__(self) -> Iterator[tuple[Dirent, Entry]]:
        for number in self._numbers:
            if self._error is not None and number == self._fails_at:
                raise self._error
            self.read.append(number)
            yield _entry(number)


PLUS = 160  # bytes of one entry of a READDIRPLUS reply with a name of 1 to 8 bytes
PLAIN = 32


@pytest.mark.parametrize(
    ("size", "length", "given_back"),
    [
        (0, 0, []),
        (PLUS - 1, 0, []),  # `.` has no lookup to be given back
        (PLUS, PLUS, [(0x22, 1)]),
        (2 * PLUS - 1, PLUS, [(0x22, 1)]),
        (2 * PLUS, 2 * PLUS, []),
        (4096, 2 * PLUS, []),
    ],
)
def test_the_entry_that_does_not_fit_gives_its_lookup_back(
    size: int, length: int, given_back: list[tuple[int, int]], server: Server, fs: FakeFileSystem, channel: FakeChannel
) -> None:
    fs.results["readdirplus"] = iter([(DOT, None), (HELLO, ENTRY)])
    assert handle(server, _request(READDIRPLUS, size), channel) == length
    assert [call[1] for call in fs.calls if call[0] == "forget"] == given_back
    assert read_dirents_plus(bytes(channel.body[:length])) == [(DOT, None), (HELLO, ENTRY)][: length // PLUS]


@pytest.mark.parametrize("fit", [0, 1, 5])
def test_a_directory_is_read_no_further_than_it_is_given(fit: int, server: Server, fs: FakeFileSystem) -> None:
    listing = Listing(100)
    fs.results["readdirplus"] = listing
    assert handle(server, _request(READDIRPLUS, fit * PLUS + PLUS // 2)) == fit * PLUS
    assert listing.read == list(range(2, 2 + fit + 1))
    assert fs.calls[1:] == [("forget", (2 + fit, 1))]


def test_a_name_without_a_node_gives_nothing_back(server: Server, fs: FakeFileSystem) -> None:
    fs.results["readdirplus"] = [(HELLO, Entry(0, ATTR))]
    assert handle(server, _request(READDIRPLUS, 8)) == 0
    assert [call[0] for call in fs.calls] == ["readdirplus"]


def test_an_error_after_some_entries_keeps_their_lookups(
    server: Server, fs: FakeFileSystem, channel: FakeChannel
) -> None:
    """They have been counted: an error instead of them would leak a count each. As getdents(2), they come first."""
    listing = Listing(5, fails_at=4, error=OSError(errno.EIO, "disk"))
    fs.results["readdirplus"] = listing
    assert handle(server, _request(READDIRPLUS, 4096), channel) == 2 * PLUS
    assert [entry and entry.nodeid for _, entry in read_dirents_plus(bytes(channel.body[: 2 * PLUS]))] == [2, 3]


@pytest.mark.parametrize("opcode", [READDIR, READDIRPLUS])
def test_an_error_before_any_entry_is_the_answer(opcode: int, server: Server, fs: FakeFileSystem) -> None:
    name = "readdir" if opcode == READDIR else "readdirplus"
    fs.results[name] = Listing(5, fails_at=2, error=OSError(errno.ESTALE, "gone"))
    assert handle(server, _request(opcode, 4096)) == -errno.ESTALE


def test_a_bug_in_a_lazy_listing_is_eio(server: Server, fs: FakeFileSystem, caplog: pytest.LogCaptureFixture) -> None:
    fs.results["readdirplus"] = Listing(5, fails_at=4, error=ValueError("oops"))
    assert handle(server, _request(READDIRPLUS, 4096)) == -errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("size", [0, PLAIN - 1, PLAIN, 3 * PLAIN + 7, 100 * PLAIN])
def test_plain_entries_fill_a_reply(size: int, server: Server, fs: FakeFileSystem, channel: FakeChannel) -> None:
    entries = [_entry(number)[0] for number in range(2, 50)]
    fs.results["readdir"] = iter(entries)
    length = handle(server, _request(READDIR, size), channel)
    assert length == min(size // PLAIN, len(entries)) * PLAIN
    assert read_dirents(bytes(channel.body[:length])) == entries[: length // PLAIN]


def test_an_empty_directory_is_the_end(server: Server, fs: FakeFileSystem) -> None:
    fs.results["readdir"] = fs.results["readdirplus"] = ()
    assert handle(server, _request(READDIR, 4096)) == 0
    assert handle(server, _request(READDIRPLUS, 4096)) == 0


Put = Callable[[memoryview, int], int]
PUTS: dict[str, tuple[Put, int]] = {
    "readdir": (lambda body, size: put_dirents(body, size, [HELLO] * 9), PLAIN),
    "readdirplus": (lambda body, size: put_dirents_plus(body, size, [(HELLO, ENTRY)] * 9)[0], PLUS),
}


@pytest.mark.parametrize("name", PUTS)
def test_a_small_body_is_never_overrun(name: str) -> None:
    put, each = PUTS[name]
    for room in range(2 * each + 1):
        memory = bytearray(b"\xee" * (2 * each + 8))
        assert put(memoryview(memory)[:room], 1 << 20) == room // each * each
        assert memory[room:] == b"\xee" * (len(memory) - room)


@pytest.mark.parametrize("name", PUTS)
def test_padding_is_zero_whatever_lay_there(name: str) -> None:
    """The body is reused: what an earlier reply left must not reach another caller."""
    put, _ = PUTS[name]
    clean, dirty = memoryview(bytearray(4096)), memoryview(bytearray(b"\xee" * 4096))
    length = put(clean, 4096)
    assert put(dirty, 4096) == length
    assert clean[:length] == dirty[:length]


@pytest.mark.parametrize(("namelen", "size"), [(1, 32), (7, 32), (8, 32), (9, 40), (255, 280)])
def test_records_are_padded_to_8_bytes(namelen: int, size: int) -> None:
    assert dirent_size(namelen) == size
    assert put_dirents(memoryview(bytearray(512)), 512, [Dirent(b"x" * namelen, 1, 1, 8)]) == size
