"""Landlock: what any process may forbid itself (landlock(7)): all files but those beneath the share, TCP, abstract
sockets and signals to others, as far as this kernel's version knows them.

It does not know metadata: chmod, chown, utimes, xattrs and stat by a path outside the share are the file system's own
affair. Version 1 (Linux 5.13) would also forbid moving a file from one directory to another, and is not used.
"""

import os
from collections.abc import Callable, Iterable, Sequence

from . import syscalls
from .plan import CallError, Plan, Step

LEAST_ABI = 2
# Access rights of linux/landlock.h: bits 0 to 12 are version 1, and how many each later version has.
_FS_BITS = {2: 14, 3: 15, 4: 15}
_FS_BITS_SINCE_5 = 16
_OF_FILES = 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: all that a file can be
_NET = 0b11  # bind and connect by TCP, version 4
_SCOPED = 0b11  # abstract UNIX sockets and signals, version 6
_CAUSE = "Linux 5.19 or newer with CONFIG_SECURITY_LANDLOCK is needed, and `landlock` in its list of LSMs (lsm=)"
_WITHOUT = {
    3: "truncating by a path outside is not seen",
    4: "TCP is not",
    5: "ioctl of devices is not",
    6: "signals are not",
}


def available() -> bool:
    """Whether this kernel's Landlock can be used."""
    return syscalls.landlock_abi() >= LEAST_ABI


def best_effort() -> str:
    """What this kernel's version does not cover, for people; empty where it covers all that is known here."""
    abi = syscalls.landlock_abi()
    missing = [text for since, text in _WITHOUT.items() if abi < since]
    return f"Landlock is of version {abi} here: " + ", ".join(missing) + " restricted" if missing else ""


def plan(share: Callable[[], int] | None, said: str, *, network: bool, files: Iterable[int] = ()) -> Plan:
    """share() gives a descriptor of the directory that stays reachable (None: nothing does), and files are descriptors
    of regular files and devices that do as well."""
    also = "" if network else "; no TCP, no signals and abstract sockets to others"
    return [Step(f"restrict files to {said} (Landlock){also}", lambda: _restrict(share, tuple(files), network), _CAUSE)]


def _restrict(share: Callable[[], int] | None, files: Sequence[int], network: bool) -> None:
    abi = syscalls.landlock_abi()
    if abi < LEAST_ABI:
        raise CallError("landlock_create_ruleset", 95)
    access = (1 << _FS_BITS.get(abi, _FS_BITS_SINCE_5)) - 1
    net = _NET if abi >= 4 and not network else 0
    ruleset = syscalls.landlock_create_ruleset(access, net, _SCOPED if abi >= 6 and not network else 0)
    try:
        if share is not None:
            syscalls.landlock_allow_beneath(ruleset, share(), access)
        for fd in files:
            syscalls.landlock_allow_beneath(ruleset, fd, access & _OF_FILES)
        syscalls.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
