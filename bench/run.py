"""`python -m bench.run`: every contender, every workload, several interleaved runs, one report.

Rules: one contender is mounted at a time; each run takes all in a new order, the same in every bench, so that neither
drift nor the neighbour favours anyone.
Everything that touches a mount is the client, a process with a deadline: a daemon that hangs costs its rows, not the
bench.  Each pass has a fresh directory in the source and a fresh mount; whatever ends the bench, nothing stays.
Exit status: 0 when all that could be had was measured, 1 when something failed, 2 for a wrong command line.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from . import machine, report
from .peers import Contender, everyone
from .processes import Failed, Unavailable, adopt_orphans, build, command, detach, last_line

CLIENT_SECONDS = 120.0
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    runs: int
    files: int
    mib: int
    random: int


FULL = Scale(runs=5, files=3000, mib=256, random=20000)
QUICK = Scale(runs=5, files=1000, mib=64, random=5000)


@dataclass(frozen=True)
class Workload:
    """A row: the client's workload, the field of Scale that is its count, and the client's flags."""

    label: str
    name: str
    count: str
    flags: tuple[str, ...] = ()


COLD, WARM, DIRECT = ("-c",), ("-w",), ("-d",)
WORKLOADS = (
    Workload("create+close", "create", "files", COLD),
    Workload("open+write 4k+close", "write4k", "files", COLD),
    Workload("stat", "stat", "files", COLD),
    Workload("stat, warm", "stat", "files", WARM),
    Workload("open+read 4k+close", "read4k", "files", COLD),
    Workload("open+read 4k+close, warm", "read4k", "files", WARM),
    Workload("readdir+stat entries", "readdirstat", "files", COLD),
    Workload("unlink", "unlink", "files", COLD),
    Workload("sequential write 1M", "seqwrite", "mib", WARM),
    Workload("sequential read 1M", "seqread", "mib"),
    Workload("random read 4k", "randread", "random"),
    Workload("random write 4k", "randwrite", "random"),
    Workload("random read 4k O_DIRECT", "randread", "random", DIRECT),
    Workload("random write 4k O_DIRECT", "randwrite", "random", DIRECT),
)


@dataclass(frozen=True)
class Ground:
    """Where it happens: the source directory and the mountpoint, both empty between passes."""

    source: Path
    mountpoint: Path
    filesystem: str


@contextmanager
def ground(mib: int) -> Iterator[Ground]:
    """A tmpfs as the source when we may mount one, else a temporary directory; everything is gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix="passthrough-bench-")).resolve()
    source, mountpoint = work / "source", work / "mountpoint"
    try:
        source.mkdir()
        mountpoint.mkdir()
        mount_tmpfs(source, 2 * mib + 256)
        yield Ground(source, mountpoint, command("stat", "-f", "-c", "%T", source).strip())
    finally:
        detach(mountpoint)
        detach(source)
        for directory in (mountpoint, source, work):  # not rmtree: what is not empty should be looked at
            directory.rmdir()


def mount_tmpfs(directory: Path, mib: int) -> None:
    """Try; without it the source is on whatever holds temporary files, and the report names that file system."""
    try:
        command("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "passthrough-bench", directory)
    except Failed as error:
        print(f"no tmpfs as the source: {error}", file=sys.stderr)


@contextmanager
def share(where: Ground) -> Iterator[Path]:
    """A fresh directory to be shared, with an empty folder for the client in it."""
    path = where.source / "share"
    path.mkdir()
    try:
        (path / "files").mkdir()
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def serving(contender: Contender, source: Path, mountpoint: Path) -> Iterator[Path]:
    """A contender between start and stop."""
    try:
        yield contender.start(source, mountpoint)
    finally:
        contender.stop()


class Bench:
    """One bench: what does the work, how much, and what has come out so far."""

    def __init__(self, client: Path, scale: Scale, cold: bool) -> None:
        self.client = client
        self.scale = scale
        self.cold = cold
        self.results = report.Results([workload.label for workload in WORKLOADS])

    def prepare(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those that can be had; the reason for the others is kept."""
        able = []
        for contender in contenders:
            try:
                contender.prepare()
                able.append(contender)
            except Unavailable as reason:
                self.results.unavailable[contender.name] = str(reason)
        return able

    def measure(self, contenders: Sequence[Contender], where: Ground) -> None:
        """All runs, interleaved."""
        for run in range(self.scale.runs):
            for contender in random.Random(run).sample(contenders, len(contenders)):
                print(f"run {run + 1}/{self.scale.runs}: {contender.name}", file=sys.stderr)
                self._pass(contender, where, run)

    def _pass(self, contender: Contender, where: Ground, run: int) -> None:
        """Every workload once on a fresh mount; a failure ends the pass, except for O_DIRECT, which may be refused."""
        try:
            with share(where) as source, serving(contender, source, where.mountpoint) as directory:
                for workload in WORKLOADS:
                    self._workload(contender, workload, directory / "files", run)
        except Failed as error:
            first = f"{error.__context__}; then " if isinstance(error.__context__, Failed) else ""
            self._failed(run, f"{first}{error}")

    def _workload(self, contender: Contender, workload: Workload, directory: Path, run: int) -> None:
        try:
            self.results.add(workload.label, contender.name, self._rate(contender, workload, directory))
        except Failed as error:
            if workload.flags != DIRECT:
                raise
            self._failed(run, str(error))

    def _failed(self, run: int, reason: str) -> None:
        self.results.failures.append(f"run {run + 1}: {reason}")
        print(f"FAILED: {reason}", file=sys.stderr)

    def _rate(self, contender: Contender, workload: Workload, directory: Path) -> float:
        flags = workload.flags if self.cold or workload.flags != COLD else ()
        count = str(getattr(self.scale, workload.count))
        words = [str(self.client), *flags, str(directory), workload.name, count]
        client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = client.communicate(timeout=CLIENT_SECONDS)
        except BaseException as error:
            client.kill()
            contender.kill()  # else the client may wait for a request that nobody answers, deaf to signals
            client.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{contender.name}: {workload.label}: not done in {CLIENT_SECONDS:.0f} s") from None
            raise
        if client.returncode:
            raise Failed(f"{contender.name}: {workload.label}: {last_line(errors)} {contender.last_words()}".rstrip())
        _, ops, seconds = output.split()
        return int(ops) / float(seconds)


def choose(only: str | None, one_cpu: bool = False) -> list[Contender]:
    """The contenders asked for, by name or by family; ValueError names one that does not exist."""
    contenders = everyone(one_cpu)
    if only is None:
        return contenders
    wanted = set(only.split(","))
    known = {c.name for c in contenders} | {c.family for c in contenders}
    if unknown := wanted - known:
        raise ValueError(f"no contender {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    return [c for c in contenders if wanted & {c.name, c.family}]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Compare passthrough with its peers.")
    parser.add_argument("--quick", action="store_true", help="small counts, under a minute: rough numbers")
    parser.add_argument("--runs", type=int, metavar="N", help=f"interleaved runs ({FULL.runs}; quick: {QUICK.runs})")
    parser.add_argument("--only", metavar="NAME,...", help="contenders, by name or by family")
    parser.add_argument("--one-cpu", action="store_true", help="keep client and daemons on one CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there, too")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs: at least 1")
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: no directory for {options.json}")
    try:
        options.contenders = choose(options.only, options.one_cpu)
    except ValueError as error:
        parser.error(f"--only: {error}")
    return options


def _interrupted(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def set_up(one_cpu: bool) -> None:
    """Process-wide settings, inherited by all that is started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # so that finally clauses run
        signal.signal(number, _interrupted)
    adopt_orphans()
    # passthrough_ll keeps a descriptor per inode and does not raise the limit itself in libfuse 3.14.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return compare(options)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    """The whole bench, after the command line."""
    base = QUICK if options.quick else FULL
    scale = Scale(options.runs or base.runs, base.files, base.mib, base.random)
    set_up(options.one_cpu)
    cold = os.access(DROP_CACHES, os.W_OK)
    facts = machine.describe(cold)
    bench = Bench(build(Path(__file__).with_name("client.c"), "-Wall", "-Wextra"), scale, cold)
    contenders = bench.prepare(options.contenders)
    with ground(scale.mib) as where:
        bench.measure(contenders, where)
    settings: dict[str, object] = {"source": where.filesystem, **asdict(scale), "one CPU": options.one_cpu}
    print(report.as_text(facts, settings, contenders, bench.results))
    if options.json:
        document = report.as_json(facts, settings, contenders, bench.results)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if bench.results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
