"""The debug log keeps the grammar that passthrough/trace.py documents, one line each, whatever the bytes are."""

import errno
import re
import struct

import pytest

from passthrough.protocol.negotiation import Wishes
from passthrough.protocol.operations import BY_OPCODE, Out
from passthrough.server import Server
from passthrough.trace import quote
from tests.wire.exchanges import EXCHANGES, Exchange, unhex
from tests.wire.fake import FakeFileSystem, handle, init_request, request, serve_split, serving

NAME = r"'((?:[ -&(-\[\]-~]|\\x[0-9a-f]{2})*)'"  # printable ASCII but ' and \, and \xNN
REQUEST = re.compile(
    rf"> (?P<unique>\d+) (?P<opcode>[A-Z][A-Z0-9_]*|opcode-\d+) node=(?P<node>\d+)"
    rf"(?P<fields>(?: [a-z_][a-z0-9_]*=-?\d+)*)(?P<names>(?: {NAME})*)(?: \+(?P<bytes>\d+))?"
    r" uid=\d+ gid=\d+ pid=\d+",
    re.ASCII,
)
REPLY = re.compile(r"< (?P<unique>\d+) (?:OK(?: (?P<bytes>\d+))?|(?P<errno>E[A-Z0-9]+|\d+)|later|-)", re.ASCII)


def unquote(shown: str) -> bytes:
    """A name as the log shows it, read back."""
    assert re.fullmatch(NAME, shown)
    return re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), shown[1:-1].encode("ascii"))


def _trace(raw: bytes, exchange: Exchange | None = None, split: int | None = None) -> tuple[str, str]:
    lines: list[str] = []
    fs = FakeFileSystem()
    if exchange is not None and exchange.result is not None:
        fs.results[exchange.calls[0][0]] = exchange.result
    flags = exchange.flags if exchange else 1 << 29
    server = serving(fs, flags, debug=lines.append)
    lines.clear()
    if split is None:
        handle(server, raw, stale=b"\xff" * 64)
    else:
        serve_split(server, raw, split)
    asked, answered = lines
    return asked, answered


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
@pytest.mark.parametrize("split", [False, True], ids=["buffer", "pieces"])
def test_every_opcode_keeps_the_grammar(exchange: Exchange, split: bool) -> None:
    raw = unhex(exchange.request)
    row = BY_OPCODE[raw[4]]
    asked, answered = _trace(raw, exchange, exchange.args_size if split else None)
    request_line, reply_line = REQUEST.fullmatch(asked), REPLY.fullmatch(answered)
    assert request_line, asked
    assert reply_line, answered
    assert request_line["unique"] == reply_line["unique"] == "11"
    assert request_line["opcode"] == row.name.upper()
    assert len(re.findall(NAME, request_line["names"])) == row.names
    fields = re.findall(r"(\w+)=", request_line["fields"])
    due = row.struct.fields if row.struct else ()
    # Without FUSE_SETXATTR_EXT the struct has 8 bytes, and what follows is the name already.
    assert fields == list(due[:2] if exchange.name == "setxattr of 8 bytes" else due)


EXAMPLES = {
    "lookup": ("> 11 LOOKUP node=1 'hello' uid=1000 gid=100 pid=42", "< 11 OK 128"),
    "lookup ENOENT": ("> 11 LOOKUP node=1 'hello' uid=1000 gid=100 pid=42", "< 11 ENOENT"),
    "forget": ("> 11 FORGET node=34 nlookup=3 uid=1000 gid=100 pid=42", "< 11 -"),
    "write": (
        "> 11 WRITE node=34 fh=5 offset=10 size=3 write_flags=4 lock_owner=119 flags=32769 +3 uid=1000 gid=100 pid=42",
        "< 11 OK 8",
    ),
    "rename": ("> 11 RENAME node=1 newdir=35 'old' 'new' uid=1000 gid=100 pid=42", "< 11 OK"),
    "setxattr of 8 bytes": ("> 11 SETXATTR node=34 size=5 flags=1 'user.k' +5 uid=1000 gid=100 pid=42", "< 11 OK"),
    "setxattr of 16 bytes": (
        "> 11 SETXATTR node=34 size=5 flags=2 setxattr_flags=1 'user.k' +5 uid=1000 gid=100 pid=42",
        "< 11 OK",
    ),
    "create with a supplementary group": (
        "> 11 CREATE node=1 flags=32833 mode=33188 umask=18 open_flags=0 'new' uid=1000 gid=100 pid=42",
        "< 11 OK 144",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("split", [False, True], ids=["buffer", "pieces"])
def test_lines_as_they_are(name: str, split: bool) -> None:
    exchange = next(row for row in EXCHANGES if row.name == name)
    assert _trace(unhex(exchange.request), exchange, exchange.args_size if split else None) == EXAMPLES[name]


HARD_NAMES = [
    b"new\nline",
    b"\r\n< 11 OK",
    b"\xff\xfe\x80",
    "größe \u2028".encode(),
    b"it's",
    b'"quoted"',
    b"both ' and \"",
    b"back\\slash \\x41",
    b"\x1b[31mred",
    b"\x7f",
    b" ",
    b"",
    bytes(range(1, 256)),
]


@pytest.mark.parametrize("name", HARD_NAMES, ids=ascii)
def test_names_stay_on_one_line_and_can_be_read_back(name: bytes) -> None:
    assert unquote(quote(name)) == name
    asked, _ = _trace(request(12, bytes(8) + name + b"\0plain\0"))
    found = REQUEST.fullmatch(asked)
    assert found, asked
    assert found["names"] == f" {quote(name)} 'plain'"
    assert len(asked.splitlines()) == 1


@pytest.mark.parametrize("rest", [b"", b"no NUL", b"\0\0", b"a\0b\0c\0", b"x" * 10000 + b"\0"])
@pytest.mark.parametrize("opcode", [1, 6, 9, 12, 16, 21, 42, 39])
def test_malformed_requests_show_what_can_be_shown(opcode: int, rest: bytes) -> None:
    row = BY_OPCODE[opcode]
    asked, answered = _trace(request(opcode, bytes(row.struct.size if row.struct else 0) + rest))
    assert REQUEST.fullmatch(asked), asked
    assert REPLY.fullmatch(answered), answered


@pytest.mark.parametrize("split", [None, 0], ids=["buffer", "pieces"])
def test_a_request_too_short_for_its_struct_is_shown_too(split: int | None) -> None:
    """The debug log is read when something is wrong: the wrong ones must be in it."""
    asked, answered = _trace(request(3, bytes(8)), split=split)
    assert asked == "> 11 GETATTR node=34 uid=1000 gid=100 pid=42"
    assert answered == "< 11 EINVAL"


def test_an_unknown_opcode() -> None:
    assert _trace(request(4096, b"abc")) == ("> 11 opcode-4096 node=34 uid=1000 gid=100 pid=42", "< 11 ENOSYS")


def test_an_errno_without_a_name() -> None:
    lines: list[str] = []
    fs = FakeFileSystem()
    fs.results["readlink"] = OSError(511, "no name")
    handle(serving(fs, debug=lines.append), request(5))
    assert lines[-1] == "< 11 511"
    assert 511 not in errno.errorcode


def test_init_in_both_forms() -> None:
    for size in (64, 16):
        lines: list[str] = []
        server = Server(FakeFileSystem(), Wishes(), debug=lines.append)
        raw = init_request()
        handle(server, struct.pack("=I", 40 + size) + raw[4 : 40 + size])
        found = REQUEST.fullmatch(lines[0])
        assert found, lines
        assert found["opcode"] == "INIT"
        assert lines[1] == "< 2 OK 64"
        if size == 64:
            assert " major=7 minor=45 max_readahead=131072 flags=" in lines[0]


def test_every_kind_of_reply_line_is_reached() -> None:
    """The table above has replies with bytes, without, errors and none: "later" is test_waiting.py's."""
    kinds = {row.out for row in BY_OPCODE.values()}
    assert {Out.NOTHING, Out.NO_REPLY, Out.ENTRY} <= kinds
    shapes = {re.sub(r"\d+$", "N", _trace(unhex(row.request), row)[1]) for row in EXCHANGES}
    assert {"< 11 OK", "< 11 OK N", "< 11 -", "< 11 ENOENT", "< 11 ENOSYS"} <= shapes
