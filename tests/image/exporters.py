"""Images, the servers that they lie in, and the two that export them: ours and QEMU's. All of it ends with the harness.

Rules: a Source makes its image anew for each export; an exporter returns the file that it has mounted.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mounted.harness import TIMEOUT_S, Harness, Mount, daemon_pid, is_mounted, run, wait_until

MIB = 1 << 20


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that are different everywhere and in every seed, and never zero for long."""
    block = bytes((position * seed + position // 251 + seed) % 255 + 1 for position in range(4096))
    return (block * (size // 4096 + 1))[:size]


@dataclass
class Image:
    """An image that can be exported: what our command is given, and QEMU's --blockdev arguments for node `n`."""

    name: str
    options: tuple[str, ...]
    blockdev: tuple[str, ...]
    path: Path


def raw_file(path: Path, content: bytes, holes: Sequence[tuple[int, int]] = ()) -> Path:
    """A sparse file: content, and nothing in the holes."""
    path.write_bytes(content)
    fd = os.open(path, os.O_RDWR)
    try:
        for offset, length in holes:
            subprocess.run(["fallocate", "--punch-hole", "-o", str(offset), "-l", str(length), path], check=True)
    finally:
        os.close(fd)
    return path


class Servers:
    """Starts what images lie in."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def process(self, *words: str | Path, ready: Callable[[], bool]) -> "subprocess.Popen[bytes]":
        """A server in the foreground, ended with the test; returns when it is ready."""
        process = subprocess.Popen(
            [os.fspath(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._harness.cleanups.append(lambda: _end(process))
        wait_until(lambda: ready() or process.poll() is not None, f"{words[0]} is ready")
        assert process.poll() is None, words
        return process

    def nbdkit(self, socket: Path, *words: str | Path) -> "subprocess.Popen[bytes]":
        """nbdkit on a unix socket."""
        socket.unlink(missing_ok=True)
        return self.process("nbdkit", "-f", "-U", socket, *words, ready=socket.exists)

    def qemu_nbd(self, socket: Path, image: Path, kind: str) -> "subprocess.Popen[bytes]":
        """qemu-nbd on a unix socket."""
        socket.unlink(missing_ok=True)
        words = ("--persistent", "--shared=8", f"--socket={socket}", f"--format={kind}", "--discard=unmap")
        return self.process("qemu-nbd", *words, image, ready=socket.exists)

    def loop(self, image: Path) -> Path:
        """A loop device on an image file."""
        made = subprocess.run(
            ["losetup", "--find", "--show", os.fspath(image)], capture_output=True, text=True, check=True
        )
        device = Path(made.stdout.strip())
        self._harness.cleanups.append(lambda: subprocess.run(["losetup", "-d", device], check=False))
        return device


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait(TIMEOUT_S)


def make(kind: str, harness: Harness, content: bytes, holes: Sequence[tuple[int, int]] = ()) -> Image:
    """An image of this kind with this content."""
    servers, base = Servers(harness), harness.directory("image")
    file = raw_file(base / "image.raw", content, holes)
    socket = base / "socket"
    uri = f"nbd+unix:///?socket={socket}"
    nbd = (f"nbd,server.type=unix,server.path={socket},node-name=n",)
    if kind in RAW:
        blockdev = (f"file,filename={file},node-name=f,discard=unmap", "raw,file=f,node-name=n,discard=unmap")
        return Image(str(file), ("--format=raw", *RAW[kind]), blockdev, file)
    if kind == "loop":
        device = servers.loop(file)
        return Image(
            str(device), ("--format=raw",), (f"host_device,filename={device},node-name=n,discard=unmap",), file
        )
    if kind == "nbdkit-file":
        servers.nbdkit(socket, "file", file)
        return Image(uri, (), nbd, file)
    if kind == "nbdkit-memory":
        servers.nbdkit(socket, "memory", str(len(content)))
        subprocess.run(["nbdcopy", "--target-is-zero", os.fspath(file), uri], check=True)
        return Image(uri, (), nbd, file)
    qcow = base / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", file, qcow], check=True)
    if kind == "qemu-nbd":
        servers.qemu_nbd(socket, qcow, "qcow2")
        return Image(uri, (), nbd, qcow)
    assert kind == "qcow2"
    blockdev = (f"file,filename={qcow},node-name=f,discard=unmap", "qcow2,file=f,node-name=n,discard=unmap")
    return Image(str(qcow), ("--format=qcow2",), blockdev, qcow)


RAW: dict[str, tuple[str, ...]] = {
    "raw": (),
    "raw-daemon": ("--passthrough=off",),
    "raw-direct": ("--cache=none",),
    "raw-window": ("--offset=0", f"--size={MIB}"),
}
"""Ways to a raw file: by the kernel, by the daemon, past the page cache, as a part of an image."""
KINDS = (*RAW, "loop", "nbdkit-file", "nbdkit-memory", "qemu-nbd", "qcow2")


def target(harness: Harness, name: str = "file") -> Path:
    """An ordinary file to mount on."""
    path = harness.directory("target") / name
    path.write_bytes(b"covered")
    return path


def export(harness: Harness, image: str | Path, *options: str, file: Path | None = None) -> Mount:
    """`passthrough export OPTIONS IMAGE FILE`; AssertionError with its standard error where it fails."""
    point = file or target(harness)
    mount = Mount(Path(image), point)
    harness.mounts.append(mount)
    result = run("export", *options, str(image), point)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", result.stderr
    mount.pid = daemon_pid(point)
    return mount


def ours(harness: Harness, image: Image, *, writable: bool, growable: bool, allow_other: str) -> Path:
    """Our export."""
    words = [*image.options, f"--allow-other={allow_other}"]
    words += ["--writable"] if writable else []
    words += ["--growable"] if growable else []
    return export(harness, image.name, *words).point


def qemus(harness: Harness, image: Image, *, writable: bool, growable: bool, allow_other: str) -> Path:
    """QEMU's export."""
    file = target(harness)
    blockdevs: list[str] = []
    for description in image.blockdev:
        blockdevs += ["--blockdev", description + ("" if writable else ",read-only=on")]
    flags = f"writable={_on(writable)},growable={_on(growable)},allow-other={allow_other}"
    Servers(harness).process(
        "qemu-storage-daemon",
        *blockdevs,
        "--export",
        f"fuse,id=e,node-name=n,mountpoint={file},{flags}",
        ready=lambda: is_mounted(file),
    )
    harness.cleanups.append(lambda: subprocess.run(["umount", "-l", file], check=False, capture_output=True))
    return file


def _on(value: bool) -> str:
    return "on" if value else "off"


EXPORTERS = {"ours": ours, "qemu": qemus}
