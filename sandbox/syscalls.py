"""What `os` and the bindings lack: namespaces, mounts, Landlock. ctypes signatures are set once, here.

Every function is a call and its check: CallError with the call and the path. Numbers are those of
include/uapi/asm-generic/unistd.h, which since 5.1 hold for every architecture; pivot_root is older.
"""

import ctypes
import os
import platform
from ctypes import c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p
from struct import Struct
from typing import Any

from .plan import CallError

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE, MS_SLAVE = 1 << 18, 1 << 19
MNT_DETACH = 2
OPEN_TREE_CLONE, AT_EMPTY_PATH, AT_RECURSIVE, AT_FDCWD = 1, 0x1000, 0x8000, -100
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_RULE_PATH_BENEATH, _LANDLOCK_CREATE_VERSION = 1, 1
_PIVOT_ROOT = {"x86_64": 155}.get(platform.machine(), 41)

_mount_attr = Struct("=QQQQ")  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
_ruleset_attr = Struct("=QQQ")  # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
_path_beneath = Struct("=Qi")  # struct landlock_path_beneath_attr, packed

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *arguments: Any, result: Any = c_int) -> Any:
    function = _libc[name]  # a new object each time, so that each has its own signature
    function.argtypes = arguments
    function.restype = result
    return function


_unshare = _function("unshare", c_int)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", c_char_p, c_int)
_pivot_root = _function("syscall", c_long, c_char_p, c_char_p, result=c_long)
_open_tree = _function("syscall", c_long, c_int, c_char_p, c_uint, result=c_long)
_move_mount = _function("syscall", c_long, c_int, c_char_p, c_int, c_char_p, c_uint, result=c_long)
_mount_setattr = _function("syscall", c_long, c_int, c_char_p, c_uint, c_void_p, c_ulong, result=c_long)
_landlock_create = _function("syscall", c_long, c_void_p, c_ulong, c_uint, result=c_long)
_landlock_add = _function("syscall", c_long, c_int, c_int, c_void_p, c_uint, result=c_long)
_landlock_restrict = _function("syscall", c_long, c_int, c_uint, result=c_long)


def _checked(result: int, call: str, path: str = "") -> int:
    if result < 0:
        raise CallError(call, ctypes.get_errno(), path)
    return int(result)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_unshare(flags), "unshare", f"{flags:#x}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    _checked(_mount(*words), "mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_umount2(os.fsencode(target), flags), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _checked(_pivot_root(_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def open_tree(path: str, flags: int) -> int:
    """open_tree(2) (Linux 5.2): with OPEN_TREE_CLONE a detached copy of the mounts there; it closes on exec."""
    return _checked(_open_tree(_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags | os.O_CLOEXEC), "open_tree", path)


def move_mount(tree: int, path: str) -> None:
    """move_mount(2) (Linux 5.2): attach a detached tree on a path."""
    result = _move_mount(_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(path), MOVE_MOUNT_F_EMPTY_PATH)
    _checked(result, "move_mount", path)


def mount_setattr(fd: int, path: str, flags: int, attributes: int) -> None:
    """mount_setattr(2) (Linux 5.12): set these MOUNT_ATTR_* bits."""
    packed = _mount_attr.pack(attributes, 0, 0, 0)
    result = _mount_setattr(_MOUNT_SETATTR, fd, os.fsencode(path), flags, packed, len(packed))
    _checked(result, "mount_setattr", path or "the share")


def landlock_abi() -> int:
    """The version of Landlock's ABI (Linux 5.13 has 1); 0 where the kernel has none, or it is switched off."""
    return max(0, int(_landlock_create(_LANDLOCK_CREATE, None, 0, _LANDLOCK_CREATE_VERSION)))


def landlock_create_ruleset(access_fs: int, access_net: int, scoped: int) -> int:
    """landlock_create_ruleset(2): a close-on-exec descriptor. Words that a kernel does not know must be 0."""
    attr = _ruleset_attr.pack(access_fs, access_net, scoped)
    size = len(attr) if scoped else 16 if access_net else 8
    return _checked(_landlock_create(_LANDLOCK_CREATE, attr, size, 0), "landlock_create_ruleset")


def landlock_allow_beneath(ruleset: int, fd: int, access_fs: int) -> None:
    """landlock_add_rule(2): this access to all that lies beneath the directory fd."""
    attr = _path_beneath.pack(access_fs, fd)
    result = _landlock_add(_LANDLOCK_ADD, ruleset, _LANDLOCK_RULE_PATH_BENEATH, attr, 0)
    _checked(result, "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): for this thread and those that it starts."""
    _checked(_landlock_restrict(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
