"""The service manager that started us, if one did: sd_notify(3) and sd_watchdog_enabled(3).

Rules: the process outside the sandbox alone speaks, so that NotifyAccess=main will do, and the daemon, which a guest
may have taken over, cannot name another process to be killed as the service's (MAINPID). A socket once connected is
kept: libsystemd would look for its path again each time.
"""

import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping

_log = logging.getLogger(__name__)

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LONGEST = 1000
"""Characters of a status."""
_READY_S = 10.0
"""How long a manager that has much to read is waited for, where it must hear: nothing tells it a second time."""


class Manager:
    """Told of readiness, state and life; without a manager, nobody is. `interval`: seconds between signs of life, half
    of what it waits for one, or None where it waits for none.
    """

    def __init__(self, address: str | None = None, interval: float | None = None) -> None:
        """address: a path, or @ and an abstract name."""
        self.interval = interval if address else None
        self._socket = _connected(address) if address else None

    def ready(self, status: str) -> None:
        """This process serves, whoever was started."""
        self.hand_over(os.getpid(), status)

    def hand_over(self, pid: int, status: str) -> None:
        """From the process that was started: this one goes on, and serves."""
        self._tell(f"MAINPID={pid}", "READY=1", _status(status), seconds=_READY_S)

    def status(self, text: str) -> None:
        """A line for people (systemctl status)."""
        self._tell(_status(text))

    def alive(self) -> None:
        """Requests are being answered."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", _status("ending"))

    def _tell(self, *lines: str, seconds: float = 0.0) -> None:
        if self._socket is None:
            return
        self._socket.settimeout(seconds)
        try:
            self._socket.send("\n".join(lines).encode(errors="replace"), socket.MSG_NOSIGNAL)
        except OSError as error:  # a manager that is being restarted: the next time
            _log.debug("the service manager does not listen: %s", error)

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def from_environment(environment: MutableMapping[str, str], *, stays: bool) -> Manager:
    """Who is to be told; its variables are taken out, since they are not for programs that we start.

    A process that leaves another behind (not stays) speaks only where the manager started it itself: a script of some
    service that mounts something must not make that service ready.
    """
    address, microseconds, watched = (environment.pop(name, "") for name in _VARIABLES)
    started = environment.get("SYSTEMD_EXEC_PID", "")
    if not address or (not stays and started not in ("", str(os.getpid()))):
        return Manager()
    interval = None
    if microseconds.isdecimal() and int(microseconds) and watched in ("", str(os.getpid())):
        interval = int(microseconds) / 2_000_000
    return Manager(address, interval)


def _status(text: str) -> str:
    return "STATUS=" + "".join(sign if sign.isprintable() else "?" for sign in text[:_LONGEST])


def _connected(address: str) -> socket.socket | None:
    if address[0] not in "/@":
        _log.warning("NOTIFY_SOCKET=%s: only UNIX sockets are told of our state", address)
        return None
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        found.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        _log.warning("NOTIFY_SOCKET=%s: %s", address, error.strerror)
        with contextlib.suppress(OSError):
            found.close()
        return None
    return found
