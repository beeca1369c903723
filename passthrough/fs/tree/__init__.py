"""A shared directory: the file system behind `passthrough mount`.

State is three maps (inodes, open files, open directories) over descriptors; everything is dirfd + *at + O_NOFOLLOW, and
an inode is opened again through /proc/self/fd. A file per concern; Tree puts them together.
"""

from .attributes import Attributes
from .base import Covered, TreeBase
from .config import Cache, Choice, FileHandles, ReaddirPlus, TreeConfig
from .data import Data
from .directories import Directories
from .entries import Entries
from .filehandles import Opener
from .ioctls import Ioctls
from .locks import Locks
from .xattrs import Xattrs

__all__ = ["Cache", "Choice", "Covered", "FileHandles", "Opener", "ReaddirPlus", "Tree", "TreeBase", "TreeConfig"]


class Tree(Entries, Attributes, Locks, Data, Directories, Xattrs, Ioctls):
    """The whole of it: every FUSE request on a real directory."""
