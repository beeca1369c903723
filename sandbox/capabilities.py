"""Capabilities: all five sets end as the kept ones or empty, by libcap-ng.

What a daemon that serves files as their users needs, and why:
  CHOWN, FOWNER          chown, chmod, utimes and the like, for whom the client's kernel allowed them
  DAC_OVERRIDE           open what the client's kernel has checked already
  FSETID                 keep SUID and SGID; dropped per thread around writes that must clear them
  SETGID, SETUID         create as the user who asked
  MKNOD, SETFCAP         device nodes, and programs' capabilities, as the client's kernel allows
  DAC_READ_SEARCH        open_by_handle_at(2); never the daemon's own, but of the process that opens file handles
  SYS_ADMIN              FUSE_DEV_IOC_BACKING_OPEN; only where kernel passthrough is in use
"""

import re

from .plan import Plan, Step, capng
from .process import lock_securebits

KEPT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP")
_CHANGE = re.compile(r"([+-])([A-Za-z_]+)$")


def parse_changes(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """+name:-name as (added, removed), in capitals and without CAP_. ValueError for anything else."""
    added: set[str] = set()
    removed: set[str] = set()
    for word in text.split(":"):
        match = _CHANGE.match(word)
        if match is None:
            raise ValueError("it takes +NAME and -NAME, separated by colons, such as +sys_admin:-mknod")
        name = match[2].upper().removeprefix("CAP_")
        (added if match[1] == "+" else removed).add(name)
    return frozenset(added), frozenset(removed)


def plan(kept: frozenset[str], asked_for: frozenset[str]) -> Plan:
    """End with these, as far as this process has them; asked_for names those that it must have."""
    shown = ", ".join(sorted(kept)) or "none"
    return [
        Step("let no program be privileged by being root's (securebits)", _lock_securebits, "no CAP_SETPCAP"),
        Step(
            f"keep these capabilities: {shown}",
            lambda: _apply(kept, asked_for),
            "a name that is no capability, or one that this process does not have",
        ),
    ]


def _lock_securebits() -> None:
    """What takes CAP_SETPCAP is left out without it: who has no capability, and gains none, needs no bits."""
    if capng().capng_have_capability(capng().CAPNG_EFFECTIVE, capng().CAP_SETPCAP):
        lock_securebits()


def check_names(names: frozenset[str]) -> None:
    """ValueError for one that is no capability."""
    _numbers(names)


def _numbers(names: frozenset[str]) -> dict[str, int]:
    found = {name: capng().capng_name_to_capability(name.lower()) for name in sorted(names)}
    unknown = [name for name, number in found.items() if number < 0]
    if unknown:
        raise ValueError(f"there is no capability {unknown[0]}")
    return found


def _apply(kept: frozenset[str], asked_for: frozenset[str]) -> None:
    c = capng()
    numbers = _numbers(kept)
    c.capng_get_caps_process()
    had = {name for name, number in numbers.items() if c.capng_have_capability(c.CAPNG_PERMITTED, number)}
    if asked_for - had:
        raise PermissionError(1, f"this process has no {min(asked_for - had)}")
    can_bound = c.capng_have_capability(c.CAPNG_EFFECTIVE, c.CAP_SETPCAP)
    c.capng_clear(c.CAPNG_SELECT_ALL)
    for name in had:
        sets = c.CAPNG_EFFECTIVE | c.CAPNG_PERMITTED | (c.CAPNG_BOUNDING_SET if can_bound else 0)
        c.capng_update(c.CAPNG_ADD, sets, numbers[name])
    failed = c.capng_apply(c.CAPNG_SELECT_ALL if can_bound else c.CAPNG_SELECT_CAPS | c.CAPNG_SELECT_AMBIENT)
    if failed:
        raise PermissionError(1, f"capng_apply: {failed}")
