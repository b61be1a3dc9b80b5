"""Writing files so that a crash at any instant leaves the old content or the new one, never half of either.

Knows nothing about what is in the files.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable (POSIX: fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then sync it and rename it into place.

    Raises AlphaError naming the file when the disk is full, the folder is read-only, or anything else the operating
    system refuses. The temporary file is removed on failure and `path` keeps what it held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise AlphaError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically replace the content of `path`."""
    write_atomically(path, lambda temporary: _write_all(temporary, content))


def write_json(path: Path, value: Any) -> None:
    """Atomically write `value` as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; `what` names it in errors ("tokenizer artifact")."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise AlphaError(f"The {what} {path} has {size:,} bytes, more than the {limit:,} that are accepted.")
        return path.read_bytes()
    except OSError as error:
        raise AlphaError(f"Cannot read the {what} {path}: {error.strerror or error}.") from error


def read_json(path: Path, what: str, limit: int = 1 << 28) -> Any:
    """The value of a JSON file of at most `limit` bytes; AlphaError when it is missing, too large or not JSON."""
    content = read_bytes(path, what, limit)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlphaError(f"The {what} {path} is not valid JSON: {error}.") from error


def _write_all(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)


def cache_folder() -> Path:
    """Where things that can be made again are kept: $XDG_CACHE_HOME/alpha, or ~/.cache/alpha; for a user without a home
    folder, .cache/alpha in the current one, where runs are kept, too."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "alpha"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path.cwd()
    return home / ".cache" / "alpha"
