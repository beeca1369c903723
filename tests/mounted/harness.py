"""Mounts for tests: made by the real command, cleared whatever happens, conditions waited for instead of time.

Rules: every mount is made through `Harness.mount`, which remembers it; `Harness.close` (called by the fixture, also
when a test failed) unmounts all of them, ends the daemons that it started, and complains about one that would not go.
"""

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEWER_LLFUSE = Path(sys.prefix, "llfuse-1.5")
"""Where `make test` puts the other version of llfuse that is in use; the one that is imported is Debian's, 1.4."""
URING_SWITCH = Path("/sys/module/fuse/parameters/enable_uring")
COMMAND = (sys.executable, "-m", "passthrough")
TIMEOUT_S = 60.0
_LOG = Path("/run/passthrough/daemon.log")


def wait_until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT_S) -> None:
    """Poll a condition that nothing announces; AssertionError naming it after timeout seconds."""
    end = time.monotonic() + timeout
    pause = select.poll()
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never came true: {what}")
        pause.poll(5)


def newer_llfuse_or_skip() -> None:
    """For what runs with llfuse 1.5: nobody has it who has not run make test."""
    if not NEWER_LLFUSE.exists():
        pytest.skip(f"llfuse 1.5 is not in {NEWER_LLFUSE}; make test puts it there")


def with_modules(*directories: Path) -> dict[str, str]:
    """The environment of our command, with the Python modules in these directories before all others."""
    path = ":".join(map(str, (*directories, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run(*words: str | os.PathLike[str], user: int | None = None, **more: object) -> subprocess.CompletedProcess[str]:
    """Run our command with its output captured; `user` runs it as that ordinary uid."""
    environment = with_modules()
    options: dict[str, object] = {"capture_output": True, "text": True, "timeout": TIMEOUT_S, "env": environment}
    if user is not None:
        environment.pop("XDG_RUNTIME_DIR", None)
        options |= {"user": user, "group": user, "extra_groups": []}
    options |= more
    return subprocess.run(command(*words), check=False, **options)  # type: ignore[call-overload, no-any-return]


def affinities(pid: int) -> list[set[int]]:
    """The CPUs that each thread of a process may run on."""
    return [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]


@contextlib.contextmanager
def bound(content: Path, over: str) -> Iterator[None]:
    """Show `content` where the file `over` is: unlike a change of that file, it cannot be left half undone."""
    subprocess.run(["mount", "--bind", content, over], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", over], check=True)  # somebody may have it open, then it is busy


@contextlib.contextmanager
def for_users() -> Iterator[None]:
    """/dev/fuse is there for everybody."""
    device = os.stat("/dev/fuse")
    if device.st_mode & 0o006 == 0o006:
        yield
        return
    with tempfile.TemporaryDirectory() as directory:
        node = Path(directory, "fuse")
        os.mknod(node, stat.S_IFCHR, device.st_rdev)
        node.chmod(0o666)
        with bound(node, "/dev/fuse"):
            yield


@contextlib.contextmanager
def for_other_users() -> Iterator[None]:
    """The same, and /etc/fuse.conf lets them use allow_other."""
    with for_users(), tempfile.TemporaryDirectory() as directory:
        conf = Path(directory, "fuse.conf")
        conf.write_text("user_allow_other\n")
        os.chmod(directory, 0o755)
        with bound(conf, "/etc/fuse.conf"):
            yield


def unexpected(text: str) -> str:
    """What a command said, without the line about a limit of open files that this machine keeps low."""
    return re.sub(r"^.*RLIMIT_NOFILE.*the hard limit of \d+ cannot be raised.*\n", "", text, flags=re.MULTILINE)


def log_size() -> int:
    """Where the log of background daemons ends now. It is the machine's: a process id may be in it from before."""
    return _LOG.stat().st_size if _LOG.exists() else 0


def said_in_log(pid: int | None, *, since: int) -> list[str]:
    """The lines of this keeper's daemon in the log, from log_size() on."""
    if pid is None or not _LOG.exists():
        return []
    text = unexpected(_LOG.read_bytes()[since:].decode())
    return [line for line in text.splitlines() if f"passthrough[{pid}]" in line]


def mount_line(point: Path) -> str | None:
    """The line of /proc/self/mountinfo for the topmost mount on this path, or None."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        found = [line for line in lines if line.split(" ")[4] == _escaped(point)]
    return found[-1] if found else None


def _escaped(point: Path) -> str:
    """As mountinfo writes a path (seq_path in fs/proc_namespace.c)."""
    return re.sub(r"[\\ \t\n]", lambda match: f"\\{ord(match[0]):03o}", str(point))


def is_mounted(point: Path) -> bool:
    """Whether something is mounted exactly there."""
    return mount_line(point) is not None


@dataclass
class Mount:
    """One mount: the source directory, the mount point, and the process outside its sandbox, if it could be learnt."""

    source: Path
    point: Path
    pid: int | None = None

    @property
    def server(self) -> int:
        """The daemon itself, inside its sandbox: the one child of the process outside."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    def umount(self, *words: str) -> None:
        """The clean way, by our own command."""
        result = run("umount", self.point)
        assert result.returncode == 0, result.stderr


@dataclass
class Harness:
    """Makes directories and mounts below one temporary directory, and clears them."""

    base: Path
    mounts: list[Mount] = field(default_factory=list)
    cleanups: list[Callable[[], object]] = field(default_factory=list)
    _count: int = 0

    def directory(self, name: str = "dir", mode: int = 0o755) -> Path:
        """A fresh empty directory."""
        self._count += 1
        path = self.base / f"{name}{self._count}"
        path.mkdir()
        path.chmod(mode)
        return path

    def mount(
        self,
        *options: str,
        source: Path | None = None,
        point: Path | None = None,
        user: int | None = None,
        descriptors: int | None = None,
        env: dict[str, str] | None = None,
    ) -> Mount:
        """`passthrough mount OPTIONS SRC MNT`; AssertionError with its standard error where it fails.

        descriptors is the daemon's RLIMIT_NOFILE; env is what with_modules() makes.
        """
        mount = Mount(source or self.directory("source"), point or self.directory("mount"))
        if user is not None:
            for path in (mount.source, mount.point):
                os.chown(path, user, user)
        self.mounts.append(mount)
        more: dict[str, object] = {"env": env} if env is not None else {}
        if descriptors is not None:
            more["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        result = run("mount", *options, mount.source, mount.point, user=user, **more)
        assert result.returncode == 0, result.stderr
        mount.pid = daemon_pid(mount.point, user)
        return mount

    def run_program(self, *words: str | os.PathLike[str], **more: object) -> str:
        """A program that must succeed; returns its standard output."""
        result = subprocess.run(
            [os.fspath(word) for word in words], capture_output=True, text=True, check=False, timeout=600, **more
        )  # type: ignore[call-overload]
        assert result.returncode == 0, f"{words}: {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
        return str(result.stdout)

    def close(self) -> None:
        """Clear everything; AssertionError for what would not go."""
        stuck = []
        for mount in reversed(self.mounts):
            if is_mounted(mount.point) and run("umount", mount.point).returncode != 0:
                subprocess.run(["umount", "-l", str(mount.point)], check=False, capture_output=True)
            if is_mounted(mount.point):
                stuck.append(str(mount.point))
            if mount.pid is not None and not ended(mount.pid):
                stuck.append(f"daemon {mount.pid}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(mount.pid, signal.SIGKILL)
        for cleanup in reversed(self.cleanups):
            cleanup()
        shutil.rmtree(self.base, ignore_errors=True)
        assert not stuck, stuck


def daemon_pid(point: Path, user: int | None = None) -> int | None:
    """Who serves this mount, out of the daemon's state file."""
    line = mount_line(point)
    if line is None:
        return None
    directory = "/run/passthrough" if user is None and os.geteuid() == 0 else f"/tmp/passthrough-{user or os.geteuid()}"
    try:
        with open(f"{directory}/{line.split(' ')[2]}.daemon", encoding="utf-8", errors="replace") as file:
            return int(file.readline())
    except OSError:
        return None


def ended(pid: int, timeout: float = TIMEOUT_S) -> bool:
    """Whether this process ends within timeout seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(fd)


@contextlib.contextmanager
def background(*words: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block, however it ends."""
    with subprocess.Popen(words, text=True, **more) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def command(*words: str | os.PathLike[str]) -> Sequence[str]:
    """Our command line as a list, for Popen."""
    return [*COMMAND, *(os.fspath(word) for word in words)]


def apart(setup: str, *words: str | os.PathLike[str], user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run our command in a mount namespace of its own, which the shell lines `setup` have changed before."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user is not None else []
    shell = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{setup}\nexec "$@"', "sh"]
    return subprocess.run(
        [*shell, *become, *command(*words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def refusal(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line in which our command says why it did nothing; AssertionError where it is none, or more."""
    assert result.returncode == status, (result.returncode, result.stderr)
    assert not result.stdout, result.stdout
    assert re.fullmatch(r"passthrough: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def processes_about(path: Path) -> list[int]:
    """The processes that have this path on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and os.fsencode(path) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def mounts_below(path: Path) -> list[str]:
    """The mount points at or below this path."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [point for point in (line.split(" ")[4] for line in lines) if Path(point).is_relative_to(_escaped(path))]
