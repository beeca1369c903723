"""Who is compared: this project in its variants, and its peers, each as its users run it."""

import os
import sys
from pathlib import Path

from .contender import PROJECT, Contender, Daemon, Native
from .kernel import uring_missing
from .processes import Failed, Unavailable, build, command

PASSTHROUGH = (sys.executable, "-m", "passthrough")
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")  # where Debian puts libfuse's examples
SYSTEM_PYTHON = Path("/usr/bin/python3")  # has Debian's python3-llfuse


class Ours(Daemon):
    """This project: both mechanisms on, or without one (-nouring, -nopt), or neither (-plain); -bare is unconfined.

    They are asked for with "on", which fails where "auto" would quietly do without.
    """

    def __init__(self, cache: str, uring: bool = True, passthrough: bool = True, *, confined: bool = True) -> None:
        variants = {(True, True): "", (False, True): "nouring", (True, False): "nopt", (False, False): "plain"}
        super().__init__("ours", cache, variants[uring, passthrough], "" if confined else "bare")
        self._uring = uring
        self._passthrough = passthrough
        words = {True: "on", False: "off"}
        self._options = f"cache={cache},io_uring={words[uring]},passthrough={words[passthrough]}"
        if not confined:
            self._options += ",sandbox=none,seccomp=none,landlock=off"

    def prepare(self) -> None:
        if self._uring and (reason := uring_missing()):
            raise Unavailable(reason)
        if self._passthrough and os.geteuid() != 0:
            raise Unavailable("kernel passthrough is for root")
        try:
            command(*PASSTHROUGH, "mount", "--help", cwd=PROJECT)
        except Failed as error:
            raise Unavailable(str(error)) from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        return [*PASSTHROUGH, "mount", "-o", self._options, str(source), str(mountpoint)]

    def unmount(self, mountpoint: Path) -> None:
        command(*PASSTHROUGH, "umount", mountpoint, cwd=PROJECT)


class PassthroughLL(Daemon):
    """libfuse's C example, built from the source that libfuse3-dev ships, against the installed library.

    A peer is run in its best setting: its threads help on two CPUs and halve it on one, where -s is better (NOTES.md).
    """

    foreground = True

    def __init__(self, cache: str, single_thread: bool = False) -> None:
        super().__init__("passthrough_ll", cache)
        self._cache = cache
        self._threads = ["-s"] if single_thread else []
        self._binary = Path("passthrough_ll")

    def prepare(self) -> None:
        source = EXAMPLES / "passthrough_ll.c"
        if not source.exists():
            raise Unavailable(f"{source} is missing: install libfuse3-dev")
        try:
            flags = command("pkg-config", "--cflags", "--libs", "fuse3").split()
            self._binary = build(source, f"-I{EXAMPLES}", *flags)
        except Failed as error:
            raise Unavailable(str(error)) from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        options = f"source={source},cache={self._cache}"
        return [str(self._binary), "-f", *self._threads, "-o", options, str(mountpoint)]


class Bindfs(Daemon):
    """bindfs as Debian packages it, single-threaded: its manual advises against --multithreaded."""

    foreground = True

    def __init__(self) -> None:
        super().__init__("bindfs")

    def prepare(self) -> None:
        try:
            command("bindfs", "--version")
        except Failed as error:
            raise Unavailable(f"install bindfs ({error})") from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        return ["bindfs", "-f", str(source), str(mountpoint)]


class Llfuse(Daemon):
    """llfuse_peer.py on Debian's python3-llfuse."""

    foreground = True

    def __init__(self) -> None:
        super().__init__("llfuse")

    def prepare(self) -> None:
        try:
            command(SYSTEM_PYTHON, "-c", "import llfuse")
        except Failed as error:
            raise Unavailable(f"install python3-llfuse ({error})") from error

    def mount_command(self, source: Path, mountpoint: Path) -> list[str]:
        return [str(SYSTEM_PYTHON), "-m", "bench.llfuse_peer", str(source), str(mountpoint)]


MODES = ("never", "auto")
VARIANTS = ((True, True), (False, True), (True, False), (False, False))  # FUSE over io_uring, kernel passthrough


def everyone(one_cpu: bool = False) -> list[Contender]:
    """All contenders, in the report's order."""
    ours = [Ours(cache, *variant) for cache in MODES for variant in VARIANTS]
    ours += [Ours("auto", *variant, confined=False) for variant in (VARIANTS[0], VARIANTS[-1])]
    return [Native(), *ours, *(PassthroughLL(cache, one_cpu) for cache in MODES), Bindfs(), Llfuse()]


def quick(contenders: list[Contender]) -> list[Contender]:
    """Without the variants that have one mechanism of two, and without what costs most and says least."""
    return [c for c in contenders if not c.name.endswith(("-nouring", "-nopt", "auto-plain", "-bare"))]
