"""The parts of the image export that need no mount: partition tables, headers, windows, the overlay, alignment."""

import os
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.filesystem import failure
from passthrough.fs.image import CacheMode, ImageError, ImageRequest, open_image, partition, probe
from passthrough.fs.image.aligned import Aligned
from passthrough.fs.image.file import RawFile, open_raw
from passthrough.fs.image.overlay import BLOCK, Overlay
from passthrough.fs.image.source import BlockSource, Extent, read_all
from passthrough.fs.image.window import Window
from passthrough.protocol.values import Buffers, FileRange, Fill, Later

MIB = 1 << 20


class Memory(BlockSource):
    """A source in memory, which counts what it is asked and insists on its alignment."""

    writable = True
    resizable = True

    def __init__(self, content: bytes, alignment: int = 1) -> None:
        self.content = bytearray(content)
        self.alignment = alignment
        self.written: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.content)

    def _insist(self, *numbers: int) -> None:
        if any(number % self.alignment for number in numbers):
            raise failure(22)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._insist(offset, len(buffer))
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def write_from(self, offset: int, data: Buffers) -> int:
        payload = b"".join(data)
        self._insist(offset, len(payload))
        self.content[offset : offset + len(payload)] = payload
        self.written.append((offset, len(payload)))
        return len(payload)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        self._insist(offset, length)
        self.content[offset : offset + length] = bytes(length)

    def status(self, offset: int, length: int) -> Extent:
        self._insist(offset, length)
        units = [any(self.content[at : at + self.alignment]) for at in range(offset, offset + length, self.alignment)]
        count = next((number for number, data in enumerate(units) if data != units[0]), len(units))
        return Extent(count * self.alignment, units[0])


def got(source: BlockSource, offset: int, size: int) -> bytes:
    """What read() leads to."""
    found = source.read(offset, size)
    assert not isinstance(found, Later)
    if isinstance(found, FileRange):
        return os.pread(found.fd, found.size, found.offset)
    assert isinstance(found, Fill)
    room = bytearray(found.size)
    return bytes(room[: found.into(memoryview(room))])


def put(source: BlockSource, offset: int, data: bytes) -> None:
    """A write, all of it."""
    assert source.write(offset, (memoryview(data[:3]), memoryview(data[3:]))) == len(data)


# Partition tables


def sfdisk(path: Path, script: str, size: int = 64 * MIB) -> RawFile:
    """A disk with a table that sfdisk has made."""
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True, capture_output=True)
    return open_raw(str(path), writable=False, cache=CacheMode.WRITEBACK)


def listed(path: Path) -> partition.Table:
    """The partitions as sfdisk tells them."""
    shown = subprocess.run(["sfdisk", "-d", path], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in shown.splitlines():
        if line.startswith(str(path)):
            name, _, rest = line.partition(" : ")
            facts = dict(word.strip().split("=") for word in rest.split(",") if "=" in word)
            number = int(name.removeprefix(str(path)))
            found[number] = (int(facts["start"]) * 512, int(facts["size"]) * 512)
    return found


@pytest.mark.parametrize(
    "script",
    [
        "label: gpt\nsize=8MiB\nsize=4MiB\nsize=2MiB\n",
        "label: gpt\n5: size=8MiB\n2: size=4MiB\n",
        "label: dos\nsize=8MiB\nsize=4MiB\n",
        "label: dos\n1: size=8MiB\n2: size=40MiB, type=E\n5: size=4MiB\n6: size=8MiB\n7: size=2MiB\n",
        "label: dos\n4: size=30MiB, type=F\n5: size=4MiB\n",
    ],
)
def test_tables_are_read_as_sfdisk_reads_them(tmp_path: Path, script: str) -> None:
    source = sfdisk(tmp_path / "disk", script)
    assert partition.table(source) == listed(tmp_path / "disk")
    source.close()


def test_the_copy_of_a_gpt_at_the_end_serves(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    sfdisk(path, "label: gpt\nsize=8MiB\nsize=4MiB\n").close()
    before = listed(path)
    content = Memory(path.read_bytes())
    content.content[512:1024] = bytes(512)
    assert partition.table(content) == before


def test_a_damaged_gpt_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    sfdisk(path, "label: gpt\nsize=8MiB\n").close()
    whole = path.read_bytes()
    for at in (512 + 72, 512 + 80, 1024 + 32):
        content = bytearray(whole)
        content[at] ^= 0xFF
        content[-512:] = bytes(512)
        assert partition.table(Memory(bytes(content))) == {}


def test_hostile_tables_end(tmp_path: Path) -> None:
    def mbr(*rows: tuple[int, int, int]) -> bytes:
        entries = b"".join(struct.pack("<B3xB3xII", 0, *row) for row in rows)
        return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"

    looped = bytearray(MIB)
    looped[:512] = mbr((5, 8, 1000))
    looped[8 * 512 : 9 * 512] = mbr((0x83, 1, 2), (5, 4, 10))
    looped[12 * 512 : 13 * 512] = mbr((0x83, 1, 2), (5, 4, 10))  # its link leads to itself
    assert set(partition.table(Memory(bytes(looped)))) == {1, 5, 6}
    far = mbr((0x83, 0xFFFFFFFF, 0xFFFFFFFF))
    assert partition.table(Memory(far.ljust(4096, b"\0"))) == {1: (0xFFFFFFFF * 512, 0xFFFFFFFF * 512)}
    numbers = random.Random(1)
    for _ in range(300):
        sector = bytearray(numbers.randbytes(4096))
        sector[510:512] = b"\x55\xaa"
        partition.table(Memory(bytes(sector)))
        first, count = numbers.getrandbits(64), numbers.getrandbits(32)
        facts = (b"EFI PART", b"\0\0\1\0", 92, 0, 1, 7, 3, 5, b"", first, count, 128, 0)
        header = bytearray(struct.pack("<8s4sII4xQQQQ16sQIII", *facts)).ljust(512, b"\0")
        header[16:20] = struct.pack("<I", zlib.crc32(header[:92]))
        sector[512:1024] = header
        partition.table(Memory(bytes(sector)))


def test_a_partition_past_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    sfdisk(path, "label: dos\nsize=8MiB\nsize=30MiB\n").close()
    os.truncate(path, 20 * MIB)
    with pytest.raises(ImageError, match="past the end"):
        open_image(ImageRequest(str(path), partition=2))
    with pytest.raises(ImageError, match="there are: 1, 2"):
        open_image(ImageRequest(str(path), partition=3))
    with pytest.raises(ImageError, match="no partition table"):
        open_image(ImageRequest("/etc/passwd", partition=1))


# Headers


@pytest.mark.parametrize("kind", ["qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"])
def test_formats_are_known_by_what_qemu_img_makes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "8M"], check=True)
    with open(path, "rb") as file:
        found = probe.probe(file.fileno())
    assert found is not None
    assert found.format == kind
    with pytest.raises(ImageError, match=f"--format={kind}"):
        open_image(ImageRequest(str(path), writable=True))


@pytest.mark.parametrize("content", [b"", b"x", bytes(512), b"QFI", bytes(4096), b"\xeb\x3c\x90mkfs.fat"])
def test_what_has_no_header_is_raw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with open(path, "rb") as file:
        assert probe.probe(file.fileno()) is None


def test_a_short_header_that_claims_much(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    with open(path, "rb") as file:
        assert probe.probe(file.fileno()) == ("qcow2", False)


def test_references_are_seen(tmp_path: Path) -> None:
    base, top, external = tmp_path / "base", tmp_path / "top", tmp_path / "external"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", base, "1M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top], check=True)
    options = f"data_file={base},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, external, "1M"], check=True)
    for path in (top, external):
        with open(path, "rb") as file:
            assert probe.probe(file.fileno()) == ("qcow2", True)
        with pytest.raises(ImageError, match="may refer to other files"):
            open_image(ImageRequest(str(path)))


# Sources in front of sources


def test_a_window_is_a_part_and_stays_one() -> None:
    source = Memory(bytes(range(1, 101)))
    window = Window(source, 10, 20)
    assert window.size == 20
    assert got(window, 0, 20) == bytes(range(11, 31))
    put(window, 15, b"hello")
    assert source.content[25:30] == b"hello"
    assert source.content[30] == 31
    with pytest.raises(OSError, match="not supported"):
        window.resize(21)
    del source.content[15:]
    assert window.size == 5


@pytest.mark.parametrize("offset", [0, 1, 100])
def test_an_image_is_cut_to_what_was_asked(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(200)))
    source = open_image(ImageRequest(str(path), offset=offset, size=50))
    assert read_all(source, 0, 1000) == bytes(range(200))[offset : offset + 50]
    source.close()
    with pytest.raises(ImageError, match="more than there is"):
        open_image(ImageRequest(str(path), offset=offset, size=201))
    with pytest.raises(ImageError, match="past its end"):
        open_image(ImageRequest(str(path), offset=200))


def _overlaid(content: bytes) -> tuple[BlockSource, Memory]:
    base = Memory(content)
    return Overlay(base), base


def _aligned(content: bytes) -> tuple[BlockSource, Memory]:
    base = Memory(content, alignment=512)
    return Aligned(base), base


@pytest.mark.parametrize("make", [_overlaid, _aligned], ids=["overlay", "aligned"])
@pytest.mark.parametrize("seed", range(5))
def test_random_requests_do_what_they_do_to_bytes(
    make: Callable[[bytes], tuple[BlockSource, Memory]], seed: int
) -> None:
    numbers = random.Random(seed)
    size = 5 * BLOCK + 1024
    expected = bytearray(numbers.randbytes(size))
    source, base = make(bytes(expected))
    for _ in range(300):
        offset = numbers.randrange(size)
        length = min(numbers.choice((1, 511, 512, 4096, BLOCK, 3 * BLOCK)), size - offset)
        match numbers.randrange(4):
            case 0:
                data = numbers.randbytes(length)
                put(source, offset, data)
                expected[offset : offset + length] = data
            case 1:
                source.zero(offset, length, unmap=bool(numbers.randrange(2)))
                expected[offset : offset + length] = bytes(length)
            case 2:
                extent = source.status(offset, length)
                assert 0 < extent.length <= length
                assert extent.data or not any(expected[offset : offset + extent.length])
            case _:
                assert got(source, offset, length) == expected[offset : offset + length]
    assert read_all(source, 0, size) == bytes(expected)
    if isinstance(source, Overlay):
        assert base.written == []
        source.close()


def test_an_overlay_that_shrank_and_grew_reads_zeros() -> None:
    overlay = Overlay(Memory(b"\xff" * (3 * BLOCK)))
    put(overlay, BLOCK + 10, b"written")
    overlay.resize(BLOCK + 5)
    assert got(overlay, 0, BLOCK + 5) == b"\xff" * (BLOCK + 5)
    overlay.resize(4 * BLOCK + 7)
    assert got(overlay, 0, 4 * BLOCK + 7) == b"\xff" * (BLOCK + 5) + bytes(3 * BLOCK + 2)
    put(overlay, 4 * BLOCK, b"at last")
    assert got(overlay, 4 * BLOCK, 7) == b"at last"
    with pytest.raises(OSError, match="too large"):
        overlay.resize(1 << 51)
    overlay.close()


def test_direct_io_takes_odd_requests(tmp_path: Path) -> None:
    path = tmp_path / "image"
    content = bytearray(random.Random(1).randbytes(100_003))
    path.write_bytes(content)
    source = open_image(ImageRequest(str(path), writable=True, format="raw", cache=CacheMode.NONE))
    for offset, size in ((1, 10), (4095, 2), (8192, 4096), (100_000, 3), (0, 100_003)):
        data = random.Random(offset).randbytes(size)
        put(source, offset, data)
        content[offset : offset + size] = data
    assert read_all(source, 0, 1 << 20) == bytes(content)
    source.close()
    assert path.read_bytes() == bytes(content)
