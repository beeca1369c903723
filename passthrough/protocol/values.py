"""What requests carry and replies are made of, as values: the kernel's structs with the padding taken out.

Rules of this file: data only. Field names and their order are the header's, so a value packs by position; times are
seconds and nanoseconds as on the wire, except where a name ends in _ns.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

NS_PER_S = 1_000_000_000


class Context:
    """Who asks: one object per request, handed to every FileSystem method.

    unique is the request's id; uid, gid and pid are the caller's in the daemon's namespaces (0 for requests that the
    kernel makes by itself, such as writeback); groups holds the one supplementary group that a creating request may
    bring (FUSE_CREATE_SUPP_GROUP, Linux 6.3), or None where the kernel sent no extension.
    labels holds the security labels (name and value) for what the request creates (FUSE_SECURITY_CTX, Linux 5.17).
    uid and gid are FUSE_INVALID_UIDGID where the kernel does not tell: with FUSE_ALLOW_IDMAP (Linux 6.12) in all
    requests but those that create something.
    interrupted becomes true when the caller gave up (FUSE_INTERRUPT): a method that waits must then raise EINTR.
    """

    __slots__ = ("gid", "groups", "interrupted", "labels", "pid", "uid", "unique")

    def __init__(self, unique: int, uid: int, gid: int, pid: int, groups: tuple[int, ...] | None = None) -> None:
        self.unique = unique
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.groups = groups
        self.labels: tuple[tuple[bytes, bytes], ...] = ()
        self.interrupted = False


class Attr(NamedTuple):
    """fuse_attr: what stat(2) shows. size in bytes, blocks of 512 bytes, times in s and ns, rdev as mknod(2) takes it.

    flags takes FUSE_ATTR_SUBMOUNT and FUSE_ATTR_DAX. blksize 0 lets the kernel choose.
    """

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int = 0
    flags: int = 0

    @classmethod
    def from_stat(cls, st: os.stat_result) -> "Attr":
        """The same facts out of os.stat()."""
        atime, atimensec = divmod(st.st_atime_ns, NS_PER_S)
        mtime, mtimensec = divmod(st.st_mtime_ns, NS_PER_S)
        ctime, ctimensec = divmod(st.st_ctime_ns, NS_PER_S)
        rdev = encode_dev(os.major(st.st_rdev), os.minor(st.st_rdev)) if st.st_rdev else 0
        return cls(
            st.st_ino,
            st.st_size,
            st.st_blocks,
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_gid,
            rdev,
            st.st_blksize,
        )


def encode_dev(major: int, minor: int) -> int:
    """A device number in the 32 bits that fuse_attr.rdev and fuse_mknod_in.rdev have (new_encode_dev, kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_dev(rdev: int) -> tuple[int, int]:
    """(major, minor) of such a number (new_decode_dev, kdev_t.h)."""
    return (rdev & 0xFFF00) >> 8, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)


class Statx(NamedTuple):
    """fuse_statx: what statx(2) shows beyond stat(2), btime above all. mask says which fields are valid (STATX_*)."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atimensec: int
    btime: int
    btimensec: int
    ctime: int
    ctimensec: int
    mtime: int
    mtimensec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class Entry(NamedTuple):
    """A name that was found: its nodeid, its attributes, and how long the kernel may believe both, in nanoseconds.

    nodeid 0 says that the name does not exist and may be remembered as such for entry_timeout_ns (attr is ignored).
    """

    nodeid: int
    attr: Attr
    entry_timeout_ns: int = 0
    attr_timeout_ns: int = 0
    generation: int = 0


class Opened(NamedTuple):
    """An open file or directory: its handle fh, FOPEN_* flags, and a backing id where FOPEN_PASSTHROUGH is set."""

    fh: int
    open_flags: int = 0
    backing_id: int = 0


class SetAttr(NamedTuple):
    """fuse_setattr_in: valid (FATTR_*) says which fields are to be set; fh is meant only with FATTR_FH."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class FileLock(NamedTuple):
    """fuse_file_lock: start and end in bytes, inclusive (end 2^63-1: to the end); type F_RDLCK, F_WRLCK or F_UNLCK."""

    start: int
    end: int
    type: int
    pid: int


class StatFs(NamedTuple):
    """fuse_kstatfs: what statfs(2) shows. blocks, bfree and bavail count frsize bytes; namelen in bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class Dirent(NamedTuple):
    """One name of a directory. off is where reading goes on after it; type is d_type (DT_*: file type >> 12)."""

    name: bytes
    ino: int
    off: int
    type: int


class FileRange(NamedTuple):
    """Bytes that lie in a file: the transport moves them, by one preadv into the reply or the guest's memory.

    holder is what closes fd when it is dropped: it lives as long as the transport holds this.
    """

    fd: int
    offset: int
    size: int
    holder: object = None


class Fill(NamedTuple):
    """Bytes that whoever has them writes where the transport wants them: `into` gets a buffer of `size` bytes or fewer
    and returns how many it has filled. OSError for failure."""

    into: Callable[[memoryview], int]
    size: int


Answer = Callable[[int], None]
"""How a request that was left open is answered, once and from any thread: with a number of bytes, or with -errno."""


class Later(NamedTuple):
    """A READ or WRITE that is answered later, so that its thread can take the next one.

    begin(room, answer) starts it. A READ puts its bytes into `room`, as long as the size asked for, before it answers;
    a WRITE's buffers stay as they are until it has answered. Where begin raises, it has not answered and will not.
    """

    begin: Callable[[memoryview, Answer], None]


class IoctlReply(NamedTuple):
    """An ioctl's return value (0 or positive) and the bytes for the caller's buffer (at most out_size)."""

    result: int
    data: bytes = b""


Buffers = Sequence[memoryview]
"""Data to be written, in order, as buffers that live as long as the call: hand them to os.pwritev."""
