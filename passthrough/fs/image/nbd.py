"""An image in an NBD server: qemu-nbd, nbdkit, Ceph's, any that speaks the protocol; through libnbd.

Each request goes to the connection that has the fewest in flight. What the server cannot do is done without: zeros are
written, and where there is no base:allocation all is data.
"""

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import nbd

from ...filesystem import failure
from ...protocol.values import Answer, Buffers, Later
from .aligned import Aligned
from .connection import Attach, Connection, Issue, Request
from .source import BlockSource, CacheMode, Extent, ImageError, count_data

_MOST = 1 << 30
"""Zeroing and asking in pieces of this many bytes: lengths have 32 bits."""
_LARGEST = 32 << 20  # of a read or write, where the server does not say (proto.md, "Block size constraints")
_ZEROS = bytes(1 << 20)
_COUNT_S = 1.0
_SMALL = 1 << 16  # a socket takes that at once, unless others are before it


class NbdSource(BlockSource):
    """An export of an NBD server. Its length is fixed."""

    def __init__(
        self,
        attach: Attach,
        *,
        writable: bool,
        cache: CacheMode = CacheMode.WRITEBACK,
        connections: int = 1,
        reconnect_s: float | None = None,
        confine: Callable[[], None] = lambda: None,
    ) -> None:
        """attach connects a fresh handle; nbd.Error where the first one cannot be, ImageError for what it leads to.
        confine is called when the connections that are made later are made from inside a sandbox."""
        handle = nbd.NBD()
        attach(handle)
        self._confine = confine
        self._size: int = handle.get_size()
        self.alignment = max(1, handle.get_block_size(nbd.SIZE_MINIMUM))
        self.optimal = max(4096, handle.get_block_size(nbd.SIZE_PREFERRED))
        self._largest = handle.get_block_size(nbd.SIZE_MAXIMUM) or _LARGEST
        self._read_only = handle.is_read_only()
        if writable and self._read_only:
            handle.shutdown()
            raise ImageError("the NBD server has it read-only")
        self.writable = writable
        self._cache = cache
        self._can_flush, self._can_zero, self._can_fua = handle.can_flush(), handle.can_zero(), handle.can_fua()
        self._has_status = handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self._counted = (-_COUNT_S, 0)
        count = connections if handle.can_multi_conn() else 1
        self._connections = [Connection(handle, attach, self._differs, reconnect_s)]
        try:
            for _ in range(count - 1):
                another = nbd.NBD()
                attach(another)
                self._connections.append(Connection(another, attach, self._differs, reconnect_s))
        except nbd.Error:
            pass  # fewer, then: the server has a limit

    def _differs(self, handle: Any) -> str | None:
        """Why a new connection is not to the export that we had, or None."""
        if handle.get_size() != self._size:
            return f"it has {handle.get_size()} bytes and had {self._size}"
        if self.writable and handle.is_read_only():
            return "it is read-only now"
        return None

    @property
    def size(self) -> int:
        """As the server said at the beginning."""
        return self._size

    def _start(self, issue: Issue, done: Callable[[int], None], size: int = 0) -> None:
        connections = self._connections
        chosen = connections[0] if len(connections) == 1 else min(connections, key=_load)
        chosen.submit(Request(issue, done, large=size > _SMALL))

    def _ask(self, issue: Issue, size: int = 0) -> None:
        """Start a request and wait for it. OSError with the server's errno."""
        finished = threading.Event()
        result: list[int] = []

        def done(number: int) -> None:
            result.append(number)
            finished.set()

        self._start(issue, done, size)
        finished.wait()
        if result[0]:
            raise failure(result[0])

    def read(self, offset: int, size: int) -> Later:
        """Straight into the reply; the thread that asks goes on."""
        if size > self._largest:
            return Later(lambda room, answer: answer(self.read_into(offset, room)))

        def begin(room: memoryview, answer: Answer) -> None:
            target = room[:size]
            self._start(
                _reading(target, offset),
                lambda number: answer(-number if number else size),
            )

        return Later(begin)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """In pieces that the server takes."""
        done, total = 0, len(buffer)
        while done < total:
            part, at = buffer[done : done + self._largest], offset + done
            self._ask(_reading(part, at))
            done += len(part)
        return total

    def write(self, offset: int, data: Buffers) -> int | Later:
        """Straight out of the request."""
        total = sum(map(len, data))
        if total > self._largest or (self._cache.through and not self._can_fua):
            return self.write_from(offset, data)
        source = data[0] if len(data) == 1 else b"".join(data)
        flags = nbd.CMD_FLAG_FUA if self._cache.through else 0

        def begin(room: memoryview, answer: Answer) -> None:
            self._start(
                _writing(source, offset, flags),
                lambda number: answer(-number if number else total),
                total,
            )

        return Later(begin)

    def write_from(self, offset: int, data: Buffers) -> int:
        """In pieces that the server takes."""
        done = 0
        for whole in data:
            for first in range(0, len(whole), self._largest):
                part, at = whole[first : first + self._largest], offset + done
                self._ask(_writing(part, at), len(part))
                done += len(part)
        if self._cache.through:
            self.flush()
        return done

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """WRITE_ZEROES, or zeros written."""
        flags = 0 if unmap else nbd.CMD_FLAG_NO_HOLE
        end = offset + length
        while offset < end:
            count = min(end - offset, _MOST if self._can_zero else min(len(_ZEROS), self._largest))
            if self._can_zero:
                self._ask(_zeroing(count, offset, flags))
            else:
                self._ask(_writing(memoryview(_ZEROS)[:count], offset), count)
            offset += count
        if self._cache.through:
            self.flush()

    def flush(self) -> None:
        """Covers what was written by all connections: that is what multi-conn promises."""
        if self._can_flush and self._cache is not CacheMode.UNSAFE:
            self._ask(lambda handle, completion: handle.aio_flush(completion))

    def finish(self) -> None:
        """As flush(), and requests that wait for a server that is gone fail now."""
        for connection in self._connections:
            connection.give_up()
        self.flush()

    def status(self, offset: int, length: int) -> Extent:
        """By base:allocation: what the server says reads as zeros. Alike neighbours are one."""
        if not self._has_status:
            return Extent(length, True)
        found: list[int] = []

        def take(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
            found[:] = entries
            return 0

        length = min(length, _MOST)
        self._ask(lambda handle, completion: handle.aio_block_status(length, offset, take, completion))
        if not found or not found[0]:
            raise failure(errno.EIO)
        size, zero, at = 0, found[1] & nbd.STATE_ZERO, 0
        while at < len(found) and found[at + 1] & nbd.STATE_ZERO == zero:
            size += found[at]
            at += 2
        return Extent(min(size, length), not zero)

    def allocated(self) -> int:
        """What the server says is data, asked at most once a second: programs look for holes where this is less."""
        now = time.monotonic()
        if now >= self._counted[0] + _COUNT_S:
            self._counted = now, count_data(self) if self._has_status else self._size
        return self._counted[1]

    def park(self) -> None:
        """Of every connection."""
        self._confine()
        for connection in self._connections:
            connection.park()

    def close(self) -> None:
        """Goodbye to the server."""
        for connection in self._connections:
            connection.close()


def _reading(target: memoryview, offset: int) -> Issue:
    return lambda handle, completion: handle.aio_pread(target, offset, completion)


def _writing(source: memoryview | bytes, offset: int, flags: int = 0) -> Issue:
    return lambda handle, completion: handle.aio_pwrite(source, offset, completion, flags)


def _zeroing(count: int, offset: int, flags: int) -> Issue:
    return lambda handle, completion: handle.aio_zero(count, offset, completion, flags)


def _load(connection: Connection) -> int:
    return connection.load


class ByUri:
    """Connects to a URI (the NBD project's uri.md), with block status asked for; once confined, to `again`, by which
    the same server is reached from inside."""

    def __init__(self, uri: str, again: str) -> None:
        self._uri = uri
        self._again = again

    def __call__(self, handle: Any) -> None:
        """Connect a fresh handle."""
        _prepare(handle)
        handle.connect_uri(self._uri)

    def confine(self) -> None:
        """From now on."""
        self._uri = self._again


def attach_socket(path: str) -> Attach:
    """Connect to a unix socket's unnamed export."""

    def attach(handle: Any) -> None:
        _prepare(handle)
        handle.connect_unix(path)

    return attach


def _prepare(handle: Any) -> None:
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_uri_allow_local_file(True)
    handle.set_pread_initialize(False)
    # Bounds and alignment are seen to here, and a server may have become another one meanwhile.
    handle.set_strict_mode(nbd.STRICT_COMMANDS | nbd.STRICT_FLAGS)


def connect(
    uri: str, again: str, *, writable: bool, cache: CacheMode, connections: int, reconnect_s: float
) -> BlockSource:
    """The export that a URI names, found by `again` once it is parked. ImageError where it cannot be had."""
    if cache.direct:
        raise ImageError(
            f"{uri}: how an NBD server caches is its own affair: --cache=writeback, writethrough or unsafe"
        )
    attach = ByUri(uri, again)
    try:
        source = NbdSource(
            attach,
            writable=writable,
            cache=cache,
            connections=connections,
            reconnect_s=reconnect_s,
            confine=attach.confine,
        )
    except nbd.Error as error:
        raise ImageError(f"{uri}: {error.string}") from error
    except ImageError as error:
        raise ImageError(f"{uri}: {error}") from error
    return source if source.alignment == 1 else Aligned(source)
