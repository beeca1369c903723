"""The options of passthrough serve: virtiofsd's words and defaults. Parsing only."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from .. import exitcodes
from ..errors import UserError
from ..fs.tree import Cache, Choice, ReaddirPlus, TreeConfig
from ..fs.tree.config import NS_PER_S
from ..options import SANDBOX_OPTIONS, Option, SandboxOptions, check_sandbox
from ..protocol import constants as c

TAG_LIMIT = 36
LEVELS = ("off", "error", "warn", "info", "debug", "trace")
_TIMEOUT_LIMIT_S = 10**9
_NR_OPEN = "/proc/sys/fs/nr_open"


@dataclass(frozen=True, slots=True)
class ServeOptions(SandboxOptions):
    """What the command line adds up to."""

    shared_dir: str = ""
    socket_path: str | None = None
    socket_group: str | None = None
    fd: int | None = None
    tag: str | None = None
    num_request_queues: int = 1
    once: bool = False
    cache: Cache = Cache.AUTO
    readonly: bool = False
    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    readdirplus: bool = True
    announce_submounts: bool = True
    killpriv_v2: bool = False
    preserve_noatime: bool = False
    timeout_ns: int | None = None
    xattr: bool = False
    posix_acl: bool = False
    flock: bool = False
    posix_lock: bool = False
    thread_pool_size: int = 8
    log_level: str = "info"
    syslog: bool = False
    debug: bool = False
    print_capabilities: bool = False

    def tree(self) -> TreeConfig:
        """The part that the shared directory is told."""
        return TreeConfig(
            cache=self.cache,
            entry_timeout_ns=self.timeout_ns,
            attr_timeout_ns=self.timeout_ns,
            writeback=self.writeback,
            passthrough=Choice.OFF,
            readdirplus=None if self.readdirplus else ReaddirPlus.NO,
            xattr=self.xattr or self.posix_acl,
            posix_acl=self.posix_acl,
            flock=self.flock,
            posix_lock=self.posix_lock,
            direct_io=self.allow_direct_io,
            noatime=self.preserve_noatime,
            submounts=self.announce_submounts,
        )

    def flags(self, wished: int) -> int:
        """Of the INIT flags that the file system would like, those that these options let it have.

        A kernel that clears SUID and SGID by itself does so when it truncates, not when it opens with O_TRUNC.
        """
        if not self.killpriv_v2:
            wished &= ~(c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_ATOMIC_O_TRUNC)
        if not self.allow_mmap:
            wished &= ~c.FUSE_DIRECT_IO_ALLOW_MMAP
        return wished


def parse_cache(text: str) -> Cache:
    """A cache mode; virtiofsd (C) says none for never."""
    return Cache("never" if text == "none" else text)


def parse_tag(text: str) -> str:
    """A tag: bytes that a guest can be told."""
    if not 1 <= len(text.encode(errors="surrogateescape")) <= TAG_LIMIT or not text.isprintable():
        raise ValueError
    return text


def number_in(low: int, high: int) -> Callable[[str], int]:
    """What reads a number from low to high."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def parse_seconds(text: str) -> int:
    """Seconds, fractions allowed, in ns."""
    seconds = float(text)
    if not 0 <= seconds <= _TIMEOUT_LIMIT_S:
        raise ValueError
    return int(seconds * NS_PER_S)


def parse_limit(text: str) -> int:
    """A limit of open files."""
    with open(_NR_OPEN, encoding="ascii") as file:
        return number_in(0, int(file.read()))(text)


def _switch(parser: Any, name: str, text: str, off: str = "") -> None:
    """--name, and --no-name where the default is on."""
    parser.add_argument("--" + name, action="store_true", help=text, default=argparse.SUPPRESS)
    if off:
        dest = name.replace("-", "_")
        parser.add_argument("--no-" + name, action="store_false", dest=dest, help=off, default=argparse.SUPPRESS)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """passthrough serve. What is not said is left out of the namespace: the defaults are ServeOptions'."""
    parser.description = "Serve a directory, or one regular file, to a virtual machine as virtio-fs, over vhost-user."
    value = _value_adder(parser)
    value("--shared-dir", "DIR", str, "what to share; needed")
    value("--socket-path", "PATH", str, "listen on this UNIX socket, for one front end after the other")
    value("--socket-group", "GROUP", str, "let this group connect too")
    value("--fd", "N", number_in(0, 1 << 20), "use a socket that listens already, instead of --socket-path")
    value("--tag", "NAME", parse_tag, f"tell the guest this tag (1 to {TAG_LIMIT} bytes); else the front end does")
    value("--num-request-queues", "N", number_in(1, 255), "with --tag, how many request queues to ask for; default: 1")
    _switch(parser, "once", "end when the first front end has gone")
    value("--cache", "MODE", parse_cache, "what the guest may remember: never, metadata, auto (the default) or always")
    value(
        "--timeout", "SECONDS", parse_seconds, "how long names and attributes are believed; default: the cache mode's"
    )
    _switch(parser, "readonly", "every change is refused with EROFS")
    _switch(parser, "writeback", "the guest collects writes; for those who alone change the directory")
    _switch(parser, "allow-direct-io", "a guest's O_DIRECT reaches the host's files")
    _switch(parser, "allow-mmap", "shared mappings also with cache never and metadata")
    _switch(
        parser, "readdirplus", "listing brings attributes along (the default, but for cache never)", "it never does"
    )
    _switch(
        parser,
        "announce-submounts",
        "other file systems below DIR are such in the guest too (the default)",
        "all is one file system in the guest",
    )
    _switch(parser, "killpriv-v2", "the daemon clears SUID and SGID, and the guest need not ask for it")
    _switch(parser, "preserve-noatime", "a guest's O_NOATIME reaches the host's files")
    _switch(parser, "xattr", "extended attributes are those of DIR; without it there are none")
    _switch(parser, "posix-acl", "access lists of DIR are shown, set and enforced; implies --xattr")
    _switch(parser, "flock", "flock(2) locks are taken on DIR's files, so that host and guests see them")
    _switch(parser, "posix-lock", "fcntl(2) locks are taken on DIR's files, so that host and guests see them")
    value(
        "--thread-pool-size",
        "N",
        number_in(0, 256),
        "threads for requests that may take long, such as fsync; 0: the queue waits for them; default: 8",
    )
    value("--log-level", "LEVEL", parse_level, f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}; default: info")
    _switch(parser, "syslog", "log to the system log and not to standard error")
    parser.add_argument(
        "-d", "--debug", action="store_true", help="a line for each request and reply", default=argparse.SUPPRESS
    )
    _switch(parser, "print-capabilities", "print what this back end can do, as JSON, and exit")
    group = parser.add_argument_group("the sandbox")
    for option in SANDBOX_OPTIONS:
        _sandboxed(group, option)


def _sandboxed(group: Any, option: Option) -> None:
    name = "--" + option.word.replace("_", "-")
    if option.parse is None:
        group.add_argument(name, action="store_true", help=option.help, default=argparse.SUPPRESS, dest=option.field)
        return
    group.add_argument(
        name,
        metavar=option.metavar,
        type=partial(parse_sandbox, option, name),
        action=_Many if option.many else "store",
        help=option.help,
        default=argparse.SUPPRESS,
        dest=option.field,
    )


class _Many(argparse.Action):
    """The values of an option that may be repeated, as a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """One more."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def parse_sandbox(option: Option, name: str, text: str) -> Any:
    """The value of an option of the sandbox, given by this name. UserError says what it takes."""
    assert option.parse is not None
    try:
        return option.parse(text)
    except ValueError as error:
        raise UserError(f"{name}={text}: it takes {error}", exitcodes.USAGE) from None


def parse_level(text: str) -> str:
    """The name of a log level."""
    if text not in LEVELS:
        raise ValueError
    return text


def _value_adder(parser: argparse.ArgumentParser) -> Callable[[str, str, Callable[[str], Any], str], None]:
    def add(name: str, metavar: str, parse: Callable[[str], Any], text: str) -> None:
        def checked(given: str) -> Any:
            try:
                return parse(given)
            except ValueError:
                raise UserError(f"{name}={given}: it takes {_takes(name)}", exitcodes.USAGE) from None

        dest = _DESTS.get(name, name[2:].replace("-", "_"))
        parser.add_argument(name, metavar=metavar, type=checked, help=text, default=argparse.SUPPRESS, dest=dest)

    return add


_DESTS = {"--timeout": "timeout_ns"}
_TAKES = {
    "--cache": "never, metadata, auto or always",
    "--timeout": f"seconds from 0 to {_TIMEOUT_LIMIT_S}",
    "--tag": f"a name of 1 to {TAG_LIMIT} bytes",
    "--log-level": ", ".join(LEVELS),
    "--num-request-queues": "a number from 1 to 255",
    "--thread-pool-size": "a number from 0 to 256",
    "--fd": "the number of a descriptor",
}


def _takes(name: str) -> str:
    return _TAKES.get(name, "another value")


def options_of(values: dict[str, Any]) -> ServeOptions:
    """The options out of what was parsed; UserError where they contradict each other."""
    known = {field.name for field in fields(ServeOptions)}
    options = ServeOptions(**{key: value for key, value in values.items() if key in known})
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
    if options.socket_path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(options.socket_path))):
        refuse(f"{options.socket_path}: the directory of the socket does not exist")
    if options.socket_group is not None and options.fd is not None:
        refuse("--socket-group is for a socket of ours: not with --fd")
    if options.writeback and options.cache in (Cache.NEVER, Cache.METADATA):
        refuse(f"--writeback needs a page cache, and --cache={options.cache.value} has none: auto or always")
    if options.num_request_queues != 1 and options.tag is None:
        refuse("--num-request-queues is told together with --tag; without it, say it to the front end")
    if options.readonly and options.writeback:
        refuse("--readonly and --writeback exclude each other")
    check_sandbox(options)
