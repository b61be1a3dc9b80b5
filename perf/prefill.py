"""Times how long an engine takes until the first token after a prompt, the likeliest, and what it does meanwhile.

    python perf/prefill.py [--subject=gpt2-124m] [--dtype=f16] [--tokens 512 1024] [--runs=40] [--profile]

Prints a JSON object a line: the median and quartiles of wall-clock milliseconds for prompts of so many tokens, none of
which comes twice, and those of them in which this thread was busy with more than waiting. --profile prints where Python
spends them. With ALPHA_DEBUG=2 in the environment, times of kernels follow, for these prompts alone, and wall-clock
times mean nothing.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine_host import Clock

from alpha import rng
from alpha.backend_helios import open_helios
from alpha.bench import DEVICE_WARM_UP_SECONDS
from alpha.bench_cases import GPU_SUBJECTS, SUBJECTS
from alpha.engine import Engine, Request
from alpha.sampling import SamplingOptions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="gpt2-124m", choices=[*SUBJECTS, *GPU_SUBJECTS])
    parser.add_argument("--dtype", default="f16", choices=["f32", "f16", "bf16"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--warm-up", type=float, default=DEVICE_WARM_UP_SECONDS)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    subject = (SUBJECTS | GPU_SUBJECTS)[arguments.subject]
    backend = open_helios(precision=arguments.dtype)
    engine, clock = Engine(subject.model(backend, trained=False), 1), Clock(backend)
    numbers = iter(range(sys.maxsize))

    def prompt(length: int) -> list[int]:
        bits = rng.random_bits(length, 1, rng.stream_of("prefill", next(numbers)))
        return [int(each) % subject.vocabulary for each in bits]

    def read(ids: list[int]) -> tuple[float, float]:
        begin, busy = time.perf_counter(), clock()
        engine.submit(Request(ids, 1, SamplingOptions(temperature=0.0)))
        while engine.is_busy:
            engine.step()
        return 1e3 * (time.perf_counter() - begin), 1e-3 * (clock() - busy)

    for length in arguments.tokens:
        end = time.perf_counter() + arguments.warm_up
        while time.perf_counter() < end:
            read(prompt(length))
        prompts = [prompt(length) for _ in range(arguments.runs)]
        if backend.profile is not None:
            backend.profile.kernels.clear()
        profile = cProfile.Profile()
        times = []
        for each in prompts:
            if arguments.profile:
                times.append(profile.runcall(read, each))
            else:
                times.append(read(each))
        row: dict[str, object] = {"tokens": length}
        for name, values in zip(("milliseconds", "busyMilliseconds"), zip(*times, strict=True), strict=True):
            quarters = statistics.quantiles(values, n=4)
            row[name] = dict(
                zip(("lowerQuartile", "median", "upperQuartile"), (round(x, 3) for x in quarters), strict=True)
            )
        print(json.dumps(row), flush=True)
        if backend.profile is not None:
            print(f"kernels of {arguments.runs} prompts of {length} tokens\n{backend.profile.text()}", flush=True)
            backend.profile.kernels.clear()
        if arguments.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
