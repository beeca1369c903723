"""Who exports an image in `bench.image`: nobody (native), ours in its ways, QEMU's export, and nbdfuse.

Each is served by a process that the bench has started, and is gone at the end of its block.
"""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .kernel import uring_missing
from .processes import Failed, Unavailable, command, detach, wait_gone, wait_mounted

_SECONDS = 30.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Exporter:
    """A contender. `words` with {image}, {file} and {socket} filled in is its command; ours leaves a daemon."""

    name: str
    words: tuple[str, ...] = ()
    rings: bool = False

    @contextmanager
    def serving(self, image: Path, file: Path, socket: Path) -> Iterator[Path]:
        """The file to be measured, between start and end."""
        if not self.words:
            yield image
            return
        if self.rings and (why := uring_missing()):
            raise Unavailable(why)
        filled = [word.format(image=image, file=file, socket=socket) for word in self.words]
        if self.name.startswith("ours"):
            command(sys.executable, "-m", "passthrough", "export", *filled, cwd=_ROOT)
            try:
                yield file
            finally:
                command(sys.executable, "-m", "passthrough", "umount", file, cwd=_ROOT)
            return
        with _foreground(filled, file):
            yield file


@contextmanager
def _foreground(words: list[str], file: Path) -> Iterator[None]:
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise Unavailable(f"{words[0]} is not installed") from error
    try:
        if not wait_mounted(file, process, _SECONDS):
            raise Failed(f"{words[0]} mounted nothing")
        yield
    finally:
        detach(file)
        process.terminate()
        wait_gone({process.pid}, _SECONDS)
        process.poll()


@contextmanager
def nbd_server(work: Path, image: Path) -> Iterator[Path]:
    """nbdkit with the image, for those who come by NBD; the socket may stay away where it is not installed."""
    socket = work / "socket"
    try:
        process = subprocess.Popen(["nbdkit", "-f", "-U", socket, "file", image], stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        yield socket
        return
    try:
        deadline = time.monotonic() + _SECONDS
        while not socket.exists() and time.monotonic() < deadline:
            select.select((), (), (), 0.01)
        yield socket
    finally:
        process.terminate()
        wait_gone({process.pid}, _SECONDS)
        process.poll()


_WRITABLE = ("--writable", "--format=raw", "{image}", "{file}")
_URI = ("--writable", "nbd+unix:///?socket={socket}", "{file}")
CONTENDERS = (
    Exporter("native"),
    Exporter("ours", ("--growable", "--passthrough=on", "--io-uring=off", *_WRITABLE)),
    Exporter("ours-rings", ("--growable", "--passthrough=on", "--io-uring=on", *_WRITABLE), rings=True),
    Exporter("ours-daemon", ("--passthrough=off", "--io-uring=off", *_WRITABLE)),
    Exporter("ours-daemon-rings", ("--passthrough=off", "--io-uring=on", *_WRITABLE), rings=True),
    Exporter(
        "qemu",
        (
            "qemu-storage-daemon",
            "--blockdev",
            "file,node-name=f,filename={image}",
            "--blockdev",
            "raw,node-name=n,file=f",
            "--export",
            "fuse,id=e,node-name=n,mountpoint={file},writable=on",
        ),
    ),
    Exporter("ours-nbd", ("--io-uring=off", *_URI)),
    Exporter("ours-nbd-rings", ("--io-uring=on", *_URI), rings=True),
    Exporter("nbdfuse", ("nbdfuse", "{file}", "--unix", "{socket}")),
)
NBD = ("ours-nbd", "ours-nbd-rings", "nbdfuse")
RAW = tuple(one.name for one in CONTENDERS if one.name not in NBD)
