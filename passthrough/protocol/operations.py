"""Every opcode of the FUSE ABI 7.45: one row says everything about it.

Rules of this file: data only; decoding, dispatch, replies, the debug line and the tests all derive from these rows.
A method gets its arguments in this order: context, nodeid, the names, the struct's values, the data.
"""

from enum import Enum, auto
from typing import NamedTuple

from . import structs as s


class Out(Enum):
    """What a reply's body is, hence how it is encoded and what a FileSystem method returns."""

    NOTHING = auto()  # an empty body; the method returns None
    NO_REPLY = auto()  # the kernel waits for nothing
    INIT = auto()
    ENTRY = auto()
    ATTR = auto()
    STATX = auto()
    OPEN = auto()
    ENTRY_OPEN = auto()
    DATA = auto()  # bytes, or a FileRange
    TEXT = auto()  # bytes, the whole of them (READLINK)
    SIZE = auto()  # fuse_write_out: 32 bits
    SIZE64 = auto()  # fuse_copy_file_range_out
    STATFS = auto()
    XATTR = auto()  # the value, or its size when asked with size 0
    LOCK = auto()
    OFFSET = auto()
    BLOCK = auto()
    REVENTS = auto()
    IOCTL = auto()
    DIRENTS = auto()
    DIRENTS_PLUS = auto()


class Operation(NamedTuple):
    """A row. name is the FileSystem method's; struct, names and data say what follows the header, in that order."""

    opcode: int
    name: str
    struct: s.Layout | None
    names: int
    data: bool
    out: Out
    since: int  # the minor that brought it, as far as a peer of minor 27 or newer can tell
    note: str = ""


OPERATIONS: tuple[Operation, ...] = (
    Operation(1, "lookup", None, 1, False, Out.ENTRY, 0),
    Operation(2, "forget", s.FUSE_FORGET_IN, 0, False, Out.NO_REPLY, 0),
    Operation(3, "getattr", s.FUSE_GETATTR_IN, 0, False, Out.ATTR, 0),
    Operation(4, "setattr", s.FUSE_SETATTR_IN, 0, False, Out.ATTR, 0),
    Operation(5, "readlink", None, 0, False, Out.TEXT, 0),
    Operation(6, "symlink", None, 2, False, Out.ENTRY, 0),
    Operation(8, "mknod", s.FUSE_MKNOD_IN, 1, False, Out.ENTRY, 0),
    Operation(9, "mkdir", s.FUSE_MKDIR_IN, 1, False, Out.ENTRY, 0),
    Operation(10, "unlink", None, 1, False, Out.NOTHING, 0),
    Operation(11, "rmdir", None, 1, False, Out.NOTHING, 0),
    Operation(12, "rename", s.FUSE_RENAME_IN, 2, False, Out.NOTHING, 0, "served by rename2 with flags 0"),
    Operation(13, "link", s.FUSE_LINK_IN, 1, False, Out.ENTRY, 0),
    Operation(14, "open", s.FUSE_OPEN_IN, 0, False, Out.OPEN, 0),
    Operation(15, "read", s.FUSE_READ_IN, 0, False, Out.DATA, 0),
    Operation(16, "write", s.FUSE_WRITE_IN, 0, True, Out.SIZE, 0),
    Operation(17, "statfs", None, 0, False, Out.STATFS, 0),
    Operation(18, "release", s.FUSE_RELEASE_IN, 0, False, Out.NOTHING, 0),
    Operation(20, "fsync", s.FUSE_FSYNC_IN, 0, False, Out.NOTHING, 0),
    Operation(21, "setxattr", s.FUSE_SETXATTR_IN, 1, True, Out.NOTHING, 0, "8 bytes without FUSE_SETXATTR_EXT"),
    Operation(22, "getxattr", s.FUSE_GETXATTR_IN, 1, False, Out.XATTR, 0),
    Operation(23, "listxattr", s.FUSE_GETXATTR_IN, 0, False, Out.XATTR, 0),
    Operation(24, "removexattr", None, 1, False, Out.NOTHING, 0),
    Operation(25, "flush", s.FUSE_FLUSH_IN, 0, False, Out.NOTHING, 0),
    Operation(26, "init", s.FUSE_INIT_IN, 0, False, Out.INIT, 0, "16 bytes before minor 36"),
    Operation(27, "opendir", s.FUSE_OPEN_IN, 0, False, Out.OPEN, 0),
    Operation(28, "readdir", s.FUSE_READ_IN, 0, False, Out.DIRENTS, 0),
    Operation(29, "releasedir", s.FUSE_RELEASE_IN, 0, False, Out.NOTHING, 0),
    Operation(30, "fsyncdir", s.FUSE_FSYNC_IN, 0, False, Out.NOTHING, 0),
    Operation(31, "getlk", s.FUSE_LK_IN, 0, False, Out.LOCK, 7),
    Operation(32, "setlk", s.FUSE_LK_IN, 0, False, Out.NOTHING, 7),
    Operation(33, "setlkw", s.FUSE_LK_IN, 0, False, Out.NOTHING, 7, "setlk that may wait"),
    Operation(34, "access", s.FUSE_ACCESS_IN, 0, False, Out.NOTHING, 7),
    Operation(35, "create", s.FUSE_CREATE_IN, 1, False, Out.ENTRY_OPEN, 7),
    Operation(36, "interrupt", s.FUSE_INTERRUPT_IN, 0, False, Out.NO_REPLY, 7),
    Operation(37, "bmap", s.FUSE_BMAP_IN, 0, False, Out.BLOCK, 7),
    Operation(38, "destroy", None, 0, False, Out.NOTHING, 7),
    Operation(39, "ioctl", s.FUSE_IOCTL_IN, 0, True, Out.IOCTL, 11),
    Operation(40, "poll", s.FUSE_POLL_IN, 0, False, Out.REVENTS, 11),
    Operation(41, "notify_reply", s.FUSE_NOTIFY_RETRIEVE_IN, 0, True, Out.NO_REPLY, 15),
    Operation(42, "batch_forget", s.FUSE_BATCH_FORGET_IN, 0, True, Out.NO_REPLY, 16),
    Operation(43, "fallocate", s.FUSE_FALLOCATE_IN, 0, False, Out.NOTHING, 19),
    Operation(44, "readdirplus", s.FUSE_READ_IN, 0, False, Out.DIRENTS_PLUS, 21),
    Operation(45, "rename2", s.FUSE_RENAME2_IN, 2, False, Out.NOTHING, 23),
    Operation(46, "lseek", s.FUSE_LSEEK_IN, 0, False, Out.OFFSET, 24),
    Operation(47, "copy_file_range", s.FUSE_COPY_FILE_RANGE_IN, 0, False, Out.SIZE, 28),
    Operation(48, "setupmapping", s.FUSE_SETUPMAPPING_IN, 0, False, Out.NOTHING, 31),
    Operation(49, "removemapping", s.FUSE_REMOVEMAPPING_IN, 0, True, Out.NOTHING, 31),
    Operation(50, "syncfs", s.FUSE_SYNCFS_IN, 0, False, Out.NOTHING, 34),
    Operation(51, "tmpfile", s.FUSE_CREATE_IN, 1, False, Out.ENTRY_OPEN, 37),
    Operation(52, "statx", s.FUSE_STATX_IN, 0, False, Out.STATX, 39),
    Operation(53, "copy_file_range_64", s.FUSE_COPY_FILE_RANGE_IN, 0, False, Out.SIZE64, 45),
)

BY_OPCODE: dict[int, Operation] = {row.opcode: row for row in OPERATIONS}
BY_NAME: dict[str, Operation] = {row.name: row for row in OPERATIONS}
OPCODE_LIMIT = max(BY_OPCODE) + 1
"""One more than the largest opcode known: the length of a table indexed by opcode."""
