"""What came out: medians, ratios and the verdict, as text and as JSON.

Rules: the median of the runs speaks.  Against a peer, "won" and "lost" are said when every run of one beats every run
of the other; otherwise it is "unclear", which is not the same as equal.  With fewer than five runs nothing is said: of
two times three runs of the very same program, one in ten is apart by chance; of two times five, one in 126.  Whatever
failed or could not be had is listed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from .machine import Machine
from .peers import Contender

OURS, PEER = "ours", "passthrough_ll"
VERDICT_RUNS = 5


@dataclass
class Results:
    """Rates per workload and contender, one value per run (operations a second; MiB a second for 1 MiB rows)."""

    workloads: list[str]
    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, workload: str, contender: str, rate: float) -> None:
        self.rates.setdefault(workload, {}).setdefault(contender, []).append(rate)

    def runs(self, workload: str, contender: str) -> list[float]:
        return self.rates.get(workload, {}).get(contender, [])

    def ratio(self, workload: str, ours: str, theirs: str) -> float | None:
        a, b = self.runs(workload, ours), self.runs(workload, theirs)
        return median(a) / median(b) if a and b else None


def as_json(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender], results: Results) -> object:
    """The same facts for programs; every run is kept."""
    measured = {
        workload: {name: {"median": median(runs), "runs": runs} for name, runs in row.items()}
        for workload, row in results.rates.items()
    }
    return {
        "machine": asdict(machine),
        "settings": settings,
        "contenders": {c.name: {"family": c.family, "cache": c.cache, "command": c.detail} for c in contenders},
        "unavailable": results.unavailable,
        "failures": results.failures,
        "rates": measured,
    }


def as_text(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender], results: Results) -> str:
    """The report that is printed."""
    names = [c.name for c in contenders]
    parts = [_heading(machine, settings, contenders)]
    parts.append(_table("per second (MiB/s for 1 MiB rows)", names, results, lambda w, n: _rate(results.runs(w, n))))
    if "native" in names:
        peers = [name for name in names if name != "native"]
        if peers:
            ratio = _ratio_cell(results, "native")
            parts.append(_table("ratio to native", peers, results, ratio))
    parts += [_against_peer(results, ours, theirs) for ours, theirs in _pairs(contenders)]
    parts.append(_troubles(results))
    return "\n\n".join(part for part in parts if part)


def _heading(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender]) -> str:
    cold = "dropped before each cold row" if machine.caches_dropped else "NOT dropped (needs root): no row is cold"
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    commands = "".join(f"\n{c.name}: {c.detail}" for c in contenders if c.detail)
    return (
        f"{machine.cpu}, {machine.cpus} CPUs, Linux {machine.kernel}, "
        f"Python {machine.python}, libfuse {machine.libfuse}\n"
        f"{machine.date}, load average at the start {machine.load:.2f}, kernel caches {cold}\n{words}{commands}"
    )


def _table(title: str, names: Sequence[str], results: Results, cell: Callable[[str, str], str]) -> str:
    rows = [[title, *names]]
    rows += [[workload, *(cell(workload, name) for name in names)] for workload in results.workloads]
    return _align(rows)


def _align(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _rate(runs: list[float]) -> str:
    return f"{median(runs):,.0f}" if runs else "-"


def _ratio_cell(results: Results, base: str) -> Callable[[str, str], str]:
    return lambda workload, name: _ratio(results.ratio(workload, name, base))


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _pairs(contenders: Sequence[Contender]) -> list[tuple[str, str]]:
    """Ours and the peer in the same cache mode, where both were measured."""
    theirs = {c.cache: c.name for c in contenders if c.family == PEER}
    return [(c.name, theirs[c.cache]) for c in contenders if c.family == OURS and c.cache in theirs]


def verdict(ours: list[float], theirs: list[float]) -> str:
    """won, lost or unclear, by whether the two ranges of runs are apart; "-" when there are too few runs."""
    if min(len(ours), len(theirs)) < VERDICT_RUNS:
        return "-"
    if min(ours) > max(theirs):
        return "won"
    return "lost" if max(ours) < min(theirs) else "unclear"


def _against_peer(results: Results, ours: str, theirs: str) -> str:
    rows = [[f"{ours} to {theirs}", "ratio", "verdict"]]
    ended: dict[str, list[str]] = {"lost": [], "unclear": [], "won": [], "-": []}
    for workload in results.workloads:
        ratio = _ratio(results.ratio(workload, ours, theirs))
        word = verdict(results.runs(workload, ours), results.runs(workload, theirs))
        rows.append([workload, ratio, word])
        ended[word].append(f"{workload} ({ratio})")
    if unsaid := ended.pop("-"):
        ended[f"no verdict (needs {VERDICT_RUNS} runs of both)"] = unsaid
    return "\n".join([_align(rows), *(f"{word}: {'; '.join(items) or 'nothing'}" for word, items in ended.items())])


def _troubles(results: Results) -> str:
    lines = [f"not measured: {name}: {reason}" for name, reason in results.unavailable.items()]
    lines += [f"FAILED: {failure}" for failure in results.failures]
    return "\n".join(lines)
