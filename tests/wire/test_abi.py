"""The ABI tables against the kernel's header: tests/data/fuse_abi_7.45.tsv, made by a C compiler from Linux 6.18."""

import csv
import re
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from passthrough.filesystem import FileSystem
from passthrough.protocol import constants, structs
from passthrough.protocol.operations import BY_NAME, BY_OPCODE, OPCODE_LIMIT, OPERATIONS, Operation, Out
from passthrough.protocol.replies import encoder
from passthrough.protocol.structs import Layout


class Row(NamedTuple):
    """One line of the table."""

    kind: str
    name: str
    field: str
    value: str
    size: str


def _table() -> list[Row]:
    path = Path(__file__).parent.parent / "data" / "fuse_abi_7.45.tsv"
    with path.open(newline="") as lines:
        return [Row(*line) for line in csv.reader(lines, delimiter="\t")][1:]


ABI = _table()
HEADER_STRUCTS = {row.name: int(row.size) for row in ABI if row.kind == "struct" and not row.name.startswith("cuse_")}
HEADER_FIELDS = [row for row in ABI if row.kind == "field" and row.name in HEADER_STRUCTS]
HEADER_CONSTANTS = {row.name: int(row.value, 0) for row in ABI if row.kind in ("const", "opcode")}

LAYOUTS = {
    value.name: value for name, value in vars(structs).items() if isinstance(value, Layout) and "COMPAT" not in name
}

# Fields that are structs themselves: our rows hold the inner struct's fields in its place.
NESTED = {
    ("fuse_entry_out", "attr"): "fuse_attr",
    ("fuse_attr_out", "attr"): "fuse_attr",
    ("fuse_statx_out", "stat"): "fuse_statx",
    ("fuse_statfs_out", "st"): "fuse_kstatfs",
    ("fuse_lk_in", "lk"): "fuse_file_lock",
    ("fuse_lk_out", "lk"): "fuse_file_lock",
    ("fuse_direntplus", "entry_out"): "fuse_entry_out",
    ("fuse_direntplus", "dirent"): "fuse_dirent",
    ("fuse_statx", "atime"): "fuse_sx_time",
    ("fuse_statx", "btime"): "fuse_sx_time",
    ("fuse_statx", "ctime"): "fuse_sx_time",
    ("fuse_statx", "mtime"): "fuse_sx_time",
}
PADDING = re.compile(r"(__)?(padding|dummy|unused|spare|reserved)\d*")

# Numbers in the header's enums that are no request's opcode.
NO_OPERATION = {
    "FUSE_MAX_NR_SECCTX": "an extension type",
    "FUSE_EXT_GROUPS": "an extension type",
    "FUSE_INIT_BSWAP_RESERVED": "INIT from a peer of the other byte order: unknown, hence ENOSYS",
    "FUSE_IO_URING_CMD_INVALID": "a command of the ring",
    "FUSE_IO_URING_CMD_REGISTER": "a command of the ring",
    "FUSE_IO_URING_CMD_COMMIT_AND_FETCH": "a command of the ring",
}
NO_CONSTANT = {
    "FUSE_INIT_RESERVED": "never to be used",
    "FUSE_DIRECT_IO_RELAX": "the old name of FUSE_DIRECT_IO_ALLOW_MMAP",
    "FUSE_NAME_OFFSET": "the size of FUSE_DIRENT",
    "FUSE_NAME_OFFSET_DIRENTPLUS": "the size of FUSE_DIRENTPLUS",
    "FUSE_DEV_IOC_MAGIC": "inside the FUSE_DEV_IOC_* numbers",
}
OUR_CONSTANTS = {"IN_HEADER_SIZE": "fuse_in_header", "OUT_HEADER_SIZE": "fuse_out_header"}


def _expected(name: str) -> list[tuple[str, int, int]]:
    """The header's fields of a struct as (name, offset, size), padding left out and nested structs flattened."""
    found = []
    for row in HEADER_FIELDS:
        if row.name != name or PADDING.fullmatch(row.field) or row.size == "flex":
            continue
        inner = NESTED.get((name, row.field))
        if inner is None:
            found.append((row.field, int(row.value), int(row.size)))
        for field, offset, size in _expected(inner) if inner else []:
            if inner == "fuse_sx_time":  # statx's times are called atime and atimensec, as in fuse_attr
                field = row.field if offset == 0 else row.field + "nsec"
            found.append((field, int(row.value) + offset, size))
    return found


def fields(layout: Layout) -> list[tuple[str, int, int]]:
    """Our fields as (name, offset, size), read from the format without the help of Layout.offsets."""
    names = iter(layout.fields)
    found = []
    position = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.struct.format):
        width = struct.calcsize("=" + code)
        if code in "xs":
            width *= int(count or 1)
        for _ in range(1 if code in "xs" else int(count or 1)):
            if code != "x":
                found.append((next(names), position, width))
            position += width
    assert next(names, None) is None, "more names than values"
    return found


def test_every_struct_has_a_layout_and_every_layout_is_a_struct() -> None:
    assert sorted(LAYOUTS) == sorted(HEADER_STRUCTS)


@pytest.mark.parametrize("name", sorted(HEADER_STRUCTS))
def test_struct_size(name: str) -> None:
    assert LAYOUTS[name].size == HEADER_STRUCTS[name]


@pytest.mark.parametrize("name", sorted(HEADER_STRUCTS))
def test_struct_fields(name: str) -> None:
    assert fields(LAYOUTS[name]) == _expected(name)


@pytest.mark.parametrize("name", sorted(HEADER_STRUCTS))
def test_offsets_are_what_the_format_says(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.offsets() == {field: offset for field, offset, _ in fields(layout)}


def test_compat_setxattr_is_the_head_of_the_new_one() -> None:
    compat = structs.FUSE_SETXATTR_IN_COMPAT
    assert compat.size == constants.FUSE_COMPAT_SETXATTR_IN_SIZE
    assert compat.offsets().items() < structs.FUSE_SETXATTR_IN.offsets().items()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_byte_order_is_the_machines_without_alignment(layout: Layout) -> None:
    assert layout.struct.format.startswith("=")


OPCODES = {
    row.name: int(row.value)
    for row in ABI
    if row.kind == "opcode" and row.name.startswith("FUSE_") and not row.name.startswith("FUSE_NOTIFY_")
}
OPCODES["FUSE_NOTIFY_REPLY"] = HEADER_CONSTANTS["FUSE_NOTIFY_REPLY"]  # the one of that name that is a request


@pytest.mark.parametrize("name", [name for name in OPCODES if name not in NO_OPERATION])
def test_every_opcode_has_a_row(name: str) -> None:
    assert BY_NAME[name.removeprefix("FUSE_").lower()].opcode == OPCODES[name]


def test_every_row_is_an_opcode_and_every_exemption_is_needed() -> None:
    assert {"FUSE_" + row.name.upper() for row in OPERATIONS} == OPCODES.keys() - NO_OPERATION.keys()
    assert NO_OPERATION.keys() <= OPCODES.keys()


def test_no_opcode_and_no_name_comes_twice() -> None:
    assert len(BY_OPCODE) == len(BY_NAME) == len(OPERATIONS)
    assert 1 + max(row.opcode for row in OPERATIONS) == OPCODE_LIMIT


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_every_struct_of_a_row_is_a_request(row: Operation) -> None:
    assert row.struct is None or row.struct.name.endswith("_in")


# Opcodes that the server answers by itself or by another method; the rest are methods of the contract.
NO_METHOD = {"rename", "setlkw", "copy_file_range_64", "interrupt", "setupmapping", "removemapping", "notify_reply"}


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.name not in NO_METHOD], ids=lambda row: row.name)
def test_every_row_is_a_method_of_the_contract(row: Operation) -> None:
    assert callable(getattr(FileSystem, row.name))


# What needs more than the result to be written: the server does these itself.
NO_ENCODER = {Out.NO_REPLY, Out.INIT, Out.DATA, Out.XATTR, Out.IOCTL, Out.DIRENTS, Out.DIRENTS_PLUS}


@pytest.mark.parametrize("out", Out, ids=lambda out: out.name)
def test_every_kind_of_reply_has_an_encoder_or_needs_none(out: Out) -> None:
    row = next(row for row in OPERATIONS if row.out is out)
    if out in NO_ENCODER:
        with pytest.raises(KeyError):
            encoder(row)
    else:
        assert callable(encoder(row))


CONSTANTS = {name: value for name, value in vars(constants).items() if isinstance(value, int)}


@pytest.mark.parametrize("name", [name for name in CONSTANTS if name not in OUR_CONSTANTS])
def test_constant_is_the_headers(name: str) -> None:
    assert CONSTANTS[name] == HEADER_CONSTANTS[name]


@pytest.mark.parametrize(("name", "of"), OUR_CONSTANTS.items())
def test_header_sizes_are_the_structs(name: str, of: str) -> None:
    assert CONSTANTS[name] == HEADER_STRUCTS[of]


def test_every_constant_of_the_header_is_there_or_exempt() -> None:
    wanted = {row.name for row in ABI if row.kind == "const" and not row.name.startswith("CUSE_")}
    assert wanted - CONSTANTS.keys() == NO_CONSTANT.keys()


def test_init_flags_name_every_bit_once() -> None:
    assert all(constants.INIT_FLAGS[name] == HEADER_CONSTANTS["FUSE_" + name] for name in constants.INIT_FLAGS)
    # Bit 31 is FUSE_INIT_RESERVED; the rest are in use without a hole.
    assert sum(constants.INIT_FLAGS.values()) == (1 << 43) - 1 - (1 << 31)
