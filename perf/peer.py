"""Alpha's training speed beside PyTorch's: the same models and batches, fp32, on this machine's CPU.

    python perf/peer.py --python=PYTHON --peer=SCRIPT [--config=NAME]... [--mode=NAME]... [--threads=1,2] [--rounds=3]

PYTHON is an interpreter that has torch. SCRIPT is run as `PYTHON SCRIPT --cpu --mode=MODE CONFIG`, where CONFIG is a
subject of `alpha bench`, and prints a JSON object in a line, with `params` and `tok_s`. Both sides run in turn in fresh
processes, on each number of threads at first and then on those that are close to their fastest; variables that tell
OpenBLAS which processor to assume are removed for both. Prints a table, and a JSON object in a line for each model.

A ratio is given for each round, since what disturbs a round disturbs both sides. There is no verdict when other
processes were busy, which is asked of the load average at first and of idle moments between the runs.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpha.bench_cases import SUBJECTS  # noqa: E402  (the package lies beside this folder)

REMOVED_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
LARGEST_LOAD = 0.5
LARGEST_BUSY_CORES = 0.1
NEAR_THE_FASTEST = 0.9
TIME_LIMIT = 1800

Row = dict[str, Any]


class RunError(Exception):
    """A run that gave no figure; the message says which and why."""


class LineProcess:
    """A program that stays loaded and answers each line of JSON with a line of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
        self._name = " ".join(command[:3])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def ask(self, question: Any) -> Any:
        """The answer. Raises RunError when the program has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"{self._name} ended without a figure; what it says stands above.")
        return json.loads(line)

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()


@dataclass
class Side:
    """One way of training a model: tokens per second of each round, by number of threads."""

    name: str
    run: Callable[[int], Row]
    rates: dict[int, list[float]]
    last: Row = field(default_factory=dict)

    def measure(self, threads: int) -> None:
        """Run once more."""
        self.last = self.run(threads)
        self.rates[threads].append(self.last["rate"])

    def keep_near_the_fastest(self) -> None:
        """Drop the numbers of threads that are clearly slower than another."""
        fastest = max(statistics.median(rates) for rates in self.rates.values())
        self.rates = {
            threads: rates
            for threads, rates in self.rates.items()
            if statistics.median(rates) >= NEAR_THE_FASTEST * fastest
        }

    @property
    def threads(self) -> int:
        """The fastest number of threads."""
        return max(self.rates, key=lambda threads: statistics.median(self.rates[threads]))

    @property
    def best(self) -> list[float]:
        """Tokens per second of each round on the fastest number of threads."""
        return self.rates[self.threads]


def compare(alpha: Side, peer: Side, is_quiet: bool) -> Row:
    """The two sides' figures, and the median, least and greatest of the rounds' ratios."""
    ratios = [ours / theirs for ours, theirs in zip(alpha.best, peer.best, strict=True)]
    ratio, least, greatest = statistics.median(ratios), min(ratios), max(ratios)
    return {
        "mode": peer.name,
        "alphaTokensPerSecond": round(statistics.median(alpha.best), 1),
        "alphaThreads": alpha.threads,
        "peerTokensPerSecond": round(statistics.median(peer.best), 1),
        "peerThreads": peer.threads,
        "ratio": round(ratio, 4),
        "leastRatio": round(least, 4),
        "greatestRatio": round(greatest, 4),
        "verdict": verdict(least, greatest) if is_quiet else "none: other processes were busy",
    }


def verdict(least: float, greatest: float) -> str:
    """What the rounds' ratios agree on."""
    if least > 1.0:
        return "faster"
    return "slower" if greatest < 1.0 else "no difference beyond the spread"


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores other processes, and other virtual machines, keep busy while this one sleeps (Linux)."""
    before = _processor_seconds()
    start = time.monotonic()
    time.sleep(seconds)
    return (_processor_seconds() - before) / (time.monotonic() - start)


def _processor_seconds() -> float:
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def json_of(command: Sequence[str], threads: int) -> Any:
    """The JSON that a command prints in the end. Raises RunError."""
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TIME_LIMIT, cwd=ROOT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{' '.join(command)}: {error}") from error
    try:
        if done.returncode == 0:
            return json.loads(done.stdout)
    except ValueError:
        pass
    raise RunError(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}")


def run_alpha(config: str, seconds: float, threads: int) -> Row:
    """Alpha's row for a model; `rate` is in tokens per second."""
    options = ["--backend=cpu_ref", f"--match=train/{config}", f"--threads={threads}", f"--seconds={seconds}", "--json"]
    [row] = json_of([sys.executable, str(ROOT / "alpha.py"), "bench", *options], threads)
    return dict(row)


def run_peer(python: str, script: str, config: str, mode: str, threads: int) -> Row:
    """The peer's row for a model. Raises RunError when its model is not the same."""
    command = [python, str(Path(script).resolve()), "--cpu", f"--mode={mode}", config]
    row = json_of(command, threads)
    if "error" in row:
        raise RunError(f"{' '.join(command)}: {row['error']}")
    if row["params"] != SUBJECTS[config].parameters:
        raise RunError(f"{config} has {row['params']:,} parameters there, {SUBJECTS[config].parameters:,} here.")
    return {"rate": float(row["tok_s"])}


def compare_model(config: str, arguments: argparse.Namespace, load: float) -> Row:
    """Run the rounds of one model."""
    sides = [Side("alpha", lambda threads: run_alpha(config, arguments.seconds, threads), {})]
    for mode in arguments.mode or ["fp32", "fp32-compile"]:
        run = lambda threads, mode=mode: run_peer(arguments.python, arguments.peer, config, mode, threads)  # noqa: E731
        sides.append(Side(mode, run, {}))
    for side in sides:
        side.rates = {threads: [] for threads in arguments.threads}
    busiest = busy_cores()
    for repetition in range(arguments.rounds):
        for threads in arguments.threads:
            for side in sides:
                if threads in side.rates:
                    side.measure(threads)
                    busiest = max(busiest, busy_cores())
        if repetition == 0:
            for side in sides:
                side.keep_near_the_fastest()
    alpha, *peers = sides
    is_quiet = load < LARGEST_LOAD and busiest < LARGEST_BUSY_CORES
    facts = ("commit", "date", "processor", "cores", "blas", "coreType", "dtype", "shape")
    return {
        "config": config,
        **{name: alpha.last[name] for name in facts},
        "rounds": arguments.rounds,
        "loadAverage": round(load, 2),
        "busyCores": round(busiest, 3),
        "comparisons": [compare(alpha, peer, is_quiet) for peer in peers],
        "rates": {side.name: {str(threads): rates for threads, rates in side.rates.items()} for side in sides},
    }


def print_rows(result: Row) -> None:
    """The comparisons of one model as lines of the table."""
    for each in result["comparisons"]:
        print(
            f"{result['config']:<16}{each['mode']:<14}"
            f"{each['alphaTokensPerSecond']:>10,.0f} ({each['alphaThreads']})"
            f"{each['peerTokensPerSecond']:>10,.0f} ({each['peerThreads']})"
            f"  {each['ratio']:.3f} ({each['leastRatio']:.3f} to {each['greatestRatio']:.3f})  {each['verdict']}",
            flush=True,
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Alpha's training speed with PyTorch's on the CPU.")
    parser.add_argument("--python", required=True, help="interpreter that has torch")
    parser.add_argument("--peer", required=True, help="script that trains with torch")
    parser.add_argument("--config", action="append", choices=SUBJECTS, help="model; repeatable; default all")
    parser.add_argument("--mode", action="append", help="the peer's mode; repeatable; default fp32 and fp32-compile")
    parser.add_argument("--threads", default="1,2", type=lambda text: [int(each) for each in text.split(",")])
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--seconds", default=10.0, type=float, help="time for Alpha's repetitions in a run")
    parser.add_argument("--even-if-busy", action="store_true", help="measure, without a verdict, on a busy machine")
    return parser.parse_args()


def main() -> int:
    """Compare each model; 1 when the machine is busy or a run fails."""
    arguments = read_arguments()
    load = os.getloadavg()[0]
    print(f"load average of the last minute: {load:.2f}", flush=True)
    if load >= LARGEST_LOAD and not arguments.even_if_busy:
        print(f"peer: error: other processes are busy; wait for a load below {LARGEST_LOAD}.", file=sys.stderr)
        return 1
    print(f"{'model':<16}{'peer':<14}{'alpha t/s':>10}     {'peer t/s':>9}      alpha / peer (spread)", flush=True)
    results = []
    try:
        for config in arguments.config or SUBJECTS:
            results.append(compare_model(config, arguments, load))
            print_rows(results[-1])
    except RunError as error:
        print(f"peer: error: {error}", file=sys.stderr)
    for result in results:
        print(json.dumps(result))
    return 0 if len(results) == len(arguments.config or SUBJECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
