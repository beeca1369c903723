"""The options of a shared directory, the same for every command that shares one. No I/O; the rules of option_rows.py.

What differs between them is in the command's own table: a default (xattr, posix_acl, killpriv_v2), or what only one
kind of mount can have.
"""

from dataclasses import dataclass
from enum import Enum

from . import exitcodes
from .errors import UserError
from .fs.tree.config import Cache, FileHandles, ReaddirPlus, TreeConfig
from .fs.xattrmap import XattrMap, parse_map
from .option_rows import Option, one_of, seconds
from .owner_options import OWNER_OPTIONS, OwnerOptions, SecurityModel, Squash, check_owners
from .sandbox_options import check_sandbox

_ACCESS_LISTS = (b"system.posix_acl_access", b"system.posix_acl_default")


class Writeout(Enum):
    """When the kernel begins to write to the disk what was written: when it likes, or with each write."""

    LATER = "later"
    IMMEDIATE = "immediate"


@dataclass(frozen=True, slots=True)
class ShareOptions(OwnerOptions):
    """What a command is told about the shared directory. Timeouts in ns; None is "not said"."""

    cache: Cache = Cache.AUTO
    timeout: int | None = None
    attr_timeout: int | None = None
    entry_timeout: int | None = None
    negative_timeout: int = 0
    writeback: bool = False
    xattr: bool = True
    posix_acl: bool | None = None
    flock: bool = False
    posix_lock: bool = False
    readdirplus: ReaddirPlus | None = None
    allow_direct_io: bool = False
    allow_mmap: bool = True
    preserve_noatime: bool = False
    killpriv_v2: bool = True
    xattrmap: XattrMap | None = None
    security_label: bool = False
    writeout: Writeout = Writeout.LATER
    inode_file_handles: FileHandles | None = None

    def tree(self) -> TreeConfig:
        """The part that the shared directory is told."""
        return TreeConfig(
            cache=self.cache,
            entry_timeout_ns=self.timeout if self.entry_timeout is None else self.entry_timeout,
            attr_timeout_ns=self.timeout if self.attr_timeout is None else self.attr_timeout,
            negative_timeout_ns=self.negative_timeout,
            writeback=self.writeback,
            # A listing as the anonymous user takes the right to read the directory, and attributes another one.
            readdirplus=self.readdirplus if self.squash is Squash.NONE else ReaddirPlus.NO,
            xattr=self.xattr,
            posix_acl=self.posix_acl is not False and self.keeps_access_lists(),
            flock=self.flock,
            posix_lock=self.posix_lock,
            direct_io=self.allow_direct_io,
            mmap=self.allow_mmap,
            noatime=self.preserve_noatime,
            killpriv=self.killpriv_v2,
            writeout=self.writeout is Writeout.IMMEDIATE,
            file_handles=self.inode_file_handles or FileHandles.PREFER,
            idmap=self.allow_idmap and self.squash is Squash.NONE,  # who asks must be known
            lenient_owners=self.security_model is SecurityModel.NONE,
        )

    def keeps_access_lists(self) -> bool:
        """Whether access lists have the same names on both sides, without which the kernels do not enforce them."""
        return self.xattrmap is None or all(map(self.xattrmap.unchanged, _ACCESS_LISTS))

    def needs_xattr(self) -> str | None:
        """The option that is about extended attributes, and implies that there are some."""
        for name, wanted in (
            ("posix_acl", self.posix_acl),
            ("xattrmap", self.xattrmap is not None),
            ("security_label", self.security_label),
        ):
            if wanted:
                return name
        return None

    def outlives_a_request(self) -> tuple[str, str] | None:
        """The option by which more is done than a request's caller may, and what."""
        if self.writeback:
            return "writeback", "who wrote is not known later"
        if self.xattrmap is not None or self.security_label:
            name = "security_label" if self.security_label else "xattrmap"
            return name, "it changes attributes that the anonymous user may not"
        return None


def cache_mode(text: str) -> Cache:
    """A cache mode; the C virtiofsd says none for never."""
    try:
        return Cache("never" if text == "none" else text)
    except ValueError:
        raise ValueError("one of " + ", ".join(member.value for member in Cache)) from None


def file_handles(text: str) -> FileHandles:
    """Whether inodes are kept as file handles; the Rust virtiofsd once said fallback for prefer."""
    return one_of(FileHandles)("prefer" if text == "fallback" else text)


SHARE_OPTIONS: tuple[Option, ...] = (
    Option(
        "cache",
        "cache",
        "What the kernel may remember: never, metadata, auto (the default) or always.",
        parse=cache_mode,
        metavar="MODE",
    ),
    Option(
        "timeout",
        "timeout",
        "How long names and attributes are believed; default: the cache mode's (auto: 1).",
        parse=seconds,
        metavar="SECONDS",
    ),
    Option("attr_timeout", "attr_timeout", "The same for attributes alone.", parse=seconds, metavar="SECONDS"),
    Option("entry_timeout", "entry_timeout", "The same for names alone.", parse=seconds, metavar="SECONDS"),
    Option(
        "negative_timeout",
        "negative_timeout",
        "How long a name that does not exist is believed not to; default: 0.",
        parse=seconds,
        metavar="SECONDS",
    ),
    Option(
        "writeback",
        "writeback",
        "The kernel collects writes before the daemon sees them; for those who alone change the directory; "
        "no_writeback is the default.",
    ),
    Option("no_writeback", "writeback", value=False),
    Option(
        "flock",
        "flock",
        "flock(2) locks are taken on the source's files, so that both sides see them; no_flock is the default.",
    ),
    Option("no_flock", "flock", value=False),
    Option(
        "posix_lock",
        "posix_lock",
        "fcntl(2) locks are taken on the source's files, so that both sides see them; no_posix_lock is the default.",
    ),
    Option("no_posix_lock", "posix_lock", value=False),
    Option(
        "allow_direct_io",
        "allow_direct_io",
        "O_DIRECT of a program on the mount is for the source's file as well; no_allow_direct_io is the default.",
    ),
    Option("no_allow_direct_io", "allow_direct_io", value=False),
    Option(
        "allow_mmap",
        "allow_mmap",
        "Shared mappings also with cache=never and metadata, where the kernel can (6.6; the default); no_allow_mmap: "
        "they fail with ENODEV.",
    ),
    Option("no_allow_mmap", "allow_mmap", value=False),
    Option(
        "preserve_noatime",
        "preserve_noatime",
        "O_NOATIME of a program on the mount is for the source's file as well; no_preserve_noatime is the default.",
    ),
    Option("no_preserve_noatime", "preserve_noatime", value=False),
    Option(
        "xattrmap",
        "xattrmap",
        "Other names for extended attributes: rules :TYPE:SCOPE:KEY:PREPEND:, or those called selinux or overlay.",
        parse=parse_map,
        metavar="RULES",
    ),
    Option(
        "security_label",
        "security_label",
        "New files get the label that a security module (SELinux) gives them; no_security_label is the default.",
    ),
    Option("no_security_label", "security_label", value=False),
    Option(
        "writeout",
        "writeout",
        "When what was written goes to the disk: later (the default) or immediate, which begins it with each write.",
        parse=one_of(Writeout),
        metavar="WHEN",
    ),
    Option(
        "inode_file_handles",
        "inode_file_handles",
        "When descriptors are scarce: never (each remembered file keeps one), prefer (file handles instead, where they "
        "can be had; the default) or mandatory (no file system without them is served).",
        parse=file_handles,
        metavar="MODE",
    ),
    *OWNER_OPTIONS,
)
"""For every command that shares a directory."""


def check_share(options: ShareOptions) -> None:
    """Options that contradict each other. UserError names them."""
    if options.writeback and options.cache in (Cache.NEVER, Cache.METADATA):
        raise UserError(
            f"writeback needs a page cache, and cache={options.cache.value} has none: cache=auto or always",
            exitcodes.USAGE,
        )
    if not options.xattr and (what := options.needs_xattr()):
        why = ": an access list is an xattr" if what == "posix_acl" else ""
        raise UserError(f"{what} and no_xattr exclude each other{why}", exitcodes.USAGE)
    if options.posix_acl and not options.keeps_access_lists():
        raise UserError(
            "posix_acl and this xattrmap exclude each other: it renames access lists, or refuses them; "
            "put before its other rules :ok:all:system.posix_acl_:system.posix_acl_:",
            exitcodes.USAGE,
        )
    handles = options.inode_file_handles or FileHandles.PREFER
    removed = (options.modcaps or "").lower().replace("-cap_", "-").split(":")
    if handles is not FileHandles.NEVER and "-dac_read_search" in removed:
        raise UserError(
            f"modcaps=-dac_read_search and inode_file_handles={handles.value} exclude each other: file handles are "
            "opened with it; inode_file_handles=never",
            exitcodes.USAGE,
        )
    check_owners(options)
    if options.squash is not Squash.NONE and (other := options.outlives_a_request()):
        raise UserError(f"squash={options.squash.value} and {other[0]} exclude each other: {other[1]}", exitcodes.USAGE)
    check_sandbox(options)
