"""Noise of every kind, made by hypothesis: messages, rings, requests. No traceback, no hang, no growth; seeds included.

The daemon runs in a process of its own, so that what it says and whether it lives are facts.
"""

import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from passthrough.protocol import structs as s
from passthrough.protocol.operations import OPERATIONS
from passthrough.transport.vhost import messages as m
from passthrough.transport.vhost.messages import MessageError, Request

from .backend import BackEnd
from .frontend import GUEST_BASE, USER_BASE, BackendGoneError, FrontEnd, Memory
from .fuse import Client

_SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
_WORDS = st.one_of(
    st.integers(0, 4096),
    st.sampled_from([0, 1, 0xFF, 0x100, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1, GUEST_BASE, USER_BASE]),
    st.integers(0, (1 << 64) - 1),
)


@pytest.fixture(scope="module", autouse=True)
def _no_growth(daemon: BackEnd) -> Iterator[None]:
    """All of a file's noise leaves nothing behind in the process that served it."""
    daemon.works()
    process, descriptors, size = daemon.serving(), daemon.descriptors(), _resident(daemon)
    yield
    daemon.works()
    assert daemon.serving() == process
    assert daemon.descriptors() == descriptors
    assert _resident(daemon) < size + (16 << 10), "KiB"


def _resident(daemon: BackEnd) -> int:
    with open(f"/proc/{daemon.serving()}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


_READERS = (
    m.read_u64,
    m.read_state,
    m.read_address,
    m.read_table,
    m.read_region,
    m.read_log,
    m.read_inflight,
    m.read_config,
    m.read_nothing,
)


@given(st.binary(max_size=400))
@example(b"")
@example(m.put_table([m.Region(0, 1, 2, 3)] * 8))
def test_payloads_are_read_or_refused(payload: bytes) -> None:
    for read in _READERS:
        try:
            read(payload)
        except MessageError:
            pass


@given(st.binary(min_size=12, max_size=12))
@example(struct.pack("=III", 1, 1, 0))
def test_headers_are_read_or_refused(data: bytes) -> None:
    try:
        assert m.read_header(data).size <= m.PAYLOAD_LIMIT
    except MessageError:
        pass


_MESSAGES = st.tuples(
    st.one_of(st.sampled_from([int(request) for request in Request]), st.integers(0, 50)),
    st.one_of(
        st.binary(max_size=64),
        st.lists(_WORDS, max_size=6).map(lambda words: struct.pack(f"={len(words)}Q", *words)),
        st.tuples(st.integers(0, 300), _WORDS).map(lambda pair: struct.pack("=II", pair[0], pair[1] & 0xFFFFFFFF)),
    ),
    st.integers(0, 3),
    st.booleans(),
)


@_SETTINGS
@given(st.lists(_MESSAGES, min_size=1, max_size=12), st.booleans())
@example([(12, m.put_u64(0), 1, True), (18, bytes(8), 0, True)], True)
def test_messages_in_any_order(daemon: BackEnd, sequence: list[tuple[int, bytes, int, bool]], running: bool) -> None:
    front = daemon.connect(Memory(1 << 20))
    try:
        front.begin(size=16) if running else front.negotiate()
        for request, payload, fds, need_reply in sequence:
            front.send(request, payload, [front.memory.fd] * fds, need_reply=need_reply)
    except BackendGoneError:
        pass
    finally:
        front.close()
        front.memory.close()


@_SETTINGS
@given(
    st.lists(st.tuples(_WORDS, _WORDS, st.integers(0, 15), st.integers(0, 20)), min_size=16, max_size=16),
    st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8),
    st.integers(0, 20),
)
@example([(GUEST_BASE, 16, 1, n + 1) for n in range(16)], [0], 1)
@example([(GUEST_BASE, 64, 4, 0)] * 16, [0, 1, 2], 3)
def test_rings_of_noise(daemon: BackEnd, rows: list[tuple[int, int, int, int]], heads: list[int], jump: int) -> None:
    front = daemon.connect(Memory(1 << 20))
    try:
        front.begin(size=16)
        ring = front.rings[1]
        for index, (address, length, flags, following) in enumerate(rows):
            ring.write(index, address, length & 0xFFFFFFFF, flags, following)
        for at, head in enumerate(heads):
            ring.avail_words[2 + at] = head
        ring.avail_words[1] = jump
        os.eventfd_write(ring.kick, 1)
        front.ask_u64(Request.GET_FEATURES)
    finally:
        front.close()
        front.memory.close()


@pytest.fixture
def line(daemon: BackEnd) -> Iterator[FrontEnd]:
    """A guest that has said INIT, and a file that it can open."""
    (daemon.shared / "file").write_bytes(bytes(5000))
    with daemon.front() as front:
        Client(front).init()
        yield front


_NODES = st.sampled_from([1, 2, 3, 99])
_OPCODES = st.sampled_from([row.opcode for row in OPERATIONS if row.name not in ("destroy", "init", "setlkw")])


@_SETTINGS
@given(
    _OPCODES, st.lists(_WORDS, max_size=8), st.binary(max_size=40), st.sampled_from([1, 2, 3, 99]), st.integers(0, 700)
)
@example(15, [1, 0, 4096], b"", 2, 600)
@example(16, [1, 0, 16], bytes(16), 2, 600)
@example(42, [1 << 31], b"", 1, 0)
def test_requests_of_noise(
    daemon: BackEnd, line: FrontEnd, opcode: int, words: list[int], tail: bytes, nodeid: int, room: int
) -> None:
    args = struct.pack(f"={len(words)}Q", *words) + tail
    request = s.FUSE_IN_HEADER.struct.pack(40 + len(args), opcode, 9, nodeid, 0, 0, 0, 0) + args
    memory, ring = line.memory, line.rings[1]
    if memory.size - memory._next < 8192:
        memory._next = memory.size // 2  # what was there is over
    ring_room = [(memory.take(room), room, True)] if room else []
    head = ring.chain([(memory.put(request), len(request), False), *ring_room])
    ring.offer(head)
    ring.notify()
    used, length = ring.wait()
    assert used == head
    assert length <= room
    if length:
        size, error, unique = s.FUSE_OUT_HEADER.struct.unpack_from(memory.at(ring_room[0][0], 16))
        assert (size, unique) == (length, 9)
        assert error == 0 or (size == 16 and -error in errno.errorcode)
