"""Kernel passthrough, what every file system of ours must know of it: how deep."""

from .. import syscalls

_STACKED = frozenset({0x794C7630, 0x65735546, 0xF15F})  # overlay, FUSE, ecryptfs (linux/magic.h)


def stack_depth(fd: int) -> int:
    """What to ask for in INIT: 2, the most, where the source may itself be stacked; else 1, so that one more file
    system (an overlay) can be put on top of the mount."""
    return 2 if syscalls.filesystem_type(fd) in _STACKED else 1
