"""Host time of a steady training step on a Vulkan device: what Python does between two steps.

    python perf/helios_host.py [--dtype=f32] [--device=N] [--steps=300] [--profile]

The model is the quick start's. Host time is what a step takes until the device has it: a batch and a learning rate are
handed over and submitted; nothing is waited for. Prints a JSON object with its median and quartiles in microseconds,
beside the time of a whole step with its result read as late as in training; --profile prints where the time goes.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha.backend_helios import open_helios
from alpha.bench import DEVICE_WARM_UP_SECONDS, keep_busy
from alpha.bench_cases import SUBJECTS
from alpha.config import TrainingConfig, resolve_training
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

WARM_UP = 20


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the host time of a training step.")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    subject = SUBJECTS["quickstart"]
    backend = open_helios(arguments.device, arguments.dtype)
    training = resolve_training(TrainingConfig(batch=subject.batch, dtype=arguments.dtype))
    model = subject.model(backend)
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    tokens = subject.random_tokens(subject.batch * (subject.block + 1)).astype(np.int32)
    windows = tokens.reshape(1, subject.batch, subject.block + 1)
    ids, targets = windows[..., :-1], windows[..., 1:]
    profile = cProfile.Profile()
    keep_busy(lambda: step.run(ids, targets, 1e-3).read(), DEVICE_WARM_UP_SECONDS)
    under_way, host, whole = [], [], []
    for index in range(WARM_UP + arguments.steps):
        begin = time.perf_counter()
        if arguments.profile and index >= WARM_UP:
            profile.enable()
        under_way.append(step.run(ids, targets, 1e-3))
        profile.disable()
        host.append(time.perf_counter() - begin)
        if len(under_way) >= backend.steps_in_flight:
            under_way.pop(0).read()
        whole.append(time.perf_counter() - begin)
    figures = [1e6 * seconds for seconds in host[WARM_UP:]]
    quarters = statistics.quantiles(figures, n=4)
    result = {
        "device": backend.device_info.name,
        "dtype": arguments.dtype,
        "hostMicroseconds": round(quarters[1], 1),
        "lowerQuartile": round(quarters[0], 1),
        "upperQuartile": round(quarters[2], 1),
        "stepMicroseconds": round(1e6 * statistics.median(whole[WARM_UP:]), 1),
    }
    print(json.dumps(result))
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
