"""io_uring without FUSE: a NOP goes in and comes out, in order, also when the ring wraps around."""

import errno
import threading
from collections.abc import Iterator
from struct import Struct

import pytest

from passthrough import syscalls
from passthrough.transport import ring, uring

_nop = Struct("=B31xQ88x")


@pytest.fixture
def nops() -> Iterator[ring.Ring]:
    """A ring of eight slots, each with a NOP that says its number."""
    if why := ring.unavailable():
        pytest.skip(why)
    made = ring.Ring(8)
    for slot in range(8):
        made.write(slot, _nop.pack(ring.OP_NOP, 100 + slot))
    yield made
    made.close()


def test_one_nop_comes_back(nops: ring.Ring) -> None:
    nops.queue(3)
    nops.enter()
    assert list(nops.completions()) == [(103, 0)]
    assert list(nops.completions()) == []


def test_a_full_batch_comes_back_in_order(nops: ring.Ring) -> None:
    for slot in range(8):
        nops.queue(slot)
    nops.enter(8)
    assert list(nops.completions()) == [(100 + slot, 0) for slot in range(8)]


def test_the_ring_wraps_around(nops: ring.Ring) -> None:
    for turn in range(1000):
        nops.queue(turn % 8)
        nops.queue((turn + 3) % 8)
        nops.enter(2)
        assert list(nops.completions()) == [(100 + turn % 8, 0), (100 + (turn + 3) % 8, 0)]


def test_what_comes_at_once_is_taken_without_sleep(nops: ring.Ring) -> None:
    assert nops.take_soon() is None
    for slot in (3, 5):
        nops.queue(slot)
    assert nops.take_soon() == (103, 0)
    assert nops.take_soon() == (105, 0)
    assert nops.take_soon() is None


def test_slots_are_rewritten(nops: ring.Ring) -> None:
    nops.write(0, _nop.pack(ring.OP_NOP, 7))
    nops.queue(0)
    nops.enter()
    assert list(nops.completions()) == [(7, 0)]


def test_completions_that_are_not_asked_for_stay(nops: ring.Ring) -> None:
    for slot in range(3):
        nops.queue(slot)
    nops.enter(3)
    assert next(nops.completions()) == (100, 0)
    assert list(nops.completions()) == [(101, 0), (102, 0)]


def test_an_unknown_operation_is_its_own_failure(nops: ring.Ring) -> None:
    nops.write(0, _nop.pack(250, 9))
    nops.queue(0)
    nops.enter()
    assert list(nops.completions()) == [(9, -errno.EINVAL)]


def test_a_ring_belongs_to_its_thread(nops: ring.Ring) -> None:
    raised: list[OSError] = []

    def elsewhere() -> None:
        nops.queue(0)
        try:
            nops.enter()
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(30)
    assert [error.errno for error in raised] == [errno.EEXIST]


def test_a_ring_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(entries: int, params: bytearray) -> int:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(syscalls, "io_uring_setup", refuse)
    assert "io_uring_disabled" in (ring.unavailable() or "")


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-1\n", [0, 1]), ("0\n", [0]), ("0-3,8-9\n", [0, 1, 2, 3, 8, 9]), ("0,2\n", [0, 2])],
)
def test_possible_cpus(text: str, cpus: list[int]) -> None:
    assert uring.parse_cpus(text) == cpus
