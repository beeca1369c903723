"""`passthrough serve` as a process, for tests that are its front end."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..mounted.harness import ROOT, command, ended, unexpected, wait_until
from .frontend import FrontEnd, Memory
from .fuse import Client


@dataclass
class BackEnd:
    """A daemon, what it shares, and what it says."""

    base: Path
    shared: Path
    socket: Path
    process: "subprocess.Popen[str]"

    def said(self) -> list[str]:
        """Its log so far, a line each."""
        return (self.base / "log").read_text(encoding="utf-8", errors="replace").splitlines()

    def errors(self) -> list[str]:
        """Lines above INFO."""
        lines = unexpected("\n".join(self.said()) + "\n").splitlines()
        return [line for line in lines if re.match(r"passthrough: (WARNING|ERROR|CRITICAL)", line)]

    def connect(self, memory: Memory | None = None) -> FrontEnd:
        return FrontEnd(str(self.socket), memory)

    @contextlib.contextmanager
    def front(self, request_queues: int = 1, **more: object) -> Iterator[FrontEnd]:
        """A front end whose rings run."""
        front = self.connect()
        try:
            front.begin(request_queues, **more)  # type: ignore[arg-type]
            yield front
        finally:
            front.close()

    def works(self) -> None:
        """The next guest is served: INIT, and a look at the root."""
        with self.front() as front:
            client = Client(front)
            client.init()
            assert client.getattr()["ino"] == os.stat(self.shared).st_ino

    def idle(self) -> None:
        """Wait until no front end is served."""
        wait_until(lambda: self._said("has connected") == self._said("is gone"), "the last front end is gone")

    def _said(self, words: str) -> int:
        return sum(line.endswith(words) for line in self.said())

    def descriptors(self) -> int:
        """How many the process that serves has, while it serves nobody."""
        self.idle()
        return len(os.listdir(f"/proc/{self.serving()}/fd"))

    def serving(self) -> int:
        """The process that serves, which is the keeper's child."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _as(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


@contextlib.contextmanager
def backend(*options: str, shared: Path | None = None, user: int | None = None) -> Iterator[BackEnd]:
    """A daemon for the length of the block, with no traceback in its log; user: of that ordinary user."""
    with tempfile.TemporaryDirectory(prefix="passthrough-vhost-") as directory:
        base = Path(directory)
        share = shared or base / "shared"
        if shared is None:
            share.mkdir()
        socket = base / "socket"
        words = command("serve", f"--socket-path={socket}", f"--shared-dir={share}", *options)
        if user is not None:
            for path in (base, share):
                os.chown(path, user, user)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(base / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(words, stderr=log, env=environment, text=True, **_as(user))
        made = BackEnd(base, share, socket, process)
        try:
            wait_until(
                lambda: "waiting for a front end" in "\n".join(made.said()) or process.poll() is not None, "it listens"
            )
            assert process.poll() is None, made.said()
            yield made
        finally:
            process.terminate()
            if not ended(process.pid, 30):
                process.kill()
            process.wait()
            said = "\n".join(made.said())
        assert "Traceback" not in said, said
        assert "a bug of ours" not in said, said
