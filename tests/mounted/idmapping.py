"""Idmapped mounts, made by the system calls: mount(8) knows X-mount.idmap only since util-linux 2.39."""

import contextlib
import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .harness import wait_until

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture (asm-generic)
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, 4
_MOUNT_ATTR_IDMAP = 0x00100000
_syscall = ctypes.CDLL(None, use_errno=True)["syscall"]


def _call(number: int, *arguments: object) -> int:
    found = _syscall(ctypes.c_long(number), *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


@contextlib.contextmanager
def user_namespace(inside: int, outside: int, count: int) -> Iterator[int]:
    """A descriptor of a user namespace with this one map, for users and groups."""
    ours = os.readlink("/proc/self/ns/user")
    with subprocess.Popen(["unshare", "--user", "sleep", "infinity"]) as process:
        try:
            base = Path(f"/proc/{process.pid}")
            wait_until(lambda: os.readlink(base / "ns" / "user") != ours, "the namespace is there")
            for kind in ("uid", "gid"):
                (base / f"{kind}_map").write_text(f"{inside} {outside} {count}\n")
            fd = os.open(base / "ns" / "user", os.O_RDONLY)
        finally:
            process.kill()
    try:
        yield fd
    finally:
        os.close(fd)


def mount_idmapped(source: Path, target: Path, namespace: int) -> None:
    """Show source on target, its ids mapped by the namespace. OSError (EINVAL) where its file system cannot."""
    tree = _call(
        _OPEN_TREE,
        ctypes.c_int(-100),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_uint(_OPEN_TREE_CLONE | 0o2000000),
    )
    try:
        attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace))
        size = ctypes.c_size_t(32)
        _call(_MOUNT_SETATTR, ctypes.c_int(tree), ctypes.c_char_p(b""), ctypes.c_uint(_AT_EMPTY_PATH), attributes, size)
        path = ctypes.c_char_p(os.fsencode(target))
        flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        _call(_MOVE_MOUNT, ctypes.c_int(tree), ctypes.c_char_p(b""), ctypes.c_int(-100), path, flags)
    finally:
        os.close(tree)
