"""A FORGET or RELEASE that comes while a system call runs: its descriptor stays open, and nobody else gets its number.

Every case names the call that is stepped into. There all nodes and handles are given back and the lowest descriptor
numbers taken, so that a number that was closed too early leads elsewhere; then the call gets on with it.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from passthrough import syscalls
from passthrough.filesystem import FileLock, SetAttr
from passthrough.fs.tree import FileHandles, Tree
from passthrough.fs.tree.ioctls import FS_IOC_GETFLAGS
from passthrough.protocol import constants as c
from tests.unit.direct import Direct
from tests.unit.helpers import ME, ROOT_ID, is_open, path_fd, raises

_DECOYS = 12
_ALL = (1 << 64) - 1
_OWNER = 77
_READ_LOCK = FileLock(0, 9, fcntl.F_RDLCK, 1)


@dataclass
class Stage:
    """A directory and a file in it, looked up and open. What the calls may be given is one of the two."""

    tree: Tree
    source: Path
    dir: int = 0
    file: int = 0
    link: int = 0
    fh: int = 0
    dh: int = 0
    decoys: list[int] = field(default_factory=list)
    forgets: bool = True

    def __post_init__(self) -> None:
        tree = self.tree
        self.dir = tree.lookup(ME, ROOT_ID, b"dir").nodeid
        self.file = tree.lookup(ME, self.dir, b"inner").nodeid
        self.link = tree.lookup(ME, self.dir, b"link").nodeid
        self.fh = tree.open(ME, self.file, os.O_RDWR, 0).fh
        self.dh = tree.opendir(ME, self.dir, 0, 0).fh
        below = self.source / "dir"
        self.known = {(st.st_dev, st.st_ino) for st in map(os.lstat, (below, below / "inner", below / "link"))}

    def let_go(self) -> None:
        """As a kernel does that no longer needs any of it; the numbers that come free are taken."""
        self.tree.release(ME, self.file, self.fh, 0, 0, 0)
        self.tree.releasedir(ME, self.dir, self.dh, 0, 0, 0)
        self.tree.batch_forget([(nodeid, _ALL) for nodeid in (self.dir, self.file, self.link)])
        self.decoys = [path_fd() for _ in range(_DECOYS)]

    def set(self, valid: int, **values: int) -> None:
        """SETATTR of the file. Its reply cannot be made where the file is forgotten meanwhile."""
        fields = dict.fromkeys(SetAttr._fields, 0) | {"valid": valid, "fh": self.fh} | values
        with raises(errno.EBADF) if self.forgets else contextlib.nullcontext():
            self.tree.setattr(ME, self.file, SetAttr(**fields))


@pytest.fixture
def stage(make: Callable[..., Tree], source: Path) -> Iterator[Stage]:
    """The stage, with locks; its decoys go with it."""
    (source / "dir" / "empty").mkdir()
    (source / "dir" / "link").symlink_to("x")
    made = Stage(make(flock=True, posix_lock=True), source)
    yield made
    for fd in made.decoys:
        os.close(fd)


def descriptors_in(args: tuple[Any, ...], named: dict[str, Any]) -> list[int]:
    """The descriptors that a system call was given: by number, as dir_fd, or through /proc/self/fd."""
    found = [named[word] for word in ("dir_fd", "src_dir_fd", "dst_dir_fd") if word in named]
    for word in args[:3]:
        if isinstance(word, str | bytes):
            text = os.fsdecode(word).removeprefix("/proc/self/fd/")
            found += [int(text)] if text.isdecimal() else []
    if args and isinstance(args[0], int):
        found.append(args[0])
    return found


class Case(NamedTuple):
    """The module and name of a call, and the request in which it is made. given: how many descriptors it is given;
    before: what is done undisturbed."""

    module: ModuleType
    name: str
    request: Callable[[Stage], object]
    given: int = 1
    before: Callable[[Stage], object] = lambda s: None


def _rename(s: Stage, flags: int) -> None:
    s.tree.rename2(ME, s.dir, b"inner", b"moved", s.dir, flags)


def _set_lock(s: Stage, lk_flags: int, wait: bool) -> None:
    s.tree.setlk(ME, s.file, s.fh, _OWNER, _READ_LOCK, lk_flags, wait)


def _get_lock(s: Stage) -> FileLock:
    return s.tree.getlk(ME, s.file, s.fh, _OWNER, _READ_LOCK, 0)


def _lock_of_another(s: Stage) -> None:
    s.tree.setlk(ME, s.file, s.fh, _OWNER + 1, FileLock(0, 9, fcntl.F_WRLCK, 1), 0, False)


def _up(s: Stage) -> None:
    """A directory that is forgotten on the way may still be found, or be stale."""
    with contextlib.suppress(OSError):
        s.tree.lookup(ME, s.dir, b"..")


_CASES = {
    # Names
    "lookup": Case(
        syscalls,
        "statx",
        lambda s: s.tree.lookup(ME, s.dir, b"empty"),
        before=lambda s: s.tree.lookup(ME, s.dir, b"inner"),
    ),
    "lookup, new": Case(os, "open", lambda s: s.tree.lookup(ME, s.dir, b"below")),
    "..": Case(os, "open", _up),
    "readlink": Case(os, "readlink", lambda s: s.tree.readlink(ME, s.link)),
    "symlink": Case(os, "symlink", lambda s: s.tree.symlink(ME, s.dir, b"new", b"x")),
    "mknod": Case(os, "mknod", lambda s: s.tree.mknod(ME, s.dir, b"new", stat.S_IFIFO | 0o600, 0, 0)),
    "mkdir": Case(os, "mkdir", lambda s: s.tree.mkdir(ME, s.dir, b"new", 0o700, 0)),
    "create": Case(os, "open", lambda s: s.tree.create(ME, s.dir, b"new", os.O_RDWR, 0o600, 0, 0)),
    "tmpfile": Case(os, "open", lambda s: s.tree.tmpfile(ME, s.dir, b"/", os.O_RDWR, 0o600, 0, 0)),
    "unlink": Case(os, "unlink", lambda s: s.tree.unlink(ME, s.dir, b"inner")),
    "rmdir": Case(os, "rmdir", lambda s: s.tree.rmdir(ME, s.dir, b"empty")),
    "rename": Case(os, "rename", lambda s: _rename(s, 0), 2),
    "rename, flags": Case(syscalls, "renameat2", lambda s: _rename(s, syscalls.RENAME_NOREPLACE)),
    "link": Case(os, "link", lambda s: s.tree.link(ME, s.dir, b"new", s.file), 3),
    # Attributes
    "getattr": Case(syscalls, "statx", lambda s: s.tree.getattr(ME, s.file, s.fh)),
    "statx": Case(syscalls, "statx", lambda s: s.tree.statx(ME, s.file, s.fh, 0, syscalls.STATX_BASIC_STATS)),
    "chmod": Case(os, "chmod", lambda s: s.set(c.FATTR_MODE, mode=0o600), 2),
    "chown": Case(os, "chown", lambda s: s.set(c.FATTR_UID, uid=os.getuid()), 2),
    "utimes": Case(syscalls, "utimensat", lambda s: s.set(c.FATTR_ATIME | c.FATTR_MTIME), 2),
    "truncate": Case(os, "ftruncate", lambda s: s.set(c.FATTR_SIZE, size=3)),
    "ftruncate": Case(os, "ftruncate", lambda s: s.set(c.FATTR_SIZE | c.FATTR_FH, size=3)),
    "ftruncate after chmod": Case(
        os, "chmod", lambda s: s.set(c.FATTR_MODE | c.FATTR_SIZE | c.FATTR_FH, mode=0o600, size=3), 2
    ),
    "access": Case(os, "access", lambda s: s.tree.access(ME, s.file, os.R_OK), 2),
    "statfs": Case(os, "statvfs", lambda s: s.tree.statfs(ME, s.file)),
    # Extended attributes
    "getxattr": Case(os, "getxattr", lambda s: s.tree.getxattr(ME, s.file, b"user.x")),
    "setxattr": Case(os, "setxattr", lambda s: s.tree.setxattr(ME, s.file, b"user.y", b"y", 0, 0)),
    "listxattr": Case(os, "listxattr", lambda s: s.tree.listxattr(ME, s.file)),
    "removexattr": Case(os, "removexattr", lambda s: s.tree.removexattr(ME, s.file, b"user.x")),
    # Data
    "open": Case(os, "open", lambda s: s.tree.open(ME, s.file, os.O_RDWR, 0), 2),
    "write": Case(os, "pwritev", lambda s: s.tree.write(ME, s.file, s.fh, 0, (memoryview(b"x"),), 0, 0)),
    "flush": Case(os, "dup", lambda s: s.tree.flush(ME, s.file, s.fh, 0)),
    "fsync": Case(os, "fsync", lambda s: s.tree.fsync(ME, s.file, s.fh, 0)),
    "fdatasync": Case(os, "fdatasync", lambda s: s.tree.fsync(ME, s.file, s.fh, c.FUSE_FSYNC_FDATASYNC)),
    "fallocate": Case(syscalls, "fallocate", lambda s: s.tree.fallocate(ME, s.file, s.fh, 0, 4096, 0)),
    "lseek": Case(os, "lseek", lambda s: s.tree.lseek(ME, s.file, s.fh, 0, os.SEEK_DATA)),
    "copy_file_range": Case(
        os, "copy_file_range", lambda s: s.tree.copy_file_range(ME, s.file, s.fh, 0, s.file, s.fh, 100, 3, 0)
    ),
    # Directories
    "opendir": Case(os, "open", lambda s: s.tree.opendir(ME, s.dir, 0, 0), 2),
    "readdir": Case(syscalls, "getdents64", lambda s: s.tree.readdir(ME, s.dir, s.dh, 0, 4096)),
    "readdirplus": Case(syscalls, "getdents64", lambda s: list(s.tree.readdirplus(ME, s.dir, s.dh, 0, 4096))),
    "fsyncdir": Case(os, "fsync", lambda s: s.tree.fsyncdir(ME, s.dir, s.dh, 0)),
    "fdatasyncdir": Case(os, "fdatasync", lambda s: s.tree.fsyncdir(ME, s.dir, s.dh, c.FUSE_FSYNC_FDATASYNC)),
    # Locks, ioctl
    "setlk": Case(syscalls, "fcntl_lock", lambda s: _set_lock(s, 0, False)),
    "setlkw": Case(syscalls, "fcntl_lock", lambda s: _set_lock(s, 0, True)),
    "flock": Case(syscalls, "flock", lambda s: _set_lock(s, c.FUSE_LK_FLOCK, False)),
    "flock, waiting": Case(syscalls, "flock", lambda s: _set_lock(s, c.FUSE_LK_FLOCK, True)),
    "getlk": Case(syscalls, "fcntl_lock", _get_lock),
    "getlk, held": Case(syscalls, "fcntl_lock", _get_lock, before=_lock_of_another),
    "ioctl": Case(fcntl, "ioctl", lambda s: s.tree.ioctl(ME, s.file, s.fh, FS_IOC_GETFLAGS, 0, 0, b"", 4)),
}


@pytest.mark.parametrize("name", _CASES)
def test_a_descriptor_outlives_what_lets_go_of_it(stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _CASES[name]
    case.before(stage)
    os.setxattr(stage.source / "dir" / "inner", "user.x", b"x")
    real = getattr(case.module, case.name)
    given: list[int] = []

    def step_in(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(case.module, case.name, real)
        given.extend(descriptors_in(args, named))
        stage.let_go()
        for fd in given:
            assert is_open(fd), f"{case.name} was given {fd}, which is closed"
            st = os.fstat(fd)
            right = fd == stage.tree.proc or (st.st_dev, st.st_ino) in stage.known
            assert right, f"{case.name} was given {fd}, which is now {os.readlink(f'/proc/self/fd/{fd}')}"
        return real(*args, **named)

    monkeypatch.setattr(case.module, case.name, step_in)
    case.request(stage)
    assert len(given) == case.given, "the call was not made, or not as this test knows it"


@pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at(2) takes CAP_DAC_READ_SEARCH")
@pytest.mark.parametrize("name", _CASES)
def test_a_descriptor_outlives_that_its_inode_is_kept_by_its_handle(
    make: Callable[..., Tree], source: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, and nothing is forgotten: every inode is let go in the middle of the call, which works all the same."""
    case = _CASES[name]
    (source / "dir" / "empty").mkdir()
    (source / "dir" / "link").symlink_to("x")
    opener = Direct(source)
    tree = make(opener=opener, file_handles=FileHandles.PREFER, flock=True, posix_lock=True, descriptors=1000)
    stage = Stage(tree, source, forgets=False)
    case.before(stage)
    os.setxattr(source / "dir" / "inner", "user.x", b"x")
    real = getattr(case.module, case.name)
    keeping = stage.tree.inodes.keeping
    assert keeping
    let_go = []

    def step_in(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(case.module, case.name, real)
        given = [fd for fd in descriptors_in(args, named) if fd != stage.tree.proc]
        held = stage.tree.inodes.held
        keeping.evict(1000, wait=True)
        let_go.append(held - stage.tree.inodes.held)
        stage.decoys = [path_fd() for _ in range(_DECOYS)]
        for fd in given:
            assert is_open(fd), f"{case.name} was given {fd}, which is closed"
            st = os.fstat(fd)
            assert (st.st_dev, st.st_ino) in stage.known, f"{case.name}: {os.readlink(f'/proc/self/fd/{fd}')}"
        return real(*args, **named)

    monkeypatch.setattr(case.module, case.name, step_in)
    try:
        case.request(stage)
    finally:
        for fd in stage.decoys:
            os.close(fd)
        opener.close()
    assert let_go
    assert let_go[0] >= 2


def test_what_a_read_is_to_fetch_outlives_its_handle(stage: Stage) -> None:
    held = stage.tree.read(ME, stage.file, stage.fh, 0, 100, 0)
    stage.let_go()
    assert os.pread(held.fd, 100, 0) == b"inner"
    fd = held.fd
    del held
    assert not is_open(fd)


@pytest.mark.parametrize("name", ["fsync", "lseek", "getxattr", "statfs", "unlink", "open", "setlk"])
def test_what_was_let_go_is_unknown_afterwards(stage: Stage, name: str) -> None:
    stage.let_go()
    with raises(errno.EBADF):
        _CASES[name].request(stage)
    assert (len(stage.tree.inodes), len(stage.tree.files), len(stage.tree.dirs)) == (1, 0, 0)
