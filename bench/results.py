"""What came out, as data: every run of every row, on every source, and the figures that are no rates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from .contender import Contender
from .machine import Machine

START, ANSWER = "start to mounted, ms", "start to first answer, ms"
BEFORE, RSS, PSS = "memory at first, MiB", "RSS per file, bytes", "PSS per file, bytes"


@dataclass
class Table:
    """Values per row and contender, one per run."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, contender: str, value: float) -> None:
        """One more run."""
        self.values.setdefault(row, {}).setdefault(contender, []).append(value)

    def runs(self, row: str, contender: str) -> list[float]:
        """In the order in which they ran; empty where nothing was measured."""
        return self.values.get(row, {}).get(contender, [])

    def median(self, row: str, contender: str) -> float | None:
        """What speaks for the runs; None where there are none."""
        runs = self.runs(row, contender)
        return median(runs) if runs else None

    def ratio(self, row: str, ours: str, theirs: str) -> float | None:
        """One contender to another, by medians."""
        return _divide(self.median(row, ours), self.median(row, theirs))

    def gain(self, contender: str, one: str, two: str) -> float | None:
        """Row two to row one, of the same contender."""
        return _divide(self.median(two, contender), self.median(one, contender))

    def as_json(self) -> dict[str, dict[str, dict[str, object]]]:
        """Every run, and its median."""
        return {
            row: {name: {"median": median(runs), "runs": runs} for name, runs in columns.items()}
            for row, columns in self.values.items()
        }


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


@dataclass
class Results:
    """All of one bench. rates are per second (MiB a second for 1 MiB rows), by source."""

    rates: dict[str, Table] = field(default_factory=dict)
    figures: Table = field(default_factory=Table)
    filesystems: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def as_json(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender], results: Results) -> object:
    """For programs; every run is kept."""
    return {
        "machine": asdict(machine),
        "settings": settings,
        "contenders": {c.name: {"family": c.family, "command": c.detail} for c in contenders},
        "unavailable": results.unavailable,
        "failures": results.failures,
        "filesystems": results.filesystems,
        "rates": {source: table.as_json() for source, table in results.rates.items()},
        "figures": results.figures.as_json(),
    }
