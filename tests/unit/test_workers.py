"""The crew: one worker reads, others join while it is stuck, and rest again; all end when one finds the end."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from passthrough.transport.workers import Crew
from tests.mounted.harness import wait_until

Job = Callable[[], object] | None


class Player:
    """A worker that does jobs out of a common queue; None is the end of the session."""

    def __init__(self, jobs: "queue.Queue[Job]") -> None:
        self.idle = True
        self.served = 0
        self.alone = False  # whether this one ends alone
        self._jobs = jobs

    def run(self, crew: Crew) -> bool:
        """As a real queue does it."""
        while True:
            if crew.crowded:
                crew.rest(self)
            if crew.stopping:
                return False
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)
                return False
            self.idle = False
            self.served += 1
            if crew.asleep:
                crew.wake()
            job()
            if self.alone:
                return True
            self.idle = True


class Stage:
    """A crew of players and what a test needs to steer it."""

    def __init__(self, count: int) -> None:
        self.jobs: queue.Queue[Job] = queue.Queue()
        self.players = [Player(self.jobs) for _ in range(count)]
        self.ended = threading.Event()
        self.crew = Crew(self.players, self.ended.set)
        self.crew.start()

    def working(self) -> int:
        """How many players are in a job."""
        return sum(not player.idle for player in self.players)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(4)
    yield made
    made.jobs.put(None)
    assert made.ended.wait(30)
    assert made.crew.join(30)


def test_one_worker_does_all_quick_jobs(stage: Stage) -> None:
    done = threading.Semaphore(0)
    for _ in range(100):
        stage.jobs.put(done.release)
        assert done.acquire(timeout=30)
    assert sum(player.served > 0 for player in stage.players) == 1


def test_a_stuck_job_holds_up_nobody_and_the_helpers_rest_again(stage: Stage) -> None:
    let_go, done = threading.Event(), threading.Event()
    for _ in range(3):
        stage.jobs.put(lambda: bool(let_go.wait(30)))
    wait_until(lambda: stage.working() == 3, "three workers in stuck jobs")
    stage.jobs.put(done.set)
    assert done.wait(30)
    let_go.set()
    wait_until(lambda: not stage.crew.crowded, "one worker left at work")


def test_more_jobs_than_workers_wait_for_one(stage: Stage) -> None:
    let_go, done = threading.Event(), threading.Event()
    for _ in range(4):
        stage.jobs.put(lambda: bool(let_go.wait(30)))
    stage.jobs.put(done.set)
    wait_until(lambda: stage.working() == 4, "all workers in stuck jobs")
    assert not done.is_set()
    let_go.set()
    assert done.wait(30)


def test_another_takes_over_from_one_that_ends_alone(stage: Stage) -> None:
    def end_alone() -> None:
        next(player for player in stage.players if not player.idle).alone = True

    done = threading.Event()
    stage.jobs.put(end_alone)
    stage.jobs.put(done.set)
    assert done.wait(30)


def test_a_crew_of_one_ends_when_its_worker_does() -> None:
    stage = Stage(1)
    stage.jobs.put(None)
    assert stage.ended.wait(30)
    assert stage.crew.join(30)
    assert stage.crew.stopping
