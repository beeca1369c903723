"""passthrough mount: from the options to a mount that answers."""

import logging
import os
import re
import stat
import sys
from dataclasses import replace

import sandbox

from .. import exitcodes, log
from ..errors import UserError
from ..filesystem import FileSystem
from ..fs.tree import Choice, Covered
from ..options import MountOptions
from ..protocol.constants import FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN
from ..sandbox_options import SandboxMode
from ..sessions import Settings, request_of, settings_of
from ..share import check_source, file_system
from ..transport import mounting
from . import background, by_llfuse, confine
from .channel import Channel
from .door import MountDoor
from .keeper import Daemon
from .launch import launch, wanted_log
from .opener import FileOpener
from .serving import Service, tame_collector

_log = logging.getLogger(__name__)

_KERNEL_WITH_PASSTHROUGH = (6, 9)

_FUSE_CONF = "/etc/fuse.conf"


def run(source: str, mountpoint: str, options: MountOptions, *, foreground: bool) -> int:
    """Mount source on mountpoint; returns when it answers, or with foreground when it is over."""
    source_fd = open_source(source)
    check_source(source_fd, source, options)
    real = mounting.check_mountpoint(mountpoint, source, nonempty=options.nonempty)
    options = _within_rights(options)
    stays = foreground or options.debug
    wanted = wanted_log(options, "mount", os.path.abspath(source), real)
    streams = background.Streams(wanted, detached=not stays)
    options = by_llfuse.with_door(options)
    settings = settings_of(options, log.requests(wanted))
    share = Share(source_fd, os.path.realpath(source), real, options)
    if options.sandbox_explain:
        prepare = f"make the mount on {real} in the caller's mount namespace, and take its device over"
        print("\n".join(confine.explain(options, share.needs(settings, frozenset()), prepare)))
        return exitcodes.OK
    confine.warn(options)
    if (what := options.seen_by_daemon()) and options.passthrough is Choice.AUTO:
        _log.info("with %s the kernel does not read and write the files itself: passthrough=off", what)
    path = os.path.abspath(source)
    door = MountDoor(request_of(options, real, path), source=path, descriptors=settings.descriptors)

    return launch(door, real, streams, lambda: share.daemon(settings, streams), stays=stays)


class Share:
    """What is shared, and what that takes of the sandbox."""

    def __init__(self, fd: int, path: str, mountpoint: str, options: MountOptions) -> None:
        self._fd = fd
        self._path = path
        self._mountpoint = mountpoint
        self._options = options
        self._opener = FileOpener(options)

    def needs(self, settings: Settings, keep: frozenset[int]) -> confine.Needs:
        """What the sandbox leaves to the daemon."""
        backing = self._options.tree().passthrough is not Choice.OFF and _kernel_release() >= _KERNEL_WITH_PASSTHROUGH
        return confine.Needs(
            path=self._path,
            opened=self._fd,
            readonly=self._options.ro,
            receive_mounts=self._mountpoint != self._path and self._within() is None,  # or our own would come in
            kernel_backing=backing,
            file_handles=self._opener.wanted,
            io_uring=bool(settings.flags),
            keep=keep,
            ioctls=(FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE) if backing else (),
        )

    def _within(self) -> str | None:
        """The mount point as a path in the share, or None where it lies elsewhere."""
        if self._mountpoint != self._path and os.path.commonpath([self._path, self._mountpoint]) == self._path:
            return os.path.relpath(self._mountpoint, self._path)
        return None

    def daemon(self, settings: Settings, streams: background.Streams) -> Daemon:
        """What the child of the keeper does."""

        def run(outside: Channel) -> int:
            covered: list[Covered] = []
            session = by_llfuse.begun(settings)
            needs = self.needs(settings, streams.keep | by_llfuse.descriptors(session))
            service = Service(
                settings, outside, lambda inside, budget: self._file_system(inside, budget, covered), session
            )
            steps = [sandbox.Step("remember what the mount will cover", lambda: covered.extend(self._covered()))]
            inside, tell = confine.enter(
                self._options, needs, outside, [*self._opener.steps(self._fd), *steps, service.step]
            )

            def begun() -> None:
                tame_collector()
                streams.inside()
                tell()

            return service.serve(inside, begun)

        return run

    def _covered(self) -> list[Covered]:
        """In a namespace the mount is not there, and covers nothing; by chroot alone the path is another."""
        mode, within = self._options.sandbox, self._within()
        if mode is SandboxMode.NAMESPACE or (mode is SandboxMode.CHROOT and within is None):
            return []
        return [Covered.before_mount(f"/{within}" if mode is SandboxMode.CHROOT else self._mountpoint)]

    def _file_system(self, inside: sandbox.Inside, budget: int, covered: list[Covered]) -> FileSystem:
        return file_system(
            inside.root if inside.root >= 0 else self._fd,
            self._options,
            inside.proc if inside.root >= 0 else None,
            readonly=self._options.ro,
            covered=covered[0] if covered else None,
            opener=self._opener.client,
            descriptors=budget,
        )


def _kernel_release() -> tuple[int, int]:
    numbers = re.findall(r"\d+", os.uname().release)[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)


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
        if options.lends_rights():
            word = "allow_other" if options.allow_other else "allow_root"
            raise UserError(
                f"no_default_permissions and {word} exclude each other: others would have root's rights on SRC",
                exitcodes.USAGE,
            )
        return options
    if options.passthrough is Choice.ON:
        raise UserError(
            "passthrough=on needs CAP_SYS_ADMIN: mount as root, or use passthrough=auto", exitcodes.PERMISSION
        )
    confine.check_maps(options)
    left_out = []
    if (options.allow_other or options.allow_root) and not user_allow_other():
        left_out.append(f"allow_other (root can allow it: the line user_allow_other in {_FUSE_CONF})")
        options = replace(options, allow_other=False, allow_root=False)
    left_out += [f"{word} (root alone may have it)" for word in ("suid", "dev") if getattr(options, word)]
    options = replace(options, suid=False, dev=False, passthrough=Choice.OFF)
    if left_out:
        print("passthrough: left out for an ordinary user: " + ", ".join(left_out), file=sys.stderr)
    return options


def user_allow_other() -> bool:
    """Whether root lets ordinary users have allow_other."""
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.partition("#")[0].strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
