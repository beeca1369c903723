"""What a contender is: it can be prepared, started over a source directory, and stopped.

Rules: `prepare` raises Unavailable with the reason, so that the report can give it.  `start` returns the directory to
work in when it is ready.  `stop` leaves neither mount nor process behind, whatever it found, and raises Failed when it
had to use force.  One contender runs at a time.
"""

import os
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from .processes import (
    Failed,
    children,
    command,
    detach,
    families,
    is_mounted,
    kill_all,
    last_line,
    wait_gone,
    wait_mounted,
)

PROJECT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
GONE_SECONDS = 10.0


class Contender(ABC):
    """One column of the comparison; family groups the cache modes and variants of one program."""

    def __init__(self, family: str, *parts: str) -> None:
        self.family = family
        self.name = "-".join([family, *(part for part in parts if part)])
        self.began = 0.0  # when start executed the command, CLOCK_MONOTONIC
        self.started = 0.0  # when the mount was there and the command, unless it is the daemon, had returned

    def processes(self) -> set[int]:
        """The ids of the processes that serve."""
        return set()

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

    def __init__(self, family: str, *parts: str) -> None:
        super().__init__(family, *parts)
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
        self.began = time.monotonic()
        # A session of its own: an interrupt from the keyboard reaches the bench alone, which then cleans up.
        self._starter = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True, cwd=PROJECT
        )
        try:
            self._wait_ready(self._starter, mountpoint)
        except BaseException:
            self._clean_up()
            raise
        self.started = time.monotonic()
        return mountpoint

    def processes(self) -> set[int]:
        return families(children() - self._others)

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
