"""Back ends for a guest's test: ours, and Debian's C virtiofsd as a peer. Ended with the test, whatever happens."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ..mounted.harness import ROOT, command, ended, unexpected, wait_until
from .machine import Share

PEER = Path("/usr/lib/qemu/virtiofsd")


@dataclass
class Daemons:
    """Started below one directory."""

    base: Path
    running: list["subprocess.Popen[str]"] = field(default_factory=list)
    _count: int = 0

    def ours(self, shared: Path, *options: str, tag: str = "work", queues: int = 1, user: int | None = None) -> Share:
        """passthrough serve; user: by that ordinary user."""
        socket = self._socket()
        words = command("serve", f"--socket-path={socket}", f"--shared-dir={shared}", *options)
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user is not None else []
        return self._started(socket, [*become, *words], tag, queues)

    def peer(self, shared: Path, *options: str, tag: str = "work") -> Share:
        """The C virtiofsd."""
        socket = self._socket()
        more = "".join(f",{option}" for option in options)
        return self._started(socket, [str(PEER), f"--socket-path={socket}", "-o", f"source={shared}{more}"], tag, 1)

    def _socket(self) -> Path:
        self._count += 1
        return self.base / f"socket{self._count}"

    def _started(self, socket: Path, words: list[str], tag: str, queues: int) -> Share:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(self.log(len(self.running)), "w", encoding="utf-8") as log:
            process = subprocess.Popen(words, env=environment, stderr=log, text=True)
        self.running.append(process)
        wait_until(lambda: socket.exists() or process.poll() is not None, "the daemon listens")
        assert process.poll() is None, self.said(len(self.running) - 1)
        return Share(tag, socket, queues)

    def log(self, number: int) -> Path:
        return self.base / f"log{number}"

    def said(self, number: int) -> str:
        """What a daemon wrote to standard error."""
        return self.log(number).read_text(encoding="utf-8", errors="replace")

    def complaints(self) -> list[str]:
        """Warnings and errors of ours."""
        lines = [line for number in range(len(self.running)) for line in unexpected(self.said(number)).splitlines()]
        return [line for line in lines if re.match(r"passthrough: (WARNING|ERROR|CRITICAL)", line)]

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
                if not ended(process.pid, 20):
                    process.kill()
            process.wait()
