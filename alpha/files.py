"""Opening files: whatever is read is a regular file, and whatever is written is whole, ours alone, and behind no link.

A file is replaced so that a crash at any instant leaves the old content or the new one, never half of either. Files
that grow (rows of JSON, the log) have a line as a whole or not at all: a write that fails is taken back, and the half
line that a crash leaves behind is cut when the file is next opened.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from alpha.errors import AlphaError

TEMPORARY_NAME = re.compile(r"\.alpha-[0-9a-f]{32}\.tmp", re.ASCII)
"""The names of files that are not whole yet."""

_CHUNK_BYTES = 1 << 20
_ANOTHER_CACHE = "Make room, or set XDG_CACHE_HOME to a folder on another disk for what can be made again."

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, bytes_done, bytes_in_all) while something long is read or written."""


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading. OSError for anything else: a named pipe would wait for a writer for ever, and a
    device never end."""
    _require_name(path)
    _require_regular(path.stat())
    # What the name means may change in between; opening a pipe then must not wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; `what` names it in errors ("tokenizer artifact")."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = bytearray()
            # Not by the size alone, which is 0 for the files of /proc, and less than what a growing file gives.
            while size <= limit and len(content) <= limit and (chunk := os.read(file.fileno(), _CHUNK_BYTES)):
                content += chunk
    except OSError as error:
        raise AlphaError(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    size = max(size, len(content))
    if size > limit:
        raise AlphaError(f"The {what} {path} has {size:,} bytes, more than the {limit:,} that are accepted.")
    return bytes(content)


def read_json(path: Path, what: str, limit: int) -> Any:
    """The value of a JSON file of at most `limit` bytes; AlphaError when it is missing, too large or not JSON."""
    content = read_bytes(path, what, limit)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlphaError(f"The {what} {path} is not valid JSON: {error}.") from error


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of `path` when the `with` block ends; folders are made.

    It has a name that no other process can have, and is on the disk before it gets its own. When the block raises, it
    is removed, with the folders that were made, and `path` keeps what it held. Raises AlphaError naming `path` when the
    disk is full, the folder is read-only, `path` is a link or no regular file, or for anything else that the operating
    system refuses.
    """
    try:
        _require_name(path)
        with making_folder(path.parent):
            with contextlib.suppress(FileNotFoundError):
                _require_regular(path.lstat())
            remove_leftovers(path.parent)
            temporary, file = _create(path.parent, mode)
            try:
                with file:  # the lock on it lasts until it has its name
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Make a folder, with those above it that are missing. When the `with` block raises, what was made goes again,
    unless somebody has put something into it."""
    missing = list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Atomically replace the content of `path`, and its rights by those of `mode` that the user's mask leaves."""
    with replacing(path, mode) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Atomically write `value` as indented JSON."""
    write_bytes(path, (json_text(value, indent=2) + "\n").encode())


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that is UTF-8: half a character, as in a file name that is not UTF-8, becomes an escape as in
    JSON calls it, and is read back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def open_in_place(path: Path) -> int:
    """The descriptor of a regular file to read and to append to, which is made when it is missing.

    OSError for a link, a file with a second name (what is written would change there, too), a pipe, a device.
    """
    _require_name(path)
    with contextlib.suppress(FileNotFoundError):
        _require_regular(path.lstat())
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        _require_regular(status)
        if status.st_nlink > 1:
            raise OSError(errno.EMLINK, "it has a second name (hard link); put a copy in its place")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable (POSIX: fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in a folder: files with our temporary names that nobody holds locked.

    `replacing` does this, too. What may not be removed, or cannot be locked on this file system, stays.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY_NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def _create(folder: Path, mode: int = 0o666) -> tuple[Path, BinaryIO]:
    """A new file of ours in a folder, locked while it is open: by the lock, not by a process number, which is the same
    in two containers, others see that its writer lives."""
    while True:
        path = folder / f".alpha-{secrets.token_hex(16)}.tmp"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb")
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: then nobody takes it for a leftover
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return path, file
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        file.close()  # removed as a leftover in the instant before it was locked


def _require_name(path: Path) -> None:
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        name = b"\0"
    if b"\0" in name:
        raise OSError(errno.EINVAL, "no file can have this name")


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a link; name the file itself, or remove the link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


@contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A new folder in the cache, or where that cannot be written, in that for temporary files (TMPDIR); for the length
    of a `with` block."""
    parent = cache_folder() / what
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=parent)
        except OSError:
            folder = tempfile.TemporaryDirectory(prefix="alpha-")
    except OSError as error:
        raise AlphaError(
            f"Neither the cache {parent} nor a folder for temporary files can be written ({error.strerror or error}); "
            "set XDG_CACHE_HOME or TMPDIR to a folder that can."
        ) from error
    with folder as name, cache_room():
        yield Path(name)


@contextmanager
def cache_room() -> Iterator[None]:
    """Inside, where files of the cache are written, the error of a full disk says how to have the cache elsewhere."""
    try:
        yield
    except AlphaError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AlphaError(f"{error} {_ANOTHER_CACHE}") from cause
        raise


def cache_folder() -> Path:
    """Where things that can be made again are kept: $XDG_CACHE_HOME/alpha, or ~/.cache/alpha; for a user without a home
    folder, .cache/alpha in the current one, where runs are kept, too."""
    return _own_folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Where is kept what a user would miss a little, such as what was typed: $XDG_STATE_HOME/alpha, or
    ~/.local/state/alpha."""
    return _own_folder("XDG_STATE_HOME", ".local/state")


def _own_folder(variable: str, usual: str) -> Path:
    base = os.environ.get(variable)
    if base:
        return Path(base) / "alpha"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path.cwd()
    return home / usual / "alpha"


# --- files that grow by whole lines -----------------------------------------------------------------------------------


Row = dict[str, Any]

MAX_LINE_BYTES = 1 << 24
"""Longer lines are taken for damage, so that a file without line ends does not fill the memory."""

_BLOCK_BYTES = 1 << 16
_FIRST_BLOCK_BYTES = 1 << 12


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
            self._open_again()
        return dropped

    def make_again(self) -> None:
        """Where somebody removed the file, have a new one for the lines to come."""
        if not os.path.lexists(self.path):
            self._open_again()

    def _open_again(self) -> None:
        old = self._descriptor
        try:
            self._descriptor = open_in_place(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        os.close(old)

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
                yield from (row for line in reversed(lines) if having in line and (row := parse_row(line)) is not None)
                end = start
            first = None if stop or is_last or having not in rest else parse_row(rest)
            if first is not None:
                yield first
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_read(path, error) from error


def _is_through(line: bytes, step: int) -> bool:
    row = parse_row(line)
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


def parse_row(line: bytes) -> Row | None:
    """A line as a JSON object, None when it is not one."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cannot_write(path: Path, error: OSError) -> AlphaError:
    return AlphaError(f"Cannot write {path}: {error.strerror or error}.")


def _cannot_read(path: Path, error: OSError) -> AlphaError:
    return AlphaError(f"Cannot read {path}: {error.strerror or error}.")
