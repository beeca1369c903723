"""The command: the only part that prints and exits, and where `sandbox` and the rest meet."""

import os
import re
import sys
from collections.abc import Callable, Sequence

from .. import exitcodes
from ..errors import UserError
from . import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(os.path.basename(sys.argv[0]), words))


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what it raises becomes one line and an exit status."""
    _open_streams()
    try:
        return command()
    except UserError as error:
        print(f"passthrough: {_one_line(str(error))}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return exitcodes.INTERRUPTED
    except BrokenPipeError:
        return exitcodes.SYSTEM
    except Exception as error:
        if os.environ.get("PASSTHROUGH_TRACEBACK"):
            raise
        print(
            f"passthrough: a bug of ours: {error!r}; PASSTHROUGH_TRACEBACK=1 in the environment shows where",
            file=sys.stderr,
        )
        return exitcodes.BUG


def _open_streams() -> None:
    """Started with closed standard streams, a descriptor of ours would become one, and be taken for it."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for fd, name in (1, "stdout"), (2, "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))


def _one_line(text: str) -> str:
    """Names may hold control characters; what is printed does not."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _dispatch(program: str, words: list[str]) -> int:
    if program.startswith("mount.") or (words and "/" in words[0] and not words[0].startswith("-")):
        return _mount_helper(words)  # as mount(8) or mount.fuse calls us
    parsed = parser.build(words).parse_args(words)
    if parsed.command == "mount":
        from .. import options as mount_options
        from . import mount

        options = mount_options.collect(parsed.settings)
        return mount.run(parsed.source, parsed.mountpoint, options, foreground=parsed.foreground)
    if parsed.command == "umount":
        from . import umount

        return umount.run(parsed.mountpoint, dead=parsed.dead)
    if parsed.command == "export":
        from .. import export_options
        from . import export

        wanted = export_options.collect(parsed.settings)
        return export.run(parsed.image, parsed.file, wanted, foreground=parsed.foreground)
    if parsed.command == "serve":
        from . import serve, serve_options

        return serve.run(serve_options.options_of(vars(parsed)))
    from . import doctor

    return doctor.run(parsed.directory, as_json=parsed.json)


def _mount_helper(words: list[str]) -> int:
    from ..options import collect
    from . import mount

    parsed, sloppy, fake = parser.mount_helper(words)
    options = collect(parsed.settings, sloppy=sloppy)
    if fake:
        return exitcodes.OK
    return mount.run(parsed.source, parsed.mountpoint, options, foreground=False)
