"""The options of passthrough serve: virtiofsd's words and defaults. Parsing only."""

import argparse
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from .. import exitcodes
from ..errors import UserError
from ..fs.tree import ReaddirPlus, TreeConfig
from ..option_rows import Option
from ..process_options import LOG_OPTIONS
from ..sandbox_options import SANDBOX_OPTIONS
from ..share_options import SHARE_OPTIONS, ShareOptions, check_share
from ..transport.vhost.device import TAG_SIZE, is_tag

_NR_OPEN = "/proc/sys/fs/nr_open"


@dataclass(frozen=True, slots=True)
class ServeOptions(ShareOptions):
    """What the command line adds up to."""

    shared_dir: str = ""
    socket_path: str | None = None
    socket_group: str | None = None
    fd: int | None = None
    tag: str | None = None
    num_request_queues: int = 1
    once: bool = False
    readonly: bool = False
    announce_submounts: bool = True
    killpriv_v2: bool = False
    xattr: bool = False
    posix_acl: bool | None = False
    allow_idmap: bool = True
    thread_pool_size: int = 8
    print_capabilities: bool = False

    def tree(self) -> TreeConfig:
        """The part that the shared directory is told."""
        return replace(ShareOptions.tree(self), submounts=self.announce_submounts)


_OWN_SHARE_OPTIONS: tuple[Option, ...] = (
    Option("readonly", "readonly", "Every change is refused with EROFS."),
    Option("xattr", "xattr", "Extended attributes are those of DIR; without it there are none."),
    Option("no_xattr", "xattr", value=False),
    Option("posix_acl", "posix_acl", "Access lists of DIR are shown, set and enforced; implies --xattr."),
    Option("no_posix_acl", "posix_acl", value=False),
    Option("no_readdirplus", "readdirplus", "Listing never brings attributes along.", value=ReaddirPlus.NO),
    Option("readdirplus", "readdirplus", value=None),
    Option(
        "killpriv_v2",
        "killpriv_v2",
        "The daemon clears SUID and SGID of a file that is changed; without it, when the guest asks for it.",
    ),
    Option("no_killpriv_v2", "killpriv_v2", value=False),
    Option(
        "announce_submounts",
        "announce_submounts",
        "Other file systems below DIR are such in the guest too (the default); --no-announce-submounts: all is one.",
    ),
    Option("no_announce_submounts", "announce_submounts", value=False),
    Option(
        "allow_idmap",
        "allow_idmap",
        "The guest may idmap its mount, where its kernel can (6.12; the default); the daemon is then told who asks "
        "only where something is created.",
    ),
    Option("no_allow_idmap", "allow_idmap", value=False),
)
"""What has another default than on a mount, or is for guests alone."""

_OWN_FIELDS = {option.field for option in _OWN_SHARE_OPTIONS}
_COMMON_OPTIONS = tuple(option for option in SHARE_OPTIONS if option.field not in _OWN_FIELDS)


def parse_tag(text: str) -> str:
    """A tag: bytes that a guest can be told."""
    if not is_tag(text):
        raise ValueError(f"a name of 1 to {TAG_SIZE} bytes")
    return text


def number_in(low: int, high: int) -> Callable[[str], int]:
    """What reads a number from low to high."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text[:20]) <= high:
            raise ValueError(f"a number from {low} to {high}")
        return int(text)

    return parse


def parse_descriptor(text: str) -> int:
    """A descriptor that the starter has left open."""
    try:
        return number_in(0, 1 << 20)(text)
    except ValueError:
        raise ValueError("the number of a descriptor") from None


def parse_path(text: str) -> str:
    """A path, which a variable that is not set does not give."""
    if not text:
        raise ValueError("a path")
    return text


def parse_limit(text: str) -> int:
    """A limit of open files."""
    with open(_NR_OPEN, encoding="ascii") as file:
        return number_in(0, int(file.read()))(text)


def _switch(parser: Any, name: str, text: str) -> None:
    parser.add_argument("--" + name, action="store_true", help=text, default=argparse.SUPPRESS)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """passthrough serve. What is not said is left out of the namespace: the defaults are ServeOptions'."""
    parser.description = "Serve a directory, or one regular file, to a virtual machine as virtio-fs, over vhost-user."
    parser.epilog = "Flags of the shared directory, but --readonly, have opposites: --no-writeback."
    value = _value_adder(parser)
    value("--shared-dir", "DIR", parse_path, "what to share; needed")
    value("--socket-path", "PATH", parse_path, "listen on this UNIX socket, for one front end after the other")
    value("--socket-group", "GROUP", str, "let this group connect too")
    value("--fd", "N", parse_descriptor, "use a socket that listens already, instead of --socket-path")
    value("--tag", "NAME", parse_tag, f"tell the guest this tag (1 to {TAG_SIZE} bytes); else the front end does")
    value("--num-request-queues", "N", number_in(1, 255), "with --tag, how many request queues to ask for; default: 1")
    _switch(parser, "once", "end when the first front end has gone")
    value(
        "--thread-pool-size",
        "N",
        number_in(0, 256),
        "threads for requests that may take long, such as fsync; 0: the queue waits for them; default: 8",
    )
    parser.add_argument(
        "-d", "--debug", action="store_true", help="a line for each request and reply", default=argparse.SUPPRESS
    )
    _switch(parser, "print-capabilities", "print what this back end can do, as JSON, and exit")
    for title, rows in (
        ("the shared directory", (*_COMMON_OPTIONS, *_OWN_SHARE_OPTIONS)),
        ("the log", LOG_OPTIONS),
        ("the sandbox", SANDBOX_OPTIONS),
    ):
        group = parser.add_argument_group(title)
        for option in rows:
            _add_row(group, option)


def _add_row(group: Any, option: Option) -> None:
    name = "--" + option.word.replace("_", "-")
    text = re.sub(r"\bno_\w+", lambda match: "--" + match[0].replace("_", "-"), option.help)
    text = text.replace("%", "%%") or argparse.SUPPRESS
    if option.parse is None:
        group.add_argument(
            name, action="store_const", const=option.value, help=text, default=argparse.SUPPRESS, dest=option.field
        )
        return
    group.add_argument(
        name,
        metavar=option.metavar,
        type=partial(_parse, option, name),
        action=_Many if option.many else "store",
        help=text,
        default=argparse.SUPPRESS,
        dest=option.field,
    )


class _Many(argparse.Action):
    """The values of an option that may be repeated, as a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """One more."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def _parse(option: Option, name: str, text: str) -> Any:
    assert option.parse is not None
    try:
        return option.parse(text)
    except ValueError as error:
        raise UserError(f"{name}={text}: it takes {error}", exitcodes.USAGE) from None


def _value_adder(parser: argparse.ArgumentParser) -> Callable[[str, str, Callable[[str], Any], str], None]:
    def add(name: str, metavar: str, parse: Callable[[str], Any], text: str) -> None:
        def checked(given: str) -> Any:
            try:
                return parse(given)
            except ValueError as error:
                raise UserError(f"{name}={given}: it takes {error}", exitcodes.USAGE) from None

        parser.add_argument(name, metavar=metavar, type=checked, help=text, default=argparse.SUPPRESS)

    return add


def options_of(values: dict[str, Any]) -> ServeOptions:
    """The options out of what was parsed; UserError where they contradict each other."""
    known = {field.name for field in fields(ServeOptions)}
    options = ServeOptions(**{key: value for key, value in values.items() if key in known})
    if options.needs_xattr() and "xattr" not in values:
        options = replace(options, xattr=True)
    if not options.print_capabilities:
        _check(options)
    return options


def _check(options: ServeOptions) -> None:
    def refuse(why: str) -> None:
        raise UserError(why, exitcodes.USAGE)

    if not options.shared_dir:
        refuse("--shared-dir is missing: which directory to share")
    if (options.socket_path is None) == (options.fd is None):
        refuse("one of --socket-path and --fd is needed, and not both")
    if options.socket_path is not None:
        _check_directory(options.socket_path)
    if options.socket_group is not None and options.fd is not None:
        refuse("--socket-group is for a socket of ours: not with --fd")
    if options.num_request_queues != 1 and options.tag is None:
        refuse("--num-request-queues is told together with --tag; without it, say it to the front end")
    if options.readonly and options.writeback:
        refuse("--readonly and --writeback exclude each other")
    check_share(options)


def _check_directory(socket_path: str) -> None:
    directory = os.path.dirname(os.path.abspath(socket_path))
    if not os.path.isdir(directory):
        raise UserError(
            f"{socket_path}: the directory of the socket does not exist; create it: mkdir -p {shlex.quote(directory)}",
            exitcodes.SOCKET,
        )
