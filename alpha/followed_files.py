"""Following files that grow by whole lines, as others write them: what is new, never the whole file again.

Knows nothing about what the lines mean.
"""

import json
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from alpha.errors import AlphaError
from alpha.files import MAX_LINE_BYTES, Row, open_regular, parse_row

_FINGERPRINT_BYTES = 128
_MOST_LINES = 10_000
_DECODER = json.JSONDecoder()


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
            raise AlphaError(f"Cannot read {self.path}: {error.strerror or error}.") from error

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
            row = parse_row(text[start:stop].encode())
        if isinstance(row, dict):
            rows.append(row)
        else:
            others += 1
        start = stop + 1
    return rows, others


class FollowedLines:
    """The last ten thousand lines of a growing file; `count` is how many there were in all."""

    def __init__(self, path: Path) -> None:
        self.lines: deque[bytes] = deque(maxlen=_MOST_LINES)
        self.count = 0
        self.generation = 0
        """Changes when lines that were there are void."""
        self._follower = LineFollower(path)

    def update(self) -> None:
        """Read what is new. Raises AlphaError when the file cannot be read."""
        while True:
            piece = self._follower.read()
            if piece.restarted:
                self.lines.clear()
                self.count = 0
                self.generation += 1
            lines = piece.content.splitlines(keepends=True)
            self.lines.extend(lines)
            self.count += len(lines)
            if piece.is_end:
                return

    def rows(self) -> list[Row]:
        """The lines that are JSON objects."""
        return parse_lines(b"".join(self.lines))[0]
