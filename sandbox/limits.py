"""Limits of the process: umask 0, no core files, and how many descriptors it may hold. oom_score is left alone."""

import os
import resource

from .plan import CallError, Plan, Step

NOFILE_WISH = 1_000_000


def plan(nofile: int | None) -> Plan:
    """nofile: RLIMIT_NOFILE as it was asked for (0: leave it alone), or None for the default."""
    steps = [
        Step("set the umask to 0", lambda: os.umask(0)),
        Step("write no core file (RLIMIT_CORE 0)", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
    ]
    if nofile is None:
        wish = default_nofile()
        steps.append(Step(f"allow {wish} open files (RLIMIT_NOFILE)", lambda: _raise_to(wish), required=False))
    elif nofile:
        cause = "more than the hard limit (ulimit -Hn) takes CAP_SYS_RESOURCE, more than fs.nr_open nobody may have"
        steps.append(Step(f"allow {nofile} open files (RLIMIT_NOFILE)", lambda: _set_to(nofile), cause))
    return steps


def default_nofile() -> int:
    """The smaller of a million and fs.nr_open."""
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return min(NOFILE_WISH, int(file.read()))
    except OSError:
        return NOFILE_WISH


def _set_to(number: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    except OSError as error:
        raise CallError("setrlimit", error.errno or 0, "RLIMIT_NOFILE") from error
    except ValueError:  # what the resource module makes of EPERM and EINVAL
        raise ValueError(f"setrlimit(RLIMIT_NOFILE): {number} is more than is allowed here") from None


def _raise_to(wish: int) -> None:
    """At least to wish, else to the hard limit, which the error then names."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wish:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wish, max(wish, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        raise ValueError(f"the hard limit of {hard} cannot be raised; {hard} it is") from None
