"""`alpha runs`: the training runs in a folder, newest first; one of them; several beside each other."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpha.errors import AlphaError, UsageError
from alpha.option import option
from alpha.terminal import (
    duration,
    escape_line,
    print_aside,
    print_json,
    print_part,
    print_table,
    print_text,
)

if TYPE_CHECKING:
    from alpha.run_compare import ComparedRun, Losses
    from alpha.run_reader import RunSummary

_CHANGE = "What people write"


@dataclass(frozen=True)
class RunsOptions:
    """The options of `alpha runs`."""

    dir: str = option("runs", "Folder of the runs.", metavar="DIR")
    run: str = option("", "One run, by id or name: show it, or change it.", metavar="RUN")
    compare: str = option(
        "", "Two runs or more, as A B or A,B,C: options that differ, losses at equal steps and tokens.",
        metavar="RUNS", words=2,
    )  # fmt: skip
    csv: bool = option(False, "Print CSV: the list, or the metrics of --run or --compare.")
    json: bool = option(False, "Print JSON.")
    rename: str = option("", "Give --run a name beside its id.", group=_CHANGE, metavar="NAME")
    group: str = option(
        "", "Put --run into a group; without --run, list those of a group.", group=_CHANGE, metavar="NAME"
    )
    notes: str = option("", "Write notes on --run.", group=_CHANGE)
    delete: bool = option(False, "Delete --run; asks first.", group=_CHANGE)
    yes: bool = option(False, "Do not ask.", group=_CHANGE)


_TEXTS = {"rename": "name", "group": "group", "notes": "notes"}
_LARGEST_PLAIN = 1e12
_COMPARED_POINTS = 10
_STYLES = {"running": "green", "failed": "red", "damaged": "red", "interrupted": "yellow"}

OPTIONS = (RunsOptions,)
DETAILS = """
A name, a group and notes are kept in the run's folder; an empty text takes one away. --compare shows the mean of the
training loss over the last 20 steps or so.

Examples:
  alpha runs --run=20261123-101500-3f2a1b --rename=baseline
  alpha runs --compare baseline 20261124-090000-77ab01
  alpha runs --run=baseline --csv > metrics.csv
"""


def run(given: dict[str, Any]) -> None:
    """Print the list, or do what is asked with one run; an empty folder is no error."""
    from alpha.run_reader import root_of

    options = RunsOptions(**given)
    root = root_of(given)
    texts = {
        key: given[option]
        for key, option in (("name", "rename"), ("group", "group"), ("notes", "notes"))
        if option in given
    }
    if options.compare:
        _refuse(given, "compare", "run", "rename", "group", "notes", "delete")
        _compare(options, root)
    elif options.run and options.delete:
        _refuse(given, "delete", "rename", "group", "notes", "csv", "json")
        _delete(options, root)
    elif options.run and texts:
        _refuse(given, "run", "csv")
        _write(options, root, texts)
    elif options.run:
        _show(options, root)
    elif options.delete or options.rename or options.notes:
        raise UsageError("Say which run with --run.")
    else:
        _list(options, root)


def _refuse(given: dict[str, Any], flag: str, *others: str) -> None:
    for other in others:
        if given.get(other):
            raise UsageError(f"--{flag} and --{other} do not go together; leave one of them out.")


# --- the list ---------------------------------------------------------------------------------------------------------


def _list(options: RunsOptions, root: Path) -> None:
    from alpha.run_api import describe
    from alpha.run_csv import csv_text
    from alpha.run_reader import list_runs

    summaries = list_runs(root)
    if options.group:
        summaries = [each for each in summaries if each.notes.group == options.group]
    if options.json:
        print_json([describe(each) for each in summaries])
    elif options.csv:
        rows = [describe(each) for each in summaries]
        print_part(csv_text([list(rows[0]) if rows else ["runId"], *(list(row.values()) for row in rows)]))
    elif not summaries:
        of_group = f" of the group {options.group!r}" if options.group else "; alpha train makes one"
        print_text(f"There are no runs in {root}{of_group}.")
    else:
        _print_list(summaries)


def _print_list(summaries: "Sequence[RunSummary]") -> None:
    numbers = ["step", "of", "loss", "val loss", "tokens/s"]
    columns: dict[str, list[str]] = {
        "run": [each.title for each in summaries],
        "group": [each.notes.group for each in summaries],
        "status": [each.status for each in summaries],
        "step": [_number(each.step, "d") for each in summaries],
        "of": [_number(each.iters, "d") for each in summaries],
        "loss": [_number(each.loss, ".4f") for each in summaries],
        "val loss": [_number(each.val_loss, ".4f") for each in summaries],
        "tokens/s": [_number(each.tokens_per_sec, ",.0f") for each in summaries],
        "left": ["" if each.seconds_left is None else duration(each.seconds_left) for each in summaries],
        "updated": [f"{each.updated.astimezone():%Y-%m-%d %H:%M}" for each in summaries],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells) or heading not in ("group", "left")}
    print_table(list(shown), list(zip(*shown.values(), strict=True)), right=(*numbers, "left"), styles=_STYLES)


# --- one run ----------------------------------------------------------------------------------------------------------


def _show(options: RunsOptions, root: Path) -> None:
    from alpha.checkpoint import list_checkpoints
    from alpha.run import read_config
    from alpha.run_api import describe
    from alpha.run_compare import ComparedRun, changed_options
    from alpha.run_reader import find_run, summarize

    folder = find_run(options.run, root)
    if options.csv:
        _print_metrics([ComparedRun(folder)])
        return
    summary = summarize(folder)
    changed = {} if summary.status == "damaged" else changed_options(read_config(folder))
    checkpoints = [path.name for _, path in list_checkpoints(folder)]
    if options.json:
        print_json(describe(summary) | {"options": changed, "checkpoints": checkpoints})
        return
    rows = [
        ("name", summary.notes.name),
        ("group", summary.notes.group),
        ("folder", str(summary.folder)),
        ("status", summary.status),
        ("doing", summary.phase),
        ("error", summary.error),
        ("step", _number(summary.step, "d") + (f" of {summary.iters}" if summary.iters else "")),
        ("loss", _number(summary.loss, ".4f")),
        ("validation loss", _number(summary.val_loss, ".4f")),
        ("tokens/s", _number(summary.tokens_per_sec, ",.0f")),
        ("time left", "" if summary.seconds_left is None else duration(summary.seconds_left)),
        ("created", summary.created),
        ("options", " ".join(f"{flag}={_spelled(value)}" for flag, value in changed.items())),
        ("checkpoints", " ".join(checkpoints)),
        ("notes", summary.notes.notes),
    ]
    print_table(("run", summary.run_id), [row for row in rows if row[1]], styles=_STYLES)


def _write(options: RunsOptions, root: Path, texts: dict[str, str]) -> None:
    from alpha.run_api import describe
    from alpha.run_notes import write_notes
    from alpha.run_reader import find_run, id_of, summarize

    folder = find_run(options.run, root)
    notes = write_notes(folder, **texts)
    if options.json:
        print_json(describe(summarize(folder)))
        return
    written = ", ".join(f"{key} {getattr(notes, key)!r}" if getattr(notes, key) else f"no {key}" for key in texts)
    print_text(f"{id_of(folder)}: {written}.")


def _delete(options: RunsOptions, root: Path) -> None:
    from alpha.run_notes import delete_run
    from alpha.run_reader import find_run, id_of, summarize

    folder = find_run(options.run, root)
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("Deleting asks first, and there is no terminal to answer at; give --yes.")
        summary = summarize(folder)
        named = f" ({escape_line(summary.notes.name)})" if summary.notes.name else ""
        print_part(
            f"Delete the run {escape_line(id_of(folder))}{named}, {summary.status} at step {summary.step or 0}? [y/N] "
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise AlphaError(f"The run {folder} stays as it is.")
    left = delete_run(folder)
    if left:
        print_aside(f"Not Alpha's, and left in {folder}: {', '.join(path.name for path in left)}.")
    print_text(f"Deleted {folder}.")


# --- several runs -----------------------------------------------------------------------------------------------------


def _compare(options: RunsOptions, root: Path) -> None:
    from alpha.run_compare import ComparedRun, compare, differing_options
    from alpha.run_reader import find_run, id_of

    runs = [ComparedRun(find_run(text, root)) for text in options.compare.split(",")]
    if len(runs) < 2:
        raise UsageError("--compare needs two runs or more: --compare A B, or --compare=A,B,C.")
    if options.csv:
        _print_metrics(runs)
        return
    differing = differing_options([each.config for each in runs])
    losses = {axis: compare(runs, axis, _COMPARED_POINTS) for axis in ("step", "tokens")}
    names = [each.title for each in runs]
    if options.json:
        print_json(
            {"runs": [id_of(each.folder) for each in runs], "options": differing}
            | {f"by{axis.capitalize()}": _losses_as_rows(table, axis) for axis, table in losses.items()}
        )
        return
    if differing:
        rows = [[flag, *map(_spelled, values)] for flag, values in differing.items()]
        print_table(("option", *names), rows)
    else:
        print_text("The options of these runs are the same.")
    for axis, table in losses.items():
        print_text("")
        _print_losses(axis, names, table)


def _losses_as_rows(losses: "Losses", axis: str) -> list[dict[str, Any]]:
    return [
        {
            axis: int(point),
            "loss": [each[i] for each in losses.train],
            "valLoss": [each[i] for each in losses.validation],
        }
        for i, point in enumerate(losses.points)
    ]


def _print_losses(axis: str, names: Sequence[str], losses: "Losses") -> None:
    if not len(losses.points):
        print_text(
            f"There is no {'step' if axis == 'step' else 'number of tokens'} that all of these runs have reached."
        )
        return
    headings = (axis, *(f"{what} {name}" for what in ("loss", "val") for name in names))
    rows = [
        [
            f"{point:,.0f}",
            *("" if each[i] != each[i] else f"{each[i]:.4f}" for each in (*losses.train, *losses.validation)),
        ]
        for i, point in enumerate(losses.points)
    ]
    print_table(headings, rows, right=headings)


# ----------------------------------------------------------------------------------------------------------------------


def _print_metrics(runs: "Sequence[ComparedRun]") -> None:
    """The metrics of runs, one after the other."""
    from alpha.run_csv import csv_parts
    from alpha.run_reader import id_of

    names = list(dict.fromkeys(name for each in runs for name in each.metrics.columns.names))
    tables = {id_of(each.folder): [each.metrics.columns.column(name) for name in names] for each in runs}
    for part in csv_parts(names, tables):
        print_part(part)


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    # Whatever a file says fits its column.
    return format(value, form if isinstance(value, int) or abs(value) < _LARGEST_PLAIN else ".4g")
