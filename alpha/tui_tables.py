"""The tables of the dashboard in a terminal: the runs of a folder, and the checkpoints of one.

Only cells that are not as they were are written anew. Knows nothing about keys or tabs.
"""

import time
from collections.abc import Collection, Mapping, Sequence

from rich.text import Text
from textual.widgets import DataTable

from alpha.braille import letter, number
from alpha.checkpoint import list_checkpoints
from alpha.errors import AlphaError
from alpha.run_reader import FollowedRun, RunSummary
from alpha.terminal import duration, escape_line

_STATUS = "status"
_STYLES = {"running": "green", "failed": "red", "damaged": "red", "interrupted": "yellow"}


class RowTable(DataTable[Text]):
    """A table of texts, whose rows are chosen as a whole."""

    def __init__(self, headings: Sequence[str], id: str) -> None:
        super().__init__(cursor_type="row", id=id)
        self._headings = headings
        self._rows_shown: dict[str, Sequence[str]] = {}

    def on_mount(self) -> None:
        for heading in self._headings:
            self.add_column(heading, key=heading)

    def show(self, rows: Mapping[str, Sequence[str]]) -> None:
        """These rows by key, in this order. The one that was chosen stays chosen."""
        old, self._rows_shown = self._rows_shown, dict(rows)
        if list(rows) == list(old):
            for key, cells in rows.items():
                for heading, cell, before in zip(self._headings, cells, old[key], strict=True):
                    if cell != before:
                        self.update_cell(key, heading, _text(heading, cell), update_width=True)
            return
        chosen = self.chosen()
        self.clear()
        for key, cells in rows.items():
            self.add_row(*map(_text, self._headings, cells), key=key)
        if chosen in rows:
            self.move_cursor(row=self.get_row_index(chosen))

    def chosen(self) -> str:
        """The key of the row with the cursor; "" when there is none."""
        if not self.is_valid_row_index(self.cursor_row):
            return ""
        return str(self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value)


class RunTable(RowTable):
    """Runs, with letters for those that are drawn."""

    def __init__(self, id: str) -> None:
        super().__init__(("", "run", _STATUS, "step", "loss", "val", "tokens/s", "left", "updated", "group"), id)

    def show_runs(self, summaries: Collection[RunSummary], drawn: Sequence[str]) -> None:
        """These runs; `drawn` are the ids of those with letters."""
        letters = {run_id: letter(i) for i, run_id in enumerate(drawn)}
        self.show({each.run_id: self._cells(each, letters.get(each.run_id, "")) for each in summaries})

    def _cells(self, run: RunSummary, mark: str) -> Sequence[str]:
        left = "" if run.seconds_left is None else duration(run.seconds_left)
        return (
            mark, run.title, run.status, f"{_whole(run.step)}/{_whole(run.iters)}", _number(run.loss),
            _number(run.val_loss), _number(run.tokens_per_sec), left, f"{run.updated.astimezone():%m-%d %H:%M}",
            run.notes.group,
        )  # fmt: skip


class CheckpointTable(RowTable):
    """The checkpoints of a run, the newest first; keys are the names of their files."""

    def __init__(self, id: str) -> None:
        super().__init__(("checkpoint", "step", "MB", "written"), id)

    def show_checkpoints(self, run: FollowedRun | None) -> None:
        """Of this run; a folder that cannot be read has none."""
        rows = {}
        try:
            for step, path in reversed(list_checkpoints(run.folder) if run else []):
                status = path.stat()
                written = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
                rows[path.name] = (path.name, f"{step}", f"{status.st_size / 1e6:,.1f}", written)
        except (AlphaError, OSError):  # the run was deleted this instant, or is not ours to read
            rows = {}
        self.show(rows)


def _text(heading: str, cell: str) -> Text:
    return Text(escape_line(cell), style=_STYLES.get(cell, "") if heading == _STATUS else "")


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
