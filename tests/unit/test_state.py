"""The files that say which daemon serves which mount, and a daemon that begins while another ends."""

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.cli import state
from tests.mounted.harness import wait_until

_DEVICE = "0:123"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of these tests are."""
    monkeypatch.setattr(state, "directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For a daemon that waits for a lock."""
    with ThreadPoolExecutor(1) as made:
        yield made


def waits_for(path: Path) -> bool:
    """Whether somebody waits for the lock of this file (/proc/locks)."""
    inode = f":{path.stat().st_ino} "
    with open("/proc/locks", encoding="ascii") as lines:
        return any("->" in line and inode in line for line in lines)


def test_a_daemon_is_found_while_it_lives(directory: Path) -> None:
    assert state.find(_DEVICE) is None
    file = state.StateFile(_DEVICE, "/srv/so\nurce", "/mnt/\udcff")
    assert state.find(_DEVICE) == state.Daemon(os.getpid(), "/srv/so")
    file.remove()
    assert state.find(_DEVICE) is None
    assert not list(directory.iterdir())


def test_a_stale_file_is_nobody_s_and_is_taken_over(directory: Path) -> None:
    stale = directory / f"{_DEVICE}.daemon"
    stale.write_text("1\n/a/source/that/is/longer/than/ours\n/mnt\n")
    assert state.find(_DEVICE) is None
    file = state.StateFile(_DEVICE, "/srv", "/mnt")
    assert state.find(_DEVICE) == state.Daemon(os.getpid(), "/srv")
    assert stale.read_text() == f"{os.getpid()}\n/srv\n/mnt\n"
    file.remove()


@pytest.mark.parametrize("daemons", [1, 3])
def test_who_waits_for_one_that_ends_gets_a_file_of_its_own(
    directory: Path, pool: ThreadPoolExecutor, daemons: int
) -> None:
    path = directory / f"{_DEVICE}.daemon"
    file = state.StateFile(_DEVICE, "/srv/0", "/mnt")
    for number in range(1, daemons + 1):
        later = pool.submit(state.StateFile, _DEVICE, f"/srv/{number}", "/mnt")
        try:
            wait_until(lambda: waits_for(path), "the next daemon waits for the lock")
        finally:
            file.remove()
        file = later.result(30)
        assert path.exists(), "the file that it holds has no name"
        assert os.path.samestat(os.fstat(file._fd), path.stat())
        assert state.find(_DEVICE) == state.Daemon(os.getpid(), f"/srv/{number}")
        with open(path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    file.remove()
    assert not list(directory.iterdir())
