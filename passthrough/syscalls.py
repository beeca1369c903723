"""System calls that `os` and `fcntl` lack, or do for the whole process where one thread is meant.

Rules of this file: every function is a call and its check; it raises OSError with errno and, where there is one, the
path. ctypes signatures are set once, here. glibc's set*id change every thread of the process (nptl(7)); the ones here
are the raw calls and change the calling thread alone. Nothing here keeps state, but for one buffer per thread that
statx(2) and getdents64(2) fill.
"""

import ctypes
import functools
import os
import platform
import struct
import sys
import threading
from ctypes import c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p
from struct import Struct
from typing import Any

AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 1, 2, 4, 8, 16
MS_NOATIME, MS_REC, MS_PRIVATE = 1024, 16384, 1 << 18
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
SYNC_FILE_RANGE_WRITE = 2
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED = 8, 16
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_LINUX_IMMUTABLE, CAP_SYS_ADMIN = 1, 2, 3, 4, 9, 21

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_pack_times = Struct("=qqqq").pack
_IO_URING_SETUP, _IO_URING_ENTER = 425, 426  # the same on every architecture (asm-generic since 5.1)
_CAPABILITY_HEADER = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, the calling thread
_WORD = 0xFFFFFFFF
_capability_words = Struct("=6I")  # effective, permitted, inheritable of capabilities 0 to 31, then 32 to 63
_STATX_SIZE = 256
_EMPTY_HANDLE = struct.pack("=Ii", 128, 0) + bytes(128)  # MAX_HANDLE_SZ (linux/exportfs.h)
_DENTS_SIZE = 1 << 16

# By machine: the raw calls whose glibc wrappers act on all threads.
_NUMBERS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119, "membarrier": 324},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149, "membarrier": 283},
    "riscv64": {"setgroups": 159, "setresuid": 147, "setresgid": 149, "membarrier": 283},
}

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *arguments: Any, result: Any = c_int) -> Any:
    function = _libc[name]  # not an attribute: that is one object for all who ask for `syscall`
    function.argtypes = arguments
    function.restype = result
    return function


# Without argtypes, which would cost a third of these two calls: arguments are int, bytes, None and one c_void_p, and no
# int is wider than C's.
_statx = _libc["statx"]
_io_uring_enter = _libc["syscall"]
_renameat2 = _function("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_fallocate = _function("fallocate", c_int, c_int, c_long, c_long)
_syncfs = _function("syncfs", c_int)
_sync_file_range = _function("sync_file_range", c_int, ctypes.c_int64, ctypes.c_int64, c_uint)
_getdents64 = _function("getdents64", c_int, c_void_p, ctypes.c_size_t, result=ctypes.c_ssize_t)
_fcntl = _function("fcntl", c_int, c_int, c_void_p)
_flock = _function("flock", c_int, c_int)
_tgkill = _function("tgkill", c_int, c_int, c_int)
_unshare = _function("unshare", c_int)
_capget = _function("capget", c_void_p, c_void_p)
_capset = _function("capset", c_void_p, c_void_p)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", c_char_p, c_int)
_name_to_handle_at = _function("name_to_handle_at", c_int, c_char_p, c_void_p, c_void_p, c_int)
_open_by_handle_at = _function("open_by_handle_at", c_int, c_char_p, c_int)
_utimensat = _function("utimensat", c_int, c_char_p, c_char_p, c_int)
_fstatfs = _function("fstatfs", c_int, c_void_p)
_syscall = _function("syscall", c_long, c_long, c_long, c_long, result=c_long)
_setgroups = _function("syscall", c_long, c_long, c_void_p, result=c_long)
_io_uring_setup = _function("syscall", c_long, c_uint, c_void_p, result=c_long)
_numbers = _NUMBERS.get(platform.machine(), {})


_strerror = functools.cache(os.strerror)


def _error(path: bytes | str | None = None) -> OSError:
    number = ctypes.get_errno()
    if path is None:
        return OSError(number, _strerror(number))
    return OSError(number, _strerror(number), path)


class _Scratch(threading.local):
    """A buffer for this thread: allocating one per call would cost as much as the call."""

    def __init__(self) -> None:
        self.statx = bytearray(_STATX_SIZE)
        self.statx_address = c_void_p(ctypes.addressof((ctypes.c_char * _STATX_SIZE).from_buffer(self.statx)))
        self.dents = bytearray(_DENTS_SIZE)
        self.dents_address = ctypes.addressof((ctypes.c_char * _DENTS_SIZE).from_buffer(self.dents))


_scratch = _Scratch()

# struct statx up to stx_mnt_id (include/uapi/linux/stat.h)
_unpack_statx = Struct("=IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIIIQ").unpack_from


def statx(dirfd: int, path: bytes, flags: int, mask: int) -> tuple[int, ...]:
    """statx(2) as its fields in order: mask blksize attributes nlink uid gid mode ino size blocks attributes_mask, then
    seconds and ns of atime, btime, ctime and mtime, then major and minor of rdev and of dev, then mnt_id (Linux 5.8).
    """
    scratch = _scratch
    if _statx(dirfd, path, flags, mask, scratch.statx_address) < 0:
        raise _error(path)
    return _unpack_statx(scratch.statx)


def getdents64(fd: int, size: int) -> bytes:
    """The next directory records of an open directory, at most size bytes (getdents64(2)); empty at the end."""
    scratch = _scratch
    size = _getdents64(fd, scratch.dents_address, min(size, _DENTS_SIZE))
    if size < 0:
        raise _error()
    return bytes(scratch.dents[:size])


def renameat2(olddir: int, oldname: bytes, newdir: int, newname: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(olddir, oldname, newdir, newname, flags) < 0:
        raise _error(oldname)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with every mode; offset and length in bytes."""
    if _fallocate(fd, mode, offset, length) < 0:
        raise _error()


def utimensat(dirfd: int, path: bytes | None, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2), a final magic link followed; times are (s, ns), ns also UTIME_NOW or UTIME_OMIT."""
    if _utimensat(dirfd, path, _pack_times(*atime, *mtime), 0) < 0:
        raise _error(path)


def sync_file_range(fd: int, offset: int, nbytes: int, flags: int) -> None:
    """sync_file_range(2): nbytes 0 means all from offset on; flags are SYNC_FILE_RANGE_*."""
    if _sync_file_range(fd, offset, nbytes, flags) != 0:
        raise _error()


def syncfs(fd: int) -> None:
    """syncfs(2) of the file system that fd is open on (no O_PATH descriptor)."""
    if _syncfs(fd) < 0:
        raise _error()


def fcntl_lock(fd: int, command: int, lock: bytearray) -> None:
    """fcntl(2) with a struct flock. Unlike fcntl.fcntl it is not called again after a signal: EINTR is raised."""
    if _fcntl(fd, command, ctypes.addressof((ctypes.c_char * len(lock)).from_buffer(lock))) < 0:
        raise _error()


def flock(fd: int, operation: int) -> None:
    """flock(2). Unlike fcntl.flock it is not called again after a signal: EINTR is raised."""
    if _flock(fd, operation) < 0:
        raise _error()


def tgkill(pid: int, tid: int, signal: int) -> None:
    """A signal to one thread; nothing happens where it is gone (unlike pthread_kill)."""
    _tgkill(pid, tid, signal)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _unshare(flags) < 0:
        raise _error()


def thread_setresgid(gid: int) -> None:
    """Set the effective gid of this thread alone."""
    if _syscall(_numbers["setresgid"], -1, gid, -1) < 0:
        raise _error()


def thread_setresuid(uid: int) -> None:
    """Set the effective uid of this thread alone; its effective capabilities go when it ceases to be 0."""
    if _syscall(_numbers["setresuid"], -1, uid, -1) < 0:
        raise _error()


def thread_setgroups(groups: tuple[int, ...]) -> None:
    """Set the supplementary groups of this thread alone."""
    array = struct.pack(f"={len(groups)}I", *groups)
    if _setgroups(_numbers["setgroups"], len(groups), array) < 0:
        raise _error()


def has_thread_credentials() -> bool:
    """Whether this machine's system call numbers are known here."""
    return bool(_numbers)


def effective_capabilities() -> int:
    """The calling thread's effective set, a bit per capability."""
    low, _, _, high, _, _ = _capability_words.unpack(capabilities())
    return int(low | high << 32)


def has_capability(number: int) -> bool:
    """Whether it is in the calling thread's effective set."""
    return bool(effective_capabilities() >> number & 1)


def capabilities() -> bytes:
    """The calling thread's effective, permitted and inheritable sets, as capset(2) takes them."""
    data = ctypes.create_string_buffer(_capability_words.size)
    if _capget(_CAPABILITY_HEADER, data) < 0:
        raise _error()
    return data.raw


def with_effective(sets: bytes, keep: int) -> bytes:
    """The same sets with another effective one: what is in both it and `keep` (a bit each)."""
    low, *rest, high, permitted, inheritable = _capability_words.unpack(sets)
    effective = (low | high << 32) & keep
    return _capability_words.pack(effective & _WORD, *rest, effective >> 32, permitted, inheritable)


def thread_capset(sets: bytes) -> None:
    """capset(2) for the calling thread."""
    if _capset(_CAPABILITY_HEADER, sets) < 0:
        raise _error()


def membarrier(command: int) -> None:
    """membarrier(2): a full memory barrier on every CPU that runs a thread of ours, this one included."""
    if _syscall(_numbers["membarrier"], command, 0, 0) < 0:
        raise _error()


def io_uring_setup(entries: int, params: bytearray) -> int:
    """io_uring_setup(2): a close-on-exec descriptor; params (struct io_uring_params) is filled in."""
    fd = _io_uring_setup(_IO_URING_SETUP, entries, ctypes.addressof((ctypes.c_char * len(params)).from_buffer(params)))
    if fd < 0:
        raise _error()
    return int(fd)


def io_uring_enter(fd: int, submit: int, wait: int, flags: int) -> int:
    """io_uring_enter(2) without a signal mask: how many entries were submitted."""
    done = _io_uring_enter(_IO_URING_ENTER, fd, submit, wait, flags, None, 0)
    if done < 0:
        raise _error()
    return done  # type: ignore[no-any-return]


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _mount(source, target, kind, flags, data) < 0:
        raise _error(target)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _umount2(target, flags) < 0:
        raise _error(target)


def filesystem_type(fd: int) -> int:
    """statfs(2)'s f_type: the magic number of the file system that fd lies on."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) < 0:
        raise _error()
    return int(ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF)


def has_file_handles(fd: int) -> bool:
    """Whether name_to_handle_at(2) works on this descriptor's file system."""
    try:
        name_to_handle_at(fd)
    except OSError:
        return False
    return True


def name_to_handle_at(fd: int) -> tuple[int, bytes]:
    """name_to_handle_at(2) of what fd is open on: the mount's id, and the struct file_handle without what is unused."""
    handle = ctypes.create_string_buffer(_EMPTY_HANDLE, len(_EMPTY_HANDLE))
    mount_id = c_int()
    if _name_to_handle_at(fd, b"", handle, ctypes.byref(mount_id), AT_EMPTY_PATH) < 0:
        raise _error()
    raw = handle.raw
    return mount_id.value, raw[: 8 + int.from_bytes(raw[:4], sys.byteorder)]


def open_by_handle_at(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2), for CAP_DAC_READ_SEARCH in the first user namespace; mount_fd is no O_PATH descriptor.

    handle is a whole struct file_handle, as name_to_handle_at() returned it: the kernel reads as far as its first word
    says. ESTALE where the file is gone; its number may be another's by now.
    """
    fd = _open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _error()
    return int(fd)
