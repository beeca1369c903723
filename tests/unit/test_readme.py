"""README.md: what it tells people to type is what the commands take, and what it points to is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.cli import parser
from passthrough.export_options import EXPORT_OPTIONS
from passthrough.export_options import collect as collect_export
from passthrough.options import OPTIONS, collect

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
_WORDS = {option.word for option in (*OPTIONS, *EXPORT_OPTIONS)}


def _blocks(kind: str) -> Iterator[str]:
    for block in re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        yield block.replace("\\\n", " ")


def _command_lines() -> list[str]:
    lines = (line.partition(" #")[0].strip() for block in _blocks("sh") for line in block.splitlines())
    return [line.removesuffix("&").replace("…", "").strip() for line in lines if line.startswith("passthrough ")]


def test_there_are_command_lines() -> None:
    assert {line.split()[1] for line in _command_lines()} == {"mount", "umount", "export", "serve", "doctor"}


@pytest.mark.parametrize("line", _command_lines())
def test_a_command_line_is_one(line: str) -> None:
    parsed = parser.build().parse_args(shlex.split(line)[1:])
    if parsed.command == "mount":
        collect(parsed.settings)
    elif parsed.command == "export":
        collect_export(parsed.settings)


def test_the_options_in_its_tables_exist() -> None:
    listed = re.findall(r"^\| (`[^|]*(?:\\\|[^|]*)*) \|", TEXT, re.MULTILINE)
    words = {word for cell in listed for word in re.findall(r"`([a-z_]+)(?:=[^`]*)?`", cell)}
    assert len(words) > 10
    assert words <= _WORDS


def test_the_line_for_fstab_is_taken() -> None:
    (options,) = re.findall(r"fuse\.passthrough (\S+) 0 0", TEXT)
    parsed, _, _ = parser.mount_helper(["/srv/data", "/mnt/data", "-o", options])
    assert collect(parsed.settings).allow_other


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^):]+)\)", TEXT))))
def test_what_it_points_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()


def test_each_manual_page_that_it_names_is_there() -> None:
    for section, name in re.findall(r"`man (?:(\d) )?([a-z-]+)`", TEXT):
        assert (ROOT / "man" / f"{name}.{section or 1}").exists()


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make\s+([a-z-]+)\b", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
