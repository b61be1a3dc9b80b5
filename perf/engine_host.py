"""Host time of a decode step: what Python does for each step of an engine while a device computes.

    python perf/engine_host.py [--device] [--requests 1 8 64] [--steps=300] [--profile]

The model is the quick start's. Without --device nothing is computed, and the tokens are zeros: what is left is the
engine alone. With it, steps are given to a Vulkan device, and what waiting for it takes does not count. Prints a JSON
object with the median and quartiles of a step's processor time in this thread, in microseconds, for each number of
requests that run at a time; --profile prints where it goes for the last of them.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios, open_helios
from alpha.bench_cases import SUBJECTS
from alpha.engine import Engine, Request
from alpha.gpt import GPT

WARM_UP = 8


class Idle(CpuRef):
    """A backend whose recorded steps compute nothing, at once."""

    steps_in_flight = 2

    def record_inference(self, program: Callable[..., Any]) -> Callable[..., Any]:
        result: Any = None

        def run(*operands: Any) -> Any:
            nonlocal result
            result = program(*operands) * 0 if result is None else result
            return result

        return run


class Clock:
    """This thread's processor time in microseconds, without that of waiting for a device."""

    def __init__(self, backend: Backend) -> None:
        self._waited = 0.0
        if isinstance(backend, Helios):
            self._wait = backend.device.wait
            backend.device.wait = self._wait_aside  # type: ignore[method-assign]

    def __call__(self) -> float:
        return 1e6 * (time.thread_time() - self._waited)

    def _wait_aside(self, *arguments: Any) -> bool:
        begin = time.thread_time()
        result = self._wait(*arguments)
        self._waited += time.thread_time() - begin
        return result


def step_times(model: GPT, clock: Clock, requests: int, steps: int, profile: cProfile.Profile | None) -> list[float]:
    """Of each of so many steps that continue texts."""
    engine = Engine(model, requests)
    times: list[float] = []
    while len(times) < steps:
        for row in range(requests):
            engine.submit(Request([1 + row], row=row))
        for index in range(model.config.block):
            is_steady = WARM_UP <= index < model.config.block - WARM_UP
            begin = clock()
            if profile and is_steady:
                profile.enable()
            engine.step()
            if profile:
                profile.disable()
            if is_steady:
                times.append(clock() - begin)
        while engine.is_busy:
            engine.step()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="store_true")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    backend: Backend = open_helios() if arguments.device else Idle()
    model = SUBJECTS["quickstart"].model(backend)
    clock = Clock(backend)
    found: dict[str, object] = {}
    for requests in arguments.requests:
        quarters = statistics.quantiles(step_times(model, clock, requests, arguments.steps, None), n=4)
        names = "lowerQuartile", "median", "upperQuartile"
        found[str(requests)] = {name: round(value, 1) for name, value in zip(names, quarters, strict=True)}
    print(json.dumps({"backend": backend.name if arguments.device else "none", "stepMicroseconds": found}))
    if arguments.profile:
        profile = cProfile.Profile()
        step_times(model, clock, arguments.requests[-1], arguments.steps, profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
