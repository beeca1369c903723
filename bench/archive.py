"""The archive that the programs' rows unpack: a git repository with a work tree of small files, the same every time.

Its index stays right wherever it is unpacked (core.checkStat=minimal: time and size, not the inode's number), so `git
status` looks at every file and reads none.
"""

import os
import random
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import command

PER_DIRECTORY = 25
LONG_AGO = 1_600_000_000  # older than the index: else git must read a file to know that it is unchanged
SECTOR = 512


@dataclass(frozen=True)
class Archive:
    """Where it can be read, how many files its work tree has, and how many of them `find -type f -size +1` finds."""

    path: Path
    files: int
    large: int


@contextmanager
def archive(files: int) -> Iterator[Archive]:
    """Kept in memory, so that dropping caches does not drop it."""
    fd = os.memfd_create("archive.tar")
    try:
        with tempfile.TemporaryDirectory(prefix="passthrough-bench-") as directory:
            large = _make_tree(Path(directory) / "src", files)
            _make_repository(Path(directory))
            with os.fdopen(os.dup(fd), "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
                tar.add(directory, ".")
        yield Archive(Path(f"/proc/{os.getpid()}/fd/{fd}"), files, large)
    finally:
        os.close(fd)


def _make_tree(source: Path, files: int) -> int:
    """Most files are of one sector, some larger, as in a source tree; returns how many are larger."""
    chance = random.Random(files)
    large = 0
    for number in range(files):
        directory = source / f"d{number // PER_DIRECTORY:03}"
        directory.mkdir(parents=True, exist_ok=True)
        size = chance.choice((100, 300, SECTOR, 2000, 8000))
        large += size > SECTOR
        path = directory / f"f{number:05}"
        path.write_bytes(chance.randbytes(size))
        os.utime(path, (LONG_AGO, LONG_AGO))
    return large


def _make_repository(directory: Path) -> None:
    git = ("git", "-C", directory, "-c", "user.name=bench", "-c", "user.email=bench@localhost")
    command(*git, "init", "-q")
    command(*git, "config", "core.checkStat", "minimal")
    command(*git, "config", "core.trustctime", "false")
    command(*git, "add", ".")
    command(*git, "commit", "-q", "-m", "all")
    command(*git, "gc", "-q")
