"""What mount() and serve() are given, and what is served: a tree's words may put something before it (share.py)."""

from dataclasses import replace

from ..filesystem import FileSystem
from ..fs import readonly
from ..fs.decorator import Decorator
from ..options import MountOptions
from ..owner_options import Squash
from .tree import Tree


def check_file_system(fs: FileSystem) -> None:
    """TypeError where fs is something else, such as the path of the directory that is meant."""
    if not isinstance(fs, FileSystem):
        raise TypeError(f"a FileSystem is needed, such as Tree(PATH), and not a {type(fs).__name__}")


def front(fs: FileSystem) -> FileSystem:
    """What is served where fs is given. TypeError where it is no file system."""
    check_file_system(fs)
    return fs.front() if isinstance(fs, Tree) else fs


class ReadOnly(readonly.ReadOnly):
    """Stands before another FileSystem, and refuses every change (EROFS). Reading may still change access times there:
    that is the host's affair."""

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(front(fs))


def tree_of(fs: FileSystem) -> Tree | None:
    """The tree, if it is one that is behind."""
    while isinstance(fs, Decorator):
        fs = fs.fs
    return fs if isinstance(fs, Tree) else None


def options_of(fs: FileSystem) -> MountOptions:
    """What a file system says of the mount it is to have. TypeError where it is none."""
    check_file_system(fs)
    tree = tree_of(fs)
    said = MountOptions() if tree is None else tree.said
    if said.squash is Squash.ALL:  # who asks is checked by the source, and that is no matter of the mount's options
        return said
    return replace(said, default_permissions=fs.default_permissions)
