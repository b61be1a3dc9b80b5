"""What training an adapter costs beside training all weights: memory and time of a step, as ratios.

    python perf/adapters.py [--subject=gpt2-124m] [--backend=helios] [--dtype=f16] [--batch=8] [--rank=8] [--rounds=6]

The subjects are those of `alpha bench`. Full steps and steps of adapters run in turn, in rounds; the ratio of a round's
two times is what counts, and its median is printed. Memory is that of the step's plan, where the backend has one;
`--rounds=0` shows nothing else, and runs no step.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha import backends
from alpha.backend import Backend
from alpha.bench_cases import GPU_SUBJECTS, SUBJECTS, Subject
from alpha.config import TrainingConfig, resolve_training
from alpha.gpt import GPT
from alpha.lora import lora_of
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

STEPS = 5
"""Steps of one timing."""


def step_of(subject: Subject, backend: Backend, **options: object) -> TrainingStep:
    """A step that trains all weights, or with the options of an adapter, that."""
    training = resolve_training(TrainingConfig(batch=subject.batch, init="weights", **options))
    lora = lora_of(training)
    model = GPT(
        backend, subject.config, subject.vocabulary,
        trained=lambda spec: lora is None, matrix_dtype=backend.weight_dtype,
    )  # fmt: skip
    model.parameters.initialize()
    if lora is not None:
        model = model.adapted(lora)
        model.parameters.initialize()
    return TrainingStep(model, make_optimizer(model.parameters, training), training)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare training an adapter with training all weights.")
    parser.add_argument("--subject", default="gpt2-124m", choices=SUBJECTS | GPU_SUBJECTS)
    parser.add_argument("--backend", default="helios")
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["attn,mlp", "attn", "attn.c_attn"])
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    shape = vars((SUBJECTS | GPU_SUBJECTS)[arguments.subject]) | {"batch": arguments.batch}
    subject = Subject(**shape)
    backend = backends.create(arguments.backend, -1, arguments.dtype)
    tokens = subject.random_tokens(subject.batch * subject.block).astype(np.int32)
    batch = tokens.reshape(1, subject.batch, subject.block)
    adapters = [{"lora": arguments.rank, "lora_targets": targets} for targets in arguments.targets]
    steps = [step_of(subject, backend, dtype=arguments.dtype, **options) for options in [{}, *adapters]]
    plans = [step.plan(subject.batch) for step in steps]

    def seconds(step: TrainingStep) -> float:
        start = time.perf_counter()
        results = [step.run(batch, batch, 1e-4) for _ in range(STEPS)]
        for result in results:
            result.read()
        return (time.perf_counter() - start) / STEPS

    for step in steps if arguments.rounds else ():
        seconds(step)
    rounds = [[seconds(step) for step in steps] for _ in range(arguments.rounds)]
    for index, options in enumerate([{}, *adapters]):
        result: dict[str, object] = {"trained": options.get("lora_targets", "all weights")}
        if rounds:
            result["milliseconds"] = round(1e3 * statistics.median(each[index] for each in rounds), 2)
            result["timeRatio"] = round(statistics.median(each[index] / each[0] for each in rounds), 3)
        if plans[index]:
            result["mebibytes"] = {use: round(nbytes / 2**20) for use, nbytes in plans[index].items()}
            result["memoryRatio"] = round(sum(plans[index].values()) / sum(plans[0].values()), 3)
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
