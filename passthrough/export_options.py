"""The options of `passthrough export`: one row each, as in options.py, whose readers and rules it shares."""

import re
from dataclasses import dataclass, replace
from typing import Any

from . import exitcodes
from .errors import UserError
from .fs.choice import Choice
from .fs.image import CacheMode, ImageConfig, ImageRequest
from .option_rows import Option, Setting, gather, one_of
from .options import OPTIONS
from .process_options import LOG_OPTIONS, ProcessOptions
from .sandbox_options import SANDBOX_OPTIONS, check_sandbox
from .transport_options import Transport, check_transport

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LENGTH = re.compile(r"(\d{1,19})([KkMmGgTt]?)$")


@dataclass(frozen=True, slots=True)
class ExportOptions(ProcessOptions):
    """What the words add up to. Sizes in bytes, the delay in seconds; None is "not said"."""

    writable: bool = False
    growable: bool = False
    allow_other: Choice = Choice.AUTO
    format: str | None = None
    offset: int = 0
    size: int | None = None
    partition: int | None = None
    snapshot: bool = False
    cache: CacheMode = CacheMode.WRITEBACK
    key_file: str | None = None
    reconnect_delay: int = 60
    connections: int = 2
    io_uring: Choice = Choice.AUTO
    passthrough: Choice = Choice.AUTO
    transport: Transport = Transport.AUTO
    threads: int = 8
    max_write: int = 1 << 20
    fsname: str | None = None
    subtype: str = "passthrough"
    auto_unmount: bool = False

    def request(self, image: str, again: str = "") -> ImageRequest:
        """The part that finds the image; again: see ImageRequest."""
        return ImageRequest(
            image,
            again,
            writable=self.writable or self.snapshot,
            format=self.format,
            offset=self.offset,
            size=self.size,
            partition=self.partition,
            snapshot=self.snapshot,
            cache=self.cache,
            key_file=self.key_file,
            reconnect_delay=self.reconnect_delay,
            connections=self.connections,
        )

    def image(self, uid: int, gid: int) -> ImageConfig:
        """The part that the file system is told."""
        return ImageConfig(
            writable=self.writable or self.snapshot,
            growable=self.growable,
            allow_other=self.allow_other is not Choice.OFF,
            passthrough=self.passthrough,
            uid=uid,
            gid=gid,
        )


def _length(text: str) -> int:
    match = _LENGTH.match(text)
    size = int(match[1]) * _UNITS[match[2].lower()] if match else -1
    if not 0 <= size < 1 << 63:
        raise ValueError("bytes, such as 1048576, 1024K, 1M or 2G")
    return size


def _size(text: str) -> int:
    size = _length(text)
    if size == 0:
        raise ValueError("more than 0 bytes")
    return size


def _format(text: str) -> str | None:
    word = text.lower()
    if not re.fullmatch(r"[a-z0-9-]{1,32}", word):
        raise ValueError("auto, raw, or a format that qemu-nbd knows, such as qcow2, vmdk, vdi, vhdx, vpc or luks")
    return None if word == "auto" else {"vhd": "vpc", "qcow1": "qcow"}.get(word, word)


def _number(first: int, last: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not first <= int(text) <= last:
            raise ValueError(f"a number from {first} to {last}")
        return int(text)

    return parse


def _path(text: str) -> str:
    if not text:
        raise ValueError("a file")
    return text


EXPORT_OPTIONS: tuple[Option, ...] = (
    Option("writable", "writable", "The image may be written; read-only is the default."),
    Option("growable", "growable", "A write past the end makes the image longer; needs writable."),
    Option(
        "allow_other",
        "allow_other",
        "Whether others may use FILE, as its mode says: on, off, or auto (try with, then without; the default).",
        parse=one_of(Choice),
        metavar="WHEN",
    ),
    Option(
        "format",
        "format",
        "The image's format: raw, qcow2, vmdk, vdi, vhdx, luks or another one that qemu-nbd knows; auto (the default) "
        "looks at the header.",
        parse=_format,
        metavar="FORMAT",
    ),
    Option("offset", "offset", "Export the image from there on; default: 0.", parse=_length, metavar="BYTES"),
    Option("size", "size", "Export so much of it; default: to the end.", parse=_size, metavar="BYTES"),
    Option(
        "partition",
        "partition",
        "Export this partition of the image alone (GPT or MBR; logical ones from 5 on).",
        parse=_number(1, 1024),
        metavar="N",
    ),
    Option("snapshot", "snapshot", "Writes go to a temporary file and are thrown away at the end."),
    Option(
        "cache",
        "cache",
        "How the image's data is cached where it lies: writeback (the default), none, writethrough, directsync or "
        "unsafe.",
        parse=one_of(CacheMode),
        metavar="MODE",
    ),
    Option("key_file", "key_file", "A file with the passphrase of a luks image.", parse=_path, metavar="FILE"),
    Option(
        "reconnect_delay",
        "reconnect_delay",
        "How long requests wait for an NBD server that is gone, before they fail; default: 60.",
        parse=_number(0, 1 << 20),
        metavar="SECONDS",
    ),
    Option(
        "connections",
        "connections",
        "How many connections to an NBD server that allows several; default: 2.",
        parse=_number(1, 16),
        metavar="N",
    ),
    Option(
        "passthrough",
        "passthrough",
        "Whether the kernel reads and writes a raw image file itself: auto (where that is exact; the default), on or "
        "off.",
        parse=one_of(Choice),
        metavar="WHEN",
    ),
    *(option for option in OPTIONS if option.word in ("io_uring", "transport", "threads", "max_write")),
    Option("fsname", "fsname", "The source that mount(8) and df show; default: IMAGE.", parse=str, metavar="NAME"),
    *(option for option in OPTIONS if option.word in ("subtype", "auto_unmount", "debug")),
    *LOG_OPTIONS,
    *SANDBOX_OPTIONS,
)

_BY_WORD = {option.word: option for option in EXPORT_OPTIONS}


def collect(settings: list[Setting]) -> ExportOptions:
    """The options that these settings add up to."""
    options = replace(ExportOptions(), **gather(settings, _BY_WORD, "export"))
    _check(options)
    return options


def _check(options: ExportOptions) -> None:
    """Options that contradict each other."""
    check_sandbox(options)
    check_transport(options)
    windowed = options.offset or options.size is not None or options.partition is not None
    if options.growable and not (options.writable or options.snapshot):
        raise UserError("growable needs writable", exitcodes.USAGE)
    if options.growable and windowed and not options.snapshot:
        raise UserError(
            "growable and a part of the image exclude each other: what follows is in the way", exitcodes.USAGE
        )
    if options.partition is not None and (options.offset or options.size is not None):
        raise UserError("partition excludes offset and size", exitcodes.USAGE)
    if options.key_file and options.format != "luks":
        raise UserError("key_file is for luks images: say format=luks as well", exitcodes.USAGE)
    if options.passthrough is Choice.ON:
        for word, stands in (
            ("snapshot", options.snapshot),
            ("a part of the image", windowed),
            (f"format={options.format}", options.format not in (None, "raw")),
            (f"cache={options.cache.value}", options.cache is not CacheMode.WRITEBACK),
        ):
            if stands:
                raise UserError(f"passthrough=on and {word} exclude each other", exitcodes.USAGE)
