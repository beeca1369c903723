"""Chains to requests and back: the one file that knows both FUSE and virtqueues.

A chain is a request (fuse_in_header, the opcode's struct, names, WRITE's data) and room for its reply (fuse_out_header,
body, READ's data), cut anywhere (virtio 1.3, 5.11.6). Data moves between the file and the guest's memory by one
preadv or pwritev; all else is small, and copied before it is looked at, so that no guest can change it under us.
"""

import errno
import itertools
import logging
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from struct import Struct

from ...protocol.constants import IN_HEADER_SIZE, OUT_HEADER_SIZE
from ...protocol.errors import RequestError
from ...protocol.operations import BY_NAME, OPERATIONS, Out
from ...protocol.replies import put_header
from ...protocol.requests import Header
from ...protocol.structs import FUSE_IN_HEADER, FUSE_WRITE_IN
from ...protocol.values import Answer, Buffers, FileRange
from ...server import Server
from .queue import Queue
from .vring import Chain

log = logging.getLogger(__name__)

_WRITE = BY_NAME["write"].opcode
_NO_REPLY = frozenset(row.opcode for row in OPERATIONS if row.out is Out.NO_REPLY)
SLOW = frozenset(
    BY_NAME[name].opcode
    for name in ("fsync", "fsyncdir", "syncfs", "fallocate", "copy_file_range", "copy_file_range_64")
)
"""Requests that may take long: helpers do them, so that the queue goes on."""
_REST_LIMIT = 1 << 20
"""The most bytes of a request besides WRITE's data; the largest that Linux sends is a SETXATTR of 64 KiB."""
_COMPLAINTS = 100
_unpack_header: Callable[[bytes], tuple[int, ...]] = FUSE_IN_HEADER.struct.unpack
_pack_header = Struct("=IiQ").pack
_new_tuple = tuple.__new__
_NOTHING = memoryview(b"")
_SMALL_BODY = 1 << 16


class _Reply:
    """The Channel of one request: where its reply's body goes."""

    __slots__ = ("_chain", "_queue", "body", "deferred", "pulled")

    def __init__(self, body: memoryview) -> None:
        self.body = body

    def begin(self, chain: Chain, queue: Queue) -> None:
        """The next request."""
        self._chain = chain
        self._queue = queue
        self.pulled = self.deferred = False

    def pull(self, source: FileRange) -> int:
        """One preadv from the file to the guest's memory."""
        self.pulled = True
        return os.preadv(source.fd, _room(self._chain.writable, source.size), source.offset)

    def keep(self, unique: int) -> tuple[memoryview, Answer]:
        """The body goes to memory of its own, and to the guest's when it is answered."""
        chain, queue = self._chain, self._queue
        room = memoryview(bytearray(len(self.body)))
        queue.lend(chain)
        self.deferred = True
        return room, lambda length: queue.complete(chain, _answer(chain.writable, unique, length, room))

    def defer(self, unique: int) -> Callable[[int], None]:
        """Whoever waits answers; the chain stays with the guest until then."""
        chain, queue = self._chain, self._queue
        queue.lend(chain, waits=True)
        self.deferred = True
        return lambda error: queue.complete(chain, _answer(chain.writable, unique, error, _NOTHING))


class VirtioFs:
    """Serves chains out of all queues with one Server."""

    def __init__(self, server: Server, payload: int, helpers: ThreadPoolExecutor | None) -> None:
        """payload: the most bytes that READ or READDIR may bring; helpers: who does what may take long, if anybody."""
        self.server = server
        self._payload = max(payload, _SMALL_BODY)
        self._helpers = helpers
        self._complaints = itertools.count(1)

    def for_queue(self) -> Callable[[Chain, Queue], int | None]:
        """What serves one queue's chains, one after the other, with a buffer of its own."""
        reply = _Reply(memoryview(mmap.mmap(-1, self._payload)))
        return lambda chain, queue: self._serve(chain, queue, reply)

    def _serve(self, chain: Chain, queue: Queue, reply: _Reply) -> int | None:
        parts = chain.readable
        if len(parts) == 2 and len(parts[0]) == IN_HEADER_SIZE:
            header = _new_tuple(Header, _unpack_header(parts[0].tobytes()))
            size = IN_HEADER_SIZE + len(parts[1])
            if header.opcode != _WRITE and size == header.len and size <= _REST_LIMIT:
                rest = memoryview(parts[1].tobytes())
                return self._dispatch(chain, queue, reply, header, rest, None)
        return self._serve_parts(chain, queue, reply)

    def _serve_parts(self, chain: Chain, queue: Queue, reply: _Reply) -> int | None:
        """The general way: cut anywhere, or with data."""
        raw, parts = _take(chain.readable, IN_HEADER_SIZE)
        if len(raw) < IN_HEADER_SIZE:
            self._complain(f"a request of {len(raw)} bytes")
            return 0
        header = _new_tuple(Header, _unpack_header(raw))
        total = IN_HEADER_SIZE + sum(map(len, parts))
        data: Buffers | None = None
        if header.opcode == _WRITE:
            raw, data = _take(parts, FUSE_WRITE_IN.size)
        elif total <= _REST_LIMIT:
            raw = b"".join(parts)
        if total != header.len or (data is None and total > _REST_LIMIT):
            self._complain(f"request {header.unique} says {header.len} bytes, {total} came")
            if header.opcode in _NO_REPLY or not _has_room(chain.writable):
                return 0
            return _answer(chain.writable, header.unique, -errno.EINVAL, _NOTHING)
        return self._dispatch(chain, queue, reply, header, memoryview(raw), data)

    def _dispatch(
        self, chain: Chain, queue: Queue, reply: _Reply, header: Header, rest: memoryview, data: Buffers | None
    ) -> int | None:
        opcode = header.opcode
        if opcode in _NO_REPLY:
            reply.begin(chain, queue)
            self.server.handle_apart(header, rest, reply, data)
            return 0
        if not _has_room(chain.writable):
            self._complain(f"request {header.unique} has no room for a reply")
            return 0
        if opcode in SLOW and self._helpers is not None:
            queue.lend(chain)
            self._helpers.submit(self._help, chain, queue, header, rest)
            return None
        reply.begin(chain, queue)
        result = self.server.handle_apart(header, rest, reply, data)
        if result is None:
            return None
        if reply.deferred:  # it could not wait: answered here and now
            queue.take_back(chain)
        return _answer(chain.writable, header.unique, result, _NOTHING if reply.pulled else reply.body)

    def _help(self, chain: Chain, queue: Queue, header: Header, rest: memoryview) -> None:
        reply = _Reply(memoryview(bytearray(_SMALL_BODY)))
        reply.begin(chain, queue)
        result = self.server.handle_apart(header, rest, reply)
        assert result is not None  # no slow request waits for a lock
        queue.complete(chain, _answer(chain.writable, header.unique, result, reply.body))

    def _complain(self, why: str) -> None:
        complaint = next(self._complaints)
        if complaint <= _COMPLAINTS:
            log.warning("malformed: %s", why)
        if complaint == _COMPLAINTS:
            log.warning("further malformed requests are not logged")


def _answer(writable: list[memoryview], unique: int, result: int, body: memoryview) -> int:
    """Put the reply's header, and the body where it is not there yet; the bytes that were written."""
    error, size = (0, OUT_HEADER_SIZE + result) if result >= 0 else (result, OUT_HEADER_SIZE)
    if body and result > 0:
        first = writable[0]
        if len(first) == OUT_HEADER_SIZE and len(writable) > 1 and len(writable[1]) >= result:
            writable[1][:result] = body[:result]
        elif not _scatter(writable, OUT_HEADER_SIZE, body[:result]):
            error, size = -errno.EIO, OUT_HEADER_SIZE  # the guest left too little room
    if len(writable[0]) >= OUT_HEADER_SIZE:
        put_header(writable[0], 0, size, error, unique)
    else:
        _scatter(writable, 0, memoryview(_pack_header(size, error, unique)))
    return size


def _has_room(writable: list[memoryview]) -> bool:
    """Whether a reply's header fits."""
    return bool(writable) and (len(writable[0]) >= OUT_HEADER_SIZE or _length(writable) >= OUT_HEADER_SIZE)


def _length(parts: list[memoryview]) -> int:
    return sum(map(len, parts))


def _take(parts: list[memoryview], size: int) -> tuple[bytes, list[memoryview]]:
    """(a copy of the first size bytes, or of fewer where there are no more; the parts that follow)."""
    if parts and len(parts[0]) == size:
        return parts[0].tobytes(), parts[1:]
    found = b""
    for at, part in enumerate(parts):
        missing = size - len(found)
        found += part[:missing]
        if len(found) == size:
            rest = [part[missing:]] if len(part) > missing else []
            return found, rest + parts[at + 1 :]
    return found, []


def _room(writable: list[memoryview], size: int) -> list[memoryview]:
    """The first size bytes behind the reply's header. RequestError where the guest left less."""
    found: list[memoryview] = []
    skip = OUT_HEADER_SIZE
    left = size
    for part in writable:
        if skip >= len(part):
            skip -= len(part)
            continue
        if skip:
            part, skip = part[skip:], 0
        if len(part) >= left:
            found.append(part[:left])
            return found
        found.append(part)
        left -= len(part)
    if left:
        raise RequestError(f"a reply of {size} bytes has no room: {left} are missing")
    return found


def _scatter(writable: list[memoryview], at: int, data: memoryview) -> bool:
    """Put data into the parts from byte `at` on; False where it does not fit, and nothing was put."""
    if at + len(data) > _length(writable):
        return False
    for part in writable:
        if at >= len(part):
            at -= len(part)
            continue
        count = min(len(part) - at, len(data))
        part[at : at + count] = data[:count]
        data, at = data[count:], 0
        if not data:
            break
    return True
