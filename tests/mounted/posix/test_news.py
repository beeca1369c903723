"""What the source's side does: when the mount sees it, mode by mode; and sources that are less than they seem."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from ..harness import Harness, wait_until
from .calls import opened
from .modes import Tree, attempt
from .sources import attach


def test_all_is_seen_at_once_without_a_cache(harness: Harness) -> None:
    mount = harness.mount("-o", "cache=never")
    for turn in range(20):
        (mount.source / "file").write_bytes(b"%d" % turn)
        assert (mount.point / "file").read_bytes() == b"%d" % turn
        os.chmod(mount.source / "file", 0o600 + turn)
        assert stat.S_IMODE((mount.point / "file").stat().st_mode) == 0o600 + turn
        os.rename(mount.source / "file", mount.source / "renamed")
        assert attempt(lambda: os.stat(mount.point / "file")) == "ENOENT"
        assert os.listdir(mount.point) == ["renamed"]
        os.unlink(mount.source / "renamed")
        assert os.listdir(mount.point) == []


def test_an_open_file_shows_what_the_source_writes(harness: Harness) -> None:
    mount = harness.mount("-o", "cache=never")
    (mount.source / "file").write_bytes(b"first")
    with opened(mount.point / "file", os.O_RDONLY) as fd:
        assert os.pread(fd, 100, 0) == b"first"
        with opened(mount.source / "file") as real:
            os.pwrite(real, b"FIRST and more", 0)
            assert os.pread(fd, 100, 0) == b"FIRST and more"
            os.ftruncate(real, 2)
            assert os.pread(fd, 100, 0) == b"FI"
            assert os.fstat(fd).st_size == 2


@pytest.mark.needs("news")
def test_changes_are_seen_in_time(tree: Tree) -> None:
    tree.compared = False
    shown, real = tree.mount / "file", tree.source / "file"
    real.write_bytes(b"first")
    assert shown.read_bytes() == b"first"
    real.write_bytes(b"second, and longer")
    os.chmod(real, 0o604)
    wait_until(lambda: shown.read_bytes() == b"second, and longer", "the new content", timeout=10)
    wait_until(lambda: stat.S_IMODE(shown.stat().st_mode) == 0o604, "the new mode", timeout=10)
    os.rename(real, tree.source / "renamed")
    wait_until(lambda: not shown.exists(), "the name is gone", timeout=10)
    wait_until(lambda: os.listdir(tree.mount) == ["renamed"], "the new name", timeout=10)
    (tree.source / "renamed").unlink()
    (tree.source / "renamed").mkdir()
    wait_until((tree.mount / "renamed").is_dir, "another kind of file", timeout=10)


def test_what_the_timeout_covers_is_believed(harness: Harness) -> None:
    mount = harness.mount("-o", "timeout=1000")
    (mount.source / "file").write_bytes(b"content")
    assert (mount.point / "file").stat().st_size == 7
    os.chmod(mount.source / "file", 0o600)
    (mount.source / "gone").touch()
    os.stat(mount.point / "gone")
    (mount.source / "gone").unlink()
    assert stat.S_IMODE((mount.point / "file").stat().st_mode) == 0o644
    assert (mount.point / "gone").exists()


@pytest.mark.parametrize("options", ["attr_timeout=0,entry_timeout=1000", "attr_timeout=1000,entry_timeout=0"])
def test_timeouts_of_names_and_attributes_are_apart(harness: Harness, options: str) -> None:
    mount = harness.mount("-o", options)
    (mount.source / "file").touch()
    (mount.source / "gone").touch()
    os.stat(mount.point / "file")
    os.stat(mount.point / "gone")
    (mount.source / "gone").unlink()
    with opened(mount.point / "file", os.O_PATH) as fd:
        os.chmod(mount.source / "file", 0o600)
        mode = stat.S_IMODE(os.stat(fd).st_mode)
    if options.startswith("attr_timeout=0"):
        assert mode == 0o600
        assert (mount.point / "gone").stat().st_nlink == 0
    else:
        assert mode == 0o644
        assert attempt(lambda: os.stat(mount.point / "gone")) == "ENOENT"


def test_names_that_are_missing_are_believed_to_be(harness: Harness) -> None:
    mount = harness.mount("-o", "negative_timeout=1000")
    assert not (mount.point / "late").exists()
    (mount.source / "late").touch()
    assert not (mount.point / "late").exists()
    (mount.point / "own").touch()
    assert (mount.point / "own").exists()
    short = harness.mount("-o", "negative_timeout=0.2")
    assert not (short.point / "late").exists()
    (short.source / "late").touch()
    wait_until((short.point / "late").exists, "the name, once the timeout is over", timeout=10)


def test_data_is_kept_or_not(harness: Harness) -> None:
    """The same size and time, other bytes: only a kept page tells the difference."""
    for mode, expected in (("always", b"first"), ("metadata", b"other"), ("never", b"other")):
        mount = harness.mount("-o", f"cache={mode},passthrough=off")
        real = mount.source / "file"
        real.write_bytes(b"first")
        times = real.stat()
        assert (mount.point / "file").read_bytes() == b"first"
        real.write_bytes(b"other")
        os.utime(real, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (mount.point / "file").read_bytes() == expected, mode


def test_file_systems_below_the_source(harness: Harness) -> None:
    """Equal inode numbers of two file systems are two files."""
    source = harness.directory("source")
    for name in ("one", "two"):
        (source / name).mkdir()
        harness.run_program("mount", "-t", "tmpfs", "tmpfs", source / name)
        harness.cleanups.append(lambda name=name: subprocess.run(["umount", str(source / name)], check=True))  # type: ignore[misc]
        (source / name / "file").write_bytes(name.encode())
        (source / name / "sub").mkdir()
    assert (source / "one/file").stat().st_ino == (source / "two/file").stat().st_ino
    mount = harness.mount("-o", "cache=always", source=source)
    names = ("one/file", "two/file", "one", "two", "one/sub", "two/sub", ".")
    shown = {name: (mount.point / name).stat() for name in names}
    assert len({st.st_ino for st in shown.values()}) == len(shown)
    assert len({st.st_dev for st in shown.values()}) == 1
    for name in ("one", "two"):
        assert (mount.point / name / "file").read_bytes() == name.encode()
        assert os.path.samefile(mount.point / name / "sub/../..", mount.point)
        with os.scandir(mount.point / name) as entries:
            for entry in entries:
                assert entry.inode() == entry.stat().st_ino
    assert attempt(lambda: os.link(mount.point / "one/file", mount.point / "two/link")) == "EXDEV"
    assert attempt(lambda: os.rename(mount.point / "one/file", mount.point / "two/moved")) == "EXDEV"
    os.rename(mount.point / "one/file", mount.point / "one/moved")
    assert (source / "one/moved").read_bytes() == b"one"
    assert attempt(lambda: os.rmdir(mount.point / "one")) == "EBUSY"


def test_a_bind_mount_of_the_source_in_itself(harness: Harness) -> None:
    """The same file twice, by another mount: both names work."""
    source = harness.directory("source")
    for name in ("real", "bound"):
        (source / name).mkdir()
    (source / "real/file").write_bytes(b"content")
    harness.run_program("mount", "--bind", source / "real", source / "bound")
    harness.cleanups.append(lambda: subprocess.run(["umount", str(source / "bound")], check=True))
    mount = harness.mount(source=source)
    assert (mount.point / "bound/file").read_bytes() == b"content"
    with opened(mount.point / "real/file") as fd:
        os.pwrite(fd, b"CON", 0)
    wait_until(lambda: (mount.point / "bound/file").read_bytes() == b"CONtent", "the other name's content", timeout=10)
    (mount.point / "bound/new").touch()
    assert (mount.point / "real/new").exists()


@pytest.mark.parametrize("options", ["cache=auto", "writeback"])
def test_a_full_source(harness: Harness, options: str) -> None:
    source = attach(harness, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    mount = harness.mount("-o", options, source=source)

    def fill() -> None:
        with opened(mount.point / "file", os.O_CREAT | os.O_WRONLY) as fd:
            for _ in range(32):
                os.write(fd, bytes(65536))
            os.fsync(fd)

    assert attempt(fill) == "ENOSPC"
    assert 0 < (source / "file").stat().st_size <= 1 << 20
    (mount.point / "file").unlink()
    wait_until(lambda: os.statvfs(source).f_bfree > 0, "room again, once RELEASE has come")
    (mount.point / "small").write_bytes(b"content")
    assert (source / "small").read_bytes() == b"content"


def test_a_source_that_cannot_be_written(harness: Harness) -> None:
    source = harness.directory("source")
    (source / "file").write_bytes(b"content")
    harness.run_program("mount", "--bind", source, source)
    harness.cleanups.append(lambda: subprocess.run(["umount", str(source)], check=True))
    harness.run_program("mount", "-o", "remount,bind,ro", source)
    mount = harness.mount(source=source)
    assert (mount.point / "file").read_bytes() == b"content"
    assert attempt(lambda: (mount.point / "new").touch()) == "EROFS"
    assert attempt(lambda: os.open(mount.point / "file", os.O_RDWR)) == "EROFS"
    assert attempt(lambda: os.chmod(mount.point / "file", 0)) == "EROFS"
    assert attempt(lambda: os.unlink(mount.point / "file")) == "EROFS"


def test_devices_are_opened_on_a_dev_mount(harness: Harness) -> None:
    mount = harness.mount("-o", "dev")
    os.mknod(mount.point / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with opened(mount.point / "null") as fd:
        assert os.write(fd, b"x") == 1
        assert os.read(fd, 1) == b""


@pytest.mark.parametrize("word", ["suid", "nosuid"])
def test_suid_programs(harness: Harness, word: str) -> None:
    """A copy of id(1) that is root's: who it runs as, when nobody starts it."""
    mount = harness.mount("-o", f"allow_other,{word}")
    program = mount.point / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chmod(program, 0o4755)
    found = subprocess.run([program, "-u"], check=True, capture_output=True, text=True, user=65534).stdout.strip()
    assert found == ("0" if word == "suid" else "65534")
