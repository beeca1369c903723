"""The image's file system without a mount: a hostile peer, late answers, backing ids, and the options."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from passthrough.cli import parser
from passthrough.errors import UserError
from passthrough.export_options import ExportOptions, collect
from passthrough.filesystem import Kernel, failure
from passthrough.fs.choice import Choice
from passthrough.fs.image import CacheMode, Image, ImageConfig
from passthrough.fs.image.file import open_raw
from passthrough.fs.image.source import BlockSource
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from passthrough.protocol.values import Answer, Buffers, Context, Later, SetAttr

CTX = Context(1, 0, 0, 1)
NOTHING = SetAttr(*(0,) * 13)


class FakeKernel:
    """Hands out backing ids, or refuses them."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal = refusal
        self.open: set[int] = set()
        self.asked = 0

    def notify(self, message: bytes) -> bool:
        raise AssertionError

    def open_backing(self, fd: int) -> int:
        self.asked += 1
        if self.refusal:
            raise failure(self.refusal)
        self.open.add(7)
        return 7

    def close_backing(self, backing_id: int) -> None:
        self.open.remove(backing_id)


class Slow(BlockSource):
    """A source whose answers come when it is told to give them."""

    writable = True

    def __init__(self) -> None:
        self.waiting: list[tuple[memoryview, Answer]] = []

    @property
    def size(self) -> int:
        return 4096

    def read(self, offset: int, size: int) -> Later:
        return Later(lambda room, answer: self.waiting.append((room, answer)))

    def write(self, offset: int, data: Buffers) -> Later:
        return Later(lambda room, answer: self.waiting.append((room, answer)))


def image(path: Path, *, writable: bool = True, growable: bool = False, passthrough: Choice = Choice.AUTO) -> Image:
    path.write_bytes(bytes(range(100)))
    source = open_raw(str(path), writable=writable, cache=CacheMode.WRITEBACK)
    return Image(source, ImageConfig(writable=writable, growable=growable, passthrough=passthrough, allow_other=True))


def begun(fs: Image, kernel: Kernel | None, flags: int = c.FUSE_PASSTHROUGH) -> Image:
    fs.init(Agreement(45, flags), kernel)
    return fs


@pytest.mark.parametrize("nodeid", [0, 2, 1 << 63])
def test_there_is_one_node(tmp_path: Path, nodeid: int) -> None:
    fs = image(tmp_path / "image")
    fh = fs.open(CTX, 1, os.O_RDWR, 0).fh
    for call in (
        lambda: fs.getattr(CTX, nodeid, None),
        lambda: fs.setattr(CTX, nodeid, NOTHING),
        lambda: fs.open(CTX, nodeid, os.O_RDONLY, 0),
        lambda: fs.read(CTX, nodeid, fh, 0, 10, 0),
        lambda: fs.write(CTX, nodeid, fh, 0, (memoryview(b"x"),), 0, 0),
        lambda: fs.statfs(CTX, nodeid),
        lambda: fs.lseek(CTX, nodeid, fh, 0, os.SEEK_HOLE),
        lambda: fs.fsync(CTX, nodeid, fh, 0),
    ):
        with pytest.raises(OSError, match="Bad file"):
            call()
    with pytest.raises(OSError, match="No such"):
        fs.lookup(CTX, 1, b"name")
    with pytest.raises(OSError, match="Not a directory"):
        fs.opendir(CTX, 1, 0, 0)


@pytest.mark.parametrize("fh", [0, 99, (1 << 64) - 1])
def test_a_handle_that_was_never_given_is_refused(tmp_path: Path, fh: int) -> None:
    fs = image(tmp_path / "image")
    for call in (
        lambda: fs.read(CTX, 1, fh, 0, 10, 0),
        lambda: fs.write(CTX, 1, fh, 0, (memoryview(b"x"),), 0, 0),
        lambda: fs.flush(CTX, 1, fh, 0),
        lambda: fs.release(CTX, 1, fh, 0, 0, 0),
        lambda: fs.fallocate(CTX, 1, fh, 0, 10, 0),
    ):
        with pytest.raises(OSError, match="Bad file"):
            call()
    reader = fs.open(CTX, 1, os.O_RDONLY, 0).fh
    with pytest.raises(OSError, match="Bad file"):
        fs.write(CTX, 1, reader, 0, (memoryview(b"x"),), 0, 0)
    fs.release(CTX, 1, reader, 0, 0, 0)
    with pytest.raises(OSError, match="Bad file"):
        fs.read(CTX, 1, reader, 0, 10, 0)


@pytest.mark.parametrize("offset", [1 << 62, (1 << 63) - 1, (1 << 64) - 1])
def test_far_offsets(tmp_path: Path, offset: int) -> None:
    fs = image(tmp_path / "image", growable=True)
    fh = fs.open(CTX, 1, os.O_RDWR, 0).fh
    assert fs.read(CTX, 1, fh, offset, 10, 0) == b""
    with pytest.raises(OSError, match="too large"):
        fs.write(CTX, 1, fh, offset, (memoryview(b"12"),), 0, 0)
    for mode in (0, 16):
        with pytest.raises(OSError, match="too large"):
            fs.fallocate(CTX, 1, fh, min(offset, (1 << 63) - 2), 1, mode)
    fs.fallocate(CTX, 1, fh, min(offset, (1 << 63) - 2), 1, 3)  # a hole where nothing is
    with pytest.raises(OSError, match="No such device or address"):
        fs.lseek(CTX, 1, fh, offset, os.SEEK_DATA)
    with pytest.raises(OSError, match="too large"):
        fs.setattr(CTX, 1, NOTHING._replace(valid=c.FATTR_SIZE, size=1 << 63))
    assert (tmp_path / "image").stat().st_size == 100


def test_what_cannot_be_set_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    fs = image(tmp_path / "image")
    fs.others_may_not()
    for valid, mode, number in (
        (c.FATTR_MODE | c.FATTR_SIZE, 0o640, errno.EPERM),
        (c.FATTR_UID | c.FATTR_SIZE, 0o600, errno.EPERM),
        (1 << 20 | c.FATTR_SIZE, 0o600, errno.ENOTSUP),
    ):
        with pytest.raises(OSError, match=os.strerror(number)):
            fs.setattr(CTX, 1, NOTHING._replace(valid=valid, mode=mode, size=10))
    attr, _ = fs.getattr(CTX, 1, None)
    assert (attr.size, stat.S_IMODE(attr.mode)) == (100, 0o600)


def test_writers_name_the_backing_file_and_come_to_us(tmp_path: Path) -> None:
    kernel = FakeKernel()
    fs = begun(image(tmp_path / "image"), kernel)
    reader, writer = fs.open(CTX, 1, os.O_RDONLY, 0), fs.open(CTX, 1, os.O_RDWR, 0)
    assert reader.backing_id == writer.backing_id == 7
    assert reader.open_flags & c.FOPEN_PASSTHROUGH
    assert not reader.open_flags & c.FOPEN_DIRECT_IO
    assert writer.open_flags & c.FOPEN_PASSTHROUGH
    assert writer.open_flags & c.FOPEN_DIRECT_IO
    assert kernel.asked == 1
    fs.destroy()
    assert not kernel.open


def test_growable_and_read_only_pass_through(tmp_path: Path) -> None:
    for writable, growable, flags in ((True, True, os.O_RDWR), (False, False, os.O_RDONLY)):
        fs = begun(image(tmp_path / "image", writable=writable, growable=growable), FakeKernel())
        assert fs.open(CTX, 1, flags, 0).open_flags & (c.FOPEN_PASSTHROUGH | c.FOPEN_DIRECT_IO) == c.FOPEN_PASSTHROUGH


def test_without_passthrough_all_is_direct(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusing = FakeKernel(errno.EPERM)
    for fs in (
        begun(image(tmp_path / "image"), refusing),
        begun(image(tmp_path / "image"), FakeKernel(), 0),
        begun(image(tmp_path / "image", passthrough=Choice.OFF), None),
    ):
        for flags in (os.O_RDONLY, os.O_RDWR):
            opened = fs.open(CTX, 1, flags, 0)
            assert opened.open_flags & c.FOPEN_DIRECT_IO
            assert opened.open_flags & c.FOPEN_PARALLEL_DIRECT_WRITES
            assert opened.backing_id == 0
    assert refusing.asked == 1
    assert len(caplog.records) == 1


def test_answers_may_come_late_and_out_of_order() -> None:
    source = Slow()
    fs = Image(source, ImageConfig(writable=True))
    fh = fs.open(CTX, 1, os.O_RDWR, 0).fh
    answers: list[tuple[str, int]] = []
    for name, found in (
        ("read", fs.read(CTX, 1, fh, 0, 10, 0)),
        ("write", fs.write(CTX, 1, fh, 0, (memoryview(b"12345"),), 0, 0)),
    ):
        assert isinstance(found, Later)
        found.begin(memoryview(bytearray(10)), lambda result, name=name: answers.append((name, result)))  # type: ignore[misc]
    for (_, answer), result in zip(reversed(source.waiting), (5, -errno.EIO), strict=True):
        thread = threading.Thread(target=answer, args=(result,))
        thread.start()
        thread.join()
    assert answers == [("write", 5), ("read", -errno.EIO)]


# Options


def options(*words: str) -> ExportOptions:
    return collect(parser.build().parse_args(["export", *words, "IMAGE", "FILE"]).settings)


def test_options_are_read() -> None:
    found = options("--writable", "-o", "growable,cache=unsafe", "--threads=3", "--allow-other=on")
    assert found == ExportOptions(
        writable=True, growable=True, cache=CacheMode.UNSAFE, threads=3, allow_other=Choice.ON
    )
    assert options("--offset=1M", "--size=2G").request("x").size == 2 << 30
    assert options("--format=auto").format is None
    assert options("--format=VHD").format == "vpc"
    assert options("--snapshot").request("x").writable
    assert not options("--snapshot").request("x").writes_image


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--growable"], "growable needs writable"),
        (["--growable", "--writable", "--offset=1"], "what follows"),
        (["--partition=1", "--size=5"], "partition excludes"),
        (["--key-file=a"], "format=luks"),
        (["--passthrough=on", "--snapshot"], "snapshot exclude"),
        (["--passthrough=on", "--cache=none"], "cache=none exclude"),
        (["--passthrough=on", "--format=qcow2"], "format=qcow2 exclude"),
        (["--size=0"], "more than 0"),
        (["--offset=-1"], "bytes, such as"),
        (["--offset=99999999999T"], "bytes, such as"),
        (["--partition=0"], "from 1"),
        (["--format=a,b"], "qemu-nbd knows"),
        (["--connections=17"], "from 1 to 16"),
        (["-o", "writable=yes"], "takes no value"),
        (["-o", "allow_other"], "needs a value"),
        (["-o", "posix_acl"], "unknown option"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        options(*words)
    assert caught.value.status == 1
