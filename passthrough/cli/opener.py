"""Opening by file handle: the process that may (fs/opener.py), and whether a share's daemon has it.

open_by_handle_at(2) takes CAP_DAC_READ_SEARCH, and with that opens any file of a file system, in the share or not. So
the daemon does without. A child of it, forked when the root of the share is there, keeps the capability, and opens
only what it was shown before: a handle goes out with a proof (keyed BLAKE2) that it was taken of a descriptor that the
daemon had, and comes back with it. So a daemon that was taken over reaches with this process what it could have kept
open itself, and no other file.
"""

import os
import signal
import socket

import sandbox

from .. import syscalls
from ..fs.opener import Client, Process, Reach, receive, send
from ..opening import can_open, is_wanted
from ..sandbox_options import SandboxMode
from ..share_options import ShareOptions
from .signals import ENDING

STEP = "start the process that opens files by their handles, for files that were reached through the share before"
_NAME = "pt-opener"


def start(mode: sandbox.Seccomp, share: int = -1, proc: str = "", dropped: frozenset[str] = frozenset()) -> Client:
    """Fork the process. SandboxError where it cannot confine itself. With proc, a path to /proc/self/fd, it takes no
    file to which no path leads from share. dropped: capabilities that the daemon will not have, and this neither."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        _child(theirs, mode, share, proc, dropped)
    theirs.close()
    client = Client(ours)
    answer, _ = receive(ours)
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
            reach = Reach(share, proc) if proc else None
            overrides = "DAC_OVERRIDE" not in dropped and syscalls.has_capability(syscalls.CAP_DAC_OVERRIDE)
            process = Process(end, reach, overrides=overrides)  # with its key: there is no getrandom(2) later
            keep = reach.descriptors if reach is not None else frozenset()
            sandbox.enter(sandbox.opener_plan(mode, _NAME, end.fileno(), keep, dropped))
        except (sandbox.SandboxError, OSError) as error:
            send(end, str(error).encode(), [])
        else:
            send(end, b"ready", [])
            process.run()
    finally:
        os._exit(0)


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
        self.wanted = is_wanted(self._mode)
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
        if can_open(client, root, self._mode):
            self.client = client
