"""Where log lines go: standard error in the foreground, the system log in the background.

Without a system log (no /dev/log) the background daemon writes beside its state file.
"""

import logging
import logging.handlers
import os

_SYSLOG = "/dev/log"


def to_stderr(*, debug: bool) -> None:
    """Foreground: a line each, with the level."""
    _install(logging.StreamHandler(), "passthrough: %(levelname)s: %(message)s", debug)


def to_syslog() -> None:
    """The system log, as an ordinary program (LOG_USER)."""
    handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_USER)
    _install(handler, f"passthrough[{os.getpid()}]: %(levelname)s: %(message)s", False)


def to_background(path: str) -> None:
    """Background: to syslog, or to the file `path` where there is none."""
    handler: logging.Handler
    if os.path.exists(_SYSLOG):
        handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        _install(handler, f"passthrough[{os.getpid()}]: %(levelname)s: %(message)s", False)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    handler = logging.StreamHandler(open(fd, "a", encoding="utf-8", errors="backslashreplace"))
    _install(handler, f"%(asctime)s passthrough[{os.getpid()}]: %(levelname)s: %(message)s", False)


def _install(handler: logging.Handler, form: str, debug: bool) -> None:
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
