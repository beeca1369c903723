"""The options about owners, for every command that shares a directory. No I/O; the rules of option_rows.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from . import exitcodes
from .errors import UserError
from .fs.owners.idmap import IdTable, Line, parse_line
from .option_rows import Option, one_of
from .process_options import ProcessOptions
from .protocol.constants import FUSE_INVALID_UIDGID


class SecurityModel(Enum):
    """Where owners, modes and device numbers are: the files' own; in xattrs; or the files' own, and a change of owner
    that is not allowed is passed over. The words are those of QEMU's 9p."""

    PASSTHROUGH = "passthrough"
    MAPPED_XATTR = "mapped-xattr"
    NONE = "none"


class Squash(Enum):
    """Who becomes the anonymous user on the source."""

    NONE = "none"
    ROOT = "root"
    ALL = "all"


_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class OwnerOptions(ProcessOptions):
    """What a command is told about owners."""

    security_model: SecurityModel = SecurityModel.PASSTHROUGH
    translate_uid: tuple[Line, ...] = ()
    translate_gid: tuple[Line, ...] = ()
    squash: Squash = Squash.NONE
    anon_uid: int = _NOBODY
    anon_gid: int = _NOBODY
    allow_idmap: bool = False

    @property
    def mapped(self) -> bool:
        """Whether owners and modes are virtual."""
        return self.security_model is SecurityModel.MAPPED_XATTR


def _id(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or not 0 < int(text) < FUSE_INVALID_UIDGID:
        raise ValueError(f"an id from 1 to {FUSE_INVALID_UIDGID - 1}")
    return int(text)


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
        "Users have other ids here than in the source, by a line of virtiofsd's kinds; may be repeated.",
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
        "squash",
        "squash",
        "Who has the rights of one ordinary user on the source: none (nobody; the default), root or all.",
        parse=one_of(Squash),
        metavar="WHO",
    ),
    Option("anon_uid", "anon_uid", "That user; default: 65534.", parse=_id, metavar="UID"),
    Option("anon_gid", "anon_gid", "That user's group; default: 65534.", parse=_id, metavar="GID"),
    Option(
        "allow_idmap",
        "allow_idmap",
        "The mount may be idmapped, where the kernel can (6.12); the daemon is then told who asks only where something "
        "is created. no_allow_idmap is the default.",
    ),
    Option("no_allow_idmap", "allow_idmap", value=False),
)
"""For every command that shares a directory."""


def check_owners(options: OwnerOptions) -> None:
    """Options about owners that contradict each other. UserError names them."""
    if options.mapped and options.squash is not Squash.NONE:
        raise UserError(
            f"squash={options.squash.value} and security_model=mapped-xattr exclude each other: all files of the "
            "source are the daemon's",
            exitcodes.USAGE,
        )
    if options.squash is Squash.NONE:
        for word, given in ("anon_uid", options.anon_uid), ("anon_gid", options.anon_gid):
            if given != _NOBODY:
                raise UserError(f"{word} is for squash=root and squash=all, and neither is given", exitcodes.USAGE)
    _check_table("translate_uid", options.translate_uid)
    _check_table("translate_gid", options.translate_gid)


def _check_table(word: str, lines: Sequence[Line]) -> None:
    try:
        IdTable(lines)
    except ValueError as error:
        raise UserError(f"{word}: {error}", exitcodes.USAGE) from None
