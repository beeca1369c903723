"""Requests side by side, by each door: read/write of /dev/fuse, FUSE over io_uring, and llfuse."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.harness import TIMEOUT_S, Harness, ended, wait_until

from .exporters import MIB, Servers, export, make, pattern, raw_file

PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")


@pytest.fixture(params=["off", "on", "llfuse"])
def door(request: pytest.FixtureRequest) -> Iterator[str]:
    """The option for this door; io_uring is switched on for the length of a test."""
    if request.param == "llfuse":
        yield "--transport=llfuse"
        return
    if request.param == "off":
        yield "--io-uring=off"
        return
    if not PARAMETER.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    before = PARAMETER.read_text()
    PARAMETER.write_text("Y")
    try:
        yield "--io-uring=on"
    finally:
        PARAMETER.write_text(before)


def fio(file: Path, *words: str) -> None:
    """fio, which must find what it has written."""
    command = ["fio", "--name=x", f"--filename={file}", "--size=16M", "--direct=1", "--ioengine=libaio",
               "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--fallocate=none",
               *words]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


@pytest.mark.parametrize("kind", ["raw-daemon", "raw-direct", "loop", "nbdkit-memory", "qcow2"])
def test_many_in_flight_are_kept_apart(harness: Harness, door: str, kind: str) -> None:
    image = make(kind, harness, bytes(16 * MIB))
    file = export(harness, image.name, *image.options, "--writable", door).point
    fio(file, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=200")
    fio(file, "--rw=write", "--bs=1M", "--iodepth=8")
    fio(file, "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--iodepth=16", "--blockalign=512")


def test_a_slow_server_is_asked_many_things_at_once(harness: Harness, door: str) -> None:
    """32 reads of 0.2 s each, and a write beside them: one after the other they would take 6 s."""
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", pattern(MIB)), base / "socket"
    Servers(harness).nbdkit(socket, "--filter=delay", "-t", "64", "file", raw, "rdelay=200ms")
    file = export(harness, f"nbd+unix:///?socket={socket}", "--writable", "--threads=2", door).point
    fd = os.open(file, os.O_RDWR)
    found: dict[int, bytes] = {}

    def read(number: int) -> None:
        found[number] = os.pread(fd, 4096, number * 8192)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(32)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    assert os.pwrite(fd, b"meanwhile", MIB - 4096) == 9
    for thread in threads:
        thread.join()
    os.close(fd)
    assert time.monotonic() - begin < 4
    assert found == {number: pattern(MIB)[number * 8192 : number * 8192 + 4096] for number in range(32)}


@pytest.mark.parametrize("kind", ["raw-daemon", "nbdkit-file", "qcow2"])
def test_ended_while_much_is_under_way(harness: Harness, door: str, kind: str) -> None:
    image = make(kind, harness, bytes(16 * MIB))
    mount = export(harness, image.name, *image.options, "--writable", door)
    words = ["fio", "--name=x", f"--filename={mount.point}", "--size=16M", "--direct=1", "--ioengine=libaio",
             "--iodepth=32", "--rw=randwrite", "--bs=4k", "--time_based", "--runtime=60"]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            before = mount.point.stat().st_mtime_ns
            wait_until(lambda: mount.point.stat().st_mtime_ns > before or load.poll() is not None, "fio writes")
            mount.umount()
            assert mount.pid is not None
            assert ended(mount.pid)
        finally:
            load.kill()
    assert mount.point.read_bytes() == b"covered"
    if kind == "qcow2":
        harness.run_program("qemu-img", "check", "-f", "qcow2", image.path)


def test_an_odd_byte_at_a_time(harness: Harness, door: str) -> None:
    image = make("nbdkit-file", harness, pattern(MIB))
    file = export(harness, image.name, "--writable", door).point
    expected = bytearray(pattern(MIB))
    fd = os.open(file, os.O_RDWR)
    for number in range(500):
        offset, data = number * 2083 % (MIB - 3000), pattern(1 + number * 5 % 2999, number + 2)
        assert os.pwrite(fd, data, offset) == len(data)
        expected[offset : offset + len(data)] = data
        assert os.pread(fd, len(data) + 1, offset) == expected[offset : offset + len(data) + 1]
    os.close(fd)
    assert image.path.read_bytes() == bytes(expected)
