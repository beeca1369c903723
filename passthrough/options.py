"""Every mount option: one row each, from which -o, the long options, --help and the man page's test derive.

Rules of this file: no I/O. Options come as (word, value) pairs in the order of the command line, whether from -o or
from a long option; the last one wins. Errors are UserErrors that name the option.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, NamedTuple

from . import exitcodes
from .errors import UserError
from .fs.tree.config import NS_PER_S, Cache, Choice, ReaddirPlus, TreeConfig

KIB, MIB = 1 << 10, 1 << 20
_SIZE = re.compile(r"(\d+)([KkMm]?)$")
_ESCAPED_WORD = re.compile(r"(?:[^,\\]|\\.|\\)+", re.DOTALL)
_TIMEOUT_LIMIT_S = 10**9


class SandboxMode(Enum):
    """How the daemon is kept from everything but the share."""

    NAMESPACE = "namespace"
    CHROOT = "chroot"
    LANDLOCK = "landlock"
    NONE = "none"


class SeccompMode(Enum):
    """What becomes of system calls that are not on the list."""

    NONE = "none"
    LOG = "log"
    ERRNO = "errno"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """What every command that serves is told about its sandbox. None is "not said"; maps are as they were written."""

    sandbox: SandboxMode = SandboxMode.NAMESPACE
    landlock: Choice = Choice.AUTO
    seccomp: SeccompMode = SeccompMode.ERRNO
    modcaps: str | None = None
    rlimit_nofile: int | None = None
    uid_map: tuple[str, ...] = ()
    gid_map: tuple[str, ...] = ()
    sandbox_explain: bool = False


@dataclass(frozen=True, slots=True)
class MountOptions(SandboxOptions):
    """What the words add up to. Timeouts in ns, sizes in bytes; None is "not said"."""

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
    cache: Cache = Cache.AUTO
    timeout: int | None = None
    attr_timeout: int | None = None
    entry_timeout: int | None = None
    negative_timeout: int = 0
    writeback: bool = False
    passthrough: Choice = Choice.AUTO
    io_uring: Choice = Choice.AUTO
    xattr: bool = True
    posix_acl: bool | None = None
    flock: bool = False
    posix_lock: bool = False
    readdirplus: ReaddirPlus | None = None
    threads: int = 8
    auto_unmount: bool = False
    nonempty: bool = False
    debug: bool = False

    def tree(self) -> TreeConfig:
        """The part that the shared directory is told."""
        return TreeConfig(
            cache=self.cache,
            entry_timeout_ns=self.timeout if self.entry_timeout is None else self.entry_timeout,
            attr_timeout_ns=self.timeout if self.attr_timeout is None else self.attr_timeout,
            negative_timeout_ns=self.negative_timeout,
            writeback=self.writeback,
            passthrough=self.passthrough if not self.writeback else Choice.OFF,
            readdirplus=self.readdirplus,
            xattr=self.xattr,
            posix_acl=self.posix_acl is not False,
            flock=self.flock,
            posix_lock=self.posix_lock,
            default_permissions=self.default_permissions,
        )

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


class Option(NamedTuple):
    """A row: the customary word; the field it sets; for a flag the value, else how its text is read; and its help.

    A row without help is another's opposite or synonym: understood everywhere, listed with the other one. One with
    `many` may be given several times, and its field is a tuple of all its values.
    """

    word: str
    field: str
    help: str = ""
    value: Any = True
    parse: Callable[[str], Any] | None = None
    metavar: str = ""
    many: bool = False


def _seconds(text: str) -> int:
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        raise ValueError("seconds, such as 1 or 0.5") from None
    if seconds.is_nan() or not 0 <= seconds <= _TIMEOUT_LIMIT_S:
        raise ValueError(f"seconds from 0 to {_TIMEOUT_LIMIT_S}")
    return int(seconds * NS_PER_S)


def _bytes(text: str) -> int:
    match = _SIZE.match(text)
    size = int(match[1]) * {"": 1, "k": KIB, "m": MIB}[match[2].lower()] if match else 0
    if not 4 * KIB <= size <= 16 * MIB:
        raise ValueError("bytes from 4K to 16M, such as 131072 or 128K")
    return size


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise ValueError("a number from 1 to 256")
    return int(text)


def _word(text: str) -> str:
    if not text or "\n" in text:
        raise ValueError("a name")
    return text


def _subtype(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("letters, digits, - and _")
    return text


def _nofile(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:20]) <= 1 << 31:
        raise ValueError("a number of open files, or 0 to leave the limit alone")
    return int(text)


def _modcaps(text: str) -> str:
    if not re.fullmatch(r"[+-][A-Za-z_]+(:[+-][A-Za-z_]+)*", text):
        raise ValueError("+NAME and -NAME, separated by colons, such as +sys_admin:-mknod")
    return text


def _id_map(text: str) -> str:
    fields = text[1:].removesuffix(text[:1]).split(text[:1]) if text else []
    if len(fields) != 3 or not all(field.isascii() and field.isdecimal() and len(field) < 11 for field in fields):
        raise ValueError(":inside:outside:count:, such as :1000:1000:1:")
    return text


def one_of(kind: type[Enum]) -> Callable[[str], Any]:
    """A reader for the values of an enumeration."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError("one of " + ", ".join(member.value for member in kind)) from None

    return parse


SANDBOX_OPTIONS: tuple[Option, ...] = (
    Option(
        "sandbox",
        "sandbox",
        "How the daemon is kept from all else on the machine: namespace (the default), chroot, landlock or none.",
        parse=one_of(SandboxMode),
        metavar="MODE",
    ),
    Option(
        "landlock",
        "landlock",
        "Whether Landlock comes on top of another mode: auto (where the kernel has it; the default), on or off.",
        parse=one_of(Choice),
        metavar="WHEN",
    ),
    Option(
        "seccomp",
        "seccomp",
        "What becomes of unexpected system calls of the daemon: none (no filter), log, errno (the default: refused, or "
        "killed for an attack) or kill.",
        parse=one_of(SeccompMode),
        metavar="MODE",
    ),
    Option(
        "modcaps",
        "modcaps",
        "Capabilities to keep or to drop besides, such as +sys_admin:-mknod.",
        parse=_modcaps,
        metavar="CHANGES",
    ),
    Option(
        "rlimit_nofile",
        "rlimit_nofile",
        "The daemon's limit of open files; 0 leaves it alone; default: a million, or what is allowed.",
        parse=_nofile,
        metavar="N",
    ),
    Option(
        "uid_map",
        "uid_map",
        "Users in an ordinary user's sandbox; may be repeated; default: one's own id.",
        parse=_id_map,
        metavar=":INSIDE:OUTSIDE:COUNT:",
        many=True,
    ),
    Option(
        "gid_map",
        "gid_map",
        "The same for groups.",
        parse=_id_map,
        metavar=":INSIDE:OUTSIDE:COUNT:",
        many=True,
    ),
    Option("sandbox_explain", "sandbox_explain", "Print the steps of the sandbox, and do nothing."),
)
"""For every command that serves."""

OPTIONS: tuple[Option, ...] = (
    Option("ro", "ro", "Mount read-only; rw is the default."),
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
    Option("fsname", "fsname", "The source that mount(8) and df show; default: SRC.", parse=_word, metavar="NAME"),
    Option("subtype", "subtype", "The type shown is fuse.NAME; default: passthrough.", parse=_subtype, metavar="NAME"),
    Option("max_read", "max_read", "The largest read request; default: as max_write.", parse=_bytes, metavar="BYTES"),
    Option("max_write", "max_write", "The largest write request; default: 1M.", parse=_bytes, metavar="BYTES"),
    Option(
        "cache",
        "cache",
        "What the kernel may remember: never, metadata, auto (the default) or always.",
        parse=one_of(Cache),
        metavar="MODE",
    ),
    Option(
        "timeout",
        "timeout",
        "How long names and attributes are believed; default: the cache mode's (auto: 1).",
        parse=_seconds,
        metavar="SECONDS",
    ),
    Option("attr_timeout", "attr_timeout", "The same for attributes alone.", parse=_seconds, metavar="SECONDS"),
    Option("entry_timeout", "entry_timeout", "The same for names alone.", parse=_seconds, metavar="SECONDS"),
    Option(
        "negative_timeout",
        "negative_timeout",
        "How long a name that does not exist is believed not to; default: 0.",
        parse=_seconds,
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
    Option("xattr", "xattr", "Extended attributes are those of SRC (the default); no_xattr: there are none."),
    Option("no_xattr", "xattr", value=False),
    Option(
        "posix_acl",
        "posix_acl",
        "Access lists of SRC are shown, set and enforced (the default); no_posix_acl hides them.",
    ),
    Option("no_posix_acl", "posix_acl", value=False),
    Option(
        "flock",
        "flock",
        "flock(2) locks are taken on SRC's files, so that both sides see them; no_flock is the default.",
    ),
    Option("no_flock", "flock", value=False),
    Option(
        "posix_lock",
        "posix_lock",
        "fcntl(2) locks are taken on SRC's files, so that both sides see them; no_posix_lock is the default.",
    ),
    Option("no_posix_lock", "posix_lock", value=False),
    Option(
        "readdirplus",
        "readdirplus",
        "Whether listing brings attributes along: no, auto (when the program asks for them; the default, but for "
        "cache=never) or always.",
        parse=one_of(ReaddirPlus),
        metavar="WHEN",
    ),
    Option(
        "threads",
        "threads",
        "How many slow requests may be served side by side; default: 8.",
        parse=_threads,
        metavar="N",
    ),
    Option("auto_unmount", "auto_unmount", "Unmount when the daemon dies, however it dies."),
    Option("nonempty", "nonempty", "Allow a mount point that is not empty, or is a mount already."),
    Option("debug", "debug", "A line on standard error for each request and reply; stays in the foreground."),
    *SANDBOX_OPTIONS,
)

_BY_WORD = {option.word: option for option in OPTIONS}

# What mount(8) and fstab say to themselves, and pass on.
_IGNORED = frozenset(
    "defaults auto noauto user nouser users nousers owner group nofail _netdev nodiratime diratime relatime norelatime "
    "strictatime lazytime nolazytime iversion noiversion silent loud".split()
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=")

Setting = tuple[str, str | None]
"""An option as it was given: the word, and the text after = if there was one."""


def split_words(text: str) -> list[Setting]:
    r"""The settings in the argument of -o: separated by commas; \, is a comma and \\ a backslash within one."""
    words = [re.sub(r"\\([\\,])", r"\1", word) for word in _ESCAPED_WORD.findall(text)]
    found: list[Setting] = []
    for word in words:
        if word and word not in _IGNORED and not word.startswith(_IGNORED_PREFIXES):
            name, equals, value = word.partition("=")
            found.append((name, value if equals else None))
    return found


def collect(settings: Iterable[Setting], *, sloppy: bool = False) -> MountOptions:
    """The options that these settings add up to; sloppy (mount -s) passes over unknown words."""
    options = replace(MountOptions(), **gather(settings, _BY_WORD, "mount", sloppy=sloppy))
    _check(options)
    return options


def gather(
    settings: Iterable[Setting], rows: Mapping[str, Option], command: str, *, sloppy: bool = False
) -> dict[str, Any]:
    """The fields that these settings set, by the rows of a command's options."""
    values: dict[str, Any] = {}
    for word, text in settings:
        option = rows.get(word)
        if option is None:
            if sloppy:
                continue
            raise UserError(f"unknown option: {word}; passthrough {command} --help lists them", exitcodes.USAGE)
        value = _value(option, text)
        values[option.field] = (*values.get(option.field, ()), value) if option.many else value
    return values


def _value(option: Option, text: str | None) -> Any:
    if option.parse is None:
        if text is not None:
            raise UserError(f"option {option.word} takes no value", exitcodes.USAGE)
        return option.value
    if text is None:
        raise UserError(f"option {option.word} needs a value: {option.word}={option.metavar}", exitcodes.USAGE)
    try:
        return option.parse(text)
    except ValueError as error:
        raise UserError(f"option {option.word}={text}: it takes {error}", exitcodes.USAGE) from None


def _check(options: MountOptions) -> None:
    """Options that contradict each other."""
    if options.allow_other and options.allow_root:
        raise UserError("allow_other and allow_root exclude each other: allow_other lets root in too", exitcodes.USAGE)
    if options.writeback and options.cache in (Cache.NEVER, Cache.METADATA):
        raise UserError(
            f"writeback needs a page cache, and cache={options.cache.value} has none: cache=auto or always",
            exitcodes.USAGE,
        )
    if options.writeback and options.passthrough is Choice.ON:
        raise UserError(
            "writeback and passthrough=on exclude each other: the kernel can do one of them", exitcodes.USAGE
        )
    check_sandbox(options)
    if options.posix_acl and not options.xattr:
        raise UserError("posix_acl and no_xattr exclude each other: an access list is an xattr", exitcodes.USAGE)
    if options.posix_acl and not options.default_permissions:
        raise UserError("posix_acl and no_default_permissions exclude each other", exitcodes.USAGE)


def check_sandbox(options: SandboxOptions) -> None:
    """Options of the sandbox that contradict each other. UserError names them."""
    if (options.uid_map or options.gid_map) and options.sandbox is not SandboxMode.NAMESPACE:
        raise UserError(
            f"uid_map and gid_map belong to sandbox=namespace, and not to sandbox={options.sandbox.value}",
            exitcodes.USAGE,
        )
