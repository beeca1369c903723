"""Where log lines go, and in what form. This file alone decides it, from what is asked for and what is there:

    syslog          the system log (/dev/log), or an error
    the journal     with fields, where standard error is the journal's, and in the background where there is one
    standard error  in the foreground; with a priority before each line where it is the journal's all the same
    the system log  in the background, without a journal
    a file          in the background, without either

Rules: a socket is opened and connected while paths can still be reached, and sends by sendmsg(2), which the sandbox
allows; so neither libsystemd nor SysLogHandler will do, which connect again when they like. Nothing waits for the
reader of a log, which may itself wait for a file that we serve: a line that does not fit is counted and left out.
"""

import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SYSLOG = "/dev/log"
JOURNAL = "/run/systemd/journal/socket"
IDENTIFIER = "passthrough"
PREFIX = "PASSTHROUGH_"
"""How the journal's fields of ours begin (systemd.journal-fields(7) leaves such names to programs)."""
_DAEMON = 3  # LOG_DAEMON, syslog(3)
_USER = 1
_LONGEST = 48 << 10
"""Bytes of a line, below what every datagram socket takes."""
_SEND_BUFFER = 1 << 20
_OFF = logging.CRITICAL + 1
_LEVELS = {
    "off": _OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
_PLAIN = f"{IDENTIFIER}: %(levelname)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: a level's name, the system log, and what each line is about (journal fields, in capitals)."""

    level: str = "info"
    syslog: bool = False
    about: Mapping[str, str] = field(default_factory=dict)


def priority(level: int) -> int:
    """The syslog(3) priority of a level of `logging`."""
    for least, number in (logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6):
        if level >= least:
            return number
    return 7


class Datagrams(logging.Handler):
    """A log behind a UNIX socket: encode makes a message of a record and its text."""

    def __init__(self, path: str, encode: Callable[[logging.LogRecord, str], bytes]) -> None:
        """OSError where nothing listens there."""
        super().__init__()
        self._encode = encode
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket, which is connected."""
        return self._socket.fileno()

    def emit(self, record: logging.LogRecord) -> None:
        """Send, or count."""
        text = self.format(record)
        if self._lost:
            text = f"({self._lost} lines before this one were lost) {text}"
        try:
            self._socket.sendmsg([self._encode(record, text)], [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._lost = 0
        except OSError:
            self._lost += 1

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()


def _clipped(text: str) -> bytes:
    raw = text.encode(errors="backslashreplace")
    return raw if len(raw) <= _LONGEST else raw[:_LONGEST] + b" [...]"


def _for_syslog(facility: int) -> Callable[[logging.LogRecord, str], bytes]:
    """The form that syslog(3) sends; with the process that was started, whose number the sandbox does not know."""
    pid = os.getpid()

    def encode(record: logging.LogRecord, text: str) -> bytes:
        head = f"<{facility << 3 | priority(record.levelno)}>{IDENTIFIER}[{pid}]: {record.levelname}: "
        return head.encode() + _clipped(text)

    return encode


def _for_journal(about: Mapping[str, str]) -> Callable[[logging.LogRecord, str], bytes]:
    """The journal's own protocol (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md): fields, each with its length."""
    fixed = b"".join(_field(PREFIX + name, value.encode(errors="surrogateescape")) for name, value in about.items())
    fixed += _field("SYSLOG_IDENTIFIER", IDENTIFIER.encode()) + _field("SYSLOG_FACILITY", b"%d" % _DAEMON)
    fixed += _field("SYSLOG_PID", b"%d" % os.getpid())

    def encode(record: logging.LogRecord, text: str) -> bytes:
        own = _field("MESSAGE", _clipped(text)) + _field("PRIORITY", b"%d" % priority(record.levelno))
        own += _field("CODE_FILE", record.pathname.encode()) + _field("CODE_LINE", b"%d" % record.lineno)
        own += _field("CODE_FUNC", record.funcName.encode())
        request = getattr(record, "request", None)
        if request is not None:
            own += _field(f"{PREFIX}REQUEST", b"%d" % request)
        return own + fixed

    return encode


def _field(name: str, value: bytes) -> bytes:
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


class _WithPriorities(logging.Formatter):
    """<N> before each line, where every line becomes an entry of its own (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """Also the lines of a traceback."""
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines() or [""])


def is_journals(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether this stream is the one that the journal reads (JOURNAL_STREAM, systemd.exec(5))."""
    told = re.fullmatch(r"(\d+):(\d+)", environment.get("JOURNAL_STREAM", ""))
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return told is not None and (int(told[1]), int(told[2])) == (found.st_dev, found.st_ino)


def starting() -> logging.Handler:
    """Standard error: a line each, with its level."""
    return _formed(logging.StreamHandler(), _PLAIN)


def foreground(wanted: Wanted) -> logging.Handler:
    """For a process that stays. OSError where the system log was asked for and is not there."""
    if wanted.syslog:
        return Datagrams(SYSLOG, _for_syslog(_USER))
    plain = logging.StreamHandler()
    if not is_journals(plain.stream.fileno(), os.environ):
        return _formed(plain, _PLAIN)
    try:
        return Datagrams(JOURNAL, _for_journal(wanted.about))
    except OSError:
        plain.setFormatter(_WithPriorities(_PLAIN))
        return plain


def background(wanted: Wanted, path: str) -> logging.Handler:
    """For a process without a terminal; `path` is the file where there is no log of the system's. OSError as above."""
    if wanted.syslog:
        return Datagrams(SYSLOG, _for_syslog(_DAEMON))
    for log, encode in (JOURNAL, _for_journal(wanted.about)), (SYSLOG, _for_syslog(_DAEMON)):
        try:
            return Datagrams(log, encode)
        except OSError:
            continue
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stream = open(fd, "a", encoding="utf-8", errors="backslashreplace")
    form = f"%(asctime)s {IDENTIFIER}[{os.getpid()}]: %(levelname)s: %(message)s"
    return _formed(logging.StreamHandler(stream), form)


def _formed(handler: logging.Handler, form: str) -> logging.Handler:
    handler.setFormatter(logging.Formatter(form))
    return handler


def descriptors(handler: logging.Handler) -> frozenset[int]:
    """What a handler of ours writes to, besides the standard streams."""
    if isinstance(handler, Datagrams):
        return frozenset({handler.fileno()})
    assert isinstance(handler, logging.StreamHandler)
    return frozenset({handler.stream.fileno()}) - {0, 1, 2}


def use(handler: logging.Handler, wanted: Wanted) -> None:
    """Lines go there, and nowhere else."""
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, Datagrams):
            old.close()
    root.addHandler(handler)
    root.setLevel(_LEVELS[wanted.level])


def requests(wanted: Wanted) -> Callable[[str], None] | None:
    """What a Server tells of its requests and replies (trace.py), or None where nobody wants to know."""
    if wanted.level != "trace":
        return None
    log = logging.getLogger(f"{IDENTIFIER}.requests")

    def tell(line: str) -> None:
        log.debug("%s", line, extra={"request": int(line.split(" ", 2)[1])})

    return tell
