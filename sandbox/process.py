"""What a confined process is: no groups of its starter's, not dumpable, no new privileges, dead when its parent is."""

import os
import select
import signal

from .plan import Plan, Step, prctl

# linux/securebits.h: NOROOT, locked: root gains nothing by execve. What setuid does to the capability sets
# (NO_SETUID_FIXUP) is left as it is: a thread that acts as a client loses and regains them by it.
_SECUREBITS = 1 << 0 | 1 << 1


def groups_plan() -> Plan:
    """Supplementary groups: dropped by root. An ordinary user's cannot be, and are that user's own rights."""
    if os.geteuid() != 0 or not _may_set_groups():
        return []
    return [Step("drop the supplementary groups", lambda: os.setgroups(()), "no CAP_SETGID")]


def _may_set_groups() -> bool:
    """Not in an ordinary user's own namespace (user_namespaces(7)): there the groups are that user's, and stay."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() != "deny"
    except FileNotFoundError:
        return True


def lock_securebits() -> None:
    """To be done before the capabilities go: it takes CAP_SETPCAP."""
    prctl().set_securebits(prctl().get_securebits() | _SECUREBITS)


def no_new_privs_step() -> Step:
    """Before Landlock and seccomp: without CAP_SYS_ADMIN they are to be had for this price alone."""
    return Step("gain no privileges by execve (no_new_privs)", lambda: prctl().set_no_new_privs(1))


def lock_plan(name: str, lifeline: int | None) -> Plan:
    """After the capabilities, whose change undoes two of these (prctl(2)).

    lifeline is a descriptor whose other end the parent holds: a parent that ended before the signal was asked for.
    """
    steps = [
        Step("be closed to ptrace and core dumps (not dumpable)", lambda: prctl().set_dumpable(0)),
        Step(f"be called {name}", lambda: prctl().set_name(name)),
    ]
    if lifeline is not None:
        cause = "the process outside the sandbox was ended"
        steps.append(Step("die with the process outside", lambda: die_with_parent(lifeline), cause))
    return steps


def die_with_parent(lifeline: int) -> None:
    """SIGKILL when the parent ends (PR_SET_PDEATHSIG). OSError where it has ended already."""
    prctl().set_pdeathsig(signal.SIGKILL)
    poll = select.poll()
    poll.register(lifeline, 0)  # POLLHUP is always told
    if poll.poll(0):
        raise ProcessLookupError(3, os.strerror(3))


def close_others(keep: frozenset[int]) -> None:
    """Close every descriptor but these and the standard streams: a starter may have left a directory open."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:  # the one that listdir had
                continue


def close_all_but(kept: frozenset[int]) -> None:
    """The standard streams as well: writing to them fails from now on (EPIPE), and says nothing to a waiting reader."""
    reader, writer = os.pipe()
    os.close(reader)
    for fd in range(3):
        os.dup2(writer, fd)
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends (PR_SET_CHILD_SUBREAPER), as Left.wait may let it."""
    prctl().set_child_subreaper(1)
