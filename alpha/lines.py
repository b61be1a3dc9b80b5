"""Files that grow by whole lines: rows of JSON (metrics, samples) and the log.

A line is in the file as a whole or not at all: a write that fails is taken back, and the half line that a crash leaves
behind is cut when the file is next opened. Knows nothing about what the lines mean, but that a row may have a "step".
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError
from alpha.files import open_in_place, open_regular, replacing

Row = dict[str, Any]

MAX_LINE_BYTES = 1 << 24
"""Longer lines are taken for damage, so that a file without line ends does not fill the memory."""

_BLOCK_BYTES = 1 << 16


class LineFile:
    """A file open for appending whole lines; what a crash cut short at its end is removed first.

    Every method raises AlphaError, naming the file, when the operating system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = open_in_place(path)
            try:
                self._cut_torn_line()
            except OSError:
                self.close()
                raise
        except OSError as error:
            raise _cannot_write(path, error) from error

    def append(self, line: str) -> None:
        """Add a line; when it returns, the line survives the death of the process (not of the machine: see `sync`)."""
        content = line.encode(errors="backslashreplace") + b"\n"
        try:
            size = os.fstat(self._descriptor).st_size
            try:
                written = 0
                while written < len(content):
                    written += os.write(self._descriptor, content[written:])
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def append_row(self, row: Row) -> None:
        """Add a row of JSON; see `finite` for the numbers that JSON does not have."""
        self.append(json.dumps(finite(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")))

    def sync(self) -> None:
        """Make every line so far survive a power failure."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def keep_through(self, step: int) -> int:
        """Atomically remove the rows whose "step" is above `step`, and lines that are not rows; returns how many."""
        dropped = sum(not _is_through(line, step) for line in _whole_lines(self.path))
        if dropped:
            with replacing(self.path) as file:
                file.writelines(line for line in _whole_lines(self.path) if _is_through(line, step))
            old = self._descriptor
            try:
                self._descriptor = open_in_place(self.path)
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            os.close(old)
        return dropped

    def close(self) -> None:
        """Give the file back; call nothing else afterwards."""
        os.close(self._descriptor)

    def _cut_torn_line(self) -> None:
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - _BLOCK_BYTES)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end)


def finite(value: Any) -> Any:
    """`value` with numpy scalars as Python numbers, and NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, none when it is missing; a half line at the end is passed over, as its writer may be alive.

    Raises AlphaError for any other line that is not a JSON object.
    """
    for number, line in enumerate(_whole_lines(path), start=1):
        row = _parse(line)
        if row is None:
            raise AlphaError(f"Line {number} of {path} is not a JSON object; correct it or remove the line.")
        yield row


def read_rows_backwards(path: Path, limit: int) -> Iterator[Row]:
    """The rows from the last to the first, looking at no more than the last `limit` bytes of the file.

    Lines that are not JSON objects are passed over and a missing file has no rows: this is for overviews.
    """
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            stop = max(0, end - limit)
            rest = b""
            is_last = True
            while end > stop:
                start = max(stop, end - _BLOCK_BYTES)
                file.seek(start)
                rest, *lines = (file.read(end - start) + rest).split(b"\n")
                if is_last and lines:
                    lines.pop()
                    is_last = False
                yield from (row for line in reversed(lines) if (row := _parse(line)) is not None)
                end = start
            first = None if stop or is_last else _parse(rest)
            if first is not None:
                yield first
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_read(path, error) from error


def _is_through(line: bytes, step: int) -> bool:
    row = _parse(line)
    if row is None:
        return False
    value = row.get("step")
    return isinstance(value, int) and value <= step


def _whole_lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                if line.endswith(b"\n"):
                    yield line
                elif len(line) == MAX_LINE_BYTES:
                    raise AlphaError(f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes; it is damaged.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_read(path, error) from error


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cannot_write(path: Path, error: OSError) -> AlphaError:
    return AlphaError(f"Cannot write {path}: {error.strerror or error}.")


def _cannot_read(path: Path, error: OSError) -> AlphaError:
    return AlphaError(f"Cannot read {path}: {error.strerror or error}.")
