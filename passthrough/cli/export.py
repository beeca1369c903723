"""passthrough export: from an image and its options to a file that has its bytes."""

import os
import stat
from dataclasses import replace

from .. import exitcodes, log
from ..errors import UserError
from ..export_options import ExportOptions
from ..fs.choice import Choice
from ..fs.image import BlockSource, Image, ImageError, Reach, open_image, reach
from ..fs.image.blkdev import IOCTLS
from ..protocol.constants import FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN
from ..sandbox_options import SandboxMode
from ..sessions import Settings, uring_flags
from ..transport import mounting
from ..transport.llfuse.session import LlfuseSession
from ..transport_options import Transport
from . import background, by_llfuse, confine
from .channel import Channel
from .door import MountDoor
from .keeper import Daemon
from .launch import launch, wanted_log
from .mount import user_allow_other
from .serving import Service, open_descriptors, tame_collector

_ROOTED = (SandboxMode.NAMESPACE, SandboxMode.CHROOT)


def run(image: str, file: str, options: ExportOptions, *, foreground: bool) -> int:
    """Export image as file; returns when it answers, or with foreground when it is over."""
    real = mounting.check_file(file)
    options = _within_rights(options)
    if options.key_file is not None:
        options = replace(options, key_file=os.path.abspath(options.key_file))  # the daemon works in /
    stays = foreground or options.debug
    wanted = wanted_log(options, "export", image, real)
    streams = background.Streams(wanted, detached=not stays)
    options = by_llfuse.with_door(options)
    flags, required = uring_flags(options.io_uring)
    settings = Settings(
        threads=options.threads,
        max_write=options.max_write,
        flags=flags,
        required=required,
        requests=log.requests(wanted),
        llfuse=options.transport is Transport.LLFUSE,
    )
    try:
        export = _Export(image, options)
    except ImageError as error:
        raise UserError(str(error), exitcodes.SOURCE) from error
    if options.sandbox_explain:
        prepare = f"export as {real} in the caller's mount namespace, and take the device over"
        print("\n".join(confine.explain(options, export.needs(settings, frozenset()), prepare)))
        return exitcodes.OK
    confine.warn(options)
    door = MountDoor(_request(export.source, real, options), source=export.source, descriptors=settings.descriptors)

    return launch(door, real, streams, lambda: export.daemon(settings, streams), stays=stays)


def _within_rights(options: ExportOptions) -> ExportOptions:
    """Leave out what this user may not have; allow_other=auto becomes what it comes to."""
    if mounting.may_mount():
        return replace(options, allow_other=Choice.OFF if options.allow_other is Choice.OFF else Choice.ON)
    if options.passthrough is Choice.ON:
        raise UserError(
            "passthrough=on needs CAP_SYS_ADMIN: export as root, or use passthrough=auto", exitcodes.PERMISSION
        )
    confine.check_maps(options)
    if options.allow_other is Choice.AUTO:
        options = replace(options, allow_other=Choice.ON if user_allow_other() else Choice.OFF)
    return replace(options, passthrough=Choice.OFF)


class _Export:
    """An image, and what its daemon needs of the sandbox. It is opened in the daemon, before the sandbox closes."""

    def __init__(self, image: str, options: ExportOptions) -> None:
        self._options = options
        self._reach: Reach = reach(image)
        self.source = image if self._reach.families else os.path.abspath(image)
        self._directory = -1
        if self._reach.directory is not None and options.sandbox in _ROOTED:
            self._directory = _opened(self._reach.directory)

    def needs(self, settings: Settings, keep: frozenset[int], backing_fd: int | None = None) -> confine.Needs:
        """What the sandbox leaves to the daemon: of files the image alone (backing_fd), where the kernel opens it
        anew, or the directory of an NBD server's socket."""
        backing = self._options.passthrough is not Choice.OFF
        ioctls = (FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE) if backing else ()
        rooted = self._directory >= 0
        return confine.Needs(
            path=self._reach.directory if rooted else None,
            opened=self._directory if rooted else None,
            readonly=True,
            kernel_backing=backing,
            io_uring=bool(settings.flags),
            files=frozenset() if backing_fd is None else frozenset({backing_fd}),
            keep=keep,
            calls=("sendto", "shutdown"),  # how libnbd speaks, and takes its leave
            ioctls=(*IOCTLS, *ioctls),
            families=self._reach.families,
        )

    def daemon(self, settings: Settings, streams: background.Streams) -> Daemon:
        """What the child of the keeper does."""

        def run(outside: Channel) -> int:
            session = by_llfuse.begun(settings)
            before = open_descriptors() - by_llfuse.descriptors(session)
            source = self._open()
            needs = self.needs(settings, streams.keep | open_descriptors() - before, source.descriptor)
            try:
                return self._served(source, needs, settings, streams, outside, session)
            finally:
                source.close()

        return run

    def _open(self) -> BlockSource:
        """Before the mount: FILE may be the image itself. UserError where it cannot be had."""
        options = self._options
        again = self._reach.inside if options.sandbox in _ROOTED else self._reach.outside
        found = self._reach.outside if self._reach.directory is not None else self.source  # the daemon works in /
        try:
            source = open_image(options.request(found, again))
        except ImageError as error:
            raise UserError(str(error), exitcodes.SOURCE) from error
        except OSError as error:
            raise UserError(f"{self.source}: cannot be opened: {error}", exitcodes.SOURCE) from error
        if options.passthrough is Choice.ON and source.descriptor is None:
            raise UserError("passthrough=on: the kernel takes raw images in regular files alone", exitcodes.SOURCE)
        if options.growable and not source.resizable:
            raise UserError(f"growable: the length of {self.source} cannot be changed from here", exitcodes.SOURCE)
        source.park()
        return source

    def _served(
        self,
        source: BlockSource,
        needs: confine.Needs,
        settings: Settings,
        streams: background.Streams,
        outside: Channel,
        session: LlfuseSession | None,
    ) -> int:
        config = self._options.image(os.getuid(), os.getgid())
        service = Service(settings, outside, lambda inside, budget: Image(source, config), session)
        inside, tell = confine.enter(self._options, needs, outside, [service.step])

        def begun() -> None:
            tame_collector()
            streams.inside()
            tell()

        return service.serve(inside, begun)


def _opened(directory: str) -> int:
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot open the socket's directory: {error.strerror}", exitcodes.SOURCE
        ) from error


def _request(source: str, file: str, options: ExportOptions) -> mounting.MountRequest:
    return mounting.MountRequest(
        mountpoint=file,
        fsname=options.fsname or source,
        subtype=options.subtype,
        allow_other=options.allow_other is Choice.ON,
        old_helper=options.transport is Transport.LLFUSE,
        kind=stat.S_IFREG,
    )
