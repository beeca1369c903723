"""Into the background: the starter waits on a pipe until the daemon says that it is ready, or why it is not.

The message on the pipe is the exit status in one byte, then the line for the user.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable

from .. import exitcodes, log
from ..errors import UserError
from . import state
from .signals import ENDING

Ready = Callable[[], None]
ServeFunction = Callable[[Ready], int]


def start(serve: ServeFunction) -> int:
    """Fork; run serve(ready) in the child, which calls ready() once, without the starter's streams (close_streams).

    Returns in the parent, with the child's process id; UserError if it failed.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until each side knows what to do with one
    daemon = os.fork()
    if daemon == 0:
        os.close(reader)
        os._exit(_daemon(serve, writer))
    os.close(writer)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        message = os.read(reader, 1 << 16)  # one write of less than PIPE_BUF; nothing where the daemon died
    except KeyboardInterrupt:
        os.kill(daemon, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    if not message:
        raise UserError("the daemon ended before it was ready", exitcodes.SYSTEM)
    if message[0] != exitcodes.OK:
        raise UserError(message[1:].decode(errors="replace"), message[0])
    return daemon


def open_null() -> int:
    """What close_streams() needs."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def close_streams(null: int) -> None:
    """Let go of the starter's terminal or pipes: whoever reads them waits for the last holder."""
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


class Streams:
    """The log and the standard streams. One that detaches has its starter's until the daemon serves."""

    def __init__(self, wanted: log.Wanted, *, detached: bool = False) -> None:
        """The log begins. UserError where there is none of the kind that was asked for."""
        self._wanted = wanted
        self._null = -1
        self._detached = detached
        self._handler = log.starting() if detached else _opened(lambda: log.foreground(wanted), wanted)
        log.use(self._handler, wanted)

    def open(self) -> None:
        """In the process that stays, before the sandbox closes: what will be needed when it serves. UserError."""
        if self._detached:
            file = os.path.join(state.directory(), "daemon.log")
            self._handler = _opened(lambda: log.background(self._wanted, file), self._wanted)
            self._null = open_null()

    @property
    def keep(self) -> frozenset[int]:
        """The descriptors that the daemon needs."""
        return log.descriptors(self._handler) | (frozenset({self._null}) if self._null >= 0 else frozenset())

    def inside(self) -> None:
        """In the daemon, when it serves."""
        if self._detached:
            log.use(self._handler, self._wanted)
            close_streams(self._null)

    def outside(self, ready: Ready) -> Ready:
        """For the keeper: the same, and tell the starter."""

        def done() -> None:
            self.inside()
            ready()

        return done


def _opened(make: Callable[[], logging.Handler], wanted: log.Wanted) -> logging.Handler:
    try:
        return make()
    except OSError as error:
        what = f"syslog: {log.SYSLOG}" if wanted.syslog else "the log"
        remedy = "; without the option, lines go elsewhere" if wanted.syslog else ""
        raise UserError(f"{what} cannot be opened: {error.strerror}{remedy}", exitcodes.SYSTEM) from error


def _daemon(serve: ServeFunction, writer: int) -> int:
    def report(status: int, line: str = "") -> None:
        nonlocal writer
        if writer < 0:
            return
        try:
            os.write(writer, bytes([status]) + line.encode(errors="replace"))
        except BrokenPipeError:  # the starter was ended meanwhile: end like a daemon that was told to
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(writer)
        writer = -1

    def ready() -> None:
        report(exitcodes.OK)

    try:
        os.setsid()
        os.chdir("/")
        return serve(ready)
    except UserError as error:
        report(error.status, str(error))
        return error.status
    except BaseException as error:
        logging.getLogger(__name__).exception("a bug of ours ended the daemon")
        report(exitcodes.BUG, f"a bug of ours: {error!r}; the log has the traceback")
        return exitcodes.BUG
