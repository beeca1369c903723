"""A virtual machine for a test: QEMU under software emulation, its devices, and what it says on its console."""

import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .kernel import Guest

BOOT_S = 45.0
_READ = 1 << 16


@dataclass
class Share:
    """A virtio-fs device: the tag that the guest sees, and the back end's socket."""

    tag: str
    socket: Path
    queues: int = 1


@dataclass
class Machine:
    """One running guest. `daemons` are watched: where one ends, the guest would hang."""

    guest: Guest
    shares: Sequence[Share]
    words: str
    drives: Sequence[Path] = ()
    daemons: Sequence["subprocess.Popen[str]"] = ()
    reboots: bool = False
    memory: str = "512M"
    said: str = ""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def __enter__(self) -> "Machine":
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _command(self) -> list[str]:
        words = ["qemu-system-x86_64", "-M", "q35", "-machine", "memory-backend=mem", "-accel", "tcg,thread=multi"]
        words += ["-cpu", "max", "-smp", "2", "-m", self.memory]
        words += ["-object", f"memory-backend-memfd,id=mem,size={self.memory},share=on"]
        words += ["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"]
        words += [] if self.reboots else ["-no-reboot"]
        words += ["-kernel", str(self.guest.vmlinux), "-initrd", str(self.guest.initramfs)]
        words += ["-append", f"console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable {self.words}"]
        for number, share in enumerate(self.shares):
            words += ["-chardev", f"socket,id=c{number},path={share.socket}"]
            words += ["-device", f"vhost-user-fs-pci,chardev=c{number},tag={share.tag},queue-size=1024"]
            words[-1] += f",num-request-queues={share.queues}"
        for number, drive in enumerate(self.drives):
            words += [
                "-drive",
                f"file={drive},format=raw,if=none,id=d{number}",
                "-device",
                f"virtio-blk-pci,drive=d{number}",
            ]
        return words

    def wait_for(self, pattern: str, timeout: float = BOOT_S) -> "re.Match[str]":
        """Until the guest says this on a line; AssertionError with all that it said where it does not."""
        end = time.monotonic() + timeout
        while (found := re.search(pattern, self.said, re.MULTILINE)) is None:
            if not self._more(end - time.monotonic()):
                raise AssertionError(f"the guest never said {pattern!r}:\n{self.said[-4000:]}\n{self._complaints()}")
        return found

    def wait_for_end(self, timeout: float = BOOT_S) -> str:
        """Until it has powered off; all that it said. The script must have succeeded."""
        end = time.monotonic() + timeout
        while self._more(end - time.monotonic()):
            pass
        assert self._process is not None
        assert self._process.wait(10) == 0, self._complaints()
        assert re.search(r"^@status 0\s*$", self.said, re.MULTILINE), self.said[-8000:]
        return self.said

    def _more(self, timeout: float) -> bool:
        """Read on; False where nothing will come."""
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while True:
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            assert not ended, f"{ended} ended under the guest:\n{self.said[-4000:]}"
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"the guest is silent:\n{self.said[-8000:]}\n{self._complaints()}")
            if select.select([self._process.stdout], [], [], min(left, 0.5))[0]:
                break
        data = os.read(self._process.stdout.fileno(), _READ)
        self.said += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def _complaints(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")
