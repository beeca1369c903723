"""The structs of the FUSE ABI, 7.45, as compiled formats: one row per struct, in the header's order and names.

Rules of this file: no I/O, no policy, no decoding beyond struct. Padding and reserved fields are skipped bytes, so a
row's values are exactly the fields that mean something. Byte order is the machine's own ("=": standard sizes, no
alignment of Python's making), as the ABI has it. The sizes and offsets are held against the kernel's by a test.
"""

import re
from dataclasses import dataclass
from struct import Struct


@dataclass(frozen=True, slots=True)
class Layout:
    """One struct of the header: its C name, the names of its values, and the compiled format."""

    name: str
    fields: tuple[str, ...]
    struct: Struct

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.struct.size

    def offsets(self) -> dict[str, int]:
        """Each value's offset in bytes, derived from the format (what a test compares with the header)."""
        found: dict[str, int] = {}
        names = iter(self.fields)
        position = 0
        for count, code in re.findall(r"(\d*)([A-Za-z])", self.struct.format):
            size = Struct("=" + code).size
            if code == "x":
                position += int(count or 1)
            elif code == "s":
                found[next(names)] = position
                position += int(count)
            else:
                for _ in range(int(count or 1)):
                    found[next(names)] = position
                    position += size
        return found


def _layout(name: str, form: str, fields: str, *tail: Layout) -> Layout:
    """A row; `tail` are structs embedded at the end, their values following in order."""
    names = tuple(fields.split()) + tuple(field for part in tail for field in part.fields)
    return Layout(name, names, Struct("=" + form + "".join(part.struct.format[1:] for part in tail)))


_ATTR_FIELDS = "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags"
_STATX_FIELDS = (
    "mask blksize attributes nlink uid gid mode ino size blocks attributes_mask"
    " atime atimensec btime btimensec ctime ctimensec mtime mtimensec rdev_major rdev_minor dev_major dev_minor"
)

# Shared by several messages. Seconds are signed: the header says u64, the kernel reads s64 (times before 1970).
FUSE_ATTR = _layout("fuse_attr", "QQQqqqIIIIIIIIII", _ATTR_FIELDS)
FUSE_SX_TIME = _layout("fuse_sx_time", "qI4x", "tv_sec tv_nsec")
FUSE_STATX = _layout("fuse_statx", "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x", _STATX_FIELDS)
FUSE_KSTATFS = _layout("fuse_kstatfs", "QQQQQIII28x", "blocks bfree bavail files ffree bsize namelen frsize")
FUSE_FILE_LOCK = _layout("fuse_file_lock", "QQII", "start end type pid")
FUSE_IN_HEADER = _layout("fuse_in_header", "IIQQIIIH2x", "len opcode unique nodeid uid gid pid total_extlen")
FUSE_OUT_HEADER = _layout("fuse_out_header", "IiQ", "len error unique")

# INIT
FUSE_INIT_IN = _layout("fuse_init_in", "IIIII44x", "major minor max_readahead flags flags2")
FUSE_INIT_OUT = _layout(
    "fuse_init_out",
    "IIIIHHIIHHIIH22x",
    "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages"
    " map_alignment flags2 max_stack_depth request_timeout",
)

# Names and attributes
FUSE_ENTRY_OUT = _layout(
    "fuse_entry_out",
    "QQQQII",
    "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec",
    FUSE_ATTR,
)
FUSE_FORGET_IN = _layout("fuse_forget_in", "Q", "nlookup")
FUSE_FORGET_ONE = _layout("fuse_forget_one", "QQ", "nodeid nlookup")
FUSE_BATCH_FORGET_IN = _layout("fuse_batch_forget_in", "I4x", "count")
FUSE_GETATTR_IN = _layout("fuse_getattr_in", "I4xQ", "getattr_flags fh")
FUSE_ATTR_OUT = _layout("fuse_attr_out", "QI4x", "attr_valid attr_valid_nsec", FUSE_ATTR)
FUSE_STATX_IN = _layout("fuse_statx_in", "I4xQII", "getattr_flags fh sx_flags sx_mask")
FUSE_STATX_OUT = _layout("fuse_statx_out", "QII16x", "attr_valid attr_valid_nsec flags", FUSE_STATX)
FUSE_SETATTR_IN = _layout(
    "fuse_setattr_in",
    "I4xQQQqqqIIII4xII4x",
    "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid",
)
FUSE_MKNOD_IN = _layout("fuse_mknod_in", "III4x", "mode rdev umask")
FUSE_MKDIR_IN = _layout("fuse_mkdir_in", "II", "mode umask")
FUSE_RENAME_IN = _layout("fuse_rename_in", "Q", "newdir")
FUSE_RENAME2_IN = _layout("fuse_rename2_in", "QI4x", "newdir flags")
FUSE_LINK_IN = _layout("fuse_link_in", "Q", "oldnodeid")
FUSE_ACCESS_IN = _layout("fuse_access_in", "I4x", "mask")
FUSE_STATFS_OUT = _layout("fuse_statfs_out", "", "", FUSE_KSTATFS)
FUSE_SYNCFS_IN = _layout("fuse_syncfs_in", "8x", "")

# Open files and directories
FUSE_OPEN_IN = _layout("fuse_open_in", "II", "flags open_flags")
FUSE_CREATE_IN = _layout("fuse_create_in", "IIII", "flags mode umask open_flags")
FUSE_OPEN_OUT = _layout("fuse_open_out", "QII", "fh open_flags backing_id")
FUSE_RELEASE_IN = _layout("fuse_release_in", "QIIQ", "fh flags release_flags lock_owner")
FUSE_FLUSH_IN = _layout("fuse_flush_in", "Q8xQ", "fh lock_owner")
FUSE_FSYNC_IN = _layout("fuse_fsync_in", "QI4x", "fh fsync_flags")
FUSE_READ_IN = _layout("fuse_read_in", "QQIIQI4x", "fh offset size read_flags lock_owner flags")
FUSE_WRITE_IN = _layout("fuse_write_in", "QQIIQI4x", "fh offset size write_flags lock_owner flags")
FUSE_WRITE_OUT = _layout("fuse_write_out", "I4x", "size")
FUSE_FALLOCATE_IN = _layout("fuse_fallocate_in", "QQQI4x", "fh offset length mode")
FUSE_LSEEK_IN = _layout("fuse_lseek_in", "QQI4x", "fh offset whence")
FUSE_LSEEK_OUT = _layout("fuse_lseek_out", "Q", "offset")
FUSE_COPY_FILE_RANGE_IN = _layout(
    "fuse_copy_file_range_in", "QQQQQQQ", "fh_in off_in nodeid_out fh_out off_out len flags"
)
FUSE_COPY_FILE_RANGE_OUT = _layout("fuse_copy_file_range_out", "Q", "bytes_copied")
FUSE_DIRENT = _layout("fuse_dirent", "QQII", "ino off namelen type")
FUSE_DIRENTPLUS = _layout("fuse_direntplus", "", "", FUSE_ENTRY_OUT, FUSE_DIRENT)

# Extended attributes
FUSE_SETXATTR_IN = _layout("fuse_setxattr_in", "III4x", "size flags setxattr_flags")
FUSE_SETXATTR_IN_COMPAT = _layout("fuse_setxattr_in", "II", "size flags")
FUSE_GETXATTR_IN = _layout("fuse_getxattr_in", "I4x", "size")
FUSE_GETXATTR_OUT = _layout("fuse_getxattr_out", "I4x", "size")

# Locks, interrupts, ioctl, poll, bmap
FUSE_LK_IN = _layout("fuse_lk_in", "QQQQIII4x", "fh owner start end type pid lk_flags")
FUSE_LK_OUT = _layout("fuse_lk_out", "", "", FUSE_FILE_LOCK)
FUSE_INTERRUPT_IN = _layout("fuse_interrupt_in", "Q", "unique")
FUSE_IOCTL_IN = _layout("fuse_ioctl_in", "QIIQII", "fh flags cmd arg in_size out_size")
FUSE_IOCTL_IOVEC = _layout("fuse_ioctl_iovec", "QQ", "base len")
FUSE_IOCTL_OUT = _layout("fuse_ioctl_out", "iIII", "result flags in_iovs out_iovs")
FUSE_POLL_IN = _layout("fuse_poll_in", "QQII", "fh kh flags events")
FUSE_POLL_OUT = _layout("fuse_poll_out", "I4x", "revents")
FUSE_BMAP_IN = _layout("fuse_bmap_in", "QI4x", "block blocksize")
FUSE_BMAP_OUT = _layout("fuse_bmap_out", "Q", "block")

# DAX (virtio-fs windows)
FUSE_SETUPMAPPING_IN = _layout("fuse_setupmapping_in", "QQQQQ", "fh foffset len flags moffset")
FUSE_REMOVEMAPPING_IN = _layout("fuse_removemapping_in", "I", "count")
FUSE_REMOVEMAPPING_ONE = _layout("fuse_removemapping_one", "QQ", "moffset len")

# Extensions of creating requests
FUSE_SECCTX = _layout("fuse_secctx", "I4x", "size")
FUSE_SECCTX_HEADER = _layout("fuse_secctx_header", "II", "size nr_secctx")
FUSE_EXT_HEADER = _layout("fuse_ext_header", "II", "size type")
FUSE_SUPP_GROUPS = _layout("fuse_supp_groups", "I", "nr_groups")

# Notifications
FUSE_NOTIFY_POLL_WAKEUP_OUT = _layout("fuse_notify_poll_wakeup_out", "Q", "kh")
FUSE_NOTIFY_INVAL_INODE_OUT = _layout("fuse_notify_inval_inode_out", "Qqq", "ino off len")
FUSE_NOTIFY_INVAL_ENTRY_OUT = _layout("fuse_notify_inval_entry_out", "QII", "parent namelen flags")
FUSE_NOTIFY_DELETE_OUT = _layout("fuse_notify_delete_out", "QQI4x", "parent child namelen")
FUSE_NOTIFY_STORE_OUT = _layout("fuse_notify_store_out", "QQI4x", "nodeid offset size")
FUSE_NOTIFY_RETRIEVE_OUT = _layout("fuse_notify_retrieve_out", "QQQI4x", "notify_unique nodeid offset size")
FUSE_NOTIFY_RETRIEVE_IN = _layout("fuse_notify_retrieve_in", "8xQI20x", "offset size")
FUSE_NOTIFY_PRUNE_OUT = _layout("fuse_notify_prune_out", "I12x", "count")

# /dev/fuse: ioctl arguments and FUSE over io_uring
FUSE_BACKING_MAP = _layout("fuse_backing_map", "iI8x", "fd flags")
FUSE_URING_ENT_IN_OUT = _layout("fuse_uring_ent_in_out", "QQI12x", "flags commit_id payload_sz")
FUSE_URING_REQ_HEADER = _layout("fuse_uring_req_header", "128s128s32s", "in_out op_in ring_ent_in_out")
FUSE_URING_CMD_REQ = _layout("fuse_uring_cmd_req", "QQH6x", "flags commit_id qid")
