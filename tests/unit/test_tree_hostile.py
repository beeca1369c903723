"""A server over a real directory, asked by a peer that lies: every number that fits its field, and no bug comes out."""

import logging
import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.fs.tree import Tree
from passthrough.protocol import constants as c
from passthrough.protocol.operations import OPERATIONS, Operation
from passthrough.protocol.requests import Header
from passthrough.protocol.structs import FUSE_IN_HEADER
from passthrough.server import Server
from passthrough.waiting import WAKE_SIGNAL, install_wake_signal
from tests.unit.helpers import ME, ROOT_ID, find, in_thread
from tests.wire.fake import FakeChannel, serving

_NUMBERS = (0, 1, 2, 7, 0o644, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NAMES = (b"file", b"dir", b"new", b"user.x", b"system.posix_acl_access", b"..", b"", b"a/b", b"x" * 300)
# Not asked here: what ends the session, and what could fill the disk or make files that cannot be removed.
_LEFT_OUT = ("init", "destroy", "fallocate", "ioctl", "cuse_init", "notify_reply")
_ASKED = [operation for operation in OPERATIONS if operation.name not in _LEFT_OUT]
_ROUNDS = 300


def requests(operation: Operation, nodeids: list[int], order: random.Random) -> Iterator[bytes]:
    """Requests whose every field is a number of the list, as far as its width has room."""
    layout = operation.struct
    for _ in range(_ROUNDS):
        fields = b""
        if layout:
            raw = b"".join(order.choice(_NUMBERS).to_bytes(8, "little") for _ in range(layout.size // 8 + 1))
            fields = raw[: layout.size]
            if "fh" in layout.fields:
                values = list(layout.struct.unpack(fields))
                values[layout.fields.index("fh")] = order.choice((1, 2, 3, order.choice(_NUMBERS)))
                fields = layout.struct.pack(*values)
        names = b"".join(order.choice(_NAMES) + b"\0" for _ in range(operation.names))
        rest = fields + names + (b"data" if operation.data else b"")
        size = FUSE_IN_HEADER.size + len(rest)
        nodeid = order.choice((*nodeids, order.choice(_NUMBERS)))
        uid, gid = order.choice((0, 65534, (1 << 32) - 1)), order.choice((0, 4321))
        yield FUSE_IN_HEADER.struct.pack(size, operation.opcode, order.getrandbits(64), nodeid, uid, gid, 1, 0) + rest


@pytest.fixture(autouse=True)
def wake_signal() -> Iterator[None]:
    """Waiting requests can be ended."""
    before = signal.getsignal(WAKE_SIGNAL)
    install_wake_signal()
    yield
    signal.signal(WAKE_SIGNAL, before)


def ask(server: Server, raw: bytes, channel: FakeChannel) -> int | None:
    """One request to its result."""
    return server.handle(Header._make(FUSE_IN_HEADER.struct.unpack_from(raw)), memoryview(raw), channel)


@pytest.mark.parametrize("operation", _ASKED, ids=lambda operation: operation.name)
def test_no_number_gets_past_the_checks(
    make: Callable[..., Tree], source: Path, operation: Operation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    tree = make(flock=True, posix_lock=True)
    server = serving(tree, tree.flags)
    nodeids = [ROOT_ID, *(find(tree, name).nodeid for name in (b"file", b"dir", b"fifo", b"link"))]
    channel = FakeChannel()

    def run() -> list[int | None]:
        for nodeid in (ROOT_ID, nodeids[2]):
            tree.opendir(ME, nodeid, 0, 0)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR):
            tree.open(ME, nodeids[1], flags, 0)
        order = random.Random(operation.opcode)
        return [ask(server, raw, channel) for raw in requests(operation, nodeids, order)]

    results = in_thread(run)  # of its own: the umask and the file system context become that thread's
    assert isinstance(results, list)
    assert all(result is None or -512 < result <= len(channel.body) for result in results)
    server.close()
    assert not [record.getMessage() for record in caplog.records]
    assert stat.S_ISDIR(source.stat().st_mode)


def test_what_is_left_out_is_little() -> None:
    assert {operation.name for operation in OPERATIONS} - {operation.name for operation in _ASKED} <= set(_LEFT_OUT)
    assert len(_ASKED) > 40
    assert c.FUSE_ROOT_ID == ROOT_ID
