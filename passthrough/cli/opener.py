"""Opening by file handle: the process that may, and the daemon's end of the socket to it (fs.tree.Opener).

open_by_handle_at(2) takes CAP_DAC_READ_SEARCH, and with that opens any file of a file system, in the share or not. So
the daemon does without. A child of it, forked when the root of the share is there, keeps the capability, and opens
only what it was shown before: a handle goes out with a proof (keyed BLAKE2) that it was taken of a descriptor that the
daemon had, and comes back with it. So a daemon that was taken over reaches with this process what it could have kept
open itself, and no other file.

An O_PATH descriptor is not yet an open file: Landlock lets it be had of anything. Where Landlock alone keeps other
files from being opened, since a path leads out of the share, only what a path leads to from it is taken (_Reach).

    S fds                 seal: for each a length and errno, or the mount's number, the proof and the handle
    O flags token         open: errno, and the descriptor
    D mount               drop: errno
One message for each, and one answer. The other end's closing is the end.
"""

import array
import errno
import hashlib
import hmac
import logging
import os
import resource
import signal
import socket
import stat
import threading
from collections.abc import Sequence
from struct import Struct

import sandbox

from .. import exitcodes, syscalls
from ..errors import UserError
from ..fs.tree import FileHandles
from ..fs.tree.filehandles import BATCH, Token, has_handles
from ..sandbox_options import SandboxMode
from ..share_options import ShareOptions
from .signals import ENDING

_log = logging.getLogger(__name__)

STEP = "start the process that opens files by their handles, for files that were reached through the share before"
_NAME = "pt-opener"
_LONGEST = 1 << 16
_PROOF = 16
_MOST_MOUNTS = 512
_OWN = 16  # descriptors besides those of mounts and of a message: five, and what a call holds for a moment
_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOATIME | os.O_DSYNC | os.O_SYNC | os.O_DIRECT
)
_PATH = os.O_PATH | os.O_NOFOLLOW
_sealed = Struct("=HI")
_mount = Struct("=Q")
_word = Struct("=I")


class _Reach:
    """What lies in the share, where nothing but Landlock, which this process is without, keeps the daemon in it."""

    def __init__(self, share: int, proc: str) -> None:
        """proc: a path to /proc/self/fd. OSError where there is none."""
        self._share = share
        self._proc = os.open(proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.descriptors = frozenset({share, self._proc})

    def holds(self, fd: int, mount_id: int, handle: bytes) -> bool:
        """Whether a path leads from the share to what fd is open on.

        It is walked on the share's mount and the file's own: another may be the one that is served, which would ask
        the daemon, which waits for us.
        """
        top, path = (os.readlink(f"{each}", dir_fd=self._proc).rstrip("/") + "/" for each in (self._share, fd))
        if not path.startswith(top):
            return False
        at = os.dup(self._share)
        mounts = {syscalls.name_to_handle_at(at)[0], mount_id}
        try:
            for name in path[len(top) : -1].split("/") if path != top else ():
                below = os.open(name, _PATH | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = below
                if syscalls.name_to_handle_at(at)[0] not in mounts:
                    return False
            return syscalls.name_to_handle_at(at) == (mount_id, handle)
        finally:
            os.close(at)


class _Process:
    """The child. Mounts are numbered, and numbers not reused: a proof of one holds for no other."""

    def __init__(self, end: socket.socket, reach: _Reach | None, *, overrides: bool) -> None:
        """overrides: whether the daemon may open any file of the share, as this process may for reading."""
        self._end = end
        self._reach = reach
        self._overrides = overrides
        self._key = os.urandom(32)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A message must find room, or it loses descriptors. The share's own mount is known all the same.
        self._most = max(1, min(_MOST_MOUNTS, soft - BATCH - _OWN))
        self._numbers: dict[int, int] = {}
        self._mounts: dict[int, tuple[int, int]] = {}
        self._next = 1

    def run(self) -> None:
        """Until the daemon is gone."""
        while True:
            request, fds = _receive(self._end)
            if not request:
                return
            try:
                answer, opened = self._answer(request[:1], request[1:], fds)
            except OSError as error:
                answer, opened = _word.pack(error.errno or errno.EIO), None
            finally:
                for fd in fds:
                    os.close(fd)
            _send(self._end, answer, [] if opened is None else [opened])
            if opened is not None:
                os.close(opened)

    def _answer(self, kind: bytes, body: bytes, fds: Sequence[int]) -> tuple[bytes, int | None]:
        if kind == b"S":
            return b"".join(map(self._seal, fds)), None
        if kind == b"O" and len(body) >= _word.size + _mount.size + _PROOF:
            (flags,) = _word.unpack_from(body)
            return _word.pack(0), self._open(flags, body[_word.size :])
        if kind == b"D" and len(body) == _mount.size:
            self._drop(*_mount.unpack(body))
            return _word.pack(0), None
        raise OSError(errno.EINVAL, "")

    def _seal(self, fd: int) -> bytes:
        try:
            mount_id, handle = syscalls.name_to_handle_at(fd)
            if self._reach is not None and not self._reach.holds(fd, mount_id, handle):
                raise OSError(errno.EXDEV, "")
            number = _mount.pack(self._number(mount_id, handle, fd))
        except OSError as error:
            return _sealed.pack(0, error.errno or errno.EIO)
        token = number + self._proof(number + handle) + handle
        return _sealed.pack(len(token), 0) + token

    def _proof(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, digest_size=_PROOF, key=self._key).digest()

    def _number(self, mount_id: int, handle: bytes, fd: int) -> int:
        """Of this mount. A new one takes a directory, which is tried; EXDEV for another file."""
        number = self._numbers.get(mount_id)
        if number is None:
            if not stat.S_ISDIR(os.fstat(fd).st_mode) or len(self._mounts) >= self._most:
                raise OSError(errno.EXDEV, "")
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
            mount = os.open(".", flags, dir_fd=fd)
            try:
                os.close(syscalls.open_by_handle_at(mount, handle, _PATH))
            except BaseException:
                os.close(mount)
                raise
            number = self._next
            self._mounts[number] = mount_id, mount
            self._numbers[mount_id] = number
            self._next += 1
        return number

    def _open(self, flags: int, token: bytes) -> int:
        number, proof, handle = token[: _mount.size], token[_mount.size :][:_PROOF], token[_mount.size + _PROOF :]
        mount = self._mounts.get(*_mount.unpack(number))
        if mount is None or not hmac.compare_digest(proof, self._proof(number + handle)):
            raise OSError(errno.ESTALE, "")
        opened = syscalls.open_by_handle_at(mount[1], handle, _PATH)
        if flags & os.O_PATH:
            return opened
        try:
            mode = os.fstat(opened).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise OSError(errno.EBADF, "")
            if not self._overrides:
                raise OSError(errno.EACCES, "")
            return syscalls.open_by_handle_at(mount[1], handle, flags & _FLAGS | os.O_NONBLOCK)
        finally:
            os.close(opened)

    def _drop(self, number: int) -> None:
        mount = self._mounts.pop(number, None)
        if mount is not None:
            del self._numbers[mount[0]]
            os.close(mount[1])


class Client:
    """The daemon's end: fs.tree.Opener."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self.root = 0

    def _exchange(self, request: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        with self._lock:
            try:
                _send(self._end, request, fds)
                answer, found = _receive(self._end)
            except OSError:
                answer = b""
        if not answer:
            raise OSError(errno.EIO, "the process that opens them has ended")
        return answer, found

    def seal(self, fds: Sequence[int]) -> list[Token | None]:
        """See fs.tree.Opener."""
        assert len(fds) <= BATCH
        answer, _ = self._exchange(b"S", fds)
        tokens: list[Token | None] = []
        at = 0
        while at < len(answer):
            size, _ = _sealed.unpack_from(answer, at)
            at += _sealed.size
            tokens.append(_token(answer[at : at + size]) if size else None)
            at += size
        return tokens

    def begin(self, fd: int) -> None:
        """Seal the root of the share, and try to open it. OSError says why it cannot be."""
        answer, _ = self._exchange(b"S", [fd])
        size, number = _sealed.unpack_from(answer)
        if not size:
            raise OSError(number, os.strerror(number))
        token = _token(answer[_sealed.size :])
        os.close(self.open(token, _PATH))
        self.root = token.mount

    def open(self, token: Token, flags: int) -> int:
        """See fs.tree.Opener."""
        body = _mount.pack(token.mount) + token.proof + token.handle
        answer, found = self._exchange(b"O" + _word.pack(flags) + body)
        (number,) = _word.unpack(answer)
        if number or len(found) != 1:
            raise OSError(number or errno.EIO, os.strerror(number or errno.EIO))
        return found[0]

    def drop(self, mount: int) -> None:
        """See fs.tree.Opener."""
        try:
            self._exchange(b"D" + _mount.pack(mount))
        except OSError:  # it has ended, and its mounts with it
            return


def _token(text: bytes) -> Token:
    (number,) = _mount.unpack_from(text)
    return Token(number, text[_mount.size + _PROOF :], text[_mount.size :][:_PROOF])


def _send(end: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    end.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def _receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors; none and none at the end."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = end.recvmsg(_LONGEST, socket.CMSG_SPACE(size * BATCH), socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, packed in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found += array.array("i", packed[: len(packed) - len(packed) % size])
    return data, found


def start(mode: sandbox.Seccomp, share: int = -1, proc: str = "", dropped: frozenset[str] = frozenset()) -> Client:
    """Fork the process. SandboxError where it cannot confine itself. With proc, a path to /proc/self/fd, it takes no
    file to which no path leads from share. dropped: capabilities that the daemon will not have, and this neither."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        _child(theirs, mode, share, proc, dropped)
    theirs.close()
    client = Client(ours)
    answer, _ = _receive(ours)
    if answer != b"ready":
        raise sandbox.SandboxError(answer.decode(errors="replace") or "sandbox: the opener of file handles ended")
    return client


def _child(
    end: socket.socket,
    mode: sandbox.Seccomp,
    share: int = -1,
    proc: str = "",
    dropped: frozenset[str] = frozenset(),
) -> None:
    try:
        for number in ENDING:  # they are the daemon's, which may have to answer yet
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        try:
            reach = _Reach(share, proc) if proc else None
            overrides = "DAC_OVERRIDE" not in dropped and _has(syscalls.CAP_DAC_OVERRIDE)
            process = _Process(end, reach, overrides=overrides)  # with its key: there is no getrandom(2) later
            keep = reach.descriptors if reach is not None else frozenset()
            sandbox.enter(sandbox.opener_plan(mode, _NAME, end.fileno(), keep, dropped))
        except (sandbox.SandboxError, OSError) as error:
            _send(end, str(error).encode(), [])
        else:
            _send(end, b"ready", [])
            process.run()
    finally:
        os._exit(0)


def _has(capability: int) -> bool:
    return bool(syscalls.effective_capabilities() >> capability & 1)


def _wanted(mode: FileHandles | None) -> bool:
    """Whether the process is to be started. UserError where it must be, and this user has no right to it."""
    if mode is FileHandles.NEVER:
        return False
    if _has(syscalls.CAP_DAC_READ_SEARCH):
        return True
    why = "opening by file handle takes CAP_DAC_READ_SEARCH, which this user does not have"
    _not_to_be_had(mode, why, exitcodes.PERMISSION)
    return False


def _not_to_be_had(mode: FileHandles | None, why: str, status: int, *, usual: bool = True) -> None:
    """Say so, unless nobody asked for it and it is what is to be expected."""
    if mode is FileHandles.MANDATORY:
        raise UserError(f"inode_file_handles=mandatory: {why}; inode_file_handles=never does without", status)
    if mode is FileHandles.PREFER or not usual:
        _log.warning("inode_file_handles=prefer: %s; as with never, each file takes a descriptor", why)
    else:
        _log.debug("%s: each file takes a descriptor", why)


def _walk_proc() -> str:
    """In a root of our own, with /proc/self/fd as the working directory: empty where no path leads out of the share,
    else, by the one that does, /proc/self/fd."""
    return "" if os.path.samestat(os.stat("."), os.stat("..")) else "../../self/fd"


class FileOpener:
    """What a share's daemon has of it: a step on the way into the sandbox, and then the client, or None."""

    def __init__(self, options: ShareOptions) -> None:
        """UserError where handles are mandatory, and this user has no right to open them."""
        self._options = options
        self._mode = options.inode_file_handles
        self.wanted = _wanted(self._mode)
        self.client: Client | None = None

    def steps(self, opened: int) -> list[sandbox.Step]:
        """To be done when the root is there; opened is a descriptor of the share, for where it is not the root."""
        return [sandbox.Step(STEP, lambda: self._start(opened))] if self.wanted else []

    def _start(self, opened: int) -> None:
        """UserError where handles are mandatory, and the share's root cannot be opened by its."""
        rooted = self._options.sandbox in (SandboxMode.NAMESPACE, SandboxMode.CHROOT)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if rooted else os.dup(opened)
        try:
            self._begin(root, _walk_proc() if rooted else "/proc/self/fd")
        finally:
            os.close(root)

    def _begin(self, root: int, proc: str) -> None:
        options = self._options
        dropped = sandbox.parse_changes(options.modcaps)[1] if options.modcaps is not None else frozenset()
        client = start(sandbox.Seccomp(options.seccomp.value), root, proc, dropped)
        try:
            if not has_handles(root):
                raise OSError(errno.EOPNOTSUPP, "its file system has none that can be relied on")
            client.begin(root)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or self._mode is FileHandles.MANDATORY:
                status = exitcodes.SOURCE if error.errno == errno.EOPNOTSUPP else exitcodes.PERMISSION
                why = f"the share cannot be opened by its file handle: {error.strerror}"
                _not_to_be_had(self._mode, why, status, usual=error.errno in (errno.EPERM, errno.EOPNOTSUPP))
                return
        self.client = client  # without handles of the root's: those of other file systems, as they are met
