"""Looking up: every type of file, every kind of name, and the errors of paths."""

import os
import socket
import stat
from pathlib import Path

import pytest

from .calls import directory_stream, opened
from .modes import Tree, facts


def _every_type(where: Path) -> None:
    (where / "regular").write_bytes(b"12345")
    (where / "directory").mkdir(mode=0o700)
    (where / "symlink").symlink_to("regular")
    (where / "dangling").symlink_to("nowhere")
    os.mkfifo(where / "fifo", 0o640)
    os.mknod(where / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(where / "character", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(where / "block", stat.S_IFBLK | 0o660, os.makedev(259, 0x12345))
    os.link(where / "regular", where / "hardlink")


@pytest.mark.core
def test_every_file_type_is_shown_as_it_is(tree: Tree) -> None:
    _every_type(tree.source)
    names = sorted(os.listdir(tree.source))
    assert sorted(os.listdir(tree.mount)) == names
    assert len(names) == 9
    for name in names:
        shown, real = (tree.mount / name).lstat(), (tree.source / name).lstat()
        assert facts(tree.mount / name) == facts(tree.source / name)
        assert (shown.st_blocks, shown.st_ctime_ns, shown.st_atime_ns) == (
            real.st_blocks,
            real.st_ctime_ns,
            real.st_atime_ns,
        )


@pytest.mark.core
def test_every_file_type_can_be_made_through_the_mount(tree: Tree) -> None:
    _every_type(tree.mount)
    _every_type(tree.plain)
    for name in os.listdir(tree.plain):
        made, plain = (tree.source / name).lstat(), (tree.plain / name).lstat()
        assert (made.st_mode, made.st_rdev, made.st_nlink) == (plain.st_mode, plain.st_rdev, plain.st_nlink), name
    assert (tree.source / "block").lstat().st_rdev == os.makedev(259, 0x12345)


def test_missing_names(tree: Tree) -> None:
    (tree.source / "file").touch()
    (tree.plain / "file").touch()
    assert tree.same(lambda d: os.stat(d / "none")) == "ENOENT"
    assert tree.same(lambda d: os.stat(d / "none/none")) == "ENOENT"
    assert tree.same(lambda d: os.stat(d / "file/none")) == "ENOTDIR"
    assert tree.same(lambda d: os.stat(f"{d}/file/")) == "ENOTDIR"
    assert tree.same(lambda d: os.open(d / "none", os.O_RDONLY)) == "ENOENT"
    assert tree.same(lambda d: os.unlink(d / "none")) == "ENOENT"
    assert tree.same(lambda d: os.rmdir(d / "none")) == "ENOENT"
    assert tree.same(lambda d: os.rename(d / "none", d / "other")) == "ENOENT"
    assert tree.same(lambda d: os.link(d / "none", d / "other")) == "ENOENT"
    assert tree.same(lambda d: os.mkdir(d / "none/below")) == "ENOENT"
    assert tree.same(lambda d: os.readlink(d / "file")) == "EINVAL"


def test_a_name_that_was_missing_is_found_once_it_is_there(tree: Tree) -> None:
    tree.compared = False
    assert not (tree.mount / "late").exists()
    (tree.source / "late").write_bytes(b"now")
    assert (tree.mount / "late").read_bytes() == b"now"


def test_symlink_loops(tree: Tree) -> None:
    def loop(d: Path) -> object:
        (d / "a").symlink_to("b")
        (d / "b").symlink_to("a")
        return os.stat(d / "a")

    assert tree.same(loop) == "ELOOP"


@pytest.mark.parametrize(
    "name",
    [
        b"x" * 255,
        "\u00e9".encode() * 127,
        b"\xff\xfe not utf-8 \x80",
        b"new\nline",
        b" leading and trailing ",
        b"back\\slash \"quote\" 'quote' $HOME `id` *?[",
        b"...",
        b"-rf",
        b"\x01\x7f",
        b"%s%n",
        b".fuse_hidden0000000100000001",
    ],
    ids=repr,
)
def test_names_of_any_bytes(tree: Tree, name: bytes) -> None:
    shown, real = os.path.join(os.fsencode(tree.mount), name), os.path.join(os.fsencode(tree.source), name)
    with opened(os.fsdecode(shown), os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        os.write(fd, name)
    assert os.listdir(os.fsencode(tree.source)) == [name] == os.listdir(os.fsencode(tree.mount))
    with open(real, "rb") as file:
        assert file.read() == name
    os.rename(shown, shown[:-1] + b"~")
    assert os.listdir(os.fsencode(tree.source)) == [name[:-1] + b"~"]
    os.unlink(shown[:-1] + b"~")
    assert os.listdir(os.fsencode(tree.source)) == []
    os.mkdir(shown)
    assert os.path.isdir(real)


def test_names_that_are_too_long(tree: Tree) -> None:
    long = "x" * 256
    assert tree.same(lambda d: os.stat(d / long)) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.mkdir(d / long)) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.open(d / long, os.O_CREAT | os.O_RDWR)) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.symlink("x", d / long)) == "ENAMETOOLONG"
    (tree.mount / "a").touch()
    (tree.plain / "a").touch()
    assert tree.same(lambda d: os.rename(d / "a", d / long)) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.link(d / "a", d / long)) == "ENAMETOOLONG"
    assert tree.same(lambda d: os.stat(f"{d}/{'y/' * 2048}")) == "ENAMETOOLONG"


def test_case_counts(tree: Tree) -> None:
    (tree.mount / "name").write_bytes(b"small")
    (tree.mount / "NAME").write_bytes(b"large")
    assert (tree.source / "name").read_bytes() == b"small"
    assert (tree.mount / "NAME").read_bytes() == b"large"


def test_deep_paths(tree: Tree) -> None:
    below = "/".join(["d"] * 150)
    (tree.mount / below).mkdir(parents=True)
    (tree.mount / below / "file").write_bytes(b"deep")
    assert (tree.source / below / "file").read_bytes() == b"deep"
    assert os.path.samefile(tree.mount / below / "/".join([".."] * 150), tree.mount)


@pytest.mark.core
def test_dot_and_dot_dot(tree: Tree) -> None:
    (tree.mount / "sub").mkdir()
    with directory_stream(tree.mount / "sub") as stream:
        listed = {entry.name: entry.ino for entry in stream.rest()}
    assert listed == {b".": (tree.mount / "sub").stat().st_ino, b"..": tree.mount.stat().st_ino}
    assert os.path.samefile(tree.mount / "sub" / "..", tree.mount)
    assert os.path.samefile(tree.mount / "sub" / ".", tree.mount / "sub")
    with opened(tree.mount / "sub", os.O_RDONLY) as fd:
        assert os.path.samestat(os.stat("..", dir_fd=fd), tree.mount.stat())


def test_dot_dot_of_the_root_is_the_directory_above_the_mount_point(tree: Tree) -> None:
    root = tree.shared.point
    assert os.path.samefile(root / "..", root.parent)
    if tree.shared.daemon is not None:
        with directory_stream(root) as stream:
            found = {entry.name: entry.ino for entry in stream.rest()}
        assert found[b"."] == root.stat().st_ino
        assert found[b".."] == root.stat().st_ino, "nothing outside the share is shown"


def test_one_device_number(tree: Tree) -> None:
    (tree.mount / "sub").mkdir()
    (tree.mount / "sub" / "file").touch()
    devices = {path.lstat().st_dev for path in (tree.shared.point, tree.mount, tree.mount / "sub/file")}
    assert len(devices) == 1


def test_a_directory_as_the_place_to_work_in(tree: Tree) -> None:
    (tree.mount / "here").mkdir()
    before = os.getcwd()
    os.chdir(tree.mount / "here")
    try:
        os.rename(tree.mount / "here", tree.mount / "there")
        Path("file").write_bytes(b"relative")
        assert os.getcwd() == str(tree.mount / "there")
    finally:
        os.chdir(before)
    assert (tree.source / "there/file").read_bytes() == b"relative"


def test_fifos_and_sockets_meet_within_the_mount(tree: Tree) -> None:
    os.mkfifo(tree.mount / "fifo")
    with opened(tree.mount / "fifo", os.O_RDWR | os.O_NONBLOCK) as one, opened(tree.mount / "fifo") as other:
        os.write(one, b"through")
        assert os.read(other, 100) == b"through"
    with opened(tree.mount, os.O_RDONLY) as fd, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{fd}/socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{fd}/socket")
    assert stat.S_ISSOCK((tree.source / "socket").lstat().st_mode)


def test_devices_are_not_opened_on_a_nodev_mount(tree: Tree) -> None:
    os.mknod(tree.mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if tree.shared.daemon is None:
        with opened(tree.mount / "null") as fd:
            assert os.write(fd, b"x") == 1
    else:
        with pytest.raises(PermissionError):
            os.open(tree.mount / "null", os.O_RDWR)
