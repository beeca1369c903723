"""The /dev/fuse queue against a stand-in device: what it does when the stream lies, and with each errno of the device.

A mock is used here because the kernel's device cannot be made to lie.
"""

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from passthrough.filesystem import FileSystem
from passthrough.protocol.negotiation import Wishes
from passthrough.server import Server
from passthrough.transport.devfuse import Queue
from passthrough.transport.session import Session
from passthrough.transport.workers import Crew

INIT = bytes.fromhex(
    "68000000 1a000000 0200000000000000 0000000000000000 00000000 00000000 00000000 0000 0000"  # header, 104 bytes
    "07000000 2d000000 00000200 00000040 00000000" + "00" * 44  # 7.45, 128 KiB of readahead, INIT_EXT
)


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, int]]:
    """(the kernel's end, the daemon's descriptor): messages stay whole, as on the device."""
    kernel, daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.settimeout(30)
    try:
        yield kernel, daemon.fileno()
    finally:
        kernel.close()
        daemon.close()


def request(opcode: int, unique: int, body: bytes = b"", length: int | None = None) -> bytes:
    """A request; `length` makes its header lie."""
    size = 40 + len(body) if length is None else length
    return struct.pack("=IIQQIIIHH", size, opcode, unique, 1, 0, 0, 1, 0, 0) + body


def started(fd: int) -> tuple[Queue, threading.Thread]:
    """A queue that serves a file system of nothing."""
    queue = Queue(fd, Server(FileSystem(), Wishes()), 1 << 16)
    crew = Crew([queue], lambda: None)
    thread = threading.Thread(target=queue.run, args=(crew,), daemon=True)
    thread.start()
    return queue, thread


def test_replies_are_framed_exactly(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    _, thread = started(fd)
    kernel.send(INIT)
    reply = kernel.recv(1 << 16)
    assert struct.unpack_from("=IiQ", reply) == (len(reply), 0, 2)
    assert len(reply) == 16 + 64
    kernel.send(request(17, 4))
    assert kernel.recv(1 << 16) == struct.pack("=IiQ", 16, -errno.ENOSYS, 4)
    kernel.close()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (request(17, 4, length=41), "says 41 bytes, 40 came"),
        (request(17, 4, b"xxxxxxxx", length=40), "says 40 bytes, 48 came"),
        (request(17, 4, length=0), "says 0 bytes, 40 came"),
        (request(17, 4, length=0xFFFFFFFF), "says 4294967295 bytes"),
        (request(17, 4)[:39], "39 bytes, shorter than its header"),
        (b"\0", "1 bytes, shorter than its header"),
    ],
)
def test_a_lying_stream_halts_the_queue_with_a_line(
    device: tuple[socket.socket, int], message: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, fd = device
    queue, thread = started(fd)
    kernel.send(message)
    thread.join(30)
    assert not thread.is_alive()
    assert queue.halted is not None
    assert says in queue.halted
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert says in caplog.text


def test_a_malformed_request_fails_alone(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    _, thread = started(fd)
    kernel.send(INIT)
    kernel.recv(1 << 16)
    kernel.send(request(1, 4, b"no NUL"))
    assert kernel.recv(1 << 16) == struct.pack("=IiQ", 16, -errno.EINVAL, 4)
    kernel.send(request(17, 6))
    assert kernel.recv(1 << 16) == struct.pack("=IiQ", 16, -errno.ENOSYS, 6)
    kernel.close()
    thread.join(30)


def scripted(monkeypatch: pytest.MonkeyPatch, numbers: list[int]) -> None:
    """The device's next reads fail with these, then work."""
    real = os.readv

    def readv(fd: int, buffers: object) -> int:
        if numbers:
            number = numbers.pop(0)
            raise OSError(number, os.strerror(number))
        return real(fd, buffers)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "readv", readv)


def test_aborted_and_interrupted_reads_are_repeated(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, fd = device
    scripted(monkeypatch, [errno.ENOENT, errno.EINTR, errno.EAGAIN, errno.ENOENT])
    kernel.send(INIT)
    _, thread = started(fd)
    assert len(kernel.recv(1 << 16)) == 80
    kernel.close()
    thread.join(30)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_the_end_of_the_mount_is_no_failure(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    scripted(monkeypatch, [number])
    queue, thread = started(device[1])
    thread.join(30)
    assert not thread.is_alive()
    assert queue.halted is None


def test_an_unreadable_device_halts(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted(monkeypatch, [errno.EINVAL])
    queue, thread = started(device[1])
    thread.join(30)
    assert queue.halted is not None
    assert "Invalid argument" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL])
def test_a_refused_reply_does_not_end_the_queue(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kernel, fd = device
    real, failures = os.write, [number]

    def write(target: int, data: bytes) -> int:
        if target == fd and failures:
            failed = failures.pop()
            raise OSError(failed, os.strerror(failed))
        return real(target, data)

    monkeypatch.setattr(os, "write", write)
    _, thread = started(fd)
    kernel.send(request(17, 2))
    kernel.send(request(17, 4))
    assert kernel.recv(1 << 16)[8:] == struct.pack("=Q", 4)
    kernel.close()
    thread.join(30)


def test_the_session_says_when_its_last_queue_has_ended(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    session = Session(fd, 3, 1 << 16)
    kernel.send(INIT)
    session.start(Server(FileSystem(), Wishes(), kernel=session))
    kernel.close()
    assert session.join(30)
    assert os.eventfd_read(session.ended) == 1
