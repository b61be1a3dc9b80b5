"""`alpha bench`: how fast this machine computes."""

import dataclasses
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS
from alpha.errors import AlphaError, UsageError
from alpha.option import option
from alpha.terminal import print_json, print_table, print_text, print_warning

if TYPE_CHECKING:
    from alpha.bench import Case, Measurement

ALL = "all"
SUITES = ("ops", "e2e", "serve", "train", ALL)

_RIGHT = ("reps", "median", "±", "rate", "per step")
_BUSY_LOAD = 0.5


@dataclass(frozen=True)
class BenchOptions:
    """The options of `alpha bench`."""

    suite: str = option(ALL, "What to measure.", choices=SUITES)
    match: str = option("", "Only the case of this name, or those whose names contain it.")
    iters: int = option(100, "Repetitions of each measurement, at most.", minimum=1)
    seconds: float = option(2.0, "Time for the repetitions of each measurement; three are made anyway.", minimum=0)
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, "CPU threads; 0 = the fastest number for each case.", minimum=0, maximum=1024)
    out: str = option("", "Write the measurements to this JSON file, too.", metavar="FILE")
    json: bool = option(False, "Print JSON.")


OPTIONS = (BenchOptions,)
DETAILS = """
Suites: ops, the operations of training; e2e, prefill, decoding, evaluation and tokenizers; serve,
an engine with many requests, of which one reads so many tokens and draws so many; train, whole
steps. Each case is repeated before it is measured: for 0.1 s, on a GPU for 0.5 s. Columns: the
median of the repetitions, the median distance from it, and for operations the time in a training
step. The rate of decoding and of the mixture counts tokens drawn, the others tokens read.

Examples:
  alpha bench --suite=train --threads=1
  alpha bench --match=/quickstart/layer_norm --iters=1000 --out=layer_norm.json
"""


def run(given: dict[str, Any]) -> None:
    """Measure and print. Raises UsageError when no case is chosen, before anything is measured."""
    options = BenchOptions(**given)
    out = Path(options.out)
    if options.out and out.is_dir():
        raise AlphaError(f"--out={out} is a folder; name a file in it.")
    from alpha import backends, bench, files

    options = dataclasses.replace(options, backend=backends.resolve(options.backend, options.dtype, options.device))
    cases = _chosen(options)
    for warning in _warnings():
        print_warning(warning)
    backend = backends.create(options.backend, options.device, options.dtype)
    limits = bench.Limits(options.iters, options.seconds, options.threads)
    circumstances = bench.circumstances(backend)
    if not options.json:
        print_text("\n".join(f"{name:<14}{value}" for name, value in circumstances.items()))
    rows = []
    for title, group in itertools.groupby(cases, lambda case: case.name.rpartition("/")[0]):
        measurements = list(bench.measure(list(group), backend, limits))
        rows += [circumstances | each.row() for each in measurements]
        if not options.json:
            _print_group(title, measurements)
    if options.out:
        files.write_json(out, rows)
    if options.json:
        print_json(rows)


def _chosen(options: BenchOptions) -> "list[Case]":
    from alpha.bench_cases import all_cases

    cases = [case for case in all_cases(options.backend) if options.suite in (case.suite, ALL)]
    cases = [case for case in cases if case.name == options.match] or [
        case for case in cases if options.match in case.name
    ]
    if not cases:
        raise UsageError(f"No case of --suite={options.suite} has {options.match!r} in its name; leave out --match.")
    return cases


def _warnings() -> Iterable[str]:
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        yield f"The load average is {load:.2f}: other processes are running, and the figures will show it."
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if forced:
        yield f"OPENBLAS_CORETYPE={forced} is set: OpenBLAS uses those kernels, whatever this CPU can do."


def _print_group(title: str, measurements: "list[Measurement]") -> None:
    print_text("")
    print_table(
        (title, "shape", "threads", *_RIGHT),
        [
            [
                each.case.name.removeprefix(f"{title}/"),
                each.case.work.shape,
                str(each.threads),
                str(each.repetitions),
                _duration(each.median),
                _duration(each.deviation),
                _rate(each.rate, each.case.work.unit),
                _duration(each.case.calls_per_step * each.median) if each.case.calls_per_step else "",
            ]
            for each in measurements
        ],
        right=(*_RIGHT, "threads"),
    )


def _rate(rate: float, unit: str) -> str:
    return f"{rate:,.1f} {unit}" if rate < 1e4 else f"{rate:,.0f} {unit}"


def _duration(seconds: float) -> str:
    """In milliseconds whatever its size, so that the figures of a column can be compared at a glance."""
    return f"{1e3 * seconds:.3f} ms"
