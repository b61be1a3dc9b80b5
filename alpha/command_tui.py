"""`alpha tui`: the runs in a folder, live, in a terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError
from alpha.option import option
from alpha.terminal import terminal_width


@dataclass(frozen=True)
class TuiOptions:
    """The options of `alpha tui`."""

    dir: str = option("runs", "Folder of the runs.", metavar="DIR")
    run: str = option("", "Run to show first, by id or name; the default is the newest.", metavar="RUN")


OPTIONS = (TuiOptions,)
DETAILS = """
The keys are shown by ?. It only reads, and what trains does not notice: it works over ssh and in tmux, with any number
of others looking at the same runs, and on a copy that rsync fills. It needs textual: pip install alpha-gpt[tui].
"""


def run(given: dict[str, Any]) -> None:
    """Show the dashboard until it is left."""
    show(TuiOptions(**given))


def show(options: TuiOptions, owns_training: bool = False) -> int:
    """As `run`; returns `tui.STOP_TRAINING` when Ctrl-C was meant for the training that started this, else 0."""
    if terminal_width() is None:
        raise AlphaError("alpha tui needs a terminal; alpha runs prints the same runs.")
    try:
        from alpha.tui import Dashboard
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "textual":
            raise
        raise AlphaError("alpha tui needs the package textual: pip install 'alpha-gpt[tui]'.") from error
    from alpha.run_reader import find_run

    root = Path(options.dir)
    first = find_run(options.run, root).name if options.run else ""
    return Dashboard(root, first, owns_training).run() or 0
