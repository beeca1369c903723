"""How requests come from the kernel: the option of every command that mounts. No I/O; the rules of option_rows.py."""

from enum import Enum
from typing import Any

from . import exitcodes
from .errors import UserError
from .fs.choice import Choice
from .fs.tree.config import Cache, ReaddirPlus
from .option_rows import Option, one_of


class Transport(Enum):
    """The doors of a mount. AUTO: by /dev/fuse; by llfuse where that cannot be opened."""

    AUTO = "auto"
    DEVFUSE = "devfuse"
    LLFUSE = "llfuse"


TRANSPORT_OPTIONS: tuple[Option, ...] = (
    Option(
        "transport",
        "transport",
        "How requests come: devfuse (the daemon reads /dev/fuse itself), llfuse (by libfuse 2) or auto (devfuse, or "
        "llfuse where that cannot be had; the default).",
        parse=one_of(Transport),
        metavar="DOOR",
    ),
)

_BEYOND_LLFUSE: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("cache", (Cache.NEVER, Cache.METADATA), "it always lets the kernel keep pages"),
    ("writeback", (True,), "libfuse 2 is older"),
    ("passthrough", (Choice.ON,), "libfuse 2 is older"),
    ("io_uring", (Choice.ON,), "libfuse 2 is older"),
    ("readdirplus", (ReaddirPlus.AUTO, ReaddirPlus.ALWAYS), "libfuse 2 is older"),
    ("posix_acl", (True,), "libfuse 2 is older; they are hidden"),
    ("security_label", (True,), "libfuse 2 is older"),
    ("flock", (True,), "it does not hand locks over"),
    ("posix_lock", (True,), "it does not hand locks over"),
)
"""(field, the values that llfuse cannot have, and why), for every command's options that have the field."""


def beyond_llfuse(options: Any) -> str | None:
    """What among these options llfuse cannot do, with the reason, or None."""
    for field, values, why in _BEYOND_LLFUSE:
        value: Any = getattr(options, field, None)
        if value in values:
            said = field if value is True else f"{field}={value.value}"
            return f"{said} cannot be had with llfuse: {why}"
    return None


def check_transport(options: Any) -> None:
    """Options that contradict the door. UserError names them."""
    why = beyond_llfuse(options)
    if options.transport is Transport.LLFUSE and why is not None:
        raise UserError(f"transport=llfuse: {why}", exitcodes.USAGE)
