"""A sign of life as long as requests are answered: one look after the other, in a thread that may hang in one."""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Pulse:
    """beat() after each look() that says yes. A look that hangs, fails or says no gives no sign, and a warning once."""

    def __init__(self, look: Callable[[], bool], beat: Callable[[], None], interval: float) -> None:
        """interval: seconds between looks."""
        self._look = look
        self._beat = beat
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """The first look is at once."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """No further look; the one under way has so many seconds to end."""
        self._stop.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        well = True
        while True:
            why = self._why_not()
            if self._stop.is_set():
                return
            if why is None:
                self._beat()
            elif well:
                _log.warning("%s: the service manager gets no sign of life", why)
            well = why is None
            if self._stop.wait(self._interval):
                return

    def _why_not(self) -> str | None:
        try:
            return None if self._look() else "requests are not being answered"
        except OSError as error:
            return f"requests fail: {error.strerror}"
