"""Tables of user or group ids: what the clients call an id, and what the source has. Plain data, no I/O.

The six kinds of line are virtiofsd's (--translate-uid, 1.13). `guest` is whoever sends the requests, be it a virtual
machine or the programs on a mount; `host` is the source. An id that no line names is the same on both sides.
"""

import errno
from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from ...filesystem import failure
from ...protocol.constants import FUSE_INVALID_UIDGID

FORBIDDEN = -1
"""What an id becomes that must not be used."""


class Kind(Enum):
    """What a line does: GUEST from guest to host alone, HOST from host to guest alone, MAP both; SQUASH_GUEST and
    SQUASH_HOST make one id of many; FORBID_GUEST lets the request fail (EPERM)."""

    GUEST = "guest"
    HOST = "host"
    MAP = "map"
    SQUASH_GUEST = "squash-guest"
    SQUASH_HOST = "squash-host"
    FORBID_GUEST = "forbid-guest"


_SQUASH = (Kind.SQUASH_GUEST, Kind.SQUASH_HOST)
_TO_HOST = (Kind.GUEST, Kind.MAP, Kind.SQUASH_GUEST, Kind.FORBID_GUEST)


class Line(NamedTuple):
    """`number` ids from `first` on become those from `target` on (squashed: all of them `target`)."""

    kind: Kind
    first: int
    target: int
    number: int

    def __str__(self) -> str:
        target = () if self.kind is Kind.FORBID_GUEST else (self.target,)
        return ":".join(map(str, (self.kind.value, self.first, *target, self.number)))


def parse_line(text: str) -> Line:
    """TYPE:FIRST:TARGET:COUNT, or forbid-guest:FIRST:COUNT. ValueError tells what it takes."""
    word, *fields = text.split(":")
    if not all(field.isascii() and field.isdecimal() and len(field) < 11 for field in fields):
        fields = []
    numbers = [int(field) for field in fields]
    if word == Kind.FORBID_GUEST.value and len(numbers) == 2:
        numbers.insert(1, 0)
    elif word not in {kind.value for kind in Kind} or word == Kind.FORBID_GUEST.value or len(numbers) != 3:
        names = ", ".join(kind.value for kind in Kind if kind is not Kind.FORBID_GUEST)
        raise ValueError(f"TYPE:FIRST:TARGET:COUNT, TYPE being one of {names}; or forbid-guest:FIRST:COUNT")
    line = Line(Kind(word), *numbers)
    last_target = line.target + (1 if line.kind in _SQUASH else line.number)
    if line.number == 0 or max(line.first + line.number, last_target) > FUSE_INVALID_UIDGID:
        raise ValueError(f"at least one id, and none above {FUSE_INVALID_UIDGID - 1}")
    return line


class _Way:
    """One direction."""

    def __init__(self, ranges: Sequence[tuple[int, int, int, Line]]) -> None:
        """(first, target, count, line) each. ValueError naming the two lines where the sources of two overlap."""
        self._ranges = sorted(ranges, key=lambda item: item[:3])
        for (first, _, count, one), (begin, _, _, other) in zip(self._ranges, self._ranges[1:], strict=False):
            if begin < first + count:
                raise ValueError(f"{one} and {other} overlap")
        self._firsts = [first for first, _, _, _ in self._ranges]

    def translate(self, number: int) -> int:
        """What this id is on the other side; FORBIDDEN for one that must not be used."""
        at = bisect_right(self._firsts, number) - 1
        if at < 0:
            return number
        first, target, count, line = self._ranges[at]
        if number >= first + count:
            return number
        if line.kind is Kind.FORBID_GUEST:
            return FORBIDDEN
        return target if line.kind in _SQUASH else target + number - first


class IdTable:
    """The lines of one kind of id, for both directions."""

    def __init__(self, lines: Sequence[Line] = ()) -> None:
        """ValueError naming the two lines where the sources of two overlap."""
        to_host = [(line.first, line.target, line.number, line) for line in lines if line.kind in _TO_HOST]
        to_guest = [
            (line.target, line.first, line.number, line) if line.kind is Kind.MAP else (*line[1:], line)
            for line in lines
            if line.kind in (Kind.HOST, Kind.MAP, Kind.SQUASH_HOST)
        ]
        self._to_host = _Way(to_host)
        self._to_guest = _Way(to_guest)

    def host(self, number: int) -> int:
        """The source's id. EPERM where the guest must not use this one; -1 (no id) stays."""
        if number == FUSE_INVALID_UIDGID:
            return number
        found = self._to_host.translate(number)
        if found == FORBIDDEN:
            raise failure(errno.EPERM)
        return found

    def guest(self, number: int) -> int:
        """The id that the guest is shown."""
        return self._to_guest.translate(number)
