"""How a mount ends: by a signal, an unmount, an abort or a death; in use or not; and what is left then."""

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough import exitcodes

from .harness import (
    ROOT,
    TIMEOUT_S,
    Harness,
    Mount,
    background,
    command,
    daemon_pid,
    ended,
    is_mounted,
    log_size,
    mount_line,
    processes_about,
    run,
    said_in_log,
    wait_until,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
SOON_S = 20.0
"""More than any shutdown may take, on a machine that is busy with other things."""
CUT_OFF = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV, errno.ECANCELED}
"""What those get who still hold something of a mount that is gone (the last: its daemon was killed, and had rings)."""
LEFT = {"daemon": {b"written"}, "default": {b"written", b"writtenmore"}, "llfuse": {b"written"}}
"""What a file may hold that was written to after the end: where the kernel writes it itself, it still can."""
_WAYS = {"daemon": ("-o", "passthrough=off,io_uring=off"), "default": (), "llfuse": ("--transport=llfuse",)}
CONNECTIONS = Path("/sys/fs/fuse/connections")


def pid_of(mount: Mount) -> int:
    """The daemon."""
    assert mount.pid is not None
    return mount.pid


def gone(mount: Mount) -> bool:
    """Whether the mount and its daemon have gone, the daemon soon; and its state file with it."""
    return ended(pid_of(mount), SOON_S) and not is_mounted(mount.point) and no_state_of(mount)


def no_state_of(mount: Mount) -> bool:
    """Whether no file in /run/passthrough tells of this mount."""
    files = Path("/run/passthrough").glob("*.daemon")
    return not any(os.fsencode(mount.point) in _read(path) for path in files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.fixture(params=LEFT)
def way(request: pytest.FixtureRequest) -> str:
    """How the kernel and the daemon talk."""
    return str(request.param)


@pytest.fixture
def mount(harness: Harness, way: str) -> Mount:
    """A mount with the default options, without help from the kernel, or through llfuse."""
    return harness.mount(*_WAYS[way])


@contextlib.contextmanager
def told(script: str, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has said "ready"; it gets a line on standard input when the block writes one."""
    with background(
        sys.executable, "-uc", script, *map(str, words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


INSIDE = """
import os, sys
os.chdir(sys.argv[1])
file = open("file", "w")
file.write("written")
file.flush()
print("ready")
input()
try:
    os.write(file.fileno(), b"more")
    os.fsync(file.fileno())
    print("works")
except OSError as error:
    print(error.errno)
"""
"""A program with its working directory and an open file on the mount."""


def answer(process: subprocess.Popen[str]) -> str:
    """Let the program go on, and what it says then."""
    out, _ = process.communicate("\n", timeout=TIMEOUT_S)
    return out.strip()


# By a signal


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_the_daemon(mount: Mount, number: signal.Signals) -> None:
    (mount.point / "file").write_bytes(b"content")
    os.kill(pid_of(mount), number)
    assert gone(mount)
    assert (mount.source / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_it_is_in_use(mount: Mount, way: str, number: signal.Signals) -> None:
    with told(INSIDE, mount.point) as process:
        os.kill(pid_of(mount), number)
        assert gone(mount)
        assert int(answer(process)) in CUT_OFF
    assert (mount.source / "file").read_bytes() in LEFT[way]


def test_signals_one_after_the_other(mount: Mount) -> None:
    with told(INSIDE, mount.point) as process:
        for number in SIGNALS * 5:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid_of(mount), number)
        assert gone(mount)
        assert int(answer(process)) in CUT_OFF


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
print("ready")
number = 0
try:
    while True:
        number += 1
        os.pwrite(fd, number.to_bytes(8, "big") * 16384, 0 if number % 2 else 131072)
        os.fsync(fd)
        print(number)
except OSError as error:
    print("error", error.errno)
"""
"""Writes two blocks in turn, full of one number each, and says which of them fsync has confirmed."""


@pytest.mark.parametrize("options", [(), ("-o", "cache=never"), ("-o", "cache=always,writeback")])
@pytest.mark.parametrize("how", ["signal", "umount command"])
def test_what_was_confirmed_is_in_the_source(harness: Harness, options: tuple[str, ...], how: str) -> None:
    mount = harness.mount(*options)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(told(WRITER, mount.point / f"file{number}")) for number in range(4)]
        for writer in writers:
            assert writer.stdout is not None
            for expected in range(1, 6):
                assert writer.stdout.readline() == f"{expected}\n"
        if how == "signal":
            os.kill(pid_of(mount), signal.SIGTERM)
        else:
            mount.umount()
        assert gone(mount)
        for number, writer in enumerate(writers):
            out, _ = writer.communicate(timeout=TIMEOUT_S)
            *confirmed, last = out.splitlines()
            assert int(last.removeprefix("error ")) in CUT_OFF
            count = int(confirmed[-1]) if confirmed else 5
            data = (mount.source / f"file{number}").read_bytes()
            for block, least in (data[:131072], count - (count + 1) % 2), (data[131072:], count - count % 2):
                assert int.from_bytes(block[:8], "big") >= least
    assert os.listdir(mount.point) == []


def test_mounting_again_after_a_shutdown_in_use(harness: Harness, mount: Mount, way: str) -> None:
    with told(INSIDE, mount.point) as process:
        mount.umount()
        assert gone(mount)
        again = harness.mount(source=mount.source, point=mount.point)
        assert (again.point / "file").read_bytes() == b"written"
        assert int(answer(process)) in CUT_OFF
        assert (again.point / "file").read_bytes() in LEFT[way]
        again.umount()
        assert gone(again)


# By an unmount


@pytest.mark.parametrize("words", [("umount",), ("fusermount3", "-u"), ("umount", "-f"), ("umount", "-l")])
def test_unmount_from_outside(mount: Mount, harness: Harness, words: tuple[str, ...]) -> None:
    (mount.point / "file").write_bytes(b"content")
    harness.run_program(*words, mount.point)
    assert gone(mount)
    assert (mount.source / "file").read_bytes() == b"content"


def test_plain_umount_while_it_is_in_use_changes_nothing(mount: Mount) -> None:
    with told(INSIDE, mount.point) as process:
        result = subprocess.run(["umount", mount.point], capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert "busy" in result.stderr
        assert is_mounted(mount.point)
        assert answer(process) == "works"
    assert (mount.source / "file").read_bytes() == b"writtenmore"
    mount.umount()
    assert gone(mount)


@pytest.mark.parametrize("words", [("umount", "-l"), ("fusermount3", "-u", "-z")])
def test_lazy_umount_waits_for_the_last_user(mount: Mount, harness: Harness, words: tuple[str, ...]) -> None:
    with told(INSIDE, mount.point) as process:
        harness.run_program(*words, mount.point)
        assert not is_mounted(mount.point)
        assert not ended(pid_of(mount), 0.5)
        assert answer(process) == "works"
    assert gone(mount)
    assert (mount.source / "file").read_bytes() == b"writtenmore"


def test_signal_after_a_lazy_umount(mount: Mount, harness: Harness) -> None:
    with told(INSIDE, mount.point) as process:
        harness.run_program("umount", "-l", mount.point)
        os.kill(pid_of(mount), signal.SIGTERM)
        assert gone(mount)
        assert int(answer(process)) in CUT_OFF


def test_a_later_mount_on_the_same_point_is_left_alone(harness: Harness, mount: Mount) -> None:
    """A daemon whose mount was detached does not take another's away when it ends."""
    with told(INSIDE, mount.point) as process:
        harness.run_program("umount", "-l", mount.point)
        later = harness.mount(point=mount.point)
        os.kill(pid_of(mount), signal.SIGTERM)
        assert ended(pid_of(mount), SOON_S)
        assert is_mounted(later.point)
        (later.point / "new").touch()
        assert int(answer(process)) in CUT_OFF
    assert os.listdir(later.source) == ["new"]


def test_forced_umount_while_it_is_in_use(mount: Mount) -> None:
    with told(INSIDE, mount.point) as process:
        subprocess.run(["umount", "-f", mount.point], capture_output=True, check=False)
        assert gone(mount)
        assert int(answer(process)) in CUT_OFF


def test_our_umount_while_it_is_in_use(mount: Mount, way: str) -> None:
    with told(INSIDE, mount.point) as process:
        result = run("umount", mount.point)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert gone(mount)
        assert int(answer(process)) in CUT_OFF
    assert (mount.source / "file").read_bytes() in LEFT[way]


def test_umounts_at_once(mount: Mount) -> None:
    """However many do it at the same time, the mount is gone and one at least is told that it worked."""
    processes = [
        subprocess.Popen(command("umount", mount.point), stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    codes = []
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT_S)
        codes.append(process.returncode)
        assert "Traceback" not in errors
    assert exitcodes.OK in codes
    assert set(codes) <= {exitcodes.OK, exitcodes.NOT_MOUNTED}
    assert gone(mount)


# By an abort or a death


@pytest.fixture
def connections() -> Iterator[Path]:
    """fusectl, mounted for this test where the machine has not mounted it."""
    mounted_here = not is_mounted(CONNECTIONS)
    if mounted_here:
        subprocess.run(["mount", "-t", "fusectl", "none", CONNECTIONS], check=True)
    try:
        yield CONNECTIONS
    finally:
        if mounted_here:
            subprocess.run(["umount", "--lazy", CONNECTIONS], check=True)


@pytest.mark.parametrize("in_use", [False, True])
def test_abort(mount: Mount, connections: Path, in_use: bool) -> None:
    with told(INSIDE, mount.point) if in_use else contextlib.nullcontext() as process:
        number = os.minor(os.stat(mount.point).st_dev)
        (connections / str(number) / "abort").write_text("1")
        assert gone(mount)
        if process is not None:
            assert int(answer(process)) in CUT_OFF


def test_abort_in_the_foreground(harness: Harness, connections: Path) -> None:
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    words = command("mount", "-f", mount.source, mount.point)
    with background(*words, stderr=subprocess.PIPE, cwd=ROOT) as process:
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        number = os.minor(os.stat(mount.point).st_dev)
        (connections / str(number) / "abort").write_text("1")
        _, errors = process.communicate(timeout=SOON_S)
    assert not is_mounted(mount.point)
    assert "Traceback" not in errors
    assert process.returncode in (exitcodes.OK, exitcodes.SERVING)


def test_killed(mount: Mount) -> None:
    state = f"/run/passthrough/{(mount_line(mount.point) or '').split(' ')[2]}.daemon"
    with told(INSIDE, mount.point) as process:
        os.kill(pid_of(mount), signal.SIGKILL)
        assert ended(pid_of(mount))
        assert int(answer(process)) in CUT_OFF
    assert is_mounted(mount.point)
    with pytest.raises(OSError, match="not connected") as raised:
        os.listdir(mount.point)
    assert raised.value.errno == errno.ENOTCONN
    assert Path(state).exists()
    result = run("umount", mount.point)
    assert (result.returncode, result.stderr) == (0, "")
    assert not is_mounted(mount.point)
    assert run("umount", mount.point).returncode == exitcodes.NOT_MOUNTED
    Path(state).unlink()


def test_killed_and_cleared_while_it_is_in_use(mount: Mount) -> None:
    with told(INSIDE, mount.point) as process:
        os.kill(pid_of(mount), signal.SIGKILL)
        assert ended(pid_of(mount))
        assert run("umount", mount.point).returncode == 0
        assert not is_mounted(mount.point)
        assert int(answer(process)) in CUT_OFF


def test_a_stale_state_file_names_no_daemon(mount: Mount) -> None:
    """Process ids come again: what a killed daemon left must not have another process ended."""
    state = Path(f"/run/passthrough/{(mount_line(mount.point) or '').split(' ')[2]}.daemon")
    with background("sleep", "600") as innocent, told(INSIDE, mount.point) as process:
        os.kill(pid_of(mount), signal.SIGKILL)
        assert ended(pid_of(mount))
        state.write_text(state.read_text().replace(str(pid_of(mount)), str(innocent.pid)))
        mount.umount()
        assert not is_mounted(mount.point)
        assert int(answer(process)) in CUT_OFF
        assert innocent.poll() is None
        state.unlink(missing_ok=True)


@pytest.mark.parametrize("options", ["auto_unmount", "auto_unmount,cache=always", "sandbox=none", "cache=auto"])
@pytest.mark.parametrize("in_use", [False, True])
def test_a_killed_daemon_leaves_no_mount(harness: Harness, options: str, in_use: bool) -> None:
    mount = harness.mount("-o", options)
    os.stat(mount.point)
    with told(INSIDE, mount.point) if in_use else contextlib.nullcontext() as process:
        os.kill(mount.server, signal.SIGKILL)
        wait_until(lambda: not is_mounted(mount.point), "the mount has gone by itself", SOON_S)
        assert gone(mount)
        if process is not None:
            assert int(answer(process)) in CUT_OFF


@pytest.mark.parametrize("how", ["signal", "our umount", "umount"])
def test_auto_unmount_ends_with_the_daemon(harness: Harness, how: str) -> None:
    mount = harness.mount("-o", "auto_unmount")
    server = mount.server
    if how == "signal":
        os.kill(pid_of(mount), signal.SIGTERM)
    elif how == "umount":
        harness.run_program("umount", mount.point)
    else:
        mount.umount()
    assert gone(mount)
    assert ended(server, SOON_S)


@pytest.mark.parametrize("options", ["sandbox=namespace", "sandbox=chroot", "sandbox=landlock", "sandbox=none"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_either_process_ends_both(harness: Harness, number: signal.Signals, options: str) -> None:
    for inside in False, True:
        mount = harness.mount("-o", options)
        server = mount.server
        os.kill(server if inside else pid_of(mount), number)
        assert gone(mount)
        assert ended(server, SOON_S)


@pytest.mark.parametrize("options", ["sandbox=namespace", "sandbox=chroot", "sandbox=landlock", "sandbox=none"])
def test_the_daemon_dies_with_the_process_outside(harness: Harness, options: str) -> None:
    """Who would unmount is dead: what is left is a mount that answers ENOTCONN, and can be cleared."""
    mount = harness.mount("-o", options)
    server = mount.server
    os.kill(pid_of(mount), signal.SIGKILL)
    assert ended(server, SOON_S)
    with pytest.raises(OSError, match=r".") as raised:
        os.listdir(mount.point)
    assert raised.value.errno in CUT_OFF
    mount.umount()
    assert not is_mounted(mount.point)


ATTACKED = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from passthrough import share
from passthrough.cli import main

ATTACKS = {
    b"user.execve": lambda: os.execv("/bin/true", ["true"]),
    b"user.mount": lambda: ctypes.CDLL(None).mount(b"none", b"/", b"tmpfs", 0, b""),
    b"user.ptrace": lambda: ctypes.CDLL(None).ptrace(16, 1, 0, 0),
    b"user.unshare": lambda: ctypes.CDLL(None).unshare(0x10000000),
}

class Attacked(share.Tree):
    def getxattr(self, ctx, nodeid, name):
        if name in ATTACKS:
            ATTACKS[name]()
        return super().getxattr(ctx, nodeid, name)

share.Tree = Attacked
sys.exit(main(["mount", *sys.argv[4:], sys.argv[2], sys.argv[3]]))
"""
"""A daemon that was taken over, and does at once what nobody asked of it."""


@pytest.mark.parametrize("attack", ["execve", "mount", "ptrace", "unshare"])
@pytest.mark.parametrize("seccomp", ["errno", "kill"])
def test_an_attack_ends_the_daemon(harness: Harness, attack: str, seccomp: str) -> None:
    """And the mount with it; a line in the log says why."""
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    old = log_size()
    words = [sys.executable, "-c", ATTACKED, str(ROOT), str(mount.source), str(mount.point), f"--seccomp={seccomp}"]
    subprocess.run(words, check=True, timeout=TIMEOUT_S)
    mount.pid = daemon_pid(mount.point)
    with pytest.raises(OSError, match=r".") as raised:
        os.getxattr(mount.point, f"user.{attack}")
    assert raised.value.errno in CUT_OFF
    assert gone(mount)
    if not Path("/dev/log").exists():
        said = [line for line in said_in_log(mount.pid, since=old) if "]: ERROR" in line]
        assert len(said) == 1
        assert "ended by SIGSYS (a system call that means an attack" in said[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")])
def test_the_starter_is_ended_too_early(harness: Harness, number: signal.Signals, options: tuple[str, ...]) -> None:
    """Nobody is there to be told that the mount answers: then there is none, and above all no dead one."""
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    words = command("mount", *options, mount.source, mount.point)
    with background(*words, cwd=ROOT, stderr=subprocess.DEVNULL) as starter:
        wait_until(lambda: children_of(starter.pid) != [], "the daemon is forked")
        starter.send_signal(number)
        if starter.wait(TIMEOUT_S) == exitcodes.OK:
            mount.umount()  # Python lost the signal (it came in a callback of fork), or it came too late
    wait_until(lambda: processes_about(mount.point) == [], "the daemon has ended")
    assert not is_mounted(mount.point)
    assert no_state_of(mount)


def children_of(pid: int) -> list[str]:
    """The process ids of a process's children."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []


# Requests that wait

LOCKER = """
import errno, fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready")
try:
    (fcntl.lockf if sys.argv[2] == "posix_lock" else fcntl.flock)(fd, fcntl.LOCK_EX)
    print("locked")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("kind", ["posix_lock", "flock"])
@pytest.mark.parametrize("how", ["signal", "our umount"])
def test_a_waiting_lock_does_not_hold_it_up(harness: Harness, kind: str, how: str) -> None:
    mount = harness.mount("-o", kind)
    (mount.source / "file").touch()
    with open(mount.source / "file", "r+b") as holder:
        (fcntl.lockf if kind == "posix_lock" else fcntl.flock)(holder, fcntl.LOCK_EX)
        with told(LOCKER, mount.point / "file", kind) as process:
            wait_until(lambda: waits_for_a_reply(process.pid), "the lock is waited for")
            began = time.monotonic()
            if how == "signal":
                os.kill(pid_of(mount), signal.SIGTERM)
            else:
                mount.umount()
            assert gone(mount)
            assert time.monotonic() - began < 5
            assert int(process.communicate(timeout=TIMEOUT_S)[0]) in CUT_OFF | {errno.EINTR}


def waits_for_a_reply(pid: int) -> bool:
    """Whether a process sleeps in a FUSE request."""
    return "request_wait_answer" in Path(f"/proc/{pid}/wchan").read_text() + Path(f"/proc/{pid}/stack").read_text()


def test_a_lock_is_waited_for_while_others_work(harness: Harness) -> None:
    mount = harness.mount("-o", "posix_lock,threads=1")
    (mount.source / "file").touch()
    with open(mount.source / "file", "r+b") as holder:
        fcntl.lockf(holder, fcntl.LOCK_EX)
        with told(LOCKER, mount.point / "file", "posix_lock") as process:
            wait_until(lambda: waits_for_a_reply(process.pid), "the lock is waited for")
            (mount.point / "other").write_bytes(b"content")
            assert process.poll() is None
            fcntl.lockf(holder, fcntl.LOCK_UN)
            assert process.communicate(timeout=TIMEOUT_S)[0] == "locked\n"


# Mistakes of a file system

FAULTY = """
import sys
sys.path.insert(0, sys.argv[1])
from passthrough import share
from passthrough.cli import main

class Faulty(share.Tree):
    def getxattr(self, ctx, nodeid, name):
        if name == b"user.faulty":
            raise ValueError("nobody expects this")
        if name == b"user.memory":
            raise MemoryError
        if name == b"user.errno":
            raise OSError(99999, "no such number")
        return super().getxattr(ctx, nodeid, name)

share.Tree = Faulty
sys.exit(main(["mount", "-f", "--rlimit-nofile=0", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("transport", ["devfuse", "llfuse"])
def test_an_unexpected_exception_costs_one_request(harness: Harness, transport: str) -> None:
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    log = harness.base / "log"
    words = [sys.executable, "-uc", FAULTY, str(ROOT), f"--transport={transport}", str(mount.source), str(mount.point)]
    with log.open("w") as file, background(*words, stderr=file) as process:
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        assert process.poll() is None, log.read_text()
        (mount.point / "file").write_bytes(b"content")
        for name, number in ("faulty", errno.EIO), ("memory", errno.ENOMEM), ("errno", errno.EIO), ("x", errno.ENODATA):
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                os.getxattr(mount.point / "file", f"user.{name}")
        os.setxattr(mount.point / "file", "user.x", b"works")
        assert os.getxattr(mount.point / "file", "user.x") == b"works"
        assert (mount.point / "file").read_bytes() == b"content"
        mount.umount()
        assert process.wait(SOON_S) == exitcodes.OK
    said = log.read_text()
    assert said.count("Traceback") == 1
    assert said.count("a bug of ours: GETXATTR failed") == 1
    assert said.splitlines()[-1] == "ValueError: nobody expects this"
    assert no_state_of(mount)


def test_a_copy_in_another_namespace_does_not_keep_the_daemon(harness: Harness) -> None:
    mount = harness.mount()
    with background("unshare", "-m", "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == "ready\n"
        mount.umount()
        assert mount.pid is not None
        assert ended(mount.pid)
        elsewhere.stdout.close()
