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
    libfuse: str
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
        libfuse=_libfuse(),
        load=os.getloadavg()[0],
        caches_dropped=caches_dropped,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _libfuse() -> str:
    try:
        return command("pkg-config", "--modversion", "fuse3").strip()
    except Failed:
        return "not installed"
