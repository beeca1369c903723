"""What `from passthrough import ...` gives: light, complete, documented, and with the command's words."""

import ast
import inspect
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import passthrough
from passthrough import (
    Agreement,
    Cache,
    Choice,
    FileSystem,
    MappedTree,
    ReaddirPlus,
    ReadOnly,
    Tree,
    UserError,
    exitcodes,
)
from passthrough.api import running
from passthrough.api.front import tree_of
from passthrough.api.words import OWN, MountWords, TreeWords, mount_options, tree_config, tree_options
from passthrough.cli.serve_options import ServeOptions
from passthrough.fs.decorator import Decorator
from passthrough.fs.tree.config import ACCESS_LISTS
from passthrough.option_rows import NS_PER_S, Option
from passthrough.options import OPTIONS
from passthrough.sandbox_options import SANDBOX_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "man" / "passthrough.3").read_text(encoding="utf-8").replace("\\-", "-")
NOT_OFFERED = frozenset(
    (
        *(row.word for row in SANDBOX_OPTIONS),  # it confines itself
        *("auto_unmount", "transport"),  # what takes a process of its own, or the whole process
        *("log_level", "syslog"),  # its log is its own
    )
)
"""Words of mount that a program does not say. Each has its reason in the page."""
_WORDS = {**TreeWords.__annotations__, **MountWords.__annotations__}


def test_importing_it_loads_nothing() -> None:
    code = "import sys, passthrough; print(*(name for name in sys.modules if name.startswith('passthrough')))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["passthrough"]


@pytest.mark.parametrize("name", passthrough.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(passthrough, name)
    assert inspect.getdoc(found)
    assert name in dir(passthrough)
    assert re.search(rf"(?<!\w){name}(?!\w)", PAGE), f"man/passthrough.3 does not name {name}"


def test_what_the_type_checker_sees_is_what_there_is() -> None:
    tree = ast.parse(Path(passthrough.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(passthrough.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        passthrough.nothing  # noqa: B018


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.help], ids=lambda row: row.word)
def test_a_word_of_the_command_is_a_keyword_or_not_offered(row: Option) -> None:
    """A new row of the table is to be added to TreeWords or MountWords and to man/passthrough.3, or to NOT_OFFERED."""
    assert (row.word in _WORDS) != (row.word in NOT_OFFERED)


def test_every_keyword_is_a_word_of_a_command() -> None:
    assert set(_WORDS) - {row.word for row in OPTIONS} == OWN
    assert "announce_submounts" in ServeOptions.__dataclass_fields__
    assert not TreeWords.__annotations__.keys() & MountWords.__annotations__.keys()


@pytest.mark.parametrize("word", _WORDS)
def test_every_keyword_stands_in_the_page(word: str) -> None:
    assert re.search(rf"^\.BR? {word}\b", PAGE, re.MULTILINE)


@pytest.mark.parametrize("word", sorted(NOT_OFFERED))
def test_what_is_no_keyword_has_its_reason_in_the_page(word: str) -> None:
    reasons = PAGE.partition(".SH NOT OFFERED")[2].partition(".SH ")[0]
    assert re.search(rf"^\.BR? .*(?<!\w){word}(?!\w)", reasons, re.MULTILINE)


def test_values_mean_what_they_mean_to_the_command() -> None:
    config = tree_config({"cache": "always", "timeout": 0.5, "negative_timeout": "2", "readdirplus": ReaddirPlus.NO})
    assert config.cache is tree_config({"cache": Cache.ALWAYS}).cache is Cache.ALWAYS
    assert config.entry_timeout_ns == config.attr_timeout_ns == NS_PER_S // 2
    assert config.negative_timeout_ns == 2 * NS_PER_S
    assert config.readdirplus is ReaddirPlus.NO
    assert tree_config({}) == tree_config({"timeout": None, "posix_acl": None})
    assert tree_config({"descriptors": 77}).descriptors == 77
    assert tree_config({"announce_submounts": True}).submounts
    assert tree_config({}).passthrough is Choice.AUTO
    immediate = tree_config({"writeout": "immediate"})
    assert (immediate.writeout, immediate.passthrough) == (True, Choice.OFF)
    lines = tree_options({"translate_uid": "map:0:100000:10", "translate_gid": ["map:0:1:1", "map:1:2:1"]})
    assert list(map(str, (*lines.translate_uid, *lines.translate_gid))) == ["map:0:100000:10", "map:0:1:1", "map:1:2:1"]
    squashed = tree_config({"squash": "all", "allow_idmap": True, "readdirplus": "always"})
    assert (squashed.default_permissions, squashed.idmap, squashed.readdirplus) == (False, False, ReaddirPlus.NO)
    assert tree_config({"allow_idmap": True}).idmap
    assert tree_config({"security_model": "none"}).lenient_owners
    capability = ":map:security.capability:trusted.guest.:"
    assert tree_config({"xattrmap": capability, "passthrough": "auto"}).passthrough is Choice.OFF
    options = mount_options({"max_write": "128K", "noexec": True, "io_uring": Choice.OFF})
    assert (options.max_write, options.exec, options.io_uring) == (128 << 10, False, Choice.OFF)
    assert mount_options({"noatime": False, "max_read": 8192, "threads": 3}).threads == 3


_WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"cache": "sometimes"}, "cache='sometimes': it takes one of never"),
    ({"cache": True}, "cache=True"),
    ({"cache": 1}, "cache=1"),
    ({"timeout": -1}, "seconds from 0"),
    ({"timeout": float("nan")}, "seconds"),
    ({"timeout": []}, "timeout=.*SECONDS"),
    ({"xattr": 1}, "xattr=1: it takes True or False"),
    ({"xattr": "no"}, "True or False"),
    ({"writeback": True, "cache": "never"}, "page cache"),
    ({"writeback": True, "passthrough": "on"}, "exclude each other"),
    ({"posix_acl": True, "xattr": False}, "exclude each other"),
    ({"posix_acl": True, "default_permissions": False}, "exclude each other"),
    ({"descriptors": -1}, "descriptors=-1"),
    ({"descriptors": "many"}, "descriptors"),
    ({"announce_submounts": "yes"}, "True or False"),
    ({"xattrmap": ":ok:client:::"}, "a last rule for all that the host may list"),
    ({"xattrmap": ":bad:all:::", "xattr": False}, "exclude each other"),
    ({"xattrmap": ":bad:all:::", "posix_acl": True}, "exclude each other"),
    ({"security_label": True, "squash": "root"}, "exclude each other"),
    ({"security_label": "yes"}, "True or False"),
    ({"squash": "everybody"}, "one of none, root, all"),
    ({"anon_uid": 0}, "an id from 1"),
    ({"anon_gid": True}, "anon_gid=True"),
    ({"translate_uid": "map:0:1"}, "TYPE:FIRST:TARGET:COUNT"),
    ({"translate_uid": ["map:0:1:1", 7]}, "translate_uid=7"),
    ({"translate_gid": 7}, "or a list of these"),
    ({"translate_gid": ["map:0:1:2", "map:1:5:1"]}, "translate_gid: .* overlap"),
    ({"security_model": "mapped"}, "one of passthrough, mapped-xattr, none"),
    ({"security_model": "mapped-xattr", "squash": "all"}, "exclude each other"),
    ({"security_model": "mapped-xattr", "default_permissions": False}, "needs default_permissions"),
    ({"allow_idmap": True, "default_permissions": False}, "exclude each other"),
    ({"inode_file_handles": "always"}, "one of never, prefer, mandatory"),
)


@pytest.mark.parametrize(("words", "why"), _WRONG)
def test_a_wrong_value_is_named(words: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tree_config(words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"threads": 0}, "1 to 256"),
        ({"threads": True}, "threads=True"),
        ({"max_write": 1}, "4K to 16M"),
        ({"subtype": "a/b"}, "letters"),
        ({"fsname": ""}, "a name"),
        ({"allow_other": True, "allow_root": True}, "exclude"),
    ],
)
def test_a_wrong_value_for_a_mount_is_named(words: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        mount_options(words)


@pytest.mark.parametrize("word", ["allow_other", "nothing", "sandbox"])
def test_a_word_that_is_none_is_a_type_error(word: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{word}'"):
        Tree(tmp_path, **{word: True})  # type: ignore[arg-type]


def test_a_source_that_is_none_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        Tree(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match="/dev/null"):
        Tree("/dev/null")


def test_virtual_owners_are_a_class_of_their_own(tmp_path: Path) -> None:
    for kind, word in ((Tree, "mapped-xattr"), (MappedTree, "none"), (MappedTree, "passthrough")):
        with pytest.raises(ValueError, match="is for a MappedTree"):
            kind(tmp_path, security_model=word)  # type: ignore[arg-type]
    for words in ({}, {"security_model": "mapped-xattr"}):
        fs = MappedTree(tmp_path, **words)  # type: ignore[arg-type]
        assert fs.front() is fs
        fs.close()
    with pytest.raises(UserError, match="needs user xattrs") as caught:
        MappedTree("/proc")
    assert caught.value.status == exitcodes.SOURCE


def test_what_stands_before_a_tree_is_made_once_and_in_the_order_of_the_command(tmp_path: Path) -> None:
    words: Any = {"squash": "root", "translate_uid": "map:0:1000:1", "xattrmap": None}
    for fs in (Tree(tmp_path, **words), Tree(tmp_path, xattrmap=":ok:all:::", security_label=True)):
        kinds = []
        front = fs.front()
        assert fs.front() is front
        while isinstance(front, Decorator):
            kinds.append(type(front).__name__)
            front = front.fs
        assert front is fs
        assert kinds == (["Translated", "Squashed"] if fs.said.translate_uid else ["SecurityLabels", "RenamedXattrs"])
        assert tree_of(ReadOnly(fs)) is fs
        fs.close()


def test_a_tree_whose_words_would_not_hold_does_not_begin(tmp_path: Path) -> None:
    agreement = Agreement()
    for words, needed in (({"squash": "root"}, True), ({"security_label": True}, True), ({"writeback": True}, False)):
        fs = Tree(tmp_path, **words)
        if needed:
            with pytest.raises(RuntimeError, match=r"front\(\)"):
                fs.init(agreement, None)
        assert ReadOnly(fs).fs is fs.front()
        fs.init(agreement, None)
        fs.destroy()
        fs.close()


def test_file_handles_are_had_where_the_program_may(tmp_path: Path) -> None:
    def opener(**words: Any) -> bool:
        before = threading.active_count()
        fs = Tree(tmp_path, **words)
        begun = threading.active_count() - before
        fs.close()
        assert threading.active_count() == before
        return bool(begun)

    assert opener()
    assert opener(inode_file_handles="mandatory")
    assert not opener(inode_file_handles="never")
    with pytest.raises(UserError, match="inode_file_handles=mandatory") as caught:
        Tree("/proc", inode_file_handles="mandatory")
    assert caught.value.status == exitcodes.SOURCE


def test_access_lists_that_were_asked_for_are_insisted_on(tmp_path: Path) -> None:
    for words, insisted in (({}, 0), ({"posix_acl": True}, ACCESS_LISTS), ({"posix_acl": False}, 0)):
        fs = Tree(tmp_path, **words)  # type: ignore[arg-type]
        assert fs.front().required & ACCESS_LISTS == insisted
        fs.close()


def test_closing_a_tree_that_was_never_served(tmp_path: Path) -> None:
    import os

    before = os.listdir("/proc/self/fd")
    fs = Tree(tmp_path)
    assert fs.source == str(tmp_path)
    fs.close()
    fs.close()
    assert os.listdir("/proc/self/fd") == before


def test_the_words_are_typed() -> None:
    assert all(get_type_hints(kind) for kind in (TreeWords, MountWords))
    assert running.ENDING


@pytest.mark.parametrize("name", [name for name in vars(FileSystem) if not name.startswith("_")])
def test_the_contract_is_documented_and_in_the_page(name: str) -> None:
    found = vars(FileSystem)[name]
    if callable(found):
        assert inspect.getdoc(found)
    assert re.search(rf"(?<!\w){name}(?!\w)", PAGE)


def test_the_page_names_no_status_that_is_not_there() -> None:
    named = set(re.findall(r"^\.B ([A-Z_]{4,})$", PAGE.partition(".SH ERRORS")[2].partition(".SH ")[0], re.MULTILINE))
    assert named
    assert named <= {name for name in vars(exitcodes) if name.isupper()}


def test_the_program_of_the_page_is_python() -> None:
    blocks = re.findall(r"^\.EX\n(.*?)^\.EE$", PAGE, re.MULTILINE | re.DOTALL)
    programs = [block.replace("\\e", "\\").replace("\\&", "") for block in blocks if "import" in block]
    assert len(programs) >= 4
    for program in programs:
        ast.parse(program)


def test_a_path_is_no_file_system(tmp_path: Path) -> None:
    path: Any = str(tmp_path)
    for make in (
        lambda: passthrough.mount(path, tmp_path),
        lambda: passthrough.serve(path, tmp_path / "socket"),
        lambda: passthrough.ReadOnly(path),
    ):
        with pytest.raises(TypeError, match=r"such as Tree\(PATH\), and not a str"):
            make()
