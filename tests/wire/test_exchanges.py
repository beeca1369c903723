"""Literal bytes in, one call, literal bytes out: every opcode, in one buffer and in pieces."""

import os
import struct
import sys

import pytest

from passthrough.filesystem import FileSystem
from passthrough.protocol.negotiation import Wishes
from passthrough.protocol.operations import BY_OPCODE, OPERATIONS
from passthrough.protocol.values import Attr, FileRange, decode_dev, encode_dev
from passthrough.server import Server
from tests.wire.exchanges import EXCHANGES, UNIQUE, Exchange, unhex
from tests.wire.fake import MAX_WRITE, FakeChannel, FakeFileSystem, init_request, request, serve, serve_split, serving

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes here are a little-endian machine's")
each_exchange = pytest.mark.parametrize("exchange", EXCHANGES, ids=str)


def _prepare(exchange: Exchange, fs: FakeFileSystem) -> Server:
    if exchange.result is not None:
        fs.results[exchange.calls[0][0]] = exchange.result
    return serving(fs, exchange.flags)


def _check(exchange: Exchange, fs: FakeFileSystem, reply: bytes | None) -> None:
    assert fs.calls == list(exchange.calls)
    assert reply == (None if exchange.reply is None else unhex(exchange.reply))
    for ctx in fs.contexts:
        assert (ctx.unique, ctx.uid, ctx.gid, ctx.pid) == (11, 1000, 100, 42)
        assert ctx.groups == exchange.groups
        assert ctx.labels == exchange.labels
        assert not ctx.interrupted


@little_endian
@each_exchange
def test_one_buffer(exchange: Exchange, fs: FakeFileSystem) -> None:
    server = _prepare(exchange, fs)
    _check(exchange, fs, serve(server, unhex(exchange.request)))


@little_endian
@each_exchange
def test_a_buffer_longer_than_the_request(exchange: Exchange, fs: FakeFileSystem, channel: FakeChannel) -> None:
    """A transport reuses its buffer: what an earlier request left behind the end must not be read."""
    server = _prepare(exchange, fs)
    raw = unhex(exchange.request)
    _check(exchange, fs, serve(server, raw, channel))
    first = bytes(channel.body[:512])
    fs.calls.clear()
    fs.contexts.clear()
    _check(exchange, fs, serve(server, raw, channel, stale=b"\xff" * 4096))
    assert bytes(channel.body[:512]) == first


@little_endian
@each_exchange
def test_pieces(exchange: Exchange, fs: FakeFileSystem) -> None:
    server = _prepare(exchange, fs)
    _check(exchange, fs, serve_split(server, unhex(exchange.request), exchange.args_size))


@little_endian
def test_write_in_pieces_with_scattered_data(fs: FakeFileSystem) -> None:
    write = next(row for row in EXCHANGES if row.name == "write")
    raw = unhex(write.request)
    data = (memoryview(b"a"), memoryview(b""), memoryview(b"bc"))
    reply = serve_split(serving(fs), raw, write.args_size, data=data)
    assert fs.calls == [("write", (0x22, 5, 10, [b"a", b"", b"bc"], 4, 0x8001))]
    assert reply == unhex(f"18000000 00000000 {UNIQUE} 03000000 00000000")


@little_endian
def test_a_file_range_is_left_to_the_transport(fs: FakeFileSystem, channel: FakeChannel) -> None:
    fs.results["read"] = FileRange(3, 4096, 16384)
    read = next(row for row in EXCHANGES if row.name == "read")
    serve(serving(fs), unhex(read.request), channel)
    assert channel.pulled == [FileRange(3, 4096, 16384)]


def test_a_read_never_gives_more_than_was_asked(fs: FakeFileSystem, server: Server) -> None:
    fs.results["read"] = b"0123456789"
    reply = serve(server, request(15, struct.pack("=QQIIQII", 5, 0, 4, 0, 0, 0, 0)))
    assert reply is not None
    assert reply[16:] == b"0123"


def test_every_opcode_has_an_exchange() -> None:
    elsewhere = {"init", "destroy"}  # test_session.py
    seen = {BY_OPCODE[unhex(row.request)[4]].name for row in EXCHANGES}
    assert seen | elsewhere == {row.name for row in OPERATIONS}


@pytest.mark.parametrize("exchange", [row for row in EXCHANGES if row.reply is not None], ids=str)
def test_a_file_system_that_can_do_nothing_says_so(exchange: Exchange) -> None:
    reply = serve(serving(FileSystem(), exchange.flags), unhex(exchange.request))
    assert reply == unhex(f"10000000 daffffff {UNIQUE}")


# What a stranger may go on doing with files that were handed to him, and what the kernel does by itself.
FOR_ANYBODY = {
    *("read", "write", "flush", "fsync", "release", "readdir", "fsyncdir", "releasedir"),
    *("readdirplus", "lseek", "fallocate", "copy_file_range", "copy_file_range_64", "getlk", "setlk", "setlkw"),
    *("forget", "batch_forget", "interrupt", "notify_reply"),
}


@little_endian
@each_exchange
@pytest.mark.parametrize("owner", [1000, 999], ids=["owner", "stranger"])
def test_allow_root(exchange: Exchange, owner: int, fs: FakeFileSystem) -> None:
    """A server with an owner serves that uid and root; the requests here come from uid 1000."""
    if exchange.result is not None:
        fs.results[exchange.calls[0][0]] = exchange.result
    server = Server(fs, Wishes(flags=exchange.flags, max_write=MAX_WRITE), owner=owner)
    assert serve(server, init_request()) is not None
    raw = unhex(exchange.request)
    if owner == 1000 or BY_OPCODE[raw[4]].name in FOR_ANYBODY:
        _check(exchange, fs, serve(server, raw))
    else:
        assert serve(server, raw) == unhex(f"10000000 f3ffffff {UNIQUE}")
        assert fs.calls == []
        # The same from root is served; uid is the header's bytes 24 to 27.
        serve(server, raw[:24] + bytes(4) + raw[28:])
        assert fs.calls == list(exchange.calls)


def test_a_session_begins_and_ends_whoever_asks(fs: FakeFileSystem) -> None:
    server = Server(fs, Wishes(max_write=MAX_WRITE), owner=999)
    raw = init_request()
    assert serve(server, raw[:24] + b"\x05\0\0\0" + raw[28:]) is not None
    assert server.agreement is not None
    assert serve(server, request(38)) is not None
    assert fs.session == ["init", "destroy"]


def test_batch_forget_is_many_forgets() -> None:
    """The base class serves BATCH_FORGET by forget."""
    seen: list[tuple[int, int]] = []

    class Forgetful(FileSystem):
        def forget(self, nodeid: int, nlookup: int) -> None:
            seen.append((nodeid, nlookup))

    batch = next(row for row in EXCHANGES if row.name == "batch_forget")
    assert serve(serving(Forgetful()), unhex(batch.request)) is None
    assert seen == [(0x22, 1), (0x23, 2**64 - 1)]


@pytest.mark.parametrize(
    ("major", "minor", "encoded"),
    [(1, 3, 0x103), (8, 0, 0x800), (259, 300, 0x11032C), (0xFFF, 0xFFFFF, 0xFFFFFFFF)],
)
def test_device_numbers_are_the_kernels(major: int, minor: int, encoded: int) -> None:
    assert encode_dev(major, minor) == encoded
    assert decode_dev(encoded) == (major, minor)


def test_attr_of_a_stat() -> None:
    st = os.stat("/dev/null")
    attr = Attr.from_stat(st)
    assert (attr.ino, attr.mode, attr.nlink, attr.uid, attr.gid) == (st.st_ino, st.st_mode, st.st_nlink, 0, 0)
    assert decode_dev(attr.rdev) == (1, 3)
    assert attr.mtime * 10**9 + attr.mtimensec == st.st_mtime_ns
