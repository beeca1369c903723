"""Which daemon serves which mount: a locked file per mount, named by the mount's device number.

The lock tells a living daemon from a stale file, and a process id that was reused from ours.
"""

import fcntl
import os
import stat
from typing import NamedTuple

from .. import exitcodes
from ..errors import UserError


class Daemon(NamedTuple):
    """A living daemon."""

    pid: int
    source: str


def directory() -> str:
    """Where the files are: /run/passthrough for root, the user's runtime directory otherwise. Made if missing."""
    if os.geteuid() == 0:
        path = "/run/passthrough"
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        path = os.path.join(runtime, "passthrough")
    else:
        path = f"/tmp/passthrough-{os.geteuid()}"
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        why = f"{path}: cannot keep the daemon's state there: {error.strerror}"
        if os.environ.get("XDG_RUNTIME_DIR") and os.geteuid() != 0:
            why += "; XDG_RUNTIME_DIR must name a directory of this user's, or none"
        raise UserError(why, exitcodes.SYSTEM) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UserError(f"{path}: is not a directory of ours; remove it", exitcodes.SYSTEM)
    return path


class StateFile:
    """The file of one mount, held open and locked for as long as the daemon lives."""

    def __init__(self, device: str, source: str, mountpoint: str) -> None:
        self.path = os.path.join(directory(), device + ".daemon")
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.fstat(self._fd).st_nlink:
                break
            os.close(self._fd)  # an ending daemon removed it while we waited; the number is ours now
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n{source}\n{mountpoint}\n".encode(errors="surrogateescape"))

    def remove(self) -> None:
        """The daemon ends."""
        try:
            os.unlink(self.path)
        except OSError:
            pass
        os.close(self._fd)


def find(device: str) -> Daemon | None:
    """The living daemon of the mount with this device number, if it is one of ours that we may see."""
    try:
        fd = os.open(os.path.join(directory(), device + ".daemon"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, source, *_ = os.read(fd, 1 << 16).decode(errors="surrogateescape").split("\n")
        return Daemon(int(pid), source) if pid.isdecimal() else None
    except OSError:
        return None
    finally:
        os.close(fd)
    return None
