"""What must hold when it gets tight, quick or hostile: descriptors, races, limits, a very large directory."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ..harness import Harness, Mount, ended, wait_until
from .calls import RENAME_EXCHANGE, opened, renameat2
from .children import as_user, beside, in_time
from .modes import attempt

_NOFILE = 256
_MILLION = 1_000_000
_TURNS = 1500


def descriptors(mount: Mount) -> int:
    """How many the daemon has open."""
    return len(os.listdir(f"/proc/{mount.server}/fd"))


def drop_caches() -> None:
    """The kernel forgets the names and inodes that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")


def alive(mount: Mount) -> bool:
    return not ended(mount.server, 0)


def _storm(top: Path, number: int) -> None:
    """A little of everything."""
    base = top / f"storm{number}"
    base.mkdir()
    for name in ("a", "b", "c", "d"):
        (base / name).write_bytes(b"content")
        assert (base / name).read_bytes() == b"content"
    os.link(base / "a", base / "linked")
    (base / "symlink").symlink_to("a")
    os.readlink(base / "symlink")
    os.rename(base / "b", base / "c")
    (base / "sub").mkdir()
    assert len(os.listdir(base)) == 6
    with suppress(FileExistsError):
        os.close(os.open(base / "a", os.O_CREAT | os.O_EXCL | os.O_RDWR))
    with opened(base, os.O_TMPFILE | os.O_RDWR):
        pass
    with opened(base / "d") as fd:
        (base / "d").unlink()
        os.fstat(fd)
    (base / "missing").exists()
    if number % 2:
        for name in ("a", "linked", "symlink", "c"):
            (base / name).unlink()
        (base / "sub").rmdir()
        base.rmdir()


@pytest.mark.parametrize(
    "options",
    ["cache=never", "cache=auto", "cache=always", "writeback", "readdirplus=always", "threads=4,flock,posix_lock"],
)
def test_no_descriptor_leaks(harness: Harness, options: str) -> None:
    mount = harness.mount("-o", options)
    os.listdir(mount.point)
    base = descriptors(mount)
    for number in range(60):
        _storm(mount.point, number)
    subprocess.run(["find", mount.point, "-ls"], check=True, capture_output=True)

    def back() -> bool:
        drop_caches()
        return descriptors(mount) <= base

    wait_until(back, f"{base} descriptors as before")
    assert alive(mount)


def test_no_descriptor_leaks_by_what_fails(harness: Harness) -> None:
    mount = harness.mount("-o", "cache=never,allow_other")
    (mount.source / "directory").mkdir()
    (mount.source / "file").touch()
    os.listdir(mount.point)
    base = descriptors(mount)
    for _ in range(50):
        for act in (
            lambda: os.open(mount.point / "directory", os.O_CREAT | os.O_RDWR),
            lambda: os.mkdir(mount.point / "file"),
            lambda: os.rename(mount.point / "file", mount.point / "directory"),
            lambda: os.open(mount.point / "missing", os.O_RDONLY),
            lambda: os.rmdir(mount.point / "file"),
            lambda: os.symlink("x", mount.point / "file"),
        ):
            assert isinstance(attempt(act), str)

    def back() -> bool:
        drop_caches()
        return descriptors(mount) <= base

    wait_until(back, f"{base} descriptors as before")


def _swap_for_ever(one: Path, other: Path) -> None:
    while True:
        renameat2(one, other, RENAME_EXCHANGE)


@pytest.mark.parametrize("options", ["cache=never", "timeout=0", "timeout=0.02"])
def test_nothing_leads_out_of_the_source(harness: Harness, options: str) -> None:
    """A directory that is exchanged with a symlink to elsewhere, and back, while the mount works in it.

    O_NOFOLLOW keeps our own kernel from following; what remains is what the daemon does.
    """
    outside = harness.directory("outside")
    (outside / "file").write_bytes(b"outside")
    mount = harness.mount("-o", options)
    inside = mount.source / "directory"
    inside.mkdir()
    (inside / "file").write_bytes(b"inside")
    (mount.source / "exchanged").symlink_to(outside)
    seen: set[object] = set()

    def work() -> None:
        with opened("directory", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top) as fd:
            seen.update(os.listdir(fd))
            with opened("file", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd) as file:
                seen.add(os.read(file, 100))
            os.mkdir("made", dir_fd=fd)
            os.rename("made", "moved", src_dir_fd=fd, dst_dir_fd=fd)
            os.rmdir("moved", dir_fd=fd)
            os.close(os.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=fd))
            os.unlink("new", dir_fd=fd)

    turns, failures = 0, 0
    with (
        opened(mount.point, os.O_RDONLY) as top,
        beside(lambda announce: _swap_for_ever(inside, mount.source / "exchanged")) as swapper,
    ):
        while turns < _TURNS or (failures == turns < 1000 * _TURNS):
            turns += 1
            try:
                work()
            except OSError:
                failures += 1
        assert not swapper.done(), swapper.result()
    assert failures < turns, "no success: nothing was tested"
    assert seen <= {b"inside", "file", "made", "moved", "new"}
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"outside"


@pytest.mark.parametrize("options", ["cache=never", "timeout=0"])
def test_no_symlink_is_opened_as_a_file(harness: Harness, options: str) -> None:
    secret = harness.directory("outside") / "secret"
    secret.write_bytes(b"outside")
    mount = harness.mount("-o", options)
    (mount.source / "file").write_bytes(b"inside")
    (mount.source / "link").symlink_to(secret)
    seen: set[object] = set()
    with beside(lambda announce: _swap_for_ever(mount.source / "file", mount.source / "link")) as swapper:
        for turn in range(_TURNS):
            flags = (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT)[turn % 3]

            def look(flags: int = flags) -> bytes:
                with opened(mount.point / "file", flags | os.O_NOFOLLOW) as fd:
                    if flags & os.O_RDWR:
                        os.ftruncate(fd, 6)
                    return os.read(fd, 100)

            seen.add(attempt(look))
        assert not swapper.done(), swapper.result()
    assert b"inside" in seen
    assert seen <= {b"inside", "ELOOP", "ENOENT", "ESTALE", "EBADF"}
    assert secret.read_bytes() == b"outside"


@pytest.mark.parametrize(
    "options", ["cache=auto", "cache=always", "threads=1", "cache=always,readdirplus=always,threads=4"]
)
def test_few_descriptors_are_enough_for_many_files(harness: Harness, options: str) -> None:
    source = harness.directory("source")
    for number in range(50):
        (source / f"{number}").mkdir()
        for below in range(100):
            (source / f"{number}" / f"{below}").touch()
    mount = harness.mount("-o", options, source=source, descriptors=_NOFILE)
    for _ in range(2):
        for number in range(50):
            for below in range(100):
                assert stat.S_ISREG((mount.point / f"{number}" / f"{below}").stat().st_mode)
    walked = subprocess.run(["find", mount.point, "-type", "f", "-size", "0"], check=False, capture_output=True)
    assert walked.stderr == b""
    assert len(walked.stdout.splitlines()) == 5000
    assert alive(mount)
    assert descriptors(mount) <= _NOFILE


def test_opening_until_refused(harness: Harness) -> None:
    mount = harness.mount("-o", "cache=auto", descriptors=_NOFILE)
    fds: list[int] = []

    def open_many() -> None:
        for number in range(2 * _NOFILE):
            fds.append(os.open(mount.point / f"{number}", os.O_CREAT | os.O_RDWR))

    try:
        assert attempt(open_many) in ("ENFILE", "EMFILE")
        assert len(fds) > 50
        assert os.pwrite(fds[0], b"content", 0) == 7
        assert os.pread(fds[-1], 10, 0) == b""
        os.fstat(fds[1])
        os.unlink(mount.point / "1")
        assert alive(mount)
    finally:
        for fd in fds:
            os.close(fd)

    def free() -> bool:
        with suppress(OSError):
            (mount.point / "again").write_bytes(b"content")
        return (mount.source / "again").exists() and (mount.source / "again").read_bytes() == b"content"

    wait_until(free, "room again after closing")
    assert (mount.source / "0").read_bytes() == b"content"


def test_many_do_everything_at_once(harness: Harness) -> None:
    """Creating, renaming, linking and removing the same names by several: each call succeeds or fails as it may."""
    mount = harness.mount("-o", "threads=4,allow_other")
    allowed = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EPERM, errno.ESTALE}

    def work(seed: int) -> set[int]:
        seen = set()
        for turn in range(400):
            one, two = mount.point / f"n{(turn * seed) % 7}", mount.point / f"n{(turn + seed) % 5}"
            actions: tuple[Callable[[], object], ...] = (
                lambda one=one: os.close(os.open(one, os.O_CREAT | os.O_RDWR)),  # type: ignore[misc]
                lambda one=one, two=two: os.rename(one, two),  # type: ignore[misc]
                lambda one=one, two=two: os.link(one, two),  # type: ignore[misc]
                lambda one=one: os.unlink(one),  # type: ignore[misc]
                lambda two=two: os.mkdir(two),  # type: ignore[misc]
                lambda two=two: os.rmdir(two),  # type: ignore[misc]
                lambda: os.listdir(mount.point),
                lambda one=one: os.stat(one),  # type: ignore[misc]
            )
            try:
                actions[(turn * 3 + seed) % len(actions)]()
            except OSError as error:
                seen.add(error.errno or 0)
        return seen

    with (
        beside(lambda announce: work(1)) as one,
        beside(lambda announce: work(3)) as two,
        beside(lambda announce: work(5)) as three,
        beside(lambda announce: work(11)) as four,
    ):
        for child in (one, two, three, four):
            assert child.result() <= allowed
    assert alive(mount)

    def agree() -> bool:
        return {path.name: path.lstat().st_ino for path in mount.point.iterdir()} == {
            path.name: path.lstat().st_ino for path in mount.source.iterdir()
        }

    wait_until(agree, "mount and source show the same", timeout=10)


def test_a_file_is_not_confused_with_its_successor(harness: Harness) -> None:
    """The inode number is used again while the old file is still open."""
    mount = harness.mount("-o", "cache=always")
    (mount.point / "file").write_bytes(b"old")
    with opened(mount.point / "file") as fd:
        for number in range(20):
            (mount.point / "file").unlink()
            (mount.point / "file").write_bytes(b"new %d" % number)
            assert (mount.point / "file").read_bytes() == b"new %d" % number
            assert os.pread(fd, 100, 0) == b"old"
            assert not os.path.samestat(os.fstat(fd), (mount.point / "file").stat())


def test_a_mount_that_is_not_for_others(harness: Harness) -> None:
    """Without allow_other nobody else gets in, not even to look."""
    mount = harness.mount()
    (mount.point / "file").write_bytes(b"content")
    for act in (
        lambda: os.stat(mount.point / "file"),
        lambda: os.listdir(mount.point),
        lambda: (mount.point / "new").touch(),
    ):
        assert as_user(lambda act=act: attempt(act)) == "EACCES"  # type: ignore[misc]


@pytest.mark.slow
def test_a_million_files_in_one_directory(harness: Harness) -> None:
    source = harness.directory("source")
    harness.run_program("mount", "-t", "tmpfs", "-o", f"nr_inodes={_MILLION + 1000},size=1g", "tmpfs", source)
    harness.cleanups.append(lambda: subprocess.run(["umount", str(source)], check=True))
    with opened(source, os.O_RDONLY) as fd:
        for number in range(_MILLION):
            os.mknod(f"{number}", 0o644 | stat.S_IFREG, dir_fd=fd)
    mount = harness.mount(source=source)
    listing = subprocess.run(["ls", "-U", mount.point], check=True, capture_output=True).stdout.split()
    assert len(listing) == _MILLION
    assert len(set(listing)) == _MILLION
    for number in range(0, _MILLION, 1000):
        assert (mount.point / f"{number}").stat().st_ino == (source / f"{number}").stat().st_ino
    (mount.point / "one more").touch()
    (mount.point / "77").unlink()
    assert attempt(lambda: os.stat(mount.point / "77")) == "ENOENT"
    assert in_time(lambda: (mount.point / "one more").exists())
    assert alive(mount)
