"""What this project wants to reach, and whether a bench reached it.

A target is judged by medians, on every source and row that was measured; the verdicts against the peers say how sure a
difference is.  One that could not be judged says so: it is not reached.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .results import ANSWER, RSS, Results, Table
from .rows import two_client_rows

DATA = (
    "sequential write 1M",
    "sequential read 1M",
    "random read 4k",
    "random write 4k",
    "random read 4k O_DIRECT",
    "random write 4k O_DIRECT",
)
SEQUENTIAL = DATA[:2]
ASKED = ("stat", "create+close", "open+read 4k+close", "unlink")
PEERS = ("passthrough_ll-never", "passthrough_ll-auto", "bindfs", "llfuse")
BYTES_PER_FILE, START_MS = 600, 300
TWO_CLIENTS = 1.5


class Finding(NamedTuple):
    """One comparison: what, the value found, and whether it is good enough."""

    what: str
    value: float
    good: bool


@dataclass(frozen=True)
class Target:
    """Ratios of some rows to somebody's, at least; no rows means all."""

    text: str
    ours: tuple[str, ...]
    to: tuple[str, ...]
    least: float
    rows: tuple[str, ...] = ()


TARGETS = (
    Target("kernel passthrough: data to native", ("ours-never", "ours-auto"), ("native",), 0.9, DATA),
    Target("kernel passthrough: data to any peer", ("ours-never", "ours-auto"), PEERS, 1.0, DATA),
    Target(
        "io_uring: what is asked, to passthrough_ll", ("ours-never", "ours-auto"), ("passthrough_ll-auto",), 1.0, ASKED
    ),
    Target(
        "io_uring: readdir+stat to passthrough_ll",
        ("ours-never", "ours-auto"),
        ("passthrough_ll-auto",),
        3.0,
        ("readdir+stat entries",),
    ),
    Target("neither: any row to passthrough_ll never", ("ours-never-plain",), ("passthrough_ll-never",), 0.5),
    Target("neither: any row to passthrough_ll auto", ("ours-auto-plain",), ("passthrough_ll-auto",), 0.5),
    Target(
        "neither: sequential to passthrough_ll never",
        ("ours-never-plain",),
        ("passthrough_ll-never",),
        0.9,
        SEQUENTIAL,
    ),
    Target(
        "neither: sequential to passthrough_ll auto", ("ours-auto-plain",), ("passthrough_ll-auto",), 0.9, SEQUENTIAL
    ),
    Target("sandbox: any row to unconfined", ("ours-auto",), ("ours-auto-bare",), 0.9),
    Target("sandbox: any row to unconfined, plain", ("ours-auto-plain",), ("ours-auto-plain-bare",), 0.9),
)


def verdicts_on_targets(results: Results, names: Sequence[str]) -> list[str]:
    """A line for each target: reached, or what missed it by how much."""
    lines = [_line(f"{target.text} >= {target.least}", _of_ratios(target, results)) for target in TARGETS]
    ours = [name for name in names if name.startswith("ours-")]
    gains = f"two clients at once >= {TWO_CLIENTS} times one where passthrough_ll is, and never slower than one"
    lines.append(_line(gains, _of_two_clients(results, ours)))
    lines.append(
        _line(f"memory per file <= {BYTES_PER_FILE} bytes", _at_most(results.figures, RSS, ours, BYTES_PER_FILE))
    )
    lines.append(_line(f"start to first answer <= {START_MS} ms", _at_most(results.figures, ANSWER, ours, START_MS)))
    return lines


def _line(text: str, findings: Iterator[Finding]) -> str:
    found = list(findings)
    missed = "; ".join(f"{f.what} {f.value:,.2f}" for f in found if not f.good)
    if not found:
        return f"not judged  {text}"
    return f"MISSED      {text}: {missed}" if missed else f"reached     {text}"


def _of_ratios(target: Target, results: Results) -> Iterator[Finding]:
    for source, table in results.rates.items():
        for ours in target.ours:
            for peer in target.to:
                for row in target.rows or table.values:
                    value = table.ratio(row, ours, peer)
                    if value is not None:
                        yield Finding(f"[{source}] {ours}/{peer} {row}", value, value >= target.least)


def _of_two_clients(results: Results, names: Sequence[str]) -> Iterator[Finding]:
    for source, table in results.rates.items():
        for row, one, two in two_client_rows(list(table.values)):
            gains = [table.gain(f"passthrough_ll-{cache}", one, two) for cache in ("never", "auto")]
            least = TWO_CLIENTS if any(gain is not None and gain >= TWO_CLIENTS for gain in gains) else 1.0
            for name in names:
                value = table.gain(name, one, two)
                if value is not None:
                    yield Finding(f"[{source}] {name} {row}", value, value >= least)


def _at_most(table: Table, row: str, names: Sequence[str], most: float) -> Iterator[Finding]:
    for name in names:
        value = table.median(row, name)
        if value is not None:
            yield Finding(name, value, value <= most)
