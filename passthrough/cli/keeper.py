"""The process outside the sandbox: it makes what is served visible, waits for the daemon, and takes it away again.

Rules: it stays in the caller's namespaces with the caller's rights, holds nothing of what is served open, and obeys
nothing that the daemon says once that serves, but that it leaves; how it is, in words that are known, is passed on to
the service manager, whom this process alone speaks to. What it does for a kind of service is that service's Door. The
daemon is a child: it dies when this process does, and what it leaves behind, however it ends, is cleared here.

    keeper      fork ────────────────────────┐ die when the keeper does
    go-between  │ namespaces, fork, end      │
    daemon      └─▶ root, descriptors, capabilities, seccomp, serve
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Protocol

import sandbox

from .. import exitcodes
from ..errors import UserError
from . import channel
from .background import Ready
from .channel import Channel, Message
from .manager import Manager
from .pulse import Pulse
from .signals import ENDING, Signals

_log = logging.getLogger(__name__)

_LEAVE_S = 5.0
"""How long the daemon may take to see by itself that what it served is gone."""
_READY_S = 5.0
"""How long it may take to say that it is ready, when a signal to end came before."""
_QUIESCE_S = 15.0
"""How long it may take to answer what is in flight."""


class Door(Protocol):
    """What is made in the caller's namespaces, and undone there."""

    replaces: bool
    """Whether goes_on_after() may say so."""

    def begin(self) -> list[int]:
        """Make it; the descriptors that the daemon needs, which will be closed here. UserError where it cannot be."""

    def without_io_uring(self) -> None:
        """The next begin() does without."""

    def try_to_end(self) -> bool:
        """Undo it where nobody uses it; whether it is gone."""

    def end(self) -> None:
        """Undo it, whoever uses it. Also where there is nothing to undo."""

    def goes_on_after(self, number: signal.Signals) -> bool:
        """Whether another daemon takes the place of one that served, and was ended by this signal unasked."""

    def look(self) -> Callable[[], bool] | None:
        """What makes a request of its own and says whether it was answered, or None where the daemon must look."""

    def status(self, word: str) -> str:
        """The state that is meant by `ready`, or by another word of the daemon's, for people; empty for none."""


Daemon = Callable[[Channel], int]
"""Runs in the child: enters the sandbox, serves, and returns the exit status."""


def keep(door: Door, daemon: Daemon, ready: Ready, manager: Manager) -> int:
    """Start the daemon and wait for its end; the exit status. ready() is called once, when it serves, and the service
    manager is told of that and of what comes."""
    try:
        sandbox.adopt_orphans()
    except ImportError as error:
        raise UserError(f"sandbox: {error}", exitcodes.SANDBOX) from error
    tell = ready
    while True:
        ours, theirs = channel.pair()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until each side knows what to do with one
        child = os.fork()
        if child == 0:
            ours.close()
            os._exit(_run(daemon, theirs))
        theirs.close()
        status = _Keeper(door, ours, child, manager).run(tell)
        if status is not None:
            return status
        ours.close()
        tell = _nothing  # the starter knows


def _nothing() -> None:
    pass


def _run(daemon: Daemon, outside: Channel) -> int:
    """The child, up to its end: no exception and no exit handler of the starter's goes beyond."""
    status, line = exitcodes.BUG, ""
    try:
        return daemon(outside)
    except UserError as error:
        status, line = error.status, str(error)
    except sandbox.SandboxError as error:
        status, line = exitcodes.SANDBOX, str(error)
    except BaseException as error:
        _log.exception("a bug of ours ended the daemon")
        line = f"a bug of ours: {error!r}; the log has the traceback"
    finally:
        logging.shutdown()
    try:
        outside.say("failed", status, line)
    except OSError:  # nobody is left to be told
        pass
    return status


class _Keeper:
    def __init__(self, door: Door, inside: Channel, child: int, manager: Manager) -> None:
        self._door = door
        self._manager = manager
        self._pulse: Pulse | None = None
        self._inside = inside
        self._child = child
        self._reaped = False
        self._opened = False
        self._told_to_end = False
        self._signals = Signals()
        self._told = False

    def run(self, ready: Ready) -> int | None:
        """The exit status, or None where another daemon is to take this one's place."""
        try:
            self._start()
            ready()
            self._manager.ready(self._door.status("ready"))
            self._begin_pulse()
            if self._told_to_end:
                self._end_it()
            else:
                self._wait()
        except BaseException:
            self._kill()
            self._door.end()
            raise
        finally:
            self._signals.close()
        if not self._door.replaces:
            self._door.end()  # first: a daemon may hang in what it serves
            return self._status()
        status = self._status()
        if status is not None:
            self._door.end()
        return status

    # Until it serves

    def _start(self) -> None:
        while True:
            message = self._next()
            if message.word == "pid":
                self._adopt(message.status)
            elif message.word in ("placed", "again"):
                self._open_door(again=message.word == "again")
            elif message.word == "ready":
                return
            elif message.word == "failed":
                raise UserError(message.text, message.status)
            else:
                raise UserError(f"the daemon ended before it was ready{self._how()}", exitcodes.SYSTEM)

    def _adopt(self, pid: int) -> None:
        """The go-between ends, and its child is ours: only then it may ask to die with its parent."""
        self._reap()
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError as error:  # no child of ours, which we must not signal
            raise UserError("the daemon ended before it was ready", exitcodes.SYSTEM) from error
        self._child, self._reaped = pid, False

    def _next(self) -> Message:
        poll = select.poll()
        poll.register(self._inside.fileno(), select.POLLIN)
        poll.register(self._signals.fileno(), select.POLLIN)
        while self._inside.fileno() not in (found := {fd for fd, _ in poll.poll(self._patience())}):
            # What can be used already is ended as one that is ready, which it is about to be.
            ending = self._signals.ending()
            if (ending and not self._opened) or not found:
                raise UserError("ended before the mount was ready", exitcodes.INTERRUPTED)
            self._told_to_end |= ending
        return self._inside.hear()

    def _patience(self) -> float | None:
        return _READY_S * 1000 if self._told_to_end else None

    def _open_door(self, *, again: bool) -> None:
        if again:
            self._door.end()
            self._door.without_io_uring()
        descriptors = self._door.begin()
        self._opened = True
        try:
            self._inside.say("fds", descriptors=descriptors)
        except OSError:  # it is gone, which the next message says
            pass
        finally:
            channel.close_all(descriptors)

    # While it serves

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._inside.fileno(), select.POLLIN)  # its end, or that it leaves
        poll.register(self._signals.fileno(), select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._inside.fileno() in ready and not self._overheard():
                break
            if self._signals.ending():
                self._end_it()
                return
        self._manager.stopping()
        self._undo()

    def _begin_pulse(self) -> None:
        look = self._door.look()
        if self._manager.interval is not None and look is not None:
            self._pulse = Pulse(look, self._manager.alive, self._manager.interval)
            self._pulse.start()

    def _overheard(self) -> bool:
        """Whether the daemon only told how it is; False where it leaves, or is gone."""
        word = self._inside.overhear()
        if word == "alive":
            self._manager.alive()
        elif word and not self._told and (text := self._door.status(word)):
            self._manager.status(text)
        return word is None or (bool(word) and word != "leaving")

    def _undo(self) -> None:
        """It has ended, or waits for this in order to end."""
        if self._told or not self._door.replaces:
            self._door.end()
        try:
            self._inside.say("undone")
        except OSError:
            return
        self._gone_within(_LEAVE_S)

    def _end_it(self) -> None:
        """Undo it cleanly where nobody is inside; else the daemon answers what is in flight, then the rest is cut."""
        self._told = True
        self._manager.stopping()
        if self._pulse is not None:
            self._pulse.stop(_LEAVE_S)  # a look is somebody who uses it
        if self._door.try_to_end() and self._gone_within(_LEAVE_S):
            return
        self._tell(signal.SIGTERM)
        if not self._leaves_within(_QUIESCE_S):
            _log.error("the daemon does not end, and is killed")
        self._undo()

    def _leaves_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._inside.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if not self._overheard():
                return True
        return False

    def _gone_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._inside.fileno(), 0)
        return bool(poll.poll(seconds * 1000))

    def _tell(self, number: signal.Signals) -> None:
        """A signal, where the child has not been reaped: its number can then be nobody else's."""
        if not self._reaped:
            os.kill(self._child, number)

    # At the end

    def _kill(self) -> None:
        self._tell(signal.SIGKILL)
        self._reap()

    def _reap(self) -> int:
        if self._reaped:
            return 0
        status = os.waitpid(self._child, 0)[1]
        self._reaped = True
        return status

    def _how(self) -> str:
        status = self._reap()
        return f", by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""

    def _status(self) -> int | None:
        """The daemon's exit status. Who closed the channel and lives on is killed: that is no way to end."""
        self._tell(signal.SIGKILL)
        status = self._reap()
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)
        number = signal.Signals(os.WTERMSIG(status))
        if self._door.replaces and not self._told and self._door.goes_on_after(number):
            return None
        why = " (a system call that means an attack; the kernel's log names it)" if number == signal.SIGSYS else ""
        _log.error("the daemon was ended by %s%s", number.name, why)
        return exitcodes.SERVING
