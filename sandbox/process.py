"""What a daemon needs of its own process: no groups that it was started with, descriptors, no core files, umask 0."""

import os
import resource

import prctl

from .plan import Plan, Step

_NOFILE_WISH = 1_000_000


def plan() -> Plan:
    """The steps, in order."""
    steps = [
        Step("set the umask to 0", lambda: _umask(0), ""),
        Step("write no core file", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), "", required=False),
        Step("raise RLIMIT_NOFILE to what is allowed", _raise_nofile, "a limit of this container", required=False),
    ]
    if os.geteuid() == 0 and _may_set_groups():
        steps.append(
            Step("drop the supplementary groups", lambda: os.setgroups(()), "no CAP_SETGID, or a user namespace")
        )
    return steps


def _may_set_groups() -> bool:
    """Not in an ordinary user's own namespace (user_namespaces(7)): there the groups are that user's, and stay."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() != "deny"
    except FileNotFoundError:
        return True


def _umask(mask: int) -> None:
    os.umask(mask)


def _raise_nofile() -> None:
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        wish = min(_NOFILE_WISH, int(file.read()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wish, soft), max(wish, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent() -> None:
    """End with the process that started us (PR_SET_PDEATHSIG)."""
    prctl.set_pdeathsig(15)
