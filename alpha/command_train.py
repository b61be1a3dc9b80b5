"""`alpha train`: train a model."""

import sys
from typing import Any

from alpha.config import ModelConfig, TrainingConfig

OPTIONS = (TrainingConfig, ModelConfig)
DETAILS = """
What is not given comes from the file of --config, then the preset of --domain,
then --arch.

Ctrl-C saves a checkpoint and says how to go on; a second Ctrl-C stops at once.

Examples:
  alpha train --data=corpus.txt --tokenizer=char --layers=4 --dim=128 --heads=4
  alpha train --data=novels/ --domain=novels --iters=5000
  alpha train --resume=runs/20261123-101500-3f2a1b
"""

_INTERRUPTED = 130


def run(given: dict[str, Any]) -> None:
    """Train, from the start or from a checkpoint. Exits with code 130 when Ctrl-C asked to stop."""
    from alpha.progress import TrainingProgress
    from alpha.settings import merge
    from alpha.training_setup import new_run, resumed_run

    display = TrainingProgress()
    if given.get("resume"):
        training_run, trainer = resumed_run(given, display)
    else:
        training_run, trainer = new_run(*merge(given), display)
    with training_run:
        if trainer.steps_done == trainer.training.iters:
            display.message(
                f"This run is complete: {trainer.steps_done} steps. To train on, give a larger number with --iters."
            )
            return
        finished = trainer.train(training_run)
    folder = training_run.folder
    if not finished:
        display.message(f"Stopped at step {trainer.steps_done}. To continue: alpha train --resume={folder}")
        sys.exit(_INTERRUPTED)
    display.message(f"Done: {trainer.steps_done} steps. To see what it writes: alpha sample --checkpoint={folder}")
