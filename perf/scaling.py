"""How a training step's time and memory grow with batch, block, width and layers, beside a floor; as a picture.

    python perf/scaling.py [--backend=helios] [--dtype=f16] [--device=N] [--subject=gpt2-124m] [--seconds=1]
        [--out=FILE.svg] [--json=FILE]

One of the four changes at a time, by factors of two from an eighth of the subject's to the subject's own (see `alpha
bench` for the subjects). The floor is the larger of two times: that of the multiplications and additions, 6 a weight
and token and 6 for each pair of tokens and unit of width in attention (forward and backward, causal), at the rate of
the fastest of this backend's own layers, square ones and those as wide as the subject's; and that of all the bytes that
the step's plan holds, written and read once each, at the rate of its copy or addition of large arrays, whichever is
faster. Both are recorded programs, as a step is. So a step is held against what the same kernels reach at their best,
not against what a data sheet says. The files are written after each of the four.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import plot
from plot import COLOURS, LEFT, PANEL, RIGHT, TOP, WIDTH, line, text

from alpha import backends
from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.bench import Case, Limits, keep_busy, measure, warm_up_seconds
from alpha.bench_cases import GPU_SUBJECTS, SUBJECTS, Subject, training_step
from alpha.bench_operations import normal
from alpha.config import TrainingConfig, resolve_training
from alpha.gpt import GPT
from alpha.installation import commit
from alpha.machine import processor
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

AXES = ("batch", "block", "dim", "layers")
FACTORS = (8, 4, 2, 1)
TRIES = 5
LINKS = 4

FLOOR_STROKE = f'stroke="{COLOURS[0]}" stroke-width="1.5"'

Row = dict[str, Any]


def link_seconds(backend: Backend, link: Callable[[], object], seconds: float) -> float:
    """Seconds of one of LINKS in a recorded program, which is replayed without a wait between: outside of one, what the
    host does for an operation and the memory for its result may take longer than the operation."""

    def links(one: Array) -> Array:
        for _ in range(LINKS):
            link()
        return backend.add(one, one)

    one, program = backend.zeros((1,)), backend.record(links)

    def many(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = program(one)
        backend.to_numpy(result)  # waits for all before
        return (time.perf_counter() - start) / (count * LINKS)

    many(1)  # compiles, which may take longer than the warm-up
    keep_busy(lambda: many(1), warm_up_seconds(backend))
    count = max(1, round(seconds / TRIES / many(1) / LINKS))
    return min(many(count) for _ in range(TRIES))


def product_rate(backend: Backend, rows: int, width: int, hidden: int, seconds: float) -> float:
    """Operations per second of two linear layers, from `width` to `hidden` and back, in the dtypes of a step."""
    values = normal(backend, (rows, width), (width, hidden), (hidden, width))
    dtypes = (backend.activation_dtype or np.float32, backend.weight_dtype, backend.weight_dtype)
    x, up, down = (backend.cast(value, dtype) for value, dtype in zip(values, dtypes, strict=True))

    def layers() -> None:
        backend.linear(backend.linear(x, up, training=True)[0], down, training=True)

    return 4 * rows * width * hidden / link_seconds(backend, layers, seconds)


def ceilings(backend: Backend, subject: Subject, side: int, seconds: float) -> tuple[float, float]:
    """Operations per second of the fastest layers, and bytes per second of the faster of copy and addition; arrays of
    these have four times the numbers of a square matrix, and operands and result count once each."""
    hidden = 4 * subject.dim
    shapes = [(side, side, side), (subject.tokens, subject.dim, hidden), (subject.tokens, hidden, hidden)]
    rate = max(product_rate(backend, *shape, seconds) for shape in shapes)
    x, y = backend.zeros((4 * side**2,)), backend.zeros((4 * side**2,))  # any numbers take as long
    copied = 2 * 16 * side**2 / link_seconds(backend, lambda: backend.copy_into(x, y), seconds)
    added = 3 * 16 * side**2 / link_seconds(backend, lambda: backend.add_into(x, y), seconds)
    return rate, max(copied, added)


def operations(subject: Subject) -> float:
    """Multiplications and additions of one step."""
    positions = subject.block * subject.dim  # the table of positions, which nothing is multiplied with
    weights = subject.parameters - positions
    return subject.tokens * (6 * weights + 6 * subject.layers * subject.block * subject.dim)


def planned(backend: Backend, subject: Subject, dtype: str) -> int:
    """Bytes that a step needs; 0 where the backend has no plan of them."""
    training = resolve_training(TrainingConfig(batch=subject.batch, dtype=dtype))
    model = GPT(backend, subject.config, subject.vocabulary)  # a plan asks for no values: drawing them takes seconds
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    return sum(step.plan(subject.batch).values())


def subjects(whole: Subject, axis: str) -> list[Subject]:
    """The whole subject and smaller ones along an axis; heads keep their width."""
    found = []
    for factor in FACTORS:
        value = max(1, getattr(whole, axis) // factor)
        changed = dataclasses.replace(whole, **{axis: value})
        if axis == "dim":
            changed = dataclasses.replace(changed, heads=max(1, whole.heads * value // whole.dim))
            changed = dataclasses.replace(changed, dim=whole.dim // whole.heads * changed.heads)
        if changed not in found:
            found.append(changed)
    return found


def picture(title: str, rows: Sequence[Row]) -> str:
    """A panel for each axis measured so far: milliseconds with their floor, and GiB where the plan is known."""
    half, height = WIDTH / 2, PANEL - 50
    legend = WIDTH - RIGHT - 200
    parts = [text(20, 24, f"{title}: milliseconds of a training step", "title")]
    parts += [plot.dot(legend + 12, 20), text(legend + 24, 24, "measured")]
    parts += [line(legend + 112, 20, legend + 136, 20, FLOOR_STROKE), text(legend + 144, 24, "floor")]
    for number, axis in enumerate(dict.fromkeys(row["axis"] for row in rows)):
        left, top = LEFT + number % 2 * half, 20 + number // 2 * height
        members = [row for row in rows if row["axis"] == axis]
        parts += panel(axis, members, left, left + half - LEFT - RIGHT, top, top + height - 40)
    return plot.document(title, 40 + 2 * height, parts)


def panel(axis: str, rows: Sequence[Row], left: float, right: float, top: float, floor: float) -> list[str]:
    """Measured points and the line of the floor, both from zero; below them the values of the axis, and GiB."""
    ys = plot.ticks(0, max(max(row["milliseconds"], row["floorMilliseconds"]) for row in rows), 4)
    widest = max(row[axis] for row in rows)

    def place(row: Row, what: str) -> tuple[float, float]:
        return left + row[axis] / widest * (right - left), floor - row[what] / ys[-1] * (floor - top - TOP)

    parts = []
    for tick in ys:
        y = floor - tick / ys[-1] * (floor - top - TOP)
        parts += [line(left, y, right, y, 'class="grid"'), text(left - 8, y + 4, f"{tick:g}", "end")]
    parts += [line(left, floor, right, floor, 'class="axis"'), line(left, top + TOP, left, floor, 'class="axis"')]
    points = " ".join("{:.1f},{:.1f}".format(*place(row, "floorMilliseconds")) for row in rows)
    parts.append(f'<polyline points="{points}" fill="none" {FLOOR_STROKE}/>')
    parts.append(text(left - 8, floor + 18, axis, "end"))
    if rows[0]["mebibytes"]:
        parts.append(text(left - 8, floor + 36, "GiB", "end"))
    for row in rows:
        x, y = place(row, "milliseconds")
        parts += [plot.dot(x, y, describe(row)), text(x, floor + 18, str(row[axis]), "middle")]
        if row["mebibytes"]:
            parts.append(text(x, floor + 36, f"{row['mebibytes'] / 1024:.2g}", "middle"))
    return parts


def describe(row: Row) -> str:
    """A row in words."""
    return f"{row['shape']}: {row['milliseconds']:.3f} ms, floor {row['floorMilliseconds']:.3f} ms"


def point(backend: Backend, subject: Subject, arguments: argparse.Namespace, rate: float, bandwidth: float) -> Row:
    """Measure one subject, beside its floor from operations and bytes per second."""
    held = planned(backend, subject, arguments.dtype)
    [found] = measure([Case("train/scaling", training_step(subject))], backend, Limits(seconds=arguments.seconds))
    floor = max(operations(subject) / rate, 2 * held / bandwidth)
    row = {"shape": str(subject), **dataclasses.asdict(subject)}
    return row | {"milliseconds": 1e3 * found.median, "floorMilliseconds": 1e3 * floor, "mebibytes": held / 2**20}


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="helios")
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--subject", default="gpt2-124m", choices=SUBJECTS | GPU_SUBJECTS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring, for each point")
    parser.add_argument("--side", type=int, default=4096, help="of square matrices for the ceilings")
    parser.add_argument("--out", type=Path, help="the picture, SVG")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    backend = backends.create(arguments.backend, arguments.device, arguments.dtype)
    whole = (SUBJECTS | GPU_SUBJECTS)[arguments.subject]
    rate, bandwidth = ceilings(backend, whole, arguments.side, arguments.seconds)
    print(f"product {rate / 1e9:,.0f} GFLOP/s, copy or addition {bandwidth / 1e9:,.0f} GB/s, {commit()}", flush=True)
    on = backends.availability()["helios"].partition(", ")[2] if backend.name == "helios" else processor()
    rows: list[Row] = []
    points: dict[Subject, Row] = {}  # the whole subject is a point of all four
    for axis in AXES:
        for subject in subjects(whole, axis):
            if subject not in points:
                points[subject] = point(backend, subject, arguments, rate, bandwidth)
            row = {"axis": axis, **points[subject]}
            rows.append(row)
            ratio = row["floorMilliseconds"] / row["milliseconds"]
            print(f"{axis:<7}{describe(row)} ({ratio:.2f}), {row['mebibytes']:,.0f} MiB", flush=True)
        if arguments.json:
            found = {
                "on": on,
                "commit": commit(),
                "operationsPerSecond": rate,
                "bytesPerSecond": bandwidth,
                "rows": rows,
            }
            arguments.json.write_text(json.dumps(found, indent=1))
        if arguments.out:
            arguments.out.write_text(picture(f"{arguments.subject}, {arguments.dtype}, {on}", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
