"""Guest memory: the regions that the front end passed, mapped; addresses to memoryviews, every one checked.

Rules of this file: no rings, no messages. A table is never changed: another takes its place, and what still works on
the old one keeps its mappings alive through its views.

A mapping of a file that shrinks raises SIGBUS where it is touched beyond the new end. System calls answer EFAULT there
instead, and a memfd that is sealed against shrinking (QEMU's are) cannot do it. For the others the process that serves
has a keeper (cli/keeper.py): it dies alone, and another serves the next connection.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterable

_PAGE = mmap.PAGESIZE
_ADDRESS_LIMIT = 1 << 64
_LOG_PAGE_SHIFT = 12  # VHOST_LOG_PAGE
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_F_SEAL_SHRINK = 2


class AddressError(Exception):
    """An address or a region that is not what it should be."""


class MappedRegion:
    """One region: guest addresses from `guest` up to `end`, the front end's from `user`, and its bytes."""

    __slots__ = ("end", "guest", "offset", "sealed", "size", "user", "user_end", "view")

    def __init__(self, fd: int, guest: int, size: int, user: int, offset: int) -> None:
        """Map size bytes of the file fd from offset on; fd stays the caller's. AddressError where that cannot be."""
        if size == 0 or guest + size > _ADDRESS_LIMIT or user + size > _ADDRESS_LIMIT or offset + size > 1 << 63:
            raise AddressError(f"a memory region of {size} bytes at {guest:#x}, offset {offset:#x}")
        start = offset & ~(_PAGE - 1)
        try:
            held = os.fstat(fd).st_size
            if offset + size > held:
                raise AddressError(f"a memory region of {size} bytes from {offset:#x} in a file of {held} bytes")
            mapping = mmap.mmap(fd, offset - start + size, mmap.MAP_SHARED, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            raise AddressError(f"a memory region of {size} bytes cannot be mapped: {error}") from error
        self.guest, self.size, self.user, self.offset = guest, size, user, offset
        self.end, self.user_end = guest + size, user + size
        self.view = memoryview(mapping)[offset - start :]
        self.sealed = _is_sealed(fd)


def _is_sealed(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, _F_GET_SEALS) & _F_SEAL_SHRINK)
    except OSError:
        return False


class Memory:
    """All regions, and the log of pages that were written, where one is kept."""

    def __init__(self, regions: Iterable[MappedRegion] = (), log: "DirtyLog | None" = None) -> None:
        """AddressError where regions overlap."""
        self.regions = sorted(regions, key=lambda region: region.guest)
        self.log = log
        for first, second in zip(self.regions, self.regions[1:], strict=False):
            if first.end > second.guest:
                raise AddressError(f"memory regions at {first.guest:#x} and {second.guest:#x} overlap")

    def views(self, address: int, length: int) -> list[memoryview]:
        """These bytes, which may go on in the region that follows without a gap."""
        found = []
        while length:
            region = self._find(address)
            count = min(length, region.end - address)
            start = address - region.guest
            found.append(region.view[start : start + count])
            address += count
            length -= count
        return found

    def _find(self, address: int) -> MappedRegion:
        for region in self.regions:
            if region.guest <= address < region.end:
                return region
        raise AddressError(f"no memory at the guest's address {address:#x}")

    def user_view(self, address: int, length: int) -> tuple[memoryview, int]:
        """Bytes at an address of the front end's, which must lie in one region; and their guest address."""
        for region in self.regions:
            if region.user <= address and address + length <= region.user_end:
                start = address - region.user
                return region.view[start : start + length], region.guest + start
        raise AddressError(f"no {length} bytes of memory at the front end's address {address:#x}")

    def largest(self) -> tuple[int, int, memoryview]:
        """The region that most addresses will be in: (first guest address, the one behind its last, its bytes)."""
        if not self.regions:
            return 0, 0, memoryview(b"")
        region = max(self.regions, key=lambda region: region.size)
        return region.guest, region.end, region.view

    def sealed(self) -> bool:
        """Whether no region can shrink under us."""
        return all(region.sealed for region in self.regions)


class DirtyLog:
    """A bit for each page of 4 KiB of guest memory that was written (live migration)."""

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """fd stays the caller's; size and offset in bytes."""
        region = MappedRegion(fd, 0, size, 0, offset)
        self._bits = region.view
        self._lock = threading.Lock()

    def mark(self, address: int, length: int) -> None:
        """These bytes were written. What lies beyond the log is not the front end's to move."""
        if length <= 0:
            return
        first, last = address >> _LOG_PAGE_SHIFT, (address + length - 1) >> _LOG_PAGE_SHIFT
        last = min(last, len(self._bits) * 8 - 1)
        with self._lock:  # the front end may clear a bit meanwhile, which at worst sends a page twice
            for page in range(first, last + 1):
                self._bits[page >> 3] |= 1 << (page & 7)
