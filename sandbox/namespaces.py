"""Namespaces: unshare, the id maps of a user namespace, and the first process of a process-id namespace."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import syscalls
from .plan import CallError, Plan, RefusedError, Step

_CAUSE_ROOT = "no CAP_SYS_ADMIN, or a container's seccomp filter forbids unshare"
_CAUSE_USER = (
    "user namespaces are switched off (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns), or a container's seccomp filter forbids them"
)
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Left(NamedTuple):
    """What the process that made the pid namespace, and stays outside, does with the first process in it."""

    tell: Callable[[int], object]
    """Given its pid, before it goes on."""
    wait: Callable[[int], int]
    """Given its pid, while it runs; the status to end with."""


class IdMap(NamedTuple):
    """`length` ids from `inside` on are those from `outside` on (user_namespaces(7))."""

    inside: int
    outside: int
    length: int


def parse_map(text: str) -> IdMap:
    """:inside:outside:count: with any separator. ValueError says what is wrong."""
    fields = text[1:].removesuffix(text[:1]).split(text[:1]) if text else []
    if len(fields) != 3 or not all(field.isascii() and field.isdecimal() for field in fields):
        raise ValueError("it takes :inside:outside:count:, such as :1000:1000:1:")
    found = IdMap(*map(int, fields))
    if not found.length or max(found.inside, found.outside) + found.length > 1 << 32:
        raise ValueError("ids and their count lie between 0 and 4294967295, and the count is at least 1")
    return found


def plan(*, user: bool, network: bool, uid_maps: Sequence[IdMap], gid_maps: Sequence[IdMap], left: Left) -> Plan:
    """New namespaces, and a first process in them. left: see there."""
    steps: list[Step] = []
    if user:
        uids = tuple(uid_maps) or (IdMap(os.geteuid(), os.geteuid(), 1),)
        gids = tuple(gid_maps) or (IdMap(os.getegid(), os.getegid(), 1),)
        steps.append(
            Step(
                f"make a user namespace; ids inside: uid {_shown(uids)}; gid {_shown(gids)}",
                lambda: _user_namespace(uids, gids),
                _CAUSE_USER,
            )
        )
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    names = "mount, pid, ipc and uts"
    if not network:
        flags |= syscalls.CLONE_NEWNET
        names = "mount, pid, network, ipc and uts"
    steps.append(
        Step(f"make {names} namespaces", lambda: syscalls.unshare(flags), _CAUSE_USER if user else _CAUSE_ROOT)
    )
    steps.append(
        Step("go on as the first process of the pid namespace", lambda: first_process(left), "a limit of processes")
    )
    return steps


def _shown(maps: Sequence[IdMap]) -> str:
    return ", ".join(f"{inside} is {outside} outside ({count})" for inside, outside, count in maps)


def _user_namespace(uids: Sequence[IdMap], gids: Sequence[IdMap]) -> None:
    own = len(uids) == len(gids) == 1 and uids[0][1:] == (os.geteuid(), 1) and gids[0][1:] == (os.getegid(), 1)
    if own:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", "{} {} {}".format(*uids[0]))
        _write("/proc/self/gid_map", "{} {} {}".format(*gids[0]))
        return
    _mapped_by_helpers(uids, gids)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise CallError("write", error.errno or 0, path) from error
    finally:
        os.close(fd)


def _mapped_by_helpers(uids: Sequence[IdMap], gids: Sequence[IdMap]) -> None:
    """newuidmap and newgidmap, which /etc/subuid and /etc/subgid tell what is allowed, run outside the namespace."""
    for name in ("newuidmap", "newgidmap"):
        if shutil.which(name) is None:
            raise RefusedError(errno.ENOENT, f"{name} is needed for more than one's own id: apt install uidmap")
    target = os.getpid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        os.close(writer)
        os.read(reader, 1)  # until the namespace is there
        os._exit(_run_helpers(target, uids, gids))
    os.close(reader)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    finally:
        os.close(writer)
        _, status = os.waitpid(helper, 0)
    if status:
        raise RefusedError(errno.EPERM, "newuidmap or newgidmap refused the map; see /etc/subuid and /etc/subgid")


def _run_helpers(target: int, uids: Sequence[IdMap], gids: Sequence[IdMap]) -> int:
    for name, maps in ("newuidmap", uids), ("newgidmap", gids):
        words = [name, str(target), *(str(number) for each in maps for number in each)]
        if subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            return 1
    return 0


def first_process(left: Left) -> None:
    """Fork, and return in the child, which is process 1 of the pid namespace made by unshare.

    The process that forked stays out: it tells, and then ends with what wait() returns. The child goes on when it has
    told.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(reader)
        left.tell(child)
        os.close(writer)
        os._exit(left.wait(child))
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


def wait_outside(child: int) -> int:
    """Wait, forward signals, and end as the child ends (128 + its number for a signal)."""
    for number in _FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
