"""The computations of tune-adaptive.sh: what to try, what to try next, and what was best.

    tuning.py candidates --backend=NAME --cores=N <VARIABLES    `alpha env --json`: a line for each candidate
    tuning.py next --candidates=FILE --loops=N LOOPS.csv        the candidate of the next loop: KEY=value ...
    tuning.py add LOOPS.csv KEY=value...                        a row for a loop
    tuning.py best LOOPS.csv --comment=TEXT --out=FILE ...      the settings for --envFile, and how sure they are

A loop runs a candidate and the defaults one after the other, and what counts is their ratio. The first half of the
loops at most changes one setting each. The other loops belong to the finalists: the best of those, and the best values
of all settings together. Only these loops count for the result: that a finalist was lucky at first proves nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import history
import ratio
from history import HistoryError, Row
from ratio import Interval

COLUMNS = (
    "timestamp", "loop", "candidate", "first", "status", "reason", "candidate_ms", "default_ms", "speed_ratio",
    "git_commit", "machine", "backend", "workload", "steps", "load_average",
)  # fmt: skip
NOT_FOR_SPEED = ("ALPHA_DEBUG", "ALPHA_FAIL_ON_SMOKE_TEST")
OF_A_GPU = ("ALPHA_STEPS_IN_FLIGHT", "ALPHA_ADAPTIVE_", "ALPHA_GPU_", "ALPHA_VK_")
FINALISTS = 3
FEWEST_ROUNDS = 3


def candidates(variables: Sequence[Any], backend: str, cores: int) -> list[str]:
    """Single changes: each number of threads in powers of two, activation checkpointing, and every variable that may
    matter for speed at half and at twice its default; 0 and words turn something on or off and are left alone."""
    is_cpu = backend == "cpu_ref"
    found = [f"threads={count}" for count in (1, 2, 4, 8, 16, 32, 64) if is_cpu and count <= cores]
    found.append("recompute=true")
    for variable in variables:
        name, default = variable["name"], variable["default"]
        is_number = isinstance(default, int)
        if is_number and name not in NOT_FOR_SPEED and not (is_cpu and name.startswith(OF_A_GPU)):
            found += [f"{name}={value}" for value in (default // 2, 2 * default) if 0 < value != default]
    return found


def split(rows: Sequence[Row], count: int, loops: int) -> tuple[list[Row], list[Row]]:
    """The rows of the first loops, one for each of `count` candidates, and those of the finalists."""
    first = min(count, max(1, loops // 2))
    return [row for row in rows if int(row["loop"]) <= first], [row for row in rows if int(row["loop"]) > first]


def finalists(first: Sequence[Row]) -> list[str]:
    """The best candidates of the first loops, and the combination of the settings that were an improvement."""
    measured = sorted((row for row in first if row["status"] == "ok"), key=lambda row: -float(row["speed_ratio"]))
    together: dict[str, str] = {}
    for row in measured:
        name, _, value = row["candidate"].partition("=")
        if float(row["speed_ratio"]) > 1:
            together.setdefault(name, value)
    found = [row["candidate"] for row in measured[:FINALISTS]]
    if len(together) > 1:
        found.append(" ".join(f"{name}={value}" for name, value in together.items()))
    return found


def next_candidate(names: Sequence[str], rows: Sequence[Row], loops: int) -> str:
    """What to try after `rows`."""
    first, later = split(rows, len(names), loops)
    if len(first) < min(len(names), max(1, loops // 2)):
        # With too few loops for all, candidates from the whole list, evenly.
        return names[len(first) * len(names) // min(len(names), max(1, loops // 2))]
    tried = [row["candidate"] for row in later]
    return min(finalists(first) or names, key=tried.count)


def best(rows: Sequence[Row], names: Sequence[str], loops: int) -> tuple[str, Interval] | None:
    """The fastest finalist with what is known of its speed beside the defaults, if there is any with enough loops."""
    _, later = split(rows, len(names), loops)
    ratios: dict[str, list[float]] = {}
    for row in later:
        if row["status"] == "ok":
            ratios.setdefault(row["candidate"], []).append(float(row["speed_ratio"]))
    known = {name: ratio.paired(found) for name, found in ratios.items() if len(found) >= FEWEST_ROUNDS}
    if not known:
        return None
    # The one that is surely faster by most.
    return max(known.items(), key=lambda item: item[1].low or 0.0)


def write_settings(path: Path, settings: Sequence[str], comments: Sequence[str]) -> None:
    """A file for --envFile; whole, or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("".join([*(f"# {line}\n" for line in comments), *(f"{each}\n" for each in settings)]))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _best(arguments: argparse.Namespace) -> int:
    rows = history.read(arguments.rows, COLUMNS)
    names = arguments.candidates.read_text().splitlines()
    valid = sum(row["status"] == "ok" for row in rows)
    if not valid:
        print(f"tuning: error: none of {len(rows)} loops was valid, so nothing is known.", file=sys.stderr)
        return 1
    found = best(rows, names, arguments.loops)
    settings: list[str] = []
    if found is None:
        result = f"No setting was measured {FEWEST_ROUNDS} times, so the defaults stay; try more loops."
    elif found[1].verdict == "faster":
        settings = found[0].split()
        result = f"{found[0]}: speed {found[1]} beside the defaults, with 95 % confidence."
    else:
        result = f"Nothing is faster than the defaults beyond the noise; the best was {found[0]}: speed {found[1]}."
    comments = [arguments.comment, f"{valid} valid loops of {len(rows)}. {result}"]
    write_settings(arguments.out, settings, comments)
    print(f"{result}\n{arguments.out}: {' '.join(settings) or 'the defaults'} ({valid} valid loops of {len(rows)})")
    return 0


def main() -> int:
    """Run one of the four; 1 when no loop was valid, or when something cannot be read or written."""
    parser = argparse.ArgumentParser(description="Computations of tune-adaptive.sh.")
    commands = parser.add_subparsers(required=True, dest="command")
    each = commands.add_parser("candidates")
    each.add_argument("--backend", required=True)
    each.add_argument("--cores", type=int, required=True)
    for name in ("next", "best"):
        each = commands.add_parser(name)
        each.add_argument("rows", type=Path)
        each.add_argument("--candidates", type=Path, required=True)
        each.add_argument("--loops", type=int, required=True)
    each.add_argument("--comment", required=True)
    each.add_argument("--out", type=Path, required=True)
    each = commands.add_parser("add")
    each.add_argument("rows", type=Path)
    each.add_argument("values", nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.command == "candidates":
            print("\n".join(candidates(json.load(sys.stdin), arguments.backend, arguments.cores)))
        elif arguments.command == "next":
            names = arguments.candidates.read_text().splitlines()
            print(next_candidate(names, history.read(arguments.rows, COLUMNS), arguments.loops))
        elif arguments.command == "best":
            return _best(arguments)
        else:
            row = dict(value.partition("=")[::2] for value in arguments.values)
            if row.get("status") == "ok":
                row["speed_ratio"] = f"{float(row['default_ms']) / float(row['candidate_ms']):.4f}"
            history.append(arguments.rows, [row], COLUMNS)
    except (HistoryError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"tuning: error: {error if isinstance(error, HistoryError) else repr(error)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
