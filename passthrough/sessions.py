"""How the session of a mount begins: what the command has in common with a program that mounts (api)."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import exitcodes
from .errors import UserError
from .filesystem import FileSystem
from .fs.choice import Choice
from .options import MountOptions
from .protocol import constants as c
from .protocol.negotiation import Wishes
from .server import Server
from .transport import mounting, uring
from .transport.session import Session


@dataclass(frozen=True, slots=True)
class Settings:
    """How a mount is served. max_write in bytes; flags and required are what uring_flags() says; requests() is told of
    each request and reply."""

    threads: int
    max_write: int
    max_read: int = 0
    flags: int = 0
    required: int = 0
    owner: int | None = None
    requests: Callable[[str], None] | None = None

    @property
    def payload(self) -> int:
        """The most bytes of data that a request or a reply brings."""
        return max(self.max_write, self.max_read)

    def without_io_uring(self) -> "Settings":
        """The same, read from /dev/fuse."""
        return replace(self, flags=self.flags & ~c.FUSE_OVER_IO_URING)


def uring_flags(choice: Choice) -> tuple[int, int]:
    """(INIT flags to wish for, INIT flags to insist on). UserError where io_uring=on cannot be had."""
    if choice is Choice.OFF:
        return 0, 0
    why = uring.unavailable()
    if why is None:
        return c.FUSE_OVER_IO_URING, c.FUSE_OVER_IO_URING if choice is Choice.ON else 0
    if choice is Choice.ON:
        raise UserError(f"io_uring=on: {why}", exitcodes.KERNEL)
    return 0, 0


def settings_of(options: MountOptions, requests: Callable[[str], None] | None = None) -> Settings:
    """How a mount with these options is served; requests as in Settings. UserError where io_uring=on cannot be had."""
    flags, required = uring_flags(options.io_uring)
    return Settings(
        threads=options.threads,
        max_write=options.max_write,
        max_read=options.max_read,
        flags=flags,
        required=required,
        owner=os.getuid() if options.allow_root else None,
        requests=requests,
    )


def request_of(options: MountOptions, mountpoint: str, fsname: str, kind: int = stat.S_IFDIR) -> mounting.MountRequest:
    """What is to be mounted with these options; fsname, where they name none; kind, of the mount's root."""
    return mounting.MountRequest(
        mountpoint=mountpoint,
        fsname=options.fsname or fsname,
        subtype=options.subtype,
        flags=options.mount_flags(),
        allow_other=options.allow_other or options.allow_root,
        owner_only=options.allow_root,
        default_permissions=options.default_permissions,
        max_read=options.max_read,
        kind=kind,
    )


def attempt(fs: FileSystem, session: Session, settings: Settings) -> Server:
    """Agree with the kernel, and serve. The server's `failure` says why that is not to be had."""
    wishes = Wishes(
        flags=fs.flags | c.FUSE_MAX_PAGES | settings.flags,
        required=fs.required | settings.required,
        max_write=settings.max_write,
        max_stack_depth=fs.stack_depth,
    )
    server = Server(fs, wishes, kernel=session, debug=settings.requests, owner=settings.owner)
    session.start(server)
    return server


def should_do_without_io_uring(session: Session, settings: Settings) -> bool:
    """Whether it was io_uring alone that kept the session from beginning, and nobody insisted on it."""
    return session.uring_failed and bool(settings.flags) and not settings.required & c.FUSE_OVER_IO_URING
