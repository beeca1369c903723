"""Kinds of directories to share: made for a test, and gone after it (harness.cleanups)."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..harness import Harness

_IMAGE_BYTES = 400 << 20  # mkfs.xfs refuses less than 300 MB; the files are sparse


class Place(NamedTuple):
    """The directory to share, how tests see it behind the mount's back, and the mount point (None: a new one)."""

    share: Path
    source: Path
    point: Path | None = None


def _here(path: Path) -> Place:
    path.chmod(0o755)
    return Place(path, path)


def attach(harness: Harness, *words: str | Path) -> Path:
    """mount(8) with these words, on a new directory."""
    point = harness.directory("fs")
    harness.run_program("mount", *words, point)
    harness.cleanups.append(lambda: subprocess.run(["umount", str(point)], check=True))
    return point


def directory(harness: Harness) -> Place:
    """On the file system of the temporary files."""
    return _here(harness.directory("source"))


def tmpfs(harness: Harness) -> Place:
    return _here(attach(harness, "-t", "tmpfs", "-o", "size=512m", "tmpfs"))


def _image(*mkfs: str) -> Callable[[Harness], Place]:
    def make(harness: Harness) -> Place:
        image = harness.directory("image") / "image"
        with open(image, "wb") as file:
            file.truncate(_IMAGE_BYTES)
        harness.run_program(*mkfs, image)
        return _here(attach(harness, "-o", "loop", image))

    return make


def overlay(harness: Harness) -> Place:
    """Lower and upper directories on a tmpfs."""
    base = tmpfs(harness).share
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    return _here(attach(harness, "-t", "overlay", "-o", layers, "overlay"))


def ourselves(harness: Harness) -> Place:
    """A mount of ours."""
    return _here(harness.mount("-o", "allow_other,suid,dev,cache=never").point)


def inside_itself(harness: Harness) -> Place:
    """The mount point lies in the directory that is shared."""
    source = harness.directory("source")
    (source / "point").mkdir()
    return Place(source, source, source / "point")


def onto_itself(harness: Harness) -> Place:
    """The directory is its own mount point; behind it is seen through a bind mount made before."""
    source = harness.directory("source")
    behind = attach(harness, "--bind", source)
    harness.run_program("mount", "--make-private", behind)
    return Place(source, behind, source)


KINDS: tuple[tuple[str, Callable[[Harness], Place], Mapping[str, str]], ...] = (
    ("tmpfs", tmpfs, {}),
    ("ext4", _image("mkfs.ext4", "-q", "-F"), {}),
    ("xfs", _image("mkfs.xfs", "-q"), {}),
    ("btrfs", _image("mkfs.btrfs", "-q"), {}),
    ("overlay", overlay, {}),
    ("fuse", ourselves, {}),
    ("inside itself", inside_itself, {}),
    ("onto itself", onto_itself, {}),
)
