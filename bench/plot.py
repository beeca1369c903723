"""The picture: each row's ratio to native, ours against the peers, as bars on a logarithmic scale, in plain SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from xml.sax.saxutils import escape

from .machine import Machine
from .results import Table

NATIVE = "native"
COLORS = {
    "ours-never": "#0b5fa5",
    "ours-auto": "#5aa7e0",
    "passthrough_ll-never": "#8a4b08",
    "passthrough_ll-auto": "#e08a2e",
    "bindfs": "#8c8c8c",
    "llfuse": "#bdbdbd",
}
LEFT, RIGHT, TOP, BOTTOM = 190, 60, 78, 48
WIDTH, BAR, GAP = 860, 8, 10
INK, FAINT = "#222222", "#dddddd"


@dataclass(frozen=True)
class Scale:
    """From ratios to pixels: whole decades that hold all ratios and 1."""

    low: int
    high: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Scale":
        """The smallest one for these."""
        logs = [log10(value) for value in ratios] + [0.0]
        low, high = min(logs), max(logs)
        return cls(int(low // 1), int(-(-high // 1)))

    def x(self, ratio: float) -> float:
        """Where a ratio lies, from the left."""
        return LEFT + (log10(ratio) - self.low) / max(1, self.high - self.low) * (WIDTH - LEFT - RIGHT)


def as_svg(table: Table, contenders: Sequence[str], machine: Machine, source: str) -> str:
    """A document of its own. Rows that native has not are left out, and so are the rows of one and two clients."""
    names = [name for name in COLORS if name in contenders]
    rows = [row for row in table.values if not row.endswith(" client") and not row.endswith(" clients")]
    ratios = {(row, name): table.ratio(row, name, NATIVE) for row in rows for name in names}
    rows = [row for row in rows if any(ratios[row, name] for name in names)]
    scale = Scale.of([value for value in ratios.values() if value])
    height = TOP + len(rows) * (len(names) * BAR + GAP) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 22, f"Speed as a ratio to the {source} itself (1 = native, longer is better)", size=15),
        _text(
            12,
            height - 12,
            f"Linux {machine.kernel}, {machine.cpus} CPUs, Python {machine.python}, {machine.peers}; "
            f"{machine.date[:10]}",
            size=10,
        ),
        *_legend(names),
        *_grid(scale, height - BOTTOM),
    ]
    top = TOP
    for row in rows:
        lines += _group(row, [(COLORS[name], ratios[row, name]) for name in names], scale, top)
        top += len(names) * BAR + GAP
    return "\n".join([*lines, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = 12.0
    for name in names:
        yield _rectangle(x, 36, 10, 10, COLORS[name])
        yield _text(x + 14, 45, name)
        x += 30 + 6.8 * len(name)


def _grid(scale: Scale, bottom: float) -> Iterator[str]:
    for decade in range(scale.low, scale.high + 1):
        x = scale.x(10.0**decade)
        color = INK if decade == 0 else FAINT
        yield f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{color}"/>'
        yield _text(x, TOP - 12, f"{10.0**decade:g}", "middle", 11)
        yield _text(x, bottom + 14, f"{10.0**decade:g}", "middle", 11)


def _group(row: str, bars: Sequence[tuple[str, float | None]], scale: Scale, top: float) -> Iterator[str]:
    yield _text(LEFT - 8, top + len(bars) * BAR / 2 + 4, row, "end")
    for number, (color, ratio) in enumerate(bars):
        if ratio:
            y, end = top + number * BAR, scale.x(ratio)
            yield _rectangle(LEFT, y, end - LEFT, BAR - 1, color)
            # a white edge, so that the line at 1 does not cross the number
            label = _text(end + 3, y + BAR - 1.5, f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}", size=8)
            yield label.replace("<text", '<text stroke="#ffffff" stroke-width="3" paint-order="stroke"', 1)
