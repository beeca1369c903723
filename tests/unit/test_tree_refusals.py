"""What the shared directory refuses: names and flags that are none of a peer's, files that nobody has checked."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.filesystem import Context
from passthrough.fs.tree import Tree
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from tests.unit.helpers import ME, ROOT_ID, descriptors, find, in_thread, raises

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
_USER = Context(1, 65534, 65534, 1)

# CREATE of what is there


@pytest.mark.parametrize("ctx", [ME, _USER], ids=["root", "user"])
@pytest.mark.parametrize("name", [b"file", b"dir", b"link", b"away", b"fifo", b"socket"])
@pytest.mark.parametrize(("flags", "number"), [(0, errno.ESTALE), (os.O_EXCL, errno.EEXIST)], ids=["", "excl"])
@pytest.mark.parametrize("more", [0, os.O_TRUNC], ids=["", "trunc"])
def test_create_opens_nothing_that_is_there(
    tree: Tree, source: Path, name: bytes, ctx: Context, flags: int, number: int, more: int
) -> None:
    source.chmod(0o777)
    (source / "file").chmod(0o666)
    before = descriptors()

    def create() -> None:
        with raises(number):
            tree.create(ctx, ROOT_ID, name, os.O_RDWR | os.O_CREAT | flags | more, 0o644, 0, 0)

    in_thread(create)
    assert (source / "file").read_bytes() == b"0123456789"
    assert (descriptors(), len(tree.inodes), len(tree.files), len(tree.pins)) == (before, 1, 0, 1)


def test_create_through_a_dangling_link_makes_nothing(tree: Tree, source: Path) -> None:
    (source / "dangling").symlink_to("new")
    with raises(errno.ESTALE):
        tree.create(ME, ROOT_ID, b"dangling", os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    assert not (source / "new").exists()


# Flags of a peer


_FLAGS = {
    "O_PATH": os.O_PATH,
    "O_TMPFILE": os.O_TMPFILE,
    "O_DIRECTORY": os.O_DIRECTORY,
    "O_CREAT": os.O_CREAT,
    "O_CREAT|O_EXCL": os.O_CREAT | os.O_EXCL,
    "O_NOFOLLOW": os.O_NOFOLLOW,
    "O_NOATIME": os.O_NOATIME,
    "O_DIRECT": os.O_DIRECT,
    "O_APPEND": os.O_APPEND,
    "O_NOCTTY": os.O_NOCTTY,
    "O_ASYNC": os.O_ASYNC,
    "__FMODE_EXEC": 0x20,
    "all": 0xFFFFFFFF & ~os.O_ACCMODE & ~os.O_TRUNC,
}
_MAY_PASS = os.O_ACCMODE | os.O_TRUNC | os.O_NONBLOCK | os.O_SYNC


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("flags", _FLAGS.values(), ids=_FLAGS)
def test_only_known_flags_reach_the_source(tree: Tree, flags: int, writeback: bool) -> None:
    tree.writeback = writeback
    for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        passed = tree.open_flags(mode | flags)
        assert not passed & ~_MAY_PASS
        assert passed & os.O_ACCMODE == (os.O_RDWR if writeback and mode == os.O_WRONLY else mode)
    assert tree.open_flags(os.O_RDWR | os.O_TRUNC | os.O_SYNC) == os.O_RDWR | os.O_TRUNC | os.O_SYNC


@pytest.mark.parametrize("flags", _FLAGS.values(), ids=_FLAGS)
def test_an_open_is_what_it_is_whatever_else_the_flags_say(tree: Tree, source: Path, flags: int) -> None:
    nodeid = find(tree, b"file").nodeid
    before = sorted(source.rglob("*"))
    handle = tree.files.get(tree.open(ME, nodeid, os.O_RDWR | flags, 0).fh, nodeid)
    has = fcntl.fcntl(handle.fd, fcntl.F_GETFL)
    assert not has & (os.O_PATH | os.O_DIRECT | os.O_APPEND | os.O_NOATIME | os.O_ASYNC)
    assert os.pread(handle.fd, 4, 0) == b"0123"
    assert os.pwrite(handle.fd, b"ab", 0) == 2
    assert sorted(source.rglob("*")) == before
    assert (source / "file").read_bytes() == b"ab23456789"


@pytest.mark.parametrize("flags", [_FLAGS[name] for name in ("O_PATH", "O_DIRECTORY", "O_TMPFILE", "all")])
def test_what_is_created_is_a_file_whatever_the_flags_say(tree: Tree, source: Path, flags: int) -> None:
    entry, opened = tree.create(ME, ROOT_ID, b"new", os.O_RDWR | os.O_CREAT | flags, 0o644, 0, 0)
    handle = tree.files.get(opened.fh, entry.nodeid)
    assert os.pwrite(handle.fd, b"ab", 0) == 2
    assert stat.S_ISREG(entry.attr.mode)
    assert (source / "new").read_bytes() == b"ab"


# Extended attributes


_OTHERS = (b"system.", b"system.nfs4_acl", b"system.cifs_acl", b"system.data", b"system.posix_acl_accessx")
_LISTED = ["user.x", "system.nfs4_acl", "system.posix_acl_access", "trusted.x", "system.cifs_acl", "security.x"]


@pytest.mark.parametrize("ctx", [ME, _USER], ids=["root", "user"])
@pytest.mark.parametrize("posix_acl", [True, False])
@pytest.mark.parametrize("name", _OTHERS)
def test_other_names_in_system_are_not_supported(
    make: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch, name: bytes, posix_acl: bool, ctx: Context
) -> None:
    tree = make(posix_acl=posix_acl)
    nodeid = find(tree, b"file").nodeid
    for call in ("getxattr", "setxattr", "removexattr"):
        monkeypatch.setattr(os, call, lambda *_: pytest.fail("it reached the source"))
    with raises(errno.ENOTSUP):
        tree.getxattr(ctx, nodeid, name)
    with raises(errno.ENOTSUP):
        tree.setxattr(ctx, nodeid, name, b"x", 0, 0)
    with raises(errno.ENOTSUP):
        tree.removexattr(ctx, nodeid, name)


@pytest.mark.parametrize("posix_acl", [True, False])
@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default"])
def test_access_lists_reach_the_source_where_they_are_enforced(
    make: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch, name: bytes, posix_acl: bool
) -> None:
    tree = make(posix_acl=posix_acl)
    nodeid = find(tree, b"file").nodeid
    reached: list[str] = []
    for call in ("getxattr", "setxattr", "removexattr"):
        monkeypatch.setattr(os, call, lambda *_, call=call: reached.append(call))
    for ask in (
        lambda: tree.getxattr(ME, nodeid, name),
        lambda: tree.setxattr(ME, nodeid, name, b"x", 0, 0),
        lambda: tree.removexattr(ME, nodeid, name),
    ):
        if posix_acl:
            ask()
        else:
            with raises(errno.ENOTSUP):
                ask()
    assert reached == (["getxattr", "setxattr", "removexattr"] if posix_acl else [])


@pytest.mark.parametrize(
    ("ctx", "posix_acl", "hidden"),
    [
        (Context(1, 0, 0, 1), True, {"nfs4_acl", "cifs_acl"}),
        (Context(1, 0, 0, 1), False, {"nfs4_acl", "cifs_acl", "posix_acl_access"}),
        (_USER, True, {"nfs4_acl", "cifs_acl", "trusted.x"}),
        (_USER, False, {"nfs4_acl", "cifs_acl", "posix_acl_access", "trusted.x"}),
    ],
)
def test_what_a_list_hides(
    make: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch, ctx: Context, posix_acl: bool, hidden: set[str]
) -> None:
    tree = make(posix_acl=posix_acl)
    nodeid = find(tree, b"file").nodeid
    monkeypatch.setattr(os, "listxattr", lambda path: _LISTED)
    shown = [name for name in _LISTED if name.removeprefix("system.") not in hidden]
    assert tree.listxattr(ctx, nodeid) == [name.encode() for name in shown]


@needs_root
def test_trusted_attributes_are_shown_to_root_alone(tree: Tree, source: Path) -> None:
    try:
        os.setxattr(source / "file", "trusted.x", b"x")
    except OSError as error:
        pytest.skip(f"the temporary directory has no trusted attributes: {error}")
    os.setxattr(source / "file", "user.x", b"x")
    nodeid = find(tree, b"file").nodeid
    assert set(tree.listxattr(Context(1, 0, 0, 1), nodeid)) == {b"trusted.x", b"user.x"}
    assert tree.listxattr(_USER, nodeid) == [b"user.x"]
    assert tree.listxattr(Context(1, 1000, 0, 1), nodeid) == [b"user.x"]


# Creating by an access list's leave


@needs_root
@pytest.mark.parametrize("groups", [(), (4343,)])
def test_the_kernel_knows_who_may_create(make: Callable[..., Tree], source: Path, groups: tuple[int, ...]) -> None:
    """It has checked access lists and all groups; the one group that it names need not be why the caller may."""
    source.chmod(0o750)
    tree = make()
    tree.init(Agreement(minor=45, flags=c.FUSE_DONT_MASK | c.FUSE_CREATE_SUPP_GROUP), None)
    ctx = Context(1, 65534, 65533, 1, groups)

    def work() -> None:
        tree.mkdir(ctx, ROOT_ID, b"directory", 0o755, 0)
        tree.create(ctx, ROOT_ID, b"created", os.O_RDWR, 0o644, 0, 0)
        tree.symlink(ctx, ROOT_ID, b"symlink", b"x")
        tree.mknod(ctx, ROOT_ID, b"made", stat.S_IFIFO | 0o644, 0, 0)

    in_thread(work)
    for name in ("directory", "created", "symlink", "made"):
        st = (source / name).lstat()
        assert (st.st_uid, st.st_gid) == (65534, 65533)


@needs_root
def test_without_the_kernels_checks_the_sources_decide(make: Callable[..., Tree], source: Path) -> None:
    source.chmod(0o750)
    tree = make(default_permissions=False)

    def work() -> None:
        with raises(errno.EACCES):
            tree.mkdir(_USER, ROOT_ID, b"new", 0o755, 0)
        with raises(errno.EACCES):
            tree.create(_USER, ROOT_ID, b"new", os.O_RDWR, 0o644, 0, 0)

    in_thread(work)
    assert not (source / "new").exists()


# Devices


def test_inode_numbers_of_any_number_of_devices_have_64_bits(tree: Tree) -> None:
    root = tree.inodes.root
    assert tree.ino_mask(root.key) == root.ino_mask == 0
    masks = [tree.ino_mask((1, 9999, minor, 0)) for minor in range((1 << 16) + 100)]
    assert all(0 <= mask < 1 << 64 and mask % (1 << 48) == 0 for mask in masks)
    assert len(set(masks)) == 1 << 16
    assert masks[0] == tree.ino_mask((2, 9999, 0, 7)) == 1 << 48
