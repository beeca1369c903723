"""FUSE requests through a front end's ring, cut the way Linux cuts them."""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from passthrough.protocol import constants as c
from passthrough.protocol import structs as s
from passthrough.protocol.operations import BY_NAME

from .frontend import FrontEnd, Memory, Piece, Ring

INIT_FLAGS = c.FUSE_MAX_PAGES | c.FUSE_BIG_WRITES | c.FUSE_ASYNC_READ | c.FUSE_INIT_EXT | c.FUSE_DO_READDIRPLUS


class ReplyError(OSError):
    """The server's -errno."""


@dataclass
class Slot:
    """Memory for one request in flight."""

    request: int
    data: int
    reply: int
    body: int
    table: int


class Client:
    """Sends requests on one queue. Not for several threads at once."""

    def __init__(self, front: FrontEnd, queue: int = 1, *, data_size: int = 1 << 20, indirect: bool = True) -> None:
        self.front = front
        self.queue = queue
        self.data_size = data_size
        self.indirect = indirect
        self._unique = itertools.count(2 + (queue << 32), 2)
        self.slot = self.new_slot()

    @property
    def memory(self) -> Memory:
        return self.front.memory

    @property
    def ring(self) -> Ring:
        return self.front.rings[self.queue]

    def new_slot(self) -> Slot:
        memory = self.memory
        return Slot(
            memory.take(8192, 4096),
            memory.take(self.data_size, 4096),
            memory.take(16),
            memory.take(8192),
            memory.take(4096),
        )

    def header(
        self, name: str, nodeid: int, size: int, *, uid: int = 0, gid: int = 0, extensions: int = 0
    ) -> tuple[int, bytes]:
        """extensions: how many of the size bytes are extensions, at the end."""
        unique = next(self._unique)
        length = c.IN_HEADER_SIZE + size
        opcode = BY_NAME[name].opcode
        return unique, s.FUSE_IN_HEADER.struct.pack(length, opcode, unique, nodeid, uid, gid, 1, extensions // 8)

    def pieces(
        self,
        name: str,
        nodeid: int,
        args: bytes,
        *,
        data: int = 0,
        out: int = 0,
        room: int = 0,
        slot: Slot | None = None,
        extensions: int = 0,
        uid: int = 0,
    ) -> tuple[int, list[Piece]]:
        """(unique, descriptors): data bytes of the slot follow the arguments; out bytes of body; room for data."""
        slot = slot or self.slot
        unique, header = self.header(name, nodeid, len(args) + data, uid=uid, gid=uid, extensions=extensions)
        raw = header + args
        self.memory.at(slot.request, len(raw))[:] = raw
        found: list[Piece] = [(slot.request, len(header), False)]
        if args:
            found.append((slot.request + len(header), len(args), False))
        if data:
            found.append((slot.data, data, False))
        found.append((slot.reply, c.OUT_HEADER_SIZE, True))
        if out:
            found.append((slot.body, out, True))
        if room:
            found.append((slot.data, room, True))
        return unique, found

    def submit(self, pieces: Sequence[Piece], slot: Slot | None = None) -> int:
        ring = self.ring
        if self.indirect and len(pieces) > 1:
            head = ring.indirect(pieces, (slot or self.slot).table)
        else:
            head = ring.chain(pieces)
        ring.offer(head)
        ring.notify()
        return head

    def call(
        self,
        name: str,
        nodeid: int = 1,
        args: bytes = b"",
        *,
        data: int = 0,
        out: int = 0,
        room: int = 0,
        extension: bytes = b"",
        uid: int = 0,
    ) -> memoryview:
        """One request; its reply's body (in guest memory). ReplyError where the server says so."""
        unique, pieces = self.pieces(
            name, nodeid, args + extension, data=data, out=out, room=room, extensions=len(extension), uid=uid
        )
        head = self.submit(pieces)
        used, length = self.ring.wait()
        assert used == head
        size = self.check(unique, length)
        return self.memory.at(self.slot.data if room else self.slot.body, size)

    def check(self, unique: int, length: int, slot: Slot | None = None) -> int:
        """The reply's header is what a new kernel takes; how long the body is."""
        size, error, answered = s.FUSE_OUT_HEADER.struct.unpack_from(self.memory.at((slot or self.slot).reply, 16))
        assert (answered, size) == (unique, length)
        if error:
            assert size == c.OUT_HEADER_SIZE
            raise ReplyError(-error, f"the server says {error}")
        return int(size) - c.OUT_HEADER_SIZE

    def setxattr(self, nodeid: int, name: bytes, value: bytes) -> None:
        """Without FUSE_SETXATTR_EXT."""
        self.call("setxattr", nodeid, struct.pack("=II", len(value), 0) + name + b"\0" + value)

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        args = s.FUSE_GETXATTR_IN.struct.pack(1 << 16) + name + b"\0"
        return self.call("getxattr", nodeid, args, room=1 << 16).tobytes()

    def listxattr(self, nodeid: int, size: int = 1 << 16) -> list[bytes]:
        body = self.call("listxattr", nodeid, s.FUSE_GETXATTR_IN.struct.pack(size), room=1 << 16).tobytes()
        return body.split(b"\0")[:-1]

    # What tests and bench ask for

    def init(self, flags: int = INIT_FLAGS, minor: int = c.FUSE_KERNEL_MINOR_VERSION) -> tuple[int, ...]:
        args = s.FUSE_INIT_IN.struct.pack(7, minor, 1 << 20, flags & 0xFFFFFFFF, flags >> 32)
        body = self.call("init", 0, args, out=s.FUSE_INIT_OUT.size)
        return s.FUSE_INIT_OUT.struct.unpack_from(body)

    def lookup(self, parent: int, name: bytes) -> int:
        body = self.call("lookup", parent, name + b"\0", out=s.FUSE_ENTRY_OUT.size)
        return int(struct.unpack_from("=Q", body)[0])

    def getattr(self, nodeid: int = 1) -> dict[str, int]:
        body = self.call("getattr", nodeid, s.FUSE_GETATTR_IN.struct.pack(0, 0), out=s.FUSE_ATTR_OUT.size)
        return dict(zip(s.FUSE_ATTR_OUT.fields, s.FUSE_ATTR_OUT.struct.unpack_from(body), strict=True))

    def open(self, nodeid: int, flags: int) -> int:
        body = self.call("open", nodeid, s.FUSE_OPEN_IN.struct.pack(flags, 0), out=s.FUSE_OPEN_OUT.size)
        return int(s.FUSE_OPEN_OUT.struct.unpack_from(body)[0])

    def create(self, parent: int, name: bytes, flags: int, mode: int = 0o644) -> tuple[int, int]:
        args = s.FUSE_CREATE_IN.struct.pack(flags, mode, 0o022, 0) + name + b"\0"
        body = self.call("create", parent, args, out=s.FUSE_ENTRY_OUT.size + s.FUSE_OPEN_OUT.size)
        entry = struct.unpack_from("=Q", body)[0]
        return entry, s.FUSE_OPEN_OUT.struct.unpack_from(body, s.FUSE_ENTRY_OUT.size)[0]

    def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes:
        return self.read_slot(nodeid, fh, offset, size).tobytes()

    def read_slot(self, nodeid: int, fh: int, offset: int, size: int) -> memoryview:
        return self.call("read", nodeid, s.FUSE_READ_IN.struct.pack(fh, offset, size, 0, 0, 0), room=size)

    def write(self, nodeid: int, fh: int, offset: int, data: bytes) -> int:
        self.memory.at(self.slot.data, len(data))[:] = data
        return self.write_slot(nodeid, fh, offset, len(data))

    def write_slot(self, nodeid: int, fh: int, offset: int, size: int) -> int:
        args = s.FUSE_WRITE_IN.struct.pack(fh, offset, size, 0, 0, 0)
        body = self.call("write", nodeid, args, data=size, out=s.FUSE_WRITE_OUT.size)
        return int(s.FUSE_WRITE_OUT.struct.unpack_from(body)[0])
