"""An image that must not grow does not, by one byte, whatever way a write takes; and readers pass through meanwhile.

The image is opened for reading all the while, so that the kernel has a backing id in use; truncate(2) and fallocate(2)
are the two ways in which a user says that it should become longer, and are not tried here.
"""

import contextlib
import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.harness import Harness, Mount

from .exporters import MIB, export, pattern, raw_file

SIZE = MIB + 512  # no whole pages
WAYS: dict[str, Callable[[int, Path], object]] = {
    "pwrite at the end": lambda fd, other: os.pwrite(fd, b"x", SIZE),
    "pwrite across the end": lambda fd, other: os.pwrite(fd, bytes(8192), SIZE - 4096),
    "pwrite past the end": lambda fd, other: os.pwrite(fd, b"x", SIZE + MIB),
    "pwritev": lambda fd, other: os.pwritev(fd, [bytes(700)] * 20, SIZE - 700),
    "RWF_APPEND": lambda fd, other: os.pwritev(fd, [b"abc"], -1, os.RWF_APPEND),
    "RWF_SYNC": lambda fd, other: os.pwritev(fd, [b"abc"], SIZE, os.RWF_SYNC),
    "large write": lambda fd, other: os.pwrite(fd, bytes(4 * MIB), SIZE - 10),
    "sendfile": lambda fd, other: send(fd, other),
    "copy_file_range": lambda fd, other: os.copy_file_range(fd, fd, 70000, 0, SIZE - 100),
    "splice": lambda fd, other: splice(fd),
}


def send(fd: int, other: Path) -> int:
    with open(other, "rb") as source:
        os.lseek(fd, SIZE - 100, os.SEEK_SET)
        return os.sendfile(fd, source.fileno(), 0, 70000)


def splice(fd: int) -> int:
    reader, writer = os.pipe()
    try:
        os.write(writer, bytes(8192))
        return os.splice(reader, fd, 8192, offset_dst=SIZE - 100)
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """The daemon does nothing meanwhile; who passes through does not need it. It goes on by itself after a while, so
    that a request that does need it fails a test instead of holding it up."""
    assert mount.pid is not None
    late = threading.Event()

    def resume() -> None:
        late.set()
        os.kill(mount.pid or 0, signal.SIGCONT)

    timer = threading.Timer(10, resume)
    os.kill(mount.pid, signal.SIGSTOP)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        os.kill(mount.pid, signal.SIGCONT)
    assert not late.is_set(), "a request waited for the daemon"


@pytest.fixture(params=["auto", "on", "off"])
def fixed(request: pytest.FixtureRequest, harness: Harness) -> Iterator[tuple[Path, Path, Path]]:
    """(image, file, another file): an export that must not grow, and is being read."""
    base = harness.directory("image")
    image = raw_file(base / "image", pattern(SIZE))
    other = raw_file(base / "other", pattern(MIB, 3))
    file = export(harness, image, "--writable", "--format=raw", f"--passthrough={request.param}").point
    with open(file, "rb") as reader:
        assert reader.read(10) == pattern(SIZE)[:10]
        yield image, file, other
        assert os.pread(reader.fileno(), SIZE, 0)[: SIZE - MIB // 2] == image.read_bytes()[: SIZE - MIB // 2]


@pytest.mark.parametrize("flags", [0, os.O_APPEND, os.O_SYNC, os.O_DIRECT, os.O_TRUNC])
def test_no_write_makes_it_longer(fixed: tuple[Path, Path, Path], flags: int) -> None:
    image, file, other = fixed
    refusals: list[tuple[str, int | None]] = []
    for mode in (os.O_WRONLY, os.O_RDWR):
        for name, way in WAYS.items():
            fd = os.open(file, mode | flags)
            try:
                way(fd, other)
            except OSError as error:
                refusals.append((name, error.errno))
            finally:
                os.close(fd)
            assert image.stat().st_size == SIZE, name
            assert file.stat().st_size == SIZE, name
    assert ("large write", errno.ENOSPC) not in refusals or flags & os.O_APPEND
    assert {number for _, number in refusals} <= {errno.ENOSPC, errno.EINVAL, errno.EBADF}
    assert refusals.count(("pwrite past the end", errno.ENOSPC)) == 2 or flags & os.O_DIRECT


def test_programs_do_not_make_it_longer(fixed: tuple[Path, Path, Path]) -> None:
    image, file, other = fixed
    for words in (
        ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "conv=notrunc"],
        ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "oflag=append", "conv=notrunc"],
        ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "oflag=direct"],
        ["cp", os.fspath(other), os.fspath(file)],
        ["sh", "-c", f"cat {other} {other} >> {file}"],
        ["fio", "--name=x", f"--filename={file}", "--rw=write", "--bs=64k", "--size=2M", "--ioengine=libaio",
         "--iodepth=16", "--direct=1", "--fallocate=none", "--file_append=1"],
        ["fio", "--name=x", f"--filename={file}", "--rw=randwrite", "--bs=4k", "--filesize=1M", "--offset=1M",
         "--size=1M", "--ioengine=io_uring", "--iodepth=16", "--fallocate=none"],
    ):  # fmt: skip
        subprocess.run(words, capture_output=True, check=False, timeout=60)
        assert image.stat().st_size == SIZE, words


def test_many_writers_at_the_end(fixed: tuple[Path, Path, Path]) -> None:
    image, file, _ = fixed

    errors: set[int | None] = set()

    def write(seed: int) -> None:
        fd = os.open(file, os.O_WRONLY)
        for number in range(200):
            try:
                os.pwrite(fd, bytes(4096), SIZE - 2048 + (seed * 7 + number * 31) % 4096)
            except OSError as error:
                errors.add(error.errno)
        os.close(fd)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == {errno.ENOSPC}
    assert image.stat().st_size == SIZE


def test_a_mapping_does_not_make_it_longer(fixed: tuple[Path, Path, Path]) -> None:
    image, file, _ = fixed
    code = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        f"m = mmap.mmap(fd, {SIZE})\n"
        f"m[{SIZE - 1}:] = b'Z'\n"
        "m.flush(); m.close()\n"
        "os.fsync(fd); os.close(fd)\n"
    )
    subprocess.run(["python3", "-c", code, os.fspath(file)], check=True, timeout=60)
    assert image.stat().st_size == SIZE
    assert image.read_bytes()[-1:] == b"Z"


def test_readers_pass_through_while_a_writer_is_served(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(SIZE))
    mount = export(harness, image, "--writable", "--format=raw", "--passthrough=on")
    writer = os.open(mount.point, os.O_RDWR)
    reader = os.open(mount.point, os.O_RDONLY)
    try:
        assert os.pwrite(writer, b"written", 4090) == 7
        assert os.pread(reader, 7, 4090) == b"written"
        assert os.pread(writer, 7, 4090) == b"written"
        with stopped(mount):
            assert os.pread(reader, SIZE, 0) == pattern(SIZE)[:4090] + b"written" + pattern(SIZE)[4097:]
    finally:
        os.close(writer)
        os.close(reader)


def test_a_growable_one_grows_in_the_kernel_and_the_daemon_sees_it(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(4096))
    mount = export(harness, image, "--writable", "--growable", "--format=raw", "--passthrough=on")
    before = mount.point.stat()
    fd = os.open(mount.point, os.O_RDWR | os.O_APPEND)
    try:
        assert os.write(fd, b"some") == 4  # the first one makes the kernel ask for security.capability
        with stopped(mount):
            assert os.write(fd, b"more") == 4
        os.fsync(fd)
    finally:
        os.close(fd)
    assert image.read_bytes() == pattern(4096) + b"somemore"
    assert mount.point.stat().st_size == 4104
    assert mount.point.stat().st_mtime_ns > before.st_mtime_ns
