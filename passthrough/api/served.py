"""serve(): any FileSystem for virtual machines, as virtio-fs over vhost-user."""

import logging
import os

from ..filesystem import FileSystem
from ..protocol import constants as c
from ..protocol.negotiation import Wishes
from ..server import Server
from ..transport.vhost import listener as listening
from ..transport.vhost.backend import Backend
from ..transport.vhost.device import TAG_SIZE, config_space, is_tag
from .front import ReadOnly, front
from .mounted import check_waiting
from .running import Running

log = logging.getLogger(__name__)

_MAX_WRITE = 1 << 20
_MOST_QUEUES = 255
_MOST_THREADS = 256


def serve(
    fs: FileSystem,
    socket_path: str | os.PathLike[str] | None = None,
    *,
    fd: int | None = None,
    socket_group: str | None = None,
    tag: str | None = None,
    num_request_queues: int = 1,
    once: bool = False,
    readonly: bool = False,
    thread_pool_size: int = 8,
    debug: bool = False,
) -> "Served":
    """Serve fs to virtual machines, from threads of this process; returns when a front end can connect.

    The arguments are the words of passthrough-serve(1), with the same meaning: one of socket_path, a UNIX socket that
    is made here and removed in the end, and fd, a socket that listens already and stays the caller's. fs is taken over:
    it is closed when this is over.

    UserError where the socket cannot be made (the directory, another daemon), with the command's line and status;
    ValueError for arguments that cannot be, TypeError for an fs that is no FileSystem. fs is then still the caller's.
    """
    _check_numbers(num_request_queues, thread_pool_size, tag)
    if (socket_path is None) == (fd is None) or (fd is not None and socket_group is not None):
        raise ValueError("one of socket_path (with socket_group) and fd is needed, and not both")
    fs = front(fs)
    if fs.required & c.FUSE_PASSTHROUGH:
        raise ValueError("passthrough='on' is for mounts: a guest's kernel cannot read and write the files itself")
    check_waiting(fs)
    if fd is not None:
        listener = listening.inherited(fd)
    else:
        assert socket_path is not None
        listener = listening.listen(os.path.abspath(socket_path), socket_group)
    config = None if tag is None else config_space(tag, num_request_queues)
    return Served(ReadOnly(fs) if readonly else fs, listener, thread_pool_size, config, once=once, debug=debug)


def _check_numbers(num_request_queues: int, thread_pool_size: int, tag: str | None) -> None:
    if not 1 <= num_request_queues <= _MOST_QUEUES:
        raise ValueError(f"num_request_queues={num_request_queues}: it takes a number from 1 to {_MOST_QUEUES}")
    if not 0 <= thread_pool_size <= _MOST_THREADS:
        raise ValueError(f"thread_pool_size={thread_pool_size}: it takes a number from 0 to {_MOST_THREADS}")
    if tag is not None and not is_tag(tag):
        raise ValueError(f"tag={tag!r}: it takes a name of 1 to {TAG_SIZE} bytes")
    if num_request_queues != 1 and tag is None:
        raise ValueError("num_request_queues is told together with tag; without it, say it to the front end")


class _Stop:
    """What ends a back end (transport.vhost.session.Stop)."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC)
        self._ending = False

    def fileno(self) -> int:
        return self._event

    def ending(self) -> bool:
        return self._ending

    def end(self) -> None:
        if self._event >= 0:
            self._ending = True
            os.eventfd_write(self._event, 1)

    def close(self) -> None:
        event, self._event = self._event, -1
        os.close(event)


class Served(Running):
    """A socket that front ends connect to, one after the other, served by this process."""

    def __init__(
        self,
        fs: FileSystem,
        listener: listening.Listener,
        helpers: int,
        config: bytes | None,
        *,
        once: bool,
        debug: bool,
    ) -> None:
        """serve() makes it."""
        super().__init__("served")
        self._fs = fs
        self._listener = listener
        self._once = once
        self._stop = _Stop()
        wishes = Wishes(
            flags=(fs.flags | c.FUSE_MAX_PAGES) & ~c.FUSE_PASSTHROUGH, required=fs.required, max_write=_MAX_WRITE
        )
        self._server = Server(fs, wishes, debug=log.debug if debug else None)
        self._backend = Backend(self._server, _MAX_WRITE, helpers, config)
        self._begin()

    def _serve(self) -> None:
        try:
            self._backend.run(self._listener.socket, self._stop, once=self._once)
        finally:
            with self._lock:
                self._stop.close()
            self._listener.close()
            self._server.close()
            self._fs.close()

    def _end(self) -> None:
        with self._lock:
            self._stop.end()
