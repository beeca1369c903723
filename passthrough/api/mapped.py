"""The shared directory with virtual owners, for programs."""

import os
from typing import Unpack

from ..fs import mapped
from .tree import Tree
from .words import TreeWords


class MappedTree(mapped.MappedTree, Tree):
    """A Tree whose owners, modes, device numbers and access lists are kept in xattrs (security_model=mapped-xattr): an
    ordinary user's program serves a root file system. Subclass it to add a policy, as a Tree."""

    def __init__(self, source: str | bytes | os.PathLike[str] | os.PathLike[bytes], **words: Unpack[TreeWords]) -> None:
        """As a Tree is made. UserError where source's file system has no user xattrs; ValueError together with squash
        and with default_permissions=False."""
        words.setdefault("security_model", "mapped-xattr")
        super().__init__(source, **words)
