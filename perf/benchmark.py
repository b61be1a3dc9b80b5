"""The computations of run-compiled-benchmark.sh and tune-adaptive.sh: judging a run, choosing the best, recording it.

    benchmark.py machine [options] <DEVICES               `alpha devices --json`: the machine's name, a workload for it
    benchmark.py judge RUN_DIR [options]                  what a training run shows, as KEY=value lines
    benchmark.py record --out=DIR --facts=FILE RUN...     the best of the runs that `judge` wrote about, as a row
    benchmark.py abandoned --out=DIR FILE...              a row for each benchmark that was killed, of its facts

A run is `ok`; `unstable` when its steps did not take equally long; `smoke_fail` when it ended but did not compute what
it should; `failed` when it did not end or left no figures. Everything is read from metrics.jsonl and config.json.
"""

import argparse
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import history
import ratio
from history import HistoryError, Row

RANKS = ("ok", "unstable", "smoke_fail", "failed")
ALIKE = ("machine", "backend", "workload", "steps", "configuration", "executable")
"""Rows that agree in these columns can be compared."""

COMPARED_ROWS = 5
LARGE_GPU = 32 << 30  # bytes
FEWEST_MEASURED = 10
FEWEST_WARM_UP = 5
WARM_UP_MILLISECONDS = 500
"""Of steps after the first, in which a GPU, whose clocks fell while kernels were compiled, gets them up again."""

LARGEST_SPREAD = 0.10
LARGEST_DRIFT = 0.10
BLOCKS = 5
SMOKE_TEST_EXIT = 3
TIMED_OUT_EXIT = 124

Facts = dict[str, str]


class UnusableError(Exception):
    """A run without figures: its status and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


# --- judging a run ----------------------------------------------------------------------------------------------------


def judge(folder: Path, steps: int, exit_code: int, limit: str, least_seconds: float) -> Facts:
    """What a run in `folder` shows; it was to make `steps` steps, and its process ended with `exit_code`."""
    try:
        _check_exit(exit_code, limit)
        rows = _read_metrics(folder / "metrics.jsonl")
        if len(rows) != steps:
            raise UnusableError("failed", f"metrics.jsonl has {len(rows)} rows, not {steps}")
        tokens = _tokens_in_a_step(folder / "config.json")
        _check_results(rows)
        return _figures(rows, tokens, least_seconds)
    except UnusableError as error:
        return {"status": error.status, "reason": str(error)}


def _check_exit(exit_code: int, limit: str) -> None:
    if exit_code == TIMED_OUT_EXIT:
        raise UnusableError("failed", f"not done after {limit} s")
    if exit_code == SMOKE_TEST_EXIT:
        raise UnusableError("smoke_fail", "the smoke test of the device failed")
    if exit_code > 128:
        try:
            name = signal.Signals(exit_code - 128).name
        except ValueError:
            name = f"signal {exit_code - 128}"
        raise UnusableError("failed", f"ended by {name}")
    if exit_code:
        raise UnusableError("failed", f"alpha ended with {exit_code}; the log says why")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UnusableError("failed", f"{path.name} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        milliseconds = row.get("ms_per_iter") if isinstance(row, dict) else None
        if not isinstance(milliseconds, int | float) or not 0 < milliseconds < math.inf:
            raise UnusableError("failed", f"row {number} of {path.name} has no time")
    return rows


def _tokens_in_a_step(path: Path) -> int:
    try:
        config = json.loads(path.read_text())
        training = config["training"]
        return int(training["batch"] * training["accumSteps"] * config["model"]["block"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UnusableError("failed", f"{path.name} does not say how many tokens a step has: {error!r}") from error


def _check_results(rows: Sequence[Mapping[str, Any]]) -> None:
    """A benchmark of wrong results is worth nothing: the loss must be a number, and must have fallen."""
    for row in rows:
        loss = row.get("loss")
        if not isinstance(loss, int | float) or not math.isfinite(loss):
            raise UnusableError("smoke_fail", f"the loss of step {row.get('step')} is not a number")
        if row.get("smokeTest") == "failed":
            raise UnusableError("smoke_fail", "the smoke test of the device failed")
    last = statistics.median(row["loss"] for row in rows[-max(1, len(rows) // 4) :])
    if last >= rows[0]["loss"]:
        raise UnusableError(
            "smoke_fail", f"the loss did not fall: {rows[0]['loss']:.3f} at first, {last:.3f} in the end"
        )


def warm_up(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the first steps are not measured: a tenth, five at least, and all before the last change of the
    number of threads, which Alpha chooses by trying; and half a second of them, unless that is more than half."""
    ends = itertools.accumulate((float(row["ms_per_iter"]) for row in rows[1:]), initial=0.0)
    settling = sum(end < WARM_UP_MILLISECONDS for end in ends) + 1
    changes = [index for index in range(1, len(rows)) if rows[index].get("threads") != rows[index - 1].get("threads")]
    return max(FEWEST_WARM_UP, len(rows) // 10, min(settling, len(rows) // 2), *(index + 1 for index in changes))


def _figures(rows: Sequence[Mapping[str, Any]], tokens: int, least_seconds: float) -> Facts:
    unmeasured = warm_up(rows)
    measured = [float(row["ms_per_iter"]) for row in rows[unmeasured:]]
    if len(measured) < FEWEST_MEASURED:
        raise UnusableError(
            "failed", f"{len(measured)} steps after {unmeasured} of warm-up are too few; give more steps"
        )
    median = statistics.median(measured)
    spread = ratio.MAD_TO_DEVIATION * statistics.median(abs(each - median) for each in measured) / median
    half = len(measured) // 2
    drift = statistics.median(measured[half:]) / statistics.median(measured[:half]) - 1
    ends = [index * len(measured) // BLOCKS for index in range(BLOCKS + 1)]
    blocks = [statistics.median(measured[start:end]) for start, end in itertools.pairwise(ends)]
    error = statistics.stdev(blocks) / median / math.sqrt(BLOCKS)
    seconds = sum(measured) / 1e3
    skipped = sum(bool(row.get("skipped")) for row in rows[unmeasured:])
    reasons = [
        *([f"{skipped} steps were skipped"] if skipped else []),
        *([f"the measured steps took only {seconds:.2f} s, so give more steps or a larger workload"]
          if seconds < least_seconds else []),
        *([f"the steps' times spread by {100 * spread:.0f} %"] if spread > LARGEST_SPREAD else []),
        *([f"the steps' times drifted by {100 * drift:+.0f} %"] if abs(drift) > LARGEST_DRIFT else []),
    ]  # fmt: skip
    return {
        "status": "unstable" if reasons else "ok",
        "reason": "; ".join(reasons),
        "threads": str(rows[-1].get("threads", "")),
        "warmup_steps": str(unmeasured),
        "measured_steps": str(len(measured)),
        "median_ms": f"{median:.4g}",
        "spread_pct": f"{100 * spread:.2f}",
        "error_pct": f"{100 * error:.2f}",
        "median_tok_s": f"{1e3 * tokens / median:.1f}",
        "avg_tok_s": f"{tokens * len(measured) / seconds:.1f}",
        "last_tok_s": f"{1e3 * tokens / measured[-1]:.1f}",
    }


# --- recording --------------------------------------------------------------------------------------------------------


def best_of(runs: Sequence[Facts]) -> Facts:
    """The run of the best status, of those the fastest."""
    return max(runs, key=lambda run: (-RANKS.index(run["status"]), float(run.get("median_tok_s", 0))))


def compare(row: Row, earlier: Iterable[Row]) -> Row:
    """How fast a row is beside the last `ok` rows like it."""
    alike = [
        float(each["median_tok_s"])
        for each in earlier
        if each["status"] == "ok" and all(each[name] == row.get(name, "") for name in ALIKE)
    ][-COMPARED_ROWS:]
    if "median_tok_s" not in row or not alike:
        return {"verdict": "first of its kind" if "median_tok_s" in row else ""}
    found = ratio.against_history(float(row["median_tok_s"]), float(row["error_pct"]) / 100, alike)
    bounds = {"speedup_low_pct": found.low, "speedup_high_pct": found.high}
    return {
        "speedup_pct": f"{ratio.percent(found.ratio):.2f}",
        **{name: f"{ratio.percent(bound):.2f}" for name, bound in bounds.items() if bound is not None},
        "verdict": found.verdict,
    }


def record(out: Path, facts: Facts, runs: Sequence[Facts]) -> Row:
    """Add the best run's row to the history in `out` and write it to last-benchmark.env."""
    best = best_of(runs)
    path = out / history.HISTORY.name
    row = facts | best | {"attempts": str(sum("run_dir" in run for run in runs))}
    row |= compare(row, history.read(path))
    history.append(path, [row])
    lines = [f"{name}={shlex.quote(row.get(name, ''))}\n" for name in history.COLUMNS]
    target, temporary = out / "last-benchmark.env", out / f".last-benchmark.env.{os.getpid()}"
    try:
        try:
            temporary.write_text("".join(lines))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise HistoryError(f"cannot write {target}: {error.strerror}") from error
    return row


def sentence(row: Row) -> str:
    """What a row says, for people."""
    if "median_tok_s" not in row:
        return f"{row['status']}: {row['reason']}"
    speed = f"{float(row['median_tok_s']):,.0f} tokens/s, {row['median_ms']} ms a step, spread {row['spread_pct']} %"
    change = row["verdict"]
    if "speedup_pct" in row:
        bounds = ""
        if "speedup_low_pct" in row:
            bounds = f" ({float(row['speedup_low_pct']):+.1f} to {float(row['speedup_high_pct']):+.1f})"
        change += f", {float(row['speedup_pct']):+.1f} %{bounds} beside the last ok runs"
    return f"{row['status']}{': ' * bool(row['reason'])}{row['reason']}\n{speed}\n{change}"


def read_facts(path: Path) -> Facts:
    """KEY=value lines."""
    lines = path.read_text().splitlines()
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}


# --- the machine ------------------------------------------------------------------------------------------------------


def machine(devices: Any, backend: str, number: int = -1) -> tuple[str, str]:
    """The name of the device that a backend computes on, and a workload that is large enough for it.

    `number` is that of a Vulkan device, or -1 for the one that helios takes by itself.
    """
    found = [each for each in devices["devices"] if each["backend"] == backend]
    if backend == "cpu_ref" and found:
        cores = float(found[0]["cores"])
        return f"{found[0]['processor']}, {cores:g} cores", "quickstart" if cores <= 4 else "chars10m-b8"
    usable = [each for each in found if not each["missing"] and number in (-1, each["device"])]
    if not usable:
        raise ValueError(f"this machine has no device for {backend}")
    chosen = min(usable, key=lambda each: each["kind"] == "cpu")
    if chosen["kind"] == "cpu":
        return chosen["name"], "cpu-quickstart"
    return chosen["name"], "gpt2" if chosen["memoryBytes"] >= LARGE_GPU else "chars10m"


# --- the command line -------------------------------------------------------------------------------------------------


def main() -> int:
    """Run one of the four; 1 for a row of status smoke_fail or failed, or when something cannot be read or written."""
    arguments = _arguments()
    try:
        return int(arguments.run(arguments))
    except (HistoryError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"benchmark: error: {error if isinstance(error, HistoryError) else repr(error)}.", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Computations of the benchmark scripts.")
    commands = parser.add_subparsers(required=True)
    each = commands.add_parser("machine")
    each.add_argument("--backend", required=True)
    each.add_argument("--device", type=int, default=-1)
    each.set_defaults(run=_machine)
    each = commands.add_parser("judge")
    each.add_argument("folder", type=Path)
    each.add_argument("--steps", type=int, required=True)
    each.add_argument("--exit-code", type=int, default=0)
    each.add_argument("--limit", default="")
    each.add_argument("--least-seconds", type=float, default=0.0)
    each.set_defaults(run=_judge)
    each = commands.add_parser("record")
    each.add_argument("--out", type=Path, required=True)
    each.add_argument("--facts", type=Path, required=True)
    each.add_argument("--failed", help="there is no run, for this reason")
    each.add_argument("runs", nargs="*", type=Path)
    each.set_defaults(run=_record)
    each = commands.add_parser("abandoned")
    each.add_argument("--out", type=Path, required=True)
    each.add_argument("facts", nargs="+", type=Path)
    each.set_defaults(run=_abandoned)
    return parser.parse_args()


def _machine(arguments: argparse.Namespace) -> int:
    print(*machine(json.load(sys.stdin), arguments.backend, arguments.device), sep="\n")
    return 0


def _judge(arguments: argparse.Namespace) -> int:
    found = judge(arguments.folder, arguments.steps, arguments.exit_code, arguments.limit, arguments.least_seconds)
    print("\n".join(f"{name}={' '.join(value.split())}" for name, value in found.items()))
    return 0


def _record(arguments: argparse.Namespace) -> int:
    runs = [read_facts(path) for path in arguments.runs]
    if arguments.failed:
        runs.append({"status": "failed", "reason": arguments.failed})
    row = record(arguments.out, read_facts(arguments.facts), runs)
    print(sentence(row))
    return int(row["status"] in ("smoke_fail", "failed"))


def _abandoned(arguments: argparse.Namespace) -> int:
    for path in arguments.facts:
        if facts := read_facts(path):  # none: another run has just recorded it, and locking made the file anew
            rows = [facts | {"status": "failed", "reason": "the benchmark itself was killed"}]
            history.append(arguments.out / history.HISTORY.name, rows)
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
