"""The history of benchmark runs: a CSV file that only ever grows by whole lines.

    python perf/history.py import FILE.csv...     # add the rows of other histories, such as another machine's

A row is added under a lock (flock), in one piece; when the disk is full, what was written of it is taken back, and half
a line that a power failure left behind is cut off before the next one. Rows are never changed.
"""

import argparse
import csv
import fcntl
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

COLUMNS = (
    "timestamp", "git_commit", "steps", "backend", "compile_ms", "run_ms", "avg_tok_s", "last_tok_s", "speedup_pct",
    "run_dir", "log_file", "status",
    # What the first twelve leave out.
    "reason", "machine", "workload", "configuration", "executable", "threads", "warmup_steps", "measured_steps",
    "median_ms", "spread_pct", "error_pct", "median_tok_s", "speedup_low_pct", "speedup_high_pct", "verdict",
    "attempts", "load_average", "busy_cores", "niceness",
)  # fmt: skip
"""Of a row; `perf/README.md` says what they mean."""

HISTORY = Path(__file__).resolve().parent / "compiled-loop-history.csv"

Row = dict[str, str]


class HistoryError(Exception):
    """The file cannot be read or written; the message says which and why."""


def read(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """The rows of a history; none when there is no file. Half a line at the end is passed over."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise HistoryError(f"cannot read {path}: {error}") from error
    return _parse(text[: text.rfind("\n") + 1], path, columns)


def append(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> int:
    """Add rows, those excepted that are there already; returns how many were added."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return _append_locked(descriptor, path, rows, columns)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HistoryError(f"cannot add to {path}: {error.strerror or error}") from error


def _append_locked(descriptor: int, path: Path, rows: Iterable[Row], columns: Sequence[str]) -> int:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(descriptor, whole)
    present = _parse(content[:whole].decode(), path, columns)
    new = []
    for row in rows:
        complete = {name: _in_one_line(row.get(name, "")) for name in columns}
        if complete not in present:
            present.append(complete)
            new.append(complete)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not whole:
        writer.writeheader()
    writer.writerows(new)
    if not new:
        return 0
    rest = text.getvalue().encode()
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, whole)
        raise
    return len(new)


def _in_one_line(value: str) -> str:
    return " ".join(value.split())


def _parse(text: str, path: Path, columns: Sequence[str]) -> list[Row]:
    lines = csv.reader(io.StringIO(text))
    header = next(lines, None)
    if header is None:
        return []
    if tuple(header) != tuple(columns):
        raise HistoryError(f"{path} has other columns than this version writes; move it away")
    rows = []
    for values in lines:
        if len(values) != len(columns):
            raise HistoryError(f"line {lines.line_num} of {path} does not have {len(columns)} values; correct it")
        rows.append(dict(zip(columns, values, strict=True)))
    return rows


def main() -> int:
    """Import; 1 when a file cannot be read or written."""
    parser = argparse.ArgumentParser(description="Add rows of other histories to this checkout's.")
    commands = parser.add_subparsers(required=True)
    importing = commands.add_parser("import", help="add the rows that are not there yet")
    importing.add_argument("files", nargs="+", type=Path, metavar="FILE")
    importing.add_argument("--history", type=Path, default=HISTORY, help="the file to add to")
    arguments = parser.parse_args()
    try:
        for path in arguments.files:
            if not path.is_file():
                raise HistoryError(f"there is no file {path}")
            print(f"{path}: {append(arguments.history, read(path))} new rows")
    except HistoryError as error:
        print(f"history: error: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
