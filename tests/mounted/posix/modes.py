"""The table: every way into a directory that the list runs over, and what a test is given of it.

A row says how to get in (options of the mount, or another way altogether) and what is shared (the kind of source). What
a row cannot do stands in `lacks`, with the reason that the skip shows. A further transport is a further row.
"""

import errno
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from ..harness import (
    NEWER_LLFUSE,
    ROOT,
    TIMEOUT_S,
    URING_SWITCH,
    Harness,
    for_other_users,
    is_mounted,
    newer_llfuse_or_skip,
    wait_until,
    with_modules,
)
from . import sources

T = TypeVar("T")


class Shared(NamedTuple):
    """A source and where it is shown; daemon is None where none of ours serves, keeper the process outside of it.

    plain is where directories to compare with are made, unless in the source.
    """

    source: Path
    point: Path
    daemon: int | None
    keeper: int | None = None
    plain: Path | None = None


Enter = Callable[[Harness, "Mode", sources.Place], Shared]


def mounted(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """By `passthrough mount`, through /dev/fuse."""
    mount = harness.mount("-o", ",".join(("allow_other", *mode.options)), source=place.share, point=place.point)
    return Shared(place.source, mount.point, mount.server, mount.pid)


def by_uring(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """The same, with FUSE over io_uring switched on for as long as the mount is needed: it is the whole machine's."""
    if not URING_SWITCH.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    before = URING_SWITCH.read_text()
    harness.cleanups.append(lambda: URING_SWITCH.write_text(before))
    URING_SWITCH.write_text("Y")
    return mounted(harness, mode, place)


def by_newer_llfuse(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """The same, with llfuse 1.5."""
    newer_llfuse_or_skip()
    words = ("-o", ",".join(("allow_other", *mode.options)))
    mount = harness.mount(*words, source=place.share, point=place.point, env=with_modules(NEWER_LLFUSE))
    assert str(NEWER_LLFUSE) in Path(f"/proc/{mount.pid}/maps").read_text()
    return Shared(place.source, mount.point, mount.server, mount.pid)


def logged(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """With a filter that lets everything pass: when all tests are through, the kernel has logged no system call."""
    shared = mounted(harness, mode, place)
    harness.cleanups.append(lambda: _see_that_nothing_was_logged(shared.daemon))
    return shared


def tight(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """With so few descriptors that inodes are let go all the time, and opened by their handles."""
    options = ",".join(("allow_other", *mode.options))
    mount = harness.mount("-o", options, source=place.share, point=place.point, descriptors=_FEW)
    return Shared(place.source, mount.point, mount.server, mount.pid)


def _see_that_nothing_was_logged(daemon: int | None) -> None:
    """audit(7) lines of type 1326 (AUDIT_SECCOMP), in the kernel's log where no auditd takes them."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in log.splitlines() if "type=1326" in line and f" pid={daemon} " in line]
    assert lines == [], f"{len(lines)} system calls are not on the list"


def with_virtual_owners(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """By an ordinary user's daemons: what is behind the one is seen through another, which believes nothing for long.

    A file system that believes for no time is as good as the source, but for what the row lacks.
    """
    with for_other_users():
        return _seen_twice(harness, mode, place, pwd.getpwnam("nobody").pw_uid)


def with_virtual_owners_by_root(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """The same by root's daemons, so with kernel passthrough."""
    return _seen_twice(harness, mode, place, None)


def _seen_twice(harness: Harness, mode: "Mode", place: sources.Place, user: int | None) -> Shared:
    words = ("allow_other", *mode.options)
    mount = harness.mount("-o", ",".join(words), source=place.share, user=user)
    behind = harness.mount("-o", ",".join((*words, "cache=never")), source=place.share, user=user)
    return Shared(behind.point, mount.point, mount.server, mount.pid, harness.directory("plain"))


_PROGRAM = """
import sys
from passthrough import Tree, mount
mount(Tree(sys.argv[1]), sys.argv[2], allow_other=True).run()
"""


def by_program(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """By a program that mounts for itself (passthrough.mount)."""
    point = place.point or harness.directory("mount")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, place.share, point],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.terminate()
        assert process.communicate(timeout=TIMEOUT_S)[1] == ""
        assert process.returncode == 0

    harness.cleanups.append(end)
    wait_until(lambda: process.poll() is not None or is_mounted(point), "the program has mounted")
    return Shared(place.source, point, process.pid)


def native(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """Not at all: the list must hold for the plain directory."""
    return Shared(place.source, place.source, None)


_FEW = 160
"""Of which a daemon keeps some ninety for itself; one test opens fifty files."""


@dataclass(frozen=True)
class Mode:
    """A row. core: only the tests marked `core` run over it."""

    name: str
    options: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    source: Callable[[Harness], sources.Place] = sources.directory
    enter: Enter = mounted
    core: bool = False

    def share(self, harness: Harness) -> Shared:
        return self.enter(harness, self, self.source(harness))


_FALLOCATE = "fs/fuse/file.c hands down only keep-size, punch-hole and zero-range"
_LOCAL = "without the option, locks are among those who come through the mount"
_COLLECTS = "writeback: the kernel collects writes, and decides where an append goes"
_ITS_CLOCK = "writeback: the kernel keeps mtime by its own coarse clock, and sends it only where a tick has passed"
_SETS_TIMES = "writeback: the kernel sets the time after a write, which a file that may only be appended to refuses"
_REMEMBERS = "the kernel believes for a day what it has seen"
_NO_XATTR = "no_xattr: there are none, and so no access lists"
_NO_IMMUTABLE = "the daemon keeps no CAP_LINUX_IMMUTABLE; modcaps=+linux_immutable"
_NO_TRUSTED = "without kernel passthrough the daemon keeps no CAP_SYS_ADMIN, and has no trusted.*; modcaps=+sys_admin"
_ANY = {"collapse": _FALLOCATE, "protecting flags": _NO_IMMUTABLE}
_WITHOUT = {"trusted": _NO_TRUSTED}
_APPENDS = "fs/fuse/passthrough.c opens the backing file with O_APPEND, and F_SETFL does not reach it"
_PASSING = {"append off": _APPENDS}
_LOCALLY = _ANY | {"shared flock": _LOCAL, "shared posix_lock": _LOCAL}
_COLLECTED = _LOCALLY | {
    "write-through": _COLLECTS,
    "news": _COLLECTS,
    "mtime": _ITS_CLOCK,
    "append-only": _SETS_TIMES,
}
_MAP = "xattrmap=:ok:all:system.posix_acl_:system.posix_acl_: :prefix:all::user.guest.: :bad:all:::"
_RENAMES = "the map gives attributes other names, of the namespace user, which symlinks cannot have"
_DEFAULT = _LOCALLY | _PASSING
_OLD_LIBRARY = {
    "append off": "llfuse hands over the flags of open(2), and not those that fcntl(2) sets",
    "access lists": "libfuse 2.9 knows no FUSE_POSIX_ACL (7.26), so they are hidden",
    "birth": "libfuse 2.9 knows no STATX (7.39)",
    "fallocate": "llfuse has no fallocate: EOPNOTSUPP",
    "holes": "libfuse 2.9 knows no LSEEK (7.24): the kernel takes a file for one piece of data",
    "inode flags": "llfuse has no ioctl: ENOTTY",
    "rename flags": "libfuse 2.9 knows no RENAME2 (7.23): EINVAL",
    "supplementary groups": "libfuse 2.9 knows no CREATE_SUPP_GROUP (7.38): what depends on one loses SGID",
    "unnamed files": "libfuse 2.9 knows no TMPFILE (7.37): EOPNOTSUPP",
}
"""What llfuse cannot do, as the kernel then does; test_llfuse.py looks that it is refused like that."""
_PROGRAMS = {"collapse": _FALLOCATE, "shared flock": _LOCAL, "shared posix_lock": _LOCAL}

_VIRTUAL = {
    "trusted": "an ordinary user's daemon has no trusted.*",
    "file capabilities": "an ordinary user's daemon may not set security.capability",
    "whiteout": "a whiteout would be a real device in the source: EINVAL",
}
_UNTOLD = "allow_idmap: the kernel tells who asks only where something is created"
_UNNAMED = {"who lists": _UNTOLD, "who allocates": _UNTOLD}

_GUEST = "PASSTHROUGH_GUEST"
"""Set in a virtual machine to SOURCE:POINT: the list runs over that pair, whoever serves it, and nothing is mounted."""


def given(harness: Harness, mode: "Mode", place: sources.Place) -> Shared:
    """What the environment names."""
    source, point = os.environ[_GUEST].split(":")
    return Shared(Path(source), Path(point), None)


_ROWS = (
    Mode("native", enter=native),
    Mode("cache=never", ("cache=never",), _DEFAULT),
    Mode("cache=metadata", ("cache=metadata",), _DEFAULT | {"news": _REMEMBERS}),
    Mode("cache=auto", (), _DEFAULT),
    Mode("cache=always", ("cache=always",), _DEFAULT | {"news": _REMEMBERS}),
    Mode("writeback", ("writeback",), _COLLECTED | _WITHOUT),
    Mode("threads=1", ("threads=1", "passthrough=off"), _LOCALLY | _WITHOUT),
    Mode("threads=4,flock,posix_lock", ("threads=4", "flock", "posix_lock", "passthrough=off"), _ANY | _WITHOUT),
    Mode("readdirplus=no", ("readdirplus=no",), _DEFAULT),
    Mode("readdirplus=always", ("readdirplus=always",), _DEFAULT),
    Mode("passthrough=off", ("passthrough=off",), _LOCALLY | _WITHOUT),
    Mode("passthrough=off,cache=never", ("passthrough=off", "cache=never"), _LOCALLY | _WITHOUT),
    Mode("io_uring=on", ("io_uring=on",), _DEFAULT, enter=by_uring),
    Mode(
        "io_uring=on,passthrough=off,flock,posix_lock",
        ("io_uring=on", "passthrough=off", "flock", "posix_lock", "cache=never"),
        _ANY | _WITHOUT,
        enter=by_uring,
    ),
    Mode("transport=llfuse", ("transport=llfuse",), _LOCALLY | _WITHOUT | _OLD_LIBRARY),
    Mode(
        "transport=llfuse,seccomp=log,threads=1",
        ("transport=llfuse", "seccomp=log", "threads=1"),
        _LOCALLY | _WITHOUT | _OLD_LIBRARY,
        enter=logged,
        core=True,
    ),
    Mode(
        "transport=llfuse (1.5)",
        ("transport=llfuse",),
        _LOCALLY | _WITHOUT | _OLD_LIBRARY,
        enter=by_newer_llfuse,
    ),
    Mode("seccomp=log", ("seccomp=log",), _DEFAULT, enter=logged),
    Mode(
        "seccomp=log,passthrough=off",
        ("seccomp=log", "passthrough=off", "posix_lock"),
        _ANY | _WITHOUT | {"shared flock": _LOCAL},
        enter=logged,
    ),
    Mode(
        "passthrough=off,modcaps",
        ("passthrough=off", "modcaps=+sys_admin:+linux_immutable"),
        {"collapse": _FALLOCATE, "shared flock": _LOCAL, "shared posix_lock": _LOCAL},
    ),
    Mode("seccomp=kill", ("seccomp=kill",), _DEFAULT),
    Mode("sandbox=chroot", ("sandbox=chroot",), _DEFAULT, core=True),
    Mode("sandbox=landlock", ("sandbox=landlock",), _DEFAULT, core=True),
    Mode("sandbox=none", ("sandbox=none", "seccomp=none"), _DEFAULT, core=True),
    Mode("inode_file_handles=never", ("inode_file_handles=never",), _DEFAULT, core=True),
    Mode("inode_file_handles=mandatory", ("inode_file_handles=mandatory",), _DEFAULT, core=True),
    Mode("few descriptors", ("cache=always",), _DEFAULT | {"news": _REMEMBERS}, enter=tight),
    Mode(
        "few descriptors,passthrough=off,posix_lock",
        ("passthrough=off", "flock", "posix_lock", "seccomp=kill"),
        _ANY | _WITHOUT,
        enter=tight,
    ),
    Mode("mapped-xattr", ("security_model=mapped-xattr",), _LOCALLY | _VIRTUAL, enter=with_virtual_owners),
    Mode(
        "mapped-xattr by root",
        ("security_model=mapped-xattr",),
        _DEFAULT | {"whiteout": _VIRTUAL["whiteout"]},
        enter=with_virtual_owners_by_root,
        core=True,
    ),
    Mode("allow_idmap", ("allow_idmap",), _DEFAULT | _UNNAMED, core=True),
    Mode("a program's own", (), _PASSING | _PROGRAMS, enter=by_program, core=True),
    Mode("xattrmap", (_MAP,), _LOCALLY | {"names": _RENAMES}),
    Mode("xattrmap,writeback", (_MAP, "writeback", "writeout=immediate"), _COLLECTED | {"names": _RENAMES}),
    Mode("no_xattr", ("no_xattr",), _DEFAULT | {"xattr": _NO_XATTR}),
    *(
        Mode(f"source={name}", (), _DEFAULT | dict(lacks), source=source, core=True)
        for name, source, lacks in sources.KINDS
    ),
)

MODES = (Mode("guest", (), _ANY, enter=given),) if _GUEST in os.environ else _ROWS

# What a mount must show as the source has it; not atime, which looking changes, nor blocks, which come later.
FIELDS = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_mtime_ns")


def facts(path: Path) -> dict[str, int]:
    """What lstat says, as far as it must agree."""
    st = path.lstat()
    return {name: getattr(st, name) for name in FIELDS}


def attempt(call: Callable[[], T]) -> T | str:
    """The result, or the name of the errno."""
    try:
        return call()
    except OSError as error:
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno or 0]


@dataclass
class Tree:
    """A fresh directory: through the row's way in (`mount`), behind it (`source`); `plain` is beside it, not shared."""

    mode: Mode
    shared: Shared
    mount: Path
    source: Path
    plain: Path
    compared: bool = True
    """Cleared by a test that changes the source behind the kernel's back: no comparison at its end."""

    def same(self, action: Callable[[Path], T]) -> T | str:
        """Do it through the mount and in the plain directory: both must come to the same. Returns what it comes to."""
        shown = attempt(lambda: action(self.mount))
        plain = attempt(lambda: action(self.plain))
        assert shown == plain, f"mount: {shown!r}, plain directory: {plain!r}"
        return shown

    def has(self, feature: str) -> bool:
        """Whether this row can do it."""
        return feature not in self.mode.lacks

    def needs(self, feature: str) -> None:
        """Skip where this row lacks it."""
        if not self.has(feature):
            pytest.skip(f"{feature}: {self.mode.lacks[feature]}")

    def compare(self) -> None:
        """Mount and source must show the same, all the way down."""
        fields = [name for name in FIELDS if name.removeprefix("st_").removesuffix("_ns") not in self.mode.lacks]
        try:
            _compare(self.mount, self.source, fields)
        except AssertionError:
            # A store to a passed-through mapping does not reach the mount's attributes: they may be a second old.
            if "append off" not in self.mode.lacks or "news" in self.mode.lacks:
                raise
            wait_until(lambda: self._agrees(fields), "mount and source agree", 5)

    def _agrees(self, fields: Sequence[str]) -> bool:
        try:
            _compare(self.mount, self.source, fields)
        except AssertionError:
            return False
        return True


def _compare(shown: Path, real: Path, fields: Sequence[str]) -> None:
    mount, source = shown.lstat(), real.lstat()
    for name in fields:
        assert getattr(mount, name) == getattr(source, name), f"{name} of {shown}"
    mode = real.lstat().st_mode
    if stat.S_ISLNK(mode):
        assert os.readlink(shown) == os.readlink(real)
    elif stat.S_ISREG(mode) and real.lstat().st_size < 1 << 22:
        assert shown.read_bytes() == real.read_bytes(), f"content of {shown}"
    elif stat.S_ISDIR(mode):
        names = sorted(os.listdir(real))
        assert sorted(os.listdir(shown)) == names, shown
        if len(names) < 1000:
            for name in names:
                _compare(shown / name, real / name, fields)


def remove(directory: Path) -> None:
    """With all in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], check=True)
