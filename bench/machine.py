"""Where the bench ran: what a reader needs to judge the numbers."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from .processes import Failed, command


@dataclass(frozen=True)
class Machine:
    """Facts, collected once at the start."""

    date: str
    cpu: str
    cpus: int
    kernel: str
    python: str
    peers: str
    load: float
    caches_dropped: bool


def describe(caches_dropped: bool) -> Machine:
    """Look at this machine; a fact that cannot be had says so."""
    return Machine(
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cpu=_cpu_model(),
        cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        peers=_peers(),
        load=os.getloadavg()[0],
        caches_dropped=caches_dropped,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _peers() -> str:
    """Versions of the peers, as their packages say; the llfuse that counts is the system Python's."""
    versions = {
        "libfuse": _version("pkg-config", "--modversion", "fuse3"),
        "bindfs": _version("bindfs", "--version"),
        "llfuse": _version("/usr/bin/python3", "-c", "import llfuse; print(llfuse.__version__)"),
    }
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _version(*words: str) -> str:
    """The last word that a command prints."""
    try:
        return command(*words).split()[-1]
    except (Failed, IndexError):
        return "not installed"
