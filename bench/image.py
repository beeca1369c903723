"""`python -m bench.image`: an exported image beside its peers, by fio, in one run: every row for every contender.

Rules: one contender is mounted at a time; runs are interleaved, and the median speaks. Rows through O_DIRECT measure
the exporter, not a page cache; the buffered ones are what a user sees who reads or writes an image once, in order.
Exit status: 0 when all that could be had was measured, 1 when something failed.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from . import machine
from .image_peers import CONTENDERS, NBD, RAW, Exporter, nbd_server
from .kernel import uring_enabled
from .processes import Failed, Unavailable, adopt_orphans, command

MIB = 1 << 20
SIZE_MIB = 512


@dataclass(frozen=True)
class Row:
    """One fio job; the result is MiB/s for 1 MiB blocks, else requests a second."""

    label: str
    words: tuple[str, ...]
    large: bool


def rows() -> list[Row]:
    """Buffered and in order once; then past all caches, sequential and random, depth 1 and 32."""
    found = [
        Row(f"sequential {kind}, buffered, once", (f"--rw={kind}", "--bs=1M", "--ioengine=psync"), True)
        for kind in ("read", "write")
    ]
    for depth in (1, 32):
        engine = ("--ioengine=psync",) if depth == 1 else ("--ioengine=libaio", f"--iodepth={depth}")
        for pattern, block, large in (("", "1M", True), ("rand", "4k", False)):
            for kind in ("read", "write", "rw"):
                name = f"{'random' if pattern else 'sequential'} {'mixed' if kind == 'rw' else kind} {block}"
                words = (f"--rw={pattern}{kind}", f"--bs={block}", "--direct=1", *engine)
                found.append(Row(f"{name}, depth {depth}", words, large))
    return found


def measure(row: Row, file: Path, seconds: int) -> float:
    """One job on the file."""
    timed = () if "--direct=1" not in row.words else (f"--runtime={seconds}", "--time_based")
    words = ("fio", "--name=x", f"--filename={file}", f"--size={SIZE_MIB}M", "--fallocate=none", "--output-format=json")
    output = command(*words, *row.words, *timed)
    job = json.loads(output[output.index("{") :])["jobs"][0]
    if row.large:
        return float(job["read"]["bw"] + job["write"]["bw"]) / 1024
    return float(job["read"]["iops"] + job["write"]["iops"])


Values = dict[str, dict[str, list[float]]]
"""By row, then by contender."""


@dataclass(frozen=True)
class Target:
    """`ours` is to be at least `ratio` times `peer` in the rows whose labels, with a ; at the end, hold `rows`."""

    ours: str
    peer: str
    ratio: float
    rows: str


TARGETS = (
    Target("ours", "native", 0.9, ""),
    Target("ours", "qemu", 10, "buffered"),
    Target("ours", "qemu", 10, "random"),
    Target("ours-daemon", "qemu", 2, "buffered"),
    Target("ours-daemon", "qemu", 1, "4k, depth 1;"),
    Target("ours-daemon", "qemu", 2, "4k, depth 32;"),
    Target("ours-daemon-rings", "qemu", 2, "buffered"),
    Target("ours-daemon-rings", "qemu", 1, "4k, depth 1;"),
    Target("ours-daemon-rings", "qemu", 2, "4k, depth 32;"),
    Target("ours-nbd", "nbdfuse", 1, ""),
    Target("ours-nbd-rings", "nbdfuse", 1, ""),
)


def judged(values: Values) -> list[str]:
    """A line for each target and row."""
    lines = []
    for target in TARGETS:
        for label, columns in values.items():
            if _both(columns, target) and target.rows in f"{label};":
                ratio = median(columns[target.ours]) / median(columns[target.peer])
                word = "reached" if ratio >= target.ratio else "MISSED "
                lines.append(f"{word}  {target.ours} {ratio:6.2f} x {target.peer} (>= {target.ratio}): {label}")
    return lines


def _both(columns: dict[str, list[float]], target: Target) -> bool:
    return bool(columns.get(target.ours)) and bool(columns.get(target.peer))


def table(values: Values, names: Sequence[str]) -> str:
    """The medians, for people."""
    width = max(len(label) for label in values)
    lines = [f"{'':{width}}" + "".join(f"{name:>20}" for name in names)]
    for label, columns in values.items():
        cells = [f"{median(columns[name]):>20,.0f}" if columns.get(name) else f"{'-':>20}" for name in names]
        lines.append(f"{label:{width}}" + "".join(cells))
    return "\n".join(lines)


@contextmanager
def ground() -> Iterator[Path]:
    """A directory on a tmpfs of its own, so that no disk is measured."""
    work = Path(tempfile.mkdtemp(prefix="passthrough-bench-"))
    try:
        command("mount", "-t", "tmpfs", "-o", f"size={3 * SIZE_MIB}m", "passthrough-bench", work)
        try:
            yield work
        finally:
            command("umount", "-l", work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(contenders: Sequence[Exporter], todo: Sequence[Row], runs: int, seconds: int, failures: list[str]) -> Values:
    """All runs, interleaved."""
    values: Values = {row.label: {} for row in todo}
    with ExitStack() as stack:
        work = stack.enter_context(ground())
        image, file = work / "image", work / "file"
        command("dd", "if=/dev/urandom", f"of={image}", "bs=1M", f"count={SIZE_MIB}", "status=none")
        file.touch()
        socket = stack.enter_context(nbd_server(work, image))
        for number in range(runs):
            for contender in random.Random(number).sample(contenders, len(contenders)):
                print(f"run {number + 1}/{runs}: {contender.name}", file=sys.stderr)
                try:
                    with contender.serving(image, file, socket) as point:
                        for row in todo:
                            values[row.label].setdefault(contender.name, []).append(measure(row, point, seconds))
                except Unavailable as error:
                    failures.append(f"{contender.name} cannot be had: {error}")
                except Failed as error:
                    failures.append(f"{contender.name}: {error}")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.image", description="Compare exported images, by fio.")
    parser.add_argument("--quick", action="store_true", help="one run, a second for each row")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="interleaved runs; default: 3")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(one.name for one in CONTENDERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there, too")
    options = parser.parse_args(arguments)
    wanted = set(options.only.split(",")) if options.only else {one.name for one in CONTENDERS}
    if unknown := wanted - {one.name for one in CONTENDERS}:
        parser.error(f"--only: no {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("mounting a tmpfs and kernel passthrough need root")
    adopt_orphans()
    contenders = [one for one in CONTENDERS if one.name in wanted]
    failures: list[str] = []
    facts = machine.describe(caches_dropped=False)
    with uring_enabled():
        values = run(contenders, rows(), 1 if options.quick else options.runs, 1 if options.quick else 2, failures)
    print(f"{facts.date}, {facts.cpu}, {facts.cpus} CPUs, Linux {facts.kernel}, load {facts.load}")
    print("1 MiB rows in MiB/s, 4 KiB rows in requests a second; medians\n")
    for names in (RAW, NBD):
        shown = [one.name for one in contenders if one.name in names]
        if shown:
            print(table(values, shown), end="\n\n")
    print("\n".join([*judged(values), *failures]))
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(facts), "rows": values, "failures": failures}, indent=2))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
