"""Completion, generated from the parser, as the shells themselves do it."""

import argparse
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from passthrough.options import OPTIONS

from .test_man import COMMANDS, command_parsers

ROOT = Path(__file__).resolve().parents[2]


@cache
def script(shell: str) -> str:
    """What `make install` would put in place."""
    words = [sys.executable, str(ROOT / "share" / "completion.py"), shell]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout


def _shell(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed, which the Makefile's TEST_PACKAGES name"
    return found


def bash(*words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of these words, as readline hands them over: taken apart at each =."""
    apart = [piece for word in words for piece in _at_equals(word)]
    program = """
        eval "$1"; shift
        function=$(complete -p passthrough | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        "$function" passthrough "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = [_shell("bash"), "--norc", "-c", program, "bash", script("bash"), *apart]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    assert result.stderr == ""
    return result.stdout.split()


def _at_equals(word: str) -> list[str]:
    before, equals, after = word.partition("=")
    return [before, equals, *([after] if after else [])] if equals else [word]


def fish(line: str) -> list[str]:
    """What fish offers for this line."""
    command = [_shell("fish"), "--no-config", "-c", f"{script('fish')}\ncomplete -C {line!r}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "HOME": "/"})
    return [offered.split("\t")[0] for offered in result.stdout.splitlines()]


def test_bash_offers_the_commands() -> None:
    assert sorted(bash("passthrough", "")) == sorted(COMMANDS)
    assert bash("passthrough", "mo") == ["mount"]


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_options_that_the_parser_has(command: str) -> None:
    """But for opposites and synonyms, which have no help either."""
    listed = [action for action in command_parsers()[command]._actions if action.help != argparse.SUPPRESS]
    known = {text for action in listed for text in action.option_strings if text[:2] == "--" and "_" not in text}
    assert set(bash("passthrough", command, "--")) == known


def test_bash_offers_values() -> None:
    assert bash("passthrough", "mount", "--cache", "a") == ["auto", "always"]
    assert bash("passthrough", "mount", "--cache=a") == ["auto", "always"]
    assert bash("passthrough", "serve", "--log-level=") == ["off", "error", "warn", "info", "debug", "trace"]
    assert bash("passthrough", "export", "--cache=u") == ["unsafe"]


def test_bash_offers_words_after_dash_o() -> None:
    offered = {word.partition("=")[0] for word in bash("passthrough", "mount", "-o", "")}
    assert offered == {option.word for option in OPTIONS}
    assert bash("passthrough", "mount", "-o", "allow_o") == ["allow_other"]
    assert bash("passthrough", "mount", "-o", "ro,no_fl") == ["ro,no_flock"]
    assert bash("passthrough", "mount", "-o", "ro,cache=a") == ["auto", "always"]
    assert bash("passthrough", "mount", "-o", "ro,fsna") == ["ro,fsname="]


def test_bash_offers_directories_where_one_belongs(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "different").touch()
    assert bash("passthrough", "mount", "di", cwd=tmp_path) == ["directory"]
    assert bash("passthrough", "serve", "--shared-dir=di", cwd=tmp_path) == ["directory"]
    assert sorted(bash("passthrough", "export", "di", cwd=tmp_path)) == ["different", "directory"]


def test_fish_offers_commands_options_and_values() -> None:
    assert set(COMMANDS) <= set(fish("passthrough "))
    assert "--allow-other" in fish("passthrough mount --allow-o")
    assert set(fish("passthrough mount --cache a")) >= {"auto", "always"}


def test_fish_offers_words_after_dash_o() -> None:
    offered = {word.partition("=")[0] for word in fish("passthrough mount -o ")}
    assert offered == {option.word for option in OPTIONS}
    assert fish("passthrough mount -o allow_oth") == ["allow_other"]
    assert fish("passthrough mount -o ro,cache=a") == ["ro,cache=auto", "ro,cache=always"]
    assert "writable" in fish("passthrough export -o w")


def test_zsh_takes_it_as_the_completion_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "_passthrough").write_text(script("zsh"))
    program = (
        "fpath=($1 $fpath); autoload -U compinit; compinit -u -D; autoload +X _passthrough; print $_comps[passthrough]"
    )
    command = [_shell("zsh"), "-f", "-c", program, "zsh", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("_passthrough", "")
    for option in OPTIONS:
        assert f"    '{option.word}" in script("zsh")
