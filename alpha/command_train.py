"""`alpha train`: train a model."""

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpha.command_tui import require
from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import UsageError
from alpha.option import option, spelled
from alpha.terminal import print_parts, print_text

if TYPE_CHECKING:
    from alpha.progress import TrainingProgress
    from alpha.training_face import TrainingFace


@dataclass(frozen=True)
class DisplayOptions:
    """What is shown, which is no part of a run's configuration."""

    show_data: int = option(
        0,
        "Print this many windows as the model will see them, and train nothing.",
        group="Data",
        minimum=0,
        maximum=10_000,
        metavar="N",
    )
    tui: bool = option(False, "Show the dashboard of alpha tui meanwhile.", group="Run")


OPTIONS = (ModelConfig, TrainingConfig, DisplayOptions)
DETAILS = """
What is not given comes from the file of --config, then the preset of --domain or --recipe,
then --arch.

Ctrl-C saves a checkpoint and says how to go on; a second Ctrl-C stops at once. So do the
signals that end a terminal or a job: HUP, TERM, QUIT, XCPU, USR1, USR2. With --tui, Ctrl-C does
the same, and q leaves the dashboard alone.

With --resume these may change, and config.json keeps a history of it: iters, the schedule and
its rates, batch, accumSteps, gradClip, spikeThreshold, how often something is evaluated,
sampled, saved and logged, planning guards, where to compute, and where the data is. With more
iters the learning rate of a cosine takes its place in the longer schedule, and wsd goes on at
its stable rate: where that raises it, both rates are said, and what keeps it low.

With --showData=N nothing is trained: the first N windows are printed, or documents where these
share windows, and what is no part of the loss is dim; where there is no terminal, what is
learned stands between ⟦ and ⟧.

Examples:
  alpha train --data=corpus.txt --tokenizer=char --layers=4 --dim=128 --heads=4
  alpha train --data=novels/ --domain=novels --iters=5000
  alpha train --data=notes/ --recipe=cpu-20-minutes
  alpha train --resume=runs/20261123-101500-3f2a1b
"""

_INTERRUPTED = 130


def run(given: dict[str, Any]) -> None:
    """Train, from the start or from a checkpoint. Exits with code 130 when a signal asked to stop."""
    from alpha.progress import TrainingProgress
    from alpha.training_face import TrainingFace

    count = given.pop("show_data", 0)
    if count and given.get("resume"):
        raise UsageError("--showData is about a new run; leave out --resume.")
    if has_face := given.pop("tui", False):
        require()
    with contextlib.closing(TrainingProgress()) as display:
        if count:
            _show_data(given, count, display)
        elif not _train(given, TrainingFace(display) if has_face else display):
            sys.exit(_INTERRUPTED)
        if display.lost is not None:
            raise display.lost


def _show_data(given: dict[str, Any], count: int, display: "TrainingProgress") -> None:
    from alpha.settings import merge
    from alpha.training_setup import examples

    shown = examples(*merge(given), count, display)
    for number, parts in enumerate(shown, start=1):
        print_text(f"--- example {number} of {len(shown)}")
        print_parts(parts)


def _train(given: dict[str, Any], display: "TrainingProgress | TrainingFace") -> bool:
    """Whether the run came to its end."""
    from alpha.settings import merge
    from alpha.training_face import TrainingFace
    from alpha.training_setup import new_run, resumed_run

    if given.get("resume"):
        training_run, trainer = resumed_run(given, display)
    else:
        training_run, trainer = new_run(*merge(given), display)
    with training_run:
        if trainer.steps_done == trainer.training.iters:
            display.message(
                f"This run is complete: {trainer.steps_done} steps. To train on, give a larger number with --iters."
            )
            return True
        if isinstance(display, TrainingFace):
            display.follow(training_run.folder)
        finished = trainer.train(training_run)
    folder = training_run.folder
    if finished:
        sample = f"alpha sample {spelled('checkpoint', folder)}"
        display.message(f"Done: {trainer.steps_done} steps. To see what it writes: {sample}")
    else:
        display.message(f"Stopped at step {trainer.steps_done}. To continue: alpha train {spelled('resume', folder)}")
    return finished
