"""From what the user named to a source: which kind it is, which format it has, and what is put before it.

A raw image that a guest may write can be given another format's header by that guest, and would be taken for that
format the next time: a qcow2 header names a backing file of the writer's choice. So a format is guessed only for an
image that is not written, and raw only where no other format's header is found.
"""

import importlib.util
import os
import stat
from dataclasses import dataclass

from . import partition, probe
from .file import open_raw
from .overlay import Overlay
from .reach import NBD_URI
from .source import BlockSource, CacheMode, ImageError
from .window import Window


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Which image and what of it. Sizes in bytes, the delay in seconds; None is "not said"."""

    image: str
    again: str = ""  # the URI by which an NBD server is found once the source was parked; default: image
    writable: bool = False
    format: str | None = None
    offset: int = 0
    size: int | None = None
    partition: int | None = None
    snapshot: bool = False
    cache: CacheMode = CacheMode.WRITEBACK
    key_file: str | None = None
    reconnect_delay: int = 60
    connections: int = 2

    @property
    def is_nbd(self) -> bool:
        """Whether an NBD server has it."""
        return NBD_URI.match(self.image) is not None

    @property
    def writes_image(self) -> bool:
        """Whether the image itself is written."""
        return self.writable and not self.snapshot


def open_image(request: ImageRequest) -> BlockSource:
    """The source. ImageError says what is wrong with it."""
    source = _open(request)
    try:
        if request.partition is not None:
            source = _part(source, request)
        elif request.offset or request.size is not None:
            source = _window(source, request)
        return Overlay(source) if request.snapshot else source
    except BaseException:
        source.close()
        raise


def _open(request: ImageRequest) -> BlockSource:
    if request.is_nbd:
        if request.format not in (None, "raw"):
            raise ImageError(f"{request.image}: an NBD server gives the raw image; --format is for files")
        return _connect(request)
    mode = _mode_of(request.image)
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ImageError(f"{request.image}: an image is a regular file, a block device or an NBD URI")
    kind = _format(request)
    if kind == "raw":
        return _raw(request)
    _need_libnbd(request)
    from .qemu import serve

    return serve(
        request.image,
        kind,
        writable=request.writes_image,
        cache=request.cache,
        key_file=request.key_file,
        connections=request.connections,
    )


def _connect(request: ImageRequest) -> BlockSource:
    _need_libnbd(request)
    from .nbd import connect

    return connect(
        request.image,
        request.again or request.image,
        writable=request.writes_image,
        cache=request.cache,
        connections=request.connections,
        reconnect_s=request.reconnect_delay,
    )


def _need_libnbd(request: ImageRequest) -> None:
    """It is asked for when it is needed, since raw images do without."""
    if importlib.util.find_spec("nbd") is None:
        raise ImageError(f"{request.image}: needs libnbd's Python module: apt install python3-libnbd")


def _mode_of(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        raise ImageError(f"{path}: the image does not exist") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot look at the image: {error.strerror}") from error


def _raw(request: ImageRequest) -> BlockSource:
    try:
        return open_raw(request.image, writable=request.writes_image, cache=request.cache)
    except OSError as error:
        how = "for writing" if request.writes_image else "for reading"
        what = f"{request.image}: cannot open the image {how}: {error.strerror}"
        if request.cache.direct and error.strerror == os.strerror(22):
            what += "; its file system has no O_DIRECT: --cache=writeback"
        raise ImageError(what) from error


def _format(request: ImageRequest) -> str:
    if request.format is not None:
        return request.format
    try:
        with open(request.image, "rb", buffering=0) as file:
            found = probe.probe(file.fileno())
    except OSError as error:
        raise ImageError(f"{request.image}: cannot read the image: {error.strerror}") from error
    if found is None:
        return "raw"
    if found.format == "luks":
        raise ImageError(
            f"{request.image}: is a luks image: say --format=luks and --key-file=FILE, or --format=raw to export it as "
            "it is"
        )
    if request.writes_image or found.refers:
        why = "may refer to other files" if found.refers and not request.writes_image else "is to be written"
        raise ImageError(
            f"{request.image}: the header is that of {found.format}, and an image that {why} is not guessed, since "
            f"whoever wrote it could have put the header there: say --format={found.format} or --format=raw"
        )
    return found.format


def _window(source: BlockSource, request: ImageRequest) -> BlockSource:
    left = source.size - request.offset
    if left <= 0:
        raise ImageError(f"{request.image}: --offset {request.offset} is past its end, at {source.size}")
    size = left if request.size is None else request.size
    if size > left:
        raise ImageError(f"{request.image}: --size {size} is more than there is from the offset on: {left}")
    return Window(source, request.offset, size)


def _part(source: BlockSource, request: ImageRequest) -> BlockSource:
    assert request.partition is not None
    found = partition.table(source)
    if not found:
        raise ImageError(f"{request.image}: has no partition table that can be read (GPT or MBR)")
    if request.partition not in found:
        there = ", ".join(map(str, sorted(found)))
        raise ImageError(f"{request.image}: has no partition {request.partition}; there are: {there}")
    start, length = found[request.partition]
    if start + length > source.size:
        raise ImageError(f"{request.image}: partition {request.partition} ends past the end of the image")
    return Window(source, start, length)
