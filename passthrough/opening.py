"""Whether the inodes of a share can be opened by their handles: what was asked for, and what can be had here.

What is not said is prefer, and nobody is told where that cannot be had.
"""

import errno
import logging

from . import exitcodes, syscalls
from .errors import UserError
from .fs.opener import Client
from .fs.tree import FileHandles
from .fs.tree.filehandles import has_handles

_log = logging.getLogger(__name__)


def is_wanted(mode: FileHandles | None) -> bool:
    """Whether handles are to be opened. UserError where they must be, and this user has no right to it."""
    if mode is FileHandles.NEVER:
        return False
    if syscalls.has_capability(syscalls.CAP_DAC_READ_SEARCH):
        return True
    why = "opening by file handle takes CAP_DAC_READ_SEARCH, which this user does not have"
    _not_to_be_had(mode, why, exitcodes.PERMISSION)
    return False


def can_open(client: Client, root: int, mode: FileHandles | None) -> bool:
    """Whether this client opens files of a share whose root this descriptor is open on: of other file systems at least,
    as they are met. UserError where handles are mandatory, and the root cannot be opened by its."""
    try:
        if not has_handles(root):
            raise OSError(errno.EOPNOTSUPP, "its file system has none that can be relied on")
        client.begin(root)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or mode is FileHandles.MANDATORY:
            status = exitcodes.SOURCE if error.errno == errno.EOPNOTSUPP else exitcodes.PERMISSION
            why = f"the share cannot be opened by its file handle: {error.strerror}"
            _not_to_be_had(mode, why, status, usual=error.errno in (errno.EPERM, errno.EOPNOTSUPP))
            return False
    return True


def _not_to_be_had(mode: FileHandles | None, why: str, status: int, *, usual: bool = True) -> None:
    """Say so, unless nobody asked for it and it is what is to be expected."""
    if mode is FileHandles.MANDATORY:
        raise UserError(f"inode_file_handles=mandatory: {why}; inode_file_handles=never does without", status)
    if mode is FileHandles.PREFER or not usual:
        _log.warning("inode_file_handles=prefer: %s; as with never, each file takes a descriptor", why)
    else:
        _log.debug("%s: each file takes a descriptor", why)
