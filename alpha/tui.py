"""The dashboard in a terminal, over the files that training writes; changes nothing in them.

Reads a little at a time in the terminal's own loop, and draws less often where drawing takes long, so that it costs
training next to nothing. Samples come from an `alpha sample` of its own. Knows nothing about training.
"""

import asyncio
import codecs
import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.events import Resize
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Input, Log, Static, TabbedContent, TabPane

from alpha.braille import Line, draw, letter, number
from alpha.checkpoint import list_checkpoints
from alpha.errors import AlphaError
from alpha.installation import command
from alpha.run_metrics import AXES
from alpha.run_reader import FollowedRun, RunIndex, RunSummary, read_samples
from alpha.series import Curve, smooth, sparkline
from alpha.terminal import duration, escape_line, escape_text, is_terminal_gone
from alpha.training_face import STOP_TRAINING

_TICK_SECONDS = 0.25
_LIST_SECONDS = 2.0
_SLOWNESS = 50
"""Drawing takes at most one part in so many of the time."""
_READING_SECONDS = 0.04
_SMOOTHINGS = (0.9, 0.98, 0.0)
_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "white")
_FAINT = len(_COLOURS)
_MOST_RUNS = 10
_SPARKS = {"lr": "lr", "gradNorm": "norm", "tokens_per_sec": "tokens/s", "gpuMemory": "memory"}
_UNITS = {"step": "steps", "tokens": "tokens", "elapsed": "s of training", "time": ""}
_STATUS_STYLES = {"running": "green", "failed": "red", "damaged": "red", "interrupted": "yellow"}
_SAMPLE_TOKENS = 200
_TABS = ("monitor", "logs", "runs", "models")

_HELP = """\
1 2 3 4, Tab   monitor, logs, runs, models
j k, arrows    move
Enter          runs: show this run; models: a sample of this checkpoint
Space          runs: draw this run, too, or not any more
Esc            back; stops a sample, ends a filter
/              filter runs, or lines of the log
x              monitor: x axis by step, tokens, training time, time of day
l, L           monitor: logarithmic loss, logarithmic x axis
s              monitor: smoothing
r              read everything again
q              leave; what trains goes on
?              this text
"""


class Chart(Static):
    """The losses of the runs that are shown, as a Braille chart of the widget's size."""

    lines: tuple[Line, ...] = ()
    log_x = log_y = False
    unit = "steps"

    def render(self) -> Text:
        rows = draw(self.lines, self.size.width, self.size.height, self.log_x, self.log_y, self.unit)
        text = Text(no_wrap=True, end="")
        for row in rows:
            for cell in row:
                text.append(cell.character, _style(cell.colour))
            text.append("\n")
        return text


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar = [Binding("escape,q,question_mark,enter", "dismiss", show=False)]
    DEFAULT_CSS = "Help { align: center middle; } Help Static { width: 76; height: auto; border: round $accent; }"

    def compose(self) -> ComposeResult:
        yield Static(Text(_HELP))


class Dashboard(App[int]):
    """The whole face. `run_id` is the run to show first, by default the newest.

    `owns_training` says that Ctrl-C is meant for the training that started this.
    """

    CSS = """
    Screen { layers: base; overflow: hidden; }
    TabPane { padding: 0; }
    #legend, #sparks, #state { height: auto; }
    #chart { height: 1fr; min-height: 6; }
    #sample { height: 4; border-top: solid $accent; }
    #filter { dock: bottom; display: none; }
    #state { dock: bottom; text-style: reverse; }
    #answer { height: 1fr; border-top: solid $accent; }
    #checkpoints { height: 1fr; }
    DataTable:nocolor > .datatable--cursor { text-style: reverse; }
    Tab.-active:nocolor { text-style: reverse; }
    """
    AUTO_FOCUS = None
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar = [
        *(Binding(str(i + 1), f"show_tab('{tab}')", show=False) for i, tab in enumerate(_TABS)),
        Binding("tab", "next_tab(1)", show=False, priority=True),
        Binding("shift+tab", "next_tab(-1)", show=False, priority=True),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
        Binding("space", "mark", show=False),
        Binding("escape", "go_back", show=False, priority=True),
        Binding("slash", "filter", show=False),
        Binding("x", "next_axis", show=False),
        Binding("l", "log_y", show=False),
        Binding("L", "log_x", show=False),
        Binding("s", "next_smoothing", show=False),
        Binding("r", "read_again", show=False),
        Binding("q", "leave", show=False),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("question_mark", "help", show=False),
    ]

    def __init__(self, root: Path, run_id: str = "", owns_training: bool = False) -> None:
        # Without colour Textual would draw in shades of grey, which no terminal's own colours need go together with.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.root = root
        self.shown: dict[str, FollowedRun] = {}
        self.summaries: list[RunSummary] = []
        self._wanted = run_id
        self._owns_training = owns_training
        self._index = RunIndex(root)
        self._problem = ""
        self._axis = AXES[0]
        self._smoothing = _SMOOTHINGS[0]
        self._log_y = self._log_x = False
        self._filter = ""
        self._listed_at = self._draw_at = 0.0
        self._drawn: Any = None
        self._log_shown: Any = None
        self._checkpoints_shown: Any = None
        self._sampler: asyncio.subprocess.Process | None = None

    # --- the screen ---------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with TabbedContent(initial="monitor"):
            with TabPane("1 monitor", id="monitor"):
                yield Static(id="legend")
                yield Chart(id="chart")
                yield Static(id="sparks")
                with VerticalScroll(id="sample", can_focus=False):
                    yield Static(id="text")
            with TabPane("2 logs", id="logs"):
                yield Log(id="log", highlight=False)
            with TabPane("3 runs", id="runs"):
                yield DataTable(id="list", cursor_type="row")
            with TabPane("4 models", id="models"):
                yield DataTable(id="checkpoints", cursor_type="row")
                yield Log(id="answer", highlight=False)
        yield Input(id="filter", placeholder="filter")
        yield Static(id="state")

    def on_mount(self) -> None:
        headings = ("", "run", "status", "step", "loss", "val", "tokens/s", "left", "updated", "group")
        self._list_table.add_columns(*headings)
        self._checkpoint_table.add_columns("checkpoint", "step", "MB", "written")
        self.set_interval(_TICK_SECONDS, self._tick)
        self._tick()

    @property
    def _main(self) -> Screen[Any]:
        """The screen below any help. Raises NoMatches when there is none any more."""
        if not self.screen_stack:
            raise NoMatches("the dashboard is being left")
        return self.screen_stack[0]

    @property
    def _list_table(self) -> "DataTable[Text]":
        return self._main.query_one("#list", DataTable)

    @property
    def _checkpoint_table(self) -> "DataTable[Text]":
        return self._main.query_one("#checkpoints", DataTable)

    @property
    def _tab(self) -> str:
        return self._main.query_one(TabbedContent).active

    @property
    def _first(self) -> FollowedRun | None:
        return next(iter(self.shown.values()), None)

    def _tick(self) -> None:
        if not self.is_headless and is_terminal_gone():
            self.exit(1)
            return
        now = time.monotonic()
        if now - self._listed_at >= _LIST_SECONDS:
            self._listed_at = now
            self._list()
        for run in self.shown.values():
            run.update(_READING_SECONDS / len(self.shown))
        if now >= self._draw_at:
            with contextlib.suppress(NoMatches):  # the screen is being taken down
                self._draw()
            taken = time.monotonic() - now
            self._draw_at = now + taken * _SLOWNESS

    def on_resize(self, _event: Resize) -> None:
        self._drawn = None

    @work(thread=True, exclusive=True)
    def _list(self) -> None:
        try:
            summaries, problem = self._index.list(), ""
        except AlphaError as error:
            summaries, problem = [], str(error)
        self.call_from_thread(self._take_list, summaries, problem)

    def _take_list(self, summaries: list[RunSummary], problem: str) -> None:
        self.summaries, self._problem = summaries, problem
        ids = [each.run_id for each in summaries]
        for run_id in [each for each in self.shown if each not in ids]:
            del self.shown[run_id]
        if not self.shown and ids:
            run_id = self._wanted if self._wanted in ids else ids[0]
            self.shown[run_id] = FollowedRun(self.root / run_id)
        self._wanted = ""
        with contextlib.suppress(NoMatches):  # the screen is being taken down
            self._show_list()

    def _draw(self) -> None:
        state = (
            self._tab, self._axis, self._smoothing, self._log_x, self._log_y, tuple(self.shown), self._filter,
            tuple((run.metrics.version, run.samples.count, run.log.count, run.problem) for run in self.shown.values()),
        )  # fmt: skip
        self._show_state()
        if state == self._drawn:
            return
        self._drawn = state
        if self._tab == "monitor":
            self._show_monitor()
        elif self._tab == "logs":
            self._show_log()
        elif self._tab == "models":
            self._show_checkpoints()

    # --- monitor ------------------------------------------------------------------------------------------------------

    def _show_monitor(self) -> None:
        chart, legend = self._main.query_one(Chart), Text(no_wrap=True, overflow="ellipsis")
        lines: list[Line] = []
        for i, run in enumerate(self.shown.values()):
            x = run.axis(self._axis)
            at, loss = run.metrics.curve("loss", x)
            validated_at, validation_loss = run.metrics.curve("valLoss", x)
            if len(self.shown) == 1 and self._smoothing:
                lines.append(Line(at, loss, _FAINT))
            lines.append(Line(at, smooth(loss, self._smoothing), _colour(i), letter(i)))
            lines.append(Line(validated_at, validation_loss, _colour(i + 1), "v" if len(self.shown) == 1 else ""))
            legend.append(f"{letter(i)} ", _style(_colour(i)))
            legend.append(f"{escape_line(self._title(run))}  loss {_last(smooth(loss, self._smoothing))}")
            legend.append(f"  v {_last(validation_loss)}", _style(_colour(i + 1)) if len(self.shown) == 1 else "")
            if run.metrics.share < 1:
                legend.append(f"  reading {run.metrics.share:.0%}")
            if run.problem:
                legend.append(f"  {escape_line(run.problem)}", "red")
            legend.append("\n")
        legend.rstrip()
        chart.lines, chart.log_x, chart.log_y = tuple(lines), self._log_x, self._log_y
        chart.unit = {"step": "steps", "tokens": "tokens", "elapsed": "s of training", "time": "s since 1970"}[
            self._axis
        ]
        self._main.query_one("#legend", Static).update(legend)
        self._main.query_one("#sparks", Static).update(self._sparks())
        chart.refresh()
        self._main.query_one("#text", Static).update(self._newest_sample())

    def _sparks(self) -> Text:
        """Two to a line, each as wide as half the screen."""
        run, text = self._first, Text(no_wrap=True)
        width = max(8, self.size.width // 2 - 20)
        shown = [name for name in _SPARKS if run is not None and name in run.metrics.columns.names]
        for i, name in enumerate(shown):
            assert run is not None
            _, y = run.metrics.curve(name, run.axis("step"))
            places = [round(place * (len(y) - 1) / max(1, width - 1)) for place in range(width)]
            text.append(f"{_SPARKS[name]:<8} ")
            text.append(sparkline(y[places] if len(y) >= width else y).ljust(width), _style(_colour(i)))
            text.append(f" {_last(y) if name != 'gpuMemory' else f'{y[-1] / 2**20:,.0f} MiB':<9}")
            text.append("\n" if i % 2 else " ")
        text.rstrip()
        return text

    def _newest_sample(self) -> Text:
        samples = read_samples(self._first.samples) if self._first else []
        if not samples:
            return Text("The newest sample of the run stands here.", style="dim")
        newest = samples[-1]
        text = Text(f"step {newest['step']}: ", style="bold")
        text.append(escape_text(newest["prompt"]), "not bold underline")
        text.append(escape_text(newest["text"]), "not bold")
        return text

    def _title(self, run: FollowedRun) -> str:
        named = {each.run_id: each.title for each in self.summaries}
        return named.get(run.folder.name, run.folder.name)

    # --- logs ---------------------------------------------------------------------------------------------------------

    def _show_log(self) -> None:
        run, log = self._first, self._main.query_one("#log", Log)
        lines = [line.decode(errors="replace").rstrip("\n") for line in run.log.lines] if run else []
        shown = [escape_line(line) for line in lines if self._filter.lower() in line.lower()]
        state = (run.folder if run else None, self._filter, run.log.generation if run else 0)
        if state != self._log_shown:
            log.clear()
            self._log_shown = state
            log.write_lines(shown)
        else:
            log.write_lines(shown[log.line_count :])

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _show_list(self) -> None:
        table = self._list_table
        chosen = self._chosen_run()
        table.clear()
        for each in self.summaries:
            if not self._is_wanted(each):
                continue
            mark = letter(list(self.shown).index(each.run_id)) if each.run_id in self.shown else ""
            cells = (
                mark, each.title, each.status, f"{_whole(each.step)}/{_whole(each.iters)}", _number(each.loss),
                _number(each.val_loss), _number(each.tokens_per_sec),
                "" if each.seconds_left is None else duration(each.seconds_left),
                f"{each.updated.astimezone():%m-%d %H:%M}", each.notes.group,
            )  # fmt: skip
            table.add_row(
                *(Text(escape_line(cell), style=_STATUS_STYLES.get(cell, "")) for cell in cells), key=each.run_id
            )
        if chosen and chosen in table.rows:
            table.move_cursor(row=table.get_row_index(chosen))

    def _is_wanted(self, summary: RunSummary) -> bool:
        words = (summary.run_id, summary.title, summary.notes.group, summary.status, summary.domain)
        return self._filter.lower() in " ".join(words).lower()

    def _chosen_run(self) -> str:
        table = self._list_table
        if not table.is_valid_row_index(table.cursor_row):
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    # --- models -------------------------------------------------------------------------------------------------------

    def _show_checkpoints(self) -> None:
        run, table, rows = self._first, self._checkpoint_table, []
        try:
            for step, path in list_checkpoints(run.folder) if run else []:
                status = path.stat()
                written = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
                rows.append((path.name, f"{step}", f"{status.st_size / 1e6:,.1f}", written))
        except (AlphaError, OSError):  # the run was deleted this instant, or is not ours to read
            rows = []
        if rows != self._checkpoints_shown:
            self._checkpoints_shown = rows
            table.clear()
            for row in reversed(rows):
                table.add_row(*map(Text, row), key=row[0])

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        key = str(event.row_key.value)
        if event.data_table.id == "list":
            self.shown = {key: FollowedRun(self.root / key)}
            self._show_list()
            self.action_show_tab("monitor")
        elif self._first is not None:
            self._sample(self._first.folder / key)

    @work(exclusive=True, group="sample")
    async def _sample(self, path: Path) -> None:
        answer = self._main.query_one("#answer", Log)
        answer.clear()
        answer.write(f"A sample of {escape_line(path.name)}:\n")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pipe, arguments = asyncio.subprocess.PIPE, ("sample", f"--checkpoint={path}", f"--steps={_SAMPLE_TOKENS}")
        process = await asyncio.create_subprocess_exec(
            *command(), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            while part := await process.stdout.read(4096):
                answer.write(escape_text(decoder.decode(part)))
            said = (await process.stderr.read()).decode(errors="replace")
            answer.write(f"\n{escape_text(said)}")
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    # --- keys ---------------------------------------------------------------------------------------------------------

    def action_show_tab(self, tab: str) -> None:
        self._main.query_one(TabbedContent).active = tab
        focus = {"logs": "#log", "runs": "#list", "models": "#checkpoints"}.get(tab)
        self.set_focus(self._main.query_one(focus) if focus else None)
        self._drawn, self._draw_at = None, 0.0
        self.call_after_refresh(self._tick)

    def action_next_tab(self, by: int) -> None:
        self.action_show_tab(_TABS[(_TABS.index(self._tab) + by) % len(_TABS)])

    def action_move(self, by: int) -> None:
        focused = self.focused
        if isinstance(focused, DataTable):
            focused.move_cursor(row=focused.cursor_row + by)
        elif isinstance(focused, Log):
            focused.scroll_relative(y=by, animate=False)

    def action_mark(self) -> None:
        run_id = self._chosen_run()
        if self._tab != "runs" or not run_id:
            return
        if run_id in self.shown and len(self.shown) > 1:
            del self.shown[run_id]
        elif len(self.shown) < _MOST_RUNS:
            self.shown.setdefault(run_id, FollowedRun(self.root / run_id))
        self._show_list()

    def action_go_back(self) -> None:
        field = self._main.query_one("#filter", Input)
        if isinstance(self.screen, Help):
            self.pop_screen()
        elif field.display:
            field.value = ""
            self._end_filter()
        elif self._tab == "models" and any(each.group == "sample" and each.is_running for each in self.workers):
            self.workers.cancel_group(self, "sample")
        else:
            self.action_show_tab("monitor")

    def action_filter(self) -> None:
        if self._tab in ("logs", "runs"):
            field = self._main.query_one("#filter", Input)
            field.display = True
            field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._drawn, self._draw_at = None, 0.0
        self._show_list()
        self._draw()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self._end_filter()

    def _end_filter(self) -> None:
        self._main.query_one("#filter", Input).display = False
        self.action_show_tab(self._tab)

    def action_next_axis(self) -> None:
        self._axis = AXES[(AXES.index(self._axis) + 1) % len(AXES)]
        self._draw_at = 0.0

    def action_log_y(self) -> None:
        self._log_y, self._draw_at = not self._log_y, 0.0

    def action_log_x(self) -> None:
        self._log_x, self._draw_at = not self._log_x, 0.0

    def action_next_smoothing(self) -> None:
        self._smoothing = _SMOOTHINGS[(_SMOOTHINGS.index(self._smoothing) + 1) % len(_SMOOTHINGS)]
        self._draw_at = 0.0

    def action_read_again(self) -> None:
        self._index = RunIndex(self.root)
        self.shown = {run_id: FollowedRun(run.folder) for run_id, run in self.shown.items()}
        self._listed_at = self._draw_at = 0.0
        self._drawn = self._log_shown = self._checkpoints_shown = None

    def action_leave(self) -> None:
        self.exit(0)

    def action_interrupt(self) -> None:
        self.exit(STOP_TRAINING if self._owns_training else 0)

    def action_help(self) -> None:
        self.push_screen(Help())

    def _show_state(self) -> None:
        summary = next((each for each in self.summaries if each.run_id in self.shown), None)
        text = Text(no_wrap=True, overflow="ellipsis")
        if summary is None:
            text.append(escape_line(self._problem) or f"There are no runs in {escape_line(str(self.root))}")
        else:
            doing = f" ({summary.phase})" if summary.phase else ""
            silent = time.time() - (summary.heard or 0.0)
            slow = f", last sign {duration(silent)} ago" if summary.status == "running" and silent > 60 else ""
            left = f", {duration(summary.seconds_left)} left" if summary.seconds_left is not None else ""
            step = f" step {summary.step} of {summary.iters}" if summary.step is not None else ""
            text.append(escape_line(f"{summary.title}: {summary.status}{doing}{slow}{step}{left}"))
            if summary.error:
                text.append(f"  {escape_line(summary.error)}")
        scales = f"x {self._axis}{' log' if self._log_x else ''}{', y log' if self._log_y else ''}"
        keys = f"  {scales}, smooth {self._smoothing:g}  ? help" if self._tab == "monitor" else "  ? help"
        room = max(0, self.size.width - len(keys))
        text.truncate(room, overflow="ellipsis", pad=True)
        text.append(keys)
        self._main.query_one("#state", Static).update(text)


def _by_hours(lines: tuple[Line, ...]) -> tuple[tuple[Line, ...], str]:
    """Lines over hours since the first point of all, and words for that."""
    begin = min((float(line.x[0]) for line in lines if len(line.x)), default=0.0)
    words = time.strftime("hours since %Y-%m-%d %H:%M", time.localtime(begin)) if 0 < begin < 1e11 else "hours"
    return tuple(dataclasses.replace(line, x=(line.x - begin) / 3600) for line in lines), words


def _colour(index: int) -> int:
    return index % len(_COLOURS)


def _style(colour: int | None) -> str:
    if colour is None:
        return ""
    return "dim" if colour == _FAINT else _COLOURS[colour]


def _last(values: Curve) -> str:
    return number(float(values[-1])) if len(values) else "-"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
