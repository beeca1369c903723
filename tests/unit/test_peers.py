"""docs/peers.md is true: its options and operations are all of ours, its tests exist, the manual has its reasons."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from passthrough.protocol.operations import OPERATIONS

from .test_man import COMMANDS, option_strings

ROOT = Path(__file__).resolve().parents[2]
_PEERS = frozenset("RV CV LL HP FB GO 9L QE NF".split())
_REASON = re.compile(r'([a-z-]+)\((\d)\), ([A-Z ]+): "(.+)"')


class Row(NamedTuple):
    """A row of the table."""

    what: str
    here: str
    shown: str
    peers: str


def _rows() -> list[Row]:
    found = []
    for line in (ROOT / "docs" / "peers.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.endswith("| peers |"):
            found.append(Row(*(cell.strip() for cell in line.strip("|").split("|"))))
    return found


ROWS = _rows()
_YES = [row for row in ROWS if row.here == "yes"]
_NO = [row for row in ROWS if row.here == "no"]


def _options(row: Row) -> set[str]:
    return set(re.findall(r"`(--[a-z0-9-]+)`", row.what))


def _of_the_parser() -> set[str]:
    return {text for command in COMMANDS for text in option_strings(command) if text.startswith("--")} | {"--version"}


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_row_says_yes_or_no_and_names_known_peers() -> None:
    assert len(ROWS) > 80
    assert len(_YES) + len(_NO) == len(ROWS)
    for row in ROWS:
        assert set(re.findall(r"\w+", row.peers)) <= _PEERS, row


def test_every_option_of_the_parser_is_in_some_row_and_no_other_is() -> None:
    assert set().union(*map(_options, _YES)) == _of_the_parser()


def test_an_option_that_is_not_here_is_not_in_the_parser() -> None:
    words = {word for row in _NO for word in re.findall(r"[a-z]+(?:-[a-z]+)+", row.what)}
    assert "migration-mode" in words
    assert not {f"--{word}" for word in words} & _of_the_parser()
    assert not set().union(*map(_options, _NO))


def test_every_operation_is_in_some_row() -> None:
    named = {word for row in ROWS for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", row.what)}
    assert {row.name.upper() for row in OPERATIONS} <= named


@pytest.mark.parametrize("row", _YES, ids=lambda row: row.what)
def test_what_is_here_has_a_test_that_shows_it(row: Row) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row.shown)
    assert tests
    for path, name in tests:
        assert not name or name in _functions(ROOT / path)
        assert (ROOT / path).exists()


@pytest.mark.parametrize("row", _NO, ids=lambda row: row.what)
def test_what_is_not_here_has_its_reason_in_the_manual(row: Row) -> None:
    told = _REASON.fullmatch(row.shown)
    assert told, row
    page, number, section, words = told.groups()
    text = (ROOT / "man" / f"{page}.{number}").read_text(encoding="utf-8")
    body = text.partition(f"\n.SH {section}\n")[2].partition("\n.SH ")[0]
    plain = re.sub(r"\\f[BIRP]|^\.[BIR]{1,2} ", "", body, flags=re.MULTILINE)
    assert " ".join(words.split()) in " ".join(plain.split())
