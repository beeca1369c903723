"""Queues that take turns: who goes on, who waits, and that nobody waits for ever."""

import threading
from collections.abc import Callable

import pytest

from passthrough.transport import turns as module
from passthrough.transport.turns import Turn, Turns

TIMEOUT_S = 60


class Waiter(threading.Thread):
    """A queue that wants its turn."""

    def __init__(self, turns: Turns) -> None:
        super().__init__(daemon=True)
        self.turn = Turn(turns)

    def run(self) -> None:
        self.turn.take()

    def got_it(self) -> bool:
        self.join(TIMEOUT_S)
        return not self.is_alive() and self.turn.held


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(TIMEOUT_S * 1000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never came")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn lasts until a test ends it, and nobody is passed over."""
    monkeypatch.setattr(module, "SLICE_NS", 10**15)
    monkeypatch.setattr(module, "PATIENCE_S", 1000.0)


def begun(turns: Turns, count: int = 1) -> list[Waiter]:
    waiters = []
    for number in range(count):
        waiter = Waiter(turns)
        waiter.start()
        wait_until(lambda number=number: len(turns.waiting) == number + 1)  # type: ignore[misc]
        waiters.append(waiter)
    return waiters


def test_alone_a_queue_never_waits_and_keeps_nothing() -> None:
    turns = Turns()
    turn = Turn(turns)
    for _ in range(3):
        turn.take()
        assert [turn.held, turn.wanted, turn.goes_on()] == [True, False, False]
        assert not turn.held
        assert turns.owner is None


@pytest.mark.usefixtures("patient")
def test_while_another_waits_it_goes_on_until_its_time_is_over() -> None:
    turns = Turns()
    turn = Turn(turns)
    turn.take()
    (other,) = begun(turns)
    assert turn.wanted
    assert turn.goes_on()
    assert not other.turn.held
    turn._until = 0
    assert not turn.goes_on()
    assert not turn.held
    assert other.got_it()
    assert turns.owner is other.turn


@pytest.mark.usefixtures("patient")
def test_turns_come_in_the_order_of_asking() -> None:
    turns = Turns()
    turn = Turn(turns)
    turn.take()
    for waiter in begun(turns, 3):
        turn.give()
        assert waiter.got_it()
        turn = waiter.turn
    turn.give()
    assert turns.owner is None


def test_a_queue_that_is_stuck_is_passed_over() -> None:
    turns = Turns()
    stuck = Turn(turns)
    stuck.take()
    other = Waiter(turns)
    other.start()
    assert other.got_it()
    assert turns.owner is other.turn
    assert not stuck.goes_on()
    stuck.give()
    assert turns.owner is other.turn, "what was not its own any more is not given away"


def test_one_that_takes_turns_is_not_taken_for_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """While turns are given, whoever waits stays in the line."""
    turns = Turns()
    turn = Turn(turns)
    turn.take()
    asked = threading.Semaphore(0)
    other = Waiter(turns)

    class Permit:
        """Counts how often patience ran out, and lets a turn be given in between."""

        def acquire(self, timeout: float) -> bool:
            turns.given += 1
            asked.release()
            return asked._value > 5

    monkeypatch.setattr(other.turn, "_permit", Permit())
    other.start()
    assert other.got_it()
    assert asked._value == 6
    assert turns.owner is turn


def test_a_turn_that_is_given_as_patience_runs_out() -> None:
    """Taken out of the line and not yet told: the permit is waited for, or it would be one too many later."""
    turns = Turns()
    Turn(turns).take()
    (other,) = begun(turns)
    turns.waiting.popleft()
    other.turn._permit.release()
    assert other.got_it()
    assert not other.turn._permit.acquire(blocking=False)


def test_many_queues_at_once_all_end() -> None:
    turns = Turns()
    failures: list[BaseException] = []

    def work() -> None:
        turn = Turn(turns)
        try:
            for number in range(2000):
                if not (turn.held and turn.goes_on()):
                    turn.take()
                if number % 7 == 0:
                    turn.give()
            turn.give()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
    assert not any(worker.is_alive() for worker in workers)
    assert failures == []
    assert not turns.waiting
    assert turns.owner is None
