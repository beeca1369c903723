"""Keyword arguments: the command's words, read by the rows of its tables, so that both mean the same.

A flag's value is True or False. Any other word takes what the command takes as a string, an enumeration's member, or a
number in the same unit (seconds, bytes), and a list of these where the command takes the word several times. None is
"not said". ValueError for a value that the command would refuse, also together with another word; TypeError for a word
that is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, TypedDict

from ..errors import UserError
from ..fs.tree import Cache, Choice, FileHandles, ReaddirPlus, TreeConfig
from ..option_rows import Option
from ..options import OPTIONS, MountOptions, check, settled
from ..owner_options import SecurityModel, Squash
from ..share_options import Writeout

When = Choice | Literal["auto", "on", "off"]


class TreeWords(TypedDict, total=False):
    """What a shared directory is told: passthrough-mount(1), but for the last two."""

    cache: Cache | Literal["never", "metadata", "auto", "always"]
    timeout: float | str | None
    attr_timeout: float | str | None
    entry_timeout: float | str | None
    negative_timeout: float | str
    readdirplus: ReaddirPlus | Literal["no", "auto", "always"] | None
    writeback: bool
    writeout: Writeout | Literal["later", "immediate"]
    passthrough: When
    default_permissions: bool
    xattr: bool
    posix_acl: bool | None
    flock: bool
    posix_lock: bool
    allow_direct_io: bool
    allow_mmap: bool
    preserve_noatime: bool
    killpriv_v2: bool
    xattrmap: str | None
    security_label: bool
    security_model: SecurityModel | Literal["passthrough", "mapped-xattr", "none"]
    translate_uid: str | Sequence[str]
    translate_gid: str | Sequence[str]
    squash: Squash | Literal["none", "root", "all"]
    anon_uid: int | str
    anon_gid: int | str
    allow_idmap: bool
    inode_file_handles: FileHandles | Literal["never", "prefer", "mandatory"] | None
    announce_submounts: bool
    descriptors: int


class MountWords(TypedDict, total=False):
    """What a mount is told: passthrough-mount(1)."""

    ro: bool
    allow_other: bool
    allow_root: bool
    suid: bool
    dev: bool
    noexec: bool
    noatime: bool
    sync: bool
    fsname: str | None
    subtype: str
    max_read: int | str
    max_write: int | str
    io_uring: When
    threads: int
    nonempty: bool
    debug: bool


OWN = frozenset({"announce_submounts", "descriptors"})
"""Words of a tree that are no option of a mount: one of passthrough-serve(1), and one for programs alone."""
_ROWS = {row.word: row for row in OPTIONS}


def tree_options(words: Mapping[str, Any]) -> MountOptions:
    """The options of a mount that a shared directory's words add up to."""
    return _options("Tree", {word: value for word, value in words.items() if word not in OWN}, TreeWords)


def tree_config(words: Mapping[str, Any]) -> TreeConfig:
    """The configuration of a shared directory that these words add up to."""
    config = settled(tree_options(words)).tree()
    submounts = _flag("announce_submounts", words.get("announce_submounts", False))
    return replace(config, submounts=submounts, descriptors=_count("descriptors", words.get("descriptors", 0)))


def mount_options(words: Mapping[str, Any], said: MountOptions | None = None) -> MountOptions:
    """The options of a mount that these words add up to, with those that what is mounted has been told."""
    options = settled(_options("mount", words, MountWords, said or MountOptions()))
    if options.lends_rights():
        raise ValueError("default_permissions=False with allow_other would give every user this program's rights")
    return options


def _options(function: str, words: Mapping[str, Any], known: type, said: MountOptions | None = None) -> MountOptions:
    unknown = sorted(words.keys() - known.__annotations__.keys())
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")
    fields = {_ROWS[word].field: _read(_ROWS[word], value) for word, value in words.items() if value is not None}
    options = replace(said or MountOptions(), **fields)
    try:
        check(options)
    except UserError as error:
        raise ValueError(str(error)) from None
    return options


def _read(row: Option, value: Any) -> Any:
    if row.parse is None:
        return row.value if _flag(row.word, value) else not row.value
    if row.many:
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list | tuple):
            raise ValueError(f"{row.word}={value!r}: it takes {row.metavar}, as a string or a list of these")
        return tuple(_one(row, each) for each in several)
    return _one(row, value)


def _one(row: Option, value: Any) -> Any:
    assert row.parse is not None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Enum):
        raise ValueError(f"{row.word}={value!r}: it takes {row.metavar}, as a string or a number")
    try:
        return row.parse(str(value.value if isinstance(value, Enum) else value))
    except ValueError as error:
        raise ValueError(f"{row.word}={value!r}: it takes {error}") from None


def _flag(word: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{word}={value!r}: it takes True or False")
    return value


def _count(word: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{word}={value!r}: it takes a number, 0 for what the limit of open files leaves")
    return value
