"""Times the rounds of a training step that have matrix products, in today's tiles and in others.

    python perf/helios_rounds.py [--model chars10m] [--precision f16] [--tile NAME]... [--workgroups N]... [--trials 5]
                                 [--steps 2] [--seconds 60] [--device N] [--json FILE]

A round is what runs side by side between two barriers. The step is recorded once for each way to divide its products:
as the backend chooses (today); with the products of a batch's rows in one tile, where its width divides their columns,
for each --tile; with the gradients of weights in one tile and so many parts that they have at most --workgroups
workgroups; with what GELU made kept, not made again (KEEPS_ACTIVATED); with as many parts of such a gradient as leave
places to what runs beside it (ACCOMPANIED_WORKGROUPS). So each product has its place, its operands and its epilogue. In
ways called "longest first" the products of a round begin in that order (LONGEST_FIRST), which needs no recording.

The time of a kind of round is that of one in a chain of all its rounds in the step: a long chain less a short one. All
ways are timed in turn, in another random order each time, and the median is shown, with the extremes. Then whole steps
are timed, those with the best of each product too. A way whose loss or gradient norm is not today's is WRONG. A --tile
is ROWSxCOLUMNSxDEPTH/DOWNxACROSS, the last two of subgroups, and with /2 one that has two steps' operands on their way
from memory. After --seconds no further trial begins.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helios_matmul import tile_named
from helios_operations import Timed

from alpha import backend_helios_linear, backend_helios_matmul, backend_helios_tiles
from alpha.backend_helios_device import Device, choose_device
from alpha.backend_helios_planner import Dispatch, longest_first, needs_barrier
from alpha.backend_helios_program import commands
from alpha.backend_helios_tiles import Division, Hardware, Problem, Tile, choose, division_of, fits
from alpha.bench_cases import GPU_SUBJECTS, MORE_GPU_SUBJECTS, SUBJECTS, Subject
from alpha.config import TrainingConfig, resolve_training
from alpha.installation import commit
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

MODELS = {**SUBJECTS, **GPU_SUBJECTS, **MORE_GPU_SUBJECTS}
TILES = (
    "128x192x32/2x4", "128x192x32/4x2", "192x128x32/4x2", "128x96x32/2x2", "64x192x32/1x4", "64x384x32/1x8",
    "128x256x32/2x4", "256x128x32/4x2",
    "128x128x32/2x2/2", "128x192x32/2x4/2", "192x128x32/4x2/2", "128x96x32/2x2/2", "64x384x32/1x8/2",
)  # fmt: skip
GRADIENT_TILES = ("128x128x32/2x2", "128x128x32/2x2/2", "128x192x32/2x4", "128x192x32/2x4/2")
WORKGROUPS = (108, 264)
LONGEST_FIRST = ", longest first"
CHAIN_SECONDS = 1.5e-3
SMALL = 0.01
"""Rounds whose products have less than this share of the largest one's operations are not timed."""

KEEPING = ((backend_helios_linear, "KEEPS_ACTIVATED", True),)
ACCOMPANIED = ((backend_helios_tiles, "ACCOMPANIED_WORKGROUPS", 1.05),)

Override = Callable[[Problem, Hardware], Division | None]


def as_today(problem: Problem, device: Hardware) -> Division | None:
    """The backend's choice."""
    return None


def of_rows(tile: Tile) -> Override:
    """One tile for the products whose rows are those of a batch."""

    def divide(problem: Problem, device: Hardware) -> Division | None:
        if problem.rows < problem.depth or problem.columns % tile.n or not fits(tile, problem, device):
            return None
        return division_of(tile, 1, problem)

    return divide


def of_weights(tile: Tile, most: int) -> Override:
    """One tile for the gradients of weights, in so many parts that there are at most so many workgroups."""

    def divide(problem: Problem, device: Hardware) -> Division | None:
        if problem.rows >= problem.depth or problem.columns % tile.n or not fits(tile, problem, device):
            return None
        whole = -(-problem.rows // tile.m) * (problem.columns // tile.n)
        return division_of(tile, max(1, most // whole), problem)

    return divide


def is_product(dispatch: Dispatch) -> bool:
    return dispatch.kernel.name in ("matmul_matrix", "matmul_tiled")


def rounds_of(dispatches: Sequence[Dispatch]) -> list[list[Dispatch]]:
    """The dispatches between barriers."""
    rounds: list[list[Dispatch]] = [[]]
    for dispatch, waits in zip(dispatches, needs_barrier(dispatches), strict=True):
        if waits:
            rounds.append([])
        rounds[-1].append(dispatch)
    return rounds


def shape_of(dispatch: Dispatch) -> str:
    """What a product is, but for its tile."""
    constants, arguments = dispatch.constants, dispatch.arguments
    layout = "".join("nt"[int(constants[name])] for name in ("A_ALONG_M", "B_ALONG_K"))
    names = {"HAS_BIAS": "bias", "ACTIVATION": "activation", "HAS_PREACTIVATION": "before", "HAS_RESIDUAL": "residual"}
    names |= {"FACTOR": "slope", "HAS_SUMS": "sums"}
    extras = [text for name, text in names.items() if constants.get(name)]
    shape = "x".join(str(arguments[name]) for name in ("rows", "columns", "depth"))
    split = arguments["splits"] != 1
    return " ".join([shape, layout, *extras, "to parts" if split else "to 16" if constants["C_HALF"] else "to 32"])


def kind_of(dispatches: Sequence[Dispatch], least: float) -> str:
    """What a round with products is; nothing for others."""
    shapes = [shape_of(each).replace("to parts", "to 32") for each in dispatches if is_product(each)]
    if any(is_product(each) and each.operations >= least for each in dispatches):
        return " + ".join(sorted(shapes))
    return "sums of parts" if any(each.kernel.name == "matmul_reduce" for each in dispatches) else ""


@dataclass(frozen=True)
class Choice:
    """How a step is recorded."""

    override: Override = as_today
    settings: tuple[tuple[ModuleType, str, object], ...] = ()
    """Constants of the backend that are other than today's."""


@dataclass
class Way:
    """A recorded step: its dispatches in rounds, and what was timed of it, in seconds."""

    name: str
    choice: Choice
    rounds: list[list[Dispatch]]
    loss: float
    norm: float
    held: Any
    programs: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """For each kind of round, a short chain, a long one, and how many more rounds that has."""
    times: dict[str, list[float]] = field(default_factory=dict)


class Announced(Exception):  # noqa: N818  (a condition)
    """A step was traced, and its kernels are being compiled; nothing waits for them."""


class Recording(Timed):
    """Says what a step will need, or records it."""

    is_announcing = False

    def make_program(self, dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        if self.is_announcing and repeated:
            raise Announced
        return super().make_program(dispatches, repeated)


class Bench:
    """A model on a device."""

    def __init__(self, backend: Recording, subject: Subject) -> None:
        self.backend, self.device, self.subject = backend, backend.device, subject
        self.model = subject.model(backend)
        self.training = resolve_training(TrainingConfig(batch=subject.batch))
        self.optimizer = make_optimizer(self.model.parameters, self.training)
        tokens = subject.random_tokens(subject.batch * (subject.block + 1)).astype("int32")
        windows = tokens.reshape(1, subject.batch, subject.block + 1)
        self.batch = windows[..., :-1], windows[..., 1:]

    def ways(self, choices: dict[str, Choice]) -> list[Way]:
        """Record a step in each way; the kernels of all are compiled side by side. Weights stay as they are."""
        self.backend.is_announcing = True
        for choice in choices.values():
            with contextlib.suppress(Announced):
                self.run(choice)
        self.backend.is_announcing = False
        ways = []
        for name, choice in choices.items():
            step, found = self.run(choice)
            rounds = rounds_of(self.backend.dispatches)
            ways.append(Way(name, choice, rounds, found["loss"], found["gradient_norm"], step))
        return ways

    def run(self, choice: Choice) -> tuple[TrainingStep, dict[str, float]]:
        """A step's first run, and what it found."""

        def chosen(problem: Problem, device: Hardware, part: int = 0, accompanied: bool = False) -> Division:
            return (None if part else choice.override(problem, device)) or choose(problem, device, part, accompanied)

        step = TrainingStep(self.model, self.optimizer, self.training)
        self.backend.synchronize()
        self.backend.dispatches = []
        choose.cache_clear()
        with contextlib.ExitStack() as settings:
            for owner, name, value in ((backend_helios_matmul, "choose", chosen), *choice.settings):
                settings.enter_context(unittest.mock.patch.object(owner, name, value))
            return step, step.run(*self.batch, 0.0).read()

    def prepare(self, way: Way, today: Way | None, steps: int) -> None:
        """Make the programs of what is not as it is today, and of whole steps."""
        largest = max(each.operations for part in way.rounds for each in part)
        kinds = self.kinds(way, SMALL * largest)
        others = {} if today is None else self.kinds(today, SMALL * largest)
        for kind, rounds in kinds.items():
            if today is None or described(rounds) != described(others.get(kind, [])):
                self.add(way, kind, rounds, 0)
        self.add(way, "step", way.rounds, steps)

    def kinds(self, way: Way, least: float) -> dict[str, list[list[Dispatch]]]:
        kinds: dict[str, list[list[Dispatch]]] = {}
        for dispatches in way.rounds:
            if kind := kind_of(dispatches, least):
                kinds.setdefault(kind, []).append(dispatches)
        return kinds

    def add(self, way: Way, kind: str, rounds: Sequence[Sequence[Dispatch]], repeats: int) -> None:
        once = [each for part in rounds for each in part]
        if not repeats:
            program = self.device.create_program(commands(once), repeated=True)
            seconds = min(self.seconds(program) for _ in range(2))
            self.device.free_program(program)
            repeats = max(1, min(64, round(CHAIN_SECONDS / seconds)))
        chains = (self.device.create_program(commands(once * count), repeated=True) for count in (repeats, 3 * repeats))
        short, long = chains
        way.programs[kind] = short, long, 2.0 * repeats * (1 if kind == "step" else len(rounds))

    def seconds(self, program: int) -> float:
        start = time.perf_counter()
        self.device.wait(self.device.submit(program))
        return time.perf_counter() - start

    def trial(self, way: Way, kind: str) -> None:
        short, long, links = way.programs[kind]
        seconds = -self.seconds(short) + self.seconds(long)
        way.times.setdefault(kind, []).append(seconds / links)


def sorted_way(way: Way) -> Way:
    """The same with the longest products of each round first."""
    rounds = [longest_first(each) for each in way.rounds]
    return dataclasses.replace(way, name=way.name + LONGEST_FIRST, rounds=rounds, programs={}, times={})


def described(rounds: Sequence[Sequence[Dispatch]]) -> list[list[str]]:
    """What rounds do, in their order, but for where their operands lie."""
    return [[f"{each} {sorted(each.constants.items())}" for each in part] for part in rounds]


def tried(bench: Bench, ways: Sequence[Way], trials: int, until: float) -> None:
    """Time everything in turn, and again, each time in another order."""
    order = [(way, kind) for way in ways for kind in way.programs]
    for _ in range(trials):
        random.shuffle(order)
        for way, kind in order:
            bench.trial(way, kind)
        if time.perf_counter() > until:
            break


def best_of_each(ways: Sequence[Way], counts: dict[str, int]) -> tuple[Choice, bool]:
    """Each product as in the way whose rounds with it take the least time in all; gradients of weights as in the way
    with the shortest step, and whether that has the longest first."""
    today, kept = ways[0], next(each for each in ways if each.choice.settings == KEEPING)

    def time_of(way: Way, kind: str) -> float:
        return statistics.median(way.times.get(kind) or today.times[kind])

    of_gradients = [each for each in ways if each.name.startswith(("today", "weights"))]
    gradients = min(of_gradients, key=lambda each: time_of(each, "step"))

    def divide(problem: Problem, device: Hardware) -> Division | None:
        if problem.rows < problem.depth:
            return gradients.choice.override(problem, device)
        shape = f"{problem.rows}x{problem.columns}x{problem.depth} "
        kinds = [kind for kind in counts if any(part.startswith(shape) for part in kind.split(" + "))]
        rivals = [each for each in ways if each is today or each.choice.override(problem, device)]
        best = min(rivals, key=lambda each: sum(counts[kind] * time_of(each, kind) for kind in kinds))
        return best.choice.override(problem, device)

    keeping = KEEPING if time_of(kept, "step") < time_of(today, "step") else ()
    return Choice(divide, keeping + gradients.choice.settings), gradients.name.endswith(LONGEST_FIRST)


def tiles_in(way: Way, kind: str, least: float) -> str:
    """The tiles of a kind of round."""
    for part in way.rounds:
        if kind_of(part, least) == kind:
            names = [
                "{TILE_M}x{TILE_N}x{TILE_K}/{SUBGROUPS_M}x{SUBGROUPS_N}/{AHEAD}".format(**each.constants)
                + (f" split {each.arguments['splits']}" if each.arguments["splits"] != 1 else "")
                for each in part
                if each.kernel.name == "matmul_matrix"
            ]
            return ", ".join(names)
    return ""


def report(ways: Sequence[Way], counts: dict[str, int], least: float) -> list[dict[str, Any]]:
    """Print and return what was found."""
    rows = []
    for kind in [*counts, "step"]:
        timed = [each for each in ways if kind in each.times]
        timed.sort(key=lambda each: statistics.median(each.times[kind]))
        print(f"\n{kind}" + (f"  ({counts[kind]} a step)" if kind in counts else ""))
        for way in timed:
            us = [1e6 * each for each in way.times[kind]]
            wrong = abs(way.loss - ways[0].loss) > 1e-3 or abs(way.norm / ways[0].norm - 1) > 1e-2
            tiles = tiles_in(way, kind, least)
            row = {"kind": kind, "way": way.name, "us": round(statistics.median(us), 2), "tiles": tiles, "wrong": wrong}
            rows.append(row | {"all": [round(each, 2) for each in us], "perStep": counts.get(kind, 1)})
            extremes = f"{min(us):.2f} to {max(us):.2f}"
            print(f"  {way.name:<46}{row['us']:>10.2f} us  {extremes:<24}{'WRONG ' if wrong else ''}{tiles}")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="chars10m")
    parser.add_argument("--precision", default="f16", choices=["f16", "bf16"])
    parser.add_argument("--tile", action="append", default=[])
    parser.add_argument("--workgroups", action="append", type=int, default=[])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    info = choose_device(arguments.device)
    bench = Bench(Recording(Device(info), arguments.precision), MODELS[arguments.model])
    print(f"{info.name}, {arguments.model}, precision {arguments.precision}, {commit()}", flush=True)
    choices = {"today": Choice(), "activated kept": Choice(settings=KEEPING)}
    choices["weights accompanied"] = Choice(settings=ACCOMPANIED)
    choices |= {f"rows {name}": Choice(of_rows(tile_named(name))) for name in arguments.tile or TILES}
    for name in arguments.tile or GRADIENT_TILES:
        for most in arguments.workgroups or WORKGROUPS:
            choices[f"weights {name}, {most}"] = Choice(of_weights(tile_named(name), most))
    ways = bench.ways(choices)
    today = ways[0]
    ways += [sorted_way(each) for each in ways if each.name.startswith(("today", "weights"))]
    for way in ways:
        bench.prepare(way, None if way is today else today, arguments.steps)
    print(f"{len(ways)} ways recorded in {time.perf_counter() - start:.0f} s", flush=True)
    least = SMALL * max(each.operations for part in today.rounds for each in part)
    counts = {kind: len(rounds) for kind, rounds in bench.kinds(today, least).items()}
    until = start + arguments.seconds
    tried(bench, ways, arguments.trials, until)
    choice, is_sorted = best_of_each(ways, counts)
    best = bench.ways({"best of each": choice})[0]
    if is_sorted:
        best = sorted_way(best)
    bench.prepare(best, today, arguments.steps)
    last = dataclasses.replace(today, name="today, once more", times={})
    tried(bench, [best, last], arguments.trials, until + arguments.seconds / 3)
    rows = report([*ways, best, last], counts, least)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if arguments.json:
        found = {"device": info.name, "driver": info.driver_info, "model": arguments.model, "commit": commit()}
        arguments.json.write_text(json.dumps(found | {"precision": arguments.precision, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
