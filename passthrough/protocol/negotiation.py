"""INIT: what both sides can do, and the reply that says so.

Rules of this file: a pure function from the kernel's offer and our wishes to an agreement and its bytes. No I/O.

Versions (Documentation/filesystems/fuse.rst and the comment at the top of the header): a peer whose major is larger
than ours gets our major and asks again; a smaller major, or a minor below 27 (Linux 4.18), is refused with EPROTO.
"""

import mmap
from dataclasses import dataclass, field
from typing import NamedTuple

from . import constants as c
from .errors import RequestError
from .structs import FUSE_INIT_IN, FUSE_INIT_OUT

MINIMUM_MINOR = 27
PAGE_SIZE = mmap.PAGESIZE
_INIT_IN_COMPAT_SIZE = 16  # major, minor, max_readahead, flags: all there was before minor 36
_MAX_PAGES_DEFAULT = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ: the limit where MAX_PAGES was not agreed


class VersionError(Exception):
    """The peer's version is one that we do not serve: it gets EPROTO and the mount ends with this sentence."""


class FeatureError(Exception):
    """Something that must not be silently left out was not offered: it gets EPROTO and the mount ends with this."""


class InitIn(NamedTuple):
    """The offer. flags has the 64 bits of flags and flags2."""

    major: int
    minor: int
    max_readahead: int
    flags: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What this side would like. Sizes in bytes; flags are asked for where offered, required ones must be offered."""

    flags: int = 0
    required: int = 0
    max_write: int = 1 << 20
    max_readahead: int = 1 << 20
    max_background: int = 64
    time_gran: int = 1  # ns
    max_stack_depth: int = 0


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for this session: the smaller minor, the flags both have, and the sizes in bytes."""

    minor: int = 0
    flags: int = 0
    max_write: int = 0
    max_readahead: int = 0
    max_background: int = 0
    max_pages: int = 0
    time_gran: int = 1
    max_stack_depth: int = 0
    offered: int = field(default=0, compare=False)

    def has(self, flag: int) -> bool:
        """Whether a FUSE_* INIT flag was agreed."""
        return bool(self.flags & flag)


def read_init(args: memoryview, at: int, available: int) -> InitIn:
    """The offer, in its 64-byte form or in the 16 bytes that kernels before 5.17 send."""
    if available < _INIT_IN_COMPAT_SIZE:
        raise RequestError(f"INIT of {available} bytes")
    raw = bytes(args[at : at + min(available, FUSE_INIT_IN.size)]).ljust(FUSE_INIT_IN.size, b"\0")
    major, minor, max_readahead, flags, flags2 = FUSE_INIT_IN.struct.unpack(raw)
    if available < FUSE_INIT_IN.size or not flags & c.FUSE_INIT_EXT:
        flags2 = 0
    return InitIn(major, minor, max_readahead, flags | flags2 << 32)


def negotiate(offer: InitIn, wishes: Wishes) -> Agreement | None:
    """The agreement, or None where the peer's major is larger and it must ask again.

    Raises VersionError and FeatureError.
    """
    if offer.major > c.FUSE_KERNEL_VERSION:
        return None
    if offer.major < c.FUSE_KERNEL_VERSION or offer.minor < MINIMUM_MINOR:
        raise VersionError(
            f"the kernel speaks FUSE {offer.major}.{offer.minor}; "
            f"at least {c.FUSE_KERNEL_VERSION}.{MINIMUM_MINOR} (Linux 4.18) is needed"
        )
    missing = wishes.required & ~offer.flags
    if missing:
        raise FeatureError("the kernel does not offer " + " ".join(flag_names(missing)))
    flags = offer.flags & (wishes.flags | wishes.required | c.FUSE_INIT_EXT)
    max_write = max(wishes.max_write, PAGE_SIZE)
    if not flags & c.FUSE_MAX_PAGES:
        max_write = min(max_write, _MAX_PAGES_DEFAULT * PAGE_SIZE)
    return Agreement(
        minor=min(offer.minor, c.FUSE_KERNEL_MINOR_VERSION),
        flags=flags,
        max_write=max_write,
        max_readahead=min(offer.max_readahead, wishes.max_readahead),
        max_background=wishes.max_background,
        max_pages=(max_write + PAGE_SIZE - 1) // PAGE_SIZE,
        time_gran=wishes.time_gran,
        max_stack_depth=wishes.max_stack_depth if flags & c.FUSE_PASSTHROUGH else 0,
        offered=offer.flags,
    )


def put_init(body: memoryview, agreement: Agreement | None, peer_minor: int) -> int:
    """fuse_init_out; with no agreement it names our major and minor alone, and the peer asks again.

    A peer older than 7.23 reads 24 bytes, one older than 7.5 reads 8.
    """
    if agreement is None:
        FUSE_INIT_OUT.struct.pack_into(
            body, 0, c.FUSE_KERNEL_VERSION, c.FUSE_KERNEL_MINOR_VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        )
    else:
        FUSE_INIT_OUT.struct.pack_into(
            body,
            0,
            c.FUSE_KERNEL_VERSION,
            c.FUSE_KERNEL_MINOR_VERSION,
            agreement.max_readahead,
            agreement.flags & 0xFFFFFFFF,
            agreement.max_background,
            agreement.max_background * 3 // 4,
            agreement.max_write,
            agreement.time_gran,
            agreement.max_pages,
            0,
            agreement.flags >> 32,
            agreement.max_stack_depth,
            0,
        )
    if peer_minor < 5:
        return c.FUSE_COMPAT_INIT_OUT_SIZE
    if peer_minor < 23:
        return c.FUSE_COMPAT_22_INIT_OUT_SIZE
    return FUSE_INIT_OUT.size


def flag_names(flags: int) -> list[str]:
    """The names of the INIT flags in a number, lowest bit first; unknown bits as bitN."""
    known = {value: name for name, value in c.INIT_FLAGS.items()}
    bits = (1 << n for n in range(flags.bit_length()) if flags >> n & 1)
    return [known.get(bit, f"bit{bit.bit_length() - 1}") for bit in bits]
