"""The folder where token files are kept: which entries it has, how large they are, and which go when it is full.

An entry is a folder whose name is its key. It has `train.npy` and `train-places.npy`, the same of `validation` when a
part is held out, and `dataset.json`, which is written last and whose time of change says when the entry was last used.
Nothing else is ever deleted.
"""

import contextlib
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from alpha import environment, files

DESCRIPTION = "dataset.json"
ARRAYS = {"train": "train.npy", "validation": "validation.npy"}

PLACES = {"train": "train-places.npy", "validation": "validation-places.npy"}
"""Where in the arrays documents end and answers begin and end: see `TokenFile`."""

_NAMES = (DESCRIPTION, *ARRAYS.values(), *PLACES.values())
_KEY = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Entry:
    """An entry on the disk: its folder, bytes, and when it was last used, in seconds since 1970."""

    folder: Path
    size: int
    used: float


def folder() -> Path:
    """Where the user's token files are kept."""
    return files.cache_folder() / "tokens"


def limit() -> int:
    """The most bytes that are kept."""
    return environment.read("ALPHA_TOKEN_CACHE_MIB") << 20


def entries(cache: Path) -> list[Entry]:
    """Those in a cache folder, the least recently used first; none where it cannot be read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(cache) as listing:
        for each in listing:
            if _KEY.fullmatch(each.name) and each.is_dir(follow_symlinks=False):
                found.append(_entry(Path(each.path)))
    return sorted(found, key=lambda entry: (entry.used, entry.folder.name))


def mark_used(entry: Path) -> None:
    """Note that an entry is used now; a cache that may only be read stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(entry / DESCRIPTION)


def trim(cache: Path, kept: Collection[Path]) -> None:
    """Delete the least recently used entries, but for those in `kept`, until the cache is within its limit.

    What killed writers left behind goes, too. A process that uses an entry keeps its content: the files are open.
    """
    found = entries(cache)
    excess = sum(entry.size for entry in found) - limit()
    for entry in found:
        with contextlib.suppress(OSError):
            files.remove_leftovers(entry.folder)
        if entry.folder in kept:
            continue
        if entry.size and excess > 0:
            _delete(entry.folder)
            excess -= entry.size
        elif not entry.size and time.time() - entry.used > _ABANDONED_SECONDS:
            _delete(entry.folder)


def is_writable(cache: Path) -> bool:
    """Whether entries can be made in a cache folder, which is made where it is missing."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(cache, os.W_OK | os.X_OK)


def _entry(entry: Path) -> Entry:
    states = {}
    for name in _NAMES:
        with contextlib.suppress(OSError):
            states[name] = (entry / name).lstat()
    used = states.get(DESCRIPTION) or states.get(ARRAYS["train"])
    with contextlib.suppress(OSError):
        used = used or entry.lstat()
    return Entry(entry, sum(state.st_size for state in states.values()), used.st_mtime if used else 0.0)


def _delete(entry: Path) -> None:
    """Delete the description first, so that no half of an entry is ever taken for a whole one."""
    with contextlib.suppress(OSError):
        for name in _NAMES:
            (entry / name).unlink(missing_ok=True)
        entry.rmdir()
