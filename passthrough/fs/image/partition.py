"""Partition tables: where each partition of an image lies. GPT (UEFI 2.10, section 5.3) and MBR with its logical ones.

Hostile tables are expected: every number that is read is checked, and a chain of logical partitions ends.
"""

import struct
import zlib

from .source import BlockSource, read_all

Table = dict[int, tuple[int, int]]
"""Partition number, as Linux counts: (start, length) in bytes."""

_SECTORS = (512, 4096)
_GPT = struct.Struct("<8s4sII4xQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_MOST_ENTRIES = 1024
_MOST_LOGICAL = 256
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE = 0xEE
_FIRST_LOGICAL = 5


def table(source: BlockSource) -> Table:
    """All partitions, by GPT where there is one, else by MBR; empty where there is no table."""
    for sector in _SECTORS:
        found = _gpt(source, sector, sector)
        if found is None and source.size > sector:
            found = _gpt(source, sector, source.size // sector * sector - sector)  # the copy at the end
        if found is not None:
            return found
    return _mbr(source)


def _gpt(source: BlockSource, sector: int, at: int) -> Table | None:
    header = read_all(source, at, sector)
    if len(header) < _GPT.size or not header.startswith(b"EFI PART"):
        return None
    _, _, size, crc, _, _, _, _, _, first, count, entry_size, entries_crc = _GPT.unpack_from(header)
    if not _GPT.size <= size <= sector or entry_size < 128 or entry_size % 8 or not 0 < count <= _MOST_ENTRIES:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc or entry_size > sector:
        return None
    entries = read_all(source, first * sector, count * entry_size)
    if len(entries) < count * entry_size or zlib.crc32(entries) != entries_crc:
        return None
    found: Table = {}
    for number in range(count):
        kind, _, begin, end = _GPT_ENTRY.unpack_from(entries, number * entry_size)
        if any(kind) and end >= begin:
            found[number + 1] = (begin * sector, (end - begin + 1) * sector)
    return found


def _mbr(source: BlockSource) -> Table:
    found: Table = {}
    primary = _entries(read_all(source, 0, 512))
    for number, (kind, start, length) in enumerate(primary, 1):
        if kind and length and kind != _PROTECTIVE:
            found[number] = (start * 512, length * 512)
            if kind in _EXTENDED:
                found |= _logical(source, start, length)
    return found


def _logical(source: BlockSource, base: int, extent: int) -> Table:
    """Each table in the chain has one partition, relative to itself, and a link, relative to the extended one."""
    found: Table = {}
    at = base
    seen: set[int] = set()
    while at not in seen and len(seen) < _MOST_LOGICAL:
        seen.add(at)
        entries = _entries(read_all(source, at * 512, 512))
        if not entries:
            break
        for kind, start, length in entries:
            if kind and length and kind not in _EXTENDED and at + start + length <= base + extent:
                found[_FIRST_LOGICAL + len(found)] = ((at + start) * 512, length * 512)
                break
        links = [start for kind, start, _ in entries if kind in _EXTENDED and start]
        if not links or links[0] >= extent:
            break
        at = base + links[0]
    return found


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """(type, first sector, sectors) of the four; none where it is no table."""
    if len(sector) < 512 or sector[510:] != b"\x55\xaa":
        return []
    rows = [struct.unpack_from("<B3xB3xII", sector, 446 + 16 * number) for number in range(4)]
    if any(status & 0x7F for status, _, _, _ in rows):
        return []  # a boot sector, say, of a file system: its last bytes are the same
    return [(kind, start, length) for _, kind, start, length in rows]
