"""The history of benchmark runs as a picture.

    python perf/plot.py [--history=FILE.csv] [--out=FILE.svg]

A panel for each machine, backend and workload, the runs from left to right in the order of their rows, a colour for
each configuration. A bar is the spread of a run's steps; a hollow point is a run that was not stable, and a cross at
the bottom one that gave no figure.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import history
from history import HistoryError, Row

OUT = Path(__file__).resolve().parent / "history.svg"
# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 960, 330, 90, 20, 44, 100
LEGEND_COLUMNS = 2
STYLE = """
svg { background: #fff; font: 12px sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: bold }
.axis { stroke: #222 }
.grid { stroke: #ddd }
.middle { text-anchor: middle }
.end { text-anchor: end }
"""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values, `most` at most or so, from at or below `low` to at or above `high`."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def text(x: float, y: float, content: str, kind: str = "", extra: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{extra}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, attributes: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {attributes}/>'


def bounds(row: Row) -> tuple[float, float]:
    """Where the spread of a run's steps begins and ends, in tokens per second."""
    rate, spread = float(row["median_tok_s"]), float(row["spread_pct"]) / 100
    return rate / (1 + spread), rate / max(1 - spread, 0.1)


class Panel:
    """The rows of one machine, backend and workload, drawn with its upper edge at `top`."""

    def __init__(self, title: str, rows: Sequence[Row], top: float) -> None:
        self.title = title
        self.rows = rows
        self.top = top
        self.floor = top + PANEL - BOTTOM
        self.configurations = list(dict.fromkeys(configuration(row) for row in rows))
        limits = [limit for row in rows if row["median_tok_s"] for limit in bounds(row)]
        self.ticks = ticks(min(limits, default=0), max(limits, default=1))

    def x(self, index: int) -> float:
        return LEFT + (index + 0.5) / len(self.rows) * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.floor - (rate - low) / (high - low) * (self.floor - self.top - TOP)

    def draw(self) -> list[str]:
        """The elements of the panel."""
        right = WIDTH - RIGHT
        parts = [
            text(LEFT, self.top + 20, self.title, "title"),
            text(right, self.top + 36, "bar: spread of the steps; hollow: unstable; cross: no figure", "end"),
        ]
        for tick in self.ticks:
            parts.append(line(LEFT, self.y(tick), right, self.y(tick), 'class="grid"'))
            parts.append(text(LEFT - 8, self.y(tick) + 4, f"{tick:,.10g}", "end"))
        parts.append(line(LEFT, self.floor, right, self.floor, 'class="axis"'))
        parts.append(line(LEFT, self.top + TOP, LEFT, self.floor, 'class="axis"'))
        middle = (self.top + TOP + self.floor) / 2
        rotated = f' transform="rotate(-90 18 {middle:.1f})"'
        parts.append(text(18, middle, "tokens per second", "middle", rotated))
        parts.append(text((LEFT + right) / 2, self.floor + 56, "run: day and commit", "middle"))
        parts += [self._label(index, row) for index, row in enumerate(self.rows) if index in self._labelled()]
        parts += [self._mark(index, row) for index, row in enumerate(self.rows)]
        return [*parts, *self._legend()]

    def _labelled(self) -> set[int]:
        """As many runs as have room for a label, evenly."""
        step = math.ceil(len(self.rows) / 11)
        return set(range(0, len(self.rows), step))

    def _label(self, index: int, row: Row) -> str:
        x = self.x(index)
        day, commit = (
            row["timestamp"][:10],
            row["git_commit"][:7] + ("*" if row["git_commit"].endswith("dirty") else ""),
        )
        return text(x, self.floor + 18, day, "middle") + text(x, self.floor + 34, commit, "middle")

    def _mark(self, index: int, row: Row) -> str:
        x = self.x(index)
        colour = COLOURS[self.configurations.index(configuration(row)) % len(COLOURS)]
        title = f"<title>{escape(describe(row))}</title>"
        stroke = f'stroke="{colour}" stroke-width="1.5"'
        if not row["median_tok_s"]:
            y = self.floor - 6
            cross = line(x - 4, y - 4, x + 4, y + 4, stroke) + line(x - 4, y + 4, x + 4, y - 4, stroke)
            return f"<g>{title}{cross}</g>"
        low, high = (self.y(limit) for limit in bounds(row))
        bar = line(x, low, x, high, stroke) + "".join(line(x - 3, end, x + 3, end, stroke) for end in (low, high))
        fill = colour if row["status"] == "ok" else "#fff"
        point = f'<circle cx="{x:.1f}" cy="{self.y(float(row["median_tok_s"])):.1f}" r="4" fill="{fill}" {stroke}/>'
        return f"<g>{title}{bar}{point}</g>"

    def _legend(self) -> list[str]:
        parts = []
        for number, name in enumerate(self.configurations):
            x, y = LEFT + number % LEGEND_COLUMNS * 430, self.floor + 76 + number // LEGEND_COLUMNS * 16
            parts.append(f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="4" fill="{COLOURS[number % len(COLOURS)]}"/>')
            parts.append(text(x + 9, y, name if len(name) <= 64 else name[:63] + "…"))
        return parts


def configuration(row: Row) -> str:
    """What distinguishes the rows of a panel."""
    return f"{row['executable']}, {row['steps']} steps, {row['configuration'].strip()}"


def describe(row: Row) -> str:
    """What is shown when the pointer rests on a run."""
    figures = f"{row['median_tok_s']} tokens/s, spread {row['spread_pct']} %" if row["median_tok_s"] else row["reason"]
    circumstances = f"{row['threads']} threads, load {row['load_average']}"
    return f"{row['timestamp']} {row['git_commit']} {row['status']}: {figures}; {circumstances}"


def svg(rows: Sequence[Row]) -> str:
    """The picture of some rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['machine'] or 'unknown machine'}: {row['backend']}, {row['workload']}", []).append(row)
    parts: list[str] = []
    top = 0
    for title, members in groups.items():
        panel = Panel(title, members, top)
        parts += panel.draw()
        top += PANEL + max(0, (len(panel.configurations) - 1) // LEGEND_COLUMNS) * 16
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>Training speed by run</title>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def main() -> int:
    """Read, draw and write; 1 when there is nothing to draw or a file refuses."""
    parser = argparse.ArgumentParser(description="Draw the history of benchmark runs.")
    parser.add_argument("--history", type=Path, default=history.HISTORY)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    try:
        rows = history.read(arguments.history)
        if not rows:
            raise HistoryError(f"{arguments.history} has no rows")
        arguments.out.write_text(svg(rows))
    except (HistoryError, OSError, ValueError) as error:
        print(f"plot: error: {error}.", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {len(rows)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
