"""A FUSE mount as the process outside the sandbox sees it: made, found by `umount`, and undone."""

import contextlib
import errno
import logging
import os
import signal

from .. import exitcodes
from ..errors import UserError
from ..transport import mounting
from ..transport.devfuse import clone
from . import state

log = logging.getLogger(__name__)


class MountDoor:
    """One mount, its state file, and the device's descriptors for the daemon (keeper.Door)."""

    replaces = False

    def __init__(self, request: mounting.MountRequest, *, source: str, descriptors: int) -> None:
        self._request = request
        self._source = source
        self._count = descriptors
        self._mounted: mounting.Mounted | None = None
        self._state: state.StateFile | None = None

    def begin(self) -> list[int]:
        """Mount."""
        self._mounted = mounted = mounting.mount(self._request)
        descriptors = [mounted.fd]
        try:
            descriptors += [clone(mounted.fd) for _ in range(self._count - 1)]
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
        return self._mounted is None or (self._mounted.is_there() and self._unmounted(lazy=False, force=False))

    def end(self) -> None:
        """Unmount, if it is there; the state file goes."""
        if self._mounted is not None and self._mounted.is_there():
            self._unmounted(lazy=True, force=True)
        self._mounted = None
        if self._state is not None:
            self._state.remove()
            self._state = None

    def goes_on_after(self, number: signal.Signals) -> bool:
        """Never: what the daemon knew of the mount is gone with it."""
        return False

    def _unmounted(self, *, lazy: bool, force: bool) -> bool:
        assert self._mounted is not None
        try:
            mounting.unmount(self._mounted.mountpoint, lazy=lazy, force=force)
        except (OSError, UserError) as error:
            # EINVAL: somebody else has just unmounted it; the table may show it for a moment yet
            gone = getattr(error, "errno", None) == errno.EINVAL or not self._mounted.is_there()
            log.log(logging.ERROR if force and not gone else logging.DEBUG, "unmount: %s", error)
            return gone
        return True


def see_that_it_answers(mountpoint: str) -> None:
    """The starter's last look; UserError, and no mount, where the daemon does not serve."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        with contextlib.suppress(OSError, UserError):
            mounting.unmount(mountpoint, lazy=True, force=True)
        raise UserError(f"{mountpoint}: the mount does not answer: {error.strerror}", exitcodes.SERVING) from error
