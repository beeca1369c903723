"""A process that keeps another alive: where the one that serves a guest is ended by a signal, another takes its place.

Guest memory is memory of somebody else's file. Where that file shrinks, touching it is SIGBUS, which no Python code can
outlive; so it ends one front end's connection with the process that served it, and nothing else.
"""

import logging
import os
import signal
from collections.abc import Callable

import sandbox

from .. import exitcodes
from ..errors import UserError
from .background import ENDING

Say = Callable[[], None]

log = logging.getLogger(__name__)

_CAUSES = {
    int(signal.SIGBUS): "the front end took memory away that it had shared",
    int(signal.SIGKILL): "somebody, or the kernel for want of memory, killed it",
}


class Ready:
    """A pipe on which the process that serves says, once, that it does."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def say(self) -> None:
        """In the one that serves."""
        os.write(self._writer, b"1")

    def said(self) -> bool:
        """In the one that keeps, once the other has ended."""
        try:
            return bool(os.read(self._reader, 1))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Both ends."""
        os.close(self._reader)
        os.close(self._writer)


def keep(serve: Callable[[Say], int]) -> int:
    """Run serve(ready) in a process of its own, again where a signal ends it after it was ready; its exit status.

    Call it before there are threads. In the process that serves it returns what serve returns, or raises what it does.
    """
    while True:
        ready = Ready()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until each side knows what to do with one
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            sandbox.die_with_parent()
            if os.getppid() != keeper:
                raise UserError("ended before it was ready", exitcodes.INTERRUPTED)
            return serve(ready.say)
        status, told = _wait(pid)
        served = ready.said()
        ready.close()
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        if told or not served:
            log.error("the process that serves was ended by %s", name)
            return exitcodes.SERVING
        cause = _CAUSES.get(number, "a bug of ours, or of the interpreter")
        log.error("the process that served was ended by %s (%s); another takes its place", name, cause)


def _wait(pid: int) -> tuple[int, bool]:
    """(the wait status, whether an ending signal was passed on)."""
    told = False

    def forward(number: int, frame: object) -> None:
        nonlocal told
        told = True
        os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in ENDING}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    _, status = os.waitpid(pid, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for number, handler in before.items():
        signal.signal(number, handler)
    return status, told
