"""Requests that wait: SETLKW in a thread of its own, INTERRUPT before and after, the limit, and the end of a session.

Nothing sleeps: every wait is for an event, and a wait that lasts is a failure.
"""

import ctypes
import errno
import os
import signal
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from passthrough import syscalls, waiting
from passthrough.filesystem import Context, FileLock
from passthrough.protocol.requests import read_header
from passthrough.waiting import Waiters
from tests.wire.fake import WAIT_S, FakeChannel, FakeFileSystem, handle, init_request, request, serving, wait_for

LOCK = struct.pack("=QQQQIIII", 5, 0x77, 0, 2**63 - 1, 1, 42, 0, 0)


def _setlkw(unique: int = 11) -> bytes:
    return request(33, LOCK, unique=unique)


def _interrupt(unique: int) -> bytes:
    return request(36, struct.pack("=Q", unique), unique=1, nodeid=0)


class LockingFileSystem(FakeFileSystem):
    """A lock that is taken: setlk that waits goes on until `free` is set or its caller gave up."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.waited: list[Context] = []
        self.threads: list[str] = []
        self.refusal: Exception = OSError(errno.EAGAIN, "taken")
        self.outcome: BaseException | None = None

    def setlk(self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int, wait: bool) -> None:
        self.calls.append(("setlk", (nodeid, fh, owner, lock, lk_flags, wait)))
        if not wait:
            raise self.refusal
        self.waited.append(ctx)
        self.threads.append(threading.current_thread().name)
        self.waiting.release()
        try:
            while not self.free.wait(0.005):
                if ctx.interrupted:
                    raise OSError(errno.EINTR, "the caller gave up")
            if self.outcome is not None:
                raise self.outcome
        finally:
            self.ended.release()

    def must_wait(self) -> None:
        """Until one more request waits."""
        assert self.waiting.acquire(timeout=WAIT_S), "no request waits"


@pytest.fixture
def locking() -> Iterator[LockingFileSystem]:
    """A file system whose lock is taken; at the end nobody waits any more."""
    fs = LockingFileSystem()
    yield fs
    fs.free.set()


@pytest.mark.parametrize("refusal", [errno.EAGAIN, errno.EACCES], ids=["EAGAIN", "EACCES"])
def test_a_lock_that_is_taken_is_waited_for(refusal: int, locking: LockingFileSystem, channel: FakeChannel) -> None:
    lines: list[str] = []
    locking.refusal = OSError(refusal, "taken")
    server = serving(locking, debug=lines.append)
    assert handle(server, _setlkw(), channel) is None
    assert lines[-1] == "< 11 later"
    locking.must_wait()
    assert channel.deferred == [11]
    assert channel.answers.empty()
    # Meanwhile others are served.
    assert handle(server, request(1, b"name\0")) == 128
    locking.free.set()
    assert channel.answer() == (11, 0)
    lock = FileLock(0, 2**63 - 1, 1, 42)
    assert [call for call in locking.calls if call[0] == "setlk"] == [
        ("setlk", (0x22, 5, 0x77, lock, 0, False)),
        ("setlk", (0x22, 5, 0x77, lock, 0, True)),
    ]
    assert locking.threads != [threading.current_thread().name]
    assert not locking.waited[0].interrupted


def test_a_request_in_memory_that_is_reused_keeps_its_lock(locking: LockingFileSystem, channel: FakeChannel) -> None:
    """The transport reads the next request into the same buffer while this one waits."""
    server = serving(locking)
    buffer = bytearray(_setlkw())
    server.handle(read_header(memoryview(buffer), len(buffer)), memoryview(buffer), channel)
    buffer[:] = b"\xff" * len(buffer)
    locking.must_wait()
    locking.free.set()
    assert channel.answer() == (11, 0)
    assert locking.calls[-1] == ("setlk", (0x22, 5, 0x77, FileLock(0, 2**63 - 1, 1, 42), 0, True))


def test_another_error_is_the_answer_at_once(locking: LockingFileSystem, channel: FakeChannel) -> None:
    locking.refusal = OSError(errno.EBADF, "no such handle")
    assert handle(serving(locking), _setlkw(), channel) == -errno.EBADF
    assert channel.deferred == []


@pytest.mark.parametrize(
    ("outcome", "result", "logged"),
    [
        (OSError(errno.EDEADLK, "deadlock"), -errno.EDEADLK, 0),
        (OSError("without a number"), -errno.EIO, 0),
        (OSError(0, "no error"), -errno.EIO, 0),
        (OSError(600, "too large"), -errno.EIO, 0),
        (OSError(-5, "negative"), -errno.EIO, 0),
        (OSError("EINTR", "a word"), -errno.EIO, 0),
        (MemoryError(), -errno.ENOMEM, 0),
        (ValueError("oops"), -errno.EIO, 1),
    ],
    ids=lambda value: repr(value) if isinstance(value, BaseException) else "",
)
def test_what_a_wait_ends_with(
    outcome: BaseException,
    result: int,
    logged: int,
    locking: LockingFileSystem,
    channel: FakeChannel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An answer that the kernel would refuse would leave the caller hanging for ever."""
    locking.outcome = outcome
    locking.free.set()
    assert handle(serving(locking), _setlkw(), channel) is None
    assert channel.answer() == (11, result)
    assert len(caplog.records) == logged


def test_interrupt_ends_a_wait(locking: LockingFileSystem, channel: FakeChannel) -> None:
    server = serving(locking)
    handle(server, _setlkw(11), channel)
    handle(server, _setlkw(13), channel)
    locking.must_wait()
    locking.must_wait()
    assert handle(server, _interrupt(13)) is None
    assert channel.answer() == (13, -errno.EINTR)
    assert [ctx.interrupted for ctx in sorted(locking.waited, key=lambda ctx: ctx.unique)] == [False, True]
    locking.free.set()
    assert channel.answer() == (11, 0)


def test_interrupt_that_overtakes_its_request(locking: LockingFileSystem, channel: FakeChannel) -> None:
    """On another queue INTERRUPT may be read first."""
    server = serving(locking)
    assert handle(server, _interrupt(11)) is None
    handle(server, _setlkw(11), channel)
    assert channel.answer() == (11, -errno.EINTR)
    # It is spent, and the number is free as soon as its answer is there.
    locking.must_wait()
    assert handle(server, _setlkw(11), channel) is None
    locking.must_wait()
    locking.free.set()
    assert channel.answer() == (11, 0)
    assert [ctx.interrupted for ctx in locking.waited] == [True, False]


def test_interrupt_twice_and_of_nobody(locking: LockingFileSystem, channel: FakeChannel) -> None:
    server = serving(locking)
    handle(server, _setlkw(11), channel)
    locking.must_wait()
    for unique in (9, 11, 11, 2**64 - 1):
        assert handle(server, _interrupt(unique)) is None
    assert channel.answer() == (11, -errno.EINTR)


@pytest.mark.parametrize("end", ["close", "destroy", "init", "interrupt_waiting"])
def test_the_end_of_a_session_ends_its_waits(end: str, locking: LockingFileSystem) -> None:
    """What waited is answered before the file system is told to forget everything: nothing outlives its session."""
    server = serving(locking)
    channel = FakeChannel()
    for unique in (11, 13, 15):
        handle(server, _setlkw(unique), channel)
        locking.must_wait()
    if end in ("close", "interrupt_waiting"):
        getattr(server, end)()
    else:
        handle(server, request(38) if end == "destroy" else init_request())
    # Not `answer()`: by now they must have been given.
    answers = {channel.answers.get_nowait() for _ in range(3)}
    assert answers == {(unique, -errno.ECONNABORTED) for unique in (11, 13, 15)}


def test_an_interrupt_of_an_old_session_is_forgotten(locking: LockingFileSystem, channel: FakeChannel) -> None:
    """A guest that boots again counts its requests from the start: numbers come back."""
    server = serving(locking)
    handle(server, _interrupt(11))
    handle(server, init_request())
    handle(server, _setlkw(11), channel)
    locking.must_wait()
    locking.free.set()
    assert channel.answer() == (11, 0)


def test_a_number_that_is_waiting_already_is_refused(locking: LockingFileSystem, channel: FakeChannel) -> None:
    """Only a hostile peer does that: it must not lose the first, nor make threads past the limit."""
    server = serving(locking)
    handle(server, _setlkw(11), channel)
    locking.must_wait()
    for _ in range(5):
        assert handle(server, _setlkw(11), FakeChannel()) == -errno.EINVAL
    assert len(locking.waited) == 1
    handle(server, _interrupt(11))
    assert channel.answer() == (11, -errno.EINTR)


def test_a_server_has_a_limit(locking: LockingFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passthrough.server.Waiters", lambda: Waiters(limit=2))
    server = serving(locking)
    channel = FakeChannel()
    assert handle(server, _setlkw(11), channel) is None
    assert handle(server, _setlkw(13), channel) is None
    locking.must_wait()
    locking.must_wait()
    assert handle(server, _setlkw(15), channel) == -errno.ENOLCK
    handle(server, _interrupt(11))
    assert channel.answer() == (11, -errno.EINTR)
    server.close()
    assert channel.answer() == (13, -errno.ECONNABORTED)
    # The two that ended have made room.
    locking.free.set()
    assert handle(server, init_request()) == 64
    assert handle(server, _setlkw(17), channel) is None
    assert channel.answer() == (17, 0)
    assert channel.answers.empty()


def test_no_thread_to_be_had_is_enolck(
    locking: LockingFileSystem, channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving(locking)

    def cannot(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        assert handle(server, _setlkw(11), channel) == -errno.ENOLCK
    # The number is free again.
    assert handle(server, _setlkw(11), channel) is None
    locking.must_wait()
    server.close()
    assert channel.answer() == (11, -errno.ECONNABORTED)


class Work:
    """Something that waits, without a file system."""

    def __init__(self, unique: int) -> None:
        self.ctx = Context(unique, 0, 0, 0)
        self.started = threading.Event()
        self.release = threading.Event()
        self.answers: list[int] = []
        self.answered = threading.Event()

    def __call__(self) -> int:
        self.started.set()
        wait_for(self.release)
        return 0

    def answer(self, result: int) -> None:
        self.answers.append(result)
        self.answered.set()


def test_early_interrupts_are_bounded() -> None:
    waiters = Waiters(limit=4)
    for unique in range(100):
        waiters.interrupt(unique)
    old, recent = Work(0), Work(99)
    for work in (old, recent):
        work.release.set()
        waiters.start(work.ctx, work, work.answer)
        wait_for(work.answered)
    assert not old.ctx.interrupted
    assert recent.ctx.interrupted


def test_close_waits_no_longer_than_it_was_told() -> None:
    """All of them together: a hundred that do not end must not cost a hundred times the timeout."""
    waiters = Waiters()
    works = [Work(unique) for unique in range(40)]
    for work in works:
        waiters.start(work.ctx, work, work.answer)
    closed = threading.Event()

    def close() -> None:
        waiters.close(timeout=0.25)
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    try:
        assert closed.wait(4), "40 times 0.25 s"
        assert all(work.ctx.interrupted for work in works)
        assert not any(work.answered.is_set() for work in works)
    finally:
        for work in works:
            work.release.set()
    for work in works:
        wait_for(work.answered)


def test_close_waits_for_the_answers() -> None:
    """After close the transport is taken apart: an answer must not come later."""
    waiters = Waiters()
    work = Work(11)
    gate, closed = threading.Event(), threading.Event()

    def answer(result: int) -> None:
        work.started.clear()
        work.answered.set()
        wait_for(gate)
        assert not closed.is_set()
        work.answer(result)

    work.release.set()
    waiters.start(work.ctx, work, answer)
    wait_for(work.answered)

    def close() -> None:
        waiters.close()
        closed.set()

    closer = threading.Thread(target=close)
    closer.start()
    assert not closed.wait(0.1)
    gate.set()
    wait_for(closed)
    closer.join()
    assert work.answers == [0]


@pytest.fixture
def wake_signal() -> Iterator[None]:
    """The handler that cli installs, and afterwards what was there before."""
    before = signal.getsignal(waiting.WAKE_SIGNAL)
    waiting.install_wake_signal()
    yield
    signal.signal(waiting.WAKE_SIGNAL, before)


def test_interrupt_ends_a_blocking_system_call(wake_signal: None) -> None:
    """read(2) of an empty pipe by way of ctypes, which does not call again after EINTR as Python's own calls do."""
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    ctx = Context(11, 0, 0, 0)
    started, answered = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> int:
        started.set()
        buffer = ctypes.create_string_buffer(1)
        while libc.read(reader, buffer, 1) < 0:
            if ctx.interrupted:
                return -ctypes.get_errno()
        return 0

    def answer(result: int) -> None:
        seen.append(result)
        answered.set()

    try:
        waiters = Waiters()
        waiters.start(ctx, work, answer)
        wait_for(started)
        waiters.interrupt(11)
        wait_for(answered)
        assert seen == [-errno.EINTR]
    finally:
        os.write(writer, b"x")  # ends a read that nothing has ended
        wait_for(answered)
        os.close(reader)
        os.close(writer)


def test_a_thread_that_is_gone_is_not_woken() -> None:
    """The request may end between the check and the signal: the kernel then says ESRCH, which is nobody's concern."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    syscalls.tgkill(os.getpid(), thread.native_id, waiting.WAKE_SIGNAL)


def test_a_wait_that_begins_while_the_session_ends_is_aborted() -> None:
    """Another queue was between its first try and the wait: it must not outlive the session."""
    waiters = Waiters()
    waiters.close()
    work = Work(11)
    with pytest.raises(ConnectionAbortedError):
        waiters.start(work.ctx, work, work.answer)
    assert not work.started.is_set()


def test_an_answer_that_fails_still_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport may be gone: close must not wait for an answer that nobody takes."""
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    def gone(result: int) -> None:
        raise OSError(errno.ENODEV, "unmounted")

    waiters = Waiters()
    work = Work(11)
    waiters.start(work.ctx, work, gone)
    wait_for(work.started)
    closer = threading.Thread(target=waiters.close, args=(WAIT_S * 2,))
    closer.start()
    work.release.set()
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert [failure.exc_type for failure in failures] == [OSError]
