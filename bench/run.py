"""`python -m bench.run`: every contender, every row, several interleaved runs, one report.

Rules: one contender is mounted at a time; each run takes all in a new order, the same in every bench, so that neither
drift nor the neighbour favours anyone.  Each pass has a fresh directory in the source and a fresh mount; whatever ends
the bench, nothing stays.
Exit status: 0 when all that could be had was measured, 1 when something failed, 2 for a wrong command line.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from . import machine, memory, report, results
from .archive import Archive, archive
from .clients import Clients
from .contender import Contender
from .ground import SOURCES, Ground, ground, serving, share
from .kernel import can_drop_caches, uring_enabled
from .peers import everyone, quick
from .plot import as_svg
from .processes import Failed, Unavailable, adopt_orphans, build
from .rows import FOLDERS, FULL, QUICK, Scale, Step, steps

ANSWER_STEP = Step("first answer", "statfs", 1, folders=(".",))


class Bench:
    """One bench: what does the work, how much, and what has come out so far."""

    def __init__(self, clients: Clients, scale: Scale) -> None:
        self._clients = clients
        self._scale = scale
        self.results = results.Results()

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

    def measure(self, contenders: Sequence[Contender], kind: str, where: Ground, todo: Sequence[Step]) -> None:
        """All runs on one source, interleaved."""
        table = self.results.rates.setdefault(kind, results.Table())
        self.results.filesystems[kind] = where.filesystem
        for run in range(self._scale.runs):
            for contender in random.Random(run).sample(contenders, len(contenders)):
                place = f"{kind}, run {run + 1}/{self._scale.runs}"
                print(f"{place}: {contender.name}", file=sys.stderr)
                try:
                    with share(where, FOLDERS) as source, serving(contender, source, where.mountpoint) as directory:
                        self._answer(contender, directory)
                        self._rows(contender, directory, todo, table, place)
                except Failed as error:
                    self._failed(place, error)

    def _answer(self, contender: Contender, directory: Path) -> None:
        answered = self._clients.run(contender, ANSWER_STEP, directory).end
        if contender.began:
            figures = self.results.figures
            figures.add(results.START, contender.name, (contender.started - contender.began) * 1000)
            figures.add(results.ANSWER, contender.name, (answered - contender.began) * 1000)

    def _rows(
        self, contender: Contender, directory: Path, todo: Sequence[Step], table: results.Table, place: str
    ) -> None:
        """Every step once; a failure ends its group."""
        ended = set()
        for step in todo:
            if step.group in ended:
                continue
            try:
                rate = self._clients.run(contender, step, directory).rate
                if step.label:
                    table.add(step.label, contender.name, rate)
            except Failed as error:
                ended.add(step.group)
                self._failed(place, error)

    def weigh(self, contenders: Sequence[Contender], where: Ground) -> None:
        """Memory for each remembered file, once for each contender."""
        count = memory.affordable(self._scale.memory)
        with share(where, ("files",)) as source:
            memory.make_files(source / "files", count)
            for contender in contenders:
                print(f"memory for {count} files: {contender.name}", file=sys.stderr)
                try:
                    self._weigh_one(contender, source, where, count)
                except Failed as error:
                    self._failed("memory", error)

    def _weigh_one(self, contender: Contender, source: Path, where: Ground, count: int) -> None:
        with serving(contender, source, where.mountpoint) as directory:
            if not contender.processes():
                return

            def stat(files: int) -> None:
                self._clients.run(contender, Step(f"stat of {files} files", "stat", files), directory)

            found = memory.per_file(contender.processes(), stat, count)
        figures = self.results.figures
        figures.add(results.BEFORE, contender.name, found.before / (1 << 20))
        figures.add(results.RSS, contender.name, found.rss)
        figures.add(results.PSS, contender.name, found.pss)

    def _failed(self, place: str, error: Failed) -> None:
        earlier = None if error.__suppress_context__ else error.__context__
        first = f"{earlier}; then " if isinstance(earlier, Failed) else ""
        self.results.failures.append(f"{place}: {first}{error}")
        print(f"FAILED: {first}{error}", file=sys.stderr)


def choose(only: str | None, one_cpu: bool, rough: bool) -> list[Contender]:
    """The contenders asked for, by name or by family; ValueError names one that does not exist."""
    contenders = everyone(one_cpu)
    if only is None:
        return quick(contenders) if rough else contenders
    wanted = set(only.split(","))
    known = {c.name for c in contenders} | {c.family for c in contenders}
    if unknown := wanted - known:
        raise ValueError(f"no contender {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    return [c for c in contenders if wanted & {c.name, c.family}]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong one ends the program."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Compare passthrough with its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="small counts, tmpfs alone, no variants with one mechanism"
    )
    parser.add_argument("--runs", type=int, metavar="N", help=f"interleaved runs ({FULL.runs}; quick: {QUICK.runs})")
    parser.add_argument("--only", metavar="NAME,...", help="contenders, by name or by family")
    parser.add_argument("--source", metavar="KIND,...", help=f"of {','.join(SOURCES)} (all; quick: {SOURCES[0]})")
    parser.add_argument("--one-cpu", action="store_true", help="keep client and daemons on one CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of the first source there (SVG)")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs: at least 1")
    for file in (options.json, options.plot):
        if file and not file.resolve().parent.is_dir():
            parser.error(f"no directory for {file}")
    options.sources = options.source.split(",") if options.source else SOURCES[:1] if options.quick else SOURCES
    if unknown := set(options.sources) - set(SOURCES):
        parser.error(f"--source: no {', '.join(sorted(unknown))}; there are: {', '.join(SOURCES)}")
    try:
        options.contenders = choose(options.only, options.one_cpu, options.quick)
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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # ours starts as it does where it is installed, from bytecode
    # git asks nobody's configuration
    os.environ |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    if one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: returns the exit status."""
    options = parse(arguments)
    try:
        return compare(options)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    """The whole bench, after the command line."""
    scale = QUICK if options.quick else FULL
    scale = replace(scale, runs=options.runs or scale.runs)
    set_up(options.one_cpu)
    cold = can_drop_caches()
    facts = machine.describe(cold)
    bench = Bench(Clients(build(Path(__file__).with_name("client.c"), "-Wall", "-Wextra"), cold), scale)
    with ExitStack() as stack:
        stack.enter_context(uring_enabled())
        packed = stack.enter_context(archive(scale.tree))
        contenders = bench.prepare(options.contenders)
        run_all(bench, scale, packed, contenders, options.sources)
    settings: dict[str, object] = {**asdict(scale), "one CPU": options.one_cpu}
    print(report.as_text(facts, settings, contenders, bench.results))
    if options.json:
        document = results.as_json(facts, settings, contenders, bench.results)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.plot:
        kind = options.sources[0]
        options.plot.write_text(as_svg(bench.results.rates[kind], [c.name for c in contenders], facts, kind))
    return 1 if bench.results.failures else 0


def run_all(
    bench: Bench, scale: Scale, packed: Archive, contenders: Sequence[Contender], sources: Sequence[str]
) -> None:
    """The rows on every source, memory on the first: that does not depend on it."""
    for number, kind in enumerate(sources):
        todo = steps(scale, packed, len(os.sched_getaffinity(0)), direct=kind == "tmpfs")
        with ground(kind, 2 * scale.mib + 512) as where:
            bench.measure(contenders, kind, where, todo)
            if number == 0:
                bench.weigh(contenders, where)


if __name__ == "__main__":
    sys.exit(main())
