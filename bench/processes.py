"""What the bench starts: processes, mounts and builds, each with its end.

Rules: only processes that the bench started, or that their death left to it, are waited for or killed.  Nothing sleeps:
a mount is awaited by polling the mount table, an exit by polling a pidfd.  A wait has a deadline.
"""

import contextlib
import ctypes
import hashlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
COMMAND_SECONDS = 60.0


class Failed(Exception):
    """Something that was started did not do what it should; the message names it and says why."""


class Unavailable(Exception):
    """A contender cannot be had here; the message is the reason that the report gives."""


def adopt_orphans() -> None:
    """Make this process the parent of daemons whose starter exits, so that they can be waited for by id."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl(PR_SET_CHILD_SUBREAPER)")


def children() -> set[int]:
    """The ids of this process's children, adopted ones too (zombies as well)."""
    me = str(os.getpid())
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry) == me}


def families(pids: set[int]) -> set[int]:
    """These processes with all below them: who serves may be a child of who was started."""
    found = set(pids)
    while added := {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) not in found and _parent(entry) in set(map(str, found))
    }:
        found |= added
    return found


def _parent(process: Path) -> str:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:  # it has just ended
        return ""


def wait_gone(pids: Iterable[int], seconds: float) -> set[int]:
    """Wait for children to exit and reap them; return those that are still there at the deadline."""
    deadline = time.monotonic() + seconds
    return {pid for pid in pids if not _reaped(pid, deadline)}


def _reaped(pid: int, deadline: float) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_milliseconds(deadline)):
            return False
    finally:
        os.close(pidfd)
    with contextlib.suppress(ChildProcessError):  # a Popen object was quicker
        os.waitpid(pid, 0)
    return True


def kill_all(keep: set[int]) -> None:
    """Kill every child not in keep, and the children that their deaths leave to us, until none is left."""
    while found := children() - keep:
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if stuck := wait_gone(found, COMMAND_SECONDS):
            raise Failed(f"processes {sorted(stuck)} survived SIGKILL")


def _milliseconds(deadline: float) -> int:
    return max(0, int((deadline - time.monotonic()) * 1000))


def command(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a short command to its end and return its output; anything but exit status 0 is Failed."""
    line = shlex.join(str(word) for word in words)
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{line}: {error}") from error
    if done.returncode:
        raise Failed(f"{line}: exit status {done.returncode}: {last_line(done.stderr or done.stdout)}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line that says something: where a traceback or a compiler puts the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def is_mounted(mountpoint: Path) -> bool:
    """Whether the mount table has it: unlike stat(), this never waits for a daemon."""
    return _in_table(mountpoint, Path("/proc/self/mountinfo").read_text())


def _in_table(mountpoint: Path, table: str) -> bool:
    return any(line.split()[4] == str(mountpoint) for line in table.splitlines())


def wait_mounted(mountpoint: Path, starter: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Wait until something is mounted there; False when the starter exits or the deadline comes first."""
    deadline = time.monotonic() + seconds
    pidfd = os.pidfd_open(starter.pid)
    try:
        # The table is opened before the first look: a change after that makes the poll return.
        with open("/proc/self/mountinfo") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI)
            poll.register(pidfd, select.POLLIN)
            while not _in_table(mountpoint, table.read()):
                if starter.poll() is not None or not poll.poll(_milliseconds(deadline)):
                    return is_mounted(mountpoint)
                table.seek(0)
            return True
    finally:
        os.close(pidfd)


def detach(mountpoint: Path) -> None:
    """Take away whatever is still mounted there, in use or not."""
    while is_mounted(mountpoint):
        if os.geteuid() == 0:
            command("umount", "--lazy", mountpoint)
        else:
            command("fusermount3", "-u", "-z", mountpoint)


def build(source: Path, *flags: str) -> Path:
    """Compile one C file into the cache folder unless that has been done; the name holds a hash of all that matters."""
    cc = os.environ.get("CC", "cc")
    key = hashlib.sha256(repr((cc, flags)).encode() + source.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "passthrough-bench"
    binary = cache / f"{source.stem}-{key}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(f".{os.getpid()}")
        command(cc, "-O2", *_before(flags), "-o", unfinished, source, *_libraries(flags))
        unfinished.rename(binary)
    return binary


def _before(flags: Sequence[str]) -> list[str]:
    return [flag for flag in flags if not flag.startswith("-l")]


def _libraries(flags: Sequence[str]) -> list[str]:
    return [flag for flag in flags if flag.startswith("-l")]
