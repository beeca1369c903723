"""passthrough mount: from the options to a mount that answers."""

import contextlib
import logging
import os
import signal
import stat
import sys
from dataclasses import replace

import sandbox

from .. import exitcodes, log
from ..errors import UserError
from ..fs.tree import Choice, Covered, Tree
from ..options import MountOptions
from ..transport import mounting
from . import background, state
from .serving import Mount, tame_collector

_log = logging.getLogger(__name__)

_FUSE_CONF = "/etc/fuse.conf"


def run(source: str, mountpoint: str, options: MountOptions, *, foreground: bool) -> int:
    """Mount source on mountpoint; returns when it answers, or with foreground when it is over."""
    source_fd = open_source(source)
    real = mounting.check_mountpoint(mountpoint, source, nonempty=options.nonempty)
    options = _within_rights(options)
    request = _request(source, real, options)

    def serve(ready: background.Ready) -> int:
        return _serve(source_fd, request, options, ready, os.path.abspath(source))

    stays = foreground or options.debug

    def begin(ready: background.Ready) -> int:
        return _watched(serve, ready, real, detached=not stays) if options.auto_unmount else serve(ready)

    log.to_stderr(debug=options.debug)
    if stays:
        return begin(lambda: None)
    background.start(begin, _log_in_background)
    _see_that_it_answers(real)
    return exitcodes.OK


def _log_in_background() -> None:
    log.to_background(os.path.join(state.directory(), "daemon.log"))


def open_source(path: str) -> int:
    """The directory to share, as an O_PATH descriptor: opened once, so that it cannot be exchanged later."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"{path}: the directory to share does not exist", exitcodes.SOURCE) from None
    except OSError as error:
        raise UserError(f"{path}: cannot open the directory to share: {error.strerror}", exitcodes.SOURCE) from error
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise UserError(f"{path}: is no directory; name the directory that it is in", exitcodes.SOURCE)
    if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        os.close(fd)
        raise UserError(
            f"{path}: this user may not read the directory; allow it (chmod, chown) or mount as its owner",
            exitcodes.SOURCE,
        )
    return fd


def _within_rights(options: MountOptions) -> MountOptions:
    """Leave out what this user may not have, saying so once each."""
    if mounting.may_mount():
        if not options.default_permissions and (options.allow_other or options.allow_root):
            raise UserError(
                "no_default_permissions with allow_other would give every user root's rights on SRC",
                exitcodes.USAGE,
            )
        return options
    if options.passthrough is Choice.ON:
        raise UserError(
            "passthrough=on needs CAP_SYS_ADMIN: mount as root, or use passthrough=auto", exitcodes.PERMISSION
        )
    left_out = []
    if (options.allow_other or options.allow_root) and not _user_allow_other():
        left_out.append(f"allow_other (root can allow it: the line user_allow_other in {_FUSE_CONF})")
        options = replace(options, allow_other=False, allow_root=False)
    left_out += [f"{word} (root alone may have it)" for word in ("suid", "dev") if getattr(options, word)]
    options = replace(options, suid=False, dev=False, passthrough=Choice.OFF)
    if left_out:
        print("passthrough: left out for an ordinary user: " + ", ".join(left_out), file=sys.stderr)
    return options


def _user_allow_other() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.partition("#")[0].strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def _request(source: str, mountpoint: str, options: MountOptions) -> mounting.MountRequest:
    return mounting.MountRequest(
        mountpoint=mountpoint,
        fsname=options.fsname or os.path.abspath(source),
        subtype=options.subtype,
        flags=options.mount_flags(),
        allow_other=options.allow_other or options.allow_root,
        owner_only=options.allow_root,
        default_permissions=options.default_permissions,
        max_read=options.max_read,
    )


def _serve(
    source_fd: int, request: mounting.MountRequest, options: MountOptions, ready: background.Ready, source: str
) -> int:
    try:
        left_out = sandbox.enter(sandbox.plan())
    except sandbox.SandboxError as error:
        raise UserError(str(error), exitcodes.SANDBOX) from error
    for line in left_out:
        _log.warning("left out: %s", line)
    if options.writeback and options.passthrough is Choice.AUTO:
        _log.info("with writeback the kernel does not read and write the files itself: passthrough=off")
    covered = Covered.before_mount(request.mountpoint)
    tree = Tree(source_fd, options.tree(), covered)
    mount = Mount(
        tree,
        request,
        threads=options.threads,
        max_write=options.max_write,
        io_uring=options.io_uring,
        debug=options.debug,
        source=source,
    )
    mount.start()
    tame_collector()
    ready()
    return mount.run()


def _watched(serve: background.ServeFunction, ready: background.Ready, mountpoint: str, *, detached: bool) -> int:
    """auto_unmount: a process that outlives the daemon, however that ends, and clears the mount.

    fusermount3 has an option of that name, which before libfuse 3.15 does nothing without allow_other.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, background.ENDING)  # until each side knows what to do with one
    watcher = os.getpid()
    daemon = os.fork()
    if daemon == 0:
        sandbox.die_with_parent()
        if os.getppid() != watcher:
            raise UserError("ended before the mount was ready", exitcodes.INTERRUPTED)
        return serve(ready)
    if detached:
        _log_in_background()
        background.close_streams()
    for number in background.ENDING:
        signal.signal(number, lambda number, frame: os.kill(daemon, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, background.ENDING)
    _, status = os.waitpid(daemon, 0)
    if mounting.is_dead(mountpoint):
        try:
            mounting.unmount(mountpoint, lazy=True)
        except (OSError, UserError) as error:
            _log.error("%s: cannot clear the mount: %s", mountpoint, error)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else exitcodes.SERVING


def _see_that_it_answers(mountpoint: str) -> None:
    try:
        os.stat(mountpoint)
    except OSError as error:
        with contextlib.suppress(OSError, UserError):
            mounting.unmount(mountpoint, lazy=True, force=True)
        raise UserError(f"{mountpoint}: the mount does not answer: {error.strerror}", exitcodes.SERVING) from error
