"""Alpha's speed of decoding on a CPU beside PyTorch's: the same model in float32, random weights, the likeliest tokens.

    python perf/decode.py --peer=PYTHON_WITH_TORCH [--config=chars10m-b8] [--batch=1,8] [--threads=1,2] [--rounds=7]

Both sides have a process each, which stays, and continue texts of one token; Alpha with its engine, PyTorch with an
eager loop and a cache of keys and values (`torch_peer.py decode`). They run in turn, in random order in each round, on
each number of threads. What counts is the best number of threads of each side, and the ratio of a round, since what
disturbs a round disturbs both. Prints a table, and a JSON object in a line for each number of texts.

Without --peer only Alpha is measured; --profile prints where its time goes, for the last number of texts and threads.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "perf"))

from peer import LineProcess, RunError, Side, compare  # noqa: E402  (it lies beside this file)

from alpha.backend_cpu_ref import CpuRef  # noqa: E402  (the package lies beside this folder)
from alpha.bench_cases import SUBJECTS  # noqa: E402
from alpha.engine import Engine, Request  # noqa: E402
from alpha.sampling import SamplingOptions  # noqa: E402

WARM_UP_TOKENS = 8


class Alpha:
    """The engine on the CPU."""

    def __init__(self, config: str) -> None:
        self.backend = CpuRef()
        self._model = SUBJECTS[config].model(self.backend)

    def run(self, texts: int, tokens: int) -> None:
        engine = Engine(self._model, texts)
        for row in range(texts):
            engine.submit(Request([row], tokens, SamplingOptions(temperature=0.0)))
        while engine.is_busy:
            engine.step()

    def rate(self, texts: int, tokens: int, threads: int) -> float:
        """Tokens a second."""
        self.backend.threads = threads
        self.run(texts, WARM_UP_TOKENS)
        begin = time.perf_counter()
        self.run(texts, tokens)
        return texts * tokens / (time.perf_counter() - begin)


def measured(processes: dict[str, LineProcess], texts: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The rounds of so many texts side by side."""

    def side(name: str, process: LineProcess) -> Side:
        def run(threads: int) -> dict[str, float]:
            return {"rate": process.ask([texts, arguments.tokens, threads])}

        return Side(name, run, {threads: [] for threads in arguments.threads})

    sides = [side(name, process) for name, process in processes.items()]
    for _ in range(arguments.rounds):
        turns = [(each, threads) for each in sides for threads in arguments.threads]
        random.shuffle(turns)
        for each, threads in turns:
            each.measure(threads)
    rates = {each.name: {str(threads): rates for threads, rates in each.rates.items()} for each in sides}
    compared = compare(sides[0], sides[1], is_quiet=True) if len(sides) == 2 else {}
    return {"texts": texts, "rates": rates} | compared


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", metavar="PYTHON", help="interpreter that has torch")
    parser.add_argument("--config", default="chars10m-b8", choices=SUBJECTS)
    parser.add_argument("--batch", default=[1, 8], type=numbers)
    parser.add_argument("--threads", default=[1, 2], type=numbers)
    parser.add_argument("--tokens", default=100, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        alpha = Alpha(arguments.config)
        for line in sys.stdin:
            print(alpha.rate(*json.loads(line)), flush=True)
        return 0
    if arguments.profile:
        alpha = Alpha(arguments.config)
        alpha.rate(arguments.batch[-1], arguments.tokens, arguments.threads[-1])
        with cProfile.Profile() as profile:
            alpha.run(arguments.batch[-1], arguments.tokens)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return 0
    subject = SUBJECTS[arguments.config]
    names = ("layers", "heads", "dim", "block", "vocabulary")
    shape = json.dumps({name: getattr(subject, name) for name in names})
    processes = {"alpha": LineProcess([sys.executable, __file__, "--answer", f"--config={arguments.config}"])}
    if arguments.peer:
        processes["eager"] = LineProcess(
            [arguments.peer, str(ROOT / "perf" / "torch_peer.py"), "decode", "fp32", shape]
        )
    print(f"load average of the last minute: {os.getloadavg()[0]:.2f}")
    try:
        for texts in arguments.batch:
            result = measured(processes, texts, arguments)
            for name, rates in result["rates"].items():
                middle = {threads: round(sorted(each)[len(each) // 2]) for threads, each in rates.items()}
                print(
                    f"{texts} texts, {name}: "
                    + ", ".join(f"{rate:,} tokens/s ({each})" for each, rate in middle.items())
                )
            print(json.dumps(result), flush=True)
    except RunError as error:
        raise SystemExit(f"decode: error: {error}") from None
    finally:
        for process in processes.values():
            process.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
