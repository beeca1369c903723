"""Acting as the caller: in one thread, for a moment, and never as root by mistake."""

import errno
import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough import exitcodes, syscalls
from passthrough.filesystem import Context
from passthrough.fs.tree import Tree
from passthrough.fs.tree.credentials import Credentials
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from tests.unit.helpers import ROOT_ID, at_once, in_thread, raises

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 0xFFFFFFFF
_OTHER = 65534


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, 1), (1, NOBODY), (0, NOBODY), (NOBODY, NOBODY), (NOBODY, 0)])
def test_ids_that_would_mean_stay_root_are_refused(uid: int, gid: int) -> None:
    def enter() -> tuple[int, int]:
        with raises(errno.EOVERFLOW), Credentials().caller(Context(1, uid, gid, 1)):
            pytest.fail("inside as root")
        return os.geteuid(), os.getegid()

    assert in_thread(enter) == (0, 0)


def ids(tid: int) -> tuple[list[str], list[str], list[str]]:
    """Uid, Gid and Groups of a thread, as the kernel says."""
    with open(f"/proc/self/task/{tid}/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return lines["Uid"].split(), lines["Gid"].split(), lines["Groups"].split()


@needs_root
def test_one_threads_ids_are_not_the_others() -> None:
    main = threading.get_native_id()
    before = ids(main)
    inside, leave = threading.Event(), threading.Event()
    seen: list[tuple[list[str], list[str], list[str]]] = []

    def work() -> None:
        with Credentials().caller(Context(1, _OTHER, 4321, 1, (77,))):
            inside.set()
            leave.wait(30)
            seen.append(ids(threading.get_native_id()))
        seen.append(ids(threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    assert ids(main) == before
    leave.set()
    thread.join(30)
    other, gid = str(_OTHER), "4321"
    assert seen[0] == (["0", other, "0", other], ["0", gid, "0", gid], ["77"])
    assert seen[1] == (["0"] * 4, ["0"] * 4, [])
    assert ids(main) == before


@needs_root
def test_a_failure_inside_still_leaves_the_caller() -> None:
    def work() -> tuple[int, int, int]:
        before = syscalls.effective_capabilities()
        with raises(errno.ENOENT), Credentials().caller(Context(1, _OTHER, _OTHER, 1)):
            os.open("/none/at/all", os.O_RDONLY)
        return os.geteuid(), os.getegid(), syscalls.effective_capabilities() ^ before

    assert in_thread(work) == (0, 0, 0)


@needs_root
@pytest.mark.parametrize("groups", [(), (77,)])
@pytest.mark.parametrize(
    ("trusting", "strict", "kept"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_the_one_capability_that_a_caller_keeps(
    trusting: bool, strict: bool, groups: tuple[int, ...], kept: bool
) -> None:
    """Where the kernel has checked the caller's permission: it knows all of the caller's groups, and we do not."""

    def work() -> int:
        credentials = Credentials(trusting=trusting)
        with credentials.caller(Context(1, _OTHER, _OTHER, 1, groups), strict=strict):
            return syscalls.effective_capabilities()

    assert in_thread(work) == (1 << syscalls.CAP_DAC_OVERRIDE if kept else 0)


@needs_root
def test_privileges_are_killed_for_a_moment_and_only_where_asked() -> None:
    def work() -> tuple[int, int, int]:
        credentials, bit = Credentials(), 1 << syscalls.CAP_FSETID
        with credentials.killing_privileges(1):
            inside = syscalls.effective_capabilities() & bit
        with credentials.killing_privileges(0):
            unasked = syscalls.effective_capabilities() & bit
        return inside, unasked, syscalls.effective_capabilities() & bit

    bit = 1 << syscalls.CAP_FSETID
    assert in_thread(work) == (0, bit, bit)


_STUCK = """
import logging, sys, threading
from passthrough import syscalls
from passthrough.filesystem import Context
from passthrough.fs.tree.credentials import Credentials

def fail(id, real=getattr(syscalls, sys.argv[1])):
    if not id:
        raise OSError(11, "no return")
    real(id)

setattr(syscalls, sys.argv[1], fail)

def work():
    with Credentials().caller(Context(1, 65534, 65534, 1, (77,))):
        pass

thread = threading.Thread(target=work)
thread.start()
thread.join(30)
print("serves on")
"""


@needs_root
@pytest.mark.parametrize("call", ["thread_setresuid", "thread_setresgid", "thread_setgroups"])
def test_a_thread_that_cannot_come_back_ends_the_daemon(call: str) -> None:
    command = [sys.executable, "-c", _STUCK, call]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == exitcodes.BUG, result.stderr
    assert result.stdout == ""
    assert "cannot become itself again" in result.stderr


def test_a_umask_is_the_threads_own() -> None:
    with open("/proc/self/status", encoding="ascii") as status:
        before = next(line for line in status if line.startswith("Umask"))

    def work() -> tuple[int, int]:
        credentials = Credentials()
        credentials.masks = True
        mode = credentials.masked(0o666, 0o027)
        own = os.umask(0) if mode == 0o666 else 0o027
        return mode & ~own, own

    assert in_thread(work) == (0o640, 0o027)
    with open("/proc/self/status", encoding="ascii") as status:
        assert next(line for line in status if line.startswith("Umask")) == before


# Creating


@needs_root
def test_a_file_belongs_to_whoever_asked(make: Callable[..., Tree], source: Path) -> None:
    source.chmod(0o777)
    tree = make()
    tree.init(Agreement(minor=45, flags=c.FUSE_DONT_MASK | c.FUSE_CREATE_SUPP_GROUP), None)
    ctx = Context(1, _OTHER, 4321, 1, ())

    def work() -> tuple[int, int, int]:
        tree.mkdir(ctx, ROOT_ID, b"d", 0o777, 0o027)
        tree.create(ctx, ROOT_ID, b"f", os.O_RDWR, 0o666, 0o077, 0)
        tree.symlink(ctx, ROOT_ID, b"l", b"x")
        tree.mknod(ctx, ROOT_ID, b"p", stat.S_IFIFO | 0o666, 0, 0)
        return os.geteuid(), os.getegid(), os.umask(0)

    assert in_thread(work) == (0, 0, 0)
    for name, mode in (("d", 0o750), ("f", 0o600), ("l", 0o777), ("p", 0o666)):
        st_ = (source / name).lstat()
        assert (st_.st_uid, st_.st_gid, stat.S_IMODE(st_.st_mode)) == (_OTHER, 4321, mode)


@needs_root
def test_ids_that_cannot_be_expressed_make_nothing(tree: Tree, source: Path) -> None:
    before = sorted(source.iterdir())

    def work() -> None:
        for uid, gid in ((NOBODY, 0), (0, NOBODY)):
            ctx = Context(1, uid, gid, 1)
            with raises(errno.EOVERFLOW):
                tree.mkdir(ctx, ROOT_ID, b"d", 0o777, 0)
            with raises(errno.EOVERFLOW):
                tree.create(ctx, ROOT_ID, b"f", os.O_RDWR, 0o666, 0, 0)

    in_thread(work)
    assert sorted(source.iterdir()) == before


@needs_root
def test_creating_as_another_leaves_the_other_threads_alone(tree: Tree, source: Path) -> None:
    source.chmod(0o777)
    stop = threading.Event()
    main = threading.get_native_id()
    before = ids(main)

    def watch() -> set[tuple[int, int]]:
        seen = set()
        while not stop.is_set():
            seen.add((os.geteuid(), os.getegid()))
        return seen

    def create(number: int) -> int:
        ctx = Context(1, 1000 + number, 2000 + number, 1)
        for index in range(100):
            tree.create(ctx, ROOT_ID, b"n%d-%d" % (number, index), os.O_RDWR, 0o644, 0, 0)
        return os.geteuid()

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        try:
            assert at_once(create) == [0] * 4
        finally:
            stop.set()
        assert watched.result(30) == {(0, 0)}
    assert ids(main) == before
    for number, index in itertools.product(range(4), range(100)):
        st_ = (source / f"n{number}-{index}").stat()
        assert (st_.st_uid, st_.st_gid) == (1000 + number, 2000 + number)


@needs_root
def test_a_thread_whose_first_deed_is_a_callers_keeps_its_own_rights() -> None:
    """Its capabilities are read once, and that must not be while it is somebody else."""
    credentials = Credentials()

    def work() -> int:
        with credentials.caller(Context(1, _OTHER, _OTHER, 1)):
            assert syscalls.effective_capabilities() == 1 << syscalls.CAP_DAC_OVERRIDE
        with credentials.killing_privileges(True):
            assert syscalls.effective_capabilities()
        return syscalls.effective_capabilities()

    assert in_thread(work) == syscalls.effective_capabilities()
