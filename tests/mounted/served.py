"""A mount that is served by threads of the test's own process: for what must be steered from inside.

Rules: the test may use calls that let go of the interpreter lock while they wait (all of os does); a page fault on a
mapping of the mount would wait for us while we wait for it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from passthrough.filesystem import FileSystem
from passthrough.protocol.negotiation import Wishes
from passthrough.server import Server
from passthrough.transport import mounting
from passthrough.transport.session import Session

from .harness import wait_until


@dataclass
class Served:
    """The pieces of a session, for looking at."""

    fs: FileSystem
    point: Path
    session: Session
    server: Server


@contextlib.contextmanager
def served(fs: FileSystem, point: Path, threads: int = 2) -> Iterator[Served]:
    """Mount fs on point for the length of the block."""
    mounted = mounting.mount(mounting.MountRequest(str(point), "test"))
    session = Session(mounted.fd, threads, 1 << 20)
    server = Server(fs, Wishes(flags=fs.flags), kernel=session)
    try:
        session.start(server)
        wait_until(lambda: server.agreement is not None, "INIT answered")
        yield Served(fs, point, session, server)
    finally:
        mounting.unmount(str(point), lazy=True, force=True)
        assert session.join(30)
        server.close()
        session.close()


def open_tree(source: Path) -> int:
    """An O_PATH descriptor of a directory."""
    return os.open(source, os.O_PATH | os.O_DIRECTORY)
