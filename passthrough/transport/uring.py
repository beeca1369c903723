"""FUSE over io_uring (7.42, Linux 6.14): a request is answered on the CPU that asked.

One queue, one ring and one thread per possible CPU, pinned to it where this process may run there (a hot-plugged,
offline or forbidden CPU has its queue all the same: the kernel switches over only when every queue has an entry, and
sends a request to the queue of the CPU it was made on). One system call answers a request and waits for the next.
INIT, FORGET, INTERRUPT and notifications stay on /dev/fuse, which devfuse serves.

A queue's thread does one request at a time, so what may take long is given to helpers, and locks wait in threads of
their own. Each such request keeps its entry; another is registered in its place, or a queue full of waiting locks could
not hear of the unlock.
"""

import errno
import logging
import mmap
import os
import select
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from struct import Struct

from ..protocol.constants import FUSE_MIN_READ_BUFFER, FUSE_URING_IN_OUT_HEADER_SZ, OUT_HEADER_SIZE
from ..protocol.operations import BY_NAME
from ..protocol.replies import put_header
from ..protocol.requests import Header
from ..protocol.structs import FUSE_IN_HEADER, FUSE_URING_REQ_HEADER
from ..protocol.values import Answer, FileRange
from ..server import Server
from . import ring
from .ring import OP_POLL_ADD, OP_URING_CMD, SQE_SIZE, Ring, address_of
from .turns import Turn, Turns

log = logging.getLogger(__name__)

_PARAMETER = "/sys/module/fuse/parameters/enable_uring"
ENTRIES = 4
"""Entries per queue to begin with: requests that the kernel may hand over before one is answered."""
_SLOTS = 512  # entries at most, and one slot for the wake-up
_WAKE_SLOT = _SLOTS - 1
_REGISTER, _COMMIT_AND_FETCH = 1, 2
_OVER = frozenset({-errno.ENOTCONN, -errno.ECANCELED, -errno.ENODEV, -errno.ECONNABORTED})
_SLOW = frozenset(
    BY_NAME[name].opcode
    for name in ("fsync", "fsyncdir", "syncfs", "fallocate", "copy_file_range", "copy_file_range_64")
)

# struct io_uring_sqe of 128 bytes: opcode, fd, cmd_op, addr, len, user_data; then fuse_uring_cmd_req at 48
_sqe = Struct("=BBHiI4xQIIQ8xQQH")
_poll_sqe = Struct("=BBHiQQIIQ")
_iovecs = Struct("=QQQQ")
_new_tuple = tuple.__new__
_pack_commit_id = Struct("=Q").pack_into
_pack_size = Struct("=I").pack_into
_OP_IN = FUSE_URING_IN_OUT_HEADER_SZ
_READ = BY_NAME["read"].opcode
_read_size = Struct("=16xI").unpack_from  # of struct fuse_read_in
_MUCH = 64 << 10
_COMMIT_ID = 2 * FUSE_URING_IN_OUT_HEADER_SZ + 8
_PAYLOAD_SIZE = _COMMIT_ID + 8
# fuse_in_header, and commit_id and payload_sz of fuse_uring_ent_in_out, in one go
_unpack_request = Struct(f"{FUSE_IN_HEADER.struct.format}{_COMMIT_ID - FUSE_IN_HEADER.size}xQI").unpack_from
_SQE_COMMIT_ID = 56
_PAGE = mmap.PAGESIZE


def possible_cpus() -> list[int]:
    """The CPUs that this machine may ever have: the kernel makes a queue for each."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return parse_cpus(file.read())


def parse_cpus(text: str) -> list[int]:
    """A list of CPUs in the kernel's form, such as 0-3,8."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def unavailable() -> str | None:
    """None where FUSE over io_uring can be used; else why not, and what to set."""
    try:
        with open(_PARAMETER, encoding="ascii") as file:
            enabled = file.read().strip() == "Y"
    except OSError:
        return "this kernel has no FUSE over io_uring: Linux 6.14 or newer, with CONFIG_FUSE_IO_URING"
    return ring.unavailable() if enabled else f"it is switched off; as root: echo Y > {_PARAMETER}"


def _moves_much(header: Header, entry: "_Entry", size: int) -> bool:
    """Whether the request is a READ or a WRITE whose system call takes longer than the rest."""
    if header[1] == _READ:
        (size,) = _read_size(entry.args)
    return size >= _MUCH


class _Entry:
    """Memory for one request and its reply, and the Channel of that request."""

    __slots__ = ("_queue", "args", "body", "commit_at", "header", "iovecs", "memory", "slot", "unique")

    def __init__(self, queue: "UringQueue", slot: int, payload: int) -> None:
        self._queue = queue
        self.slot = slot
        self.unique = 0
        self.commit_at = slot * SQE_SIZE + _SQE_COMMIT_ID
        self.memory = mmap.mmap(-1, _PAGE + payload)
        base = address_of(self.memory)
        self.iovecs = mmap.mmap(-1, _PAGE)
        self.iovecs[: _iovecs.size] = _iovecs.pack(base, FUSE_URING_REQ_HEADER.size, base + _PAGE, payload)
        view = memoryview(self.memory)
        self.header = view[: FUSE_URING_REQ_HEADER.size]
        self.args = view[_OP_IN : 2 * _OP_IN]
        self.body = view[_PAGE:]

    def pull(self, source: FileRange) -> int:
        """One preadv from the file to where the kernel takes the reply from."""
        return os.preadv(source.fd, (self.body[: source.size],), source.offset)

    def keep(self, unique: int) -> tuple[memoryview, Answer]:
        """The entry is this request's own until it is answered."""
        return self.body, lambda length: self._queue.hand_back(self, length)

    def defer(self, unique: int) -> Callable[[int], None]:
        """The queue's own thread gives the answer: a ring has one submitter."""
        return lambda error: self._queue.hand_back(self, error)


class UringQueue:
    """The queue of one CPU. `idle` while its thread waits; `failure` says why it could not serve."""

    def __init__(
        self, fd: int, cpu: int, server: Server, payload: int, helpers: ThreadPoolExecutor, turns: Turns
    ) -> None:
        self.idle = True
        self._turn = Turn(turns)
        self.failure: str | None = None
        self._fd = fd
        self.cpu = cpu
        self._server = server
        self._payload = -(-max(payload, FUSE_MIN_READ_BUFFER) // _PAGE) * _PAGE  # the kernel wants max_pages of them
        self._helpers = helpers
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._answers: deque[tuple[_Entry, int]] = deque()
        self._entries: list[_Entry] = []
        self._alive = 0  # entries that the kernel has, or that a request has
        self._serving = False
        self._stopping = False
        self._out = 0  # entries whose request is with a helper or waits for a lock

    def run(self, registered: Callable[[], None]) -> None:
        """Serve until the mount is gone. registered() is called when the first entries were submitted, or cannot be."""
        made: Ring | None = None
        try:
            self._pin()
            self._ring = made = Ring(_SLOTS)
            self._slots = self._ring.slots
            self._watch_wake()
            for _ in range(ENTRIES):
                self._register()
            self._ring.enter(0)
            for slot, result in self._ring.completions():  # a refusal comes at once; so may a first request
                self._completed(slot, result)
        except OSError as error:
            self.failure = f"FUSE over io_uring, queue {self.cpu}: {error.strerror}"
        finally:
            registered()
        try:
            if self.failure is None:
                self._serving = True
                self._loop()
        finally:
            self._turn.give()
            if made is not None:
                made.close()

    def _pin(self) -> None:
        """To its CPU, where whoever started us lets us run there and it is online; else it floats."""
        if self.cpu not in os.sched_getaffinity(0):
            log.debug("queue %d: this process is kept from that CPU", self.cpu)
            return
        try:
            os.sched_setaffinity(0, {self.cpu})
        except OSError as error:
            log.debug("queue %d: %s", self.cpu, error.strerror)

    def _loop(self) -> None:
        take, serve, entries, turn = self._ring.take, self._serve, self._entries, self._turn
        while self._alive and not self._stopping:
            if turn.held and turn.goes_on():
                soon = self._ring.take_soon()
                if soon is None:
                    turn.give()
                    continue
                slot, result = soon
            else:
                slot, result = take()
                self.idle = False
                turn.take()
            self.idle = False
            if result == 0 and slot != _WAKE_SLOT:
                serve(entries[slot])
            else:
                self._completed(slot, result)
            self.idle = self._out == 0

    def _completed(self, slot: int, result: int) -> None:
        if slot == _WAKE_SLOT:
            self._take_answers()
        elif result == 0:
            self._serve(self._entries[slot])
        else:
            self._ended(result)

    def _ended(self, result: int) -> None:
        self._alive -= 1
        if result not in _OVER and self.failure is None:
            self.failure = f"FUSE over io_uring, queue {self.cpu}: {os.strerror(-result)}"
            if self._serving:  # else it is for whoever mounts to say
                log.error("%s; this queue halts", self.failure)

    def _serve(self, entry: _Entry) -> None:
        facts = _unpack_request(entry.header)
        header = _new_tuple(Header, facts[:-2])
        commit_id, size = facts[-2:]
        entry.unique = header[2]
        _pack_commit_id(self._slots, entry.commit_at, commit_id)
        if header[1] in _SLOW and len(self._entries) < _SLOTS // 2:
            self._helpers.submit(self._help, entry, header, size)
            self._taken_out()
            return
        if self._turn.wanted and _moves_much(header, entry, size):
            self._turn.give()
        length = self._server.handle_split(header, entry.args, entry.body, size, entry)
        if length is not None:
            self._commit(entry, length)
        else:
            self._taken_out()

    def _help(self, entry: _Entry, header: Header, size: int) -> None:
        length = self._server.handle_split(header, entry.args, entry.body, size, entry)
        self.hand_back(entry, -errno.EIO if length is None else length)

    def _commit(self, entry: _Entry, length: int) -> None:
        header = entry.header
        if length >= 0:
            put_header(header, 0, OUT_HEADER_SIZE + length, 0, entry.unique)
            _pack_size(header, _PAYLOAD_SIZE, length)
        else:
            put_header(header, 0, OUT_HEADER_SIZE, length, entry.unique)
            _pack_size(header, _PAYLOAD_SIZE, 0)
        self._ring.queue(entry.slot)

    # Entries

    def _register(self) -> None:
        slot = len(self._entries)
        entry = _Entry(self, slot, self._payload)
        self._entries.append(entry)
        self._alive += 1
        self._ring.write(
            slot,
            _sqe.pack(OP_URING_CMD, 0, 0, self._fd, _REGISTER, address_of(entry.iovecs), 2, 0, slot, 0, 0, self.cpu),
        )
        self._ring.queue(slot)
        self._ring.enter(0)
        self._ring.write(
            slot, _sqe.pack(OP_URING_CMD, 0, 0, self._fd, _COMMIT_AND_FETCH, 0, 0, 0, slot, 0, 0, self.cpu)
        )

    def _taken_out(self) -> None:
        """A request keeps its entry for long: another is registered in its place."""
        self._out += 1
        if self._alive - self._out < ENTRIES and len(self._entries) < _WAKE_SLOT:
            self._register()

    # Answers from other threads

    def hand_back(self, entry: _Entry, length: int) -> None:
        """From any thread: this entry's request is answered (its length, or -errno)."""
        self._answers.append((entry, length))
        self._wake_up()

    def stop(self) -> None:
        """From any thread: end, though the mount is there."""
        self._stopping = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _take_answers(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        self._watch_wake()
        while self._answers:
            entry, length = self._answers.popleft()
            self._out -= 1
            self._commit(entry, length)

    def close(self) -> None:
        """After its thread has ended."""
        wake, self._wake = self._wake, -1
        os.close(wake)

    def _watch_wake(self) -> None:
        self._ring.write(_WAKE_SLOT, _poll_sqe.pack(OP_POLL_ADD, 0, 0, self._wake, 0, 0, 0, select.POLLIN, _WAKE_SLOT))
        self._ring.queue(_WAKE_SLOT)
