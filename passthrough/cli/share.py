"""The file system of a share: the tree, and what the options put before it; the same behind every door."""

import sandbox

from ..filesystem import FileSystem
from ..fs.readonly import ReadOnly
from ..fs.tree import Covered, Opener, Tree, TreeConfig


def file_system(
    fd: int,
    config: TreeConfig,
    inside: sandbox.Inside,
    *,
    readonly: bool = False,
    covered: Covered | None = None,
    opener: Opener | None = None,
) -> FileSystem:
    """What serves the directory, or the single file, that fd (O_PATH, taken over) is open on, in this sandbox; opener
    is what opens by file handle, if anything may."""
    tree = Tree(fd, config, covered, inside.proc if inside.root >= 0 else None, opener)
    return ReadOnly(tree) if readonly else tree
