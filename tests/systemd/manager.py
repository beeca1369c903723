"""A systemd of our own: a user's manager, in a mount namespace where the machine seems to be run by it.

Its units are those of the repository, with the paths of this test in place of those of an installed machine. It ends
with the block, and all that it started: its cgroup is emptied and removed.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..mounted.harness import ROOT, ended, wait_until

UNITS = ROOT / "systemd"
_PROGRAM = Path("/lib/systemd/systemd")
_TARGETS = ("basic", "default", "exit", "shutdown", "sockets", "multi-user")
_NOT_A_USERS = ("ProtectKernelLogs", "ProtectKernelTunables")
"""What only the machine's own manager can set up (a user's ends with 226/NAMESPACE)."""
_EXIT_NOW = signal.SIGRTMIN + 24  # systemd(1)


@dataclass
class Manager:
    """A running manager."""

    base: Path
    pid: int

    def control(self, *words: str, check: bool = True) -> str:
        """systemctl."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.base / "run")}
        words = ("systemctl", "--user", *words)
        result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert not check or result.returncode == 0, (words, result.stdout, result.stderr, self.said())
        return result.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.control("show", unit, "--property", name, "--value").strip()

    def seen(self, path: Path) -> Path:
        """A path as those in the manager's mount namespace see it."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def said(self) -> str:
        """What the services wrote."""
        return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(self.base.glob("*.log")))

    def configure(self, name: str, **variables: object) -> None:
        """/etc/passthrough/NAME.conf."""
        lines = [f"{key}={value}\n" for key, value in variables.items()]
        (self.base / "etc" / f"{name}.conf").write_text("".join(lines))


def install(base: Path, prefix: str, *, outputs: bool = True) -> Path:
    """The repository's units for another place, and the targets that they hang on; the directory of the units."""
    units, etc, binary = base / "units", base / "etc", base / "bin"
    for directory in (units, etc, binary):
        directory.mkdir()
    program = binary / "passthrough"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -m passthrough "$@"\n'
    )
    program.chmod(0o755)
    for path in UNITS.iterdir():
        text = path.read_text().replace("/usr/local/bin", str(binary)).replace("/etc/passthrough", str(etc))
        text = text.replace("/run/passthrough-serve", prefix)
        if outputs and path.suffix == ".service":
            kind = path.stem.rstrip("@")
            for word in _NOT_A_USERS:
                text = text.replace(f"\n{word}=yes\n", "\n")
            text = text.replace("[Service]\n", f"[Service]\nStandardError=append:{base}/{kind}.log\n")
        (units / path.name).write_text(text)
    for target in _TARGETS:
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
    return units


def _hierarchies() -> list[Path]:
    """Our cgroups of the hierarchies that systemd keeps processes in: cgroup v2, and in a hybrid its own of v1."""
    ours = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        ours[name] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2" and "" in ours:
            found.append(point / ours[""].lstrip("/"))
        elif kind == "cgroup" and "name=systemd" in options.split(",") and "name=systemd" in ours:
            found.append(point / ours["name=systemd"].lstrip("/"))
    return found


@contextlib.contextmanager
def _cgroups() -> Iterator[list[Path]]:
    made: list[Path] = []
    try:
        for hierarchy in _hierarchies():
            group = hierarchy / f"passthrough-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError as error:
                pytest.skip(f"a manager needs a cgroup, and {hierarchy} is not writable here: {error.strerror}")
            made.append(group)
        if not made:
            pytest.skip("a manager needs a cgroup hierarchy, and none is mounted here")
        yield made
    finally:
        for group in made:
            _empty(group)


def _empty(group: Path) -> None:
    """End what is left in a cgroup of ours, and remove it."""
    for directory, _, _ in os.walk(group, topdown=False):
        for text in (Path(directory) / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(text), signal.SIGKILL)
            assert ended(int(text), 20)
        os.rmdir(directory)


@contextlib.contextmanager
def manager(base: Path) -> Iterator[Manager]:
    """A manager with our units, for the length of the block."""
    if not _PROGRAM.exists():
        pytest.skip("systemd is not installed (Debian: systemd)")
    units = install(base, str(base / "sockets"))
    (base / "run").mkdir(mode=0o700)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(base),
        "XDG_RUNTIME_DIR": str(base / "run"),
        "SYSTEMD_UNIT_PATH": str(units),
        "SYSTEMD_LOG_TARGET": "console",
    }
    booted = f"mount -t tmpfs none /run/systemd && mkdir /run/systemd/system && exec {_PROGRAM} --user"
    with _cgroups() as groups, open(base / "systemd.log", "w") as log:
        enter = "\n".join(f"echo $$ >{group}/cgroup.procs" for group in groups)
        words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f"{enter}\n{booted}"]
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        made = Manager(base, process.pid)
        try:
            private = base / "run" / "systemd" / "private"
            wait_until(lambda: private.exists() or process.poll() is not None, "the manager listens")
            assert process.poll() is None, made.said()
            yield made
        finally:
            process.send_signal(_EXIT_NOW)
            if not ended(process.pid, 30):
                process.kill()
            process.wait()
