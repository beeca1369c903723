"""The filter of system calls: its lists, and what becomes of a call, asked of the kernel."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox import seccomp

from .inside import ROOT, SCRIPT, report

KILLING = {
    "execve": 'os.execv("/bin/true", ["true"])',
    "ptrace": "libc.ptrace(16, 1, 0, 0)",
    "mount": 'libc.mount(b"none", b"/", b"tmpfs", 0, b"")',
    "umount2": 'libc.umount2(b"/", 2)',
    "setns": "libc.setns(0, 0)",
    "unshare a namespace": "libc.unshare(0x10000000)",
    "pivot_root": 'libc.syscall(155, b".", b".")',
    "open_tree": 'libc.syscall(428, -100, b"/", 1)',
    "move_mount": 'libc.syscall(429, 0, b"", 0, b"", 4)',
    "fsopen": 'libc.syscall(430, b"tmpfs", 0)',
    "fsmount": "libc.syscall(432, 0, 0, 0)",
    "mount_setattr": 'libc.syscall(442, -100, b"/", 0, None, 0)',
    "bpf": "libc.syscall(321, 0, None, 0)",
    "kexec_load": "libc.syscall(246, 0, 0, None, 0)",
    "init_module": 'libc.syscall(175, None, 0, b"")',
    "keyctl": "libc.syscall(250, 0, 0, 0, 0, 0)",
    "perf_event_open": "libc.syscall(298, None, 0, -1, -1, 0)",
    "userfaultfd": "libc.syscall(323, 0)",
    "process_vm_readv": "libc.syscall(310, 1, None, 0, None, 0, 0)",
    "process_vm_writev": "libc.syscall(311, 1, None, 0, None, 0, 0)",
    "pidfd_getfd": "libc.syscall(438, 0, 0, 0)",
}
REFUSED = {
    "fork": "os.fork()",
    "socket": "socket.socket()",
    "memfd_create": 'os.memfd_create("a")',
    "pipe": "os.pipe()",
    "ioctl of a terminal": "fcntl.ioctl(1, 0x5412, b'x')",
    "new code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "another's priority": "os.setpriority(os.PRIO_PROCESS, 0, 5)",
    "a signal to others": "os.kill(1, 0)",
    "taking file handles": "checked(libc.name_to_handle_at(0, None, None, None, 0))",
    "file handles": "checked(libc.open_by_handle_at(0, None, 0))",
    "rings": "checked(libc.syscall(425, 1, None))",
    "prctl": "checked(libc.prctl(4, 1, 0, 0, 0))",
    "the whole process' ids": "os.setuid(0)",
}
WORKING = {
    "threads": "(thread := threading.Thread(target=int)).start(), thread.join()",
    "a umask for a thread": "checked(libc.unshare(0x200))",
    "files": "os.close(os.open(words[0] + '/new', os.O_CREAT | os.O_RDWR))",
    "flags of a file": "fcntl.ioctl(os.open(words[0], os.O_RDONLY), 0x80086601, bytearray(8))",
    "extended attributes": "os.listxattr(words[0])",
    "memory": "mmap.mmap(-1, 1 << 22).close()",
    "time": "(time.time(), select.poll().poll(1))",
    "a name": "checked(libc.prctl(15, b'name', 0, 0, 0))",
}
LINES = """
import fcntl, mmap, select, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
def does(text):
    try:
        eval(text)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None
found["did"] = [does(text) for text in words[1:]]
"""


def test_the_list_is_alphabetical_and_has_each_call_once() -> None:
    assert len(set(seccomp.ALLOWED)) == len(seccomp.ALLOWED)
    assert list(seccomp.ATTACKS) == sorted(seccomp.ATTACKS)
    ordered = sorted(seccomp.ALLOWED)
    assert [name for name, right in zip(seccomp.ALLOWED, ordered, strict=True) if name != right] == []


def test_no_attack_is_allowed() -> None:
    allowed = {*seccomp.ALLOWED, *seccomp.SOCKETS, *seccomp.IO_URING, *seccomp.FILE_HANDLES}
    assert not allowed & set(seccomp.ATTACKS)
    assert not allowed & {rule.name for rule in seccomp.RULES}
    assert "socket" not in allowed
    assert "ioctl" not in allowed
    assert not set(seccomp.OPENER) & (
        {*seccomp.ATTACKS} | {rule.name for rule in (*seccomp.RULES, *seccomp.OPENER_RULES)}
    )


def test_libseccomp_knows_every_name() -> None:
    numbers = seccomp.numbers(
        [*seccomp.ALLOWED, *seccomp.ATTACKS, *seccomp.IO_URING, *seccomp.FILE_HANDLES, *seccomp.OPENER]
    )
    assert {name for name, number in numbers.items() if number == -1} <= set(seccomp._UNKNOWN)


def run_killed(text: str, share: Path, mode: str) -> int:
    """The status of a process that does this in a sandbox."""
    wanted = json.dumps({"seccomp": mode, "mode": "chroot", "path": str(share), "landlock": "off"})
    lines = f"libc = ctypes.CDLL(None)\nprint('before', flush=True)\n{text}\nprint('after', flush=True)"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, wanted, lines],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.stdout == "before\n", result
    return result.returncode


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="some of these are called by their x86_64 numbers")
@pytest.mark.parametrize("name", KILLING)
def test_what_means_an_attack_kills(name: str, tmp_path: Path) -> None:
    assert run_killed(KILLING[name], tmp_path, "errno") == -signal.SIGSYS


@pytest.mark.parametrize("name", ["fork", "socket", "pipe"])
def test_kill_kills_for_all_else(name: str, tmp_path: Path) -> None:
    assert run_killed(REFUSED[name], tmp_path, "kill") == -signal.SIGSYS


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    found = report(LINES, str(tmp_path), *REFUSED.values(), mode="none", path=tmp_path, seccomp="errno")
    assert dict(zip(REFUSED, found["did"], strict=True)) == dict.fromkeys(REFUSED, "ENOSYS")


@pytest.mark.parametrize("mode", ["errno", "kill", "log"])
def test_what_serving_needs_works(mode: str, tmp_path: Path) -> None:
    found = report(LINES, str(tmp_path), *WORKING.values(), mode="none", path=tmp_path, seccomp=mode)
    assert dict(zip(WORKING, found["did"], strict=True)) == dict.fromkeys(WORKING)


def test_log_lets_everything_pass(tmp_path: Path) -> None:
    found = report(LINES, str(tmp_path), "os.pipe()", "socket.socket()", mode="none", path=tmp_path, seccomp="log")
    assert found["did"] == [None, None]


def test_what_was_asked_for_is_on_the_list(tmp_path: Path) -> None:
    names = ["taking file handles", "rings", "file handles"]
    calls = [REFUSED[name] for name in names]
    found = report(
        LINES, str(tmp_path), *calls, mode="none", path=tmp_path, seccomp="errno", file_handles=True, io_uring=True
    )
    assert found["did"] == ["EFAULT", "EFAULT", "ENOSYS"], "to open by handle is not the daemon's, ever"


def test_the_filter_holds_for_threads_that_come_later(tmp_path: Path) -> None:
    lines = """
import threading
def work():
    found["it"] = attempt(lambda: socket.socket() and None)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    assert report(lines, mode="none", path=tmp_path, seccomp="errno")["it"] == "ENOSYS"


def test_the_plan_says_what_it_loads() -> None:
    steps, _ = sandbox.plan(sandbox.Confinement(seccomp=sandbox.Seccomp.NONE))
    assert not any("seccomp" in line for line in sandbox.explain(steps))
    for mode in (sandbox.Seccomp.LOG, sandbox.Seccomp.ERRNO, sandbox.Seccomp.KILL):
        steps, _ = sandbox.plan(sandbox.Confinement(seccomp=mode))
        assert "(seccomp)" in sandbox.explain(steps)[-1]
