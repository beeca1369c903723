"""The module llfuse, and a session of libfuse 2's for a mount that is made elsewhere.

llfuse.init mounts, always: that libfuse takes an open device (/dev/fd/N as the mount point) is as young as 3.3. Our
mount is made outside of the sandbox, as for the direct door, so that all that undoes, finds and reports it is the same.
So libfuse mounts where nobody sees it, that mount goes at once, and the descriptor that is left is replaced by our
mount's (session.take_over) before anything was read from either.

For root that mount is in a mount namespace of a thread's own, which ends with the thread. An ordinary user has none
while several threads run, and libfuse's helper would not mount there: it is in a directory of that user's for a moment.
"""

import importlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable
from typing import NamedTuple

from ... import exitcodes, syscalls
from ...errors import UserError
from .. import mounting
from .operations import Operations

_FUSE_DEVICE = (10, 229)  # MISC_MAJOR and FUSE_MINOR (linux/miscdevice.h)
_OLDEST = (1, 4)
_INSTALL = "apt install python3-llfuse, or pip install llfuse"


class Missing(NamedTuple):
    """Why llfuse cannot be used, and what to do about it."""

    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.why}: {self.remedy}"


def version() -> str:
    """llfuse's."""
    return str(importlib.import_module("llfuse").__version__)


def missing() -> Missing | None:
    """Why llfuse cannot be used here, or None where it can."""
    try:
        found = version()
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "llfuse":
            return Missing("the Python module llfuse is not installed", _INSTALL)
        return Missing(f"the Python module llfuse cannot be loaded ({error})", _INSTALL)
    if tuple(map(int, re.findall(r"\d+", found))) < _OLDEST:
        return Missing(f"llfuse {found} is too old, 1.4 is needed", "pip install -U llfuse")
    if not mounting.may_mount() and mounting.old_helper_path() is None:
        why = f"llfuse needs {mounting.OLD_HELPER} for an ordinary user, which is not installed"
        return Missing(why, "apt install fuse3")
    return None


def begin(words: frozenset[str], directory: str) -> tuple[Operations, int]:
    """Outside of the sandbox, while there is one thread: a session of libfuse's, and the number of the descriptor that
    it will read from. words are libfuse's options; directory is one of the user's own. UserError where llfuse fails."""
    library = importlib.import_module("llfuse")
    operations = Operations(library)
    if mounting.may_mount():
        os.close(mounting.open_device())  # to say what is wrong with it, as the direct door does
    before = _devices()
    point = tempfile.mkdtemp(prefix="llfuse-", dir=directory)
    try:
        if mounting.may_mount():
            _apart(lambda: library.init(operations, point, words))
        else:
            _by_helper(lambda: library.init(operations, point, words), point)
    finally:
        os.rmdir(point)
    (fd,) = _devices() - before
    os.set_inheritable(fd, False)
    return operations, fd


def _apart(init: Callable[[], object]) -> None:
    """In a mount namespace that nobody else sees, and that ends with the call."""
    failures: list[str] = []

    def mount() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_PRIVATE, b"")
            failures.extend(_said_by(init))
        except OSError as error:
            failures.append(str(error))

    thread = threading.Thread(target=mount, name="llfuse-init")
    thread.start()
    thread.join()
    if failures:
        raise UserError(f"llfuse cannot begin: {failures[0]}", exitcodes.MOUNT_FAILED)


def _by_helper(init: Callable[[], object], point: str) -> None:
    for line in _said_by(init):
        if f"failed to open {mounting.DEVICE}" in line:
            os.close(mounting.open_device())  # which says it as the direct door does
        raise UserError(f"llfuse cannot begin: {line}", exitcodes.MOUNT_FAILED)
    mounting.unmount(point, lazy=True)


def _said_by(init: Callable[[], object]) -> list[str]:
    """Why it failed, if it did: libfuse tells standard error the reason, and llfuse that there was one."""
    stderr = os.dup(2)
    heard = os.memfd_create("llfuse", os.MFD_CLOEXEC)
    try:
        os.dup2(heard, 2)
        try:
            init()
        except RuntimeError as error:
            text = os.pread(heard, 1 << 12, 0).decode(errors="replace")
            return [" ".join(text.split()) or str(error)]
        finally:
            os.dup2(stderr, 2)
        return []
    finally:
        os.close(stderr)
        os.close(heard)


def _devices() -> frozenset[int]:
    """The descriptors of this process that are open on /dev/fuse."""
    return frozenset(filter(_is_device, map(int, os.listdir("/proc/self/fd"))))


def _is_device(fd: int) -> bool:
    try:
        status = os.fstat(fd)
    except OSError:  # the one that listdir had
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(*_FUSE_DEVICE)
