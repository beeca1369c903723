"""One request to one call to one reply: the only place where an OSError becomes -errno. Knows no transport.

A transport gives each request with a Channel (where the reply's body is put) and gets back the length of the body, a
negative errno, or None where nothing is to be answered now. A malformed request fails alone; StreamError, which only
read_header raises, tells the transport to halt that queue.
"""

import errno
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from . import calls, trace
from .calls import Call, Channel
from .filesystem import FileSystem, Kernel, failure
from .protocol import constants as c
from .protocol import structs as s
from .protocol.errors import RequestError
from .protocol.negotiation import Agreement, FeatureError, VersionError, Wishes, negotiate, put_init, read_init
from .protocol.operations import BY_NAME, BY_OPCODE, OPCODE_LIMIT, OPERATIONS, Out
from .protocol.requests import Header, read_extensions
from .protocol.values import Buffers, Context, FileLock
from .waiting import Waiters

log = logging.getLogger(__name__)

ERRNO_LIMIT = 512  # the kernel refuses a reply with a larger one (fuse_dev_do_write)
_COMPLAINTS = 100


def _negative(error: OSError) -> int:
    """-errno as the kernel takes it; an OSError may carry no number (None, a word) or one out of range."""
    number = error.errno
    return -number if isinstance(number, int) and 0 < number < ERRNO_LIMIT else -errno.EIO


class Server:
    """Serves one FileSystem to one session. Thread-safe: queues call handle side by side.

    owner, where given, is the one uid besides root that is served (allow_root): others get EACCES, but for what they
    may do with files that they already hold. After INIT either agreement is set, or failure says why there is none.
    """

    def __init__(
        self,
        fs: FileSystem,
        wishes: Wishes,
        *,
        kernel: Kernel | None = None,
        debug: Callable[[str], None] | None = None,
        owner: int | None = None,
    ) -> None:
        self._fs = fs
        self._wishes = wishes
        self._kernel = kernel
        self._debug = debug
        self._owner = owner
        self._complaints = itertools.count(1)
        self._waiters = Waiters()
        self._before: list[tuple[int, Call]] = [(0, _refuse)] * OPCODE_LIMIT
        self._before[BY_NAME["init"].opcode] = (0, self._init)
        self._calls = self._before
        self.agreement: Agreement | None = None
        self.failure: str | None = None

    # Requests

    def handle(self, header: Header, buffer: memoryview, channel: Channel) -> int | None:
        """A request that lies in one buffer, header first (header.len bytes, as read_header has checked)."""
        size, call = self._calls[header.opcode] if header.opcode < OPCODE_LIMIT else calls.UNKNOWN
        start = c.IN_HEADER_SIZE + size
        return self._run(call, header, buffer, c.IN_HEADER_SIZE, buffer, start, header.len, channel, None)

    def handle_split(
        self,
        header: Header,
        args: memoryview,
        payload: memoryview,
        payload_size: int,
        channel: Channel,
        data: Buffers | None = None,
    ) -> int | None:
        """A request in pieces: the opcode's struct in args, names and extensions in payload, WRITE's data in data."""
        size, call = self._calls[header.opcode] if header.opcode < OPCODE_LIMIT else calls.UNKNOWN
        if len(args) < size:
            payload_size = -1  # it ends before its struct does: refused as in one buffer
        return self._run(call, header, args, 0, payload, 0, payload_size, channel, data)

    def handle_apart(
        self, header: Header, rest: memoryview, channel: Channel, data: Buffers | None = None
    ) -> int | None:
        """A request whose header lies apart: the opcode's struct and what follows it in rest, WRITE's data in data."""
        size, call = self._calls[header.opcode] if header.opcode < OPCODE_LIMIT else calls.UNKNOWN
        return self._run(call, header, rest, 0, rest, size, len(rest), channel, data)

    def _run(
        self,
        call: Call,
        header: Header,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int | None:
        _, opcode, unique, nodeid, uid, gid, pid, extensions = header
        ctx = Context(unique, uid, gid, pid)
        extensions *= 8
        end -= extensions
        if self._debug:
            size = self._calls[opcode][0] if opcode < OPCODE_LIMIT else 0
            self._debug(trace.request_line(header, size, args, at, payload, start, end))
        result: int | None
        try:
            if end < start:
                raise RequestError(f"{header.len} bytes are too few")
            if self._owner is not None and uid not in (0, self._owner) and opcode not in _ANYBODY:
                raise failure(errno.EACCES)
            if extensions:
                ctx.groups, ctx.labels = read_extensions(payload, end, end + extensions)
            result = call(ctx, nodeid, args, at, payload, start, end, channel, data)
        except OSError as error:
            result = _negative(error)
        except (RequestError, OverflowError) as error:  # the latter: a number that fits no argument of its system call
            result = self._malformed(header, str(error))
        except MemoryError:
            result = -errno.ENOMEM
        except Exception:
            log.exception("a bug of ours: %s failed, the caller gets EIO", _name(header), extra={"request": unique})
            result = -errno.EIO
        if opcode in _NO_REPLY:
            result = None
        if self._debug:
            self._debug(trace.reply_line(unique, BY_OPCODE.get(opcode), result))
        return result

    def _malformed(self, header: Header, why: str) -> int | None:
        complaint = next(self._complaints)
        if complaint <= _COMPLAINTS:  # a peer that sends nothing else must not fill the log
            extra = {"request": header.unique}
            log.warning("request %d (%s) is malformed: %s", header.unique, _name(header), why, extra=extra)
        if complaint == _COMPLAINTS:
            log.warning("further malformed requests are answered and not logged")
        return None if header.opcode in _NO_REPLY else -errno.EINVAL

    # The session

    def _init(
        self,
        ctx: Context,
        nodeid: int,
        args: memoryview,
        at: int,
        payload: memoryview,
        start: int,
        end: int,
        channel: Channel,
        data: Buffers | None,
    ) -> int:
        # The struct's length depends on the peer's version, so the whole message counts as payload here.
        args, at, available = (args, at, end - at) if args is payload else (args, at, len(args) - at)
        offer = read_init(args, at, available)
        try:
            agreement = negotiate(offer, self._wishes)
        except (VersionError, FeatureError) as error:
            self.failure = str(error)
            raise failure(errno.EPROTO) from error
        if agreement is not None:
            self._begin(agreement)
        return put_init(channel.body, agreement, offer.minor)

    def _begin(self, agreement: Agreement) -> None:
        if self.agreement is not None:
            self._end()
        try:
            self._fs.init(agreement, self._kernel)
        except Exception as error:
            self.failure = f"the file system could not begin: {error}"
            raise
        self.agreement = agreement
        self.failure = None
        self._calls = self._table(agreement)

    def _end(self) -> None:
        self._calls = self._before
        self.agreement = None
        self._waiters.close()
        self._waiters = Waiters()
        self._fs.destroy()

    def _destroy(self, *_: Any) -> int:
        self._end()
        return 0

    def interrupt_waiting(self) -> None:
        """End the requests that wait for a lock: the session is about to end."""
        self._waiters.close()

    def restart_waiting(self) -> None:
        """The same, and the session may go on: its door was shut for a while."""
        self._waiters.close()
        self._waiters = Waiters()
        if self.agreement is not None:
            self._calls = self._table(self.agreement)

    def close(self) -> None:
        """The door is shut (unmounted, aborted): end what waits and tell the file system, if DESTROY did not."""
        if self.agreement is not None:
            self._end()

    # The table of calls

    def _table(self, agreement: Agreement) -> list[tuple[int, Call]]:
        """What the file system serves, and what is the session's own affair."""
        table = calls.table(self._fs, agreement)
        table[BY_NAME["init"].opcode] = (0, self._init)
        table[BY_NAME["destroy"].opcode] = (0, self._destroy)
        table[BY_NAME["interrupt"].opcode] = (s.FUSE_INTERRUPT_IN.size, self._interrupt)
        table[BY_NAME["setlkw"].opcode] = (s.FUSE_LK_IN.size, partial(_setlkw, self._fs, self._waiters))
        return table

    def _interrupt(self, ctx: Context, nodeid: int, args: memoryview, at: int, *_: Any) -> None:
        (unique,) = s.FUSE_INTERRUPT_IN.struct.unpack_from(args, at)
        self._waiters.interrupt(unique)


def _name(header: Header) -> str:
    operation = BY_OPCODE.get(header.opcode)
    return operation.name.upper() if operation else f"opcode {header.opcode}"


def _refuse(*_: Any) -> int:
    """Before INIT nothing is served."""
    return -errno.EIO


_NO_REPLY = frozenset(row.opcode for row in OPERATIONS if row.out is Out.NO_REPLY)
_HELD = (
    "init read write flush fsync release lseek fallocate copy_file_range copy_file_range_64 getlk setlk setlkw"
    " readdir readdirplus fsyncdir releasedir destroy"
)
_ANYBODY = _NO_REPLY | {BY_NAME[name].opcode for name in _HELD.split()}


def _setlkw(
    fs: FileSystem,
    waiters: Waiters,
    ctx: Context,
    nodeid: int,
    args: memoryview,
    at: int,
    payload: memoryview,
    start: int,
    end: int,
    channel: Channel,
    data: Buffers | None,
) -> int | None:
    fh, owner, first, last, kind, pid, flags = s.FUSE_LK_IN.struct.unpack_from(args, at)
    lock = FileLock(first, last, kind, pid)
    try:
        fs.setlk(ctx, nodeid, fh, owner, lock, flags, False)
        return 0
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise

    def work() -> int:
        try:
            fs.setlk(ctx, nodeid, fh, owner, lock, flags, True)
        except OSError as error:
            return _negative(error)
        except MemoryError:
            return -errno.ENOMEM
        except Exception:
            log.exception("a bug of ours: SETLKW failed, the caller gets EIO")
            return -errno.EIO
        return 0

    waiters.start(ctx, work, channel.defer(ctx.unique))
    return None
