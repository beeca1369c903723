"""Signals that end a daemon, as a readable descriptor, so that one poll waits for everything."""

import signal
import socket

from ..waiting import install_wake_signal

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a daemon cleanly."""


class Signals:
    """Each process makes its own, in its main thread."""

    def __init__(self) -> None:
        self._ending = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, lambda *_: None)
        install_wake_signal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # whoever forks us holds them back meanwhile

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

    def close(self) -> None:
        """Hear of no more signals."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
