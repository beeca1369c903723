"""File handles on the mount, as an NFS server uses them: the kernel looks up `.` and `..` for that."""

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from .harness import Harness

_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(path: Path) -> bytes:
    """name_to_handle_at(2)."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount_id), 0) < 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    size = struct.unpack_from("=I", buffer)[0]
    return buffer.raw[: 8 + size]


def open_handle(mount: Path, handle: bytes) -> int:
    """open_by_handle_at(2), for reading."""
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        opened = int(_libc.open_by_handle_at(fd, handle, os.O_RDONLY))
        if opened < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return opened
    finally:
        os.close(fd)


def test_a_handle_opens_its_file_while_the_kernel_knows_it(harness: Harness) -> None:
    mount = harness.mount()
    (mount.source / "dir").mkdir()
    (mount.source / "dir" / "file").write_bytes(b"content")
    with open(mount.point / "dir" / "file", "rb"):
        fd = open_handle(mount.point, handle_of(mount.point / "dir" / "file"))
        assert os.read(fd, 100) == b"content"
        os.close(fd)


def test_a_directory_handle_finds_its_way_to_the_root(harness: Harness) -> None:
    mount = harness.mount()
    (mount.source / "a" / "b").mkdir(parents=True)
    fd = open_handle(mount.point, handle_of(mount.point / "a" / "b"))
    assert os.path.samestat(os.stat("..", dir_fd=fd), os.stat(mount.point / "a"))
    assert os.path.samestat(os.stat("../..", dir_fd=fd), os.stat(mount.point))
    os.close(fd)


def test_a_handle_of_a_forgotten_file_is_stale(harness: Harness) -> None:
    mount = harness.mount()
    (mount.source / "file").touch()
    handle = handle_of(mount.point / "file")
    mount.umount()
    again = harness.mount(source=mount.source, point=mount.point)
    with pytest.raises(OSError, match="open_by_handle_at") as raised:
        open_handle(again.point, handle)
    assert raised.value.errno == errno.ESTALE
