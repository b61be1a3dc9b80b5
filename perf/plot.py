"""The history of benchmark runs as a picture, or the losses of one run.

    python perf/plot.py [--history=FILE.csv] [--out=FILE.svg]
    python perf/plot.py --run=RUN_DIR --out=FILE.svg

In the history, a panel for each machine, backend and workload, the runs from left to right in the order of their rows,
a colour for each configuration. A bar is the spread of a run's steps; a hollow point is a run that was not stable, and
a cross at the bottom one that gave no figure.
"""

import argparse
import json
import math
import statistics
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
LOSS_POINTS = 150
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


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'


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
        parts.append(text(LEFT, self.top + 36, "tokens per second"))
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
    return document("Training speed by run", top, parts)


def document(title: str, height: int, parts: Sequence[str]) -> str:
    """The picture that has these elements."""
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def loss_picture(steps: Sequence[dict[str, float]]) -> str:
    """The losses of a run by the rows of its metrics.jsonl: those of training as means of neighbouring steps, those of
    validation as they were measured."""
    width = math.ceil(len(steps) / LOSS_POINTS)
    groups = [steps[start : start + width] for start in range(0, len(steps), width)]
    trained = [tuple(statistics.mean(row[name] for row in group) for name in ("step", "loss")) for group in groups]
    held_out = [(row["step"], row["valLoss"]) for row in steps if row.get("valLoss") is not None]
    losses = [loss for _, loss in (*trained, *held_out)]
    levels, marks = ticks(min(losses), max(losses)), ticks(0, steps[-1]["step"], 8)
    right, floor = WIDTH - RIGHT, PANEL - 50

    def x(step: float) -> float:
        return LEFT + step / marks[-1] * (right - LEFT)

    def y(loss: float) -> float:
        return floor - (loss - levels[0]) / (levels[-1] - levels[0]) * (floor - TOP)

    parts = [text(LEFT, 36, "loss, nats per token"), text((LEFT + right) / 2, floor + 40, "step", "middle")]
    for level in levels:
        parts.append(line(LEFT, y(level), right, y(level), 'class="grid"'))
        parts.append(text(LEFT - 8, y(level) + 4, f"{level:.4g}", "end"))
    parts += [text(x(mark), floor + 18, f"{mark:,.10g}", "middle") for mark in marks]
    parts += [line(LEFT, floor, right, floor, 'class="axis"'), line(LEFT, TOP, LEFT, floor, 'class="axis"')]
    curve = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in trained)
    stroke = f'stroke="{COLOURS[0]}" stroke-width="1.5"'
    parts.append(f'<polyline points="{curve}" fill="none" {stroke}/>')
    parts.append(line(right - 212, TOP + 16, right - 188, TOP + 16, stroke))
    parts.append(text(right - 180, TOP + 20, f"training, means of {width} steps" if width > 1 else "training"))
    if held_out:
        parts += [dot(x(step), y(loss), f"step {step:g}: {loss:.3f}") for step, loss in held_out]
        parts += [dot(right - 200, TOP + 36), text(right - 180, TOP + 40, "validation")]
    return document("Losses of a training run", PANEL, parts)


def dot(x: float, y: float, title: str = "") -> str:
    """A point of the second colour; the title is shown when the pointer rests on it."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[1]}"><title>{escape(title)}</title></circle>'


def read_steps(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl that say a loss."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row.get("loss") is not None]
    if not steps:
        raise HistoryError(f"{run} has no losses")
    return steps


def main() -> int:
    """Read, draw and write; 1 when there is nothing to draw or a file refuses."""
    parser = argparse.ArgumentParser(description="Draw the history of benchmark runs, or the losses of one run.")
    parser.add_argument("--history", type=Path, default=history.HISTORY)
    parser.add_argument("--run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.run and not arguments.out:
        parser.error("--run needs --out=FILE.svg")
    out = arguments.out or OUT
    try:
        rows = read_steps(arguments.run) if arguments.run else history.read(arguments.history)
        if not rows:
            raise HistoryError(f"{arguments.history} has no rows")
        out.write_text(loss_picture(rows) if arguments.run else svg(rows))
    except (HistoryError, OSError, ValueError) as error:
        print(f"plot: error: {error}.", file=sys.stderr)
        return 1
    print(f"{out}: {len(rows)} {'steps' if arguments.run else 'runs'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
