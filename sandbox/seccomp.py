"""seccomp: the system calls that a CPython daemon which serves files needs, and no others.

Unknown calls get ENOSYS (`errno`), so that libc falls back to an older one; calls that no such daemon makes, and that
mean an attack, kill the process. `log` lets everything pass and has the kernel log what is not on the list.

An entry that is not plainly about files, memory or threads has its reason beside it.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from .plan import Plan, Step
from .plan import seccomp as library
from .syscalls import CLONE_FS

_CLONE_THREAD = 0x10000
_PROT_EXEC = 4
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_MASK_32 = 0xFFFFFFFF
_FIONBIO, _FIOCLEX, _TCGETS = 0x5421, 0x5451, 0x5401


class Mode(Enum):
    """What becomes of a call that is not on the list; in ERRNO and KILL an attack's call kills."""

    NONE = "none"
    LOG = "log"
    ERRNO = "errno"
    KILL = "kill"


class Rule(NamedTuple):
    """A call that is allowed where this argument, masked, has one of these values."""

    name: str
    argument: int
    mask: int
    values: tuple[int, ...]


ALLOWED = """
    access brk
    capget capset
    chdir
    clock_getres clock_gettime clock_nanosleep
    close close_range copy_file_range
    dup dup2 dup3
    epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2
    exit exit_group
    faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
    fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
    getcwd getdents64 getegid geteuid getgid getpid getppid getrandom getresgid getresuid getrusage gettid gettimeofday
    getuid getxattr
    linkat listxattr lseek lstat
    madvise membarrier mkdirat mknodat mremap munmap
    nanosleep newfstatat
    open openat
    poll ppoll pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2
    read readlink readlinkat readv recvfrom recvmsg removexattr renameat renameat2 restart_syscall rseq rt_sigaction
    rt_sigprocmask rt_sigreturn
    sched_getaffinity sched_setaffinity sched_yield select sendmsg set_robust_list set_tid_address setgroups
    setresgid setresuid setxattr sigaltstack stat statfs statx symlinkat sync_file_range syncfs
    tgkill time
    umask uname unlinkat utimensat
    write writev
    """.split()
"""Odd ones: capget, capset drop and regain CAP_FSETID per thread; set*id and setgroups act as the user who asked;
sched_setaffinity pins a queue to its CPU; tgkill wakes a thread that waits for a lock; sendmsg writes to a log whose
socket was open before, and with recvmsg talks to the process outside; close_range, uname and the like are
libc's and CPython's own."""

IO_URING = ("io_uring_enter", "io_uring_setup")
FILE_HANDLES = ("name_to_handle_at",)
"""To recognise a file. Who may open by handle is a process of its own, with the list below instead of ALLOWED."""
OPENER = """
    brk clock_gettime close exit exit_group fcntl fstat fstatfs futex getpid gettid lseek madvise mremap munmap
    name_to_handle_at newfstatat readlinkat recvmsg restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
    sendmsg sigaltstack
    """.split()
SOCKETS = (
    "accept4 bind connect getpeername getsockname getsockopt listen recvmmsg sendmmsg sendto setsockopt shutdown "
    "socketpair"
).split()

FS_IOCTLS = (0x80086601, 0x40086602, 0x80046601, 0x40046602, 0x801C581F, 0x401C5820)
"""FS_IOC_GETFLAGS and SETFLAGS, their 32-bit forms, FS_IOC_FSGETXATTR and FSSETXATTR (linux/fs.h)."""

RULES = (
    Rule("clone", 0, _CLONE_THREAD, (_CLONE_THREAD,)),  # threads, no processes
    Rule("mmap", 2, _PROT_EXEC, (0,)),  # no new code
    Rule("mprotect", 2, _PROT_EXEC, (0,)),
    Rule("prctl", 0, _MASK_32, (_PR_SET_NAME, _PR_GET_NAME)),
    Rule("unshare", 0, _MASK_32, (CLONE_FS,)),  # a umask for each thread
)

_CHANGES = os.O_CREAT | os.O_TRUNC
OPENER_RULES = (
    *(rule for rule in RULES if rule.name in ("mmap", "mprotect")),
    Rule("openat", 2, os.O_ACCMODE | _CHANGES, (os.O_RDONLY,)),  # a directory of a mount
    Rule("open_by_handle_at", 2, _CHANGES, (0,)),
)
"""With OPENER."""

ATTACKS = """
    add_key bpf chroot delete_module execve execveat finit_module fsconfig fsmount fsopen fspick init_module
    kexec_file_load kexec_load keyctl mount mount_setattr move_mount open_tree perf_event_open pidfd_getfd pivot_root
    process_vm_readv process_vm_writev ptrace request_key setns swapoff swapon umount2 userfaultfd
    """.split()
"""Kill the process, in the modes errno and kill; so does unshare with another argument than above."""

_UNKNOWN = {"fchmodat2": 452}
"""Numbers (the same on every architecture) of calls that an older libseccomp may not know by name."""


class Filter(NamedTuple):
    """What is allowed beyond `base`: further calls, ioctl requests, and socket families (which bring SOCKETS)."""

    mode: Mode
    calls: tuple[str, ...] = ()
    ioctls: tuple[int, ...] = ()
    families: tuple[int, ...] = ()
    base: Sequence[str] = ALLOWED
    rules: tuple[Rule, ...] = RULES


def plan(wanted: Filter) -> Plan:
    """Load the filter: before the threads start, since it holds for those that are started later."""
    if wanted.mode is Mode.NONE:
        return []
    said = {
        Mode.LOG: "log all system calls but",
        Mode.ERRNO: "refuse (ENOSYS), or kill for an attack, all system calls but",
        Mode.KILL: "kill for all system calls but",
    }[wanted.mode]
    count = len(set(wanted.base) | set(wanted.calls)) + len(wanted.rules) + (1 if wanted.ioctls else 0)
    return [
        Step(
            f"{said} {count} (seccomp)",
            lambda: build(wanted).load(),
            "a kernel without CONFIG_SECCOMP_FILTER, or a container that forbids seccomp",
        )
    ]


def build(wanted: Filter) -> Any:
    """The libseccomp filter, not loaded."""
    s = library()
    otherwise = {Mode.LOG: s.LOG, Mode.ERRNO: s.ERRNO(errno.ENOSYS), Mode.KILL: s.KILL_PROCESS}[wanted.mode]
    made = s.SyscallFilter(otherwise)
    made.set_attr(s.Attr.CTL_OPTIMIZE, 2)  # a binary tree rather than a list
    calls = {*wanted.base, *wanted.calls, *(SOCKETS if wanted.families else ())}
    for name in sorted(calls):
        _add(s, made, s.ALLOW, name)
    rules = list(wanted.rules)
    if wanted.base is ALLOWED:
        rules.append(Rule("ioctl", 1, _MASK_32, (_FIONBIO, _FIOCLEX, _TCGETS, *FS_IOCTLS, *wanted.ioctls)))
    if wanted.families:
        rules.append(Rule("socket", 0, _MASK_32, wanted.families))
    for rule in rules:
        for value in rule.values:
            _add(s, made, s.ALLOW, rule.name, s.Arg(rule.argument, s.MASKED_EQ, rule.mask, value))
    _refuse(s, made, wanted.mode)
    return made


def _refuse(s: Any, made: Any, mode: Mode) -> None:
    if mode is not Mode.ERRNO:  # where all that is unknown is refused like this
        # libc tries clone3 first, whose flags no filter can see, and makes its threads by clone when there is none
        _add(s, made, s.ERRNO(errno.ENOSYS), "clone3")
        return
    for name in ATTACKS:
        _add(s, made, s.KILL_PROCESS, name)
    _add(s, made, s.KILL_PROCESS, "unshare", s.Arg(0, s.NE, CLONE_FS))


def _add(s: Any, made: Any, action: Any, name: str, *arguments: Any) -> None:
    number = s.resolve_syscall(s.Arch(), name)
    if number == -1:  # libseccomp has never heard of it
        if name not in _UNKNOWN:
            raise ValueError(f"libseccomp knows no system call {name}")
        number = _UNKNOWN[name]
    if number < 0:  # this architecture does not have it
        return
    made.add_rule(action, number, *arguments)


def numbers(names: Iterable[str]) -> dict[str, int]:
    """The system call numbers of this machine; for tests and for reading a kernel's log."""
    s = library()
    return {name: int(s.resolve_syscall(s.Arch(), name)) for name in names}
