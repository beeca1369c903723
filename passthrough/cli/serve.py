"""passthrough serve: from the options to a socket that a virtual machine's front end can connect to."""

import contextlib
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable

import sandbox

from .. import exitcodes, log
from ..errors import UserError
from ..filesystem import FileSystem
from ..protocol import constants as c
from ..protocol.negotiation import Wishes
from ..server import Server
from ..share import check_source, file_system
from ..transport.vhost import listener as listening
from ..transport.vhost.backend import Backend
from ..transport.vhost.device import config_space
from . import background, confine
from .channel import Channel
from .keeper import keep
from .launch import wanted_log
from .manager import from_environment
from .opener import FileOpener
from .pulse import Pulse
from .serve_options import ServeOptions
from .serving import make_room, tame_collector
from .signals import Signals

_log = logging.getLogger(__name__)

CAPABILITIES = {"type": "fs", "features": ["separate-options"]}
"""What --print-capabilities says (vhost-user.json, VHostUserBackendCapabilities)."""
_MAX_WRITE = 1 << 20
_CALLS = ("accept4", "getpeername", "getsockname", "getsockopt", "memfd_create", "shutdown")
"""System calls of a back end beyond those of a daemon that serves files; memfd_create for the record of requests in
flight, which the front end is given."""
_CAUSES = {
    signal.SIGBUS: "the front end took memory away that it had shared",
    signal.SIGKILL: "somebody, or the kernel for want of memory, killed it",
}


def run(options: ServeOptions) -> int:
    """Serve until a signal ends it, or with once until the first front end has gone."""
    if options.print_capabilities:
        print(json.dumps(CAPABILITIES, indent=2))
        return exitcodes.OK
    source_fd = open_source(options.shared_dir)
    check_source(source_fd, options.shared_dir, options)
    real = os.path.realpath(options.shared_dir)
    wanted = wanted_log(options, "serve", real, options.socket_path or f"--fd={options.fd}")
    streams = background.Streams(wanted)
    share = _Share(source_fd, real, options, log.requests(wanted))
    if options.sandbox_explain:
        needs = share.needs(streams.keep)
        print("\n".join(confine.explain(options, needs, "take over the socket, which is made outside")))
        return exitcodes.OK
    confine.warn(options)
    if options.fd is not None:
        listener = listening.inherited(options.fd)
    else:
        assert options.socket_path is not None
        listener = listening.listen(options.socket_path, options.socket_group)
    confine.preload()
    manager = from_environment(os.environ, stays=True)
    door = _SocketDoor(listener, real)
    return keep(door, lambda outside: share.serve(outside, streams.keep, manager.interval), lambda: None, manager)


class _SocketDoor:
    """The listening socket, as the process outside the sandbox keeps it (keeper.Door).

    Guest memory is memory of somebody else's file. Where that file shrinks, touching it is SIGBUS, which no Python code
    can outlive; so it ends one front end's connection with the daemon that served it, and another takes its place.
    """

    replaces = True

    def __init__(self, listener: listening.Listener, source: str) -> None:
        self._listener = listener
        self._source = source
        self._ended = False

    def begin(self) -> list[int]:
        """It listens already."""
        return [os.dup(self._listener.socket.fileno())]

    def without_io_uring(self) -> None:
        """It has none."""

    def try_to_end(self) -> bool:
        """Front ends may be connected: the daemon is told."""
        return False

    def end(self) -> None:
        """Remove the socket; once."""
        if not self._ended:
            self._ended = True
            self._listener.close()

    def goes_on_after(self, number: signal.Signals) -> bool:
        """Another accepts the next front end."""
        cause = _CAUSES.get(number, "a bug of ours, or of the interpreter")
        _log.error("the process that served was ended by %s (%s); another takes its place", number.name, cause)
        return True

    def look(self) -> None:
        """A guest's requests can only be seen where they are served."""

    def status(self, word: str) -> str:
        """What for whom."""
        state = {"ready": "waiting for a front end", "waiting": "waiting for a front end", "connected": "connected"}
        return f"{self._source}: {state[word]}" if word in state else ""


def open_source(path: str) -> int:
    """The directory or regular file to share, as an O_PATH descriptor: opened once, and not to be exchanged later."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: cannot open what to share: {error.strerror}", exitcodes.SOURCE) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        os.close(fd)
        raise UserError(f"{path}: only a directory or a regular file can be shared", exitcodes.SOURCE)
    return fd


class _Share:
    """What is shared, and the daemon that serves it."""

    def __init__(self, fd: int, path: str, options: ServeOptions, requests: Callable[[str], None] | None) -> None:
        self._fd = fd
        self._requests = requests
        self._path = path
        self._options = options
        self._opener = FileOpener(options)
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._signals: Signals
        self._socket: socket.socket

    def needs(self, log_descriptors: frozenset[int]) -> confine.Needs:
        """What the sandbox leaves to the daemon. A single file is all that there is, held by its descriptor."""
        return confine.Needs(
            path=None if self._is_file else self._path,
            opened=None if self._is_file else self._fd,
            readonly=self._options.readonly,
            file_handles=not self._is_file and self._opener.wanted,
            files=frozenset({self._fd}) if self._is_file else frozenset(),
            keep=log_descriptors,
            calls=_CALLS,
        )

    def serve(self, outside: Channel, log_descriptors: frozenset[int], interval: float | None) -> int:
        """In the child of the keeper: until a signal ends it. interval: seconds between signs of life, if wanted."""
        options = self._options
        step = sandbox.Step("take over the socket, which is made outside", lambda: self._take_over(outside))
        steps = [] if self._is_file else self._opener.steps(self._fd)
        inside, tell = confine.enter(options, self.needs(log_descriptors), outside, [*steps, step])
        tell()
        fs = self._file_system(inside)
        wishes = Wishes(
            flags=fs.flags | c.FUSE_MAX_PAGES,
            required=fs.required,
            max_write=_MAX_WRITE,
        )
        server = Server(fs, wishes, debug=self._requests)
        config = None if options.tag is None else config_space(options.tag, options.num_request_queues)
        backend = Backend(
            server, _MAX_WRITE, options.thread_pool_size, config, inside.proc if inside.proc >= 0 else None
        )
        tame_collector()
        make_room()
        outside.say("ready")
        _log.info("%s: waiting for a front end", options.socket_path or f"--fd={options.fd}")

        def pass_on(word: str) -> None:
            with contextlib.suppress(OSError):  # the keeper is dead, and this process about to be
                outside.say(word)

        if interval is not None:
            Pulse(backend.answers, lambda: pass_on("alive"), interval).start()
        backend.run(self._socket, self._signals, once=options.once, on_change=pass_on)
        return exitcodes.OK

    def _take_over(self, outside: Channel) -> None:
        self._signals = Signals()  # of the process that serves
        outside.say("placed")
        descriptors = outside.hear().descriptors
        if not descriptors:
            raise UserError("ended before the socket was ready", exitcodes.INTERRUPTED)
        self._socket = socket.socket(fileno=descriptors[0])

    def _file_system(self, inside: sandbox.Inside) -> FileSystem:
        root = inside.root if inside.root >= 0 and not self._is_file else self._fd
        proc = inside.proc if inside.root >= 0 else None
        return file_system(root, self._options, proc, readonly=self._options.readonly, opener=self._opener.client)
