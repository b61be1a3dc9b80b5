"""Settings from a file of KEY=value lines, for every command: `--envFile=FILE`.

A key is an `ALPHA_*` variable, which counts unless the environment sets it, or one of KNOBS, which counts as that
option unless the command line gives it; a command that has no such option is not concerned. Empty lines and lines that
begin with # are passed over.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha import environment
from alpha.errors import AlphaError, UsageError
from alpha.files import read_bytes
from alpha.option import Option, convert, nearest, option

KNOBS = ("threads", "recompute")
"""Options that change how fast something is done, and nothing of the result."""

_OLD_NAMES = {"checkpoint": "recompute"}

LARGEST_FILE = 1 << 16


@dataclass(frozen=True)
class EnvFileOptions:
    """The option that every command has."""

    env_file: str = option(
        "", "File of KEY=value lines: environment variables of alpha env, threads, recompute.",
        group="Environment", metavar="FILE",
    )  # fmt: skip


def apply(path: Path, options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Set the environment variables that a file names; returns `given` with the file's knobs among them.

    `options` are those of the command and `given` those of its command line, by field name. Nothing is changed when
    the file has an error: AlphaError when it cannot be read, UsageError for a line that is wrong.
    """
    variables, knobs = _read(path)
    chosen = dict(given)
    for each in options:
        if each.flag in knobs and each.name not in given:
            text, where = knobs[each.flag]
            chosen[each.name] = convert(each, text, where)
    for name, text in variables.items():
        if not os.environ.get(name):
            os.environ[name] = text
    return chosen


def _read(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """The variables of a file with their texts, and the knobs with their texts and places."""
    try:
        lines = read_bytes(path, "environment file", LARGEST_FILE).decode().splitlines()
    except UnicodeDecodeError as error:
        raise AlphaError(f"The environment file {path} is not UTF-8 text: {error.reason}.") from error
    variables: dict[str, str] = {}
    knobs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        name = _OLD_NAMES.get(name, name)
        place = f"line {number} of {path}"
        if not equals or not name or not value:
            raise UsageError(f"Expected KEY=value in {place}.")
        if name in variables or name in knobs:
            raise UsageError(f"{name} is set a second time in {place}; keep one.")
        if name in environment.BY_NAME:
            environment.number(name, value, f"{name} in {place}")
            variables[name] = value
        elif name in KNOBS:
            knobs[name] = (value, f"{name} in {place}")
        else:
            raise UsageError(f"Unknown key {name[:80]!r} in {place}. {nearest(name, [*environment.BY_NAME, *KNOBS])}")
    return variables, knobs
