"""From a door to a FUSE mount that answers: in the foreground until it is over, or left behind in the background."""

import os
from collections.abc import Callable

from .. import exitcodes, log
from ..process_options import ProcessOptions
from ..transport import mounting
from . import background, confine
from .door import MountDoor
from .keeper import Daemon, keep
from .manager import from_environment


def wanted_log(options: ProcessOptions, command: str, source: str, target: str) -> log.Wanted:
    """What the options say of the log, and what its lines are about."""
    return log.Wanted(
        level=options.level.value,
        syslog=options.syslog,
        about={"COMMAND": command, "SOURCE": source, "TARGET": target},
    )


def launch(
    door: MountDoor, mountpoint: str, streams: background.Streams, daemon: Callable[[], Daemon], *, stays: bool
) -> int:
    """The exit status. daemon() is called in the process that stays, when what it needs of `streams` is open."""
    manager = from_environment(os.environ, stays=stays)

    def begin(ready: background.Ready) -> int:
        confine.preload()
        streams.open()
        return keep(door, daemon(), streams.outside(ready), manager)

    if stays:
        return begin(lambda: None)
    pid = background.start(begin)
    mounting.see_that_it_answers(mountpoint)
    manager.hand_over(pid, door.status("ready"))
    return exitcodes.OK
