"""From a configuration to a trainer: tokenizer, data, backend, run folder, in the order in which errors are cheap."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpha import backends, checkpoint, corpus, dataset, planning, tokenizer_registry
from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.dataset import Dataset
from alpha.errors import UsageError
from alpha.run import Run
from alpha.run_list import resolve
from alpha.tokenizer import Tokenizer
from alpha.trainer import Display, Trainer

RESUMABLE = ("iters", "threads", "keep", "eval_interval", "sample_interval", "checkpoint_interval", "log_every", "log",
             "trace", "backend", "data", "val_data")  # fmt: skip
"""Fields of TrainingConfig that may be given with --resume: none of them changes the steps already planned."""


def cache_folder() -> Path:
    """Where encoded corpora are kept: $XDG_CACHE_HOME/alpha, or ~/.cache/alpha."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alpha"


def new_run(model: ModelConfig, training: TrainingConfig, display: Display) -> tuple[Run, Trainer]:
    """Start a run; the caller closes it. Raises AlphaError or UsageError before anything is written when it cannot."""
    model, training = resolve_model(model), resolve_training(training)
    if not training.data:
        raise UsageError("Say what to train on with --data=PATHS; `alpha datagen` can make a corpus.")
    tokenizer = _tokenizer(training, display)
    data = _dataset(training, tokenizer, model.block, display)
    run = Run.create(model, training, Path(training.run_dir) if training.run_dir else None)
    try:
        trainer = Trainer(run, tokenizer, data, backends.create(training.backend), display)
        _describe(trainer)
    except BaseException:
        run.close()
        raise
    return run, trainer


def resumed_run(given: Mapping[str, Any], display: Display) -> tuple[Run, Trainer]:
    """Continue the run or checkpoint that `given["resume"]` names; the caller closes it.

    `given` are the options of the command line by field name. Raises UsageError for one that cannot change any more.
    """
    for name in given:
        if name not in ("resume", *RESUMABLE):
            raise UsageError(f"--{name} cannot be changed when a run is resumed; leave it out, or start a new run.")
    run = Run.open(resolve(given["resume"]))
    try:
        path = checkpoint.find(resolve(given["resume"]))
        saved = checkpoint.load(path)
        changes = {name: value for name, value in given.items() if name != "resume"}
        training = _extended(saved, changes)
        run.configure(saved.model, training)
        tokenizer = tokenizer_registry.from_mapping(saved.tokenizer, str(path))
        data = _dataset(training, tokenizer, saved.model.block, display)
        run.rewind(saved.step)
        trainer = Trainer(run, tokenizer, data, backends.create(training.backend), display, saved)
        display.message(f"Resuming {run.folder} after step {saved.step} of {training.iters}.")
        _describe(trainer)
    except BaseException:
        run.close()
        raise
    return run, trainer


def _extended(saved: Checkpoint, changes: Mapping[str, Any]) -> TrainingConfig:
    training = dataclasses.replace(saved.training, **changes)
    if training.iters < saved.step:
        raise UsageError(f"--iters={training.iters} is less than the {saved.step} steps that this run already has.")
    return training


def _tokenizer(training: TrainingConfig, display: Display) -> Tokenizer:
    """The tokenizer of --tokenizerArtifacts when that file exists, otherwise one built from the training data."""
    path = Path(training.tokenizer_artifacts) if training.tokenizer_artifacts else None
    if path is not None and path.exists():
        return tokenizer_registry.load(path)
    tokenizer_registry.check_name(training.tokenizer, training.vocab_size)
    display.message(f"Building the {training.tokenizer} tokenizer from {training.data}.")
    tokenizer = tokenizer_registry.build(training.tokenizer, _texts(training.data), training.vocab_size)
    if path is not None:
        tokenizer_registry.save(path, tokenizer)
    return tokenizer


def _texts(data: str) -> Iterator[str]:
    for section in corpus.sections(corpus.find(data).files):
        yield section.text


def _dataset(training: TrainingConfig, tokenizer: Tokenizer, block: int, display: Display) -> Dataset:
    data = dataset.prepare(training.data, training.val_data, tokenizer, cache_folder() / "tokens", block)
    validation = 0 if data.validation is None else len(data.validation.tokens)
    display.message(
        f"Data: {len(data.train.tokens):,} tokens for training, {validation:,} for validation, "
        f"vocabulary {tokenizer.vocab_size:,}."
    )
    return data


def _describe(trainer: Trainer) -> None:
    """Show the size of what is to come, and the warnings of the planning guards."""
    display, data, parameters = trainer.display, trainer.dataset, trainer.model.parameters
    display.message(f"Model: {parameters.size:,} parameters; {trainer.tokens_per_step:,} tokens per step.")
    for warning in planning.plan(
        trainer.training,
        train_tokens=len(data.train.tokens),
        has_validation=data.validation is not None,
        parameters=parameters.size,
        tokens_per_step=trainer.tokens_per_step,
    ):
        display.warning(warning)
