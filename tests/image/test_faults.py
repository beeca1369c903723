"""What goes wrong around an export: servers that die, space that runs out, images that are damaged, a daemon killed."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mounted.harness import TIMEOUT_S, Harness, Mount, background, ended, refusal, run, wait_until

from .exporters import MIB, Image, Servers, export, make, pattern, raw_file, target

_RECORD = 4096
# Writes record after record, each followed by fsync, and says the number of each that was acknowledged.
_WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
number = 0
try:
    while True:
        record = (b"%08d" % number) * 512
        if os.pwrite(fd, record, number % 2048 * 4096) != 4096: break
        os.fsync(fd)
        print(number, flush=True)
        number += 1
except OSError as error:
    print("ended", error.errno, flush=True)
"""


@contextlib.contextmanager
def writing(file: Path) -> Iterator[Callable[[], list[int]]]:
    """A program that writes records; the function gives the numbers that it was told are safe."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, os.fspath(file)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
        reader.start()

        def acknowledged() -> list[int]:
            return [int(line) for line in list(lines) if line.strip().isdecimal()]

        try:
            yield acknowledged
        finally:
            process.kill()
            process.wait(TIMEOUT_S)
            reader.join(TIMEOUT_S)


def records_lost(content: bytes, acknowledged: list[int]) -> list[int]:
    """Of the numbers that were acknowledged, those that are not there; a later one may have taken the place."""
    return [
        number
        for number in acknowledged[-2048:]
        if int(content[number % 2048 * _RECORD :][:8]) < number
        or content[number % 2048 * _RECORD :][:_RECORD] != content[number % 2048 * _RECORD :][:8] * 512
    ]


def content_of(image: Image) -> bytes:
    """What is in an image, without any export of it."""
    if image.path.suffix != ".qcow2":
        return image.path.read_bytes()
    raw = image.path.with_suffix(".out")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.path, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "raw-daemon", "nbdkit-file", "qcow2"])
def test_killed_under_load_it_has_lost_nothing_that_was_acknowledged(harness: Harness, kind: str) -> None:
    image = make(kind, harness, bytes(8 * MIB))
    mount = export(harness, image.name, *image.options, "--writable")
    assert mount.pid is not None
    children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split()
    with writing(mount.point) as acknowledged:
        wait_until(lambda: len(acknowledged()) > 200, "200 records were written")
        os.kill(mount.pid, signal.SIGKILL)
        assert ended(mount.pid)
    assert all(ended(int(child)) for child in children), "qemu-nbd ends with us"
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.open(mount.point, os.O_RDONLY)
    mount.umount()
    assert mount.point.read_bytes() == b"covered"
    assert len(acknowledged()) > 200
    assert records_lost(content_of(image), acknowledged()) == []
    if kind == "qcow2":
        harness.run_program("qemu-img", "check", "-f", "qcow2", image.path)


@pytest.mark.parametrize("kind", ["raw-daemon", "nbdkit-file", "qcow2"])
def test_stopped_under_load_it_answers_flushes_and_goes(harness: Harness, kind: str) -> None:
    image = make(kind, harness, bytes(8 * MIB))
    mount = export(harness, image.name, *image.options, "--writable")
    with writing(mount.point) as acknowledged:
        wait_until(lambda: len(acknowledged()) > 100, "100 records were written")
        mount.umount()
        assert mount.pid is not None
        assert ended(mount.pid)
    assert records_lost(content_of(image), acknowledged()) == []
    assert mount.point.read_bytes() == b"covered"


def _verify(file: Path, *more: str) -> "subprocess.Popen[bytes]":
    """fio, which writes everywhere, many at once, and then reads it all back."""
    return subprocess.Popen(
        ["fio", "--name=x", f"--filename={file}", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio",
         "--iodepth=16", "--size=24M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
         "--verify_state_save=0", "--fsync=64", *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _moved_on(image: Path, before: int, writer: "subprocess.Popen[bytes]") -> bool:
    return image.stat().st_mtime_ns > before or writer.poll() is not None


def test_an_nbd_server_that_is_killed_and_restarted_costs_nothing(harness: Harness) -> None:
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", bytes(24 * MIB)), base / "socket"
    servers = Servers(harness)
    server = servers.nbdkit(socket, "file", raw)
    mount = export(harness, f"nbd+unix:///?socket={socket}", "--writable")
    with _verify(mount.point, "--rate_iops=2000,2000") as fio:
        for _ in range(4):
            before = raw.stat().st_mtime_ns
            wait_until(partial(_moved_on, raw, before, fio), "fio writes")
            assert fio.poll() is None
            server.kill()
            server.wait(TIMEOUT_S)
            server = servers.nbdkit(socket, "file", raw)
        output, _ = fio.communicate(timeout=TIMEOUT_S)
    assert fio.returncode == 0, output.decode()
    assert mount.point.read_bytes() == raw.read_bytes()


def test_an_nbd_server_that_stays_away_is_an_error_until_it_is_back(harness: Harness) -> None:
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", pattern(MIB)), base / "socket"
    servers = Servers(harness)
    server = servers.nbdkit(socket, "file", raw)
    file = export(harness, f"nbd+unix:///?socket={socket}", "--writable", "--reconnect-delay=1").point
    fd = os.open(file, os.O_RDWR)
    try:
        server.kill()
        server.wait(TIMEOUT_S)
        with pytest.raises(OSError, match="Input/output"):
            os.pread(fd, 10, 0)
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(fd)
        servers.nbdkit(socket, "file", raw)

        def answers() -> bool:
            try:
                return os.pread(fd, 10, 0) == pattern(MIB)[:10]
            except OSError:
                return False

        wait_until(answers, "the export answers again")
        assert os.pwrite(fd, b"again", 5) == 5
    finally:
        os.close(fd)
    assert raw.read_bytes()[5:10] == b"again"


def test_an_export_whose_server_is_gone_can_be_ended(harness: Harness) -> None:
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", pattern(MIB)), base / "socket"
    server = Servers(harness).nbdkit(socket, "file", raw)
    mount = export(harness, f"nbd+unix:///?socket={socket}", "--writable", "--reconnect-delay=3600")
    server.kill()
    server.wait(TIMEOUT_S)
    with background("dd", f"if={mount.point}", "of=/dev/null", stderr=subprocess.DEVNULL) as reader:
        wait_until(lambda: reader.poll() is not None or _waits(reader.pid), "it waits for the server")
        mount.umount()
        assert reader.wait(TIMEOUT_S) != 0


def _waits(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}/wchan").read_text().startswith(("request_wait", "fuse"))
        or " D " in Path(f"/proc/{pid}/stat").read_text()
    )


def test_a_server_that_comes_back_smaller_is_not_taken(harness: Harness) -> None:
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", pattern(MIB)), base / "socket"
    servers = Servers(harness)
    server = servers.nbdkit(socket, "file", raw)
    file = export(harness, f"nbd+unix:///?socket={socket}", "--reconnect-delay=1").point
    server.kill()
    server.wait(TIMEOUT_S)
    os.truncate(raw, 4096)
    servers.nbdkit(socket, "file", raw)
    with pytest.raises(OSError, match="Input/output"):
        file.read_bytes()


def _small(harness: Harness, size: str = "4M") -> Path:
    """A directory on a file system with little room."""
    point = harness.directory("small")
    harness.run_program("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point)
    harness.cleanups.append(lambda: subprocess.run(["umount", "-l", point], check=False))
    return point


def _fill(fd: int, size: int) -> int:
    """Write until there is no room, and how much there was."""
    written = 0
    try:
        while written < size:
            written += os.pwrite(fd, pattern(65536), written)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return written


@pytest.mark.parametrize("options", [(), ("--passthrough=off",), ("--growable",)], ids=str)
def test_no_space_where_the_image_lies(harness: Harness, options: tuple[str, ...]) -> None:
    image = _small(harness) / "image"
    image.touch()
    os.truncate(image, 16 * MIB)
    file = export(harness, image, "--writable", "--format=raw", *options).point
    fd = os.open(file, os.O_RDWR)
    try:
        assert 2 * MIB <= _fill(fd, 16 * MIB) < 16 * MIB
        assert os.pread(fd, 65536, 0) == pattern(65536)
        assert file.stat().st_size == 16 * MIB
        assert os.pwrite(fd, b"still", 0) == 5
    finally:
        os.close(fd)


def test_no_space_for_qcow2(harness: Harness) -> None:
    image = _small(harness) / "image.qcow2"
    harness.run_program("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    mount = export(harness, image, "--format=qcow2", "--writable")
    fd = os.open(mount.point, os.O_RDWR)
    try:
        assert _fill(fd, 64 * MIB) < 5 * MIB
        assert os.pread(fd, 4096, 0) == pattern(MIB)[:4096]
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    mount.umount()


def test_a_truncated_qcow2(harness: Harness) -> None:
    image = make("qcow2", harness, pattern(4 * MIB))
    whole = image.path.read_bytes()
    image.path.write_bytes(whole[:8])
    line = refusal(run("export", "--format=qcow2", image.path, target(harness)), 10)
    assert str(image.path) in line
    image.path.write_bytes(whole[: len(whole) // 2])
    mount = export(harness, image.path, "--format=qcow2")
    fd = os.open(mount.point, os.O_RDONLY)
    try:
        assert os.pread(fd, MIB, 0) == pattern(4 * MIB)[:MIB]
        try:
            assert os.pread(fd, MIB, 3 * MIB) != pattern(4 * MIB)[3 * MIB :]
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017 - either is qemu's answer to what is not there
    finally:
        os.close(fd)
    mount.umount()


def test_qemu_nbd_that_dies_is_an_error_and_no_more(harness: Harness) -> None:
    image = make("qcow2", harness, pattern(4 * MIB))
    mount = export(harness, image.path, "--format=qcow2", "--writable")
    children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split()
    (child,) = (pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "qemu-nbd\n")
    os.kill(int(child), signal.SIGKILL)
    with pytest.raises(OSError, match="Input/output"):
        mount.point.read_bytes()
    assert mount.point.stat().st_size == 4 * MIB
    mount.umount()


@pytest.mark.parametrize("options", [(), ("--passthrough=off",), ("--growable",)], ids=str)
def test_an_image_that_shrinks_under_us(harness: Harness, options: tuple[str, ...]) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(4 * MIB))
    mount = export(harness, image, "--writable", "--format=raw", *options)
    fd = os.open(mount.point, os.O_RDWR)
    try:
        assert os.pread(fd, 10, 3 * MIB) == pattern(4 * MIB)[3 * MIB :][:10]
        os.truncate(image, MIB + 100)
        assert os.pread(fd, 10, 3 * MIB) == b""
        assert os.pread(fd, 4096, MIB) == pattern(4 * MIB)[MIB : MIB + 100]
        if "--growable" not in options:
            with pytest.raises(OSError, match="No space"):
                os.pwrite(fd, b"x", 3 * MIB)
            assert os.pwrite(fd, bytes(200), MIB) == 100
            assert image.stat().st_size == MIB + 100
        os.fsync(fd)
        wait_until(lambda: mount.point.stat().st_size == MIB + 100, "the new length is seen")
    finally:
        os.close(fd)


def test_a_mount_that_is_dead_is_named_and_cleared(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(MIB))
    mount: Mount = export(harness, image, "--format=raw")
    assert mount.pid is not None
    os.kill(mount.pid, signal.SIGKILL)
    assert ended(mount.pid)
    assert "passthrough umount" in refusal(run("export", "--format=raw", image, mount.point), 11)
    mount.umount()
    assert mount.point.read_bytes() == b"covered"
