"""How fast runs are looked at: listing a thousand, opening one of a million steps, following one that grows, and what
training loses to it.

    python perf/dashboards.py [--runs 1000] [--steps 1000000]

Prints JSON. Times are of the processor as well as of the clock, because a machine that does something else takes longer
by the clock only.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha.config import ModelConfig, TrainingConfig
from alpha.run import Run
from alpha.run_api import RunsApi, View

COLUMNS = ["loss", "valLoss", "lr", "gradNorm", "tokens_per_sec"]


def timed(work: Callable[[], Any]) -> dict[str, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return {"seconds": round(time.perf_counter() - clock, 4), "cpuSeconds": round(time.process_time() - processor, 4)}


def row(step: int) -> dict[str, Any]:
    noise = random.Random(step)
    values = {
        "step": step, "loss": 1 + 3 * math.exp(-step / 1e5) + noise.gauss(0, 0.1), "lr": 3e-4,
        "gradNorm": noise.random(), "clipped": step % 7 == 0, "tokens": 4096 * step, "time": 1.7e9 + step / 20,
        "elapsed_ms": 50.0 * step, "tokens_per_sec": 81_920.3, "ms_per_iter": 50.123, "threads": 2,
    }  # fmt: skip
    return values | ({"valLoss": values["loss"] + 0.1} if step % 1000 == 0 else {})


def make_run(root: Path, name: str, lines: list[str]) -> Path:
    with Run.create(ModelConfig(), TrainingConfig(iters=10**7), root / name):
        pass
    with (root / name / "metrics.jsonl").open("w") as file:
        file.writelines(lines)
    return root / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()
    results: dict[str, Any] = {"runs": options.runs, "steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = [json.dumps(row(step), separators=(",", ":")) + "\n" for step in range(1, 2001)]
        for i in range(options.runs):
            make_run(root / "many", f"run-{i:05}", lines)
        api = RunsApi(root / "many")
        results["list, first"] = timed(api.runs)
        results["list, again"] = timed(api.runs)

        long = make_run(root / "long", "long", [json.dumps(row(step)) + "\n" for step in range(1, options.steps + 1)])
        results["megabytes"] = round((long / "metrics.jsonl").stat().st_size / 1e6, 1)
        api = RunsApi(root / "long")
        results["open, first picture"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))

        def read_all() -> None:
            while api.run("long")["share"] < 1:
                pass

        results["open, read to the end"] = timed(read_all)
        results["picture of all, five charts"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))
        zoomed = View(low=options.steps * 0.4, high=options.steps * 0.41, smoothing=0.98)
        results["picture of a hundredth"] = timed(lambda: api.metrics("long", COLUMNS, zoomed))
        event_id, _ = api.event("long")
        with (long / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(options.steps + 1)) + "\n")
        results["an event of one new row"] = timed(lambda: api.event("long", event_id))
    print(json.dumps(results, indent=2))


main()
