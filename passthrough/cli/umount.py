"""passthrough umount: the mount goes, and so does its daemon."""

import errno
import os
import select
import signal

from .. import exitcodes
from ..errors import UserError
from ..transport import mountinfo, mounting
from . import state

_ALONE_MS = 3_000
_DAEMON_END_MS = 15_000


def run(mountpoint: str, *, dead: bool = False) -> int:
    """Unmount cleanly where nobody is inside, else let the daemon finish what is in flight and cut the rest off.

    dead: only what a daemon of ours has left behind, and nothing is said where there is nothing.
    """
    point = _absolute(mountpoint)
    mount = mountinfo.top_mount(point)
    if dead and (mount is None or not mount.fstype.endswith(".passthrough") or not mounting.is_dead(point)):
        return exitcodes.OK
    if mount is None:
        raise UserError(f"{mountpoint}: nothing is mounted there", exitcodes.NOT_MOUNTED)
    if not mount.is_fuse:
        raise UserError(f"{mountpoint}: is a mount of type {mount.fstype}, not ours: umount it", exitcodes.NOT_MOUNTED)
    daemon = state.find(mount.device)
    if daemon is None and not mount.fstype.endswith(".passthrough"):
        raise UserError(
            f"{mountpoint}: is a mount of type {mount.fstype}, not ours: fusermount3 -u it", exitcodes.NOT_MOUNTED
        )
    ending = _process(daemon)
    try:
        _unmount(point, ending)
        _wait(ending, mountpoint)
    finally:
        if ending is not None:
            os.close(ending)
    return exitcodes.OK


def _absolute(path: str) -> str:
    """Without symlinks, and without a look at the mount itself, which may be dead."""
    parent, name = os.path.split(os.path.abspath(path))
    point = os.path.join(os.path.realpath(parent), name)
    return point if mountinfo.top_mount(point) else os.path.realpath(point)


def _process(daemon: state.Daemon | None) -> int | None:
    try:
        return os.pidfd_open(daemon.pid) if daemon else None
    except OSError:
        return None


def _unmount(point: str, daemon: int | None) -> None:
    try:
        mounting.unmount(point)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise UserError(f"{point}: not allowed to unmount: {error.strerror}", exitcodes.PERMISSION) from error
        if error.errno == errno.EINVAL:
            raise UserError(f"{point}: nothing is mounted there any more", exitcodes.NOT_MOUNTED) from error
        if error.errno != errno.EBUSY:
            raise UserError(f"{point}: cannot unmount: {error.strerror}") from error
        if daemon is None:
            mounting.unmount(point, lazy=True)
        else:
            signal.pidfd_send_signal(daemon, signal.SIGTERM)


def _wait(ending: int | None, mountpoint: str) -> None:
    if ending is None:
        return
    poll = select.poll()
    poll.register(ending, select.POLLIN)
    if poll.poll(_ALONE_MS):
        return
    # Another mount namespace (a container's, a service's) has a copy of the mount, which keeps the daemon: stop it.
    signal.pidfd_send_signal(ending, signal.SIGTERM)
    if not poll.poll(_DAEMON_END_MS):
        raise UserError(f"{mountpoint}: unmounted, but the daemon has not ended yet", exitcodes.SYSTEM)
