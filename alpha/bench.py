"""Measuring how fast something is that can be repeated: warm-up, repetitions within a time limit, robust statistics.

Knows nothing about what is measured (see `bench_cases`). Work counts as done when its call returns.
"""

import datetime
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alpha import installation, machine
from alpha.backend import Backend
from alpha.thread_choice import ROUNDS, ThreadChoice

FEWEST_REPETITIONS = 3
UNITS = {"GFLOP/s": 1e9, "GB/s": 1e9, "MB/s": 1e6, "tokens/s": 1.0}
"""Units of rates, and how much of what `Work.amount` counts one of them is."""

DEVICE_WARM_UP_SECONDS = 0.5
"""A GPU's clocks fall while it waits, as for the compiler, and take so long to rise again."""

_WARM_UP_SECONDS = 0.1
_TRIAL_SECONDS = 0.02


@dataclass(frozen=True)
class Work:
    """Something to repeat. `amount` of floating-point operations, bytes or tokens is done each time, see `UNITS`.

    `prepare` makes the arrays, which is not measured, and returns the function to repeat.
    """

    shape: str
    amount: float
    unit: str
    prepare: Callable[[Backend], Callable[[], object]]
    dtype: str = "float32"


@dataclass(frozen=True)
class Case:
    """A measurement by its name, `suite/subject/what`, with the number of times that a training step does this."""

    name: str
    work: Work
    calls_per_step: int = 0

    @property
    def suite(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Limits:
    """Repetitions end after `repetitions`, or after `seconds` if there were three by then. 0 threads: the fastest."""

    repetitions: int = 100
    seconds: float = 2.0
    threads: int = 0


@dataclass(frozen=True)
class Measurement:
    """What was found: the median of the repetitions' seconds, and the median of their distances from it."""

    case: Case
    threads: int
    repetitions: int
    median: float
    deviation: float
    load: float
    """The load average of the minute before, the previous measurements included."""

    @property
    def rate(self) -> float:
        """Work done per second of the median repetition, in the work's unit."""
        return self.case.work.amount / UNITS[self.case.work.unit] / max(self.median, 1e-9)

    def row(self) -> dict[str, Any]:
        """The measurement as JSON."""
        work = self.case.work
        return {
            "suite": self.case.suite,
            "case": self.case.name,
            "shape": work.shape,
            "dtype": work.dtype,
            "threads": self.threads,
            "repetitions": self.repetitions,
            "medianSeconds": self.median,
            "deviationSeconds": self.deviation,
            "rate": round(self.rate, 3),
            "unit": work.unit,
            "callsPerStep": self.case.calls_per_step,
            "loadAverage": round(self.load, 2),
        }


def measure(cases: Sequence[Case], backend: Backend, limits: Limits) -> Iterator[Measurement]:
    """Measure each case in turn."""
    for case in cases:
        load = os.getloadavg()[0]
        repeat = case.work.prepare(backend)
        _warm_up(repeat, backend, limits.threads)
        seconds = repetitions(repeat, limits)
        median, deviation = median_and_deviation(seconds)
        yield Measurement(case, backend.threads, len(seconds), median, deviation, load)


def repetitions(
    repeat: Callable[[], object], limits: Limits, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The seconds that each repetition took."""
    found: list[float] = []
    begin = start = clock()
    while len(found) < limits.repetitions and (len(found) < FEWEST_REPETITIONS or start - begin < limits.seconds):
        repeat()
        end = clock()
        found.append(end - start)
        start = end
    return found


def median_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the median absolute deviation from it, neither of which a few outliers move."""
    median = statistics.median(values)
    return median, statistics.median(abs(value - median) for value in values)


def circumstances(backend: Backend) -> dict[str, Any]:
    """What a number depends on beside the case, as JSON: code, time, machine, libraries."""
    libraries = machine.blas_libraries()
    return {
        "commit": installation.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": machine.processor(),
        "cores": machine.usable_cores(),
        "backend": backend.name,
        "warmUpSeconds": warm_up_seconds(backend),
        "numpy": np.__version__,
        "blas": ", ".join(f"{each.name} {each.version}" for each in libraries),
        "coreType": ", ".join(each.core_type for each in libraries),
    }


def warm_up_seconds(backend: Backend) -> float:
    """How long work is repeated before it is measured."""
    return DEVICE_WARM_UP_SECONDS if backend.name == "helios" else _WARM_UP_SECONDS


def keep_busy(repeat: Callable[[], object], seconds: float) -> None:
    """Repeat for so long, after a first time, which may have to compile."""
    repeat()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        repeat()


def _warm_up(repeat: Callable[[], object], backend: Backend, threads: int) -> None:
    """Repeat until memory, caches and clocks have settled; leaves `backend.threads` chosen."""
    choice = ThreadChoice(backend, threads)
    start = time.perf_counter()
    repeat()
    calls = math.ceil(_TRIAL_SECONDS / max(time.perf_counter() - start, 1e-6))
    for _ in range(0 if threads else 1 + ROUNDS * len(backend.thread_choices())):
        with choice.measured():
            for _ in range(calls):
                repeat()
    keep_busy(repeat, warm_up_seconds(backend))
