"""A FUSE mount as the process outside the sandbox sees it: made, found by `umount`, and undone."""

import logging
import os
import signal
from collections.abc import Callable

from ..syscalls import statx
from ..transport import mounting
from ..transport.devfuse import clone_all
from . import state

log = logging.getLogger(__name__)

_AT_FDCWD, _AT_STATX_FORCE_SYNC = -100, 0x2000
_STATX_BASIC_STATS, _STATX_MNT_ID = 0x7FF, 0x1000


class MountDoor:
    """One mount, its state file, and the device's descriptors for the daemon (keeper.Door)."""

    replaces = False

    def __init__(self, request: mounting.MountRequest, *, source: str, threads: int) -> None:
        self._request = request
        self._source = source
        self._threads = threads
        self._mounted: mounting.Mounted | None = None
        self._state: state.StateFile | None = None

    def begin(self) -> list[int]:
        """Mount."""
        self._mounted = mounted = mounting.mount(self._request)
        descriptors = [mounted.fd]
        try:
            descriptors += clone_all(mounted.fd, self._threads - 1)
            self._state = state.StateFile(mounted.device, self._source, mounted.mountpoint)
        except BaseException:
            for fd in descriptors:
                os.close(fd)
            raise
        return descriptors

    def without_io_uring(self) -> None:
        """Nothing differs here."""

    def try_to_end(self) -> bool:
        """Unmount where it is not in use."""
        return self._mounted is None or (self._mounted.is_there() and self._mounted.undo())

    def end(self) -> None:
        """Unmount, if it is there; the state file goes."""
        if self._mounted is not None and self._mounted.is_there():
            self._mounted.undo(lazy=True, force=True)
        self._mounted = None
        if self._state is not None:
            self._state.remove()
            self._state = None

    def goes_on_after(self, number: signal.Signals) -> bool:
        """Never: what the daemon knew of the mount is gone with it."""
        return False

    def look(self) -> Callable[[], bool] | None:
        """GETATTR of the mount's root, which the kernel must ask for (AT_STATX_FORCE_SYNC), whatever it remembers."""
        return self._answers

    def _answers(self) -> bool:
        assert self._mounted is not None
        found = statx(
            _AT_FDCWD, os.fsencode(self._mounted.mountpoint), _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS | _STATX_MNT_ID
        )
        if self._mounted.mount_id and found[-1] != self._mounted.mount_id:
            log.debug("%s: something else is mounted over it", self._mounted.mountpoint)
        return True

    def status(self, word: str) -> str:
        """What is where."""
        return f"{self._source} on {self._request.mountpoint}" if word == "ready" else ""
