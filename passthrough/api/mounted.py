"""mount(): any FileSystem on a directory of this machine, served by threads of the program that asks."""

import errno
import logging
import os
import select
import signal
import stat
import threading
from typing import Unpack

from .. import exitcodes
from ..errors import UserError
from ..filesystem import FileSystem
from ..options import MountOptions
from ..protocol import constants as c
from ..sessions import Settings, attempt, request_of, settings_of, should_do_without_io_uring
from ..transport import mounting
from ..transport.session import Session
from ..waiting import WAKE_SIGNAL
from .front import ReadOnly, front, options_of, tree_of
from .running import Running
from .words import MountWords, mount_options

log = logging.getLogger(__name__)

_LEAVE_S = 5.0
_QUIESCE_S = 5.0


def mount(fs: FileSystem, mountpoint: str | os.PathLike[str], **words: Unpack[MountWords]) -> "Mounted":
    """Mount fs on mountpoint, and serve it from threads of this process; returns when the mount answers.

    mountpoint is a directory, or a regular file for a file system whose root is one. words are those of
    passthrough-mount(1) that concern a mount. fs is taken over: it is closed when the mount is over.

    UserError where the mount cannot be made, with the line and the status (exitcodes.py) that the command has for it;
    ValueError for a value that a word does not take; TypeError for a word that is none, and for an fs that is no
    FileSystem. fs is then still the caller's.
    """
    options = mount_options(words, options_of(fs))
    fs = front(fs)
    check_waiting(fs)
    settings = settings_of(options, log.debug if options.debug else None)
    real = _checked(fs, os.fspath(mountpoint), options)
    tree = tree_of(fs)
    name = type(fs).__name__ if tree is None else tree.source
    request = request_of(options, real, name, stat.S_IFMT(os.stat(real).st_mode))
    return Mounted(ReadOnly(fs) if options.ro else fs, request, settings)


def check_waiting(fs: FileSystem) -> None:
    """ValueError where locks can wait and nothing would end that: a signal does, and without a handler
    it is ignored."""
    unhandled = signal.getsignal(WAKE_SIGNAL) in (signal.SIG_DFL, signal.SIG_IGN)
    if unhandled and (fs.flags | fs.required) & (c.FUSE_FLOCK_LOCKS | c.FUSE_POSIX_LOCKS):
        raise ValueError(
            "flock and posix_lock need a handler of SIGURG, which ends what waits for a lock: call "
            "passthrough.install_wake_signal() in the main thread first"
        )


def _checked(fs: FileSystem, mountpoint: str, options: MountOptions) -> str:
    """The mount point without symlinks; the file system has looked at what will be hidden there."""
    if os.path.isfile(mountpoint):
        return mounting.check_file(mountpoint)
    try:
        shown = fs.will_cover(os.path.realpath(mountpoint))
    except OSError as error:
        log.debug("%s: %s", mountpoint, error.strerror)  # the check says it better
        shown = False
    return mounting.check_mountpoint(mountpoint, mountpoint if shown else None, nonempty=options.nonempty)


class Mounted(Running):
    """A mount that this process serves. `mountpoint` is its absolute path, without symlinks."""

    def __init__(self, fs: FileSystem, request: mounting.MountRequest, settings: Settings) -> None:
        """mount() makes it."""
        super().__init__("mounted")
        self.mountpoint = request.mountpoint
        self._fs = fs
        self._settings = settings
        self._holding = threading.Lock()
        self._over = False
        self._mount(request)
        try:
            mounting.see_that_it_answers(request.mountpoint)
        except UserError as error:
            self._abandon()
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                kind = "directory" if stat.S_ISDIR(request.kind) else "regular file"
                raise UserError(f"{error}; is the root of the file system a {kind}?", error.status) from error
            raise
        except BaseException:
            self._abandon()
            raise
        self._begin()

    def _mount(self, request: mounting.MountRequest) -> None:
        why = self._attempt(request, self._settings)
        if why and should_do_without_io_uring(self._session, self._settings):
            log.warning("%s; requests are read from /dev/fuse instead", why)
            self._abandon()
            why = self._attempt(request, self._settings.without_io_uring())
        if why:
            self._abandon()
            raise UserError(why, exitcodes.KERNEL)

    def _attempt(self, request: mounting.MountRequest, settings: Settings) -> str | None:
        self._mounted = mounting.mount(request)
        try:
            self._session = Session(self._mounted.fd, settings.threads, settings.payload, stoppable=True)
        except BaseException:
            self._mounted.undo(lazy=True, force=True)
            os.close(self._mounted.fd)
            raise
        self._server = attempt(self._fs, self._session, settings)
        return self._server.failure

    def _abandon(self) -> None:
        """It could not begin: no mount, and the file system is as it was."""
        if self._mounted.is_there():
            self._mounted.undo(lazy=True, force=True)
        self._session.stop()
        if self._session.join(_LEAVE_S):
            self._session.close()
        self._server.close()

    def _serve(self) -> None:
        """See to the end: the mount is gone, or its queues are."""
        poll = select.poll()
        poll.register(self._session.ended, select.POLLIN)
        poll.poll()
        if self._mounted.is_there():
            self._mounted.undo(lazy=True, force=True)
        with self._holding:
            self._over = True
            self._clear()

    def _clear(self) -> None:
        joined = self._session.join(_LEAVE_S)
        self.failure = self._session.failure
        if not joined:
            self.failure = "a request does not come to its end; its thread and the descriptors of the mount are left"
        self._server.close()
        if joined:
            self._session.close()
            self._fs.close()

    def _end(self) -> None:
        """Unmount it cleanly where nobody is inside; else answer what is in flight, and cut off the rest."""
        with self._holding:
            if self._over:
                return
            if self._mounted.is_there() and self._mounted.undo() and self._ends_within(_LEAVE_S):
                return
            self._server.interrupt_waiting()
            if not self._session.quiesce(_QUIESCE_S):
                log.warning("requests are still unanswered and will be aborted")
            if self._mounted.is_there():
                self._mounted.undo(lazy=True, force=True)
            self._session.stop()

    def _ends_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._session.ended, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
