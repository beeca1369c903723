"""passthrough-virtiofsd: the command line of virtiofsd, the Rust one's (1.13) and the C one's (QEMU 7.2).

For who starts a virtiofsd by its name and words (libvirt, Kata Containers). One table has every option that either of
them takes: what it sets here, that it has no effect (as there), or why it is refused. The man page's table is held
against it by a test.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import __version__, exitcodes
from ..errors import UserError
from ..fs.tree import ReaddirPlus
from ..fs.xattrmap import parse_map
from ..option_rows import one_of, seconds
from ..owner_options import OWNER_OPTIONS
from ..process_options import Level
from ..sandbox_options import SANDBOX_OPTIONS, SandboxMode, SeccompMode
from ..share_options import cache_mode, file_handles
from . import serve, serve_options
from .serve_options import ServeOptions, number_in, parse_descriptor, parse_limit, parse_path, parse_tag

_NO_MIGRATION = "the state of a share cannot be moved to another host"


class Row(NamedTuple):
    """An option. word: as it is given, `-o WORD` for those of the list; who takes it: R, C or RC.

    field and value (or parse, with a metavar) say what it sets; without a field it has no effect, and with `refused`
    it is refused. One with `many` may be repeated.
    """

    word: str
    who: str
    field: str = ""
    value: Any = True
    metavar: str = ""
    parse: Callable[[str], Any] | None = None
    refused: str = ""
    many: bool = False


def _log_level(text: str) -> Any:
    return one_of(Level)("error" if text == "err" else text)


def _sandbox(text: str) -> SandboxMode:
    """landlock is not among theirs."""
    if text not in ("namespace", "chroot", "none"):
        raise ValueError("one of namespace, chroot, none")
    return SandboxMode(text)


def _seccomp(text: str) -> SeccompMode:
    """trap, which is for finding bugs of virtiofsd's, is not among ours."""
    if text == "trap":
        raise ValueError("none, log or kill here: log tells which system call it was, as trap does there")
    if text not in ("none", "log", "kill"):
        raise ValueError("one of none, log, kill")
    return SeccompMode(text)


def _option(word: str) -> Callable[[str], Any]:
    (parse,) = (option.parse for option in (*SANDBOX_OPTIONS, *OWNER_OPTIONS) if option.word == word)
    assert parse is not None
    return parse


def _flags(words: str, who: str) -> Iterator[Row]:
    """WORD and no_WORD of -o, for fields of the same name."""
    for word in words.split():
        yield Row(f"-o {word}", who, word)
        yield Row(f"-o no_{word}", who, word, value=False)


TABLE: tuple[Row, ...] = (
    Row("--shared-dir", "R", "shared_dir", metavar="DIR", parse=parse_path),
    Row("-o source", "RC", "shared_dir", metavar="DIR", parse=parse_path),
    Row("--tag", "R", "tag", metavar="NAME", parse=parse_tag),
    Row("--socket-path", "RC", "socket_path", metavar="PATH", parse=parse_path),
    Row("--socket", "R", "socket_path", metavar="PATH", parse=parse_path),
    Row("--socket-group", "RC", "socket_group", metavar="GROUP", parse=str),
    Row("--fd", "RC", "fd", metavar="N", parse=parse_descriptor),
    Row("--thread-pool-size", "RC", "thread_pool_size", metavar="N", parse=number_in(0, 256)),
    Row("--cache", "R", "cache", metavar="MODE", parse=cache_mode),
    Row("-o cache", "RC", "cache", metavar="MODE", parse=cache_mode),
    Row("-o timeout", "C", "timeout", metavar="SECONDS", parse=seconds),
    Row("--allow-mmap", "R", "allow_mmap"),
    Row("--no-readdirplus", "R", "readdirplus", value=ReaddirPlus.NO),
    Row("--writeback", "R", "writeback"),
    Row("--allow-direct-io", "R", "allow_direct_io"),
    Row("--announce-submounts", "R", "announce_submounts"),
    Row("--no-announce-submounts", "R", "announce_submounts", value=False),
    Row("-o announce_submounts", "RC", "announce_submounts"),
    Row("-o no_announce_submounts", "RC", "announce_submounts", value=False),
    Row("--xattr", "R", "xattr"),
    Row("--posix-acl", "R", "posix_acl"),
    Row("--killpriv-v2", "R", "killpriv_v2"),
    Row("--no-killpriv-v2", "R", "killpriv_v2", value=False),
    Row("--readonly", "R", "readonly"),
    Row("--preserve-noatime", "R", "preserve_noatime"),
    *_flags("xattr", "RC"),
    Row("-o readdirplus", "RC", "readdirplus", value=None),
    Row("-o no_readdirplus", "RC", "readdirplus", value=ReaddirPlus.NO),
    *_flags("writeback allow_direct_io killpriv_v2 posix_acl", "RC"),
    *_flags("flock posix_lock", "C"),
    Row("--rlimit-nofile", "RC", "rlimit_nofile", metavar="N", parse=parse_limit),
    Row("--log-level", "R", "log_level", metavar="LEVEL", parse=_log_level),
    Row("-o loglevel", "R", "log_level", metavar="LEVEL", parse=_log_level),
    Row("-o log_level", "C", "log_level", metavar="LEVEL", parse=_log_level),
    Row("--syslog", "RC", "syslog"),
    Row("-d", "RC", "debug"),
    Row("--debug", "C", "debug"),
    Row("-o debug", "C", "debug"),
    Row("--print-capabilities", "RC", "print_capabilities"),
    Row("-f", "RC"),
    Row("-o allow_root", "C"),
    Row("-o max_idle_threads", "C", metavar="N"),
    Row("--sandbox", "R", "sandbox", metavar="MODE", parse=_sandbox),
    Row("-o sandbox", "RC", "sandbox", metavar="MODE", parse=_sandbox),
    Row("--seccomp", "R", "seccomp", metavar="ACTION", parse=_seccomp),
    Row("--modcaps", "R", "modcaps", metavar="CAPS", parse=_option("modcaps")),
    Row("-o modcaps", "RC", "modcaps", metavar="CAPS", parse=_option("modcaps")),
    Row("--uid-map", "R", "uid_map", metavar="MAP", parse=_option("uid_map"), many=True),
    Row("--gid-map", "R", "gid_map", metavar="MAP", parse=_option("gid_map"), many=True),
    Row("--translate-uid", "R", "translate_uid", metavar="MAP", parse=_option("translate_uid"), many=True),
    Row("--translate-gid", "R", "translate_gid", metavar="MAP", parse=_option("translate_gid"), many=True),
    Row("--xattrmap", "R", "xattrmap", metavar="RULES", parse=parse_map),
    Row("-o xattrmap", "C", "xattrmap", metavar="RULES", parse=parse_map),
    Row("--security-label", "R", "security_label"),
    *_flags("security_label", "RC"),
    Row("--inode-file-handles", "R", "inode_file_handles", metavar="MODE", parse=file_handles),
    Row("--migration-mode", "R", metavar="MODE", refused=_NO_MIGRATION),
    Row("--migration-on-error", "R", metavar="ACTION", refused=_NO_MIGRATION),
    Row("--migration-verify-handles", "R", refused=_NO_MIGRATION),
    Row("--migration-confirm-paths", "R", refused=_NO_MIGRATION),
    Row("--daemonize", "C", refused="start it from a service manager, which keeps it in the background"),
)
OTHERS = ("-h", "--help", "-V", "--version")
"""What prints and exits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script."""
    from . import guarded

    return guarded(lambda: run(list(sys.argv[1:] if arguments is None else arguments)))


def run(words: list[str]) -> int:
    """Serve as the words say."""
    if any(word in ("-h", "--help") for word in words):
        print(help_text())
        return exitcodes.OK
    if any(word in ("-V", "--version") for word in words):
        print(f"passthrough-virtiofsd {__version__}")
        return exitcodes.OK
    return serve.run(options_of(words))


def options_of(words: Sequence[str]) -> ServeOptions:
    """What the words add up to. UserError for those that are refused, or unknown."""
    values: dict[str, Any] = {}
    for word, text in _settings(words):
        row = _BY_WORD.get(word)
        if row is None:
            raise UserError(
                f"{word}: neither virtiofsd has this option; see: man passthrough-virtiofsd", exitcodes.USAGE
            )
        found = _value(row, text)
        if row.field:
            values[row.field] = (*values.get(row.field, ()), found) if row.many else found
    return serve_options.options_of(values)


def _settings(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(option, its text) in order; those of -o as `-o WORD`."""
    rest = list(words)
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        if word.startswith("-o") and not word.startswith("--"):
            listed = (word + equals + text)[2:] or (rest.pop(0) if rest else "")
            for item in filter(None, listed.split(",")):
                name, has, value = item.partition("=")
                yield f"-o {name}", value if has else None
            continue
        row = _BY_WORD.get(word)
        if row is not None and row.metavar and not equals and rest:
            equals, text = "=", rest.pop(0)
        yield word, text if equals else None


def _value(row: Row, text: str | None) -> Any:
    if bool(row.metavar) != (text is not None):
        raise UserError(f"{row.word} takes {'a value' if row.metavar else 'no value'}", exitcodes.USAGE)
    if row.refused:
        given = row.word if text is None else f"{row.word}={text}"
        raise UserError(f"{given}: {row.refused}", exitcodes.USAGE)
    if row.parse is None:
        return row.value
    try:
        return row.parse(text or "")
    except ValueError as error:
        raise UserError(f"{row.word}={text}: it takes {error}", exitcodes.USAGE) from None


def help_text() -> str:
    """A line per option."""
    name = os.path.basename(sys.argv[0])
    lines = [f"usage: {name} [OPTION...]", "", "virtiofsd's options, for passthrough serve:", ""]
    for row in TABLE:
        given = row.word + (f"={row.metavar}" if row.metavar else "")
        refused = f"refused: {row.refused}" if row.refused else ""
        lines.append(f"  {given:36}{refused}".rstrip())
    return "\n".join([*lines, "", "man passthrough-virtiofsd tells more."])


_BY_WORD = {row.word: row for row in TABLE}
