"""FUSE over io_uring on real mounts: what is particular to it; for the rest the conformance list has rows."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough import exitcodes
from passthrough.transport import uring

from .harness import (
    ROOT,
    TIMEOUT_S,
    Harness,
    Mount,
    affinities,
    daemon_pid,
    ended,
    is_mounted,
    mounts_below,
    processes_about,
    refusal,
    run,
    wait_until,
)
from .harness import (
    URING_SWITCH as PARAMETER,
)


@pytest.fixture
def disabled() -> Iterator[None]:
    """Switched off."""
    if not PARAMETER.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    before = PARAMETER.read_text()
    PARAMETER.write_text("N")
    yield
    PARAMETER.write_text(before)


def threads_of(pid: int) -> list[str]:
    """The names of a process's threads, as the kernel has them."""
    return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


def test_on_says_what_to_set(harness: Harness, disabled: None) -> None:
    point = harness.directory("mount")
    result = run("mount", "-o", "io_uring=on", harness.directory("source"), point)
    assert result.returncode == exitcodes.KERNEL
    assert result.stderr.count("\n") == 1
    assert f"echo Y > {PARAMETER}" in result.stderr
    assert not is_mounted(point)


def test_auto_does_without(harness: Harness, disabled: None) -> None:
    mount = harness.mount("-o", "io_uring=auto")
    (mount.point / "file").write_bytes(b"x")
    assert (mount.source / "file").read_bytes() == b"x"
    assert mount.pid is not None
    assert set().union(*affinities(mount.server)) == os.sched_getaffinity(0)
    assert all(len(cpus) == len(os.sched_getaffinity(0)) for cpus in affinities(mount.server))


_FAILURES = {
    "the queue": """
def run(self, registered):
    self.failure = f"FUSE over io_uring, queue {self.cpu}: it broke"
    registered()
uring.UringQueue.run = run
""",
    "the ring": """
def refuse(*_):
    raise OSError(12, "Cannot allocate memory")
uring.Ring = refuse
""",
    "one ring": """
def refuse(entries, real=uring.Ring):
    if threading.current_thread().name == f"uring-{uring.possible_cpus()[-1]}":
        raise OSError(12, "Cannot allocate memory")
    return real(entries)
uring.Ring = refuse
""",
    "the registration": """
uring._REGISTER = 99  # the kernel refuses it, in a completion
""",
}
"""What goes wrong when all has been found to be there."""
_MAIN = "import sys, threading; from passthrough import syscalls; from passthrough.transport import uring\n{}\n"
_THEN = "from passthrough.cli import main; sys.exit(main())"
_INSTEAD = "requests are read from /dev/fuse instead\n"


def run_with(patch: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Our command, in a process that was changed before."""
    command = [sys.executable, "-c", _MAIN.format(patch) + _THEN, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.mark.parametrize("why", _FAILURES)
def test_auto_does_without_what_fails_late(harness: Harness, enabled: None, why: str) -> None:
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    result = run_with(_FAILURES[why], "mount", "-o", "io_uring=auto,passthrough=off", mount.source, mount.point)
    assert result.returncode == exitcodes.OK, result.stderr
    assert result.stderr.endswith(_INSTEAD)
    assert result.stderr.count("WARNING: FUSE over io_uring, queue ") == 1
    mount.pid = daemon_pid(mount.point)
    assert mount.pid is not None
    for number in range(50):
        (mount.point / f"file-{number}").write_bytes(b"x" * number)
    assert (mount.source / "file-49").read_bytes() == b"x" * 49
    assert len(mounts_below(mount.point)) == 1
    mount.umount()
    assert ended(mount.pid)
    assert not is_mounted(mount.point)


@pytest.mark.parametrize("why", _FAILURES)
def test_on_says_what_fails_late(harness: Harness, enabled: None, why: str) -> None:
    point = harness.directory("mount")
    result = run_with(_FAILURES[why], "mount", "-o", "io_uring=on", harness.directory("source"), point)
    assert result.returncode == exitcodes.KERNEL, result.stderr
    assert result.stderr.splitlines()[-1].startswith("passthrough: FUSE over io_uring, queue ")
    assert not is_mounted(point)
    assert processes_about(point) == []


@pytest.mark.parametrize(
    "why",
    list(_FAILURES),
)
def test_on_says_so_in_one_line(harness: Harness, enabled: None, why: str) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    refusal(run_with(_FAILURES[why], "mount", "-o", "io_uring=on", source, point), exitcodes.KERNEL)


@pytest.mark.parametrize(
    "choice",
    [
        "on",
        "auto",
    ],
)
def test_a_mount_that_is_refused_has_nothing_to_do_with_it(harness: Harness, enabled: None, choice: str) -> None:
    patch = 'def refuse(*_):\n    raise OSError(1, "Operation not permitted")\nsyscalls.mount = refuse'
    source, point = harness.directory("source"), harness.directory("mount")
    line = refusal(run_with(patch, "mount", "-o", f"io_uring={choice}", source, point), exitcodes.PERMISSION)
    assert f"{point}: not allowed to mount here" in line


def test_what_failed_late_leaves_no_descriptor(harness: Harness, enabled: None) -> None:
    plain = harness.mount("-o", "io_uring=off")
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    run_with(_FAILURES["the queue"], "mount", "-o", "io_uring=auto", mount.source, mount.point)
    mount.pid = daemon_pid(mount.point)
    assert mount.pid is not None
    assert plain.pid is not None
    wait_until(lambda: len(threads_of(mount.server)) == len(threads_of(plain.server)), "as many threads")
    assert len(os.listdir(f"/proc/{mount.server}/fd")) == len(os.listdir(f"/proc/{plain.server}/fd"))


def test_more_waiting_locks_than_entries_stall_nobody(harness: Harness, enabled: None) -> None:
    """Each waiting lock keeps its entry, and the unlock must still get through, on the same CPU."""
    count = 4 * uring.ENTRIES
    mount = harness.mount("-o", "io_uring=on,posix_lock,cache=never")
    path = mount.point / "file"
    path.touch()
    program = (
        "import fcntl, os, sys; os.sched_setaffinity(0, {0}); f = open(sys.argv[1], 'r+');"
        "print('ready', flush=True); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True)"
    )
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    waiting: list[subprocess.Popen[str]] = []
    try:
        with open(path, "r+b") as holder:
            fcntl.lockf(holder, fcntl.LOCK_EX)
            for _ in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
                )
                waiting.append(process)
                harness.cleanups.append(process.kill)
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            wait_until(lambda: waiting_locks(mount.source / "file") >= count, "all of them wait")
            assert path.stat().st_size == 0  # others are served meanwhile
            fcntl.lockf(holder, fcntl.LOCK_UN)
            for process in waiting:
                assert process.wait(60) == 0
    finally:
        os.sched_setaffinity(0, before)
        for process in waiting:
            if process.stdout is not None:
                process.stdout.close()


def waiting_locks(path: Path) -> int:
    """How many wait for a lock on this file, by /proc/locks."""
    inode = f":{path.stat().st_ino} "
    with open("/proc/locks", encoding="ascii") as lines:
        return sum("->" in line and inode in line for line in lines)


def test_many_slow_requests_at_once(harness: Harness, enabled: None) -> None:
    """More fsyncs than entries, from one CPU: each keeps its entry while a helper does it."""
    mount = harness.mount("-o", "io_uring=on")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                with open(mount.point / f"file-{number}", "wb") as file:
                    file.write(bytes([turn]) * 1000)
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3 * uring.ENTRIES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not failures
    for number in range(3 * uring.ENTRIES):
        assert (mount.source / f"file-{number}").read_bytes() == bytes([19]) * 1000


def test_busy_clients_on_every_cpu(harness: Harness, enabled: None) -> None:
    """The queues take turns, and what is asked for on one CPU is not held up by the others for good."""
    mount = harness.mount("-o", "io_uring=on,passthrough=off,cache=never")
    big = os.urandom(1 << 20)

    def work(worker: int, cpu: int) -> str:
        os.sched_setaffinity(0, {cpu})
        for number in range(100):
            path = mount.point / f"{worker}-{number}"
            path.write_bytes(big if number % 10 == 0 else b"%d" % number)
            assert path.read_bytes() == (big if number % 10 == 0 else b"%d" % number)
            path.rename(mount.point / f"{worker}-{number}-done")
        return "done"

    cpus = sorted(os.sched_getaffinity(0)) * 2
    with ThreadPoolExecutor(len(cpus)) as pool:
        assert list(pool.map(work, range(len(cpus)), cpus)) == ["done"] * len(cpus)
    assert len(os.listdir(mount.source)) == 100 * len(cpus)


def test_requests_are_served_in_turns(harness: Harness, enabled: None) -> None:
    source = harness.directory("source")
    program = """if True:
        import os, sys
        import passthrough
        with passthrough.mount(passthrough.Tree(sys.argv[1]), sys.argv[2], io_uring="on") as mounted:
            queues = mounted._session._uring
            before = queues[0]._turn._turns.given
            os.mkdir(os.path.join(sys.argv[2], "made"))
            print(before, queues[0]._turn._turns.given, {id(queue._turn._turns) for queue in queues}, sep=";")
    """
    printed = harness.run_program(sys.executable, "-c", program, source, harness.directory("point"), cwd=ROOT)
    before, after, shared = printed.split(";")
    assert int(after) > int(before)
    assert "," not in shared, "all queues take turns with each other"


def test_a_request_that_is_stuck_holds_up_no_other_cpu(harness: Harness, enabled: None) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU, one queue")
    source = harness.directory("source")
    (source / "busy").mkdir()
    (source / "stuck" / "slow").mkdir(parents=True)
    slow = harness.mount("-o", "cache=never,io_uring=off", point=source / "stuck" / "slow")
    mount = harness.mount("-o", "io_uring=on,cache=never", source=source)
    before = os.sched_getaffinity(0)
    begun = threading.Event()

    def stick() -> None:
        os.sched_setaffinity(0, {cpus[1]})
        begun.set()
        assert not os.path.exists(mount.point / "stuck" / "slow" / "nothing")

    os.kill(slow.server, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            stuck = pool.submit(stick)
            assert begun.wait(TIMEOUT_S)
            os.sched_setaffinity(0, {cpus[0]})
            for number in range(300):
                (mount.point / "busy" / f"file-{number}").touch()
            assert not stuck.done()
        finally:
            os.kill(slow.server, signal.SIGCONT)
            os.sched_setaffinity(0, before)
        stuck.result(TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_under_load_leaves_no_process_behind(harness: Harness, enabled: None, number: signal.Signals) -> None:
    mount = harness.mount("-o", "io_uring=on,auto_unmount,cache=never")
    assert mount.pid is not None
    begun = threading.Event()

    def work() -> None:
        try:
            while True:
                os.stat(mount.point / "nothing")
        except FileNotFoundError:
            begun.set()
            work_on()
        except OSError:
            begun.set()

    def work_on() -> None:
        while True:
            try:
                os.stat(mount.point / "nothing")
            except FileNotFoundError:
                if not is_mounted(mount.point):
                    return
            except OSError:
                return

    workers = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert begun.wait(60)
    os.kill(mount.server if number == signal.SIGKILL else mount.pid, number)
    assert ended(mount.pid)
    wait_until(lambda: not is_mounted(mount.point), "the mount is gone")
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
