"""Speed of the tokenizers on real text: the sources and documents of Python's standard library.

    python perf/tokenizer.py [MEGABYTES=10] [REPEATS=3]

One thread. Prints JSON: medians, with the fastest and slowest of the repeats. "cold" encodes with nothing remembered,
one document at a time; "warm" encodes the same documents again.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from alpha.tokenizer import Tokenizer
from alpha.tokenizer_registry import build

NAMES = ("bpe-4k", "bpe-32k", "word", "char")
PIECE_BYTES = 1_000_000


def standard_library(limit: int) -> list[str]:
    """Documents of the standard library in order of their paths, `limit` bytes at least where it has as many."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    size = 0
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".txt", ".rst") and "site-packages" not in path.parts and size < limit:
            content = path.read_bytes()
            texts.append(content.decode("utf-8", "replace"))
            size += len(content)
    return texts


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[Any]:
    """The ids of every document."""
    return [tokenizer.encode_to_array(text) for text in texts]


def measure(name: str, texts: list[str], size: int, repeats: int) -> dict[str, Any]:
    """Build, encode and decode with one kind of tokenizer; rates in 10^6 bytes of UTF-8 a second."""
    building, cold, warm, decoding = [], [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        tokenizer = build(name, texts)
        building.append(time.perf_counter() - start)
        cold.append(size / 1e6 / seconds(lambda made=tokenizer: encode_all(made, texts)))
        warm.append(size / 1e6 / seconds(lambda made=tokenizer: encode_all(made, texts)))
        ids = np.concatenate(encode_all(tokenizer, texts))
        decoding.append(size / 1e6 / seconds(lambda made=tokenizer, these=ids: made.decode_bytes(these)))
    row: dict[str, Any] = {
        "tokenizer": name,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(size / len(ids), 3),
        "build_seconds": summary(building),
        "encode_cold_mb_per_second": summary(cold),
        "encode_warm_mb_per_second": summary(warm),
        "decode_mb_per_second": summary(decoding),
    }
    if tokenizer.kind == "bpe":
        row["encode_one_piece_of_a_megabyte_seconds"] = {
            label: round(seconds(lambda made=tokenizer, piece=letter * PIECE_BYTES: made.encode_to_array(piece)), 3)
            for label, letter in (("letters", "a"), ("spaces", " "))
        }
    return row


def main() -> None:
    """Measure every name and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", type=float, nargs="?", default=10.0)
    parser.add_argument("repeats", type=int, nargs="?", default=3)
    arguments = parser.parse_args()
    texts, repeats = standard_library(int(arguments.megabytes * 1e6)), arguments.repeats
    size = sum(len(text.encode()) for text in texts)
    result = {
        "benchmark": "tokenizer",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "corpus": {"bytes": size, "documents": len(texts)},
        "repeats": repeats,
        "rows": [measure(name, texts, size, repeats) for name in NAMES],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
