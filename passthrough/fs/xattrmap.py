"""The xattrmap language of virtiofsd: which name an attribute of the guest's has on the host, and back.

Rules of this file: pure functions and plain data; no I/O. A map is a list of rules, the first that matches decides:

    :TYPE:SCOPE:KEY:PREPEND:    with any character in the colon's place, for each rule its own

Scope client is for names that a guest sends, server for names that the host lists, all for both. A rule matches a
guest's name that begins with KEY, a host's that begins with PREPEND. `map` is the short form of four rules:
`:map:KEY:PREPEND:`. Beyond virtiofsd: a name of the host's that would be listed under a name by which the guest could
not ask for it is not listed, so that what a guest sees and what it reaches are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from os import fsencode
from typing import NamedTuple

NAME_LIMIT = 255
"""XATTR_NAME_MAX, in bytes (linux/limits.h)."""


class Kind(Enum):
    """What a rule does with a name: put PREPEND before it, leave it as it is, refuse it, or say that there is no such
    thing (ENOTSUP)."""

    PREFIX = "prefix"
    OK = "ok"
    BAD = "bad"
    UNSUPPORTED = "unsupported"


class Rule(NamedTuple):
    """One rule, and how it was written."""

    kind: Kind
    client: bool
    server: bool
    key: bytes
    prepend: bytes
    text: str


class Mapped(NamedTuple):
    """What becomes of a guest's name: with PREFIX and OK the host's name, else an empty one."""

    kind: Kind
    name: bytes


@dataclass(frozen=True, slots=True)
class XattrMap:
    """Rules that decide for every name. Made by parse_map()."""

    rules: tuple[Rule, ...]

    def to_host(self, name: bytes) -> Mapped:
        """The guest's name on the host."""
        for rule in self.rules:
            if rule.client and name.startswith(rule.key):
                if rule.kind is Kind.PREFIX:
                    return Mapped(Kind.PREFIX, rule.prepend + name)
                return Mapped(rule.kind, name if rule.kind is Kind.OK else b"")
        return Mapped(Kind.BAD, b"")

    def to_guest(self, host: bytes) -> bytes | None:
        """The name under which the guest sees this name of the host's, or None where it does not."""
        for rule in self.rules:
            if rule.server and host.startswith(rule.prepend):
                if rule.kind not in (Kind.PREFIX, Kind.OK):
                    return None
                name = host.removeprefix(rule.prepend) if rule.kind is Kind.PREFIX else host
                return name if name and self.to_host(name).name == host else None
        return None

    def unchanged(self, name: bytes) -> bool:
        """Whether a name is the same on both sides."""
        return self.to_host(name).name == name == self.to_guest(name)

    def renamed(self, name: bytes) -> bytes | None:
        """The host's name of a guest's, where that is another one, and not refused."""
        host = self.to_host(name).name
        return host if host and host != name else None


PRESETS = {
    "selinux": ":map:security.selinux:trusted.virtiofs.:",
    "overlay": ":map:trusted.overlay.:user.virtiofs.:",
}
"""Maps by name: a guest's labels apart from the host's; overlay file systems of a guest without the host's root."""
_FORM = ":type:scope:key:prepend:"
_SCOPES = {"client": (True, False), "server": (False, True), "all": (True, True)}


def parse_map(text: str) -> XattrMap:
    """The map that a text describes, or the one of that name in PRESETS. ValueError says what was expected, and names
    the rule."""
    rules: list[Rule] = []
    rest = PRESETS.get(text, text).strip()
    while rest:
        if rules and rules[-1].text.split(rules[-1].text[0])[1] == "map":
            raise ValueError(f"one rule of type map, which is the last; {rest} follows it")
        made, rest = _rule(rest, len(rules) + 1)
        rules += made
    found = XattrMap(tuple(rules))
    _check(found)
    return found


def _rule(rest: str, number: int) -> tuple[list[Rule], str]:
    """The rule (or the four of `map`) at the start of a text, and what follows it."""
    separator = rest[0]
    fields = rest[1:].split(separator)
    count = 3 if fields[0] == "map" else 4
    if len(fields) <= count:
        raise ValueError(f"rules such as {_FORM}; this one is not complete: {rest}")
    text = separator + "".join(field + separator for field in fields[:count])
    rest = rest[len(text) :].strip()
    if count == 3:
        if number > 1:
            raise ValueError(f"a rule of type map alone; {text} follows others")
        return list(_short(fsencode(fields[1]), fsencode(fields[2]), text)), rest
    kind, scope, key, prepend = fields[:count]
    if kind not in [member.value for member in Kind]:
        raise ValueError(f"rules of type prefix, ok, bad, unsupported or map; not {text}")
    if scope not in _SCOPES:
        raise ValueError(f"rules of scope client, server or all; not {text}")
    return [Rule(Kind(kind), *_SCOPES[scope], fsencode(key), fsencode(prepend), text)], rest


def _short(key: bytes, prepend: bytes, text: str) -> Iterator[Rule]:
    """What virtiofsd makes of `map`."""
    yield Rule(Kind.PREFIX, True, True, key, prepend, text)
    if not key:
        yield Rule(Kind.BAD, True, True, b"", b"", text)
        return
    yield Rule(Kind.BAD, False, True, b"", key, text)
    yield Rule(Kind.BAD, True, False, prepend, b"", text)
    yield Rule(Kind.OK, True, True, b"", b"", text)


def _check(found: XattrMap) -> None:
    """A map must decide for every name of either side."""
    rules = found.rules
    if not rules:
        raise ValueError(f"rules such as {_FORM}, or {' or '.join(PRESETS)}")
    last = rules[-1].text
    if not any(rule.client and not rule.key for rule in rules):
        raise ValueError(f"a last rule for all that a guest may send, such as :bad:all:::; {last} is not for all")
    if not any(rule.server and not rule.prepend for rule in rules):
        raise ValueError(f"a last rule for all that the host may list, such as :bad:all:::; {last} is not for all")
