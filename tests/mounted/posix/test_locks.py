"""Locks between processes: through the mount on every row, and with the source's side where the row shares them."""

import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ..harness import wait_until
from .calls import opened
from .children import Child, beside, in_time
from .modes import Tree, attempt

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_flock = struct.Struct("=hh4xqqi4x")

Announce = Callable[[], None]
Take = Callable[[int, int], None]
_KINDS: dict[str, Take] = {"flock": fcntl.flock, "posix_lock": fcntl.lockf}


class GivenUpError(Exception):
    """Raised by the handler of the signal that ends a wait."""


def _give_up(number: int, frame: FrameType | None) -> None:
    raise GivenUpError


def _try(take: Take, path: Path, kind: int) -> object:
    """What a process of its own gets that tries to take the lock."""

    def act() -> None:
        with opened(path) as fd:
            take(fd, kind | fcntl.LOCK_NB)

    return in_time(lambda: attempt(act))


def _hold(take: Take, path: Path, kind: int, until: int) -> Callable[[Announce], None]:
    """Take the lock, announce it, and let go when the pipe `until` brings a byte."""

    def act(announce: Announce) -> None:
        with opened(path) as fd:
            take(fd, kind)
            announce()
            os.read(until, 1)

    return act


def _wait_for(take: Take, path: Path, kind: int = fcntl.LOCK_EX) -> Callable[[Announce], str]:
    """Wait for the lock; a SIGUSR1 makes it give up."""

    def act(announce: Announce) -> str:
        signal.signal(signal.SIGUSR1, _give_up)
        with opened(path) as fd:
            try:
                announce()
                take(fd, kind)
            except GivenUpError:
                return "interrupted"
            return "taken"

    return act


@pytest.fixture
def file(tree: Tree) -> Path:
    """A file on the mount."""
    (tree.mount / "file").write_bytes(bytes(100))
    return tree.mount / "file"


@pytest.mark.core
@pytest.mark.parametrize("kind", _KINDS)
def test_exclusion(file: Path, kind: str) -> None:
    take = _KINDS[kind]
    with opened(file) as fd:
        take(fd, fcntl.LOCK_EX)
        assert _try(take, file, fcntl.LOCK_EX) == "EAGAIN"
        assert _try(take, file, fcntl.LOCK_SH) == "EAGAIN"
        take(fd, fcntl.LOCK_SH)
        assert _try(take, file, fcntl.LOCK_SH) is None
        assert _try(take, file, fcntl.LOCK_EX) == "EAGAIN"
        take(fd, fcntl.LOCK_UN)
        assert _try(take, file, fcntl.LOCK_EX) is None


@pytest.mark.core
@pytest.mark.parametrize("kind", _KINDS)
def test_waiting(file: Path, kind: str) -> None:
    take = _KINDS[kind]
    with opened(file) as fd:
        take(fd, fcntl.LOCK_EX)
        with beside(_wait_for(take, file)) as one, beside(_wait_for(take, file)) as two:
            one.wait_blocked()
            two.wait_blocked()
            take(fd, fcntl.LOCK_UN)
            assert (one.result(), two.result()) == ("taken", "taken")


@pytest.mark.parametrize("kind", _KINDS)
def test_waiting_ended_by_a_signal(file: Path, kind: str) -> None:
    take = _KINDS[kind]
    with opened(file) as fd:
        take(fd, fcntl.LOCK_EX)
        with beside(_wait_for(take, file)) as waiting:
            waiting.wait_blocked()
            waiting.signal(signal.SIGUSR1)
            assert waiting.result() == "interrupted"
        take(fd, fcntl.LOCK_UN)
        assert _try(take, file, fcntl.LOCK_EX) is None, "who gave up holds nothing"


@pytest.mark.parametrize("kind", _KINDS)
def test_waiting_ended_by_death(file: Path, kind: str) -> None:
    take = _KINDS[kind]
    with opened(file) as fd:
        take(fd, fcntl.LOCK_EX)
        with beside(_wait_for(take, file)) as waiting:
            waiting.wait_blocked()
        take(fd, fcntl.LOCK_UN)
    wait_until(lambda: _try(take, file, fcntl.LOCK_EX) is None, "the dead hold nothing")


@pytest.mark.core
@pytest.mark.parametrize("kind", _KINDS)
def test_waiting_does_not_hold_up_others(tree: Tree, file: Path, kind: str) -> None:
    """More waiting locks than the daemon has threads, and everything else goes on."""
    take = _KINDS[kind]
    waiting: list[Child[str]] = []
    try:
        with opened(file) as fd:
            take(fd, fcntl.LOCK_EX)
            for _ in range(8):
                waiting.append(Child(_wait_for(take, file)))
                waiting[-1].wait_blocked()

            def work() -> object:
                (tree.mount / "other").write_bytes(b"content")
                read = (tree.mount / "other").read_bytes(), file.read_bytes() == bytes(100)
                return *read, sorted(os.listdir(tree.mount))

            assert in_time(work) == (b"content", True, ["file", "other"])
            assert not any(child.done() for child in waiting)
            take(fd, fcntl.LOCK_UN)
        assert [child.result() for child in waiting] == ["taken"] * 8
    finally:
        for child in waiting:
            child.close()


@pytest.mark.core
def test_ranges(file: Path) -> None:
    def lock_range(start: int, length: int, kind: int = fcntl.LOCK_EX) -> object:
        def act() -> None:
            with opened(file) as fd:
                fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)

        return in_time(lambda: attempt(act))

    with opened(file) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 30, 10)
        assert lock_range(0, 10) is None
        assert lock_range(0, 11) == "EAGAIN"
        assert lock_range(39, 1) == "EAGAIN"
        assert lock_range(40, 0) is None
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
        assert lock_range(20, 10) is None
        assert lock_range(19, 10) == "EAGAIN"
        assert lock_range(30, 1) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_SH, 10, 10)
        assert lock_range(10, 10, fcntl.LOCK_SH) is None
        assert lock_range(10, 10) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_EX, 0, 1 << 40)
        assert lock_range(1 << 50, 1) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert lock_range(0, 0) is None


def test_who_holds_it(file: Path) -> None:
    def ask(start: int, length: int) -> tuple[int, int, int, int]:
        with opened(file) as fd:
            query = _flock.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            kind, _, start, length, pid = _flock.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
        return kind, start, length, pid

    reader, writer = os.pipe()
    try:

        def hold(announce: Announce) -> None:
            with opened(file) as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX, 20, 10)
                announce()
                os.read(reader, 1)

        with beside(hold) as holder:
            holder.wait_announced()
            assert ask(0, 0) == (fcntl.F_WRLCK, 10, 20, holder.pid)
            assert ask(40, 10)[0] == fcntl.F_UNLCK
            os.write(writer, b"!")
            holder.result()
            assert ask(0, 0)[0] == fcntl.F_UNLCK
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.core
def test_posix_locks_go_with_any_close(file: Path) -> None:
    with opened(file) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.close(os.open(file, os.O_RDONLY))
        assert _try(fcntl.lockf, file, fcntl.LOCK_EX) is None


@pytest.mark.core
def test_flocks_go_with_the_last_close(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    second = os.dup(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(os.open(file, os.O_RDONLY))
    os.close(fd)
    assert _try(fcntl.flock, file, fcntl.LOCK_EX) == "EAGAIN"
    os.close(second)
    wait_until(lambda: _try(fcntl.flock, file, fcntl.LOCK_EX) is None, "RELEASE came")


@pytest.mark.core
@pytest.mark.parametrize("kind", _KINDS)
def test_locks_go_with_the_process(file: Path, kind: str) -> None:
    take = _KINDS[kind]
    reader, writer = os.pipe()
    try:
        with beside(_hold(take, file, fcntl.LOCK_EX, reader)) as holder:
            holder.wait_announced()
            assert _try(take, file, fcntl.LOCK_EX) == "EAGAIN"
            holder.signal(signal.SIGKILL)
        wait_until(lambda: _try(take, file, fcntl.LOCK_EX) is None, "a killed process holds nothing")
    finally:
        os.close(reader)
        os.close(writer)


def test_the_two_kinds_know_nothing_of_each_other(file: Path) -> None:
    with opened(file) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert _try(fcntl.lockf, file, fcntl.LOCK_EX) is None
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        assert _try(fcntl.flock, file, fcntl.LOCK_EX) is None


def test_locks_of_open_file_descriptions(file: Path) -> None:
    def lock(fd: int, command: int = _F_OFD_SETLK, kind: int = fcntl.F_WRLCK) -> int:
        answer = fcntl.fcntl(fd, command, _flock.pack(kind, os.SEEK_SET, 0, 10, 0))
        return int(_flock.unpack(answer)[0])

    with opened(file) as one, opened(file) as two:
        lock(one)
        assert attempt(lambda: lock(two)) == "EAGAIN"
        assert lock(two, _F_OFD_GETLK) == fcntl.F_WRLCK
        lock(one, kind=fcntl.F_UNLCK)
        assert lock(two, _F_OFD_GETLK) == fcntl.F_UNLCK
        assert attempt(lambda: lock(two)) == fcntl.F_WRLCK


def test_locks_want_a_fitting_descriptor(file: Path) -> None:
    with opened(file, os.O_RDONLY) as fd:
        assert attempt(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EBADF"
        assert attempt(lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)) is None
        assert attempt(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None
    with opened(file, os.O_WRONLY) as fd:
        assert attempt(lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)) == "EBADF"
        assert attempt(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None


def test_locks_of_an_unlinked_file(file: Path) -> None:
    with opened(file) as fd, opened(file) as other:
        file.unlink()
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert attempt(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_UN)


@pytest.mark.parametrize("kind", _KINDS)
def test_locks_meet_those_of_the_source_s_side(tree: Tree, file: Path, kind: str) -> None:
    tree.needs(f"shared {kind}")
    take, real = _KINDS[kind], tree.source / "file"
    for held, other in ((file, real), (real, file)):
        with opened(held) as fd:
            take(fd, fcntl.LOCK_EX)
            assert _try(take, other, fcntl.LOCK_SH) == "EAGAIN"
            with beside(_wait_for(take, other)) as waiting:
                waiting.wait_blocked()
                take(fd, fcntl.LOCK_UN)
                assert waiting.result() == "taken"
            take(fd, fcntl.LOCK_SH)
            assert _try(take, other, fcntl.LOCK_SH) is None
            assert _try(take, other, fcntl.LOCK_EX) == "EAGAIN"


@pytest.mark.parametrize("kind", _KINDS)
def test_locks_of_the_source_s_side_go_unseen_otherwise(tree: Tree, file: Path, kind: str) -> None:
    """As the manual has it: without the option the two sides do not meet."""
    if f"shared {kind}" not in tree.mode.lacks:
        pytest.skip("this row shares them")
    with opened(tree.source / "file") as fd:
        _KINDS[kind](fd, fcntl.LOCK_EX)
        assert _try(_KINDS[kind], file, fcntl.LOCK_EX) is None
