"""Who is compared: each contender can be prepared, started over a source directory, and stopped.

Rules: `prepare` raises Unavailable with the reason, so that the report can give it.  `start` returns the directory to
work in when it is ready.  `stop` leaves neither mount nor process behind, whatever it found, and raises Failed when it
had to use force.  One contender runs at a time.
"""

import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from .processes import (
    Failed,
    Unavailable,
    build,
    children,
    command,
    detach,
    is_mounted,
    kill_all,
    last_line,
    wait_gone,
    wait_mounted,
)

PROJECT = Path(__file__).resolve().parent.parent
PASSTHROUGH = (sys.executable, "-m", "passthrough")
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")  # where Debian puts libfuse's examples
START_SECONDS = 30.0
GONE_SECONDS = 10.0


class Contender(ABC):
    """One row of the comparison; family groups the cache modes of one program."""

    def __init__(self, family: str, cache: str = "") -> None:
        self.family = family
        self.cache = cache
        self.name = f"{family}-{cache}" if cache else family

    @abstractmethod
    def prepare(self) -> None:
        """Build or find what start needs; Unavailable when it cannot be had."""

    @abstractmethod
    def start(self, source: Path, mountpoint: Path) -> Path:
        """Serve source and return the directory in which the client works."""

    @abstractmethod
    def stop(self) -> None:
        """Undo start; do nothing when it was not called or failed half-way and cleaned up."""

    @abstractmethod
    def kill(self) -> None:
        """End a daemon that hangs, which also frees a client that waits for it; stop comes after."""

    @property
    def detail(self) -> str:
        """What exactly is run, for the report."""
        return ""

    def last_words(self) -> str:
        """What the daemon printed last, to go with a failure; empty when it printed nothing."""
        return ""


class Native(Contender):
    """The source directory itself: what there is to lose."""

    def __init__(self) -> None:
        super().__init__("native")

    def prepare(self) -> None:
        """Always there."""

    def start(self, source: Path, mountpoint: Path) -> Path:
        return source

    def stop(self) -> None:
        """Nothing was started."""

    def kill(self) -> None:
        """Nothing was started."""


class Daemon(Contender):
    """A contender that mounts: one command starts it, one unmounts it, and its processes end with the mount."""

    foreground = False  # whether the starter stays as the daemon or returns when mounted

    def __init__(self, family: str, cache: str) -> None:
        super().__init__(family, cache)
        self._mountpoint: Path | None = None
        self._starter: subprocess.Popen[bytes] | None = None
        self._log = -1
        self._others: set[int] = set()

    @abstractmethod
    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        """The command that mounts."""

    def unmount(self, mountpoint: Path) -> None:
        """Unmount as a user would; Failed when that does not work."""
        command("fusermount3", "-u", mountpoint)

    @property
    def detail(self) -> str:
        return shlex.join(self.mount_command(Path("SRC"), Path("MNT")))

    def start(self, source: Path, mountpoint: Path) -> Path:
        self._others = children()
        self._mountpoint = mountpoint
        self._log = os.memfd_create(f"{self.name}.log")
        words = self.mount_command(source, mountpoint)
        # A session of its own: an interrupt from the keyboard reaches the bench alone, which then cleans up.
        self._starter = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True, cwd=PROJECT
        )
        try:
            self._wait_ready(self._starter, mountpoint)
        except BaseException:
            self._clean_up()
            raise
        return mountpoint

    def _wait_ready(self, starter: "subprocess.Popen[bytes]", mountpoint: Path) -> None:
        mounted = wait_mounted(mountpoint, starter, START_SECONDS)
        if mounted and not self.foreground:
            try:
                starter.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"{self.name}: mounted, but its command did not return") from None
        if not mounted or starter.poll():
            raise Failed(f"{self.name}: did not mount, exit status {starter.poll()}: {self.last_words()}")

    def stop(self) -> None:
        if self._mountpoint is None:
            return
        problems = []
        try:
            self.unmount(self._mountpoint)
            if is_mounted(self._mountpoint):
                problems.append("still mounted after its unmount command")
            elif left := wait_gone(children() - self._others, GONE_SECONDS):
                problems.append(f"processes {sorted(left)} still there {GONE_SECONDS:.0f} s after the unmount")
        except Failed as error:
            problems.append(str(error))
        finally:
            words = self.last_words()
            self._clean_up()
        if problems:
            raise Failed(f"{self.name}: {'; '.join(problems)} {words}".rstrip())

    def kill(self) -> None:
        """Kill only what start started; the kernel then ends every request with ENOTCONN."""
        keep = self._others | self._clients()
        kill_all(keep)

    def _clients(self) -> set[int]:
        session = os.getsid(0)
        return {pid for pid in children() if os.getsid(pid) == session}

    def _clean_up(self) -> None:
        """By force, and safe to repeat: no mount, no process, no open log."""
        assert self._mountpoint is not None
        try:
            detach(self._mountpoint)
        finally:
            kill_all(self._others)
            if self._starter:
                self._starter.wait()
            os.close(self._log)
            self._mountpoint = self._starter = None

    def last_words(self) -> str:
        text = os.pread(self._log, 1 << 20, 0).decode(errors="replace")
        return f"[its log: {last_line(text)}]" if text.strip() else ""


class Ours(Daemon):
    """This project, as a user runs it."""

    def __init__(self, cache: str) -> None:
        super().__init__("ours", cache)

    def prepare(self) -> None:
        try:
            command(*PASSTHROUGH, "mount", "--help", cwd=PROJECT)
        except Failed as error:
            raise Unavailable(str(error)) from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        options = f"cache={self.cache}"
        return [*PASSTHROUGH, "mount", "-o", options, str(source), str(mountpoint)]

    def unmount(self, mountpoint: Path) -> None:
        command(*PASSTHROUGH, "umount", mountpoint, cwd=PROJECT)


class PassthroughLL(Daemon):
    """libfuse's C example, built from the source that libfuse3-dev ships, against the installed library.

    A peer is run in its best setting: its threads help on two CPUs and halve it on one, where -s is better (NOTES.md).
    """

    foreground = True

    def __init__(self, cache: str, single_thread: bool = False) -> None:
        super().__init__("passthrough_ll", cache)
        self._threads = ["-s"] if single_thread else []
        self._binary = Path("passthrough_ll")

    def prepare(self) -> None:
        source = EXAMPLES / "passthrough_ll.c"
        if not source.exists():
            raise Unavailable(f"{source} is missing: install libfuse3-dev")
        try:
            flags = command("pkg-config", "--cflags", "--libs", "fuse3").split()
            self._binary = build(source, f"-I{EXAMPLES}", *flags)
        except Failed as error:
            raise Unavailable(str(error)) from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        options = f"source={source},cache={self.cache}"
        return [str(self._binary), "-f", *self._threads, "-o", options, str(mountpoint)]


def everyone(one_cpu: bool = False) -> list[Contender]:
    """All contenders, in the report's order."""
    modes = ("never", "auto")
    return [Native(), *(Ours(cache) for cache in modes), *(PassthroughLL(cache, one_cpu) for cache in modes)]
