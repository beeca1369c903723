"""Images of QEMU's formats: a qemu-nbd of our own reads and writes them, on a socket that nobody else can reach.

It locks the image as QEMU does, and it ends with us, however we end: without --persistent it leaves with its last
client, after flushing. The socket is handed to it open (systemd's socket activation), so it answers from the start.
"""

import contextlib
import logging
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile

import nbd

from .nbd import NbdSource, attach_socket
from .source import BlockSource, CacheMode, ImageError

log = logging.getLogger(__name__)

PROGRAM = "qemu-nbd"
_LISTEN_FD = 3  # SD_LISTEN_FDS_START
_END_S = 30.0
# The shell makes the socket descriptor 3 and tells qemu-nbd its own process id, which it asks for.
_SHELL = 'exec 3<&"$1" && shift && LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


def serve(
    image: str, kind: str, *, writable: bool, cache: CacheMode, key_file: str | None, connections: int
) -> BlockSource:
    """The image, through a qemu-nbd. ImageError where that is not installed, or will not have the image."""
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/bin:/usr/local/bin")
    if program is None:
        raise ImageError(f"{image}: the format {kind} needs {PROGRAM}, which is not installed: apt install qemu-utils")
    command = [program, f"--shared={connections}", f"--cache={cache.value}", "--discard=unmap"]
    command += [] if writable else ["--read-only"]
    command += _what(image, kind, key_file)
    with tempfile.TemporaryDirectory(prefix="passthrough-") as directory, tempfile.TemporaryFile() as errors:
        path = os.path.join(directory, "socket")
        process = _start(command, path, errors.fileno())
        try:
            return _QemuSource(process, path, image, writable=writable, connections=connections)
        except (nbd.Error, ImageError) as error:
            process.terminate()
            process.wait(_END_S)
            raise ImageError(f"{image}: {_said(errors.fileno()) or error}") from error


def _what(image: str, kind: str, key_file: str | None) -> list[str]:
    if kind != "luks":
        return [f"--format={kind}", "--", image]
    if key_file is None:
        raise ImageError(
            f"{image}: a luks image needs its passphrase: --key-file=FILE; or is it meant as it is: --format=raw"
        )
    secret = f"secret,id=key,file={_quoted(os.path.abspath(key_file))}"
    return ["--object", secret, "--image-opts", f"driver=luks,key-secret=key,file.filename={_quoted(image)}"]


def _quoted(text: str) -> str:
    """As QEMU's option strings have it: a comma twice."""
    return text.replace(",", ",,")


def _start(command: list[str], path: str, errors: int) -> "subprocess.Popen[bytes]":
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(32)
        return subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, "sh", str(listener.fileno()), *command],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # a signal from the keyboard is for us: it would end before our last flush
        )


def _said(errors: int) -> str:
    """What qemu-nbd said, in one line and without its own name and the image's."""
    lines = os.pread(errors, 1 << 12, 0).decode(errors="replace").strip().splitlines()
    return "; ".join(re.sub(r"^qemu-nbd: (Failed to blk_new_open '.*?': )?", "", line) for line in lines)


class _QemuSource(NbdSource):
    """The NBD source, with the process behind it and the image's file, which says what it takes."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", path: str, image: str, *, writable: bool, connections: int
    ) -> None:
        self._pid = process.pid
        self._end = os.pidfd_open(process.pid)  # whoever closes this may be in another process, and no parent of it
        self._image = os.open(image, os.O_PATH | os.O_CLOEXEC)
        try:
            # Without a way back: the socket's name is gone soon, and somebody else could make it again.
            super().__init__(attach_socket(path), writable=writable, connections=connections, reconnect_s=None)
        except BaseException:
            os.close(self._image)
            os.close(self._end)
            raise
        process.returncode = 0  # nobody waits for it by this object

    def allocated(self) -> int:
        """The image file's blocks."""
        return os.fstat(self._image).st_blocks * 512

    def close(self) -> None:
        """The last connection takes qemu-nbd with it, when it has flushed."""
        super().close()
        os.close(self._image)
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        if not poll.poll(_END_S * 1000):
            log.error("qemu-nbd (process %d) does not end", self._pid)
        os.close(self._end)
        with contextlib.suppress(OSError):  # a child of another process of ours, mostly
            os.waitpid(self._pid, os.WNOHANG)
