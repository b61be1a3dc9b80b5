"""The dashboard in a terminal, over the files that training writes; changes nothing in them.

Reads a little at a time in the terminal's own loop, and draws so seldom that all of it takes less than a hundredth of a
core, but for what somebody asks for by a key. Samples come from an `alpha sample` of its own. Knows nothing about
training.
"""

import asyncio
import codecs
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.events import Resize
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Input, Log, Static, TabbedContent, TabPane

from alpha.errors import AlphaError
from alpha.installation import command
from alpha.run_metrics import AXES
from alpha.run_reader import FollowedRun, RunIndex, RunSummary
from alpha.terminal import duration, escape_line, escape_text, is_terminal_gone
from alpha.training_face import STOP_TRAINING
from alpha.tui_monitor import SMOOTHINGS, Monitor, Scales
from alpha.tui_tables import CheckpointTable, RunTable

_TICK_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_LIST_SECONDS = 2.0
_SLOWNESS = 300
"""What is done unasked takes at most one part in so many of a core,"""
_LONGEST_PAUSE_SECONDS = 5.0
"""or is done as seldom as this."""
_READING_SECONDS = 0.1
_MOST_RUNS = 10
_MOST_LISTED = 500
_SAMPLE_TOKENS = 200
_TABS = ("monitor", "logs", "runs", "models")

_HELP = """\
1 2 3 4, Tab   monitor, logs, runs, models
j k, arrows    move
Enter          runs: show this run; models: a sample of this checkpoint
Space          runs: draw this run, too, or not any more
Esc            back; stops a sample, ends a filter
/              filter runs, or lines of the log
x              monitor: x axis by step, tokens, training time, date
l, L           monitor: logarithmic loss, logarithmic x axis
s              monitor: smoothing
r              read everything again
q              leave; what trains goes on
?              this text
"""


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
    #filter { dock: bottom; display: none; }
    #state { dock: bottom; height: 1; text-style: reverse; }
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
        self._has_listed = False
        self._scales = Scales()
        self._filter = ""
        self._listed_at = self._list_pause = 0.0
        self._looked_at = self._drawn_at = self._used = 0.0
        self._is_asked = False
        self._state_shown: Any = None
        self._drawn: Any = None
        self._log_shown: Any = None
        self._sampler: asyncio.subprocess.Process | None = None

    # --- the screen ---------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with TabbedContent(initial="monitor"):
            with TabPane("1 monitor", id="monitor"):
                yield Monitor()
            with TabPane("2 logs", id="logs"):
                yield Log(id="log", highlight=False)
            with TabPane("3 runs", id="runs"):
                yield RunTable(id="list")
            with TabPane("4 models", id="models"):
                yield CheckpointTable(id="checkpoints")
                yield Log(id="answer", highlight=False)
        yield Input(id="filter", placeholder="filter")
        yield Static(id="state")

    def on_mount(self) -> None:
        _resume_only_what_was_suspended()
        self.set_interval(_TICK_SECONDS, self._tick)
        self._tick()

    @property
    def _main(self) -> Screen[Any]:
        """The screen below any help. Raises NoMatches when there is none any more."""
        if not self.screen_stack:
            raise NoMatches("the dashboard is being left")
        return self.screen_stack[0]

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
        if now - self._listed_at >= self._list_pause:
            self._listed_at, self._list_pause = now, _LONGEST_PAUSE_SECONDS  # until it is known what it takes
            self._list()
        is_reading = any(run.metrics.share < 1 for run in self.shown.values())
        if self._is_asked or is_reading or now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            for run in self.shown.values():
                run.update(_READING_SECONDS / len(self.shown))
        used = time.process_time() - self._used
        if self._is_asked or now - self._drawn_at >= min(used * _SLOWNESS, _LONGEST_PAUSE_SECONDS):
            self._is_asked, self._drawn_at, self._used = False, now, time.process_time()
            with contextlib.suppress(NoMatches):  # the screen is being taken down
                self._draw()

    def _ask(self) -> None:
        """Draw now, whatever it takes."""
        self._is_asked = True
        self._tick()

    def on_resize(self, _event: Resize) -> None:
        self._drawn = self._state_shown = None

    @work(thread=True, exclusive=True)
    def _list(self) -> None:
        began = time.thread_time()
        try:
            summaries, problem = self._index.list(), ""
        except AlphaError as error:
            summaries, problem = [], str(error)
        pause = max(_LIST_SECONDS, (time.thread_time() - began) * _SLOWNESS)
        self.call_from_thread(self._take_list, summaries, problem, pause)

    def _take_list(self, summaries: list[RunSummary], problem: str, pause: float) -> None:
        before = (self._has_listed, list(self.shown))
        self._has_listed, self.summaries, self._problem, self._list_pause = True, summaries, problem, pause
        ids = [each.run_id for each in summaries]
        for run_id in [each for each in self.shown if each not in ids]:
            del self.shown[run_id]
        if not self.shown and ids:
            run_id = self._wanted if self._wanted in ids else ids[0]
            self.shown[run_id] = FollowedRun(self.root / run_id)
        self._wanted = ""
        if before != (True, list(self.shown)):
            self._ask()

    def _draw(self) -> None:
        seen = [(run.metrics.version, run.samples.count, run.log.count, run.problem) for run in self.shown.values()]
        state = (self._tab, self._scales, tuple(self.shown), self._filter, tuple(seen))
        self._show_state()
        if self._tab == "runs":
            self._main.query_one(RunTable).show_runs(self._wanted_runs(), list(self.shown))
        if state == self._drawn:
            return
        self._drawn = state
        if self._tab == "monitor":
            titles = {each.run_id: each.title for each in self.summaries}
            self._main.query_one(Monitor).show(self.shown, titles, self._scales)
        elif self._tab == "logs":
            self._show_log()
        elif self._tab == "models":
            self._main.query_one(CheckpointTable).show_checkpoints(self._first)

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

    def _wanted_runs(self) -> list[RunSummary]:
        """What the filter leaves, the newest."""
        return [each for each in self.summaries if self._is_wanted(each)][:_MOST_LISTED]

    def _is_wanted(self, summary: RunSummary) -> bool:
        words = (summary.run_id, summary.title, summary.notes.group, summary.status, summary.domain)
        return self._filter.lower() in " ".join(words).lower()

    # --- models -------------------------------------------------------------------------------------------------------

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        key = str(event.row_key.value)
        if event.data_table.id == "list":
            self.shown = {key: FollowedRun(self.root / key)}
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
        self._drawn = None
        self.call_after_refresh(self._ask)

    def action_next_tab(self, by: int) -> None:
        self.action_show_tab(_TABS[(_TABS.index(self._tab) + by) % len(_TABS)])

    def action_move(self, by: int) -> None:
        focused = self.focused
        if isinstance(focused, DataTable):
            focused.move_cursor(row=focused.cursor_row + by)
        elif isinstance(focused, Log):
            focused.scroll_relative(y=by, animate=False)

    def action_mark(self) -> None:
        run_id = self._main.query_one(RunTable).chosen()
        if self._tab != "runs" or not run_id:
            return
        if run_id in self.shown and len(self.shown) > 1:
            del self.shown[run_id]
        elif len(self.shown) < _MOST_RUNS:
            self.shown.setdefault(run_id, FollowedRun(self.root / run_id))
        self._ask()

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
        self._ask()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self._end_filter()

    def _end_filter(self) -> None:
        self._main.query_one("#filter", Input).display = False
        self.action_show_tab(self._tab)

    def action_next_axis(self) -> None:
        self._rescale(axis=_after(self._scales.axis, AXES))

    def action_log_y(self) -> None:
        self._rescale(log_y=not self._scales.log_y)

    def action_log_x(self) -> None:
        self._rescale(log_x=not self._scales.log_x)

    def action_next_smoothing(self) -> None:
        self._rescale(smoothing=_after(self._scales.smoothing, SMOOTHINGS))

    def _rescale(self, **changes: Any) -> None:
        self._scales = dataclasses.replace(self._scales, **changes)
        self._ask()

    def action_read_again(self) -> None:
        self._index = RunIndex(self.root)
        self.shown = {run_id: FollowedRun(run.folder) for run_id, run in self.shown.items()}
        self._drawn = self._log_shown = None
        self._list_pause = 0.0
        self._ask()

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
            nothing = f"There are no runs in {self.root}" if self._has_listed else f"Reading {self.root}"
            text.append(escape_line(self._problem or nothing))
        else:
            doing = f" ({summary.phase})" if summary.phase else ""
            silent = time.time() - (summary.heard or 0.0)
            slow = f", last sign {duration(silent)} ago" if summary.status == "running" and silent > 60 else ""
            left = f", {duration(summary.seconds_left)} left" if summary.seconds_left is not None else ""
            step = f" step {summary.step} of {summary.iters}" if summary.step is not None else ""
            text.append(escape_line(f"{summary.title}: {summary.status}{doing}{slow}{step}{left}"))
            if summary.error:
                text.append(f"  {escape_line(summary.error)}")
        keys = f"  {self._scales}  ? help" if self._tab == "monitor" else "  ? help"
        room = max(0, self.size.width - len(keys))
        text.truncate(room, overflow="ellipsis", pad=True)
        text.append(keys)
        if text != self._state_shown:
            self._state_shown = text
            self._main.query_one("#state", Static).update(text)


def _after(value: Any, values: Sequence[Any]) -> Any:
    """The next of some values, and the first after the last."""
    return values[(values.index(value) + 1) % len(values)]


def _resume_only_what_was_suspended() -> None:
    """Have SIGCONT take the terminal again only after SIGTSTP, at which it was given back.

    Textual takes it at every SIGCONT, also after a SIGSTOP, and so a second time: it then holds the settings of the
    first for those that were there before, and leaves the terminal with them.
    """
    suspend, resume = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
    if not callable(suspend) or not callable(resume):  # there is no terminal, in tests
        return
    is_suspended = False

    def on_stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_suspended
        is_suspended = True
        suspend(number, frame)

    def on_continue(number: int, frame: FrameType | None) -> None:
        nonlocal is_suspended
        if is_suspended:
            is_suspended = False
            resume(number, frame)

    signal.signal(signal.SIGTSTP, on_stop)
    signal.signal(signal.SIGCONT, on_continue)
