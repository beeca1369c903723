"""The daemon's life: one front end after the other, and what becomes of the FUSE session in between.

A session ends with its connection, unless the front end keeps the record of requests in flight (INFLIGHT_SHMFD): then
it may come back for the same guest, which still holds nodeids and open files, and shows so by passing the record.
"""

import contextlib
import logging
import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ...server import Server
from .device import Device
from .session import Stop, converse
from .virtiofs import VirtioFs

log = logging.getLogger(__name__)

_PARKED_S = 300.0


class Backend:
    """Serves front ends, one at a time."""

    def __init__(
        self, server: Server, payload: int, helpers: int, config: bytes | None, proc: int | None = None
    ) -> None:
        """payload: the most bytes of data in a request; helpers: threads for what may take long; config: the config
        space, where the tag is ours to tell; proc: a descriptor of /proc/self/fd, where that path leads elsewhere."""
        self._proc = proc
        self._server = server
        self._helpers = ThreadPoolExecutor(helpers, "helper") if helpers else None
        self._virtiofs = VirtioFs(server, payload, self._helpers)
        self._config = config
        self._parked: tuple[int, int] | None = None
        self._device: Device | None = None
        self._seen: dict[int, int | None] = {}

    def answers(self) -> bool:
        """Whether every ring got on since this was asked last, or has nothing that waits. From any thread; no ring is
        asked twice at the same place unless it had the time in between."""
        device, before = self._device, self._seen
        self._seen = {} if device is None else device.nudge()
        return not any(at is not None and before.get(index) == at for index, at in self._seen.items())

    def run(
        self, listener: socket.socket, stop: Stop, *, once: bool, on_change: Callable[[str], None] = lambda _: None
    ) -> None:
        """Until we must end, or with once until the first front end has gone. on_change() is told `connected` and
        `waiting`."""
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(listener, select.POLLIN)
        listener.setblocking(False)
        while not stop.ending():
            ready = {fd for fd, _ in poll.poll(_PARKED_S * 1000 if self._parked else None)}
            if not ready:
                self._forget()
            if listener.fileno() in ready and self._accept(listener, stop, on_change) and once:
                break
        self._forget()
        if self._helpers is not None:
            self._helpers.shutdown()

    def _accept(self, listener: socket.socket, stop: Stop, on_change: Callable[[str], None]) -> bool:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            log.debug("accept: %s", error)
            return False
        log.info("a front end has connected")
        on_change("connected")
        device = Device(self._virtiofs.for_queue, self._begin, self._forget, self._config, self._proc)
        self._device = device
        with connection:
            why = converse(connection, device, stop)
            self._device = None
            device.close(self._server.restart_waiting)
        if why is not None:
            log.error("the connection ends: %s", why)
        if device.inflight is not None and why is None:
            self._parked = device.inflight.identity
        else:
            self._forget()
        log.info("the front end is gone")
        on_change("waiting")
        return True

    def _begin(self, inflight: tuple[int, int] | None) -> None:
        """The first ring starts: the guest of before, or another."""
        if self._parked is not None and inflight == self._parked:
            log.info("the front end is back")
        else:
            self._forget()

    def _forget(self) -> None:
        """Let go of the guest's nodes and handles."""
        self._parked = None
        with contextlib.suppress(OSError):
            self._server.close()
