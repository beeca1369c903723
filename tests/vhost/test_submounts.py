"""Other file systems below the share: mounts of their own in the guest, or one file system without a collision."""

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.protocol import constants as c
from passthrough.protocol import structs as s
from passthrough.protocol.dirents import read_dirents_plus

from .backend import backend
from .fuse import INIT_FLAGS, Client

_OFFER = INIT_FLAGS | c.FUSE_SUBMOUNTS


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    """plain/file, bound (plain, once more), and two fresh file systems, in which the same numbers mean other files."""
    base = tmp_path / "share"
    for name in ("plain", "bound", "one", "two"):
        (base / name).mkdir(parents=True)
    (base / "plain" / "file").write_text("plain")
    mounted = []
    try:
        subprocess.run(["mount", "--bind", base / "plain", base / "bound"], check=True)
        mounted.append(base / "bound")
        for name in ("one", "two"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base / name], check=True)
            mounted.append(base / name)
            (base / name / "file").write_text(name)
        yield base
    finally:
        for point in mounted:
            subprocess.run(["umount", point], check=True)


def _entry(client: Client, parent: int, name: bytes) -> dict[str, int]:
    body = client.call("lookup", parent, name + b"\0", out=s.FUSE_ENTRY_OUT.size)
    return dict(zip(s.FUSE_ENTRY_OUT.fields, s.FUSE_ENTRY_OUT.struct.unpack_from(body), strict=True))


def _is_submount(entry: dict[str, int]) -> bool:
    return bool(entry["flags"] & c.FUSE_ATTR_SUBMOUNT)


def test_a_bind_mount_and_another_file_system_are_announced(share: Path) -> None:
    with backend(shared=share) as own, own.front() as front:
        client = Client(front)
        answer = client.init(_OFFER)
        assert answer[3] & c.FUSE_SUBMOUNTS
        found = {name: _entry(client, 1, name.encode()) for name in ("plain", "bound", "one", "two")}
        assert {name for name, entry in found.items() if _is_submount(entry)} == {"bound", "one", "two"}
        for name, entry in found.items():
            assert entry["ino"] == (share / name).stat().st_ino  # as it is: each mount has a device number of its own
            inner = _entry(client, entry["nodeid"], b"file")
            assert not _is_submount(inner)
            assert inner["ino"] == (share / name / "file").stat().st_ino


def test_the_same_number_twice_is_two_files_and_the_same_file_by_two_mounts_too(share: Path) -> None:
    """Two fresh file systems number alike; through a bind mount the guest must not take one inode for the other's."""
    assert (share / "one" / "file").stat().st_ino == (share / "two" / "file").stat().st_ino
    with backend(shared=share) as own, own.front() as front:
        client = Client(front)
        client.init(_OFFER)
        inner = {}
        for name in ("plain", "bound", "one", "two"):
            inner[name] = _entry(client, client.lookup(1, name.encode()), b"file")
        assert inner["one"]["ino"] == inner["two"]["ino"]
        assert inner["plain"]["ino"] == inner["bound"]["ino"]
        assert len({entry["nodeid"] for entry in inner.values()}) == 4
        for name in ("one", "two", "plain"):
            nodeid = inner[name]["nodeid"]
            assert client.read(nodeid, client.open(nodeid, os.O_RDONLY), 0, 100) == name.encode()


def test_listing_with_attributes_announces_them_too(share: Path) -> None:
    with backend(shared=share) as own, own.front() as front:
        client = Client(front)
        client.init(_OFFER)
        body = client.call("opendir", 1, s.FUSE_OPEN_IN.struct.pack(0, 0), out=s.FUSE_OPEN_OUT.size)
        (fh,) = struct.unpack_from("=Q", body)
        listing = client.call("readdirplus", 1, s.FUSE_READ_IN.struct.pack(fh, 0, 8192, 0, 0, 0), room=8192).tobytes()
        found = {dirent.name: entry for dirent, entry in read_dirents_plus(listing) if entry is not None}
        submounts = {name for name, entry in found.items() if entry.attr.flags & c.FUSE_ATTR_SUBMOUNT}
        assert submounts == {b"bound", b"one", b"two"}
        assert stat.S_ISDIR(found[b"one"].attr.mode)


@pytest.mark.parametrize(("options", "offer"), [(("--no-announce-submounts",), _OFFER), ((), INIT_FLAGS)])
def test_without_announcing_numbers_differ(share: Path, options: tuple[str, ...], offer: int) -> None:
    """Where the option forbids it, and for a guest that does not know it: all is one file system."""
    with backend(*options, shared=share) as own, own.front() as front:
        client = Client(front)
        assert not client.init(offer)[3] & c.FUSE_SUBMOUNTS
        inner = {}
        for name in ("plain", "bound", "one", "two"):
            entry = _entry(client, 1, name.encode())
            assert not _is_submount(entry)
            inner[name] = _entry(client, entry["nodeid"], b"file")
        assert len({inner[name]["ino"] for name in ("plain", "one", "two")}) == 3
        assert inner["plain"]["ino"] == inner["bound"]["ino"] == (share / "plain" / "file").stat().st_ino
