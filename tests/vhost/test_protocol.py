"""The vhost-user messages, over a socket: what is offered, what is answered, and what is refused."""

import errno
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from passthrough.protocol import structs as s
from passthrough.transport.vhost import messages as m
from passthrough.transport.vhost.messages import Request

from ..mounted.harness import run, wait_until
from .backend import BackEnd, backend
from .frontend import PROTOCOL, Memory, Ring
from .fuse import Client, ReplyError


def test_it_offers_what_a_virtiofsd_does_and_the_record_of_requests_in_flight(daemon: BackEnd) -> None:
    front = daemon.connect()
    features = front.ask_u64(Request.GET_FEATURES)
    assert features == (
        m.VIRTIO_F_VERSION_1
        | m.VIRTIO_RING_F_INDIRECT_DESC
        | m.VIRTIO_RING_F_EVENT_IDX
        | m.VHOST_F_LOG_ALL
        | m.VHOST_USER_F_PROTOCOL_FEATURES
    )
    offered = front.ask_u64(Request.GET_PROTOCOL_FEATURES)
    assert offered & m.PROTOCOL_F_INFLIGHT_SHMFD
    assert not offered & m.PROTOCOL_F_CONFIG
    assert front.ask_u64(Request.GET_QUEUE_NUM) == 256
    assert front.ask_u64(Request.GET_MAX_MEM_SLOTS) == 509
    front.close()


def test_with_a_tag_the_config_space_is_ours() -> None:
    tag = "36 bytes are the most and no NUL fits"[:36]
    with backend(f"--tag={tag}", "--num-request-queues=4") as own:
        front = own.connect()
        assert front.ask_u64(Request.GET_PROTOCOL_FEATURES) & m.PROTOCOL_F_CONFIG
        asked = m.put_config(m.ConfigRequest(0, 64, 0, bytes(64)))
        found = m.read_config(front.ask(Request.GET_CONFIG, asked))
        assert found.data[:36] == tag.encode()
        assert struct.unpack_from("<I", found.data, 36) == (4,)
        assert found.data[40:] == bytes(24)
        front.close()


@pytest.mark.parametrize("queues", [1, 8])
def test_as_many_request_queues_as_the_front_end_wants(daemon: BackEnd, queues: int) -> None:
    with daemon.front(queues) as front:
        Client(front).init()
        for queue in range(1, queues + 1):
            assert Client(front, queue).getattr()["mode"] == os.stat(daemon.shared).st_mode


def test_forget_is_answered_with_nothing(daemon: BackEnd) -> None:
    (daemon.shared / "forgotten").write_text("")
    with daemon.front() as front:
        client = Client(front)
        client.init()
        nodeid = client.lookup(1, b"forgotten")
        hiprio = Client(front, 0)
        unique, header = hiprio.header("forget", nodeid, 8)
        address = front.memory.put(header + struct.pack("=Q", 1))
        ring = front.rings[0]
        head = ring.chain([(address, 48, False)])
        ring.offer(head)
        ring.notify()
        assert ring.wait() == (head, 0)
        with pytest.raises(ReplyError, match="9") as error:
            client.getattr(nodeid)
        assert error.value.errno == errno.EBADF
        assert unique


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_data_goes_both_ways(daemon: BackEnd, *, event_idx: bool, indirect: bool) -> None:
    content = os.urandom(1 << 20)
    name = f"data{event_idx}{indirect}"
    with daemon.front(event_idx=event_idx) as front:
        client = Client(front, indirect=indirect)
        client.init()
        nodeid, fh = client.create(1, name.encode(), os.O_RDWR)
        assert client.write(nodeid, fh, 0, content) == 1 << 20
        assert (daemon.shared / name).read_bytes() == content
        assert client.read(nodeid, fh, 0, 1 << 20) == content
        assert client.read(nodeid, fh, (1 << 20) - 10, 4096) == content[-10:]


def test_a_request_may_be_cut_anywhere(daemon: BackEnd) -> None:
    (daemon.shared / "cut").write_bytes(bytes(range(256)) * 16)
    with daemon.front() as front:
        client = Client(front)
        client.init()
        fh = client.open(nodeid := client.lookup(1, b"cut"), os.O_RDWR)
        memory, ring = front.memory, front.rings[1]
        for size in (1, 7, 40, 96):
            for name, args, room in (
                ("read", s.FUSE_READ_IN.struct.pack(fh, 0, 512, 0, 0, 0), 16 + 512),
                ("write", s.FUSE_WRITE_IN.struct.pack(fh, 0, 100, 0, 0, 0) + bytes(range(100)), 16 + 8),
                ("lookup", b"cut\0", 16 + 128),
            ):
                unique, header = client.header(name, 1 if name == "lookup" else nodeid, len(args))
                raw = header + args
                request, reply = memory.put(raw), memory.take(room)
                pieces = [(request + at, min(size, len(raw) - at), False) for at in range(0, len(raw), size)]
                pieces += [(reply + at, min(size, room - at), True) for at in range(0, room, size)]
                head = ring.indirect(pieces)
                ring.offer(head)
                ring.notify()
                used, length = ring.wait()
                answered = s.FUSE_OUT_HEADER.struct.unpack_from(memory.at(reply, 16))
                expected = {"read": 16 + 512, "write": 24, "lookup": 16 + s.FUSE_ENTRY_OUT.size}[name]
                assert (used, length, *answered) == (head, expected, expected, 0, unique)
                if name == "read":
                    assert memory.at(reply + 16, 512) == bytes(range(256)) * 2


def test_many_requests_at_once_are_all_answered(daemon: BackEnd) -> None:
    with daemon.front(event_idx=True) as front:
        client = Client(front, data_size=4096)
        client.init()
        ring = client.ring
        waiting = {}
        slots = [client.new_slot() for _ in range(32)]
        args = s.FUSE_GETATTR_IN.struct.pack(0, 0)
        for slot in slots:
            unique, pieces = client.pieces("getattr", 1, args, out=s.FUSE_ATTR_OUT.size, slot=slot)
            head = ring.indirect(pieces, slot.table)
            waiting[head] = (unique, slot)
            ring.offer(head)
        ring.notify(len(slots))
        for _ in slots:
            head, length = ring.wait()
            unique, slot = waiting.pop(head)
            client.check(unique, length, slot)
        assert not waiting


def test_a_slow_request_does_not_hold_up_the_queue_and_is_answered(daemon: BackEnd) -> None:
    with daemon.front() as front:
        client = Client(front)
        client.init()
        nodeid, fh = client.create(1, b"synced", os.O_RDWR)
        client.write(nodeid, fh, 0, bytes(1 << 20))
        client.call("fsync", nodeid, s.FUSE_FSYNC_IN.struct.pack(fh, 0))
        with pytest.raises(ReplyError) as error:
            client.call("fsync", nodeid, s.FUSE_FSYNC_IN.struct.pack(fh + 1, 0))
        assert error.value.errno == errno.EBADF


def test_a_queue_stops_where_it_is_and_goes_on(daemon: BackEnd) -> None:
    with daemon.front() as front:
        client = Client(front)
        client.init()
        for _ in range(5):
            client.getattr()
        base = front.stop_ring(1)
        assert base == 6
        ring = front.rings[1]
        _, pieces = client.pieces("getattr", 1, s.FUSE_GETATTR_IN.struct.pack(0, 0), out=s.FUSE_ATTR_OUT.size)
        client.submit(pieces)  # while it is stopped
        assert ring.take() is None
        front.start_ring(1, base)
        ring.wait()
        assert client.getattr()["nlink"] >= 2


def test_memory_comes_and_goes(daemon: BackEnd) -> None:
    front = daemon.connect()
    front.negotiate()
    region = front.memory.region
    front.order(Request.ADD_MEM_REG, m.put_region(region), [front.memory.fd])
    front.add_ring()
    front.add_ring()
    client = Client(front)
    client.init()
    more = Memory(1 << 20)
    other = m.Region(1 << 40, 1 << 20, 1 << 46, 0)
    front.order(Request.ADD_MEM_REG, m.put_region(other), [more.fd])
    client.getattr()
    front.order(Request.REM_MEM_REG, m.put_region(other))
    assert not front.acknowledged(Request.REM_MEM_REG, m.put_region(other))
    assert not front.acknowledged(Request.ADD_MEM_REG, m.put_region(region), [front.memory.fd]), "it overlaps"
    client.getattr()
    front.close()
    more.close()


def test_written_pages_are_logged(daemon: BackEnd) -> None:
    (daemon.shared / "logged").write_bytes(b"x" * 8192)
    front = daemon.connect()
    front.negotiate(protocol=PROTOCOL | m.PROTOCOL_F_LOG_SHMFD)
    front.share_memory()
    front.add_ring()
    front.add_ring()
    client = Client(front)
    client.init()
    fh = client.open(nodeid := client.lookup(1, b"logged"), os.O_RDONLY)
    size = (front.memory.size + (1 << 20)) // 4096 // 8 + 1
    log = Memory(-(-size // 4096) * 4096)
    assert m.read_u64(front.ask(Request.SET_LOG_BASE, struct.pack("=QQ", log.size, 0), [log.fd])) == 0
    ring = front.rings[1]
    front.order(Request.SET_VRING_ADDR, m.put_address(front.address_of(1, ring.used)))
    features = 1 << 30 | m.VIRTIO_F_VERSION_1 | m.VIRTIO_RING_F_INDIRECT_DESC | m.VHOST_F_LOG_ALL
    front.order(Request.SET_FEATURES, m.put_u64(features))
    log.view[:] = bytes(log.size)
    client.read(nodeid, fh, 0, 8192)

    def marked(address: int) -> bool:
        return bool(log.view[address // 4096 // 8] >> address // 4096 % 8 & 1)

    assert marked(client.slot.data)
    assert marked(client.slot.data + 4096)
    assert not marked(client.slot.data + 8192)
    assert marked(client.slot.reply)
    assert marked(ring.used)
    assert not marked(client.slot.request)
    front.close()
    log.close()


def test_a_front_end_that_comes_back_finds_its_files_open(own: BackEnd) -> None:
    (own.shared / "kept").write_bytes(b"kept")
    front = own.connect()
    front.negotiate(protocol=PROTOCOL | m.PROTOCOL_F_INFLIGHT_SHMFD)
    front.share_memory()
    front.send(Request.GET_INFLIGHT_FD, m.put_inflight(m.Inflight(0, 0, 2, 128)))
    _, payload, (record,) = front.receive()
    front.order(Request.SET_INFLIGHT_FD, payload, [record])
    rings = [front.add_ring(), front.add_ring()]
    client = Client(front)
    client.init()
    fh = client.open(nodeid := client.lookup(1, b"kept"), os.O_RDONLY)
    memory = front.memory
    front.socket.close()
    wait_until(lambda: "gone" in "\n".join(own.said()), "the daemon has seen it")
    _, pieces = client.pieces("read", nodeid, s.FUSE_READ_IN.struct.pack(fh, 0, 4, 0, 0, 0), room=4)
    head = client.submit(pieces)  # nobody is there

    again = own.connect(memory)
    again.negotiate(protocol=PROTOCOL | m.PROTOCOL_F_INFLIGHT_SHMFD)
    again.share_memory()
    again.order(Request.SET_INFLIGHT_FD, payload, [record])
    for ring in rings:
        again.add_ring(ring=ring)
    assert rings[1].wait() == (head, 20)
    assert memory.at(client.slot.data, 4).tobytes() == b"kept"
    again.close()
    os.close(record)


def test_requests_that_a_dead_daemon_took_are_done_by_the_next(daemon: BackEnd) -> None:
    """The record says which: here a daemon that took one chain and died is played."""
    front = daemon.connect()
    front.negotiate(protocol=PROTOCOL | m.PROTOCOL_F_INFLIGHT_SHMFD)
    front.share_memory()
    front.send(Request.GET_INFLIGHT_FD, m.put_inflight(m.Inflight(0, 0, 2, 128)))
    _, payload, (record,) = front.receive()
    layout = m.read_inflight(payload)
    ring = Ring(front.memory, 128)
    front.rings = [Ring(front.memory, 128), ring]
    client = Client(front)
    _, pieces = client.pieces("getattr", 1, s.FUSE_GETATTR_IN.struct.pack(0, 0), out=s.FUSE_ATTR_OUT.size)
    taken = ring.chain(pieces)
    ring.offer(taken)
    at = layout.size // 2
    os.pwrite(record, struct.pack("=QHHHH", 0, 1, 128, 0, 0), at)
    os.pwrite(record, struct.pack("=B5xHQ", 1, 0, 0), at + 16 + 16 * taken)
    front.order(Request.SET_INFLIGHT_FD, payload, [record])
    for index in range(2):
        front.start_ring(index)
    head, length = ring.wait()
    assert (head, length) == (taken, 16), "answered, with an error: it was before INIT"
    assert os.pread(record, 1, at + 16 + 16 * taken) == b"\0"
    front.close()
    os.close(record)


def test_another_guest_knows_nothing_of_the_one_before(daemon: BackEnd) -> None:
    (daemon.shared / "before").write_text("")
    with daemon.front() as front:
        client = Client(front)
        client.init()
        nodeid = client.lookup(1, b"before")
    with daemon.front() as front:
        client = Client(front)
        with pytest.raises(ReplyError):
            client.getattr()
        client.init()
        with pytest.raises(ReplyError):
            client.getattr(nodeid)


def test_a_reset_of_the_device_ends_the_session(daemon: BackEnd) -> None:
    with daemon.front() as front:
        client = Client(front)
        client.init()
        front.order(Request.RESET_DEVICE)
        front.rings = [Ring(front.memory, 128) for _ in front.rings]
        front.start_ring(0)
        front.start_ring(1)
        with pytest.raises(ReplyError):
            client.getattr()


def test_it_ends_on_sigterm_with_nothing_left(own: BackEnd) -> None:
    with own.front() as front:
        client = Client(front)
        client.init()
        _, pieces = client.pieces("getattr", 1, s.FUSE_GETATTR_IN.struct.pack(0, 0), out=s.FUSE_ATTR_OUT.size)
        client.submit(pieces)
        assert own.stop() == 0
        assert front.rings[1].wait(5)[1] == 16 + s.FUSE_ATTR_OUT.size
    assert not own.socket.exists()
    assert not own.socket.with_name("socket.pid").exists()


def test_once_ends_with_the_first_front_end() -> None:
    with backend("--once") as own:
        own.works()
        assert own.process.wait(30) == 0


def test_a_second_daemon_is_told_who_is_there(own: BackEnd) -> None:
    result = run("serve", f"--socket-path={own.socket}", f"--shared-dir={own.shared}")
    assert result.returncode == 19
    assert f"process {own.process.pid}" in result.stderr
    own.works()


def test_a_stale_socket_is_cleared_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    result = run("serve", f"--socket-path={path}", "--shared-dir=/nonexistent")
    assert result.returncode == 10
    path.unlink()
    path.write_text("precious")
    result = run("serve", f"--socket-path={path}", f"--shared-dir={tmp_path}")
    assert result.returncode == 19
    assert path.read_text() == "precious"


def test_the_socket_is_for_its_owner_or_for_a_group(own: BackEnd) -> None:
    assert own.socket.stat().st_mode & 0o777 == 0o600
    with backend("--socket-group=nogroup") as other:
        assert other.socket.stat().st_mode & 0o777 == 0o660
        assert other.socket.group() == "nogroup"


def test_a_regular_file_can_be_shared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"alone")
    with backend(shared=path) as own, own.front() as front:
        client = Client(front)
        client.init()
        assert client.getattr()["size"] == 5
        fh = client.open(1, os.O_RDWR)
        assert client.read(1, fh, 0, 100) == b"alone"
        client.write(1, fh, 0, b"AL")
        assert path.read_bytes() == b"ALone"
        with pytest.raises(ReplyError) as error:
            client.lookup(1, b"x")
        assert error.value.errno == errno.ENOTDIR


def test_readonly_refuses_every_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"as it was")
    with backend("--readonly", shared=tmp_path) as own, own.front() as front:
        client = Client(front)
        client.init()
        nodeid = client.lookup(1, b"file")
        fh = client.open(nodeid, os.O_RDONLY)
        assert client.read(nodeid, fh, 0, 100) == b"as it was"
        for attempt in (
            lambda: client.open(nodeid, os.O_WRONLY),
            lambda: client.open(nodeid, os.O_RDONLY | os.O_TRUNC),
            lambda: client.create(1, b"new", os.O_RDWR),
            lambda: client.write(nodeid, fh, 0, b"x"),
            lambda: client.call("unlink", 1, b"file\0"),
            lambda: client.call("mkdir", 1, s.FUSE_MKDIR_IN.struct.pack(0o755, 0) + b"d\0", out=128),
        ):
            with pytest.raises(ReplyError) as error:
                attempt()
            assert error.value.errno == errno.EROFS


def test_the_keeper_puts_another_in_the_place_of_one_that_is_killed(own: BackEnd) -> None:
    own.works()
    first = own.serving()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "another takes its place" in "\n".join(own.said()), "the keeper says so")
    own.works()
    assert own.serving() != first
