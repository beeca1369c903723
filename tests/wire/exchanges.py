"""Requests and replies as literal bytes, written by hand from include/uapi/linux/fuse.h: one row per exchange.

Hexadecimal, little-endian, whole messages with their headers; what follows a # is a comment. Nothing here is made by
the code under test, so that a mistake in a struct cannot hide in its own mirror image.
"""

import re
from dataclasses import dataclass
from errno import EAGAIN, EISDIR, ENOENT
from typing import Any

from passthrough.protocol.constants import FUSE_SETXATTR_EXT
from passthrough.protocol.values import Entry, FileLock, FileRange, IoctlReply, SetAttr
from tests.wire.fake import ATTR


def unhex(text: str) -> bytes:
    """The bytes of a commented hexadecimal text."""
    return bytes.fromhex(re.sub(r"#.*", "", text))


@dataclass(frozen=True)
class Exchange:
    """One request, what the file system is asked, and the reply.

    args_size is the length of the opcode's struct (where a split request is cut); result, where given, is what
    `method` returns or raises instead of its usual value; flags are those agreed at INIT.
    """

    name: str
    args_size: int
    request: str
    calls: tuple[tuple[str, tuple[Any, ...]], ...]
    reply: str | None
    result: Any = None
    flags: int = FUSE_SETXATTR_EXT
    groups: tuple[int, ...] | None = None
    labels: tuple[tuple[bytes, bytes], ...] = ()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


# What every request's header ends with: uid 1000, gid 100, pid 42, no extensions, padding.
WHO = "e8030000 64000000 2a000000 0000 0000"
UNIQUE = "0b00000000000000"
ROOT = "0100000000000000"
NODE = "2200000000000000"
DONE = f"10000000 00000000 {UNIQUE}"

ATTR_OUT = """
    3412000000000000 0500000000000000 0800000000000000  # ino size blocks
    0100000000000000 ffffffffffffffff 0300000000000000  # atime mtime ctime
    04000000 05000000 06000000                          # atimensec mtimensec ctimensec
    a4810000 01000000 e8030000 64000000                 # mode nlink uid gid
    00000000 00100000 00000000                          # rdev blksize flags
"""
ENTRY_OUT = f"""
    2200000000000000 0700000000000000                   # nodeid generation
    0100000000000000 0200000000000000 0065cd1d fa000000 # entry_valid attr_valid, their nsec
    {ATTR_OUT}
"""
TIMED_ATTR_OUT = f"""
    0200000000000000 fa000000 00000000                  # attr_valid attr_valid_nsec dummy
    {ATTR_OUT}
"""
OPEN_OUT = "0500000000000000 82000000 03000000              # fh open_flags backing_id"
ENTRY_REPLY = f"90000000 00000000 {UNIQUE} {ENTRY_OUT}"
WRITE_LOCK_OF_ALL = """
    0500000000000000 7700000000000000                   # fh owner
    0000000000000000 ffffffffffffff7f 01000000 2a000000 # start end type pid
"""

EXCHANGES = (
    # Names
    Exchange(
        "lookup",
        0,
        f"2e000000 01000000 {UNIQUE} {ROOT} {WHO}  68656c6c6f00",
        (("lookup", (1, b"hello")),),
        ENTRY_REPLY,
    ),
    Exchange(
        "lookup negative",
        0,
        f"2e000000 01000000 {UNIQUE} {ROOT} {WHO}  68656c6c6f00",
        (("lookup", (1, b"hello")),),
        f"90000000 00000000 {UNIQUE} {'00' * 16} 0100000000000000 {'00' * 8} 0065cd1d {'00' * 4} {'00' * 88}",
        result=Entry(0, ATTR, entry_timeout_ns=1_500_000_000),
    ),
    Exchange(
        "lookup ENOENT",
        0,
        f"2e000000 01000000 {UNIQUE} {ROOT} {WHO}  68656c6c6f00",
        (("lookup", (1, b"hello")),),
        f"10000000 feffffff {UNIQUE}",
        result=OSError(ENOENT, "no such file"),
    ),
    Exchange(
        "forget",
        8,
        f"30000000 02000000 {UNIQUE} {NODE} {WHO}  0300000000000000",
        (("forget", (0x22, 3)),),
        None,
    ),
    Exchange(
        "batch_forget",
        8,
        f"""50000000 2a000000 {UNIQUE} 0000000000000000 {WHO}
            02000000 00000000                           # count dummy
            2200000000000000 0100000000000000           # nodeid nlookup
            2300000000000000 ffffffffffffffff""",
        (("batch_forget", ([(0x22, 1), (0x23, 2**64 - 1)],)),),
        None,
    ),
    Exchange(
        "getattr by handle",
        16,
        f"38000000 03000000 {UNIQUE} {NODE} {WHO}  01000000 ffffffff 0900000000000000",
        (("getattr", (0x22, 9)),),
        f"78000000 00000000 {UNIQUE} {TIMED_ATTR_OUT}",
    ),
    Exchange(
        "getattr by node",
        16,
        f"38000000 03000000 {UNIQUE} {NODE} {WHO}  00000000 00000000 0900000000000000",
        (("getattr", (0x22, None)),),
        f"78000000 00000000 {UNIQUE} {TIMED_ATTR_OUT}",
    ),
    Exchange(
        "setattr",
        88,
        f"""80000000 04000000 {UNIQUE} {NODE} {WHO}
            2f000000 ffffffff                                   # valid padding
            0900000000000000 0010000000000000 7700000000000000  # fh size lock_owner
            0100000000000000 ffffffffffffffff 0300000000000000  # atime mtime ctime
            04000000 ffc99a3b 06000000                          # atimensec mtimensec ctimensec
            80810000 ffffffff e9030000 65000000 ffffffff        # mode unused4 uid gid unused5""",
        (("setattr", (0x22, SetAttr(0x2F, 9, 4096, 0x77, 1, -1, 3, 4, 999_999_999, 6, 0o100600, 1001, 101))),),
        f"78000000 00000000 {UNIQUE} {TIMED_ATTR_OUT}",
    ),
    Exchange(
        "statx by handle",
        24,
        f"40000000 34000000 {UNIQUE} {NODE} {WHO}  01000000 ffffffff 0900000000000000 00200000 ff0f0000",
        (("statx", (0x22, 9, 0x2000, 0xFFF)),),
        f"""30010000 00000000 {UNIQUE}
            0200000000000000 fa000000 00000000 {"00" * 16}      # attr_valid attr_valid_nsec flags spare
            ff0f0000 00100000 0000000000000000                  # mask blksize attributes
            01000000 e8030000 64000000 a481 0000                # nlink uid gid mode __spare0
            2200000000000000 0500000000000000 0800000000000000  # ino size blocks
            3f00000000000000                                    # attributes_mask
            feffffffffffffff 01000000 00000000                  # atime
            0200000000000000 03000000 00000000                  # btime
            0400000000000000 05000000 00000000                  # ctime
            0600000000000000 07000000 00000000                  # mtime
            08000000 09000000 0a000000 0b000000 {"00" * 112}    # rdev dev __spare2""",
    ),
    Exchange(
        "statx by node",
        24,
        f"40000000 34000000 {UNIQUE} {NODE} {WHO}  00000000 00000000 0900000000000000 00000000 00080000",
        (("statx", (0x22, None, 0, 0x800)),),
        f"10000000 feffffff {UNIQUE}",
        result=OSError(ENOENT, "gone"),
    ),
    Exchange(
        "readlink",
        0,
        f"28000000 05000000 {UNIQUE} {NODE} {WHO}",
        (("readlink", (0x22,)),),
        f"15000000 00000000 {UNIQUE} 2e2e2f746f",
    ),
    Exchange(
        "symlink",
        0,
        f"33000000 06000000 {UNIQUE} {ROOT} {WHO}  6e616d6500 2e2e2f746f00",
        (("symlink", (1, b"name", b"../to")),),
        ENTRY_REPLY,
    ),
    Exchange(
        "mknod",
        16,
        f"3d000000 08000000 {UNIQUE} {ROOT} {WHO}  80210000 03010000 12000000 ffffffff 6e756c6c00",
        (("mknod", (1, b"null", 0o20600, 0x103, 0o22)),),
        ENTRY_REPLY,
    ),
    Exchange(
        "mkdir",
        8,
        f"34000000 09000000 {UNIQUE} {ROOT} {WHO}  ed010000 12000000 64697200",
        (("mkdir", (1, b"dir", 0o755, 0o22)),),
        ENTRY_REPLY,
    ),
    Exchange(
        "unlink EISDIR",
        0,
        f"2d000000 0a000000 {UNIQUE} {ROOT} {WHO}  676f6e6500",
        (("unlink", (1, b"gone")),),
        f"10000000 ebffffff {UNIQUE}",
        result=OSError(EISDIR, "a directory"),
    ),
    Exchange(
        "rmdir",
        0,
        f"2d000000 0b000000 {UNIQUE} {ROOT} {WHO}  676f6e6500",
        (("rmdir", (1, b"gone")),),
        DONE,
    ),
    Exchange(
        "rename",
        8,
        f"38000000 0c000000 {UNIQUE} {ROOT} {WHO}  2300000000000000 6f6c6400 6e657700",
        (("rename2", (1, b"old", b"new", 0x23, 0)),),
        DONE,
    ),
    Exchange(
        "rename2",
        16,
        f"40000000 2d000000 {UNIQUE} {ROOT} {WHO}  2300000000000000 02000000 ffffffff 6f6c6400 6e657700",
        (("rename2", (1, b"old", b"new", 0x23, 2)),),
        DONE,
    ),
    Exchange(
        "link",
        8,
        f"35000000 0d000000 {UNIQUE} {ROOT} {WHO}  2200000000000000 6861726400",
        (("link", (1, b"hard", 0x22)),),
        ENTRY_REPLY,
    ),
    Exchange(
        "access",
        8,
        f"30000000 22000000 {UNIQUE} {NODE} {WHO}  04000000 ffffffff",
        (("access", (0x22, 4)),),
        DONE,
    ),
    Exchange(
        "statfs",
        0,
        f"28000000 11000000 {UNIQUE} {ROOT} {WHO}",
        (("statfs", (1,)),),
        f"""60000000 00000000 {UNIQUE}
            e803000000000000 f401000000000000 9001000000000000  # blocks bfree bavail
            2c01000000000000 c800000000000000                   # files ffree
            00100000 ff000000 00100000 {"00" * 28}              # bsize namelen frsize padding spare""",
    ),
    Exchange(
        "syncfs",
        8,
        f"30000000 32000000 {UNIQUE} {ROOT} {WHO}  0000000000000000",
        (("syncfs", (1,)),),
        DONE,
    ),
    # Open files
    Exchange(
        "open",
        8,
        f"30000000 0e000000 {UNIQUE} {NODE} {WHO}  02800000 01000000",
        (("open", (0x22, 0x8002, 1)),),
        f"20000000 00000000 {UNIQUE} {OPEN_OUT}",
    ),
    Exchange(
        "create",
        16,
        f"3c000000 23000000 {UNIQUE} {ROOT} {WHO}  41800000 a4810000 12000000 01000000 6e657700",
        (("create", (1, b"new", 0x8041, 0o100644, 0o22, 1)),),
        f"a0000000 00000000 {UNIQUE} {ENTRY_OUT} {OPEN_OUT}",
    ),
    Exchange(
        "create with a supplementary group",
        16,
        f"""4c000000 23000000 {UNIQUE} {ROOT} e8030000 64000000 2a000000 0200 0000
            41800000 a4810000 12000000 00000000 6e657700
            10000000 20000000 01000000 d0070000                 # size type nr_groups groups[0]""",
        (("create", (1, b"new", 0x8041, 0o100644, 0o22, 0)),),
        f"a0000000 00000000 {UNIQUE} {ENTRY_OUT} {OPEN_OUT}",
        groups=(2000,),
    ),
    Exchange(
        "mkdir with a security context and a group",
        8,
        f"""5c000000 09000000 {UNIQUE} {ROOT} e8030000 64000000 2a000000 0500 0000
            ed010000 12000000 64697200
            18000000 01000000                                   # size nr_secctx
            03000000 00000000 732e7800 76616c 00                # size padding name value, to 8 bytes
            10000000 20000000 01000000 d0070000                 # size type nr_groups groups[0]""",
        (("mkdir", (1, b"dir", 0o755, 0o22)),),
        ENTRY_REPLY,
        groups=(2000,),
        labels=((b"s.x", b"val"),),
    ),
    Exchange(
        "tmpfile",
        16,
        f"3a000000 33000000 {UNIQUE} {ROOT} {WHO}  02804100 80810000 12000000 00000000 2f00",
        (("tmpfile", (1, b"/", 0x418002, 0o100600, 0o22, 0)),),
        f"a0000000 00000000 {UNIQUE} {ENTRY_OUT} {OPEN_OUT}",
    ),
    Exchange(
        "read",
        40,
        f"""50000000 0f000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0010000000000000 00400000 02000000 # fh offset size read_flags
            7700000000000000 00800000 ffffffff                  # lock_owner flags padding""",
        (("read", (0x22, 5, 4096, 16384, 0x8000)),),
        f"14000000 00000000 {UNIQUE} 64617461",
    ),
    Exchange(
        "read of a file range",
        40,
        f"""50000000 0f000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0010000000000000 00400000 02000000 # fh offset size read_flags
            7700000000000000 00800000 00000000                  # lock_owner flags padding""",
        (("read", (0x22, 5, 4096, 16384, 0x8000)),),
        f"14000000 00000000 {UNIQUE} 66696c65",
        result=FileRange(3, 4096, 16384),
    ),
    Exchange(
        "write",
        40,
        f"""53000000 10000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0a00000000000000 03000000 04000000 # fh offset size write_flags
            7700000000000000 01800000 ffffffff                  # lock_owner flags padding
            616263""",
        (("write", (0x22, 5, 10, [b"abc"], 4, 0x8001)),),
        f"18000000 00000000 {UNIQUE} 03000000 00000000",
    ),
    Exchange(
        "flush",
        24,
        f"40000000 19000000 {UNIQUE} {NODE} {WHO}  0500000000000000 ffffffff ffffffff 7700000000000000",
        (("flush", (0x22, 5, 0x77)),),
        DONE,
    ),
    Exchange(
        "release",
        24,
        f"40000000 12000000 {UNIQUE} {NODE} {WHO}  0500000000000000 00800000 02000000 7700000000000000",
        (("release", (0x22, 5, 0x8000, 2, 0x77)),),
        DONE,
    ),
    Exchange(
        "fsync",
        16,
        f"38000000 14000000 {UNIQUE} {NODE} {WHO}  0500000000000000 01000000 ffffffff",
        (("fsync", (0x22, 5, 1)),),
        DONE,
    ),
    Exchange(
        "fallocate",
        32,
        f"""48000000 2b000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0010000000000000 0020000000000000 03000000 ffffffff""",
        (("fallocate", (0x22, 5, 4096, 8192, 3)),),
        DONE,
    ),
    Exchange(
        "lseek",
        24,
        f"40000000 2e000000 {UNIQUE} {NODE} {WHO}  0500000000000000 6400000000000000 04000000 ffffffff",
        (("lseek", (0x22, 5, 100, 4)),),
        f"18000000 00000000 {UNIQUE} 0010000000000000",
    ),
    Exchange(
        "copy_file_range",
        56,
        f"""60000000 2f000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0a00000000000000                   # fh_in off_in
            2300000000000000 0600000000000000 1400000000000000  # nodeid_out fh_out off_out
            1e00000000000000 0000000000000000                   # len flags""",
        (("copy_file_range", (0x22, 5, 10, 0x23, 6, 20, 30, 0)),),
        f"18000000 00000000 {UNIQUE} 1e000000 00000000",
    ),
    Exchange(
        "copy_file_range_64",
        56,
        f"""60000000 35000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 0a00000000000000                   # fh_in off_in
            2300000000000000 0600000000000000 1400000000000000  # nodeid_out fh_out off_out
            0100000001000000 0000000000000000                   # len flags""",
        (("copy_file_range", (0x22, 5, 10, 0x23, 6, 20, 0x1_0000_0001, 0)),),
        f"18000000 00000000 {UNIQUE} 0100000001000000",
        result=0x1_0000_0001,
    ),
    Exchange(
        "ioctl FS_IOC_GETFLAGS",
        32,
        f"""48000000 27000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 00000000 01660880                  # fh flags cmd
            00000000fc7f0000 00000000 08000000                  # arg in_size out_size""",
        (("ioctl", (0x22, 5, 0x80086601, 0x7FFC00000000, 0, b"", 8)),),
        f"28000000 00000000 {UNIQUE} 00000000 00000000 00000000 00000000 1000000000000000",
        result=IoctlReply(0, b"\x10\0\0\0\0\0\0\0"),
    ),
    Exchange(
        "ioctl FS_IOC_SETFLAGS on a directory",
        32,
        f"""50000000 27000000 {UNIQUE} {NODE} {WHO}
            0500000000000000 10000000 02660840                  # fh flags cmd
            00000000fc7f0000 08000000 00000000                  # arg in_size out_size
            1000000000000000""",
        (("ioctl", (0x22, 5, 0x40086602, 0x7FFC00000000, 0x10, b"\x10\0\0\0\0\0\0\0", 0)),),
        f"20000000 00000000 {UNIQUE} 07000000 00000000 00000000 00000000",
        result=IoctlReply(7),
    ),
    Exchange(
        "poll",
        24,
        f"40000000 28000000 {UNIQUE} {NODE} {WHO}  0500000000000000 0700000000000000 01000000 41000000",
        (("poll", (0x22, 5, 7, 1, 0x41)),),
        f"18000000 00000000 {UNIQUE} 01000000 00000000",
    ),
    Exchange(
        "bmap",
        16,
        f"38000000 25000000 {UNIQUE} {NODE} {WHO}  0300000000000000 00020000 ffffffff",
        (("bmap", (0x22, 3, 512)),),
        f"18000000 00000000 {UNIQUE} 6300000000000000",
    ),
    # Directories
    Exchange(
        "opendir",
        8,
        f"30000000 1b000000 {UNIQUE} {ROOT} {WHO}  00880100 00000000",
        (("opendir", (1, 0x18800, 0)),),
        f"20000000 00000000 {UNIQUE} {OPEN_OUT}",
    ),
    Exchange(
        "readdir",
        40,
        f"""50000000 1c000000 {UNIQUE} {ROOT} {WHO}
            0600000000000000 0000000000000000 00100000 00000000 # fh offset size read_flags
            0000000000000000 00880100 00000000                  # lock_owner flags padding""",
        (("readdir", (1, 6, 0, 4096)),),
        f"""50000000 00000000 {UNIQUE}
            0100000000000000 0100000000000000 01000000 04000000 2e 00000000000000
            2200000000000000 0200000000000000 05000000 08000000 68656c6c6f 000000""",
    ),
    Exchange(
        "readdirplus",
        40,
        f"""50000000 2c000000 {UNIQUE} {ROOT} {WHO}
            0600000000000000 0300000000000000 00100000 00000000 # fh offset size read_flags
            0000000000000000 00880100 00000000                  # lock_owner flags padding""",
        (("readdirplus", (1, 6, 3, 4096)),),
        f"""50010000 00000000 {UNIQUE}
            {"00" * 128}
            0100000000000000 0100000000000000 01000000 04000000 2e 00000000000000
            {ENTRY_OUT}
            2200000000000000 0200000000000000 05000000 08000000 68656c6c6f 000000""",
    ),
    Exchange(
        "releasedir",
        24,
        f"40000000 1d000000 {UNIQUE} {ROOT} {WHO}  0600000000000000 00880100 00000000 0000000000000000",
        (("releasedir", (1, 6, 0x18800, 0, 0)),),
        DONE,
    ),
    Exchange(
        "fsyncdir",
        16,
        f"38000000 1e000000 {UNIQUE} {ROOT} {WHO}  0600000000000000 01000000 00000000",
        (("fsyncdir", (1, 6, 1)),),
        DONE,
    ),
    # Extended attributes
    Exchange(
        "setxattr of 8 bytes",
        8,
        f"3c000000 15000000 {UNIQUE} {NODE} {WHO}  05000000 01000000 757365722e6b00 76616c7565",
        (("setxattr", (0x22, b"user.k", b"value", 1, 0)),),
        DONE,
        flags=0,
    ),
    Exchange(
        "setxattr of 16 bytes",
        16,
        f"44000000 15000000 {UNIQUE} {NODE} {WHO}  05000000 02000000 01000000 ffffffff 757365722e6b00 76616c7565",
        (("setxattr", (0x22, b"user.k", b"value", 2, 1)),),
        DONE,
    ),
    Exchange(
        "setxattr of a value with NULs",
        16,
        f"43000000 15000000 {UNIQUE} {NODE} {WHO}  04000000 00000000 00000000 00000000 757365722e6b00 00610000",
        (("setxattr", (0x22, b"user.k", b"\0a\0\0", 0, 0)),),
        DONE,
    ),
    Exchange(
        "getxattr asks for the size",
        8,
        f"37000000 16000000 {UNIQUE} {NODE} {WHO}  00000000 ffffffff 757365722e6b00",
        (("getxattr", (0x22, b"user.k")),),
        f"18000000 00000000 {UNIQUE} 05000000 00000000",
    ),
    Exchange(
        "getxattr ERANGE",
        8,
        f"37000000 16000000 {UNIQUE} {NODE} {WHO}  04000000 00000000 757365722e6b00",
        (("getxattr", (0x22, b"user.k")),),
        f"10000000 deffffff {UNIQUE}",
    ),
    Exchange(
        "getxattr that just fits",
        8,
        f"37000000 16000000 {UNIQUE} {NODE} {WHO}  05000000 00000000 757365722e6b00",
        (("getxattr", (0x22, b"user.k")),),
        f"15000000 00000000 {UNIQUE} 76616c7565",
    ),
    Exchange(
        "listxattr asks for the size",
        8,
        f"30000000 17000000 {UNIQUE} {NODE} {WHO}  00000000 00000000",
        (("listxattr", (0x22,)),),
        f"18000000 00000000 {UNIQUE} 0e000000 00000000",
    ),
    Exchange(
        "listxattr",
        8,
        f"30000000 17000000 {UNIQUE} {NODE} {WHO}  00010000 00000000",
        (("listxattr", (0x22,)),),
        f"1e000000 00000000 {UNIQUE} 757365722e6100 757365722e6200",
    ),
    Exchange(
        "listxattr ERANGE",
        8,
        f"30000000 17000000 {UNIQUE} {NODE} {WHO}  0d000000 00000000",
        (("listxattr", (0x22,)),),
        f"10000000 deffffff {UNIQUE}",
    ),
    Exchange(
        "removexattr",
        0,
        f"2f000000 18000000 {UNIQUE} {NODE} {WHO}  757365722e6b00",
        (("removexattr", (0x22, b"user.k")),),
        DONE,
    ),
    # Locks
    Exchange(
        "getlk",
        48,
        f"58000000 1f000000 {UNIQUE} {NODE} {WHO} {WRITE_LOCK_OF_ALL} 00000000 ffffffff",
        (("getlk", (0x22, 5, 0x77, FileLock(0, 2**63 - 1, 1, 42), 0)),),
        f"28000000 00000000 {UNIQUE} 0a00000000000000 1300000000000000 00000000 63000000",
    ),
    Exchange(
        "setlk of flock",
        48,
        f"58000000 20000000 {UNIQUE} {NODE} {WHO} {WRITE_LOCK_OF_ALL} 01000000 00000000",
        (("setlk", (0x22, 5, 0x77, FileLock(0, 2**63 - 1, 1, 42), 1, False)),),
        DONE,
    ),
    Exchange(
        "setlk EAGAIN",
        48,
        f"58000000 20000000 {UNIQUE} {NODE} {WHO} {WRITE_LOCK_OF_ALL} 00000000 00000000",
        (("setlk", (0x22, 5, 0x77, FileLock(0, 2**63 - 1, 1, 42), 0, False)),),
        f"10000000 f5ffffff {UNIQUE}",
        result=OSError(EAGAIN, "locked"),
    ),
    Exchange(
        "setlkw without a wait",
        48,
        f"58000000 21000000 {UNIQUE} {NODE} {WHO} {WRITE_LOCK_OF_ALL} 00000000 00000000",
        (("setlk", (0x22, 5, 0x77, FileLock(0, 2**63 - 1, 1, 42), 0, False)),),
        DONE,
    ),
    Exchange(
        "interrupt",
        8,
        f"30000000 24000000 {UNIQUE} 0000000000000000 {'00' * 16}  0900000000000000",
        (),
        None,
    ),
    # Not served
    Exchange(
        "notify_reply",
        40,
        f"54000000 29000000 {UNIQUE} {NODE} {WHO}  {'00' * 8} 0010000000000000 04000000 {'00' * 20} 64617461",
        (),
        None,
    ),
    Exchange(
        "setupmapping",
        40,
        f"50000000 30000000 {UNIQUE} {NODE} {WHO}  {'00' * 40}",
        (),
        f"10000000 daffffff {UNIQUE}",
    ),
    Exchange(
        "removemapping",
        4,
        f"3c000000 31000000 {UNIQUE} {NODE} {WHO}  01000000 {'00' * 16}",
        (),
        f"10000000 daffffff {UNIQUE}",
    ),
)
