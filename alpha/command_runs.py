"""`alpha runs`: the training runs in a folder, newest first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.option import option
from alpha.terminal import print_json, print_table, print_text


@dataclass(frozen=True)
class RunsOptions:
    """The options of `alpha runs`."""

    dir: str = option("runs", "Folder of the runs.", metavar="DIR")
    json: bool = option(False, "Print JSON.")


_LARGEST_PLAIN = 1e12

OPTIONS = (RunsOptions,)
DETAILS = ""


def run(given: dict[str, Any]) -> None:
    """Print the list; an empty folder is no error."""
    from alpha.run_reader import list_runs

    options = RunsOptions(**given)
    summaries = list_runs(Path(options.dir))
    if options.json:
        print_json(
            [
                {
                    "runId": each.run_id,
                    "folder": str(each.folder),
                    "status": each.status,
                    "domain": each.domain,
                    "step": each.step,
                    "iters": each.iters,
                    "loss": each.loss,
                    "valLoss": each.val_loss,
                    "tokensPerSec": each.tokens_per_sec,
                    "updated": each.updated.isoformat(),
                }
                for each in summaries
            ]
        )
    elif not summaries:
        print_text(f"There are no runs in {options.dir}; alpha train makes one.")
    else:
        numbers = ("step", "of", "loss", "val loss", "tokens/s")
        rows = [
            [
                each.run_id,
                each.status,
                *(_number(value, "d") for value in (each.step, each.iters)),
                *(_number(value, ".4f") for value in (each.loss, each.val_loss)),
                _number(each.tokens_per_sec, ",.0f"),
                f"{each.updated.astimezone():%Y-%m-%d %H:%M}",
            ]
            for each in summaries
        ]
        print_table(("run", "status", *numbers, "updated"), rows, right=numbers)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    # Whatever a file says fits its column.
    return format(value, form if isinstance(value, int) or abs(value) < _LARGEST_PLAIN else ".4g")
