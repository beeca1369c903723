"""Where log lines go: standard error in the foreground, the system log in the background.

Without a system log (no /dev/log) the background daemon writes beside its state file.
"""

import logging
import logging.handlers
import os

_SYSLOG = "/dev/log"


def to_stderr(*, debug: bool) -> None:
    """Foreground: a line each, with the level."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("passthrough: %(levelname)s: %(message)s"))
    use(handler, debug=debug)


def to_syslog() -> logging.Handler:
    """The system log, as an ordinary program (LOG_USER)."""
    handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_USER)
    handler.setFormatter(logging.Formatter(f"passthrough[{os.getpid()}]: %(levelname)s: %(message)s"))
    use(handler)
    return handler


def background_handler(path: str) -> logging.Handler:
    """For the background, open: syslog, or the file `path` where there is none. Lines name the process that calls."""
    handler: logging.Handler
    if os.path.exists(_SYSLOG):
        handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        form = f"passthrough[{os.getpid()}]: %(levelname)s: %(message)s"
    else:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        handler = logging.StreamHandler(open(fd, "a", encoding="utf-8", errors="backslashreplace"))
        form = f"%(asctime)s passthrough[{os.getpid()}]: %(levelname)s: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    return handler


def descriptor(handler: logging.Handler) -> int:
    """What a handler of ours writes to."""
    if isinstance(handler, logging.handlers.SysLogHandler):
        return int(handler.socket.fileno())  # type: ignore[attr-defined]  # typeshed has left it out
    assert isinstance(handler, logging.StreamHandler)
    return int(handler.stream.fileno())


def use(handler: logging.Handler, *, debug: bool = False) -> None:
    """Lines go there, and nowhere else."""
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
