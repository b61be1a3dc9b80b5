"""`alpha env`: the environment variables that Alpha reads, their values and meanings."""

import os
from dataclasses import dataclass
from typing import Any

from alpha import environment, token_cache
from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import print_json, print_table, print_text, print_warning


@dataclass(frozen=True)
class EnvOptions:
    """The options of `alpha env`."""

    json: bool = option(False, "Print JSON.")


OPTIONS = (EnvOptions,)
_CACHE_HOME = "XDG_CACHE_HOME"
_CACHE_HELP = "Folder whose folder alpha/ keeps encoded corpora and compiled pipelines, which can be made again."
_STATE_HOME = "XDG_STATE_HOME"
_STATE_HELP = "Folder whose folder alpha/ keeps what was typed."
_CACHE_LIMIT = "ALPHA_TOKEN_CACHE_MIB"
DETAILS = ""


def run(given: dict[str, Any]) -> None:
    """Print the table. A variable with a bad value is shown as it is and then refused by UsageError."""
    values: dict[str, int | str] = {}
    problems = []
    for variable in environment.VARIABLES:
        try:
            values[variable.name] = variable.shown(environment.read(variable.name))
        except UsageError as error:
            values[variable.name] = os.environ[variable.name]
            problems.append(error)
    every: list[tuple[str, int | str, int | str, str]] = [
        (each.name, values[each.name], each.shown(each.default), each.help) for each in environment.VARIABLES
    ]
    every += [(name, "set" if os.environ.get(name) else "", "", text) for name, text in environment.TEXTS.items()]
    every.append((_CACHE_HOME, os.environ.get(_CACHE_HOME, ""), "~/.cache", _CACHE_HELP))
    every.append((_STATE_HOME, os.environ.get(_STATE_HOME, ""), "~/.local/state", _STATE_HELP))
    entries = token_cache.entries(token_cache.folder())
    size = sum(entry.size for entry in entries)
    if EnvOptions(**given).json:
        rows = [dict(zip(("name", "value", "default", "meaning"), row, strict=True)) for row in every]
        cache = {"folder": str(token_cache.folder()), "entries": len(entries), "bytes": size}
        print_json([{**row, **(cache if row["name"] == _CACHE_LIMIT else {})} for row in rows])
    else:
        print_table(
            ("variable", "value", "default", "meaning"),
            [[str(cell) for cell in row] for row in every],
            right=("value", "default"),
        )
        print_text(
            f"\nEncoded corpora: {size / (1 << 20):,.1f} MiB of at most {values[_CACHE_LIMIT]} MiB, {len(entries)} in "
            f"{token_cache.folder()}. The folder may be deleted at any time."
        )
    for sentence in environment.misspelt():
        print_warning(sentence)
    if problems:
        raise problems[0]
