"""Extended attributes, access lists, inode flags."""

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NOATIME_FL,
    FS_NODUMP_FL,
    get_flags,
    getxattr_size,
    listxattr_size,
    opened,
    set_flags,
    umask,
)
from .children import as_user
from .modes import Tree, attempt

_FS_IOC_GETVERSION = 0x80087601
_NOT_KNOWN_TO_ANYONE = 0x6677  # _IO('f', 0x77)


def _lists(path: Path) -> str:
    """getfacl, without the name."""
    words = ["getfacl", "--omit-header", "--absolute-names", "--numeric", str(path)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _set_lists(path: Path, *words: str) -> None:
    subprocess.run(["setfacl", *words, str(path)], check=True, capture_output=True)


def _populate(d: Path) -> None:
    (d / "file").touch()
    (d / "directory").mkdir()
    (d / "link").symlink_to("file")


@pytest.mark.core
@pytest.mark.needs("xattr", "names")
@pytest.mark.parametrize("name", ["file", "directory"])
def test_setting_getting_listing_removing(tree: Tree, name: str) -> None:
    two = "user.two" if "trusted" in tree.mode.lacks else "trusted.two"
    _populate(tree.mount)
    _populate(tree.plain)

    def act(d: Path) -> object:
        path = d / name
        found: list[object] = [attempt(lambda: os.getxattr(path, "user.missing"))]
        for attribute, value in (("user.one", b"first"), (two, b"\0\xff binary"), ("user.empty", b"")):
            found.append(attempt(lambda a=attribute, v=value: os.setxattr(path, a, v)))  # type: ignore[misc]
            found.append(attempt(lambda a=attribute: os.getxattr(path, a)))  # type: ignore[misc]
        found.append(attempt(lambda: os.setxattr(path, "user.one", b"x", os.XATTR_CREATE)))
        found.append(attempt(lambda: os.setxattr(path, "user.new", b"x", os.XATTR_REPLACE)))
        found.append(attempt(lambda: os.setxattr(path, "user.one", b"replaced", os.XATTR_REPLACE)))
        found.append(attempt(lambda: os.setxattr(path, "user.new", b"created", os.XATTR_CREATE)))
        found.append([(a, os.getxattr(path, a)) for a in sorted(os.listxattr(path))])
        found.append(attempt(lambda: os.removexattr(path, "user.one")))
        found.append(attempt(lambda: os.removexattr(path, "user.one")))
        found.append(sorted(os.listxattr(path)))
        return found

    found = tree.same(act)
    assert isinstance(found, list)
    assert found[0] in ("ENODATA", "EOPNOTSUPP")
    assert os.getxattr(tree.source / name, two) == b"\0\xff binary"
    assert sorted(os.listxattr(tree.source / name)) == sorted(os.listxattr(tree.mount / name))


@pytest.mark.core
@pytest.mark.needs("xattr", "trusted", "who lists")
@pytest.mark.parametrize("name", ["file", "directory"])
def test_trusted_attributes_are_not_for_everyone(tree: Tree, name: str) -> None:
    for d in (tree.mount, tree.plain):
        _populate(d)
        os.setxattr(d / name, "trusted.secret", b"x")
        os.setxattr(d / name, "user.open", b"x")
        (d / name).chmod(0o777)

    def act(path: Path) -> object:
        return (
            attempt(lambda: os.getxattr(path, "trusted.secret")),
            attempt(lambda: os.setxattr(path, "trusted.secret", b"y")),
            attempt(lambda: os.removexattr(path, "trusted.secret")),
            attempt(lambda: os.getxattr(path, "user.open")),
        )

    assert tree.same(lambda d: as_user(lambda: act(d / name))) == ("ENODATA", "EPERM", "EPERM", b"x")
    shown, plain = (as_user(lambda d=d: os.listxattr(d / name)) for d in (tree.mount, tree.plain))  # type: ignore[misc]
    if "trusted.secret" not in plain:  # btrfs lists them to everybody; a mount of it does not
        assert shown == plain
    if tree.shared.daemon is not None:
        assert shown == ["user.open"]
    assert tree.same(lambda d: sorted(os.listxattr(d / name))) == ["trusted.secret", "user.open"]


@pytest.mark.core
@pytest.mark.needs("xattr")
@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize("attribute", ["system.nothing", "system.nfs4_acl", "system.richacl"])
def test_other_names_in_system(tree: Tree, attribute: str, uid: int) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()
        (d / "file").chmod(0o666)

    def act(path: Path) -> object:
        return (
            attempt(lambda: os.getxattr(path, attribute)),
            attempt(lambda: os.setxattr(path, attribute, b"x")),
            attempt(lambda: os.removexattr(path, attribute)),
            os.listxattr(path),
        )

    found = tree.same(lambda d: as_user(lambda: act(d / "file"), uid))
    assert found == ("EOPNOTSUPP", "EOPNOTSUPP", "EOPNOTSUPP", [])


@pytest.mark.core
@pytest.mark.needs("xattr", "trusted", "names")
def test_attributes_of_a_symlink(tree: Tree) -> None:
    _populate(tree.mount)
    _populate(tree.plain)

    def act(d: Path) -> object:
        path = d / "link"
        return (
            attempt(lambda: os.setxattr(path, "trusted.link", b"the link's", follow_symlinks=False)),
            attempt(lambda: os.getxattr(path, "trusted.link", follow_symlinks=False)),
            attempt(lambda: os.listxattr(path, follow_symlinks=False)),
            attempt(lambda: os.setxattr(path, "user.link", b"x", follow_symlinks=False)),
            attempt(lambda: os.listxattr(path)),
            attempt(lambda: os.removexattr(path, "trusted.link", follow_symlinks=False)),
        )

    found = tree.same(act)
    assert isinstance(found, tuple)
    assert found[:5] == (None, b"the link's", ["trusted.link"], "EPERM", [])


@pytest.mark.core
@pytest.mark.needs("xattr")
def test_sizes_of_values(tree: Tree) -> None:
    (tree.mount / "file").touch()
    (tree.plain / "file").touch()

    def act(d: Path) -> object:
        path, found = d / "file", []
        for size in (0, 1, 1000, 3000, 60 << 10, 64 << 10):
            value = bytes(range(256)) * 256
            result = attempt(lambda size=size, value=value: os.setxattr(path, "user.large", value[:size]))  # type: ignore[misc]
            found.append((result, os.getxattr(path, "user.large") == value[:size]))
        return found

    found = tree.same(act)
    assert isinstance(found, list)
    assert found[:2] == [(None, True)] * 2


@pytest.mark.needs("xattr", "names")
def test_sizes_of_buffers(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "file").touch()
        os.setxattr(d / "file", "user.name", b"0123456789")
    for size, expected in ((0, 10), (9, "ERANGE"), (10, 10), (11, 10), (65536, 10)):
        assert tree.same(lambda d, size=size: getxattr_size(d / "file", "user.name", size)) == expected  # type: ignore[misc]
    for size, expected in ((0, 10), (9, "ERANGE"), (10, 10), (65536, 10)):
        assert tree.same(lambda d, size=size: listxattr_size(d / "file", size)) == expected  # type: ignore[misc]
    assert tree.same(lambda d: os.setxattr(d / "file", "user." + "x" * 300, b"")) == "ERANGE"
    assert tree.same(lambda d: os.setxattr(d / "file", "nonsense", b"")) == "EOPNOTSUPP"
    assert tree.same(lambda d: os.setxattr(d / "file", "user.", b"")) == "EINVAL"


@pytest.mark.needs("xattr", "names")
def test_attributes_of_open_and_unlinked_files(tree: Tree) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.setxattr(fd, "user.open", b"set")
        assert os.getxattr(tree.source / "file", "user.open") == b"set"
        (tree.mount / "file").unlink()
        os.setxattr(fd, "user.open", b"set later")
        assert os.getxattr(fd, "user.open") == b"set later"
        assert os.listxattr(fd) == ["user.open"]
        os.removexattr(fd, "user.open")
        assert os.listxattr(fd) == []


@pytest.mark.needs("xattr", "file capabilities")
def test_writing_takes_capabilities(tree: Tree) -> None:
    capability = bytes.fromhex("0000000200040000000000000000000000000000")

    def act(d: Path, change: Callable[[Path], object]) -> object:
        (d / "file").write_bytes(b"content")
        os.setxattr(d / "file", "security.capability", capability)
        before = os.listxattr(d / "file")
        change(d / "file")
        return before, os.listxattr(d / "file")

    def write(path: Path) -> None:
        with opened(path) as fd:
            os.write(fd, b"x")

    for change in (write, lambda path: os.truncate(path, 3), lambda path: os.chown(path, 1, 1)):
        assert tree.same(lambda d, change=change: act(d, change)) == (["security.capability"], [])  # type: ignore[misc]


def test_no_attributes_where_there_are_none(tree: Tree) -> None:
    """no_xattr hides those of the source too; the other rows show them."""
    (tree.source / "file").touch()
    os.setxattr(tree.source / "file", "user.name", b"value")
    shown = attempt(lambda: os.getxattr(tree.mount / "file", "user.name"))
    listed = attempt(lambda: os.listxattr(tree.mount / "file"))
    if "xattr" in tree.mode.lacks:
        assert (shown, listed) == ("EOPNOTSUPP", "EOPNOTSUPP")
        assert attempt(lambda: os.setxattr(tree.mount / "file", "user.name", b"")) == "EOPNOTSUPP"
        assert attempt(lambda: os.removexattr(tree.mount / "file", "user.name")) == "EOPNOTSUPP"
        assert os.getxattr(tree.source / "file", "user.name") == b"value"
    elif "names" in tree.mode.lacks:
        assert (shown, listed) == ("ENODATA", [])
    else:
        assert (shown, listed) == (b"value", ["user.name"])


@pytest.mark.core
@pytest.mark.needs("xattr")
def test_access_lists(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "file").touch(0o640)
        (d / "directory").mkdir()
        found = []
        for words in (("-m", "u:65534:rw,g:1234:r"), ("-m", "m::r"), ("-x", "g:1234"), ("-b",)):
            _set_lists(d / "file", *words)
            found.append((_lists(d / "file"), (d / "file").stat().st_mode))
        _set_lists(d / "file", "-m", "u:1:rwx")
        os.chmod(d / "file", 0o705)
        found.append((_lists(d / "file"), (d / "file").stat().st_mode))
        _set_lists(d / "directory", "-m", "d:u:65534:rwx,d:o::-")
        found.append((_lists(d / "directory"), (d / "directory").stat().st_mode))
        return found

    found = tree.same(act)
    if found != "EOPNOTSUPP":
        assert isinstance(found, list)
        for name in ("file", "directory"):
            assert _lists(tree.mount / name) == _lists(tree.source / name)
        assert "user:65534:rw-" in found[0][0]


@pytest.mark.core
@pytest.mark.needs("xattr")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_default_access_list_overrides_the_umask(tree: Tree, mask: int) -> None:
    def act(d: Path) -> object:
        _set_lists(d, "-m", "d:u::rwx,d:u:65534:rwx,d:g::rwx,d:o::r-x")
        with umask(mask):
            (d / "file").touch(0o666)
            (d / "directory").mkdir(0o777)
            os.mkfifo(d / "fifo", 0o666)
            with opened(d, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
                unnamed = os.fstat(fd).st_mode
        return [(_lists(d / name), (d / name).stat().st_mode) for name in ("file", "directory", "fifo")], unnamed

    found = tree.same(act)
    assert isinstance(found, tuple)
    assert found[0][0][1] & 0o777 == 0o664, "the list's, not the umask's"


@pytest.mark.core
@pytest.mark.needs("xattr")
def test_access_lists_are_enforced(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        for name in ("granted", "denied", "group"):
            (d / name).write_bytes(b"content")
            os.chmod(d / name, 0o644 if name == "denied" else 0o600)
        _set_lists(d / "granted", "-m", "u:65534:rw")
        _set_lists(d / "denied", "-m", "u:65534:-")
        _set_lists(d / "group", "-m", "g:4242:r")
    assert tree.same(lambda d: as_user(lambda: (d / "granted").write_bytes(b"more"))) == 4
    assert tree.same(lambda d: as_user(lambda: (d / "granted").read_bytes(), uid=1234)) == "EACCES"
    assert tree.same(lambda d: as_user(lambda: (d / "denied").read_bytes())) == "EACCES"
    assert tree.same(lambda d: as_user(lambda: (d / "denied").read_bytes(), uid=1234)) == b"content"
    assert tree.same(lambda d: as_user(lambda: (d / "group").read_bytes(), groups=[4242])) == b"content"
    assert tree.same(lambda d: as_user(lambda: (d / "group").write_bytes(b"x"), groups=[4242])) == "EACCES"
    assert tree.same(lambda d: as_user(lambda: (d / "group").read_bytes())) == "EACCES"


@pytest.mark.needs("xattr")
def test_setting_an_access_list_may_cost_sgid(tree: Tree) -> None:
    def act(d: Path) -> object:
        (d / "file").touch()
        os.chown(d / "file", 65534, 4242)
        os.chmod(d / "file", 0o2755)
        as_user(lambda: _set_lists(d / "file", "-m", "u:1:r"))
        return (d / "file").stat().st_mode & 0o7000

    assert tree.same(act) == 0


@pytest.mark.core
@pytest.mark.parametrize("name", ["file", "directory"])
def test_inode_flags(tree: Tree, name: str) -> None:
    _populate(tree.mount)
    _populate(tree.plain)

    def act(d: Path) -> object:
        with opened(d / name, os.O_RDONLY) as fd:
            base = get_flags(fd)
            found = []
            for flags in (FS_NODUMP_FL, FS_NODUMP_FL | FS_NOATIME_FL, 0):
                set_flags(fd, base | flags)
                found.append(get_flags(fd))
        return found

    found = tree.same(act)
    assert isinstance(found, list) or found in ("ENOTTY", "EOPNOTSUPP")


@pytest.mark.core
def test_chattr_and_lsattr(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"content")
    (tree.plain / "file").write_bytes(b"content")

    def act(d: Path) -> object:
        changed = subprocess.run(["chattr", "+d", str(d / "file")], check=False, capture_output=True).returncode
        shown = subprocess.run(["lsattr", "-l", str(d / "file")], check=False, capture_output=True, text=True).stdout
        return changed, shown.removeprefix(str(d / "file")).split()

    assert isinstance(tree.same(act), tuple)


@pytest.mark.needs("append-only", "protecting flags")
def test_flags_that_protect(tree: Tree) -> None:
    _populate(tree.mount)
    _populate(tree.plain)

    def act(d: Path) -> object:
        with opened(d / "file", os.O_RDONLY) as fd:
            base = get_flags(fd)
            try:
                set_flags(fd, base | FS_IMMUTABLE_FL)
                immutable = (
                    attempt(lambda: (d / "file").write_bytes(b"x")),
                    attempt(lambda: os.unlink(d / "file")),
                    attempt(lambda: os.rename(d / "file", d / "other")),
                    attempt(lambda: os.link(d / "file", d / "other")),
                    attempt(lambda: os.chmod(d / "file", 0)),
                )
                set_flags(fd, base | FS_APPEND_FL)
                with opened(d / "file", os.O_WRONLY | os.O_APPEND) as other:
                    appended = os.write(other, b"appended")
                overwritten = attempt(lambda: os.open(d / "file", os.O_WRONLY))
            finally:
                set_flags(fd, base)
        return immutable, appended, overwritten, (d / "file").read_bytes()

    assert tree.same(act) == (("EPERM",) * 5, 8, "EPERM", b"appended")


def test_flags_of_others_files(tree: Tree) -> None:
    (tree.mount / "file").touch()
    (tree.plain / "file").touch()

    def act(d: Path, flags: int) -> None:
        with opened(d / "file", os.O_RDONLY) as fd:
            set_flags(fd, get_flags(fd) | flags)

    assert tree.same(lambda d: as_user(lambda: act(d, FS_NODUMP_FL))) in ("EPERM", "EACCES")
    for d in (tree.mount, tree.plain):
        os.chown(d / "file", 65534, 65534)
    assert tree.same(lambda d: as_user(lambda: act(d, FS_IMMUTABLE_FL))) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: act(d, FS_NODUMP_FL))) is None


@pytest.mark.core
@pytest.mark.parametrize("number", [_FS_IOC_GETVERSION, _NOT_KNOWN_TO_ANYONE], ids=["GETVERSION", "unknown"])
@pytest.mark.parametrize("name", ["file", "directory"])
def test_other_ioctls_are_refused(tree: Tree, name: str, number: int) -> None:
    _populate(tree.mount)
    with opened(tree.mount / name, os.O_RDONLY) as fd:
        if tree.mode.name == "native" and number == _FS_IOC_GETVERSION:
            assert fcntl.ioctl(fd, number, bytes(8)) is not None
        else:
            with pytest.raises(OSError) as raised:  # noqa: PT011
                fcntl.ioctl(fd, number, bytes(8))
            assert raised.value.errno == errno.ENOTTY
