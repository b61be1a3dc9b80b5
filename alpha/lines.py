"""Files that grow by whole lines: rows of JSON (metrics, samples) and the log; written, read and followed.

A line is in the file as a whole or not at all: a write that fails is taken back, and the half line that a crash leaves
behind is cut when the file is next opened. Knows nothing about what the lines mean, but that a row may have a "step".
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError
from alpha.files import open_in_place, open_regular, replacing

Row = dict[str, Any]

MAX_LINE_BYTES = 1 << 24
"""Longer lines are taken for damage, so that a file without line ends does not fill the memory."""

_BLOCK_BYTES = 1 << 16
_FIRST_BLOCK_BYTES = 1 << 12
_FINGERPRINT_BYTES = 128
_DECODER = json.JSONDecoder()


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


@dataclass(frozen=True)
class Piece:
    """What a look at a growing file found: `content` is whole lines, each with its line end.

    With `restarted`, all that came before is void: the file was replaced, made shorter, or is gone. `is_end` says that
    there was no more to read, but for a line that is not whole yet.
    """

    content: bytes
    restarted: bool
    is_end: bool


class LineFollower:
    """Reads the lines that others add to a file: only what is new, by the offset of the last look, while it grows.

    A line without an end waits for the rest of it. Rows of a resumed run stand in a new file under the old name, which
    is noticed by the file's identity; one that is overwritten in place, by its length and by the last bytes read.
    A missing file is one without lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Bytes that are read, in whole lines."""
        self.size = 0
        """Of the whole file at the last look."""
        self._identity: tuple[int, int] | None = None
        self._last_bytes = b""
        self._is_inside_long_line = False

    def read(self, limit: int = 1 << 20) -> Piece:
        """The next lines, of about `limit` bytes together. Raises AlphaError when the operating system refuses."""
        try:
            with open_regular(self.path) as file:
                return self._read(file.fileno(), limit)
        except FileNotFoundError:
            return Piece(b"", restarted=self._restart(), is_end=True)
        except OSError as error:
            raise _cannot_read(self.path, error) from error

    def _read(self, descriptor: int, limit: int) -> Piece:
        status = os.fstat(descriptor)
        restarted = self._is_another(descriptor, status) and self._restart()
        self._identity, self.size = (status.st_dev, status.st_ino), status.st_size
        content = os.pread(descriptor, limit, self.offset)
        end = content.rfind(b"\n") + 1
        if not end and len(content) == limit:
            content = os.pread(descriptor, MAX_LINE_BYTES, self.offset)
            end = content.find(b"\n") + 1
            if not end and len(content) == MAX_LINE_BYTES:  # damage: the rest of this line is passed over, too
                self._advance(content)
                self._is_inside_long_line = True
                return Piece(b"", restarted, is_end=False)
        lines = content[:end]
        if end:
            self._advance(lines)
            if self._is_inside_long_line:
                lines = lines[lines.find(b"\n") + 1 :]
                self._is_inside_long_line = False
        rest = content[end:]
        return Piece(lines, restarted, is_end=b"\n" not in rest and self.offset + len(rest) >= self.size)

    def _is_another(self, descriptor: int, status: os.stat_result) -> bool:
        if self._identity != (status.st_dev, status.st_ino) or status.st_size < self.offset:
            return True
        length = len(self._last_bytes)
        return os.pread(descriptor, length, self.offset - length) != self._last_bytes

    def _advance(self, content: bytes) -> None:
        self.offset += len(content)
        self._last_bytes = (self._last_bytes + content[-_FINGERPRINT_BYTES:])[-_FINGERPRINT_BYTES:]

    def _restart(self) -> bool:
        """Begin anew; returns whether anything had been read."""
        had_read = self.offset > 0
        self._identity, self.offset, self.size = None, 0, 0
        self._last_bytes, self._is_inside_long_line = b"", False
        return had_read


def parse_lines(content: bytes) -> tuple[list[Row], int]:
    """The rows among whole lines, and how many other lines there are, which are not JSON objects."""
    rows: list[Row] = []
    others = 0
    text = content.decode(errors="replace")  # a damaged character cannot hide a line end
    start, end = 0, len(text)
    while start < end:
        try:
            row, stop = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            row, stop = None, -1
        if stop < 0 or text[stop] != "\n":  # spaces around the object, or no JSON
            stop = text.find("\n", start)
            row = _parse(text[start:stop].encode())
        if isinstance(row, dict):
            rows.append(row)
        else:
            others += 1
        start = stop + 1
    return rows, others


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


def read_rows_backwards(path: Path, limit: int, having: bytes = b"") -> Iterator[Row]:
    """The rows from the last to the first, but for lines without the bytes `having`, looking at no more than the last
    `limit` bytes of the file.

    Lines that are not JSON objects are passed over and a missing file has no rows: this is for overviews.
    """
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            stop = max(0, end - limit)
            rest = b""
            is_last = True
            length = min(_BLOCK_BYTES, _FIRST_BLOCK_BYTES)
            while end > stop:
                start = max(stop, end - length)
                length = min(_BLOCK_BYTES, 4 * length)
                file.seek(start)
                content = file.read(end - start) + rest
                # Most blocks of a long file have none of the lines that are looked for.
                rest, *lines = content.split(b"\n", -1 if having in content else 1)
                if is_last and lines:
                    lines.pop()
                    is_last = False
                yield from (row for line in reversed(lines) if having in line and (row := _parse(line)) is not None)
                end = start
            first = None if stop or is_last or having not in rest else _parse(rest)
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
