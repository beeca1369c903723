"""What a shared directory can be told: plain data, in the units of the kernel (ns, bytes)."""

from dataclasses import dataclass, replace
from enum import Enum

from ...protocol import constants as c
from ..choice import Choice as Choice

ACCESS_LISTS = c.FUSE_POSIX_ACL | c.FUSE_DONT_MASK | c.FUSE_SETXATTR_EXT
"""What a kernel must have for access lists: their check, a umask that a default list overrides, and SGID that a list
may cost."""
NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S


class Cache(Enum):
    """How much the kernel may remember. NEVER: nothing; METADATA: names and attributes; AUTO: both for a second, and
    data while a file is open and unchanged; ALWAYS: everything, for those who alone change the directory."""

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"


class ReaddirPlus(Enum):
    """Whether READDIR brings attributes along: never, when the access pattern asks for it, always."""

    NO = "no"
    AUTO = "auto"
    ALWAYS = "always"


class FileHandles(Enum):
    """What becomes of inodes when descriptors are scarce. NEVER: each keeps its own. PREFER: those longest unused are
    kept as file handles, where their file system has these. MANDATORY: no other file systems are served."""

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


_TIMEOUT_NS = {Cache.NEVER: 0, Cache.METADATA: DAY_NS, Cache.AUTO: NS_PER_S, Cache.ALWAYS: DAY_NS}


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """Options of the shared directory. Timeouts in ns; a timeout of None is the cache mode's own."""

    cache: Cache = Cache.AUTO
    entry_timeout_ns: int | None = None
    attr_timeout_ns: int | None = None
    negative_timeout_ns: int = 0
    writeback: bool = False
    passthrough: Choice = Choice.OFF
    readdirplus: ReaddirPlus | None = None
    xattr: bool = True
    posix_acl: bool = True
    flock: bool = False
    posix_lock: bool = False
    default_permissions: bool = True
    direct_io: bool = False  # a caller's O_DIRECT is for the source's file as well
    mmap: bool = True  # shared mappings also where the cache mode keeps no pages (FUSE_DIRECT_IO_ALLOW_MMAP, Linux 6.6)
    killpriv: bool = True  # SUID and SGID of a changed file are cleared here (FUSE_HANDLE_KILLPRIV_V2, Linux 5.11)
    writeout: bool = False  # what is written is on its way to the disk when the write returns (sync_file_range)
    noatime: bool = False  # a caller's O_NOATIME is for the source's file as well
    submounts: bool = False  # other file systems below the root are announced as such (virtio-fs, Linux 5.10)
    idmap: bool = False  # the mount may be idmapped (FUSE_ALLOW_IDMAP, Linux 6.12)
    lenient_owners: bool = False  # a change of owner that is not allowed is passed over
    file_handles: FileHandles = FileHandles.NEVER  # what it takes to open them is given to the Tree
    descriptors: int = 0  # how many descriptors clients may pin; 0: what RLIMIT_NOFILE leaves

    def resolved(self) -> "TreeConfig":
        """The same with the cache mode's timeouts and READDIRPLUS filled in."""
        timeout = _TIMEOUT_NS[self.cache]
        plus = ReaddirPlus.NO if self.cache is Cache.NEVER else ReaddirPlus.AUTO
        return replace(
            self,
            entry_timeout_ns=timeout if self.entry_timeout_ns is None else self.entry_timeout_ns,
            attr_timeout_ns=timeout if self.attr_timeout_ns is None else self.attr_timeout_ns,
            readdirplus=self.readdirplus or plus,
            posix_acl=self.posix_acl and self.xattr and self.default_permissions,
            passthrough=Choice.OFF if self.writeout else self.passthrough,  # what is not seen cannot be written out
        )
