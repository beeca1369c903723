"""A hostile guest and a hostile front end: each is answered or cut off with one line, and the next is served."""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from passthrough.protocol import structs as s
from passthrough.transport.vhost import messages as m
from passthrough.transport.vhost.messages import Request

from ..mounted.harness import wait_until
from .backend import BackEnd
from .frontend import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    GUEST_BASE,
    USER_BASE,
    FrontEnd,
    Memory,
    Ring,
)
from .fuse import Client

GETATTR = s.FUSE_GETATTR_IN.struct.pack(0, 0)
U64 = (1 << 64) - 1


@pytest.fixture(autouse=True)
def _goes_on(daemon: BackEnd) -> Iterator[None]:
    """Whatever a test does, the same process serves the next guest."""
    process = daemon.serving()
    yield
    daemon.works()
    assert daemon.serving() == process


# Rings


def _offer(ring: Ring, head: int) -> None:
    ring.offer(head)
    os.eventfd_write(ring.kick, 1)


def outside(ring: Ring, good: int) -> None:
    ring.write(0, GUEST_BASE + ring.memory.size, 16, 0)
    _offer(ring, 0)


def below(ring: Ring, good: int) -> None:
    ring.write(0, 0, 16, 0)
    _offer(ring, 0)


def across_the_end(ring: Ring, good: int) -> None:
    ring.write(0, GUEST_BASE + ring.memory.size - 8, 16, 0)
    _offer(ring, 0)


def overflowing(ring: Ring, good: int) -> None:
    ring.write(0, U64 - 4, 16, DESC_F_WRITE)
    _offer(ring, 0)


def huge(ring: Ring, good: int) -> None:
    ring.write(0, good, 0xFFFFFFFF, DESC_F_WRITE)
    _offer(ring, 0)


def loop(ring: Ring, good: int) -> None:
    ring.write(0, good, 8, DESC_F_NEXT, 1)
    ring.write(1, good, 8, DESC_F_NEXT, 0)
    _offer(ring, 0)


def loop_in_a_table(ring: Ring, good: int) -> None:
    table = ring.memory.put(struct.pack("=QIHHQIHH", good, 8, DESC_F_NEXT, 1, good, 8, DESC_F_NEXT, 0))
    ring.write(0, table, 32, DESC_F_INDIRECT)
    _offer(ring, 0)


def next_out_of_the_table(ring: Ring, good: int) -> None:
    ring.write(0, good, 8, DESC_F_NEXT, ring.size)
    _offer(ring, 0)


def head_out_of_the_table(ring: Ring, good: int) -> None:
    _offer(ring, ring.size)


def indirect_in_indirect(ring: Ring, good: int) -> None:
    inner = ring.memory.put(struct.pack("=QIHH", good, 8, 0, 0))
    table = ring.memory.put(struct.pack("=QIHH", inner, 16, DESC_F_INDIRECT, 0))
    ring.write(0, table, 16, DESC_F_INDIRECT)
    _offer(ring, 0)


def indirect_and_next(ring: Ring, good: int) -> None:
    table = ring.memory.put(struct.pack("=QIHH", good, 8, 0, 0))
    ring.write(0, table, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1)
    _offer(ring, 0)


def empty_table(ring: Ring, good: int) -> None:
    ring.write(0, good, 0, DESC_F_INDIRECT)
    _offer(ring, 0)


def crooked_table(ring: Ring, good: int) -> None:
    ring.write(0, good, 24, DESC_F_INDIRECT)
    _offer(ring, 0)


def table_outside(ring: Ring, good: int) -> None:
    ring.write(0, GUEST_BASE - 4096, 64, DESC_F_INDIRECT)
    _offer(ring, 0)


def endless_table(ring: Ring, good: int) -> None:
    ring.write(0, good, 1 << 20, DESC_F_INDIRECT)
    _offer(ring, 0)


def empty_descriptor(ring: Ring, good: int) -> None:
    ring.write(0, good, 0, 0)
    _offer(ring, 0)


def readable_behind_writable(ring: Ring, good: int) -> None:
    ring.write(0, good, 8, DESC_F_NEXT | DESC_F_WRITE, 1)
    ring.write(1, good, 8, 0)
    _offer(ring, 0)


def jumping_index(ring: Ring, good: int) -> None:
    ring.avail_words[1] = ring.size + 1 + ring.available_index & 0xFFFF
    os.eventfd_write(ring.kick, 1)


def index_that_goes_back(ring: Ring, good: int) -> None:
    ring.avail_words[1] = ring.available_index - 1 & 0xFFFF
    os.eventfd_write(ring.kick, 1)


BREAKS = (
    outside,
    below,
    across_the_end,
    overflowing,
    huge,
    loop,
    loop_in_a_table,
    next_out_of_the_table,
    head_out_of_the_table,
    indirect_in_indirect,
    indirect_and_next,
    empty_table,
    crooked_table,
    table_outside,
    endless_table,
    empty_descriptor,
    readable_behind_writable,
    jumping_index,
    index_that_goes_back,
)


@pytest.mark.parametrize("break_it", BREAKS)
def test_a_queue_whose_rules_are_broken_stops_says_so_once_and_the_others_go_on(
    daemon: BackEnd, break_it: Callable[[Ring, int], None]
) -> None:
    before = len(daemon.errors())
    with daemon.front(2, protocol=m.PROTOCOL_F_REPLY_ACK | m.PROTOCOL_F_STATUS | m.PROTOCOL_F_MQ) as front:
        front.order(Request.SET_STATUS, m.put_u64(15))
        client = Client(front, 2)
        client.init()
        ring = front.rings[1]
        break_it(ring, front.memory.take(64))
        assert ring.broken()
        os.eventfd_write(ring.kick, 1)
        assert client.getattr()["nlink"] >= 1
        assert front.ask_u64(Request.GET_STATUS) == 15 | m.STATUS_NEEDS_RESET
        assert [line.partition("ERROR")[0] for line in daemon.errors()[before:]] == ["passthrough: "]
        assert "queue 1 stops" in daemon.errors()[-1]


# Requests


def _raw(front: FrontEnd, request: bytes, room: int, *, cut: int = 0) -> tuple[int, bytes]:
    """A chain with this as the readable part and room bytes of writable: (used length, what was written)."""
    memory, ring = front.memory, front.rings[1]
    at = memory.put(request) if request else 0
    pieces = [(at, len(request), False)] if request else []
    if cut:
        pieces = [(at, cut, False), (at + cut, len(request) - cut, False)]
    reply = memory.put(bytes(room)) if room else 0
    pieces += [(reply, room, True)] if room else []
    head = ring.indirect(pieces)
    ring.offer(head)
    ring.notify()
    used, length = ring.wait()
    assert used == head
    return length, bytes(memory.at(reply, length)) if room else b""


def _header(size: int, opcode: int, nodeid: int = 1, extra: int = 0, unique: int = 77) -> bytes:
    return s.FUSE_IN_HEADER.struct.pack(size, opcode, unique, nodeid, 0, 0, 0, extra)


MALFORMED = {
    "too short for a header": (b"\0" * 39, 256, None),
    "nothing to read": (b"", 256, None),
    "a length that is too large": (_header(200, 3) + GETATTR, 256, errno.EINVAL),
    "a length that is too small": (_header(41, 3) + GETATTR, 256, errno.EINVAL),
    "no room for a header": (_header(56, 3) + GETATTR, 15, None),
    "no room at all": (_header(56, 3) + GETATTR, 0, None),
    "no room for the body": (_header(56, 3) + GETATTR, 60, errno.EIO),
    "a wrong length and no room": (_header(200, 3) + GETATTR, 0, None),
    "a name without its NUL": (_header(43, 1) + b"abc", 256, errno.EINVAL),
    "two names": (_header(44, 1) + b"a\0b\0", 256, errno.EINVAL),
    "a name that is a path": (_header(46, 1) + b"../..\0", 256, errno.EINVAL),
    "an empty name": (_header(41, 1) + b"\0", 256, errno.EINVAL),
    "an opcode that nobody knows": (_header(40, 4000), 256, errno.ENOSYS),
    "no arguments": (_header(40, 3), 256, errno.EINVAL),
    "a node that was never handed out": (_header(56, 3, 1 << 63) + GETATTR, 256, errno.EBADF),
    "extensions beyond the end": (_header(56, 3, 1, 0xFFFF) + GETATTR, 256, errno.EINVAL),
    "a handle that was never handed out": (
        _header(80, 15) + s.FUSE_READ_IN.struct.pack(9, 0, 64, 0, 0, 0),
        256,
        errno.EBADF,
    ),
    "a write of more than comes": (
        _header(80, 16) + s.FUSE_WRITE_IN.struct.pack(9, 0, 64, 0, 0, 0),
        256,
        errno.EINVAL,
    ),
    "a write that ends in its struct": (_header(60, 16) + bytes(20), 256, errno.EINVAL),
    "an offset beyond all files": (
        _header(80, 15) + s.FUSE_READ_IN.struct.pack(9, 1 << 63, 64, 0, 0, 0),
        256,
        errno.EINVAL,
    ),
}


@pytest.mark.parametrize(
    ("case", "cut"),
    [(case, cut) for case, (request, _, _) in MALFORMED.items() for cut in (0, 40) if cut < max(1, len(request))],
)
def test_a_malformed_request_fails_alone(daemon: BackEnd, case: str, cut: int) -> None:
    request, room, number = MALFORMED[case]
    with daemon.front() as front:
        client = Client(front)
        client.init()
        length, reply = _raw(front, request, room, cut=cut)
        if number is None:
            assert length == 0
        else:
            assert (length, reply) == (16, s.FUSE_OUT_HEADER.struct.pack(16, -number, 77))
        client.getattr()


def test_a_read_with_less_room_than_it_asks_for_is_refused(daemon: BackEnd) -> None:
    (daemon.shared / "long").write_bytes(bytes(4096))
    with daemon.front() as front:
        client = Client(front)
        client.init()
        fh = client.open(nodeid := client.lookup(1, b"long"), os.O_RDONLY)
        asked = _header(80, 15, nodeid) + s.FUSE_READ_IN.struct.pack(fh, 0, 4096, 0, 0, 0)
        assert _raw(front, asked, 16 + 4095) == (16, s.FUSE_OUT_HEADER.struct.pack(16, -errno.EINVAL, 77))


def test_a_data_piece_that_is_the_reply_too(daemon: BackEnd) -> None:
    """Request and reply in the same memory: what was read before it was overwritten counts."""
    with daemon.front() as front:
        client = Client(front)
        client.init()
        memory, ring = front.memory, front.rings[1]
        at = memory.put((_header(56, 3) + GETATTR).ljust(256, b"\0"))
        head = ring.indirect([(at, 56, False), (at, 256, True)])
        ring.offer(head)
        ring.notify()
        assert ring.wait() == (head, 16 + s.FUSE_ATTR_OUT.size)


# Messages


def _vring(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


BAD_MESSAGES: dict[str, tuple[int, bytes, int]] = {
    "an unknown request": (200, b"", 0),
    "a request of another device": (20, m.put_u64(1500), 0),
    "features that were not offered": (Request.SET_FEATURES, m.put_u64(1 << 63), 0),
    "protocol features that were not offered": (Request.SET_PROTOCOL_FEATURES, m.put_u64(1 << 40), 0),
    "a payload that is too short": (Request.SET_FEATURES, b"1234", 0),
    "a payload that is too long": (Request.SET_FEATURES, bytes(16), 0),
    "a table of nine regions": (Request.SET_MEM_TABLE, struct.pack("=I4x", 9) + bytes(32 * 9), 0),
    "a table that is cut off": (Request.SET_MEM_TABLE, struct.pack("=I4xQ", 1, 0), 1),
    "a table without descriptors": (Request.SET_MEM_TABLE, m.put_table([m.Region(0, 4096, 0, 0)]), 0),
    "a table with too many": (Request.SET_MEM_TABLE, m.put_table([m.Region(0, 4096, 0, 0)]), 2),
    "a region beyond its file": (Request.SET_MEM_TABLE, m.put_table([m.Region(0, 1 << 40, 0, 0)]), 1),
    "a region of nothing": (Request.ADD_MEM_REG, m.put_region(m.Region(0, 0, 0, 0)), 1),
    "a region that wraps": (Request.ADD_MEM_REG, m.put_region(m.Region(U64 - 10, 4096, 0, 0)), 1),
    "a region with a wild offset": (Request.ADD_MEM_REG, m.put_region(m.Region(0, 4096, 0, U64 - 4095)), 1),
    "a region that is not there": (Request.REM_MEM_REG, m.put_region(m.Region(0, 4096, 0, 0)), 0),
    "a queue of 0": (Request.SET_VRING_NUM, _vring(0, 0), 0),
    "a queue of 100": (Request.SET_VRING_NUM, _vring(0, 100), 0),
    "a queue of 65536": (Request.SET_VRING_NUM, _vring(0, 65536), 0),
    "a queue that cannot be": (Request.SET_VRING_NUM, _vring(256, 128), 0),
    "a queue far out": (Request.SET_VRING_BASE, _vring(0xFFFFFFFF, 0), 0),
    "a queue enabled twice over": (Request.SET_VRING_ENABLE, _vring(0, 2), 0),
    "a kick without a descriptor": (Request.SET_VRING_KICK, m.put_u64(0), 0),
    "a kick with two": (Request.SET_VRING_KICK, m.put_u64(0), 2),
    "a kick that says it has none": (Request.SET_VRING_KICK, m.put_u64(0x100), 1),
    "a call that is no eventfd": (Request.SET_VRING_CALL, m.put_u64(0), 1),
    "a config that is not ours": (Request.GET_CONFIG, m.put_config(m.ConfigRequest(0, 4, 0, bytes(4))), 0),
    "a config that is written": (Request.SET_CONFIG, m.put_config(m.ConfigRequest(0, 4, 0, bytes(4))), 0),
    "a state that cannot be moved": (Request.SET_DEVICE_STATE_FD, bytes(8), 0),
    "a log without its feature": (Request.SET_LOG_BASE, struct.pack("=QQ", 4096, 0), 1),
    "a record for no queues": (Request.GET_INFLIGHT_FD, m.put_inflight(m.Inflight(0, 0, 0, 128)), 0),
    "a record that is too small": (Request.SET_INFLIGHT_FD, m.put_inflight(m.Inflight(64, 0, 9, 128)), 1),
    "a record without memory": (Request.SET_INFLIGHT_FD, m.put_inflight(m.Inflight(1 << 30, 0, 1, 128)), 1),
    "a back channel that is no socket": (Request.SET_BACKEND_REQ_FD, b"", 1),
    "descriptors where none are due": (Request.SET_OWNER, b"", 3),
}


@pytest.mark.parametrize("acknowledge", [True, False])
@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_bad_message_is_refused_or_ends_the_connection(daemon: BackEnd, case: str, *, acknowledge: bool) -> None:
    request, payload, count = BAD_MESSAGES[case]
    memory = Memory(1 << 16)
    before, descriptors = len(daemon.errors()), daemon.descriptors()
    front = daemon.connect(memory)
    front.negotiate()
    front.send(request, payload, [memory.fd] * count, need_reply=acknowledge)
    if acknowledge:
        assert m.read_u64(front.receive()[1]) == 1
        assert front.ask_u64(Request.GET_FEATURES)
    else:
        assert front.gone()
    front.close()
    memory.close()
    assert daemon.descriptors() == descriptors, "nothing is left open"
    assert len(daemon.errors()) == before + 1


BAD_STREAMS = {
    "another version": struct.pack("=III", Request.GET_FEATURES, 2, 0),
    "a reply": struct.pack("=III", Request.GET_FEATURES, 5, 0),
    "endless": struct.pack("=III", Request.SET_MEM_TABLE, 1, 0xFFFFFFFF),
    "noise": bytes(range(1, 200)),
    "zeros": bytes(64),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_a_bad_stream_ends_the_connection(daemon: BackEnd, case: str) -> None:
    front = daemon.connect()
    front.send_raw(BAD_STREAMS[case])
    assert front.gone()
    front.close()


@pytest.mark.parametrize("size", range(0, 20, 3))
def test_half_a_message_holds_nobody_up(daemon: BackEnd, size: int) -> None:
    front = daemon.connect()
    front.send_raw(m.message(Request.SET_FEATURES, m.put_u64(0))[:size], [front.memory.fd] if size else [])
    front.close()


def test_more_descriptors_than_a_message_may_have(daemon: BackEnd) -> None:
    descriptors = daemon.descriptors()
    front = daemon.connect()
    front.send_raw(m.message(Request.SET_MEM_TABLE, m.put_table([])), [front.memory.fd] * 30)
    assert front.gone()
    front.close()
    assert daemon.descriptors() == descriptors, "nothing is left open"


BAD_ADDRESSES = {
    "descriptors out of alignment": {"descriptors": 8},
    "available ring out of alignment": {"available": 1},
    "used ring out of alignment": {"used": 2},
    "outside": {"descriptors": 1 << 40},
    "across the end": {"used": (64 << 20) - (1 << 20) - 4096 + 4092 + (1 << 20)},
    "wrapping": {"available": U64 - 1 - USER_BASE},
}


@pytest.mark.parametrize("case", BAD_ADDRESSES)
def test_a_ring_that_is_not_where_it_can_be_is_refused(daemon: BackEnd, case: str) -> None:
    front = daemon.connect()
    front.negotiate()
    front.share_memory()
    ring = Ring(front.memory, 128)
    front.rings.append(ring)
    good = front.address_of(0)
    bad = good._replace(**{name: USER_BASE + offset & U64 for name, offset in BAD_ADDRESSES[case].items()})
    front.order(Request.SET_VRING_NUM, m.put_state(m.VringState(0, 128)))
    front.order(Request.SET_VRING_ADDR, m.put_address(bad))
    front.order(Request.SET_VRING_KICK, m.put_u64(0), [ring.kick])
    assert not front.acknowledged(Request.SET_VRING_ENABLE, m.put_state(m.VringState(0, 1)))
    front.order(Request.SET_VRING_ADDR, m.put_address(good))
    front.order(Request.SET_VRING_ENABLE, m.put_state(m.VringState(0, 1)))
    front.close()


def test_a_running_queue_keeps_its_size(daemon: BackEnd) -> None:
    with daemon.front() as front:
        assert not front.acknowledged(Request.SET_VRING_NUM, _vring(1, 256))
        assert not front.acknowledged(Request.SET_VRING_BASE, _vring(1, 5))
        Client(front).init()


def test_a_call_that_is_full_holds_nobody_up(daemon: BackEnd) -> None:
    with daemon.front() as front:
        client = Client(front)
        client.init()
        full = os.eventfd(0, os.EFD_CLOEXEC)  # it blocks, and its counter is at its end
        os.eventfd_write(full, U64 - 1)
        front.order(Request.SET_VRING_CALL, m.put_u64(1), [full])
        for _ in range(3):
            _, pieces = client.pieces("getattr", 1, GETATTR, out=s.FUSE_ATTR_OUT.size)
            head = client.submit(pieces)
            wait_until(lambda: client.ring.used_words[1] != client.ring.seen, "it is answered")
            assert client.ring.take() == (head, 16 + s.FUSE_ATTR_OUT.size)
        os.close(full)


# Memory that goes away


def test_memory_that_is_removed_under_requests(daemon: BackEnd) -> None:
    (daemon.shared / "big").write_bytes(bytes(1 << 20))
    with daemon.front(1, size=64) as front:
        client = Client(front)
        client.init()
        fh = client.open(nodeid := client.lookup(1, b"big"), os.O_RDONLY)
        more = Memory(4 << 20)
        region = m.Region(1 << 40, 4 << 20, 1 << 46, 0)
        front.order(Request.ADD_MEM_REG, m.put_region(region), [more.fd])
        ring = client.ring
        unique, header = client.header("read", nodeid, s.FUSE_READ_IN.size)
        asked = front.memory.put(header + s.FUSE_READ_IN.struct.pack(fh, 0, 1 << 20, 0, 0, 0))
        reply = front.memory.take(16)
        for _ in range(20):
            ring.offer(ring.indirect([(asked, 80, False), (reply, 16, True), (1 << 40, 1 << 20, True)]))
        os.eventfd_write(ring.kick, 1)
        front.order(Request.REM_MEM_REG, m.put_region(region))
        done = 0

        def all_answered_or_stopped() -> bool:
            nonlocal done
            while ring.take():
                done += 1
            return done == 20 or ring.broken(0)

        wait_until(all_answered_or_stopped, "served while it was there, refused after")
        more.close()
        assert unique


def test_a_truncated_memfd_is_efault_where_it_is_data(daemon: BackEnd) -> None:
    (daemon.shared / "data").write_bytes(os.urandom(1 << 20))
    with daemon.front() as front:
        client = Client(front)
        client.init()
        nodeid = client.lookup(1, b"data")
        fh = client.open(nodeid, os.O_RDWR)
        loose = Memory(4 << 20, sealed=False)
        front.order(Request.ADD_MEM_REG, m.put_region(m.Region(1 << 40, 4 << 20, 1 << 46, 0)), [loose.fd])
        os.ftruncate(loose.fd, 0)
        for name, layout, writable in (("read", s.FUSE_READ_IN, True), ("write", s.FUSE_WRITE_IN, False)):
            unique, header = client.header(name, nodeid, layout.size + (0 if writable else 4096))
            asked = front.memory.put(header + layout.struct.pack(fh, 0, 4096, 0, 0, 0))
            reply = front.memory.take(24)
            pieces = [(asked, 80, False), (reply, 16, True), (1 << 40, 4096, True)]
            if not writable:
                pieces = [(asked, 80, False), (1 << 40, 4096, False), (reply, 24, True)]
            head = client.submit(pieces)
            assert client.ring.wait() == (head, 16)
            assert s.FUSE_OUT_HEADER.struct.unpack_from(front.memory.at(reply, 16)) == (16, -errno.EFAULT, unique)
        loose.close()


# No growth


def test_nothing_grows(daemon: BackEnd) -> None:
    descriptors = daemon.descriptors()
    threads = len(os.listdir(f"/proc/{daemon.serving()}/task"))
    for _ in range(20):
        with daemon.front(4) as front:
            client = Client(front)
            client.init()
            client.create(1, f"file{threading.get_ident()}-{os.urandom(4).hex()}".encode(), os.O_RDWR)
    front = daemon.connect()
    front.close()
    assert daemon.descriptors() == descriptors
    wait_until(lambda: len(os.listdir(f"/proc/{daemon.serving()}/task")) <= threads, "the threads are gone")
