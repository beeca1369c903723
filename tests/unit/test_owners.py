"""Tables of ids, access lists and virtual owners without a mount."""

import errno
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passthrough.filesystem import FileSystem, SetAttr
from passthrough.fs import acl
from passthrough.fs.mapped import MappedTree
from passthrough.fs.mapped.virtual import Virtual, read, write
from passthrough.fs.owners.idmap import IdTable, Kind, Line, parse_line
from passthrough.fs.owners.translate import Translated
from passthrough.fs.tree import Tree, TreeConfig
from passthrough.protocol import constants as c
from tests.unit.helpers import ME, ROOT_ID, find, path_fd, raises

_IDS = st.integers(0, 200)
_LINES = st.lists(
    st.builds(Line, st.sampled_from(Kind), st.integers(0, 100), st.integers(0, 100), st.integers(1, 30)), max_size=4
)


def _source(line: Line, kinds: tuple[Kind, ...], *, backwards: bool) -> range:
    first = line.target if backwards and line.kind is Kind.MAP else line.first
    return range(first, first + line.number) if line.kind in kinds else range(0)


_IN = (Kind.GUEST, Kind.MAP, Kind.SQUASH_GUEST, Kind.FORBID_GUEST)
_OUT = (Kind.HOST, Kind.MAP, Kind.SQUASH_HOST)


@given(_LINES, _IDS)
def test_a_table_is_its_lines_one_by_one(lines: list[Line], number: int) -> None:
    """Against the plainest way to say it: look at each line; two that both have an id are refused."""
    ways = [(_IN, False), (_OUT, True)]
    overlap = any(
        set(_source(one, kinds, backwards=b)) & set(_source(other, kinds, backwards=b))
        for kinds, b in ways
        for at, one in enumerate(lines)
        for other in lines[:at]
    )
    if overlap:
        with pytest.raises(ValueError, match="overlap"):
            IdTable(lines)
        return
    table = IdTable(lines)
    for (kinds, backwards), translate in zip(ways, (table.host, table.guest), strict=True):
        (line,) = [line for line in lines if number in _source(line, kinds, backwards=backwards)] or (None,)
        if line is not None and line.kind is Kind.FORBID_GUEST:
            with raises(errno.EPERM):
                translate(number)
            continue
        expected = number
        if line is not None:
            first, target = (
                (line.target, line.first) if backwards and line.kind is Kind.MAP else (line.first, line.target)
            )
            expected = target if line.kind in (Kind.SQUASH_GUEST, Kind.SQUASH_HOST) else target + number - first
        assert translate(number) == expected


@given(st.builds(Line, st.sampled_from(Kind), _IDS, _IDS, st.integers(1, 50)))
def test_a_line_is_read_as_it_is_written(line: Line) -> None:
    if line.kind is Kind.FORBID_GUEST:
        line = line._replace(target=0)
    assert parse_line(str(line)) == line


@pytest.mark.parametrize(
    "text",
    ["", "map", "map:1:2", "map:1:2:3:4", "map:1:2:0", "map:x:2:3", "map:1:2:³", "map:4294967294:0:2", "map::1:2"],
)
def test_lines_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"TYPE:FIRST|one id"):
        parse_line(text)


def test_no_id_stays_none() -> None:
    assert IdTable([Line(Kind.SQUASH_GUEST, 0, 5, c.FUSE_INVALID_UIDGID)]).host(c.FUSE_INVALID_UIDGID) == 0xFFFFFFFF


def test_what_stands_before_leaves_nothing_out(tree: Tree) -> None:
    """Every request that has an id in it is the translation's own, all others are the tree's."""
    before = Translated(tree, (), ())
    own = {name for name in vars(FileSystem) if not name.startswith("_") and name not in vars(before)}
    making = "symlink mknod mkdir create tmpfile link".split()
    assert own == {*making, *"lookup getattr setattr statx access ioctl readdirplus getxattr setxattr".split()}
    assert before.flags == tree.flags
    assert before.getattr(ME, ROOT_ID, None) == tree.getattr(ME, ROOT_ID, None)


def _list(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NO = 0xFFFFFFFF
_FULL = _list((1, 7, _NO), (2, 5, 1000), (4, 5, _NO), (8, 4, 50), (0x10, 5, _NO), (0x20, 1, _NO))


def test_access_lists() -> None:
    assert acl.mode_of(_FULL) == (0o751, True)
    assert acl.mode_of(_list((1, 6, _NO), (4, 4, _NO), (0x20, 0, _NO))) == (0o640, False)
    assert acl.mode_of(acl.with_mode(_FULL, 0o624)) == (0o624, True)
    access, mode = acl.inherited(_FULL, stat.S_IFREG | 0o666)
    assert mode == stat.S_IFREG | 0o640
    assert access == acl.with_mode(_FULL, 0o640)
    assert acl.inherited(_list((1, 7, _NO), (4, 5, _NO), (0x20, 0, _NO)), 0o777) == (None, 0o750)
    shown = acl.translated(_FULL, lambda uid: uid + 1, lambda gid: gid + 2)
    assert (b"\xe9\3\0\0" in shown, b"\x34\0\0\0" in shown) == (True, True)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        b"\1\0\0\0",
        _FULL[:-1],
        _list(),
        _list((1, 7, _NO), (4, 5, _NO)),
        _list((1, 7, _NO), (1, 7, _NO), (4, 5, _NO), (0x20, 0, _NO)),
        _list((1, 7, _NO), (2, 5, 1), (4, 5, _NO), (0x20, 0, _NO)),
        _list((1, 7, _NO), (4, 5, _NO), (0x20, 0, _NO), (0x40, 0, _NO)),
    ],
)
def test_what_is_no_access_list(value: bytes) -> None:
    with raises(errno.EINVAL):
        acl.mode_of(value)


def test_nonsense_is_an_errno() -> None:
    dice = random.Random(7)
    for _ in range(500):
        value = bytearray(_FULL)
        for _ in range(dice.randrange(1, 4)):
            value[dice.randrange(len(value))] = dice.randrange(256)
        for use in (acl.mode_of, acl.is_empty, lambda v: acl.with_mode(v, 0o7), lambda v: acl.inherited(v, 0o7)):
            assert attempt(lambda u=use, v=bytes(value): bool(u(v))) in [True, False, "EINVAL"]  # type: ignore[misc]


def attempt(call: Callable[[], object]) -> object:
    """The result, or the name of the errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_virtual_owners(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o600)
    real = Virtual(stat.S_IFREG | 0o600, 1, 2)
    assert read(str(file), real) == real
    write(str(file), mode=stat.S_IFBLK | 0o640, gid=6, rdev=os.makedev(259, 70_000))
    assert read(str(file), real) == Virtual(stat.S_IFBLK | 0o640, 1, 6, (259, 70_000))
    directory = Virtual(stat.S_IFDIR | 0o700, 1, 2)
    assert read(str(file), directory) == Virtual(stat.S_IFDIR | 0o640, 1, 6), "a directory stays one"
    fifo = Virtual(stat.S_IFIFO | 0o600, 1, 2)
    assert read(str(file), fifo) == fifo


def test_a_program_that_changes_hands_is_never_the_new_owners_suid_program(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even between two xattrs: another client, or another daemon, may look then."""
    tree = MappedTree(path_fd(source), TreeConfig())
    nodeid = find(tree, b"file").nodeid

    def setattr_(valid: int, **values: int) -> None:
        attrs = SetAttr(*(0,) * len(SetAttr._fields))
        tree.setattr(ME, nodeid, attrs._replace(valid=valid, **values))

    setattr_(c.FATTR_UID | c.FATTR_GID, uid=1000, gid=1000)
    setattr_(c.FATTR_MODE, mode=0o6755)
    real = os.setxattr
    seen = []

    def look(path: str, *arguments: object) -> None:
        real(path, *arguments)  # type: ignore[arg-type]
        seen.append(read(path, Virtual(stat.S_IFREG | 0o644, 0, 0)))

    monkeypatch.setattr(os, "setxattr", look)
    setattr_(c.FATTR_UID | c.FATTR_GID, uid=0, gid=0)
    monkeypatch.undo()
    assert seen[-1] == Virtual(stat.S_IFREG | 0o755, 0, 0)
    assert not [each for each in seen if 0 in each[1:3] and each.mode & 0o6000]
    tree.destroy()
    os.close(tree.proc)
