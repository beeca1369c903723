"""What a remembered file costs the daemon: its memory before and after a client has asked for many, once each.

The kernel remembers what it has looked up, and a daemon must remember what the kernel does.  So nothing is dropped in
between, and the number stays below what the descriptor limit lets a daemon keep open, with room for one that starts to
forget at three quarters of it.
"""

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SHARE_OF_LIMIT = 0.7
WARM_UP = 200  # files asked for before the first look: the code that does it has run then


@dataclass(frozen=True)
class Memory:
    """Bytes: the daemon before, and how much each file added."""

    before: int
    rss: float
    pss: float


def affordable(wanted: int) -> int:
    """How many files to remember here."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, int(soft * SHARE_OF_LIMIT))


def make_files(directory: Path, count: int) -> None:
    """As the client names them."""
    for number in range(count):
        os.close(os.open(directory / f"f{number:08}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def per_file(processes: set[int], stat: Callable[[int], object], count: int) -> Memory:
    """Let stat(how many) ask for the files, and weigh the processes before and after."""
    stat(WARM_UP)
    rss, pss = _weigh(processes)
    stat(count)
    rss_after, pss_after = _weigh(processes)
    added = count - WARM_UP
    return Memory(rss, (rss_after - rss) / added, (pss_after - pss) / added)


def _weigh(processes: set[int]) -> tuple[int, int]:
    """RSS and PSS of all, in bytes."""
    sums = {"Rss:": 0, "Pss:": 0}
    for pid in processes:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            word, *rest = line.split()
            if word in sums:
                sums[word] += int(rest[0]) * 1024
    return sums["Rss:"], sums["Pss:"]
