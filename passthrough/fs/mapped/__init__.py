"""A shared directory whose owners, modes and device numbers are kept in xattrs: `security_model=mapped-xattr`."""

from .virtual import can_hold
from .xattrs import MappedTree

__all__ = ["MappedTree", "can_hold"]
