"""What a mount and a socket have in common for the program that began them: a thread that sees to the end."""

import atexit
import contextlib
import logging
import os
import select
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from .. import exitcodes
from ..errors import UserError
from ..waiting import WAKE_SIGNAL

log = logging.getLogger(__name__)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end run()."""


class Running(ABC):
    """A file system that is being served by threads of this process. It ends by close(), by what ends it from outside,
    and at the latest when the program ends in the ordinary way.

    All methods may be called from any thread, but for run(); none from a method of the file system itself.
    """

    def __init__(self, name: str) -> None:
        self.failure: str | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._wake = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._see_to_the_end, name=name, daemon=True)

    def _begin(self) -> None:
        atexit.register(self.close)
        self._thread.start()

    @abstractmethod
    def _serve(self) -> None:
        """In a thread: until it is over, and nothing is left."""

    @abstractmethod
    def _end(self) -> None:
        """Let _serve() come to its end. May be called again, and when that is over."""

    def _see_to_the_end(self) -> None:
        try:
            self._serve()
        except Exception as error:
            log.exception("serving ended")
            self.failure = self.failure or str(error) or repr(error)
        finally:
            atexit.unregister(self.close)
            with self._lock:
                self._ended.set()
                if self._wake >= 0:
                    os.eventfd_write(self._wake, 1)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, at most timeout seconds; whether it is. UserError says why it ended too early."""
        if not self._ended.wait(timeout):
            return False
        self._thread.join()
        self._tell()
        return True

    def run(self) -> None:
        """The foreground, for the main thread: wait until it is over, or until SIGINT, SIGTERM or SIGHUP ends it.

        Handlers of these, and of SIGURG where there was none, are there for as long as this lasts. UserError as wait().
        ValueError in another thread than the main one.
        """
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with _ending_signals(wake):
                try:
                    self._wake_at_the_end(wake)
                    poll = select.poll()
                    poll.register(wake, select.POLLIN)
                    poll.poll()
                finally:
                    self.close()
        finally:
            self._wake = -1
            os.close(wake)
        self._tell()

    def _wake_at_the_end(self, wake: int) -> None:
        with self._lock:
            self._wake = wake
            if self._ended.is_set():
                os.eventfd_write(wake, 1)

    def close(self) -> None:
        """End it, whoever uses it, and wait for that: no thread and no descriptor is left. May be called again."""
        if os.getpid() != self._process:
            return  # a child that was forked has none of the threads, and the mount is its parent's
        self._end()
        self._thread.join()

    def _tell(self) -> None:
        if self.failure is not None:
            raise UserError(self.failure, exitcodes.SERVING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if kind is None:  # else what went wrong in the block is told; this is in the log
            self._tell()


@contextlib.contextmanager
def _ending_signals(wake: int) -> Iterator[None]:
    """Signals that end write to this eventfd; what they did before they do again afterwards."""
    before = {number: signal.signal(number, lambda *_: os.eventfd_write(wake, 1)) for number in ENDING}
    if signal.getsignal(WAKE_SIGNAL) in (signal.SIG_DFL, signal.SIG_IGN):
        before[WAKE_SIGNAL] = signal.signal(WAKE_SIGNAL, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
