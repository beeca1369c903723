"""passthrough export: from an image and its options to a file that has its bytes."""

import logging
import os
import stat
from dataclasses import replace

import sandbox

from .. import exitcodes, log
from ..errors import UserError
from ..export_options import ExportOptions
from ..fs.choice import Choice
from ..fs.image import Image, ImageError, ImageRequest, open_image
from ..fs.image.opening import NBD_URI
from ..transport import mounting
from . import background
from .mount import log_in_background, see_that_it_answers, tame_collector, watched
from .serving import Mount

_log = logging.getLogger(__name__)


def run(image: str, file: str, options: ExportOptions, *, foreground: bool) -> int:
    """Export image as file; returns when it answers, or with foreground when it is over."""
    source = image if NBD_URI.match(image) else os.path.abspath(image)
    real = mounting.check_file(file)
    options = _within_rights(options)

    def serve(ready: background.Ready) -> int:
        return _serve(options.request(source), real, options, ready)

    stays = foreground or options.debug

    def begin(ready: background.Ready) -> int:
        return watched(serve, ready, real, detached=not stays) if options.auto_unmount else serve(ready)

    log.to_stderr(debug=options.debug)
    if stays:
        return begin(lambda: None)
    background.start(begin, log_in_background)
    see_that_it_answers(real)
    return exitcodes.OK


def _within_rights(options: ExportOptions) -> ExportOptions:
    if mounting.may_mount():
        return options
    if options.passthrough is Choice.ON:
        raise UserError(
            "passthrough=on needs CAP_SYS_ADMIN: export as root, or use passthrough=auto", exitcodes.PERMISSION
        )
    return replace(options, passthrough=Choice.OFF)


def _serve(wanted: ImageRequest, file: str, options: ExportOptions, ready: background.Ready) -> int:
    try:
        source = open_image(wanted)  # before the mount: FILE may be the image itself
    except ImageError as error:
        raise UserError(str(error), exitcodes.SOURCE) from error
    try:
        if options.passthrough is Choice.ON and source.descriptor is None:
            raise UserError("passthrough=on: the kernel takes raw images in regular files alone", exitcodes.SOURCE)
        if options.growable and not source.resizable:
            raise UserError(f"growable: the length of {wanted.image} cannot be changed from here", exitcodes.SOURCE)
        _enter_sandbox()
        image = Image(source, options.image(os.getuid(), os.getgid()))
        mount = _mounted(image, wanted.image, file, options)
        tame_collector()
        ready()
        return mount.run()
    finally:
        source.close()


def _enter_sandbox() -> None:
    """What the export still needs afterwards: the image's descriptors and an NBD server's or qemu-nbd's sockets, all
    open by now; /dev/fuse and FILE, for the mount; for a reconnect, an NBD server's address and the names of its host;
    /proc/self/fd never."""
    try:
        left_out = sandbox.enter(sandbox.plan())
    except sandbox.SandboxError as error:
        raise UserError(str(error), exitcodes.SANDBOX) from error
    for line in left_out:
        _log.warning("left out: %s", line)


def _mounted(image: Image, source: str, file: str, options: ExportOptions) -> Mount:
    """With allow_other, or where that is refused and was not insisted on, without."""
    allow_other = options.allow_other is not Choice.OFF
    while True:
        mount = Mount(
            image,
            _request(source, file, options, allow_other=allow_other),
            threads=options.threads,
            max_write=options.max_write,
            io_uring=options.io_uring,
            debug=options.debug,
            source=source,
        )
        try:
            mount.start()
            return mount
        except UserError as error:
            if not allow_other or options.allow_other is Choice.ON or error.status != exitcodes.PERMISSION:
                raise
        allow_other = False
        image.others_may_not()


def _request(source: str, file: str, options: ExportOptions, *, allow_other: bool) -> mounting.MountRequest:
    return mounting.MountRequest(
        mountpoint=file,
        fsname=options.fsname or source,
        subtype=options.subtype,
        allow_other=allow_other,
        kind=stat.S_IFREG,
    )
