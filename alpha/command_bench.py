"""`alpha bench`: how fast this machine computes."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS
from alpha.errors import AlphaError, UsageError
from alpha.option import option
from alpha.terminal import print_json_array, print_table, print_text, print_warning

if TYPE_CHECKING:
    from alpha.bench import Case, Measurement

ALL = "all"
SUITES = ("ops", "e2e", "serve", "train", ALL)

_RIGHT = ("reps", "median", "±", "rate", "per step")
_BUSY_LOAD = 0.5
_WIDEST_SECONDS, _WIDEST_RATE = 10.0, 1e7
"""Columns have room for these before anything is measured."""


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
step. The rate of decoding and of the mixture counts tokens drawn, the others tokens read. What is
measured is printed and written at once, with --json as a line of the array for each case.

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
    rows: list[dict[str, Any]] = []

    def measured(cases: "Sequence[Case]") -> "Iterator[Measurement]":
        """Each is written before the next begins: whoever cuts this off keeps what there is."""
        for each in bench.measure(cases, backend, limits):
            rows.append(circumstances | each.row())
            if options.out:
                files.write_json(out, rows)
            yield each

    if options.json:
        print_json_array(rows[-1] for _ in measured(cases))
        return
    print_text("\n".join(f"{name:<14}{value}" for name, value in circumstances.items()))
    for title, group in itertools.groupby(cases, lambda case: case.name.rpartition("/")[0]):
        together = list(group)
        _print_group(title, together, measured(together), options)


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


def _print_group(
    title: str, cases: "Sequence[Case]", measurements: "Iterable[Measurement]", options: BenchOptions
) -> None:
    print_text("")
    print_table(
        (title, "shape", "threads", *_RIGHT),
        (_cells(title, each) for each in measurements),
        right=(*_RIGHT, "threads"),
        widest=[
            max((case.name.removeprefix(f"{title}/") for case in cases), key=len),
            max((case.work.shape for case in cases), key=len),
            "",
            str(options.iters),
            _duration(_WIDEST_SECONDS),
            _duration(_WIDEST_SECONDS / 10),
            max((_rate(_WIDEST_RATE, case.work.unit) for case in cases), key=len),
            _duration(_WIDEST_SECONDS) if any(case.calls_per_step for case in cases) else "",
        ],
    )


def _cells(title: str, found: "Measurement") -> list[str]:
    work = found.case.work
    return [
        found.case.name.removeprefix(f"{title}/"),
        work.shape,
        str(found.threads),
        str(found.repetitions),
        _duration(found.median),
        _duration(found.deviation),
        _rate(found.rate, work.unit),
        _duration(found.case.calls_per_step * found.median) if found.case.calls_per_step else "",
    ]


def _rate(rate: float, unit: str) -> str:
    return f"{rate:,.1f} {unit}" if rate < 1e4 else f"{rate:,.0f} {unit}"


def _duration(seconds: float) -> str:
    """In milliseconds whatever its size, so that the figures of a column can be compared at a glance."""
    return f"{1e3 * seconds:.3f} ms"
