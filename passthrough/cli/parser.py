"""The command line: the commands, and the long form of every mount option. Parsing only."""

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import __version__, exitcodes
from ..compiled import is_compiled
from ..errors import UserError
from ..option_rows import Option, Setting, split_words

_EPILOG = "Every option is also a word for -o, with underscores: --allow-other is -o allow_other."


class _Help(argparse.HelpFormatter):
    """Lines that do not end within an option: --no-writeback is one word."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = textwrap.wrap(" ".join(text.split()), width - len(indent), break_on_hyphens=False)
        return "\n".join(indent + line for line in filled)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors: one line, our exit status."""

    def __init__(self, **words: Any) -> None:
        super().__init__(formatter_class=_Help, **words)

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a wrong command line."""
        message = re.sub(r"^argument (\S+): ignored explicit argument .*", r"\1 takes no value", message)
        raise UserError(f"{message}; see: {self.prog} --help", exitcodes.USAGE)


class _Command(Parser):
    """A command's: what it does not know is its own error, and not the whole program's."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """How argparse calls the parser of a command."""
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            unknown = [word for word in left if word.startswith("-")]
            self.error(f"unknown option: {unknown[0]}" if unknown else f"one argument too many: {left[0]}")
        return parsed, left


class _Words(argparse.Action):
    """-o a,b=c"""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.settings = [*namespace.settings, *split_words(values)]


class _Long(argparse.Action):
    """--allow-other, --timeout=1: the same list of settings, in the order of the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setting: Setting = (self.dest, values if isinstance(values, str) else None)
        namespace.settings = [*namespace.settings, setting]


def _not_empty(name: str) -> Callable[[str], str]:
    """A path may not be empty: it would be the working directory, where a variable is not set."""

    def read(text: str) -> str:
        if not text:
            raise UserError(f"{name} is empty; name a path, . for the working directory", exitcodes.USAGE)
        return text

    return read


def _version() -> str:
    return f"passthrough {__version__}{' (compiled)' if is_compiled() else ''}"


def build(words: Sequence[str] | None = None) -> Parser:
    """The whole command line; of words that are going to be parsed, only the commands that stand among them are whole.

    What a command's options are made of takes a while to load, and the others do without.
    """
    parser = Parser(prog="passthrough", description="Share a directory through FUSE.", allow_abbrev=False)
    parser.add_argument("-V", "--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Command)
    for name, text, epilog, add in (
        ("mount", "mount a directory", _EPILOG, add_mount),
        ("umount", "unmount, and stop the daemon", None, _add_umount),
        ("export", "export an image as a file", _EPILOG, add_export),
        ("serve", "serve a directory to a virtual machine", None, _add_serve),
        ("doctor", "what this kernel and user can have", None, _add_doctor),
    ):
        command = commands.add_parser(name, help=text, epilog=epilog, allow_abbrev=False)
        if words is None or name in words:
            add(command)
    return parser


def add_mount(parser: argparse.ArgumentParser) -> None:
    """passthrough mount."""
    from ..options import OPTIONS

    parser.description = "Mount the directory SRC on the directory MNT; returns when the mount answers."
    parser.add_argument("source", metavar="SRC", type=_not_empty("SRC"), help="the directory to share")
    parser.add_argument("mountpoint", metavar="MNT", type=_not_empty("MNT"), help="the directory to mount it on")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-o", action=_Words, metavar="OPTION[,...]", help="mount options", default=argparse.SUPPRESS)
    parser.set_defaults(settings=[])
    group = parser.add_argument_group("mount options")
    for option in OPTIONS:
        _add_long(group, option)


def add_export(parser: argparse.ArgumentParser) -> None:
    """passthrough export."""
    from ..export_options import EXPORT_OPTIONS

    parser.description = "Export IMAGE as the regular file FILE, which may be IMAGE itself; returns when it answers."
    parser.add_argument(
        "image", metavar="IMAGE", type=_not_empty("IMAGE"), help="an image file, a block device, or an NBD URI"
    )
    parser.add_argument("file", metavar="FILE", type=_not_empty("FILE"), help="the regular file to mount it on")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-o", action=_Words, metavar="OPTION[,...]", help="export options", default=argparse.SUPPRESS)
    parser.set_defaults(settings=[])
    group = parser.add_argument_group("export options")
    for option in EXPORT_OPTIONS:
        _add_long(group, option)


def _add_long(group: Any, option: Option) -> None:
    names = ["--" + option.word.replace("_", "-")]
    if "_" in option.word:
        names.append("--" + option.word)
    group.add_argument(
        *names,
        dest=option.word,
        action=_Long,
        nargs=0 if option.parse is None else None,
        metavar=option.metavar or None,
        help=option.help.replace("%", "%%") or argparse.SUPPRESS,
        default=argparse.SUPPRESS,
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from .serve_options import add_serve

    add_serve(parser)


def _add_umount(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Unmount MNT and stop its daemon; files that are still open there are cut off, but for what the kernel itself "
        "reads and writes."
    )
    parser.add_argument("mountpoint", metavar="MNT", type=_not_empty("MNT"), help="the mount point")
    parser.add_argument("--dead", action="store_true", help="only a mount whose daemon is gone; else do nothing")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = "Tell what this kernel and this user can have, and what to do about what is missing."
    parser.add_argument("directory", metavar="DIR", nargs="?", default=".", help="what is shared; default: .")
    parser.add_argument("--json", action="store_true", help="for programs")


def mount_helper(arguments: Sequence[str]) -> tuple[argparse.Namespace, bool, bool]:
    """The command line that mount(8) and mount.fuse use: SRC MNT [-sfnv] [-o OPTIONS] [-t TYPE] [-N NAMESPACE].

    Returns what `mount` would have parsed, whether to pass over unknown options (-s), and whether to do nothing (-f).
    """
    parser = Parser(prog="mount.fuse.passthrough", allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", type=_not_empty("SRC"))
    parser.add_argument("mountpoint", metavar="MNT", type=_not_empty("MNT"))
    parser.add_argument("-o", action=_Words, default=argparse.SUPPRESS)
    parser.add_argument("-t", dest="kind")
    parser.add_argument("-N", dest="namespace")
    for flag in "sfnv":
        parser.add_argument("-" + flag, action="store_true")
    parser.set_defaults(settings=[], foreground=False)
    parsed = parser.parse_args(arguments)
    if parsed.namespace:
        raise UserError("-N: mounting in another namespace is not supported; use nsenter(1)", exitcodes.USAGE)
    return parsed, parsed.s, parsed.f
