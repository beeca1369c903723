"""The options of the process that serves, for every command that has one: its log. No I/O; the rules of option_rows.py.

Level names and their meanings are virtiofsd's.
"""

from dataclasses import dataclass
from enum import Enum

from .option_rows import Option, one_of
from .sandbox_options import SandboxOptions


class Level(Enum):
    """What is logged: lines of this weight and weightier ones; TRACE adds a line for each request and reply."""

    OFF = "off"
    ERROR = "error"
    WARN = "warn"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class ProcessOptions(SandboxOptions):
    """What every command that serves is told about its process: the sandbox's options, and these."""

    log_level: Level = Level.INFO
    syslog: bool = False
    debug: bool = False

    @property
    def level(self) -> Level:
        """The level that comes of log_level and debug."""
        return Level.TRACE if self.debug else self.log_level


LOG_OPTIONS: tuple[Option, ...] = (
    Option(
        "log_level",
        "log_level",
        "What is logged: off, error, warn, info (the default), debug or trace, which has a line for each request and "
        "reply.",
        parse=one_of(Level),
        metavar="LEVEL",
    ),
    Option("syslog", "syslog", "Log to the system log, and nowhere else."),
)
"""For every command that serves; `debug` is in its own table, since it also keeps some in the foreground."""
