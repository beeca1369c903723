"""passthrough serve: from the options to a socket that a virtual machine's front end can connect to."""

import json
import logging
import os
import resource
import stat

import sandbox

from .. import exitcodes, log
from ..errors import UserError
from ..filesystem import FileSystem
from ..fs.readonly import ReadOnly
from ..fs.tree import Tree
from ..protocol import constants as c
from ..protocol.negotiation import Wishes
from ..server import Server
from ..transport.vhost import listener as listening
from ..transport.vhost.backend import Backend
from ..transport.vhost.device import config_space
from . import keeper
from .serve_options import ServeOptions
from .serving import Signals, tame_collector

_log = logging.getLogger(__name__)

CAPABILITIES = {"type": "fs", "features": ["separate-options"]}
"""What --print-capabilities says (vhost-user.json, VHostUserBackendCapabilities)."""
_MAX_WRITE = 1 << 20
_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}


def run(options: ServeOptions) -> int:
    """Serve until a signal ends it, or with once until the first front end has gone."""
    if options.print_capabilities:
        print(json.dumps(CAPABILITIES, indent=2))
        return exitcodes.OK
    _begin_log(options)
    source = open_source(options.shared_dir)
    if options.fd is not None:
        listener = listening.inherited(options.fd)
    else:
        assert options.socket_path is not None
        listener = listening.listen(options.socket_path, options.socket_group)
    owner = os.getpid()
    try:
        return keeper.keep(lambda ready: _serve(source, listener, options, ready))
    finally:
        if os.getpid() == owner:
            listener.close()


def _begin_log(options: ServeOptions) -> None:
    if options.syslog:
        log.to_syslog()
    else:
        log.to_stderr(debug=options.debug)
    level = "debug" if options.debug else options.log_level
    logging.getLogger().setLevel(_LEVELS[level])


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


def _serve(source: int, listener: listening.Listener, options: ServeOptions, ready: keeper.Say) -> int:
    signals = Signals()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _confine()
    _limit_files(options.rlimit_nofile, before)
    tree: FileSystem = Tree(source, options.tree())
    if options.readonly:
        tree = ReadOnly(tree)
    wishes = Wishes(
        flags=options.flags(tree.flags) | c.FUSE_MAX_PAGES,
        required=tree.required | (c.FUSE_POSIX_ACL if options.posix_acl else 0),
        max_write=_MAX_WRITE,
    )
    requests = logging.getLogger(f"{__package__}.requests").debug if _wants_requests(options) else None
    server = Server(tree, wishes, debug=requests)
    config = None if options.tag is None else config_space(options.tag, options.num_request_queues)
    backend = Backend(server, _MAX_WRITE, options.thread_pool_size, config)
    tame_collector()
    ready()
    _log.info("%s: waiting for a front end", options.socket_path or f"--fd={options.fd}")
    backend.run(listener.socket, signals, once=options.once)
    return exitcodes.OK


def _wants_requests(options: ServeOptions) -> bool:
    return options.debug or options.log_level == "trace"


def _confine() -> None:
    """The one place where the sandbox is planned and entered."""
    try:
        left_out = sandbox.enter(sandbox.plan())
    except sandbox.SandboxError as error:
        raise UserError(str(error), exitcodes.SANDBOX) from error
    for line in left_out:
        _log.warning("left out: %s", line)


def _limit_files(wish: int | None, before: tuple[int, int]) -> None:
    """--rlimit-nofile; the sandbox has set the default. UserError where an explicit wish cannot be had."""
    if wish is None:
        return
    soft = wish or before[0]
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(soft, hard)))
    except (OSError, ValueError) as error:
        raise UserError(f"--rlimit-nofile={wish}: {error}", exitcodes.PERMISSION) from error
