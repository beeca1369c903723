"""What an exported file does, case by case: each case is a function of the file, and its result a value or an errno.

Rules: a case leaves content and size as it found them where the next one would mind (`restore`); results are plain
values, so that two exporters can be compared. `OURS` is what we answer; `DIFFERENT` is where QEMU 7.2 answers something
else, with the words under which the man page gives the reason.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from passthrough import syscalls

from .exporters import KINDS, MIB, pattern

SIZE = MIB
HOLE = (256 << 10, 512 << 10)
"""Where the image has a hole: offset and length."""
NBD = ("nbdkit-file", "nbdkit-memory", "qemu-nbd")
KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32


def content() -> bytes:
    """The image: data, a hole, data."""
    first = pattern(SIZE)
    offset, length = HOLE
    return first[:offset] + bytes(length) + first[offset + length :]


@contextlib.contextmanager
def opened(file: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of the file."""
    fd = os.open(file, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def outcome(case: Callable[[Path], Any], file: Path) -> Any:
    """The case's value, or its errno's name."""
    try:
        return case(file)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def restore(file: Path) -> None:
    """The whole content again, for a case that has changed it; the length too, where it can be set."""
    with opened(file) as fd:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_size != SIZE:
                os.ftruncate(fd, SIZE)
        os.pwrite(fd, content()[: os.fstat(fd).st_size], 0)
        offset, length = HOLE
        with contextlib.suppress(OSError):
            syscalls.fallocate(fd, PUNCH | KEEP, offset, length)


def digest(file: Path) -> str:
    """What the file holds."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


CONTENT = hashlib.sha256(content()).hexdigest()[:16]


def pwrite(file: Path, data: bytes, offset: int, flags: int = os.O_WRONLY) -> int:
    with opened(file, flags) as fd:
        return os.pwrite(fd, data, offset)


def fallocate(file: Path, mode: int, offset: int, length: int) -> int:
    """The length of the file afterwards."""
    with opened(file) as fd:
        syscalls.fallocate(fd, mode, offset, length)
        return os.fstat(fd).st_size


def seek(file: Path, offset: int, whence: int) -> int:
    with opened(file, os.O_RDONLY) as fd:
        return os.lseek(fd, offset, whence)


def zeroed(file: Path, mode: int, offset: int, length: int) -> tuple[int, bool, bool]:
    """(length, whether the range reads as zeros, whether its neighbours are untouched)."""
    size = fallocate(file, mode, offset, length)
    found, before = file.read_bytes(), content()
    end = min(offset + length, SIZE)
    return size, not any(found[offset:end]), found[:offset] == before[:offset] and found[end:SIZE] == before[end:]


def truncated(file: Path, size: int) -> tuple[int, bool]:
    """(length afterwards, whether what is left is as it was and what came reads as zeros)."""
    os.truncate(file, size)
    found = file.read_bytes()
    return len(found), found == content()[:size].ljust(size, b"\0")


def mapped_write(file: Path) -> bytes:
    with opened(file) as fd:
        with mmap.mmap(fd, 8192, mmap.MAP_SHARED, offset=4096) as view:
            view[100:105] = b"hello"
            view.flush()
        return os.pread(fd, 5, 4196)


def mapped_read(file: Path) -> bool:
    with opened(file, os.O_RDONLY) as fd, mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
        return view[:] == content()


def copied_over(file: Path) -> bool:
    """What cp does: O_TRUNC, then writes; nothing is cut off, as on a disk."""
    other = pattern(SIZE // 2, 7)
    file.write_bytes(other)
    return file.read_bytes() == other + content()[SIZE // 2 :]


def mtime_moves(file: Path) -> bool:
    before = os.stat(file).st_mtime_ns
    pwrite(file, content()[:10], 0)
    return os.stat(file).st_mtime_ns > before


def mtime_stays(file: Path) -> bool:
    return len({os.stat(file).st_mtime_ns for _ in range(3)}) == 1


def extended(file: Path, offset: int, data: bytes) -> tuple[int, int, bool]:
    """(written, length afterwards, whether what was there is untouched and the gap reads as zeros)."""
    written = pwrite(file, data, offset)
    found = file.read_bytes()
    before = content()[:offset].ljust(offset, b"\0")
    return written, len(found), found[:offset] == before and found[offset:] == data[:written]


READ_ONLY: dict[str, Callable[[Path], Any]] = {
    "is a regular file": lambda file: stat.S_ISREG(os.stat(file).st_mode),
    "mode at first": lambda file: oct(stat.S_IMODE(os.stat(file).st_mode)),
    "owner": lambda file: (os.stat(file).st_uid, os.stat(file).st_gid, os.stat(file).st_nlink),
    "size": lambda file: os.stat(file).st_size,
    "content": digest,
    "read at the end": lambda file: seek_read(file, SIZE, 10),
    "read past the end": lambda file: seek_read(file, SIZE + 5, 10),
    "read across the end": lambda file: len(seek_read(file, SIZE - 4, 10)),
    "mapped read": mapped_read,
    "open for writing": lambda file: opens(file, os.O_RDWR),
    "open and write": lambda file: pwrite(file, b"x", 0),
    "open with O_TRUNC": lambda file: opens(file, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda file: os.truncate(file, 10),
    "fallocate": lambda file: fallocate(file, 0, SIZE, 10),
    "chmod u+w": lambda file: os.chmod(file, 0o600),
    "chmod a+r": lambda file: mode_after(file, 0o444),
    "chown": lambda file: owner_after(file, 1, 1),
    "utime": lambda file: os.utime(file, (1, 2)),
    "times stay": mtime_stays,
    "data from 0": lambda file: seek(file, 0, os.SEEK_DATA),
    "hole from 0": lambda file: seek(file, 0, os.SEEK_HOLE),
    "data from the hole": lambda file: seek(file, HOLE[0], os.SEEK_DATA),
    "hole after the data": lambda file: seek(file, HOLE[0] + HOLE[1], os.SEEK_HOLE),
    "data at the end": lambda file: seek(file, SIZE, os.SEEK_DATA),
    "hole at the end": lambda file: seek(file, SIZE, os.SEEK_HOLE),
    "hole past the end": lambda file: seek(file, SIZE + 1, os.SEEK_HOLE),
    "a name below": lambda file: os.stat(f"{file}/name"),
    "mkdir below": lambda file: os.mkdir(f"{file}/name"),
    "list": lambda file: os.listdir(file),
    "readlink": lambda file: os.readlink(file),
    "setxattr": lambda file: os.setxattr(file, "user.a", b"b"),
    "listxattr": lambda file: os.listxattr(file),
    "block size": lambda file: os.stat(file).st_blksize >= 4096,
    "statfs": lambda file: os.statvfs(file).f_blocks * os.statvfs(file).f_frsize,
    "fsync": lambda file: synced(file, os.O_RDONLY),
}


def seek_read(file: Path, offset: int, size: int) -> bytes:
    with opened(file, os.O_RDONLY) as fd:
        return os.pread(fd, size, offset)


def opens(file: Path, flags: int) -> bool:
    with opened(file, flags):
        return True


def mode_after(file: Path, mode: int) -> str:
    os.chmod(file, mode)
    return oct(stat.S_IMODE(os.stat(file).st_mode))


def owner_after(file: Path, uid: int, gid: int) -> tuple[int, int]:
    os.chown(file, uid, gid)
    return os.stat(file).st_uid, os.stat(file).st_gid


def synced(file: Path, flags: int) -> bool:
    with opened(file, flags) as fd:
        os.fsync(fd)
        os.fdatasync(fd)
    return True


WRITABLE: dict[str, Callable[[Path], Any]] = {
    "rw: mode at first": lambda file: oct(stat.S_IMODE(os.stat(file).st_mode)),
    "rw: write and read back": lambda file: (pwrite(file, b"hello", 1000), seek_read(file, 1000, 5)),
    "rw: write of many buffers": lambda file: written_in_parts(file),
    "rw: write across the end": lambda file: pwrite(file, b"12345678", SIZE - 4),
    "rw: write at the end": lambda file: pwrite(file, b"1234", SIZE) or "nothing",
    "rw: write past the end": lambda file: pwrite(file, b"1234", SIZE + 4096) or "nothing",
    "rw: append": lambda file: pwrite(file, b"1234", 0, os.O_WRONLY | os.O_APPEND) or "nothing",
    "rw: size after those": lambda file: os.stat(file).st_size,
    "rw: mapped write": mapped_write,
    "rw: fsync": lambda file: synced(file, os.O_RDWR),
    "rw: mtime after a write": mtime_moves,
    "rw: fallocate below the end": lambda file: fallocate(file, 0, 0, 4096),
    "rw: fallocate of what is there, size kept": lambda file: fallocate(file, KEEP, 0, 4096),
    "rw: punch a hole": lambda file: zeroed(file, PUNCH | KEEP, 65536, 65536),
    "rw: the hole can be found": lambda file: (
        fallocate(file, PUNCH | KEEP, 65536, 65536),
        seek(file, 0, os.SEEK_HOLE),
    ),
    "rw: punch across the end": lambda file: zeroed(file, PUNCH | KEEP, SIZE - 65536, 131072),
    "rw: punch without keeping the size": lambda file: fallocate(file, PUNCH, 0, 4096),
    "rw: punch an odd range": lambda file: zeroed(file, PUNCH | KEEP, 1001, 7777),
    "rw: zero a range": lambda file: zeroed(file, ZERO | KEEP, 65536, 65536),
    "rw: zero a range in place": lambda file: zeroed(file, ZERO, 65536, 65536),
    "rw: zero an odd range": lambda file: zeroed(file, ZERO, 1001, 7777),
    "rw: zero across the end, size kept": lambda file: zeroed(file, ZERO | KEEP, SIZE - 4096, 8192),
    "rw: collapse": lambda file: fallocate(file, COLLAPSE, 0, 4096),
    "rw: insert": lambda file: fallocate(file, INSERT, 0, 4096),
    "rw: O_TRUNC": lambda file: (opens(file, os.O_WRONLY | os.O_TRUNC), os.stat(file).st_size),
    "rw: copy over it": copied_over,
    "rw: truncate to the same": lambda file: truncated(file, SIZE),
    "rw: chmod others": lambda file: mode_after(file, 0o666),
}


def written_in_parts(file: Path) -> bool:
    parts = [pattern(size, seed) for seed, size in enumerate((1, 4095, 3, 70000, 512), 1)]
    with opened(file) as fd:
        count = os.pwritev(fd, parts, 12345)
        whole = b"".join(parts)
        return count == len(whole) and os.pread(fd, count, 12345) == whole


RESIZING: dict[str, Callable[[Path], Any]] = {
    "size: truncate shorter": lambda file: truncated(file, SIZE - 8192),
    "size: truncate longer": lambda file: truncated(file, SIZE + 8192),
    "size: fallocate at the end": lambda file: fallocate(file, 0, SIZE, 65536),
    "size: fallocate past the end": lambda file: fallocate(file, 0, SIZE + 65536, 65536),
    "size: zero across the end": lambda file: zeroed(file, ZERO, SIZE - 4096, 8192),
}
"""Where the length is ours to change."""

GROWING: dict[str, Callable[[Path], Any]] = {
    "grow: write at the end": lambda file: extended(file, SIZE, b"1234" * 256),
    "grow: write across the end": lambda file: extended(file, SIZE - 512, b"1234" * 256),
    "grow: write past the end": lambda file: extended(file, SIZE + 65536, b"1234" * 256),
    "grow: append": lambda file: (pwrite(file, b"12345678" * 64, 0, os.O_WRONLY | os.O_APPEND), os.stat(file).st_size),
}

ALONE: dict[str, Callable[[Path], Any]] = {
    "alone: chmod of group and others": lambda file: os.chmod(file, 0o640),
    "alone: chmod of the owner": lambda file: mode_after(file, 0o400),
    "alone: chown": lambda file: os.chown(file, 1, 1),
}
"""With allow_other=off."""

_TRUE_ALL = (SIZE, True, True)
OURS: dict[str, Any] = {
    "is a regular file": True,
    "mode at first": "0o400",
    "owner": (os.getuid(), os.getgid(), 1),
    "size": SIZE,
    "content": CONTENT,
    "read at the end": b"",
    "read past the end": b"",
    "read across the end": 4,
    "mapped read": True,
    "open for writing": "EACCES",
    "open and write": "EACCES",
    "open with O_TRUNC": "EACCES",
    "truncate": "EACCES",
    "fallocate": "EACCES",
    "chmod u+w": "EROFS",
    "chmod a+r": "0o444",
    "chown": (1, 1),
    "utime": None,
    "times stay": True,
    "data from 0": 0,
    "hole from 0": HOLE[0],
    "data from the hole": HOLE[0] + HOLE[1],
    "hole after the data": SIZE,
    "data at the end": "ENXIO",
    "hole at the end": "ENXIO",
    "hole past the end": "ENXIO",
    "a name below": "ENOTDIR",
    "mkdir below": "ENOTDIR",
    "list": "ENOTDIR",
    "readlink": "EINVAL",
    "setxattr": "ENOTSUP",
    "listxattr": "ENOTSUP",
    "block size": True,
    "statfs": SIZE,
    "fsync": True,
    "rw: mode at first": "0o600",
    "rw: write and read back": (5, b"hello"),
    "rw: write of many buffers": True,
    "rw: write across the end": 4,
    "rw: write at the end": "ENOSPC",
    "rw: write past the end": "ENOSPC",
    "rw: append": "ENOSPC",
    "rw: size after those": SIZE,
    "rw: mapped write": b"hello",
    "rw: fsync": True,
    "rw: mtime after a write": True,
    "rw: fallocate below the end": "ENOTSUP",
    "rw: fallocate of what is there, size kept": "ENOTSUP",
    "rw: punch a hole": _TRUE_ALL,
    "rw: the hole can be found": (SIZE, 65536),
    "rw: punch across the end": _TRUE_ALL,
    "rw: punch without keeping the size": "ENOTSUP",  # the kernel's own, before it asks anybody
    "rw: punch an odd range": _TRUE_ALL,
    "rw: zero a range": _TRUE_ALL,
    "rw: zero a range in place": _TRUE_ALL,
    "rw: zero an odd range": _TRUE_ALL,
    "rw: zero across the end, size kept": _TRUE_ALL,
    "rw: collapse": "ENOTSUP",
    "rw: insert": "ENOTSUP",
    "rw: O_TRUNC": (True, SIZE),
    "rw: copy over it": True,
    "rw: truncate to the same": (SIZE, True),
    "rw: chmod others": "0o666",
    "size: truncate shorter": (SIZE - 8192, True),
    "size: truncate longer": (SIZE + 8192, True),
    "size: fallocate at the end": SIZE + 65536,
    "size: fallocate past the end": SIZE + 131072,
    "size: zero across the end": (SIZE + 4096, True, True),
    "grow: write at the end": (1024, SIZE + 1024, True),
    "grow: write across the end": (1024, SIZE + 512, True),
    "grow: write past the end": (1024, SIZE + 65536 + 1024, True),
    "grow: append": (512, SIZE + 512),
    "alone: chmod of group and others": "EPERM",
    "alone: chmod of the owner": "0o400",
    "alone: chown": "EPERM",
}

NO_HOLES = {"hole from 0": SIZE, "data from the hole": HOLE[0], "rw: the hole can be found": (SIZE, SIZE)}
"""On a block device, which does not tell."""
OURS_BY_KIND: dict[str, dict[str, Any]] = {"loop": NO_HOLES}

DIFFERENT: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "open for writing": ("Opening for writing", True, KINDS),
    "open with O_TRUNC": ("Opening for writing", True, KINDS),
    "utime": ("Times", "ENOTSUP", KINDS),
    "rw: mtime after a write": ("Times", False, KINDS),
    "hole at the end": ("SEEK_HOLE at the end", SIZE, KINDS),
    "block size": ("Block size", False, KINDS),
    "statfs": ("statfs", 0, KINDS),
    "rw: write at the end": ("Writing past the end", "EIO", KINDS),
    "rw: write past the end": ("Writing past the end", "EIO", KINDS),
    "rw: append": ("Writing past the end", "EIO", KINDS),
    "alone: chown": ("chown", "ENOTSUP", KINDS),
    "rw: punch a hole": ("Punched holes", (SIZE, False, True), NBD),
    "rw: punch across the end": ("Punched holes", (SIZE, False, True), NBD),
    "rw: the hole can be found": ("Punched holes", (SIZE, SIZE), NBD),
    "rw: truncate to the same": ("truncate to the same length", "ENOTSUP", ("loop", *NBD)),
}
"""case: (the words in the man page, what QEMU 7.2 answers, on which kinds of image)."""
ODD: dict[str, Any] = {
    "loop": "EINVAL",
    "nbdkit-file": (SIZE, False, True),
    "nbdkit-memory": (SIZE, False, True),
    "qemu-nbd": (SIZE, False, True),
    "qcow2": (SIZE, False, True),
}
"""What QEMU answers where a hole is punched that begins and ends within a block ("Punched holes")."""


def qemus(name: str, kind: str) -> Any:
    """What QEMU's export answers to a case."""
    if name == "rw: punch an odd range" and kind in ODD:
        return ODD[kind]
    _, different, kinds = DIFFERENT.get(name, ("", None, ()))
    return different if kind in kinds else our(name, kind)


def our(name: str, kind: str) -> Any:
    """What ours answers."""
    return OURS_BY_KIND.get(kind, {}).get(name, OURS[name])
