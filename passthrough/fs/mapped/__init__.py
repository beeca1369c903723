"""A shared directory whose owners, modes and device numbers are kept in xattrs: `security_model=mapped-xattr`."""

from .tree import MappedTree
from .virtual import can_hold

__all__ = ["MappedTree", "can_hold"]
