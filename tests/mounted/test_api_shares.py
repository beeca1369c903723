"""What a tree's words put before it, file handles and virtual owners, through the mounts of a program."""

import errno
import os
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from passthrough import (
    Agreement,
    Context,
    Dirent,
    Entry,
    FileSystem,
    MappedTree,
    Opened,
    ReadOnly,
    Tree,
    UserError,
    exitcodes,
    mount,
)
from passthrough.fs.decorator import Decorator

from . import idmapping
from .harness import Harness, wait_until
from .posix.children import as_user
from .posix.modes import attempt
from .test_api import Places, ends, handles, nothing_left, places, program

__all__ = ["places"]

_FIRST = 100_000


class _Seen(Tree):
    """Keeps what a policy is told of."""

    def __init__(self, source: Path, **words: Any) -> None:
        self.seen: list[tuple[object, ...]] = []
        super().__init__(source, **words)

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        self.seen.append(("open", ctx.uid, os.geteuid()))
        return super().open(ctx, nodeid, flags, open_flags)

    def mkdir(self, ctx: Context, nodeid: int, name: bytes, mode: int, umask: int) -> Entry:
        self.seen.append(("mkdir", ctx.uid, ctx.gid))
        return super().mkdir(ctx, nodeid, name, mode, umask)

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        self.seen.append(("setxattr", name))
        super().setxattr(ctx, nodeid, name, value, flags, setxattr_flags)


def test_attributes_have_the_names_of_the_map_and_a_policy_the_sources(places: Places) -> None:
    with nothing_left():
        fs = _Seen(places.source, xattrmap=":map::user.guest.:", security_label=True)
        with mount(fs, places.point, io_uring="off"):
            os.setxattr(places.point / "file", "user.mine", b"x")
            assert os.getxattr(places.point / "file", "user.mine") == b"x"
            assert os.listxattr(places.point / "file") == ["user.mine"]
            assert os.listxattr(places.source / "file") == ["user.guest.user.mine"]
        assert ("setxattr", b"user.guest.user.mine") in fs.seen


def test_ids_are_translated_in_both_directions(places: Places) -> None:
    words: Any = {"translate_uid": f"map:0:{_FIRST}:65536", "translate_gid": ["map:0:200000:10", "map:10:7:1"]}
    os.chown(places.source / "file", _FIRST + 5, 7)
    with nothing_left():
        fs = _Seen(places.source, **words)
        with mount(fs, places.point, allow_other=True):
            st = (places.point / "file").stat()
            assert (st.st_uid, st.st_gid) == (5, 10)
            os.chown(places.point, 5, 10)
            as_user(lambda: (places.point / "new").mkdir(), 5, 10)
    st = (places.source / "new").stat()
    assert (st.st_uid, st.st_gid) == (_FIRST + 5, 7)
    assert fs.seen == [("mkdir", _FIRST + 5, 7)]


@pytest.mark.parametrize("squash", ["root", "all"])
def test_who_is_squashed_has_the_rights_of_one_user(places: Places, squash: Any) -> None:
    """The policy runs with them, too; all others keep theirs, and with "all" everybody is let in as that user."""
    (places.source / "private").touch(0o600)
    for name, uid in (("of-anon", 4242), ("of-1234", 1234)):
        (places.source / name).touch(0o600)
        os.chown(places.source / name, uid, uid)
    outcomes = {}
    with nothing_left():
        fs = _Seen(places.source, squash=squash, anon_uid=4242, anon_gid=4242)
        with mount(fs, places.point, allow_other=True):
            for name in ("private", "of-anon", "of-1234"):
                path = places.point / name
                outcomes[name] = (
                    attempt(path.read_bytes),
                    attempt(partial(as_user, path.read_bytes, 1234, 1234)),
                )
            (places.point / "made").touch()
    assert (places.source / "made").stat().st_uid == 4242
    assert outcomes == {
        "private": ("EACCES", "EACCES"),
        "of-anon": (b"", "EACCES" if squash == "root" else b""),
        "of-1234": ("EACCES", b"" if squash == "root" else "EACCES"),
    }
    assert ("open", 4242, 4242) in fs.seen
    assert (("open", 1234, 1234) in fs.seen) is False, "a caller who is not squashed is not acted for in an open"


def test_rights_are_not_lent_by_the_words_of_a_tree(places: Places) -> None:
    cases: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
        ({"allow_idmap": True}, {"allow_root": True}, "allow_idmap and allow_root exclude each other"),
        ({"default_permissions": False}, {"allow_other": True}, "would give every user"),
    )
    for words, more, why in cases:
        fs = Tree(places.source, **words)
        with pytest.raises(ValueError, match=why):
            mount(fs, places.point, **more)
        fs.close()


def test_an_ordinary_users_program_cannot_be_others(places: Places) -> None:
    process = program("Tree(sys.argv[1], squash='root')\n", places.source, user=65534, group=65534, extra_groups=[])
    status, _, err = ends(process)
    assert status == 1
    assert err.splitlines()[-1].startswith("passthrough.errors.UserError: squash=root needs root")


def test_read_only_keeps_what_stands_before_the_tree(places: Places) -> None:
    os.setxattr(places.source / "file", "user.guest.user.mine", b"x")
    with nothing_left():
        fs = ReadOnly(Tree(places.source, xattrmap=":map::user.guest.:", squash="none"))
        with mount(fs, places.point):
            assert os.listxattr(places.point / "file") == ["user.mine"]
            assert attempt(lambda: os.setxattr(places.point / "file", "user.mine", b"y")) == "EROFS"
            with open("/proc/self/mounts") as mounts:
                assert any(line.split()[:2] == [str(places.source), str(places.point)] for line in mounts)


class _Upper(Decorator):
    """A program's own class before a Tree: directories have no more than one entry."""

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        return list(self.fs.readdir(ctx, nodeid, fh, offset, size))[:1] if offset == 0 else []


def test_what_stands_before_a_tree_by_its_methods_alone_does_not_begin(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    def one_made_with(what: Callable[[Tree], FileSystem]) -> FileSystem:
        return _Upper(what(Tree(places.source, squash="root", readdirplus="no")))

    with nothing_left():
        fs = one_made_with(lambda tree: tree)
        with pytest.raises(UserError, match=r"could not begin: .*front\(\)") as caught:
            mount(fs, places.point)
        assert caught.value.status == exitcodes.KERNEL
        fs.close()
    caplog.clear()
    (places.source / "private").touch(0o600)
    with nothing_left(), mount(one_made_with(Tree.front), places.point):
        assert len(os.listdir(places.point)) < 2
        assert attempt(lambda: (places.point / "private").read_bytes()) == "EACCES"


def test_the_mount_may_be_idmapped(places: Places, harness: Harness) -> None:
    shown = harness.directory()
    with mount(Tree(places.source, allow_idmap=True), places.point, allow_other=True):
        with idmapping.user_namespace(0, _FIRST, 65_536) as namespace:
            try:
                idmapping.mount_idmapped(places.point, shown, namespace)
            except OSError as error:
                if error.errno == errno.EINVAL and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
                    pytest.skip("FUSE mounts can be idmapped since Linux 6.12")
                raise
        try:
            as_user(lambda: (shown / "new").touch(), _FIRST + 5, _FIRST + 5)
            assert (shown / "new").stat().st_uid == _FIRST + 5
        finally:
            subprocess.run(["umount", shown], check=True)
    assert (places.source / "new").stat().st_uid == 5


# Virtual owners


class _NoDevices(MappedTree):
    """A policy on virtual owners."""

    def mknod(self, ctx: Context, nodeid: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        if stat.S_ISBLK(mode):
            raise PermissionError(errno.EPERM, "")
        return super().mknod(ctx, nodeid, name, mode, rdev, umask)


def test_owners_are_virtual_and_a_policy_holds(places: Places) -> None:
    with nothing_left(), mount(_NoDevices(places.source), places.point, allow_other=True, dev=True) as mounted:
        point = Path(mounted.mountpoint)
        os.mknod(point / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert attempt(lambda: os.mknod(point / "sda", stat.S_IFBLK | 0o600, os.makedev(8, 0))) == "EPERM"
        (point / "null").write_bytes(b"into the device")
        (point / "program").touch(0o755)
        os.chown(point / "program", 7, 8)
        os.chmod(point / "program", 0o4711)
        st = (point / "program").stat()
        assert (st.st_mode, st.st_uid, st.st_gid) == (stat.S_IFREG | 0o4711, 7, 8)
        (point / "link").symlink_to("program")
        assert os.readlink(point / "link") == "program"
    for name in ("null", "program", "link"):
        st = (places.source / name).lstat()
        assert (st.st_mode, st.st_uid) == (stat.S_IFREG | 0o600, 0)
    assert os.getxattr(places.source / "program", "user.virtfs.uid") == struct.pack("<I", 7)


# File handles


def _hold(directory: Path, names: Sequence[str]) -> tuple[list[int], str]:
    """Refer to all of these, as far as that goes."""
    held: list[int] = []
    outcome = attempt(lambda: held.extend(os.open(directory / name, os.O_PATH) for name in names))
    return held, str(outcome)


@pytest.mark.parametrize("mode", ["never", None, "mandatory"])
def test_more_files_are_in_use_than_the_program_may_have_open(places: Places, mode: Any) -> None:
    """Held by descriptors alone some are ENFILE; by handles all are the same, for others too."""
    names = [f"{number}" for number in range(400)]
    for name in names:
        (places.source / name).mkdir()
        (places.source / name).chmod(0o777)
    words: Any = {"cache": "always", "passthrough": "off", "inode_file_handles": mode, "descriptors": 100}
    with nothing_left():
        with mount(Tree(places.source, **words), places.point, allow_other=True):
            held, outcome = _hold(places.point, names)
            try:
                assert (outcome == "ENFILE") is (mode == "never")
                if mode != "never":
                    _make_in_each(places, held, names)
            finally:
                for fd in held:
                    os.close(fd)
        assert not any(thread.name == "opener" for thread in threading.enumerate())


def _make_in_each(places: Places, held: list[int], names: Sequence[str]) -> None:
    def make() -> None:
        for fd in held:
            os.close(os.open("made", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd))

    as_user(make, 1234, 1235)
    for name in names:
        st = (places.source / name / "made").stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode) & 0o640) == (1234, 1235, 0o640)


def test_the_limit_is_that_of_the_whole_program(places: Places) -> None:
    """What opens by handle has descriptors of this process, for which there is room however many clients want."""
    names = [f"{number}" for number in range(600)]
    for name in names:
        (places.source / name).mkdir()
        (places.source / name).chmod(0o777)
    code = (
        "import logging, resource; logging.basicConfig()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "mount(Tree(sys.argv[1], cache='always', passthrough='off'), sys.argv[2], allow_other=True, threads=4).run()\n"
    )
    process = program(code, places.source, places.point)
    wait_until(lambda: process.poll() is not None or handles(process.pid, signal.SIGHUP), "it is mounted")
    held, outcome = _hold(places.point, names)
    try:
        assert outcome == "None"
        _make_in_each(places, held, names)
    finally:
        for fd in held:
            os.close(fd)
        process.terminate()
    assert ends(process) == (0, "", "")


def test_file_handles_are_not_had_without_the_right(places: Places) -> None:
    """The program says what it may have; nothing is said where nobody asked for it."""
    code = (
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from passthrough import UserError\n"
        "for mode in (None, 'prefer', 'mandatory'):\n"
        "    try:\n        Tree(sys.argv[1], inode_file_handles=mode).close()\n"
        "    except UserError as error:\n        print(error.status, error)\n"
        "    print(mode, threading.active_count(), flush=True)\n"
    )
    without = ("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search")
    status, out, err = ends(program(code, places.source, before=without))
    assert status == 0
    lines = out.splitlines()
    assert lines[:2] + lines[3:] == ["None 1", "prefer 1", "mandatory 1"]
    assert lines[2].startswith(f"{int(exitcodes.PERMISSION)} inode_file_handles=mandatory: ")
    assert len(err.splitlines()) == 1
    assert err.startswith("inode_file_handles=prefer: ")


def test_a_child_that_was_forked_does_not_keep_the_opener_alive(places: Places) -> None:
    """It has copies of all descriptors, and the thread ends without it."""
    fs = Tree(places.source, inode_file_handles="mandatory")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os._exit(0)
    try:
        fs.init(Agreement(), None)
        fs.close()
        assert not any(thread.name == "opener" for thread in threading.enumerate())
    finally:
        os.write(writer, b"x")
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
