"""The socket that front ends connect to, and the lock that keeps a second daemon from taking its path."""

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat

from ... import exitcodes
from ...errors import UserError


def listen(path: str, group: str | None) -> "Listener":
    """A new socket at this path, for its owner alone, or for a group as well."""
    gid = _group(group) if group is not None else -1
    lock = _PidFile(path + ".pid")
    try:
        _clear(path)
        return Listener(_bound(path, gid), path, lock)
    except BaseException:
        lock.remove()
        raise


def inherited(fd: int) -> "Listener":
    """A socket that listens already, from whoever started us."""
    try:
        found = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise UserError(f"--fd={fd}: no socket: {error.strerror}", exitcodes.USAGE) from error
    if found.family != socket.AF_UNIX or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        raise UserError(f"--fd={fd}: it must be a UNIX socket that listens", exitcodes.USAGE)
    return Listener(found, None, None)


def _group(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserError(f"--socket-group={name}: there is no such group", exitcodes.USAGE) from None


def _clear(path: str) -> None:
    """What a daemon that is gone has left. Whoever is there holds the lock."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UserError(f"{path}: is there, and no socket; name another path, or remove it", exitcodes.SOCKET)
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot clear the old socket: {error.strerror}", exitcodes.SOCKET) from error


def _bound(path: str, gid: int) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(found.fileno(), 0o600)  # bind(2) makes it no wider; the umask is the whole process's
        found.bind(path)
        if gid >= 0:
            os.chown(path, -1, gid)
            os.chmod(path, 0o660)
        found.listen(8)
    except OSError as error:
        found.close()
        why = error.strerror or str(error)
        raise UserError(f"{path}: cannot listen: {why}", exitcodes.SOCKET) from error
    return found


class _PidFile:
    """PATH.pid, locked for as long as this process or a child of its lives."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock()
        while not self._is_there():  # who had it has removed it meanwhile
            os.close(self._fd)
            self._lock()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _lock(self) -> None:
        path = self._path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}", exitcodes.SOCKET) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise UserError(f"{path}: cannot be locked: {error.strerror}", exitcodes.SOCKET) from error
            raise UserError(
                f"{path}: another daemon (process {holder}) serves this socket; stop it, or name another path",
                exitcodes.SOCKET,
            ) from None

    def remove(self) -> None:
        """At the end."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._fd)


class Listener:
    """A socket that listens; with a path, it is ours to remove."""

    def __init__(self, connection: socket.socket, path: str | None, lock: _PidFile | None) -> None:
        self.socket = connection
        self._path = path
        self._lock = lock

    def close(self) -> None:
        """Remove socket and lock. For the process that made it."""
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        if self._lock is not None:
            self._lock.remove()
