#!/usr/bin/env python3
"""Damaged files for every reader that a stranger's file can reach, for as long as it is told; prints what went wrong.

Usage: fuzz.py [--seconds=60] [--from=SEED] [--only=READER]

The readers take turns; a finding is printed once by its kind, with what repeats it:
  fuzz.py --only="token cache" --from=1234 --seconds=0
Ends with 1 when there was a finding.
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzzing  # noqa: E402

TURN_SECONDS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage files and read them.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--from", type=int, default=1000, dest="first", metavar="SEED")
    parser.add_argument("--only", choices=fuzzing.READERS, metavar="READER")
    options = parser.parse_args()
    names = [options.only] if options.only else [*fuzzing.READERS]
    if not fuzzing.has_vulkan() and "pipelines" in names:
        print("fuzz: no Vulkan device, so files of compiled pipelines are left out", file=sys.stderr)
        names.remove("pipelines")
    findings: dict[str, str] = {}
    seeds = dict.fromkeys(names, options.first)
    with tempfile.TemporaryDirectory() as folder:
        fuzzers = [fuzzing.Fuzzer(name, Path(folder, name)) for name in names]
        end = time.monotonic() + options.seconds
        while True:
            for fuzzer in fuzzers:
                turn = time.monotonic() + TURN_SECONDS
                while True:
                    attempt(fuzzer, seeds[fuzzer.name], findings)
                    seeds[fuzzer.name] += 1
                    if time.monotonic() >= min(turn, end):
                        break
            if time.monotonic() >= end:
                break
    for name, seed in seeds.items():
        print(f"{name:<24} {seed - options.first:>9,} damaged files")
    print(f"{len(findings)} kinds of findings")
    return 1 if findings else 0


def attempt(fuzzer: fuzzing.Fuzzer, seed: int, findings: dict[str, str]) -> None:
    """One damaged file; a finding of a new kind is printed."""
    try:
        fuzzer.attempt(seed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{fuzzer.name}: {type(error).__name__} in {where.filename}:{where.lineno}"
        if kind not in findings:
            findings[kind] = f'--only="{fuzzer.name}" --from={seed} --seconds=0'
            print(f"{kind}: {str(error)[:300]}\n  {findings[kind]}", flush=True)
            traceback.print_exc(limit=-4)


if __name__ == "__main__":
    sys.exit(main())
