"""The daemon of a FUSE mount, inside its sandbox: take the device over, serve, wait for a signal or the unmount."""

import fcntl
import gc
import logging
import os
import resource
import select
from collections.abc import Callable, Sequence

import sandbox

from .. import exitcodes
from ..errors import UserError
from ..filesystem import FileSystem
from ..fs.tree.base import RESERVED_DESCRIPTORS
from ..server import Server
from ..sessions import Settings, attempt, should_do_without_io_uring
from ..transport import uring
from ..transport.session import Session
from .channel import Channel
from .signals import Signals

log = logging.getLogger(__name__)

_QUIESCE_S = 5.0
_JOIN_S = 5.0
_ROOM = 1 << 17  # descriptors, for which the kernel needs a mebibyte
_FEWEST = 16  # descriptors, below which nothing can be served
_HIGHEST = 1024  # the daemon's own descriptors are all below, before a client pins one
_OF_A_RING = 2  # descriptors of a queue of FUSE over io_uring


def tame_collector() -> None:
    """What was imported lives for ever, and serving makes no cycles: looking for them costs more than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def make_room() -> None:
    """Have the kernel make the table of descriptors large, before there are threads.

    It grows by doubling, and from the second thread on each time waits for an RCU grace period, some 10 ms (Linux,
    fs/file.c, expand_fdtable), in which the request that needed the descriptor waits too.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(soft, _ROOM) - 1))


def open_descriptors() -> frozenset[int]:
    """All of this process."""
    return frozenset(filter(_is_open, map(int, os.listdir("/proc/self/fd"))))  # but for the one that listdir had


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Service:
    """The daemon's side of one mount.

    make(inside, descriptors) makes the file system when the sandbox is closed: descriptors is how many its clients may
    pin. Where /sys and /proc are needed, they are looked at when this is made, which is outside.
    """

    def __init__(self, settings: Settings, outside: Channel, make: Callable[[sandbox.Inside, int], FileSystem]) -> None:
        self._settings = settings
        self._outside = outside
        self._make = make
        self._cpus = uring.possible_cpus() if settings.flags else []
        self._own = 0
        self._session: Session
        self._server: Server
        self._fs: FileSystem

    @property
    def step(self) -> sandbox.Step:
        """To be done when the root is there and the sandbox not yet closed."""
        return sandbox.Step("take over the device of the mount, which is made outside", self._prepare)

    def _prepare(self) -> None:
        self._signals = Signals()  # of the process that serves, while sockets can still be made
        self._outside.say("placed")
        self._take_over()
        rings = _OF_A_RING * len(self._cpus)
        self._own = sum(map(_is_open, range(_HIGHEST))) + rings

    def _take_over(self) -> None:
        descriptors = self._hear_descriptors()
        settings = self._settings
        self._session = Session(descriptors[0], settings.threads, settings.payload, descriptors[1:], self._cpus)

    def _hear_descriptors(self) -> Sequence[int]:
        descriptors = self._outside.hear().descriptors
        if not descriptors:  # the keeper had an error of its own to tell, or is dead
            raise UserError("ended before the mount was ready", exitcodes.INTERRUPTED)
        return descriptors

    def serve(self, inside: sandbox.Inside, begun: Callable[[], None]) -> int:
        """In the sandbox: until the mount is gone or a signal ends it; the exit status. begun() when it answers."""
        try:
            return self._serve(inside, begun)
        finally:
            self._signals.close()

    def _serve(self, inside: sandbox.Inside, begun: Callable[[], None]) -> int:
        self._fs = self._make(inside, self._budget())
        make_room()
        self._begin()
        begun()
        self._outside.say("ready")
        poll = select.poll()
        poll.register(self._session.ended, select.POLLIN)
        poll.register(self._signals.fileno(), select.POLLIN)
        while self._session.ended not in {fd for fd, _ in poll.poll()} and not self._signals.ending():
            pass
        return self._leave()

    def _budget(self) -> int:
        """How many descriptors clients may pin: what is allowed, without ours. UserError where that leaves none."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = soft - self._own - RESERVED_DESCRIPTORS
        if left < _FEWEST:
            raise UserError(
                f"{soft} open files are too few: the daemon itself needs {soft - left + _FEWEST}; raise the limit "
                "(ulimit -n, --rlimit-nofile), or use fewer threads",
                exitcodes.SYSTEM,
            )
        return left

    def _begin(self) -> None:
        """Serve; returns when INIT has been answered. UserError where that is not to be had."""
        settings = self._settings
        why = self._attempt(settings)
        if why and should_do_without_io_uring(self._session, settings):
            log.warning("%s; requests are read from /dev/fuse instead", why)
            self._outside.say("again")
            self._give_up()
            self._take_over()
            why = self._attempt(settings.without_io_uring())
        if why:
            raise UserError(why, exitcodes.KERNEL)

    def _attempt(self, settings: Settings) -> str | None:
        self._server = attempt(self._fs, self._session, settings)
        return self._server.failure

    def _give_up(self) -> None:
        """The mount could not begin, and is being undone outside."""
        if self._session.join(_JOIN_S):
            self._session.close()
        self._server.close()

    def _unmounted_outside(self) -> None:
        """Wait for it: as long as this process lives, what is cut off ends as at any unmount (ECONNABORTED)."""
        try:
            self._outside.say("leaving")
        except OSError:
            return
        poll = select.poll()
        poll.register(self._session.ended, select.POLLIN)
        poll.register(self._outside.fileno(), select.POLLIN)
        poll.poll(_JOIN_S * 1000)

    def _leave(self) -> int:
        """Answer what is in flight, where there is a mount yet; what then remains ends with this process."""
        session = self._session
        if session.join(0):
            self._server.close()
        else:
            self._server.interrupt_waiting()
            if not session.quiesce(_QUIESCE_S):
                log.warning("requests are still unanswered and will be aborted")
            self._unmounted_outside()
        if session.failure:
            log.error("%s", session.failure)
            return exitcodes.SERVING
        return exitcodes.OK
