"""Properties of the codec: what is packed is read back, and no bytes whatever raise out of the server."""

import re
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passthrough.filesystem import Attr, Dirent, Entry, FileSystem
from passthrough.protocol import structs
from passthrough.protocol.dirents import put_dirents, put_dirents_plus, read_dirents, read_dirents_plus
from passthrough.protocol.errors import RequestError
from passthrough.protocol.operations import BY_NAME, BY_OPCODE, OPCODE_LIMIT, Out
from passthrough.protocol.replies import join_names, put_header
from passthrough.protocol.requests import decoder, read_extensions, read_forgets, read_header, read_names, split_name
from passthrough.protocol.structs import Layout
from tests.wire.fake import (
    BODY_SIZE,
    FakeChannel,
    FakeFileSystem,
    handle,
    labels_extension,
    logs,
    request,
    serve_split,
    serving,
)
from tests.wire.test_abi import fields
from tests.wire.test_trace import REPLY, REQUEST

LAYOUTS = [value for value in vars(structs).values() if isinstance(value, Layout)]

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
S64 = st.integers(-(2**63), 2**63 - 1)
NS = st.integers(0, 10**18)
# A name is what stands between NULs; an empty one is for the file system to refuse.
names = st.binary(max_size=300).map(lambda raw: raw.replace(b"\0", b"\xff"))
attrs = st.builds(Attr, U64, U64, U64, S64, S64, S64, *[U32] * 10)
entries = st.builds(Entry, st.integers(1, 2**64 - 1), attrs, NS, NS, U64)
dirents = st.builds(Dirent, names, U64, U64, U32)


def _values(layout: Layout) -> st.SearchStrategy[tuple[Any, ...]]:
    """Values of a layout's fields, from one end of each field's range to the other."""
    kinds: list[st.SearchStrategy[Any]] = []
    for part in re.findall(r"(\d*)([A-Za-z])", layout.struct.format):
        count, code = int(part[0] or 1), part[1]
        if code == "s":
            kinds.append(st.binary(min_size=count, max_size=count))
        elif code != "x":
            bits = 8 * struct.calcsize("=" + code)
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
            kinds += [st.integers(low, high)] * count
    return st.tuples(*kinds)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_layouts_read_what_they_pack(layout: Layout, data: st.DataObject) -> None:
    values = data.draw(_values(layout))
    packed = layout.struct.pack(*values)
    assert len(packed) == layout.size
    assert layout.struct.unpack(packed) == values
    # Each value lies where the format says, by itself: other bits in it change that value alone.
    for number, (_, offset, _) in enumerate(fields(layout)):
        changed = bytearray(packed)
        changed[offset] ^= 0xFF
        differing = [a != b for a, b in zip(values, layout.struct.unpack(changed), strict=True)]
        assert differing == [at == number for at in range(len(values))]


@given(length=U32, opcode=U32, unique=U64, nodeid=U64, uid=U32, gid=U32, pid=U32, extlen=st.integers(0, 2**16 - 1))
def test_request_header(length: int, **fields: int) -> None:
    raw = struct.pack("=IIQQIIIHH", length, *fields.values(), 0xFFFF)
    header = read_header(memoryview(raw), length) if length >= 40 else None
    if header:
        assert header._asdict() == {
            "len": length,
            **{("total_extlen" if name == "extlen" else name): value for name, value in fields.items()},
        }


@given(length=U32, error=st.integers(-511, 0), unique=U64)
def test_reply_header(length: int, error: int, unique: int) -> None:
    out = bytearray(16)
    put_header(out, 0, length, error, unique)
    assert out == struct.pack("=IiQ", length, error, unique)


@given(st.lists(names, max_size=5), st.integers(0, 5), st.binary(max_size=9))
def test_names(given_names: list[bytes], count: int, before: bytes) -> None:
    raw = before + join_names(given_names)
    view = memoryview(raw + b"beyond\0")
    if count == len(given_names):
        assert read_names(view, len(before), len(raw), count) == tuple(given_names)
    else:
        with pytest.raises(RequestError):
            read_names(view, len(before), len(raw), count)


@given(names, st.binary(max_size=40))
def test_one_name_is_read_as_names_are(name: bytes, tail: bytes) -> None:
    """LOOKUP has a decoder of its own: it must agree with the general one on every input."""
    decode = decoder(BY_NAME["lookup"])
    for raw in (name + b"\0", name, name + b"\0" + tail, tail):
        view = memoryview(raw)
        try:
            expected: Any = read_names(view, 0, len(raw), 1)
        except RequestError:
            expected = RequestError
        try:
            found: Any = decode(view, 0, view, 0, len(raw))
        except RequestError:
            found = RequestError
        assert found == expected


@given(names, st.binary(max_size=100), st.binary(max_size=9))
def test_split_name(name: bytes, value: bytes, before: bytes) -> None:
    view = memoryview(before + name + b"\0" + value)
    found, at = split_name(view, len(before), len(view))
    assert (found, bytes(view[at:])) == (name, value)


@given(st.lists(st.tuples(U64, U64), max_size=50), st.integers(-3, 3), st.binary(max_size=9))
def test_forgets(forgets: list[tuple[int, int]], off_by: int, before: bytes) -> None:
    raw = before + b"".join(struct.pack("=QQ", *one) for one in forgets)
    view = memoryview(raw + bytes(64))
    if off_by == 0:
        assert read_forgets(view, len(before), len(raw), len(forgets)) == forgets
    else:
        with pytest.raises(RequestError):
            read_forgets(view, len(before), len(raw), len(forgets) + off_by)


label = st.tuples(names.filter(lambda name: 0 < len(name) <= 255), st.binary(max_size=300))


@given(st.lists(U32, max_size=32), st.lists(label, max_size=31), st.binary(max_size=9), st.booleans())
def test_extensions(groups: list[int], labels: list[tuple[bytes, bytes]], before: bytes, turned: bool) -> None:
    """A supplementary group and security labels, in either order (Linux has the labels first)."""
    body = struct.pack(f"=I{len(groups)}I", len(groups), *groups)
    body += bytes(-len(body) % 8)
    both = [labels_extension(labels), struct.pack("=II", 8 + len(body), 32) + body]
    raw = before + b"".join(reversed(both) if turned else both)
    assert read_extensions(memoryview(raw), len(before), len(raw)) == (tuple(groups), tuple(labels))


@given(st.binary(max_size=200), st.integers(0, 20))
def test_any_extension_is_read_or_refused(raw: bytes, start: int) -> None:
    try:
        groups, labels = read_extensions(memoryview(raw), min(start, len(raw)), len(raw))
    except RequestError:
        return
    assert groups is None or len(groups) <= 32
    assert sum(len(name) + len(value) for name, value in labels) <= len(raw)


@given(st.lists(dirents, max_size=20), st.integers(0, 4096))
def test_dirents(listing: list[Dirent], size: int) -> None:
    body = memoryview(bytearray(b"\xee" * 4096))
    length = put_dirents(body, size, listing)
    assert length <= size
    found = read_dirents(bytes(body[:length]))
    assert found == listing[: len(found)]
    left = listing[len(found) :]
    assert not left or length + 24 + len(left[0].name) > size - 7


@given(st.lists(st.tuples(dirents, st.none() | entries), max_size=12), st.integers(0, 4096))
def test_dirents_plus(listing: list[tuple[Dirent, Entry | None]], size: int) -> None:
    body = memoryview(bytearray(b"\xee" * 4096))
    length, left = put_dirents_plus(body, size, listing)
    assert length <= size
    found = read_dirents_plus(bytes(body[:length]))
    assert found == listing[: len(found)]
    assert left == (listing[len(found)][1] if len(found) < len(listing) else None)


# Random bytes: the header is true, the rest is noise. Opcodes a little past the last are unknown ones.
opcodes = st.integers(0, OPCODE_LIMIT + 2).filter(lambda opcode: opcode not in (26, 38))
noise = st.binary(max_size=160) | st.tuples(st.binary(max_size=88), st.lists(names, max_size=3)).map(
    lambda pair: pair[0] + join_names(pair[1])
)


@given(opcode=opcodes, rest=noise, extlen=st.integers(0, 4) | st.integers(0, 2**16 - 1), able=st.booleans())
@settings(max_examples=600, deadline=None)
def test_any_bytes_are_answered(opcode: int, rest: bytes, extlen: int, able: bool) -> None:
    fs: FileSystem = FakeFileSystem() if able else FileSystem()
    lines: list[str] = []
    with logs() as log:
        server = serving(fs, debug=lines.append)
        raw = request(opcode, rest, extlen=extlen)
        result = handle(server, raw, stale=b"\xff" * 64)
    row = BY_OPCODE.get(opcode)
    if row is not None and row.out is Out.NO_REPLY:
        assert result is None
    else:
        assert result is not None
        assert -512 < result <= BODY_SIZE
    assert log.tracebacks() == []
    assert all(REQUEST.fullmatch(line) or REPLY.fullmatch(line) for line in lines), lines


@given(opcode=opcodes, rest=noise, extlen=st.integers(0, 4), cut=st.integers(0, 88))
@settings(max_examples=300, deadline=None)
def test_pieces_are_answered_as_one_buffer_is(opcode: int, rest: bytes, extlen: int, cut: int) -> None:
    """Cut at the opcode's struct, both ways in must make the same call and give the same answer."""
    row = BY_OPCODE.get(opcode)
    size = row.struct.size if row and row.struct else 0
    one, two = FakeFileSystem(), FakeFileSystem()
    raw = request(opcode, rest, extlen=extlen)
    with logs() as log:
        channel = FakeChannel()
        result = handle(serving(one), raw, channel)
        split = serve_split(serving(two), raw, size)
        # Cut anywhere else it is at least an answer.
        serve_split(serving(FakeFileSystem()), raw, cut)
    assert one.calls == two.calls
    if result is None or split is None:
        assert result is None
        assert split is None
    elif result < 0:
        assert split == struct.pack("=IiQ", 16, result, 11)
    else:
        assert split[16:] == channel.body[:result]
    assert log.tracebacks() == []
