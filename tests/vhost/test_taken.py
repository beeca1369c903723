"""Guest memory that shrinks under the daemon: SIGBUS costs a process, never the daemon; and locks that wait."""

import errno
import os
import struct

from passthrough.protocol import structs as s
from passthrough.transport.vhost import messages as m
from passthrough.transport.vhost.messages import Request

from ..mounted.harness import wait_until
from .backend import BackEnd, backend
from .frontend import Memory
from .fuse import Client


def test_memory_that_shrinks_under_load_ends_that_connection_and_nothing_else(own: BackEnd) -> None:
    """The rings are in what is truncated. The test itself lets go of its own mapping first, or it would be hit too."""
    own.works()
    first = own.serving()
    loose = Memory(8 << 20, sealed=False)
    front = own.connect(loose)
    front.begin()
    client = Client(front, data_size=4096)
    client.init()
    (own.shared / "file").write_bytes(bytes(1 << 20))
    fh = client.open(nodeid := client.lookup(1, b"file"), os.O_RDONLY)
    reading = s.FUSE_READ_IN.struct.pack(fh, 0, 1 << 20, 0, 0, 0)
    room = loose.take(1 << 20, 4096)
    ring = front.rings[1]
    for _ in range(100):
        client.getattr()
    for _ in range(40):
        slot = client.new_slot()
        _, pieces = client.pieces("read", nodeid, reading, slot=slot)
        ring.offer(ring.indirect([*pieces, (room, 1 << 20, True)], slot.table))
    kick = os.dup(ring.kick)
    fd = os.dup(loose.fd)
    os.eventfd_write(kick, 1)
    os.ftruncate(fd, 0)  # while 40 MiB are being read into it
    os.eventfd_write(kick, 1)
    wait_until(lambda: any("SIGBUS" in line for line in own.errors()), "the keeper says what happened")
    assert front.gone()
    own.works()
    assert own.serving() != first
    assert own.process.poll() is None
    assert len([line for line in own.errors() if "SIGBUS" in line]) == 1
    front.close()
    loose.close()
    for left in (kick, fd):
        os.close(left)


def test_a_region_beyond_its_file_is_refused_before_it_is_touched(own: BackEnd) -> None:
    loose = Memory(1 << 20, sealed=False)
    front = own.connect(loose)
    front.negotiate()
    os.ftruncate(loose.fd, 4096)
    assert not front.acknowledged(Request.SET_MEM_TABLE, m.put_table([loose.region]), [loose.fd])
    assert "in a file of 4096 bytes" in own.errors()[-1]
    front.close()


def _lock(client: Client, fh: int, nodeid: int, owner: int, name: str) -> int:
    unique, pieces = client.pieces(name, nodeid, s.FUSE_LK_IN.struct.pack(fh, owner, 0, 9, 1, 1, 0))
    client.submit(pieces)
    return unique


def test_a_lock_that_waits_holds_nobody_up_and_ends_with_the_connection() -> None:
    with backend("--posix-lock") as own:
        (own.shared / "file").write_text("content")
        with own.front(2) as front:
            client = Client(front)
            client.init()
            nodeid = client.lookup(1, b"file")
            fh = client.open(nodeid, os.O_RDWR)
            taken = _lock(client, fh, nodeid, 1, "setlk")
            client.check(taken, client.ring.wait()[1])
            waiter = Client(front)
            waiting = _lock(waiter, fh, nodeid, 2, "setlkw")
            for _ in range(3):
                client.slot = client.new_slot()
                assert client.getattr(nodeid)["size"] == 7
            interrupt = Client(front, 0)
            unique, header = interrupt.header("interrupt", 0, 8)
            assert unique
            address = front.memory.put(header + struct.pack("=Q", waiting))
            front.rings[0].offer(front.rings[0].chain([(address, 48, False)]))
            os.eventfd_write(front.rings[0].kick, 1)
            assert client.ring.wait()[1] == 16
            answered = s.FUSE_OUT_HEADER.struct.unpack_from(front.memory.at(waiter.slot.reply, 16))
            assert answered == (16, -errno.EINTR, waiting)
            _lock(Client(front), fh, nodeid, 3, "setlkw")
        own.works()
