"""Looking before sleeping: when it looks, when it does not, and that it ends."""

import time
from itertools import pairwise

import pytest

from passthrough.transport.vhost.patience import Patience


class Ring:
    """What is looked at: something is there from the given look on."""

    def __init__(self, there_at: int | None = None) -> None:
        self.looks = 0
        self._there_at = there_at

    def waiting(self) -> bool:
        self.looks += 1
        return self._there_at is not None and self.looks >= self._there_at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Time that goes on by 10 us with each look at it, or by what a test puts in front; two CPUs."""
    steps: list[int] = []
    now = [0]

    def read() -> int:
        now[0] += steps.pop(0) if steps else 2_000
        return now[0]

    monkeypatch.setattr(time, "perf_counter_ns", read)
    return steps


def test_what_comes_while_it_looks_is_seen(clock: list[int]) -> None:
    patience = Patience()
    for there_at in (1, 20, 40):
        ring = Ring(there_at)
        assert patience.awaits(ring.waiting)
        assert ring.looks == there_at


def test_it_ends_and_becomes_rare_where_nothing_comes(clock: list[int]) -> None:
    patience, ring = Patience(), Ring()
    looked = []
    for _ in range(1100):
        before = ring.looks
        assert not patience.awaits(ring.waiting)
        looked.append(ring.looks > before)
    assert ring.looks < 13 * 51 * 8
    gaps = [at for at, one in enumerate(looked) if one]
    assert [b - a - 1 for a, b in pairwise(gaps)] == [2, 4, 8, 16, 32, 64, 128, 256, 256, 256]


def test_one_success_brings_it_back(clock: list[int]) -> None:
    patience = Patience()
    for _ in range(20):
        patience.awaits(Ring().waiting)
    while not patience.awaits(Ring(1).waiting):
        pass
    assert patience.awaits(Ring(1).waiting)


def test_what_was_put_there_in_our_place_is_no_success(clock: list[int]) -> None:
    patience = Patience()
    clock += [2_000, 50_000]
    assert patience.awaits(Ring(4).waiting)
    assert [patience.awaits(Ring(1).waiting) for _ in range(3)] == [False, False, True]
