"""A front end of our own: guest memory in a memfd, split rings, descriptors over SCM_RIGHTS. Tests and bench drive it.

It is a virtual machine as far as a back end can tell: what a test wants to send, however wrong, it sends.
"""

import array
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

from passthrough.transport.vhost import messages as m
from passthrough.transport.vhost.messages import Request

WAIT_S = 20.0
GUEST_BASE = 0x10_0000
USER_BASE = 0x7F00_0000_0000
DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
FEATURES = m.VIRTIO_F_VERSION_1 | m.VIRTIO_RING_F_INDIRECT_DESC | m.VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL = m.PROTOCOL_F_MQ | m.PROTOCOL_F_REPLY_ACK | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS | m.PROTOCOL_F_RESET_DEVICE
F_SEAL_SHRINK, F_SEAL_GROW, F_ADD_SEALS = 2, 4, 1033

Piece = tuple[int, int, bool]
"""A descriptor: guest address, length, whether it is the device's to write."""


class BackendGoneError(Exception):
    """The back end has closed the connection."""


class Memory:
    """Guest memory, and an allocator that never frees."""

    def __init__(self, size: int = 64 << 20, *, sealed: bool = True) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if sealed:
            import fcntl

            fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        self.size = size
        self.map = mmap.mmap(self.fd, size)
        self.view = memoryview(self.map)
        self._next = 0

    @property
    def region(self) -> m.Region:
        return m.Region(GUEST_BASE, self.size, USER_BASE, 0)

    def take(self, size: int, align: int = 64) -> int:
        """The guest address of size fresh bytes."""
        at = -(-self._next // align) * align
        self._next = at + size
        assert self._next <= self.size, "guest memory is full"
        return GUEST_BASE + at

    def at(self, address: int, size: int) -> memoryview:
        return self.view[address - GUEST_BASE : address - GUEST_BASE + size]

    def put(self, data: bytes, align: int = 64) -> int:
        address = self.take(len(data), align)
        self.at(address, len(data))[:] = data
        return address

    def close(self) -> None:
        os.close(self.fd)


class Ring:
    """The driver's side of a split virtqueue."""

    def __init__(self, memory: Memory, size: int, *, event_idx: bool = False) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.descriptors = memory.take(16 * size, 4096)
        self.available = memory.take(6 + 2 * size, 4096)
        self.used = memory.take(6 + 8 * size, 4096)
        self.table = memory.at(self.descriptors, 16 * size)
        self.avail_words = memory.at(self.available, 6 + 2 * size).cast("H")
        self.used_words = memory.at(self.used, 6 + 8 * size).cast("H")
        self.used_view = memory.at(self.used, 6 + 8 * size)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.seen = 0
        self.kicks = self.offered = 0
        self.available_index = 0
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._poll = select.poll()
        self._poll.register(self.call, select.POLLIN)

    def write(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        """A descriptor, as it is given."""
        struct.pack_into("=QIHH", self.table, 16 * index, address, length, flags, following)

    def chain(self, pieces: Sequence[Piece]) -> int:
        """Put a chain into the table; its head."""
        indexes = [self._free.pop() for _ in pieces]
        for at, (index, (address, length, writable)) in enumerate(zip(indexes, pieces, strict=True)):
            last = at == len(pieces) - 1
            flags = (DESC_F_WRITE if writable else 0) | (0 if last else DESC_F_NEXT)
            self.write(index, address, length, flags, 0 if last else indexes[at + 1])
        self._chains[indexes[0]] = indexes
        return indexes[0]

    def indirect(self, pieces: Sequence[Piece], table: int | None = None) -> int:
        """The same through a table in memory; its head."""
        rows = [
            struct.pack(
                "=QIHH",
                address,
                length,
                (DESC_F_WRITE if writable else 0) | (DESC_F_NEXT if at < len(pieces) - 1 else 0),
                at + 1 if at < len(pieces) - 1 else 0,
            )
            for at, (address, length, writable) in enumerate(pieces)
        ]
        raw = b"".join(rows)
        address = self.memory.take(len(raw)) if table is None else table
        self.memory.at(address, len(raw))[:] = raw
        index = self._free.pop()
        self.write(index, address, len(raw), DESC_F_INDIRECT)
        self._chains[index] = [index]
        return index

    def offer(self, head: int) -> None:
        """Make a chain available, without a kick."""
        self.offered += 1
        self.avail_words[2 + self.available_index % self.size] = head
        self.available_index = (self.available_index + 1) & 0xFFFF
        self.avail_words[1] = self.available_index

    def notify(self, offered: int = 1) -> None:
        """Kick, unless the device asked not to be."""
        if self.event_idx:
            event = self.used_words[2 + 4 * self.size]
            new, old = self.available_index, (self.available_index - offered) & 0xFFFF
            if not (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF:
                return
        elif self.used_words[0] & 1:
            return
        self.kicks += 1
        os.eventfd_write(self.kick, 1)

    def take(self) -> tuple[int, int] | None:
        """(head, length) of the next used element, or None."""
        if self.used_words[1] == self.seen:
            return None
        head, length = struct.unpack_from("=II", self.used_view, 4 + 8 * (self.seen % self.size))
        self.seen = (self.seen + 1) & 0xFFFF
        self._free += reversed(self._chains.pop(head, []))
        return head, length

    def wait(self, timeout: float = WAIT_S) -> tuple[int, int]:
        """The next used element, waiting for the device's call."""
        while True:
            found = self.take()
            if found is not None:
                return found
            if self.event_idx:
                self.avail_words[2 + self.size] = self.seen
            found = self.take()  # it may have come before the event index was there
            if found is not None:
                return found
            if not self._poll.poll(timeout * 1000):
                raise TimeoutError("the device gives nothing back")
            try:
                os.eventfd_read(self.call)
            except BlockingIOError:
                pass

    def broken(self, timeout: float = WAIT_S) -> bool:
        """Whether the device says, through the error descriptor, that it stopped."""
        poll = select.poll()
        poll.register(self.err, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)


class FrontEnd:
    """A connection: messages, and the rings that were set up."""

    def __init__(self, path: str, memory: Memory | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        self.memory = memory or Memory()
        self.rings: list[Ring] = []
        self._lock = threading.Lock()

    # Messages

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        self.send_raw(m.message(request, payload, need_reply=need_reply), fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], rights)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise BackendGoneError from error

    def receive(self) -> tuple[int, bytes, list[int]]:
        """(request, payload, descriptors) of a reply."""
        raw, fds = self._exactly(m.HEADER_SIZE)
        request, flags, size = struct.unpack("=III", raw)
        assert flags & 0x7 == 5, f"flags {flags:#x}"
        payload, more = self._exactly(size) if size else (b"", [])
        return request, payload, fds + more

    def _exactly(self, size: int) -> tuple[bytes, list[int]]:
        data = b""
        fds: list[int] = []
        while len(data) < size:
            try:
                part, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(32))
            except ConnectionResetError as error:
                raise BackendGoneError from error
            for _, _, raw in ancillary:
                fds += array.array("i", raw)
            if not part:
                raise BackendGoneError
            data += part
        return data, fds

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        self.send(request, payload, fds)
        answered, found, _ = self.receive()
        assert answered == request
        return found

    def ask_u64(self, request: int) -> int:
        return m.read_u64(self.ask(request))

    def acknowledged(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send with NEED_REPLY; whether it was accepted."""
        self.send(request, payload, fds, need_reply=True)
        answered, found, _ = self.receive()
        assert answered == request
        return m.read_u64(found) == 0

    def order(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send, and it must be accepted."""
        assert self.acknowledged(request, payload, fds), Request(request).name

    # The customary beginning

    def negotiate(self, *, event_idx: bool = False, protocol: int = PROTOCOL, features: int = FEATURES) -> None:
        self.send(Request.SET_OWNER)
        offered = self.ask_u64(Request.GET_FEATURES)
        features |= m.VIRTIO_RING_F_EVENT_IDX if event_idx else 0
        assert features & ~offered == 0
        assert protocol & ~self.ask_u64(Request.GET_PROTOCOL_FEATURES) == 0
        self.send(Request.SET_PROTOCOL_FEATURES, m.put_u64(protocol))
        self.order(Request.SET_FEATURES, m.put_u64(features))

    def share_memory(self) -> None:
        self.order(Request.SET_MEM_TABLE, m.put_table([self.memory.region]), [self.memory.fd])

    def add_ring(self, size: int = 128, *, event_idx: bool = False, ring: Ring | None = None, base: int = 0) -> Ring:
        """Set up the next queue and start it."""
        index = len(self.rings)
        ring = ring or Ring(self.memory, size, event_idx=event_idx)
        self.rings.append(ring)
        self.start_ring(index, base)
        return ring

    def start_ring(self, index: int, base: int = 0) -> None:
        ring = self.rings[index]
        self.order(Request.SET_VRING_NUM, m.put_state(m.VringState(index, ring.size)))
        self.order(Request.SET_VRING_BASE, m.put_state(m.VringState(index, base)))
        self.order(Request.SET_VRING_ADDR, m.put_address(self.address_of(index)))
        for request, fd in (
            (Request.SET_VRING_CALL, ring.call),
            (Request.SET_VRING_ERR, ring.err),
            (Request.SET_VRING_KICK, ring.kick),
        ):
            self.order(request, m.put_u64(index), [fd])
        self.order(Request.SET_VRING_ENABLE, m.put_state(m.VringState(index, 1)))

    def address_of(self, index: int, log: int | None = None) -> m.VringAddress:
        ring = self.rings[index]
        return m.VringAddress(
            index,
            m.VRING_F_LOG if log is not None else 0,
            ring.descriptors - GUEST_BASE + USER_BASE,
            ring.used - GUEST_BASE + USER_BASE,
            ring.available - GUEST_BASE + USER_BASE,
            log or 0,
        )

    def stop_ring(self, index: int) -> int:
        return m.VringState(
            *struct.unpack("=II", self.ask(Request.GET_VRING_BASE, m.put_state(m.VringState(index, 0))))
        ).num

    def begin(self, request_queues: int = 1, *, size: int = 128, event_idx: bool = False, **more: Any) -> None:
        """Everything up to running rings: hiprio and so many request queues."""
        self.negotiate(event_idx=event_idx, **more)
        self.share_memory()
        for _ in range(1 + request_queues):
            self.add_ring(size, event_idx=event_idx)

    def gone(self) -> bool:
        """Whether the back end has closed the connection, waiting for it to."""
        try:
            self.receive()
        except BackendGoneError:
            return True
        return False

    def close(self) -> None:
        self.socket.close()
        for ring in self.rings:
            ring.close()
        self.rings.clear()
