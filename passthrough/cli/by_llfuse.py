"""Which door a mount gets, and llfuse's start: before the sandbox closes, as libfuse opens /dev/fuse by its path."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from .. import exitcodes
from ..errors import UserError
from ..fs.choice import Choice
from ..options import MountOptions
from ..sessions import Settings
from ..transport import mounting
from ..transport.llfuse import library
from ..transport.llfuse.session import LlfuseSession, words
from ..transport_options import Transport, beyond_llfuse
from . import state

if TYPE_CHECKING:  # an export's sources take a while to load
    from ..export_options import ExportOptions

log = logging.getLogger(__name__)

Options = TypeVar("Options", MountOptions, "ExportOptions")


def with_door(options: Options) -> Options:
    """The options with one door, and without what it cannot have. UserError where llfuse is asked for and missing."""
    if options.transport is Transport.LLFUSE:
        why = library.missing()
        if why is not None:
            raise UserError(f"transport=llfuse: {why}", exitcodes.NO_HELPER)
    elif options.transport is Transport.DEVFUSE or not _takes_its_place(options):
        return replace(options, transport=Transport.DEVFUSE)
    options = replace(options, transport=Transport.LLFUSE, passthrough=Choice.OFF, io_uring=Choice.OFF)
    return replace(options, posix_acl=False) if isinstance(options, MountOptions) else options


def _takes_its_place(options: "MountOptions | ExportOptions") -> bool:
    """Whether the direct door cannot be opened and llfuse can: an ordinary user with libfuse 2's helper alone."""
    if mounting.may_mount() or mounting.helper_path() or library.missing() or beyond_llfuse(options):
        return False
    log.info("%s is not installed: requests come by llfuse", mounting.HELPER)
    return True


def begun(settings: Settings) -> LlfuseSession | None:
    """llfuse's session, where it is the door; in the process that will serve, or one that it is forked from."""
    if not settings.llfuse:
        return None
    wanted = words(settings.max_write, owner_only=settings.owner is not None, debug=settings.requests is not None)
    operations, fd = library.begin(wanted, state.directory())
    return LlfuseSession(operations, fd, settings.threads)


def descriptors(session: LlfuseSession | None) -> frozenset[int]:
    """What the sandbox must leave open."""
    return frozenset() if session is None else frozenset({session.fd})
