"""The man pages say what the parser takes, and render without a warning."""

import argparse
import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from passthrough import exitcodes, trace
from passthrough.cli import parser, virtiofsd
from passthrough.export_options import EXPORT_OPTIONS
from passthrough.fs.image import CacheMode
from passthrough.fs.tree.config import NS_PER_S, Cache, ReaddirPlus, TreeConfig
from passthrough.option_rows import Option, split_words
from passthrough.options import OPTIONS
from passthrough.sandbox_options import SandboxMode, SeccompMode
from sandbox import capabilities, seccomp

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("mount", "umount", "export", "serve", "doctor")
PAGES = sorted((ROOT / "man").glob("*.1"))
ALL_PAGES = [*PAGES, *sorted((ROOT / "man").glob("*.3")), *sorted((ROOT / "man").glob("*.7"))]
_WORDS = {option.word for option in OPTIONS}


@cache
def page(name: str) -> str:
    """The source of a page."""
    return (ROOT / "man" / f"{name}.1").read_text(encoding="utf-8")


@cache
def tags(name: str) -> tuple[str, ...]:
    """The tags of a page's tagged paragraphs, without markup."""
    lines = page(name).splitlines()
    found = [lines[at + 1] for at, line in enumerate(lines) if line in (".TP", ".TQ")]
    return tuple(_plain(line) for line in found)


def _plain(line: str) -> str:
    line = re.sub(r"\\f[BIRP]", "", line).replace("\\-", "-")
    macro = re.match(r"\.([BIR]{1,2}) ", line)
    if macro is None:
        return line
    words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line[macro.end() :])]
    return ("" if len(macro[1]) == 2 else " ").join(words)


def section(name: str, title: str) -> str:
    """The source of one section."""
    return page(name).partition(f"\n.SH {title}\n")[2].partition("\n.SH ")[0]


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (commands,) = (a for a in parser.build()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def option_strings(command: str) -> set[str]:
    """The options of a command, a long one in the spelling with hyphens."""
    actions = command_parsers()[command]._actions
    return {text for action in actions for text in action.option_strings if "_" not in text}


def test_every_command_has_a_page_and_is_in_the_overview() -> None:
    assert set(command_parsers()) == set(COMMANDS)
    pages = {"passthrough", "passthrough-virtiofsd", *(f"passthrough-{name}" for name in COMMANDS)}
    assert {path.stem for path in PAGES} == pages
    named = {tag.split()[0] for tag in tags("passthrough")}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.word)
def test_every_mount_option_stands_in_both_forms(option: Option) -> None:
    word, value = option.word, f"={option.metavar}" if option.metavar else ""
    tag = f"{word}{value}, --{word.replace('_', '-')}{value}"
    assert tags("passthrough-mount").count(tag) == 1


@pytest.mark.parametrize("option", EXPORT_OPTIONS, ids=lambda option: option.word)
def test_every_export_option_stands_in_both_forms(option: Option) -> None:
    word, value = option.word, f"={option.metavar}" if option.metavar else ""
    tag = f"{word}{value}, --{word.replace('_', '-')}{value}"
    assert tags("passthrough-export").count(tag) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_the_options_that_the_parser_has_and_no_others(command: str) -> None:
    text = "\n".join(tags(f"passthrough-{command}"))
    written = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))
    assert written == option_strings(command)


def test_no_word_stands_among_the_mount_options_that_the_parser_lacks() -> None:
    text = section("passthrough-mount", "MOUNT OPTIONS").splitlines()
    headed = [_plain(text[at + 1]) for at, line in enumerate(text) if line in (".TP", ".TQ")]
    assert {re.split(r"[=,]", tag)[0] for tag in headed} == _WORDS
    assert len(headed) == len(_WORDS)


def test_the_overview_has_the_options_of_the_program_itself() -> None:
    written = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", "\n".join(tags("passthrough"))))
    assert written == {text for action in parser.build()._actions for text in action.option_strings}


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)
def test_long_options_in_prose_and_examples_exist(path: Path) -> None:
    known = set().union(*(option_strings(command) for command in COMMANDS)) | {
        "--version",
        "--OPTION",
        "--export",
        "--now",
    }
    if path.stem == "passthrough-virtiofsd":
        known |= {row.word for row in virtiofsd.TABLE}
    text = re.sub(r"\\f[BIRP]", "", path.read_text(encoding="utf-8")).replace("\\-", "-")
    assert set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text)) <= known


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)
def test_words_in_examples_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\-", "-")
    for argument in re.findall(r"passthrough mount .*?-o (\S+)", text):
        assert {word for word, _ in split_words(argument)} <= _WORDS


def _effect(row: virtiofsd.Row) -> str:
    """What the table of the page says of an option."""
    if row.refused:
        return f"refused: {row.refused}"
    if not row.field:
        return "no effect: it stays in the foreground" if row.word == "-f" else "no effect, as there"
    name = row.field.replace("_", "-")
    if row.value in (False, ReaddirPlus.NO):
        return f"--no-{name}" if f"--no-{name}" in option_strings("serve") else f"without --{name}"
    return f"--{name}" + (f"={row.metavar}" if row.metavar else "")


def test_the_table_of_virtiofsds_options_is_the_parsers() -> None:
    text = page("passthrough-virtiofsd").partition("\n_\n")[2].partition("\n.TE")[0].replace("\\-", "-")
    written = re.findall(r"^([^;\n]+);(\w+);T\{\n(.*)\nT\}$", text, re.MULTILINE)
    shown = [
        (f"{row.word}={row.metavar}" if row.metavar else row.word, row.who, _effect(row)) for row in virtiofsd.TABLE
    ]
    assert written == shown


def _exit_statuses() -> list[tuple[int, str]]:
    """Each status of exitcodes.py with the sentence below it."""
    body = ast.parse(Path(exitcodes.__file__).read_text(encoding="utf-8")).body[1:]
    found = []
    for assignment, sentence in zip(body[::2], body[1::2], strict=True):
        assert isinstance(assignment, ast.Assign)
        assert isinstance(sentence, ast.Expr)
        found.append((ast.literal_eval(assignment.value), ast.literal_eval(sentence.value)))
    return found


def test_every_exit_status_stands_with_its_sentence_and_no_other() -> None:
    text = section("passthrough", "EXIT STATUS")
    written = re.findall(r"^\.TP\n\.B (\d+)\n(.*?)(?=^\.TP|^\.PP|\Z)", text, re.MULTILINE | re.DOTALL)
    shown = [(int(status), " ".join(map(_plain, sentence.splitlines()))) for status, sentence in written]
    assert shown == _exit_statuses()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_no_exit_status_that_is_not_there(command: str) -> None:
    listed = re.findall(r"^\.TP\n\.B (\d+)$", section(f"passthrough-{command}", "EXIT STATUS"), re.MULTILINE)
    assert {int(status) for status in listed} <= {status for status, _ in _exit_statuses()}


def test_the_ignored_words_are_those_of_the_parser() -> None:
    text = section("passthrough", "MOUNT(8) AND FSTAB").partition("accepted and have no effect:\n")[2]
    words = re.findall(r"^\.BR ([a-z_]+) ,$", text, re.MULTILINE)
    assert len(words) > 20
    assert split_words(",".join(words)) == []
    assert split_words("x-systemd.automount,X-mount.mkdir,comment=a") == []


def test_the_debug_grammar_is_that_of_the_trace() -> None:
    assert trace.__doc__
    grammar = re.search(r"line     =.*?ERRNO    =[^\n]*", trace.__doc__, re.DOTALL)
    written = section("passthrough", "DEBUG OUTPUT").replace("\\(aq", "'").replace("\\-", "-")
    assert grammar
    assert grammar[0].split() == written[written.index("line     =") :].partition("\n.EE")[0].split()


@pytest.mark.parametrize("word", [*(mode.value for mode in Cache), *(when.value for when in ReaddirPlus)])
def test_every_value_of_a_choice_is_explained(word: str) -> None:
    assert re.search(rf"^(\.B )?{word}\b", section("passthrough-mount", "MOUNT OPTIONS"), re.MULTILINE)


@pytest.mark.parametrize("mode", CacheMode, ids=lambda mode: mode.value)
def test_every_cache_mode_of_an_image_is_explained(mode: CacheMode) -> None:
    text = section("passthrough-export", "EXPORT OPTIONS")
    assert re.search(rf"^\.B {mode.value}$", text, re.MULTILINE)


def test_the_table_of_cache_modes_has_the_timeouts_that_hold() -> None:
    for mode in Cache:
        row = re.search(rf"^{mode.value} +(\d+) s ", page("passthrough-mount"), re.MULTILINE)
        assert row
        assert int(row[1]) * NS_PER_S == TreeConfig(cache=mode).resolved().entry_timeout_ns


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)
def test_renders_without_warnings(path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed (man-db brings groff-base)")
    command = ["groff", "-ww", "-t", "-man", "-Tutf8", "-K", "utf8", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "SEE ALSO" in re.sub(".\b", "", result.stdout)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_points_to_its_sisters(path: Path) -> None:
    others = {other.stem for other in PAGES if other != path}
    also = section(path.stem, "SEE ALSO").replace("\\-", "-")
    named = {name for name in others if f".BR {name} (1)" in also}
    assert named if path.stem != "passthrough" else named == others


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_help_of_each_option(command: str) -> None:
    chosen = command_parsers()[command]
    shown = " ".join(chosen.format_help().split())
    for action in chosen._actions:
        if action.help != argparse.SUPPRESS:
            assert action.help
            assert " ".join(action.help.replace("%%", "%").split()) in shown


def test_each_row_with_a_help_is_in_the_help_of_mount() -> None:
    shown = " ".join(command_parsers()["mount"].format_help().split())
    rows = [option for option in OPTIONS if option.help]
    for option in rows:
        assert " ".join(option.help.split()) in shown
        assert "--" + option.word.replace("_", "-") in shown
    assert {option.field for option in rows} == {option.field for option in OPTIONS}


def test_the_threat_model_has_every_mode_and_every_capability() -> None:
    text = (ROOT / "man" / "passthrough-sandbox.7").read_text(encoding="utf-8")
    for mode in (*SandboxMode, *SeccompMode):
        assert re.search(rf"^\.BR? \"?(seccomp=)?{mode.value}\b", text, re.MULTILINE), mode
    for name in (*capabilities.KEPT, "SYS_ADMIN", "DAC_READ_SEARCH"):
        assert name in text
    for name in seccomp.ATTACKS:
        family = ("fs", "open_tree", "move_mount", "umount2", "mount", "swap", "add_key", "request_key")
        known = name.startswith(family) or name.endswith("_module") or name.split("_")[0].removesuffix("at") in text
        assert known, name
    assert "man/passthrough-sandbox.7" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
