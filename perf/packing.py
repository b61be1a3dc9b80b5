"""What documents that share windows cost: tokens/s of a training step on them, over those of one on plain windows.

    python perf/packing.py [--subject=quickstart] [--backend=cpu_ref] [--dtype=f32] [--length=100] [--rounds=20]

The subjects are those of `alpha bench`; documents have lengths of an exponential distribution with that mean. Both
steps run in turn, in rounds; the ratio of a round's two times is what counts, and its median is printed. `tiles` is how
many of the tiles of scores are left that attention computes for plain windows on matrix units; `--rounds=0` shows
nothing else.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adapters import step_of  # in this folder

from alpha import backends
from alpha.bench_cases import GPU_SUBJECTS, SUBJECTS

STEPS = 3
"""Steps of one timing."""


def begins_of(sequences: int, length: int, mean: float) -> np.ndarray:
    """Where in its sequence each token's document begins: [sequences, length]."""
    ends = np.cumsum(1 + np.random.default_rng(1).exponential(mean - 1, (sequences, length)).astype(int), axis=1)
    places = np.arange(length)
    return np.stack([np.concatenate([[0], row])[np.searchsorted(row, places, "right")] for row in ends])


def tiles_left(begins: np.ndarray, queries: int = 128, keys: int = 64) -> float:
    """The share of tiles of so many queries and keys that have a pair which the documents leave, of the causal ones."""
    starts = np.arange(0, begins.shape[1], queries)
    ends = np.minimum(starts + queries, begins.shape[1])
    causal = -(-ends // keys)
    return float((causal - begins[:, starts] // keys).sum() / (len(begins) * causal.sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare training on packed documents with training on plain windows.")
    parser.add_argument("--subject", default="quickstart", choices=SUBJECTS | GPU_SUBJECTS)
    parser.add_argument("--backend", default="cpu_ref")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--length", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    subject = (SUBJECTS | GPU_SUBJECTS)[arguments.subject]
    backend = backends.create(arguments.backend, -1, arguments.dtype)
    backend.threads = max(backend.thread_choices())
    tokens = subject.random_tokens(subject.batch * subject.block).astype(np.int32)
    batch = tokens.reshape(1, subject.batch, subject.block)
    begins = begins_of(subject.batch, subject.block, arguments.length).astype(np.int32)[None]
    plain, packed = (step_of(subject, backend, dtype=arguments.dtype) for _ in range(2))

    def seconds(packs: bool) -> float:
        start = time.perf_counter()
        step, places = (packed, begins) if packs else (plain, None)
        results = [step.run(batch, batch, 1e-4, places) for _ in range(STEPS)]
        for result in results:
            result.read()
        return (time.perf_counter() - start) / STEPS

    result: dict[str, object] = {"subject": arguments.subject, "tiles": round(tiles_left(begins[0]), 3)}
    if arguments.rounds:
        for packs in (False, True):
            seconds(packs)
        orders = [(False, True), (True, False)]
        rounds = [{packs: seconds(packs) for packs in orders[index % 2]} for index in range(arguments.rounds)]
        ratios = sorted(each[False] / each[True] for each in rounds)
        for name, packs in (("plain", False), ("packed", True)):
            result[name + "Milliseconds"] = round(1e3 * statistics.median(each[packs] for each in rounds), 2)
        result["tokensRatio"] = round(statistics.median(ratios), 3)
        result["quartiles"] = [round(ratios[len(ratios) * part // 4], 3) for part in (1, 3)]
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
