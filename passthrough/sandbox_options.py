"""The options of the sandbox, for every command that serves. No I/O; the rules of option_rows.py."""

import re
from dataclasses import dataclass
from enum import Enum

from . import exitcodes
from .errors import UserError
from .fs.choice import Choice
from .option_rows import Option, one_of


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


def check_sandbox(options: SandboxOptions) -> None:
    """Options of the sandbox that contradict each other. UserError names them."""
    if (options.uid_map or options.gid_map) and options.sandbox is not SandboxMode.NAMESPACE:
        raise UserError(
            f"uid_map and gid_map belong to sandbox=namespace, and not to sandbox={options.sandbox.value}",
            exitcodes.USAGE,
        )
    if options.sandbox is SandboxMode.LANDLOCK and options.landlock is Choice.OFF:
        raise UserError("sandbox=landlock and landlock=off exclude each other", exitcodes.USAGE)
