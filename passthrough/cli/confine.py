"""From the options of a command, and what its file system needs, to the daemon's sandbox."""

import codecs
import ctypes
import importlib
import linecache
import locale
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sandbox

from .. import exitcodes
from ..errors import UserError
from ..sandbox_options import SandboxMode, SandboxOptions, SeccompMode
from . import opener
from .channel import Channel

_log = logging.getLogger(__name__)

_LATER = (
    "concurrent.futures.thread",
    "logging.handlers",
    "queue",
    "traceback",
    "tracemalloc",
    "unicodedata",
    "weakref",
)
_CODECS = "ascii idna latin-1 punycode raw_unicode_escape unicode_escape utf-8 utf-8-sig utf-16 utf-32".split()
_NAME = "passthrough"


@dataclass(frozen=True, slots=True)
class Needs:
    """What one kind of service needs of its sandbox.

    path and opened: the shared directory, absolute and without symlinks, and a descriptor of it; None for none.
    files: descriptors of single files that the kernel opens anew for us. keep: those that are held already. families:
    of sockets that are made later; the network stays.
    """

    path: str | None = None
    opened: int | None = None
    readonly: bool = False
    receive_mounts: bool = True
    kernel_backing: bool = False
    file_handles: bool = False
    io_uring: bool = False
    files: frozenset[int] = frozenset()
    keep: frozenset[int] = frozenset()
    calls: tuple[str, ...] = ()
    ioctls: tuple[int, ...] = ()
    families: tuple[int, ...] = ()


def confinement(options: SandboxOptions, needs: Needs, outside: Channel | None = None) -> sandbox.Confinement:
    """The two together. UserError where an option is wrong here."""
    if (options.uid_map or options.gid_map) and os.geteuid() == 0:
        raise UserError("uid_map and gid_map are for an ordinary user's sandbox; root has all ids", exitcodes.USAGE)
    added, removed = _changes(options.modcaps)
    lifeline = outside.fileno() if outside is not None else None
    return sandbox.Confinement(
        mode=sandbox.Mode(options.sandbox.value),
        landlock=sandbox.Choice(options.landlock.value),
        seccomp=sandbox.Seccomp(options.seccomp.value),
        path=needs.path,
        opened=needs.opened,
        readonly=needs.readonly,
        receive_mounts=needs.receive_mounts,
        name=_NAME,
        files=needs.files,
        keep=needs.keep,
        lifeline=lifeline,
        nofile=options.rlimit_nofile,
        uid_maps=_maps("uid_map", options.uid_map),
        gid_maps=_maps("gid_map", options.gid_map),
        add_capabilities=added,
        drop_capabilities=removed,
        kernel_backing=needs.kernel_backing,
        file_handles=needs.file_handles,
        io_uring=needs.io_uring,
        calls=needs.calls,
        ioctls=needs.ioctls,
        families=needs.families,
    )


def _changes(modcaps: str | None) -> tuple[frozenset[str], frozenset[str]]:
    if modcaps is None:
        return frozenset(), frozenset()
    added, removed = sandbox.parse_changes(modcaps)
    try:
        sandbox.check_names(added | removed)
    except ValueError as error:
        raise UserError(f"option modcaps={modcaps}: {error}", exitcodes.USAGE) from None
    except ImportError as error:
        raise UserError(f"sandbox: {error}", exitcodes.SANDBOX) from error
    if twice := sorted(added & removed):
        raise UserError(f"option modcaps={modcaps}: it keeps {twice[0]} and drops it", exitcodes.USAGE)
    return added, removed


def _maps(word: str, texts: Sequence[str]) -> tuple[sandbox.IdMap, ...]:
    try:
        return tuple(map(sandbox.parse_map, texts))
    except ValueError as error:
        raise UserError(f"option {word}: {error}", exitcodes.USAGE) from None


def check_maps(options: SandboxOptions) -> None:
    """For a mount: the kernel tells its daemon of users by their ids outside. UserError for maps that change them."""
    for word, texts in ("uid_map", options.uid_map), ("gid_map", options.gid_map):
        for text in texts:
            inside, outside, _ = sandbox.parse_map(text)
            if inside != outside:
                raise UserError(
                    f"{word}={text}: with a mount, ids inside and outside must be the same: :{outside}:{outside}:...",
                    exitcodes.USAGE,
                )


def warn(options: SandboxOptions) -> None:
    """Say aloud what is weaker than it could be."""
    if options.sandbox is SandboxMode.NONE:
        _log.warning("sandbox=none: the daemon reaches every file that its user may")
    if options.sandbox is SandboxMode.LANDLOCK and (said := sandbox.best_effort()):
        _log.warning("sandbox=landlock: %s", said)
    if options.seccomp is SeccompMode.LOG:
        _log.warning("seccomp=log: unexpected system calls are logged by the kernel, and work")


def explain(options: SandboxOptions, needs: Needs, prepare: str) -> list[str]:
    """The plan, a line for each step; prepare is what the service does before the sandbox closes."""
    done = [opener.STEP, prepare] if needs.file_handles else [prepare]
    steps, _ = sandbox.plan(confinement(options, needs), [sandbox.Step(each, lambda: None) for each in done])
    return [f"{number}. {line}" for number, line in enumerate(sandbox.explain(steps), 1)]


def enter(
    options: SandboxOptions, needs: Needs, outside: Channel, prepare: Sequence[sandbox.Step] = ()
) -> tuple[sandbox.Inside, Callable[[], None]]:
    """In the child of a Keeper: close the sandbox; SandboxError where a step fails. `prepare` is done on the way.

    Returns what was left inside, and what tells the log, once it is the right one, of steps that were left out.
    """
    left = sandbox.Left(tell=lambda first: outside.say("pid", first), wait=lambda first: exitcodes.OK)
    steps, inside = sandbox.plan(confinement(options, needs, outside), prepare, left)
    left_out = sandbox.enter(steps)

    def tell() -> None:
        for line in left_out:
            _log.warning("%s", line)

    return inside, tell


def preload() -> None:
    """Load all that may be needed later: when the sandbox is closed there is no standard library to import.

    Tracebacks keep their source lines, local time its zone; libgcc is what pthread_exit(3) would open.
    """
    sandbox.load_libraries()
    for name in _LATER:
        importlib.import_module(name)
    for name in (*_CODECS, locale.getpreferredencoding(False), sys.getfilesystemencoding()):
        codecs.lookup(name)
    time.localtime()
    try:
        ctypes.CDLL("libgcc_s.so.1")
    except OSError:
        _log.debug("no libgcc_s.so.1 here")
    _remember_sources()


def _remember_sources() -> None:
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.split(".")[0] in ("passthrough", "sandbox", "threading") and linecache.getlines(path):
            size, _, lines, full = linecache.cache[path]  # type: ignore[misc]
            linecache.cache[path] = (size, None, lines, full)  # without a time: not looked for again
