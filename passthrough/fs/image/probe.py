"""What format an image claims to have, by its first and last bytes. Only that it claims: the file may lie.

Magic numbers are those of QEMU's block drivers (block/*.c, the *_probe functions) and docs/interop/qcow2.txt.
"""

import os
import struct
from typing import NamedTuple

_HEAD = 1024
_FOOT = 512
_STARTS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
)
_DATA_FILE = 1 << 2  # qcow2's incompatible feature: the data lies in another file


class Claim(NamedTuple):
    """A format, in QEMU's word, and whether the image names other files, which would be opened with it."""

    format: str
    refers: bool


def probe(fd: int) -> Claim | None:
    """What the image on this descriptor claims to be, or None where nothing but raw is left."""
    head = os.pread(fd, _HEAD, 0)
    for offset, magic, name in _STARTS:
        if head.startswith(magic, offset):
            if name == "qcow2":
                return _qcow(head)
            return Claim(name, name in ("vmdk", "luks"))  # a luks container may be meant as it is
    end = os.lseek(fd, 0, os.SEEK_END)
    foot = os.pread(fd, _FOOT, max(0, end - _FOOT))
    if foot.startswith(b"conectix"):
        return Claim("vpc", False)
    if foot.startswith(b"koly"):
        return Claim("dmg", False)
    return None


def _qcow(head: bytes) -> Claim:
    version, backing = struct.unpack_from(">IQ", head.ljust(_HEAD, b"\0"), 4)
    features = struct.unpack_from(">Q", head.ljust(_HEAD, b"\0"), 72)[0] if version >= 3 else 0
    return Claim("qcow" if version == 1 else "qcow2", bool(backing or features & _DATA_FILE))
