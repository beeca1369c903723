"""What stands before the shared directory: attributes under other names, cleared capabilities, labels of new files."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.filesystem import Context, FileSystem, SetAttr
from passthrough.fs.capability import CAPABILITY, ClearedCapability
from passthrough.fs.decorator import Decorator
from passthrough.fs.labels import SecurityLabels
from passthrough.fs.readonly import ReadOnly
from passthrough.fs.renamed import RenamedXattrs
from passthrough.fs.tree import Choice, Tree
from passthrough.fs.xattrmap import parse_map
from passthrough.protocol import constants as c
from passthrough.share import ACCESS_LISTS, before
from passthrough.share_options import ShareOptions
from tests.unit.helpers import ME, ROOT_ID, descriptors, raises

_ALL = ":map::user.virtiofs.:"
_USER = Context(1, 65534, 65534, 1)
_VALUE = bytes(20)
_ABOVE = b"user.virtiofs.security.capability"


def _renamed(tree: Tree, text: str) -> FileSystem:
    return before(tree, ShareOptions(xattrmap=parse_map(text)))


def _file(fs: FileSystem, name: bytes = b"file") -> int:
    return fs.lookup(ME, ROOT_ID, name).nodeid


def test_what_is_not_changed_costs_nothing(tree: Tree) -> None:
    fs = Decorator(tree)
    assert fs.read == tree.read
    assert (fs.flags, fs.required, fs.stack_depth) == (tree.flags, tree.required, tree.stack_depth)
    assert type(ReadOnly(tree)).getattr is FileSystem.getattr
    assert before(tree, ShareOptions()) is tree


def test_the_order_of_what_stands_before(tree: Tree) -> None:
    fs = before(tree, ShareOptions(xattrmap=parse_map(_ALL), security_label=True), readonly=True)
    order = []
    while isinstance(fs, Decorator):
        order.append(type(fs))
        fs = fs.fs
    assert order == [ReadOnly, SecurityLabels, RenamedXattrs, ClearedCapability]
    assert fs is tree


def test_names_go_to_the_host_and_come_back(tree: Tree, source: Path) -> None:
    fs = _renamed(tree, _ALL)
    nodeid = _file(fs)
    fs.setxattr(ME, nodeid, b"security.selinux", b"guest", 0, 0)
    assert os.listxattr(source / "file") == ["user.virtiofs.security.selinux"]
    os.setxattr(source / "file", "user.host", b"host")
    os.setxattr(source / "file", "user.virtiofs.user.host", b"guest")
    assert fs.getxattr(ME, nodeid, b"user.host") == b"guest"
    assert sorted(fs.listxattr(ME, nodeid)) == [b"security.selinux", b"user.host"]
    fs.removexattr(ME, nodeid, b"user.host")
    assert os.getxattr(source / "file", "user.host") == b"host"
    with raises(errno.ENODATA):
        fs.getxattr(ME, nodeid, b"user.host")
    with raises(errno.ENODATA):
        fs.getxattr(ME, nodeid, b"user.virtiofs.security.selinux")


def test_refused_names_are_told_apart(tree: Tree, source: Path) -> None:
    fs = _renamed(tree, ":bad:all:user.bad:user.bad: :unsupported:all:user.un:user.un: :ok:all:::")
    nodeid = _file(fs)
    for name in (b"user.bad", b"user.un", b"user.ok"):
        os.setxattr(source / "file", name, b"host")
    assert fs.listxattr(ME, nodeid) == [b"user.ok"]
    for name, get, change in ((b"user.bad", errno.ENODATA, errno.EPERM), (b"user.un", errno.ENOTSUP, errno.ENOTSUP)):
        with raises(get):
            fs.getxattr(ME, nodeid, name)
        with raises(change):
            fs.setxattr(ME, nodeid, name, b"guest", 0, 0)
        with raises(change):
            fs.removexattr(ME, nodeid, name)
        assert os.getxattr(source / "file", name) == b"host"


def test_names_that_are_too_long_on_the_host(tree: Tree) -> None:
    """A guest that is told ERANGE by getxattr(2) would try a larger buffer, for ever."""
    fs = _renamed(tree, _ALL)
    nodeid = _file(fs)
    longest, longer = b"user." + b"x" * 236, b"user." + b"x" * 237
    fs.setxattr(ME, nodeid, longest, b"value", 0, 0)
    assert fs.listxattr(ME, nodeid) == [longest]
    with raises(errno.ERANGE):
        fs.setxattr(ME, nodeid, longer, b"value", 0, 0)
    for ask in (fs.getxattr, fs.removexattr):
        with raises(errno.ENODATA):
            ask(ME, nodeid, longer)


@pytest.mark.parametrize("acl", [b"system.posix_acl_access", b"system.posix_acl_default", b"system.other"])
def test_what_the_system_names_is_not_stored_under_another_name(tree: Tree, source: Path, acl: bytes) -> None:
    """It would be shown, and nobody would enforce it."""
    fs = _renamed(tree, _ALL)
    nodeid = _file(fs)
    os.setxattr(source / "file", b"user.virtiofs." + acl, b"x")
    assert fs.listxattr(ME, nodeid) == []
    for attempt in (
        lambda: fs.setxattr(ME, nodeid, acl, b"x", 0, 0),
        lambda: fs.getxattr(ME, nodeid, acl),
        lambda: fs.removexattr(ME, nodeid, acl),
    ):
        with raises(errno.ENOTSUP):
            attempt()


@pytest.mark.parametrize("name", [b"security.capability", b"trusted.overlay.opaque"])
def test_what_takes_a_right_has_no_other_name_that_takes_none(tree: Tree, source: Path, name: bytes) -> None:
    """The map does not forbid the host's name: anybody who owns a file may set user.*."""
    fs = _renamed(tree, ":prefix:all:security.:user.virtiofs.: :prefix:all:trusted.:user.virtiofs.: :ok:all:::")
    nodeid = _file(fs)
    fs.setxattr(ME, nodeid, name, b"root's", 0, 0)
    other = b"user.virtiofs." + name
    assert os.getxattr(source / "file", other) == b"root's"
    with raises(errno.EPERM):
        fs.setxattr(ME, nodeid, other, b"anybody's", 0, 0)
    with raises(errno.EPERM):
        fs.removexattr(ME, nodeid, other)
    with raises(errno.ENODATA):
        fs.getxattr(ME, nodeid, other)
    fs.setxattr(ME, nodeid, b"user.virtiofs.other", b"x", 0, 0)
    assert fs.getxattr(ME, nodeid, name) == b"root's"


def test_trusted_is_asked_of_the_guests_names(tree: Tree, source: Path) -> None:
    fs = _renamed(tree, "overlay")
    nodeid = _file(fs)
    os.setxattr(source / "file", "user.virtiofs.trusted.overlay.opaque", b"y")
    assert fs.listxattr(ME, nodeid) == [b"trusted.overlay.opaque"]
    assert fs.listxattr(_USER, nodeid) == []
    fs = _renamed(tree, "selinux")
    os.setxattr(source / "file", "trusted.virtiofs.security.selinux", b"label")
    assert b"security.selinux" in fs.listxattr(_USER, nodeid)


def test_no_xattr_says_so_first(make: Callable[..., Tree]) -> None:
    fs = _renamed(make(xattr=False), _ALL)
    with raises(errno.ENOSYS):
        fs.listxattr(ME, ROOT_ID)


# Capabilities

_CHANGES: dict[str, Callable[[FileSystem, int, int], object]] = {
    "write": lambda fs, nodeid, fh: fs.write(ME, nodeid, fh, 0, [memoryview(b"x")], 0, 0),
    "write back": lambda fs, nodeid, fh: fs.write(ME, nodeid, fh, 0, [memoryview(b"x")], c.FUSE_WRITE_CACHE, 0),
    "truncate": lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(c.FATTR_SIZE, size=3)),
    "chown": lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(c.FATTR_UID, uid=0)),
    "chgrp": lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(c.FATTR_GID, gid=0)),
    "chown to nobody else": lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(0)),
    "O_TRUNC": lambda fs, nodeid, fh: fs.open(ME, nodeid, os.O_WRONLY | os.O_TRUNC, 0),
    "fallocate": lambda fs, nodeid, fh: fs.fallocate(ME, nodeid, fh, 0, 100, 0),
    "copy_file_range": lambda fs, nodeid, fh: fs.copy_file_range(ME, nodeid, fh, 0, nodeid, fh, 5, 3, 0),
}


def _attrs(valid: int, **values: int) -> SetAttr:
    return SetAttr(valid, *(0,) * 12)._replace(**values)


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("text", [_ALL, ":map:security.:user.virtiofs.:"])
def test_a_change_takes_the_capabilities_that_have_another_name(
    tree: Tree, source: Path, change: str, text: str
) -> None:
    fs = _renamed(tree, text)
    nodeid = _file(fs)
    fh = fs.open(ME, nodeid, os.O_RDWR, 0).fh
    fs.setxattr(ME, nodeid, CAPABILITY, _VALUE, 0, 0)
    os.setxattr(source / "file", "user.virtiofs.other", b"stays")
    assert os.getxattr(source / "file", _ABOVE) == _VALUE
    _CHANGES[change](fs, nodeid, fh)
    assert os.listxattr(source / "file") == ["user.virtiofs.other"]
    _CHANGES[change](fs, nodeid, fh)  # nothing is left to clear, and that is no error


@pytest.mark.parametrize(
    "harmless",
    [
        lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(c.FATTR_MODE, mode=0o755)),
        lambda fs, nodeid, fh: fs.setattr(ME, nodeid, _attrs(c.FATTR_MTIME | c.FATTR_MTIME_NOW)),
        lambda fs, nodeid, fh: fs.open(ME, nodeid, os.O_RDWR, 0),
        lambda fs, nodeid, fh: fs.read(ME, nodeid, fh, 0, 10, 0),
    ],
    ids=["chmod", "utimes", "open", "read"],
)
def test_what_takes_none(tree: Tree, harmless: Callable[[FileSystem, int, int], object]) -> None:
    fs = _renamed(tree, _ALL)
    nodeid = _file(fs)
    fh = fs.open(ME, nodeid, os.O_RDWR, 0).fh
    fs.setxattr(ME, nodeid, CAPABILITY, _VALUE, 0, 0)
    harmless(fs, nodeid, fh)
    assert fs.getxattr(ME, nodeid, CAPABILITY) == _VALUE


def test_capabilities_that_cannot_be_taken_forbid_the_change(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = _renamed(tree, _ALL)
    nodeid = _file(fs)
    fh = fs.open(ME, nodeid, os.O_RDWR, 0).fh

    def refuse(number: int) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    for number in (errno.EACCES, errno.EPERM, errno.EIO):
        fs.setxattr(ME, nodeid, CAPABILITY, _VALUE, 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "removexattr", refuse(number))
            with raises(number):
                fs.write(ME, nodeid, fh, 0, [memoryview(b"x")], 0, 0)
        assert os.pread(tree.files.get(fh, nodeid).fd, 10, 0) == b"0123456789"
        fs.removexattr(ME, nodeid, CAPABILITY)
        if number != errno.EIO:  # and where there are none, permission to remove them is not needed
            with monkeypatch.context() as patch:
                patch.setattr(os, "removexattr", refuse(number))
                assert fs.write(ME, nodeid, fh, 0, [memoryview(b"0")], 0, 0) == 1


def test_a_symlink_s_owner_can_be_changed(tree: Tree) -> None:
    """It can have no user.* at all, and so no capabilities."""
    fs = _renamed(tree, _ALL)
    fs.setattr(ME, _file(fs, b"link"), _attrs(c.FATTR_UID, uid=0))


@pytest.mark.parametrize("text", ["selinux", "overlay", ":ok:all:::", ":bad:all:::", ":map:user.:user.x.:"])
def test_capabilities_under_their_own_name_are_the_kernel_s(tree: Tree, text: str) -> None:
    fs = before(tree, ShareOptions(xattrmap=parse_map(text)))
    assert isinstance(fs, RenamedXattrs)
    assert fs.fs is tree


def test_the_kernel_does_not_write_what_must_be_seen(make: Callable[..., Tree]) -> None:
    """Whatever the tree was told: there is no agreement on it."""
    for choice in (Choice.AUTO, Choice.ON):
        tree = make(passthrough=choice)
        assert tree.flags & c.FUSE_PASSTHROUGH
        fs = before(tree, ShareOptions(xattrmap=parse_map(_ALL)))
        assert not (fs.flags | fs.required) & c.FUSE_PASSTHROUGH
        tree = make(passthrough=choice, writeout=True)
        assert not (tree.flags | tree.required) & c.FUSE_PASSTHROUGH


# Labels

_LABELS = ((b"user.label", b"of the new"), (b"user.other", b"too"))
_REFUSED = ((b"user.label", b"of the new"), (b"user.bad", b"refused"))
_MAKE: dict[str, Callable[[FileSystem, Context, bytes], object]] = {
    "create": lambda fs, ctx, name: fs.create(ctx, ROOT_ID, name, os.O_RDWR, 0o644, 0, 0),
    "mknod": lambda fs, ctx, name: fs.mknod(ctx, ROOT_ID, name, 0o100644, 0, 0),
    "mkdir": lambda fs, ctx, name: fs.mkdir(ctx, ROOT_ID, name, 0o755, 0),
}
_MAP = ":bad:all:user.bad:user.bad: :prefix:all:user.:user.guest.: :bad:all:::"


def _labelled(labels: tuple[tuple[bytes, bytes], ...]) -> Context:
    ctx = Context(1, 0, 0, 1)
    ctx.labels = labels
    return ctx


@pytest.fixture
def labels(tree: Tree) -> FileSystem:
    """The tree with labels, and a map below them."""
    return before(tree, ShareOptions(xattrmap=parse_map(_MAP), security_label=True))


@pytest.mark.parametrize("how", _MAKE)
def test_what_is_made_has_its_labels_when_it_is_answered(labels: FileSystem, source: Path, how: str) -> None:
    _MAKE[how](labels, _labelled(_LABELS), b"new")
    found = {name: os.getxattr(source / "new", name) for name in os.listxattr(source / "new")}
    assert found == {"user.guest.user.label": b"of the new", "user.guest.user.other": b"too"}
    _MAKE[how](labels, _labelled(()), b"bare")
    assert os.listxattr(source / "bare") == []


@pytest.mark.parametrize("how", _MAKE)
def test_what_cannot_be_labelled_goes_again(labels: FileSystem, tree: Tree, source: Path, how: str) -> None:
    for _ in range(2):
        before_it = (descriptors(), len(tree.inodes), len(tree.files))
        with raises(errno.EPERM):
            _MAKE[how](labels, _labelled(_REFUSED), b"new")
        assert not (source / "new").exists()
        assert (descriptors(), len(tree.inodes), len(tree.files)) == before_it


def test_a_symlink_has_labels_that_a_symlink_can_have(labels: FileSystem, tree: Tree, source: Path) -> None:
    with raises(errno.EPERM):  # user.* it cannot
        labels.symlink(_labelled(_LABELS), ROOT_ID, b"new", b"target")
    assert not os.path.lexists(source / "new")
    plain = before(tree, ShareOptions(xattrmap=parse_map("selinux"), security_label=True))
    plain.symlink(_labelled(((b"security.selinux", b"l"),)), ROOT_ID, b"new", b"target")
    assert os.getxattr(source / "new", "trusted.virtiofs.security.selinux", follow_symlinks=False) == b"l"


def test_a_file_without_a_name_is_labelled_too(labels: FileSystem, tree: Tree) -> None:
    entry, opened = labels.tmpfile(_labelled(_LABELS), ROOT_ID, b"/", os.O_RDWR, 0o600, 0, 0)
    assert sorted(os.listxattr(tree.files.get(opened.fh, entry.nodeid).fd)) == [
        "user.guest.user.label",
        "user.guest.user.other",
    ]
    held = (descriptors(), len(tree.inodes), len(tree.files))
    with raises(errno.EPERM):
        labels.tmpfile(_labelled(_REFUSED), ROOT_ID, b"/", os.O_RDWR, 0o600, 0, 0)
    assert (descriptors(), len(tree.inodes), len(tree.files)) == held


def test_what_somebody_else_put_there_meanwhile_stays(
    labels: FileSystem, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setxattr = os.setxattr

    def replace(*arguments: object) -> None:
        setxattr(*arguments)  # type: ignore[arg-type]
        (source / "another").write_text("somebody else's")
        os.rename(source / "another", source / "new")

    monkeypatch.setattr(os, "setxattr", replace)
    with raises(errno.EPERM):
        labels.mknod(_labelled(_REFUSED), ROOT_ID, b"new", 0o100644, 0, 0)
    assert (source / "new").read_text() == "somebody else's"


def test_what_exists_is_not_labelled(labels: FileSystem, source: Path) -> None:
    with raises(errno.EEXIST):
        labels.mknod(_labelled(_LABELS), ROOT_ID, b"file", 0o100644, 0, 0)
    with raises(errno.ESTALE):
        labels.create(_labelled(_LABELS), ROOT_ID, b"file", os.O_RDWR, 0o644, 0, 0)
    assert os.listxattr(source / "file") == []
    assert (source / "file").exists()


def test_a_label_is_an_attribute_like_any_other(labels: FileSystem, source: Path) -> None:
    """A guest gains no name by it that it could not set otherwise."""
    for name in (b"user.bad", b"security.x", b"system.posix_acl_access", b"trusted.x"):
        with raises(errno.EPERM):
            labels.mkdir(_labelled(((name, b"x"),)), ROOT_ID, b"new", 0o755, 0)
    assert not (source / "new").exists()


def test_a_kernel_must_have_what_was_asked_for(tree: Tree) -> None:
    assert not tree.required & (ACCESS_LISTS | c.FUSE_SECURITY_CTX)
    assert before(tree, ShareOptions(security_label=True)).required & c.FUSE_SECURITY_CTX
    assert before(tree, ShareOptions(posix_acl=False)).required & ACCESS_LISTS == 0
    assert before(tree, ShareOptions(posix_acl=True)).required & ACCESS_LISTS == ACCESS_LISTS


def test_the_first_message_says_what_is_missing(tree: Tree) -> None:
    from passthrough.protocol.negotiation import FeatureError, InitIn, Wishes, negotiate

    fs = before(tree, ShareOptions(security_label=True, posix_acl=True))
    wishes = Wishes(flags=fs.flags, required=fs.required)
    for flag, name in (
        (c.FUSE_SECURITY_CTX, "SECURITY_CTX"),
        (c.FUSE_POSIX_ACL, "POSIX_ACL"),
        (c.FUSE_DONT_MASK, "DONT_MASK"),
        (c.FUSE_SETXATTR_EXT, "SETXATTR_EXT"),
    ):
        with pytest.raises(FeatureError, match=name):
            negotiate(InitIn(7, 45, 0, ((1 << 43) - 1) & ~flag), wishes)
    assert negotiate(InitIn(7, 45, 0, (1 << 43) - 1), wishes)
