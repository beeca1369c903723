"""What every table of options is made of: its rows, how their texts are read, and what settings add up to.

Rules of this file: no I/O. Options come as (word, value) pairs in the order of the command line, whether from -o or
from a long option; the last one wins. Errors are UserErrors that name the option.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from . import exitcodes
from .errors import UserError

Member = TypeVar("Member", bound=Enum)

KIB, MIB = 1 << 10, 1 << 20
NS_PER_S = 1_000_000_000
_SIZE = re.compile(r"(\d+)([KkMm]?)$")
_ESCAPED_WORD = re.compile(r"(?:[^,\\]|\\.|\\)+", re.DOTALL)
_TIMEOUT_LIMIT_S = 10**9

# What mount(8) and fstab say to themselves, and pass on.
_IGNORED = frozenset(
    "defaults auto noauto user nouser users nousers owner group nofail _netdev nodiratime diratime relatime norelatime "
    "strictatime lazytime nolazytime iversion noiversion silent loud".split()
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=")

Setting = tuple[str, str | None]
"""An option as it was given: the word, and the text after = if there was one."""


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


def seconds(text: str) -> int:
    """Seconds, fractions allowed, in ns."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("seconds, such as 1 or 0.5") from None
    if number.is_nan() or not 0 <= number <= _TIMEOUT_LIMIT_S:
        raise ValueError(f"seconds from 0 to {_TIMEOUT_LIMIT_S}")
    return int(number * NS_PER_S)


def size_in_bytes(text: str) -> int:
    """The size of a request."""
    match = _SIZE.match(text)
    size = int(match[1]) * {"": 1, "k": KIB, "m": MIB}[match[2].lower()] if match else 0
    if not 4 * KIB <= size <= 16 * MIB:
        raise ValueError("bytes from 4K to 16M, such as 131072 or 128K")
    return size


def threads_number(text: str) -> int:
    """How many threads."""
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise ValueError("a number from 1 to 256")
    return int(text)


def name_of(text: str) -> str:
    """One line that is not empty."""
    if not text or "\n" in text:
        raise ValueError("a name")
    return text


def one_of(kind: type[Member]) -> Callable[[str], Member]:
    """A reader for the values of an enumeration."""

    def parse(text: str) -> Member:
        try:
            return kind(text)
        except ValueError:
            raise ValueError("one of " + ", ".join(member.value for member in kind)) from None

    return parse


def split_words(text: str) -> list[Setting]:
    r"""The settings in the argument of -o: separated by commas; \, is a comma and \\ a backslash within one."""
    words = [re.sub(r"\\([\\,])", r"\1", word) for word in _ESCAPED_WORD.findall(text)]
    found: list[Setting] = []
    for word in words:
        if word and word not in _IGNORED and not word.startswith(_IGNORED_PREFIXES):
            name, equals, value = word.partition("=")
            found.append((name, value if equals else None))
    return found


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
            raise UserError(f"unknown option: {word}; {_instead(word, rows, command)}", exitcodes.USAGE)
        value = _value(option, text)
        values[option.field] = (*values.get(option.field, ()), value) if option.many else value
    return values


def _instead(word: str, rows: Mapping[str, Option], command: str) -> str:
    """What to write for a word that no row has."""
    if word == "remount":
        return "a mount keeps its options: unmount it, and mount it with others"
    if word in ("ro", "rw"):
        return f"an {command} is read-only, or with writable for reading and writing"
    same = word.replace("-", "_").lower()
    return f"for -o it is {same}" if same in rows else f"passthrough {command} --help lists them"


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
