"""Every `ALPHA_*` environment variable, declared once with its meaning, and the file of --envFile that sets some.

`alpha env` prints the table. The file has KEY=value lines. A key is a variable, which counts unless the environment
sets it, or one of KNOBS, which counts as that option unless the command line gives it; a command that has no such
option is not concerned. Empty lines and lines that begin with # are passed over.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError, UsageError
from alpha.files import read_bytes
from alpha.option import LARGEST_INTEGER, Option, convert, nearest, option, whole_number

_PREFIX = "ALPHA_"


@dataclass(frozen=True)
class Variable:
    """A run-time knob that is a whole number of at least `minimum`, or one of `words`, then read as its place there."""

    name: str
    default: int
    help: str
    minimum: int = 0
    words: tuple[str, ...] = ()

    def shown(self, value: int) -> int | str:
        """A value as people write it."""
        return self.words[value] if self.words else value


VARIABLES = (
    Variable(
        "ALPHA_ADAPTIVE_MEM_STATS_POLL_EVERY",
        8,
        "Steps between two looks at how much of a GPU's memory is in use; metrics.jsonl gets the most that was seen.",
        minimum=1,
    ),
    Variable(
        "ALPHA_ADAPTIVE_SYNC_DEFERRED_THRESHOLD",
        128,
        "MiB on their way to a GPU, outside a recorded step, that may be collected before it is given them.",
        minimum=1,
    ),
    Variable(
        "ALPHA_ADAPTIVE_SYNC_MIN_INTERVAL",
        1,
        "Training steps that a GPU is given together, as soon as so many of ALPHA_STEPS_IN_FLIGHT are missing.",
        minimum=1,
    ),
    Variable(
        "ALPHA_ADAPTIVE_SYNC_PENDING_THRESHOLD",
        256,
        "Operations outside a recorded step that may be collected before a GPU is given them.",
        minimum=1,
    ),
    Variable("ALPHA_CALLBACK_YIELD_EVERY", 25, "Most steps between two refreshes of the progress display.", minimum=1),
    Variable(
        "ALPHA_CHECK",
        0,
        "1 runs every operation of a GPU on cpu_ref, too, and stops at the first whose result differs; slow.",
    ),
    Variable(
        "ALPHA_DEBUG",
        0,
        "1 adds the traceback to error messages and names the GPU; 2 adds time, GB/s and TFLOP/s of each GPU kernel at "
        "the end; 3 adds memory plans and how matrix products are divided; 4 adds every dispatch.",
    ),
    Variable(
        "ALPHA_DEVICE",
        -1,
        "Number of the Vulkan device where --device names none, as alpha devices lists them; -1 = the first GPU.",
        minimum=-1,
    ),
    Variable(
        "ALPHA_FAIL_ON_SMOKE_TEST",
        1,
        "0 goes on with a GPU whose results, tested at the start, are wrong, and marks the run's metrics.",
    ),
    Variable(
        "ALPHA_GPU_METRICS_SAMPLE_EVERY",
        75,
        "Steps between two rows of metrics.jsonl that say how much of a GPU's memory is in use.",
        minimum=1,
    ),
    Variable(
        "ALPHA_HISTORY",
        1000,
        "Most entries kept of what is typed in alpha sample --interactive, in ~/.local/state/alpha/history; 0 = none.",
    ),
    Variable(
        "ALPHA_RELAY",
        0,
        "on lets a GPU begin each round of a decode step before the one before has ended, if a trial shows that it "
        "can; off has it wait at a barrier; auto is on with NVIDIA's driver.",
        words=("auto", "off", "on"),
    ),
    Variable(
        "ALPHA_SPLIT",
        0,
        "on has a GPU that trains in float32 compute large products on its matrix units, each operand in two pieces "
        "of 16 bits, as exactly as without for numbers down to 2^-28 of an operand's largest; off leaves matrix "
        "units to 16 bits; auto is on for H100 and H200.",
        words=("auto", "off", "on"),
    ),
    Variable(
        "ALPHA_STEPS_IN_FLIGHT",
        3,
        "Training steps that a GPU may have been given before the oldest is waited for.",
        minimum=1,
    ),
    Variable(
        "ALPHA_TOKEN_CACHE_MIB",
        16 << 10,
        "Most MiB of encoded corpora kept in the cache folder; what was not used for the longest time goes first.",
    ),
    Variable(
        "ALPHA_TUNE",
        0,
        "on times a few tiles of each large product without matrix units before a GPU first computes it, for 10 s at "
        "most, and keeps the best for later runs; again times anew; off takes the estimate's; auto is on but for H100 "
        "and H200.",
        words=("auto", "off", "on", "again"),
    ),
    Variable("ALPHA_VK_VALIDATE", 0, "1 has the Vulkan validation layers check all that the Vulkan backend does."),
)
API_KEY = "ALPHA_API_KEY"
TEXTS = {API_KEY: "Key that alpha serve asks its clients for, unless --apiKey names one; not shown here."}
"""Variables that are any text."""

BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str) -> int:
    """The value of a declared variable. Raises UsageError when it is set to something that is not such a number."""
    text = os.environ.get(name, "")
    return number(name, text, f"The environment variable {name}") if text else BY_NAME[name].default


def word(name: str) -> str:
    """The same of a variable that is one of some words."""
    return BY_NAME[name].words[read(name)]


def number(name: str, text: str, where: str) -> int:
    """The value that a text gives to a declared variable; `where` begins the sentence of the UsageError otherwise."""
    minimum, words = BY_NAME[name].minimum, BY_NAME[name].words
    if words:
        if text not in words:
            raise UsageError(f"{where} must be {', '.join(words[:-1])} or {words[-1]}, not {text[:80]!r}.")
        return words.index(text)
    value = whole_number(text)
    if value is None:
        raise UsageError(f"{where} must be a whole number, not {text[:80]!r}.")
    if value < minimum:
        raise UsageError(f"{where} must be at least {minimum}, not {text[:80]}.")
    if value > LARGEST_INTEGER:
        raise UsageError(f"{where} must be at most {LARGEST_INTEGER}, not {text[:80]}.")
    return value


def misspelt() -> list[str]:
    """One sentence for each variable that is set, looks like one of Alpha's, and is none."""
    known = (*BY_NAME, *TEXTS)
    names = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
    return [f"Alpha reads no environment variable {name}. {nearest(name, known)}" for name in names]


# --- settings from a file, for every command --------------------------------------------------------------------------


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


def apply_file(path: Path, options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Set the environment variables that a file names; returns `given` with the file's knobs among them.

    `options` are those of the command and `given` those of its command line, by field name. Nothing is changed when
    the file has an error: AlphaError when it cannot be read, UsageError for a line that is wrong.
    """
    variables, knobs = _read_file(path)
    chosen = dict(given)
    for each in options:
        if each.flag in knobs and each.name not in given:
            text, where = knobs[each.flag]
            chosen[each.name] = convert(each, text, where)
    for name, text in variables.items():
        if not os.environ.get(name):
            os.environ[name] = text
    return chosen


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """The variables of a file with their texts, and the knobs with their texts and places."""
    try:
        lines = read_bytes(path, "environment file", LARGEST_FILE).decode().splitlines()
    except UnicodeDecodeError as error:
        raise AlphaError(f"The environment file {path} is not UTF-8 text: {error.reason}.") from error
    variables: dict[str, str] = {}
    knobs: dict[str, tuple[str, str]] = {}
    for line_number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        name = _OLD_NAMES.get(name, name)
        place = f"line {line_number} of {path}"
        if not equals or not name or not value:
            raise UsageError(f"Expected KEY=value in {place}.")
        if name in variables or name in knobs:
            raise UsageError(f"{name} is set a second time in {place}; keep one.")
        if name in BY_NAME:
            number(name, value, f"{name} in {place}")
            variables[name] = value
        elif name in TEXTS:
            variables[name] = value
        elif name in KNOBS:
            knobs[name] = (value, f"{name} in {place}")
        else:
            raise UsageError(f"Unknown key {name[:80]!r} in {place}. {nearest(name, [*BY_NAME, *TEXTS, *KNOBS])}")
    return variables, knobs
