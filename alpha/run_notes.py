"""What people write about a run, kept in its folder as notes.json: a name, a group, notes. And deleting a run.

May be done while the run goes on; training does not read it.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from alpha.checkpoint import list_checkpoints
from alpha.errors import AlphaError
from alpha.files import TEMPORARY_NAME, open_regular, read_json, sync_folder, write_json
from alpha.run import CONFIG, LOCK, LOG, METRICS, SAMPLES, STATUS, holding, read_config
from alpha.terminal import escape_line

NOTES = "notes.json"

LONGEST_NAME = 100
LONGEST_NOTES = 20_000
_LIMIT = 1 << 18
_LEFT = re.compile(rf"superseded-checkpoint-[0-9]+\.safetensors|{TEMPORARY_NAME.pattern}", re.ASCII)


@dataclass(frozen=True)
class Notes:
    """Empty texts mean that nobody wrote one."""

    name: str = ""
    group: str = ""
    notes: str = ""


def read_notes(folder: Path) -> Notes:
    """What is written about a run; what is missing, damaged or too long counts as not written."""
    try:
        values = read_json(folder / NOTES, "notes", _LIMIT)
    except AlphaError:
        return Notes()
    texts = {key: values.get(key) for key in ("name", "group", "notes")} if isinstance(values, dict) else {}
    known = {key: text for key, text in texts.items() if isinstance(text, str)}
    return Notes(**{key: text for key, text in known.items() if len(text) <= _longest(key)})


def write_notes(folder: Path, **changes: str) -> Notes:
    """Atomically change some of "name", "group" and "notes" of a run; returns all.

    Raises AlphaError for a name or group that is no single line or too long, a folder without a run, and what the
    operating system refuses.
    """
    for key, text in changes.items():
        if len(text) > _longest(key):
            raise AlphaError(f"A run's {key} has at most {_longest(key):,} characters, not {len(text):,}.")
        if key != "notes" and (escape_line(text) != text or text != text.strip()):
            raise AlphaError(f"A run's {key} is one line without control characters, and without spaces around it.")
    if not (folder / CONFIG).is_file():
        raise AlphaError(f"There is no run in {folder} any more.")
    try:
        open_regular(folder / NOTES).close()
    except FileNotFoundError:
        pass
    except OSError as error:  # what cannot be read is not replaced
        raise AlphaError(f"Cannot read the notes {folder / NOTES}: {error.strerror or error}.") from error
    notes = replace(read_notes(folder), **changes)
    write_json(folder / NOTES, {"name": notes.name, "group": notes.group, "notes": notes.notes})
    return notes


def delete_run(folder: Path) -> list[Path]:
    """Delete the files of a run that nobody holds, and its folder; returns what was left, because it is not Alpha's.

    Raises AlphaError when the run is in use, is no run, or something cannot be deleted. The configuration goes last, so
    that what was deleted in part is still listed and can be deleted again.
    """
    if folder.is_symlink():
        raise AlphaError(f"{folder} is a link; delete what it points to, or remove the link.")
    read_config(folder)
    with holding(folder):
        try:
            own = [folder / name for name in (METRICS, SAMPLES, LOG, STATUS, NOTES)]
            own += [path for _, path in list_checkpoints(folder)]
            own += [path for path in folder.iterdir() if _LEFT.fullmatch(path.name)]
            for path in [*own, folder / CONFIG, folder / LOCK]:
                path.unlink(missing_ok=True)
            left = sorted(folder.iterdir())
            if not left:
                folder.rmdir()
                sync_folder(folder.parent)
        except OSError as error:
            raise AlphaError(
                f"Cannot delete the run {folder}: {error.filename or folder}: {error.strerror}."
            ) from error
    return left


def _longest(key: str) -> int:
    return LONGEST_NOTES if key == "notes" else LONGEST_NAME
