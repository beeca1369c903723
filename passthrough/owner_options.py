"""The options about owners, for every command that shares a directory. No I/O; the rules of option_rows.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from . import exitcodes
from .errors import UserError
from .fs.owners.idmap import IdTable, Line, parse_line
from .option_rows import Option, one_of
from .sandbox_options import SandboxOptions


class SecurityModel(Enum):
    """Where owners, modes and device numbers are: the files' own; in xattrs; or the files' own, and a change of owner
    that is not allowed is passed over. The words are those of QEMU's 9p."""

    PASSTHROUGH = "passthrough"
    MAPPED_XATTR = "mapped-xattr"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class OwnerOptions(SandboxOptions):
    """What a command is told about owners."""

    security_model: SecurityModel = SecurityModel.PASSTHROUGH
    translate_uid: tuple[Line, ...] = ()
    translate_gid: tuple[Line, ...] = ()
    allow_idmap: bool = False

    @property
    def mapped(self) -> bool:
        """Whether owners and modes are virtual."""
        return self.security_model is SecurityModel.MAPPED_XATTR


OWNER_OPTIONS: tuple[Option, ...] = (
    Option(
        "security_model",
        "security_model",
        "Where owners, modes and device numbers are kept: passthrough (as those of the files; the default), "
        "mapped-xattr (in xattrs, as QEMU's 9p does it) or none (as passthrough, and a change of owner that is not "
        "allowed is passed over).",
        parse=one_of(SecurityModel),
        metavar="MODEL",
    ),
    Option(
        "translate_uid",
        "translate_uid",
        "Users have other ids here than in the source: guest, host, map, squash-guest, squash-host:FIRST:TARGET:COUNT, "
        "or forbid-guest:FIRST:COUNT; may be repeated.",
        parse=parse_line,
        metavar="TYPE:FIRST:TARGET:COUNT",
        many=True,
    ),
    Option(
        "translate_gid",
        "translate_gid",
        "The same for groups.",
        parse=parse_line,
        metavar="TYPE:FIRST:TARGET:COUNT",
        many=True,
    ),
    Option(
        "allow_idmap",
        "allow_idmap",
        "The mount may be idmapped, where the kernel can (6.12); the daemon is then told who asks only where something "
        "is created.",
    ),
    Option("no_allow_idmap", "allow_idmap", value=False),
)
"""For every command that shares a directory."""


def check_owners(options: OwnerOptions) -> None:
    """Options about owners that contradict each other. UserError names them."""
    _check_table("translate_uid", options.translate_uid)
    _check_table("translate_gid", options.translate_gid)


def _check_table(word: str, lines: Sequence[Line]) -> None:
    try:
        IdTable(lines)
    except ValueError as error:
        raise UserError(f"{word}: {error}", exitcodes.USAGE) from None
