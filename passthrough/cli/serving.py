"""The life of one mount: mount, serve, wait for a signal or the unmount, and leave nothing behind."""

import gc
import logging
import os
import select
import signal
import socket
from dataclasses import replace

from .. import exitcodes
from ..errors import UserError
from ..filesystem import FileSystem
from ..fs.tree import Choice
from ..protocol import constants as c
from ..protocol.negotiation import Wishes
from ..server import Server
from ..transport import mounting, uring
from ..transport.session import Session
from ..waiting import install_wake_signal
from . import state
from .background import ENDING

log = logging.getLogger(__name__)

_QUIESCE_S = 5.0
_JOIN_S = 5.0
_QUICK_JOIN_S = 0.5


class Signals:
    """Ending signals as a readable descriptor, so that one poll waits for everything."""

    def __init__(self) -> None:
        self._ending = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, lambda *_: None)
        install_wake_signal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # a watcher forks with them blocked

    def fileno(self) -> int:
        """What to poll."""
        return self._reader.fileno()

    def ending(self) -> bool:
        """Whether one of the ending signals has come, now or before."""
        try:
            self._ending |= any(number in ENDING for number in self._reader.recv(4096))
        except BlockingIOError:
            pass
        return self._ending


def tame_collector() -> None:
    """What was imported lives for ever, and serving makes no cycles: looking for them costs more than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _uring_flags(choice: Choice) -> tuple[int, int]:
    """(INIT flags to wish for, INIT flags to insist on). UserError where io_uring=on cannot be had."""
    if choice is Choice.OFF:
        return 0, 0
    why = uring.unavailable()
    if why is None:
        return c.FUSE_OVER_IO_URING, c.FUSE_OVER_IO_URING if choice is Choice.ON else 0
    if choice is Choice.ON:
        raise UserError(f"io_uring=on: {why}", exitcodes.KERNEL)
    return 0, 0


class Mount:
    """A mount with its daemon's threads. `fs` must have been made in this process."""

    def __init__(
        self,
        fs: FileSystem,
        request: mounting.MountRequest,
        *,
        threads: int,
        max_write: int,
        source: str,
        io_uring: Choice = Choice.AUTO,
        debug: bool = False,
    ) -> None:
        flags, required = _uring_flags(io_uring)
        self._fs = fs
        self._request = request
        self._threads = threads
        self._wishes = Wishes(
            flags=fs.flags | c.FUSE_MAX_PAGES | flags,
            required=fs.required | required,
            max_write=max_write,
            max_stack_depth=fs.stack_depth,
        )
        self._debug = log.debug if debug else None
        self._source = source
        self._signals = Signals()
        self._session: Session | None = None
        self._state: state.StateFile | None = None

    def start(self) -> None:
        """Mount and serve; returns when INIT has been answered. UserError where that is not to be had."""
        try:
            self._begin(self._wishes)
        except UserError as error:
            if not self._may_do_without_uring():
                raise
            log.warning("%s; requests are read from /dev/fuse instead", error)
            self._begin(replace(self._wishes, flags=self._wishes.flags & ~c.FUSE_OVER_IO_URING))

    def _may_do_without_uring(self) -> bool:
        wished = self._wishes.flags & c.FUSE_OVER_IO_URING and not self._wishes.required & c.FUSE_OVER_IO_URING
        return bool(wished) and self._session is not None and self._session.uring_failed

    def _begin(self, wishes: Wishes) -> None:
        self._mounted = mounting.mount(self._request)
        try:
            self._session = session = Session(
                self._mounted.fd, self._threads, max(wishes.max_write, self._request.max_read)
            )
            self._server = Server(
                self._fs,
                wishes,
                kernel=session,
                debug=self._debug,
                owner=os.getuid() if self._request.owner_only else None,
            )
            session.start(self._server)
            if self._server.failure:
                raise UserError(self._server.failure, exitcodes.KERNEL)
            self._state = state.StateFile(self._mounted.device, self._source, self._mounted.mountpoint)
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Leave nothing of a mount that could not begin."""
        self._unmounted(lazy=True, force=True)
        if self._session is None:
            os.close(self._mounted.fd)
            return
        if self._session.join(_JOIN_S):
            self._session.close()
        self._server.close()

    def run(self) -> int:
        """Until the mount is gone or a signal ends it; the exit status. After start()."""
        assert self._session is not None
        poll = select.poll()
        poll.register(self._session.ended, select.POLLIN)
        poll.register(self._signals.fileno(), select.POLLIN)
        while self._session.ended not in {fd for fd, _ in poll.poll()} and not self._signals.ending():
            pass
        self._leave(self._session)
        if self._session.failure:
            log.error("%s: %s", self._mounted.mountpoint, self._session.failure)
            return exitcodes.SERVING
        return exitcodes.OK

    def _leave(self, session: Session) -> None:
        """Unmount cleanly where nobody is inside; else answer what is in flight, then detach and abort."""
        clean = self._mounted.is_there() and self._unmounted(lazy=False, force=False)
        if not clean:
            self._server.interrupt_waiting()
            if not session.quiesce(_QUIESCE_S):
                log.warning("%s: requests are still unanswered and will be aborted", self._mounted.mountpoint)
            if self._mounted.is_there():
                self._unmounted(lazy=True, force=True)
        # Detached earlier and held open by others, a queue stays in read(2) until our end closes the connection.
        session.join(_JOIN_S if clean else _QUICK_JOIN_S)
        self._server.close()
        if self._state is not None:
            self._state.remove()

    def _unmounted(self, *, lazy: bool, force: bool) -> bool:
        try:
            mounting.unmount(self._mounted.mountpoint, lazy=lazy, force=force)
        except (OSError, UserError) as error:
            log.debug("unmount: %s", error)
            return not self._mounted.is_there()
        return True
