"""From a configuration to a trainer: tokenizer, data, backend, run folder, in the order in which errors are cheap."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpha import backends, checkpoint, corpus, dataset, files, planning, tokenizer_registry
from alpha.backend import Backend
from alpha.checkpoint import OPTIMIZER_PREFIX, Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.dataset import Dataset
from alpha.errors import AlphaError, UsageError
from alpha.evaluation import shared_share
from alpha.gpt import parameter_specs
from alpha.option import camel_case
from alpha.parameters import check_weights
from alpha.run import CONFIG, Run
from alpha.run_list import resolve
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer
from alpha.trainer import Display, Trainer

RESUMABLE = ("iters", "threads", "keep", "eval_interval", "sample_interval", "checkpoint_interval", "log_every", "log",
             "trace", "backend", "device", "checkpoint", "data", "val_data")  # fmt: skip
"""Fields of TrainingConfig that may be given with --resume.

None but `iters` and where to compute changes a bit of the steps to come; with more iters, these follow the longer
schedule.
"""

LOOKED_AT = 1 << 22
"""Tokens of each side that are searched for unknown ones."""


def new_run(model: ModelConfig, training: TrainingConfig, display: Display) -> tuple[Run, Trainer]:
    """A run in a new folder and what trains it; the caller closes the run.

    Raises AlphaError or UsageError; the folder is made last, when nothing else can go wrong.
    """
    model, training = resolve_model(model), resolve_training(training)
    if not training.data:
        raise UsageError("Say what to train on with --data=PATHS; `alpha datagen` can make a corpus.")
    training = dataclasses.replace(training, backend=backends.resolve(training.backend, training.dtype))
    folder = Path(training.run_dir) if training.run_dir else None
    if folder is not None and _exists(folder / CONFIG):
        raise AlphaError(
            f"The folder {folder} has a run; continue it with --resume={folder} or choose another --runDir."
        )
    backend = backends.create(training.backend, training.device, training.dtype)
    trainer = _trainer(model, training, _tokenizer(training, display), backend, display)
    return Run.create(model, training, folder), trainer


def resumed_run(given: Mapping[str, Any], display: Display) -> tuple[Run, Trainer]:
    """Continue the run or checkpoint that `given["resume"]` names; the caller closes it.

    `given` are the options of the command line by field name. Raises UsageError for one that cannot change any more;
    the run is as it was after any error.
    """
    for name in given:
        if name not in ("resume", *RESUMABLE):
            flag = camel_case(name)
            raise UsageError(f"--{flag} cannot be changed when a run is resumed; leave it out, or start a new run.")
    named = resolve(given["resume"])
    run = Run.open(named)
    try:
        path = checkpoint.find(named)
        saved = checkpoint.load(path)
        training = _extended(saved, {name: value for name, value in given.items() if name != "resume"})
        tokenizer = tokenizer_registry.from_mapping(saved.tokenizer, str(path))
        backend = backends.create(training.backend, training.device, training.dtype)
        trainer = _trainer(resolve_model(saved.model), training, tokenizer, backend, display, saved)
        run.configure(saved.model, training)
        run.rewind(saved.step)
        display.message(f"Resuming {run.folder} after step {saved.step} of {training.iters}.")
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
    if path is not None and _exists(path):
        display.message(f"Using the tokenizer of {path}.")
        return tokenizer_registry.load(path)
    tokenizer_registry.check_name(training.tokenizer, training.vocab_size)
    files = corpus.find(training.data).files
    display.message(f"Building the {training.tokenizer} tokenizer from {training.data}.")
    texts = (section.text for section in corpus.sections(files))
    tokenizer = tokenizer_registry.build(training.tokenizer, texts, training.vocab_size)
    if path is not None:
        tokenizer_registry.save(path, tokenizer)
    return tokenizer


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise AlphaError(f"Cannot look for {path}: {error.strerror}.") from error


def _trainer(
    model: ModelConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    backend: Backend,
    display: Display,
    saved: Checkpoint | None = None,
) -> Trainer:
    """Prepare the data, say how large everything is, and only then take the memory for it."""
    data = _dataset(training, tokenizer, model.block, display)
    specs = parameter_specs(model, tokenizer.vocab_size)
    if saved is not None:
        check_weights(
            specs, {name: saved.tensors[name] for name in saved.tensors if not name.startswith(OPTIMIZER_PREFIX)}
        )
    parameters = sum(spec.size for spec in specs)
    tokens_per_step = training.batch * training.accum_steps * model.block
    display.message(f"Model: {parameters:,} parameters; {tokens_per_step:,} tokens per step.")
    for warning in planning.plan(
        training,
        train_tokens=len(data.train.tokens),
        has_validation=data.validation is not None,
        parameters=parameters,
        tokens_per_step=tokens_per_step,
        shared_validation=shared_share(data.train, data.validation) if training.val_data and data.validation else 0.0,
    ):
        display.warning(warning)
    try:
        return Trainer(model, training, tokenizer, data, backend, display, saved)
    except MemoryError as error:
        numbers = f" {error}" if isinstance(error, AlphaError) else ""
        raise AlphaError(
            f"There is no memory for a model of {parameters:,} parameters; make it smaller.{numbers}"
        ) from error


def _dataset(training: TrainingConfig, tokenizer: Tokenizer, block: int, display: Display) -> Dataset:
    data = dataset.prepare(training.data, training.val_data, tokenizer, files.cache_folder() / "tokens", block)
    validation = 0 if data.validation is None else len(data.validation.tokens)
    skipped = f"; {data.skipped:,} other files were skipped" if data.skipped else ""
    display.message(
        f"Data: {len(data.train.tokens):,} tokens for training, {validation:,} for validation, "
        f"vocabulary {tokenizer.vocab_size:,}{skipped}."
    )
    for what, file in (("training", data.train), ("validation", data.validation)):
        if file is not None:
            _warn_of_unknown(what, file, tokenizer, display)
    return data


def _warn_of_unknown(what: str, file: TokenFile, tokenizer: Tokenizer, display: Display) -> None:
    looked_at = file.tokens[:LOOKED_AT]
    share = tokenizer.count_unknown(looked_at) / len(looked_at)
    if share:
        display.warning(
            f"{planning.percent(share)} of the {what} tokens are unknown to the tokenizer and cannot be learned; "
            f"build one from this data, or use --tokenizer=bpe."
        )
