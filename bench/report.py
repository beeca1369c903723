"""The printed report: medians, ratios, verdicts, targets, and all that went wrong.

Rules: the median of the runs speaks.  Against a peer, "won" and "lost" are said when every run of one beats every run
of the other; otherwise it is "unclear", which is not the same as equal.  With fewer than five runs nothing is said: of
two times three runs of the very same program, one in ten is apart by chance; of two times five, one in 126.  Whatever
failed or could not be had is listed.
"""

from collections.abc import Callable, Sequence
from statistics import median

from .contender import Contender
from .machine import Machine
from .results import Results, Table
from .rows import two_client_rows
from .targets import verdicts_on_targets

OURS, NATIVE = "ours", "native"
VERDICT_RUNS = 5
WIDTH = 160


def as_text(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender], results: Results) -> str:
    """The report that is printed."""
    parts = [_heading(machine, settings, contenders)]
    for source, table in results.rates.items():
        parts.append(f"== source: {source} ({results.filesystems[source]})")
        parts += _of_source(table, contenders)
    names = [c.name for c in contenders if c.name != NATIVE]
    parts += _tables("start and memory", names, list(results.figures.values), _median_cell(results.figures))
    parts += ["\n".join(["targets (by medians)", *verdicts_on_targets(results, names)]), _troubles(results)]
    return "\n\n".join(part for part in parts if part)


def _heading(machine: Machine, settings: dict[str, object], contenders: Sequence[Contender]) -> str:
    cold = "dropped before each cold row" if machine.caches_dropped else "NOT dropped (needs root): no row is cold"
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    commands = "".join(f"\n{c.name}: {c.detail}" for c in contenders if c.detail)
    return (
        f"{machine.cpu}, {machine.cpus} CPUs, Linux {machine.kernel}, Python {machine.python}, {machine.peers}\n"
        f"{machine.date}, load average at the start {machine.load:.2f}, kernel caches {cold}\n{words}{commands}"
    )


def _of_source(table: Table, contenders: Sequence[Contender]) -> list[str]:
    names, rows = [c.name for c in contenders], list(table.values)
    parts = _tables("per second (MiB/s for 1 MiB rows)", names, rows, _median_cell(table))
    others = [name for name in names if name != NATIVE]
    if others != names:
        parts += _tables("ratio to native", others, rows, lambda row, name: ratio(table.ratio(row, name, NATIVE)))
    if pairs := two_client_rows(rows):
        ends = {row: (one, two) for row, one, two in pairs}
        gains = _tables("two clients to one", names, list(ends), lambda row, name: ratio(table.gain(name, *ends[row])))
        parts += gains
    peers = [c.name for c in contenders if c.family not in (OURS, NATIVE)]
    if peers:
        parts += [_against(table, c.name, peers) for c in contenders if _is_judged(c)]
    return parts


def _is_judged(contender: Contender) -> bool:
    """Both mechanisms, or neither."""
    return contender.family == OURS and not contender.name.endswith(("-nouring", "-nopt"))


def _against(table: Table, ours: str, peers: Sequence[str]) -> str:
    """Ratio and verdict for each row and peer, and the rows that were lost or are unclear, by name."""
    verdicts = {(row, p): verdict(table.runs(row, ours), table.runs(row, p)) for row in table.values for p in peers}

    def cell(row: str, peer: str) -> str:
        said = verdicts[row, peer]
        return f"{ratio(table.ratio(row, ours, peer))} {said}".removesuffix(" -")

    parts = _tables(f"{ours} to", peers, list(table.values), cell)
    if set(verdicts.values()) == {"-"}:
        return "\n".join([*parts, f"no verdicts: they need {VERDICT_RUNS} runs of both"])
    for word in ("lost", "unclear", "won"):
        counts = [sum(verdicts[row, peer] == word for row in table.values) for peer in peers]
        parts.append(f"{word}: " + ", ".join(f"{n} to {peer}" for n, peer in zip(counts, peers, strict=True)))
    return "\n".join(parts)


def _tables(title: str, names: Sequence[str], rows: Sequence[str], cell: Callable[[str, str], str]) -> list[str]:
    """One table, or several where the columns do not fit into WIDTH."""
    if not rows:
        return []
    first = [title, *rows]
    columns = [[name, *(cell(row, name) for row in rows)] for name in names]
    parts: list[list[list[str]]] = [[first]]
    used = len(max(first, key=len))
    for column in columns:
        width = len(max(column, key=len)) + 2
        if used + width > WIDTH and len(parts[-1]) > 1:
            parts.append([first])
            used = len(max(first, key=len))
        parts[-1].append(column)
        used += width
    return [_align(part) for part in parts]


def _align(columns: list[list[str]]) -> str:
    widths = [len(max(column, key=len)) for column in columns]
    lines = []
    for first, *rest in zip(*columns, strict=True):
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _median_cell(table: Table) -> Callable[[str, str], str]:
    def cell(row: str, name: str) -> str:
        runs = table.runs(row, name)
        if not runs:
            return "-"
        value = median(runs)
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

    return cell


def ratio(value: float | None) -> str:
    """Two digits that say something."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def verdict(ours: list[float], theirs: list[float]) -> str:
    """won, lost or unclear, by whether the two ranges of runs are apart; "-" when there are too few runs."""
    if min(len(ours), len(theirs)) < VERDICT_RUNS:
        return "-"
    if min(ours) > max(theirs):
        return "won"
    return "lost" if max(ours) < min(theirs) else "unclear"


def _troubles(results: Results) -> str:
    lines = [f"not measured: {name}: {reason}" for name, reason in results.unavailable.items()]
    lines += [f"FAILED: {failure}" for failure in results.failures]
    return "\n".join(lines)
