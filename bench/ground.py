"""Where it happens: a source directory on the file system asked for, and a mountpoint; both are gone afterwards."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .contender import Contender
from .processes import Failed, command, detach

SOURCES = ("tmpfs", "disk")
DISK = Path("/var/tmp")


@dataclass(frozen=True)
class Ground:
    """The source directory and the mountpoint, both empty between passes."""

    source: Path
    mountpoint: Path
    filesystem: str


@contextmanager
def ground(kind: str, mib: int) -> Iterator[Ground]:
    """A tmpfs when we may mount one, else a temporary directory; or a directory on /var/tmp."""
    work = Path(tempfile.mkdtemp(prefix="passthrough-bench-", dir=DISK if kind == "disk" else None)).resolve()
    source, mountpoint = work / "source", work / "mountpoint"
    try:
        source.mkdir()
        mountpoint.mkdir()
        if kind == "tmpfs":
            _mount_tmpfs(source, mib)
        yield Ground(source, mountpoint, command("stat", "-f", "-c", "%T", source).strip())
    finally:
        detach(mountpoint)
        detach(source)
        for directory in (mountpoint, source, work):  # not rmtree: what is not empty should be looked at
            directory.rmdir()


def _mount_tmpfs(directory: Path, mib: int) -> None:
    """Try; without it the source is on whatever holds temporary files, and the report names that file system."""
    try:
        command("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "passthrough-bench", directory)
    except Failed as error:
        print(f"no tmpfs as the source: {error}", file=sys.stderr)


@contextmanager
def share(where: Ground, folders: Sequence[str]) -> Iterator[Path]:
    """A fresh directory to be shared, with empty folders for the clients in it."""
    path = where.source / "share"
    path.mkdir()
    try:
        for folder in folders:
            (path / folder).mkdir()
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def serving(contender: Contender, source: Path, mountpoint: Path) -> Iterator[Path]:
    """A contender between start and stop."""
    try:
        yield contender.start(source, mountpoint)
    finally:
        contender.stop()
