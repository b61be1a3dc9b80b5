"""`alpha tui`: the runs in a folder, live, in a terminal."""

import asyncio
import signal
import sys
from dataclasses import dataclass
from typing import Any

from alpha.errors import AlphaError
from alpha.installation import missing_package
from alpha.interrupt import SIGNALS
from alpha.option import option
from alpha.terminal import terminal_width


@dataclass(frozen=True)
class TuiOptions:
    """The options of `alpha tui`."""

    dir: str = option("runs", "Folder of the runs.", metavar="DIR")
    run: str = option("", "Run to show first, by id or name; the default is the newest.", metavar="RUN")
    of_training: bool = option(False, "Ctrl-C ends with exit code 130, by which alpha train --tui stops.")


OPTIONS = (TuiOptions,)
DETAILS = """
The keys are shown by ?. It only reads, and what trains does not notice: it works over ssh and in tmux, with any number
of others looking at the same runs, and on a copy that rsync fills. It needs a package: pip install '.[tui]' in Alpha's
folder.
"""


def run(given: dict[str, Any]) -> None:
    """Show the dashboard until it is left."""
    options = TuiOptions(**given)
    require()
    from alpha.run_reader import find_run, id_of, root_of
    from alpha.tui import Dashboard

    root = root_of(given)
    first = id_of(find_run(options.run, root)) if options.run else ""
    dashboard = Dashboard(root, first, options.of_training)
    is_stopped = False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True
        dashboard.call_after_refresh(dashboard.exit)

    async def show() -> int | None:
        # As a KeyboardInterrupt it would end whichever of the dashboard's tasks happens to run.
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, stop)
        return await dashboard.run_async()

    code = asyncio.run(show())
    if is_stopped:
        raise KeyboardInterrupt
    sys.exit(code or 0)


def require() -> None:
    """Raises AlphaError where there is no terminal, or the package for it is not installed."""
    if terminal_width() is None:
        raise AlphaError("The dashboard needs a terminal; alpha runs prints the same runs.")
    try:
        import textual  # noqa: F401
    except ModuleNotFoundError:
        raise missing_package("The dashboard", "textual", "tui") from None
