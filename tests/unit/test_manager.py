"""What a service manager is told, and by whom."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.cli import channel
from passthrough.cli.manager import Manager, from_environment
from passthrough.cli.pulse import Pulse

from ..notified import listening


@pytest.fixture
def start() -> Iterator[Callable[..., Manager]]:
    """from_environment(), and the end of what it makes."""
    made: list[Manager] = []

    def make(environment: dict[str, str], *, stays: bool = True) -> Manager:
        made.append(from_environment(environment, stays=stays))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


Start = Callable[..., Manager]


def test_without_a_manager_nobody_is_told(start: Start) -> None:
    manager = start({"WATCHDOG_USEC": "1000000"})
    assert manager.interval is None
    manager.ready("here")
    manager.alive()
    manager.stopping()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_is_told_of_every_state(start: Start, tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@passthrough-test-{os.getpid()}"
    with listening(address) as peer:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
        manager = start(environment)
        assert environment == {"A": "b"}
        assert manager.interval == 1.5
        manager.ready("/a on /b")
        assert peer.states() == {"MAINPID": str(os.getpid()), "READY": "1", "STATUS": "/a on /b"}
        manager.hand_over(77, "x")
        assert peer.states()["MAINPID"] == "77"
        manager.status("one\nMAINPID=1\x07" + "x" * 5000)
        assert list(peer.states()) == ["STATUS"]
        manager.alive()
        assert peer.states() == {"WATCHDOG": "1"}
        manager.stopping()
        assert peer.states()["STOPPING"] == "1"
        manager.close()
        manager.alive()


def test_a_manager_that_has_much_to_read_hears_of_readiness_all_the_same(start: Start, tmp_path: Path) -> None:
    with listening(tmp_path / "notify") as peer:
        manager = start({"NOTIFY_SOCKET": peer.address})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
            others.connect(peer.address)
            with contextlib.suppress(BlockingIOError):
                while True:
                    others.send(b"STATUS=of others", socket.MSG_DONTWAIT)
        manager.status("which is not waited for")
        telling = threading.Thread(target=lambda: manager.ready("here"))
        telling.start()
        telling.join(0.2)  # who does not wait is through by then, and was not heard
        assert peer.until("READY")["STATUS"] == "here"
        telling.join()
        manager.alive()
        assert peer.states() == {"WATCHDOG": "1"}


@pytest.mark.parametrize("watched", ["1", "0", "", "x"])
def test_a_watchdog_for_another_process_is_not_ours(start: Start, tmp_path: Path, watched: str) -> None:
    with listening(tmp_path / "notify") as peer:
        environment = {"NOTIFY_SOCKET": peer.address, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": watched}
        interval = start(environment).interval
        assert interval == (0.5 if watched == "" else None)


@pytest.mark.parametrize("text", ["", "0", "-1", "x"])
def test_no_watchdog_without_a_time(start: Start, tmp_path: Path, text: str) -> None:
    with listening(tmp_path / "notify") as peer:
        assert start({"NOTIFY_SOCKET": peer.address, "WATCHDOG_USEC": text}).interval is None


def test_a_script_of_another_service_that_mounts_makes_nobody_ready(start: Start, tmp_path: Path) -> None:
    with listening(tmp_path / "notify") as peer:
        for started, stays, told in (("1", False, False), (str(os.getpid()), False, True), ("1", True, True)):
            environment = {"NOTIFY_SOCKET": peer.address, "SYSTEMD_EXEC_PID": started}
            start(environment, stays=stays).ready("here")
            start({"NOTIFY_SOCKET": peer.address}).status("the next")
            assert ("READY" in peer.states()) is told
            peer.drain()


@pytest.mark.parametrize("address", ["/nonexistent/notify", "vsock:2:1", "@"])
def test_an_address_where_nobody_listens_is_a_warning(address: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager(address, 1.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert address in caplog.text
    manager.ready("here")


def test_a_pulse_beats_after_each_look_that_says_yes(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([True, False, OSError(5, "I/O"), False, True])
    looked, beats, over = [], [], threading.Event()

    def look() -> bool:
        found = next(answers, None)
        looked.append(found)
        if found is None:
            over.set()
            return False
        if isinstance(found, OSError):
            raise found
        return bool(found)

    pulse = Pulse(look, lambda: beats.append(len(looked)), 0.001)
    pulse.start()
    assert over.wait(60)
    pulse.stop(60)
    assert beats == [1, 5]
    assert "not being answered" in caplog.records[0].message
    assert len(caplog.records) <= 3  # once for each time that it went wrong


def test_a_look_that_hangs_gives_no_sign_and_can_be_left() -> None:
    hangs, entered = threading.Event(), threading.Event()
    beats: list[int] = []

    def look() -> bool:
        entered.set()
        return hangs.wait(60)

    pulse = Pulse(look, lambda: beats.append(1), 0.001)
    pulse.start()
    assert entered.wait(60)
    pulse.stop(0.001)
    hangs.set()
    pulse.stop(60)
    assert beats == []


def test_words_of_a_daemon_are_overheard_without_waiting_and_without_what_comes_along() -> None:
    ours, theirs = channel.pair()
    before = len(os.listdir("/proc/self/fd"))
    assert ours.overhear() is None
    theirs.say("alive")
    theirs.say("more", text="STATUS=mine\nMAINPID=1", descriptors=[0] * 50)
    theirs.say("x" * 4000)
    assert [ours.overhear() for _ in range(4)] == ["alive", "more", "x" * 4000, None]
    assert len(os.listdir("/proc/self/fd")) == before
    theirs.close()
    assert ours.overhear() == ""
    ours.close()
