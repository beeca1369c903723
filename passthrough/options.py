"""Every mount option: one row each, from which -o, the long options, --help and the man page's test derive.

Rules of this file: those of option_rows.py.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import exitcodes
from .errors import UserError
from .fs.capability import CAPABILITY
from .fs.tree.config import Choice, ReaddirPlus, TreeConfig
from .option_rows import MIB, Option, Setting, gather, name_of, one_of, size_in_bytes, threads_number
from .owner_options import Squash
from .process_options import LOG_OPTIONS
from .sandbox_options import SANDBOX_OPTIONS
from .share_options import SHARE_OPTIONS, ShareOptions, Writeout, check_share
from .transport_options import TRANSPORT_OPTIONS, Transport, check_transport


@dataclass(frozen=True, slots=True)
class MountOptions(ShareOptions):
    """What the words add up to. Sizes in bytes; None is "not said"."""

    ro: bool = False
    allow_other: bool = False
    allow_root: bool = False
    default_permissions: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    atime: bool = True
    sync: bool = False
    fsname: str | None = None
    subtype: str = "passthrough"
    max_read: int = 0
    max_write: int = MIB
    passthrough: Choice = Choice.AUTO
    io_uring: Choice = Choice.AUTO
    transport: Transport = Transport.AUTO
    threads: int = 8
    auto_unmount: bool = False
    nonempty: bool = False

    def tree(self) -> TreeConfig:
        """The part that the shared directory is told."""
        return replace(
            ShareOptions.tree(self),
            passthrough=self.passthrough if self.seen_by_daemon() is None else Choice.OFF,
            default_permissions=self.default_permissions,
        )

    def seen_by_daemon(self) -> str | None:
        """The option for which the daemon must see each write, so that the kernel cannot do them alone."""
        if self.writeback:
            return "writeback"
        if self.squash is not Squash.NONE:
            return f"squash={self.squash.value}"
        if self.writeout is Writeout.IMMEDIATE:
            return "writeout=immediate"
        if self.xattrmap is not None and self.xattrmap.renamed(CAPABILITY) is not None:
            return "an xattrmap that renames security.capability"
        return None

    def lends_rights(self) -> bool:
        """Whether other users would have the daemon's rights: neither the kernel checks theirs, nor are they one."""
        others = self.allow_other or self.allow_root
        return others and not self.default_permissions and self.squash is not Squash.ALL

    def mount_flags(self) -> frozenset[str]:
        """The part that mount(2) is told, as names of transport.mounting.MOUNT_FLAGS."""
        wanted = {
            "ro": self.ro,
            "nosuid": not self.suid,
            "nodev": not self.dev,
            "noexec": not self.exec,
            "noatime": not self.atime,
            "sync": self.sync,
        }
        return frozenset(name for name, on in wanted.items() if on)


def _subtype(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("letters, digits, - and _")
    return text


OPTIONS: tuple[Option, ...] = (
    Option("ro", "ro", "Mount read-only, as readonly does; rw is the default."),
    Option("readonly", "ro"),
    Option("rw", "ro", value=False),
    Option(
        "allow_other",
        "allow_other",
        "Let other users in; for an ordinary user /etc/fuse.conf must say user_allow_other.",
    ),
    Option("allow_root", "allow_root", "Let root in besides the user who mounts; excludes allow_other."),
    Option(
        "default_permissions",
        "default_permissions",
        "The kernel checks modes, owners and access lists, as it does everywhere (the default); "
        "no_default_permissions leaves it to the daemon's own rights.",
    ),
    Option("no_default_permissions", "default_permissions", value=False),
    Option("suid", "suid", "Honour SUID and SGID bits of programs; nosuid is the default."),
    Option("nosuid", "suid", value=False),
    Option("dev", "dev", "Let device nodes be opened as devices; nodev is the default."),
    Option("nodev", "dev", value=False),
    Option("noexec", "exec", "No program can be started from the mount; exec is the default.", value=False),
    Option("exec", "exec"),
    Option(
        "noatime",
        "atime",
        "The mount keeps no access times (atime: it does); SRC's own mount decides for SRC.",
        value=False,
    ),
    Option("atime", "atime"),
    Option("sync", "sync", "Writes go through to the daemon before they return; async is the default."),
    Option("async", "sync", value=False),
    Option("fsname", "fsname", "The source that mount(8) and df show; default: SRC.", parse=name_of, metavar="NAME"),
    Option("subtype", "subtype", "The type shown is fuse.NAME; default: passthrough.", parse=_subtype, metavar="NAME"),
    Option(
        "max_read", "max_read", "The largest read request; default: as max_write.", parse=size_in_bytes, metavar="BYTES"
    ),
    Option("max_write", "max_write", "The largest write request; default: 1M.", parse=size_in_bytes, metavar="BYTES"),
    *SHARE_OPTIONS,
    Option(
        "passthrough",
        "passthrough",
        "Whether the kernel reads and writes SRC's files itself: auto (where it can; the default), on or off.",
        parse=one_of(Choice),
        metavar="WHEN",
    ),
    Option(
        "io_uring",
        "io_uring",
        "Whether requests come by FUSE over io_uring, each on the CPU that asked: auto (where the kernel offers it; "
        "the default), on or off.",
        parse=one_of(Choice),
        metavar="WHEN",
    ),
    *TRANSPORT_OPTIONS,
    Option("xattr", "xattr", "Extended attributes are those of SRC (the default); no_xattr: there are none."),
    Option("no_xattr", "xattr", value=False),
    Option(
        "posix_acl",
        "posix_acl",
        "Access lists of SRC are shown, set and enforced (the default); no_posix_acl hides them.",
    ),
    Option("no_posix_acl", "posix_acl", value=False),
    Option(
        "readdirplus",
        "readdirplus",
        "Whether listing brings attributes along: no (as no_readdirplus), auto (when the program asks for them; the "
        "default, but for cache=never) or always.",
        parse=one_of(ReaddirPlus),
        metavar="WHEN",
    ),
    Option("no_readdirplus", "readdirplus", value=ReaddirPlus.NO),
    Option(
        "killpriv_v2",
        "killpriv_v2",
        "The daemon clears SUID and SGID of a changed file (the default); no_killpriv_v2: when the kernel asks.",
    ),
    Option("no_killpriv_v2", "killpriv_v2", value=False),
    Option(
        "threads",
        "threads",
        "How many slow requests may be served side by side; default: 8.",
        parse=threads_number,
        metavar="N",
    ),
    Option(
        "auto_unmount",
        "auto_unmount",
        "Unmount when the daemon dies, however it dies; always so, with this word or without.",
    ),
    Option("nonempty", "nonempty", "Allow a mount point that is not empty, or is a mount already."),
    Option("debug", "debug", "A line on standard error for each request and reply; stays in the foreground."),
    *LOG_OPTIONS,
    *SANDBOX_OPTIONS,
)

_BY_WORD = {option.word: option for option in OPTIONS}


def collect(settings: Iterable[Setting], *, sloppy: bool = False) -> MountOptions:
    """The options that these settings add up to; sloppy (mount -s) passes over unknown words."""
    options = replace(MountOptions(), **gather(settings, _BY_WORD, "mount", sloppy=sloppy))
    check(options)
    return settled(options)


def settled(options: MountOptions) -> MountOptions:
    """These options, and what follows from them."""
    if options.squash is Squash.ALL:  # the source decides, by the one user that all are
        return replace(options, default_permissions=False)
    return options


def check(options: MountOptions) -> None:
    """Options that contradict each other. UserError names them."""
    if options.allow_other and options.allow_root:
        raise UserError("allow_other and allow_root exclude each other: allow_other lets root in too", exitcodes.USAGE)
    if options.allow_idmap and (options.allow_root or not options.default_permissions):
        other = "allow_root" if options.allow_root else "no_default_permissions"
        raise UserError(
            f"allow_idmap and {other} exclude each other: the kernel does not tell who asks", exitcodes.USAGE
        )
    if options.writeback and options.passthrough is Choice.ON:
        raise UserError(
            "writeback and passthrough=on exclude each other: the kernel can do one of them", exitcodes.USAGE
        )
    if options.mapped and not options.default_permissions:
        raise UserError(
            "security_model=mapped-xattr needs default_permissions: the daemon's own rights know no virtual owners",
            exitcodes.USAGE,
        )
    if options.posix_acl and options.squash is Squash.ALL:
        raise UserError("posix_acl and squash=all exclude each other: the source enforces its own", exitcodes.USAGE)
    if options.passthrough is Choice.ON and (what := options.seen_by_daemon()):
        raise UserError(
            f"{what} and passthrough=on exclude each other: the daemon must see each write", exitcodes.USAGE
        )
    if options.posix_acl and not options.default_permissions:
        raise UserError("posix_acl and no_default_permissions exclude each other", exitcodes.USAGE)
    check_transport(options)
    check_share(options)
