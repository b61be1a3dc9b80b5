"""From a configuration to a trainer: tokenizer, data, backend, run folder, in the order in which errors are cheap."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import (
    backends,
    chat_format,
    checkpoint,
    corpus,
    corpus_files,
    dataset,
    domain,
    files,
    token_cache,
    tokenizer_registry,
)
from alpha.backend import Backend
from alpha.checkpoint import OPTIMIZER_PREFIX, Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.corpus_files import Selection
from alpha.corpus_forms import BAD_LINE, TEXT, Turns, in_words, read_line
from alpha.dataset import Dataset
from alpha.errors import AlphaError, UsageError, percent
from alpha.evaluation import shared_share
from alpha.gpt import parameter_specs
from alpha.lora import adapter_specs, lora_of
from alpha.loss_mask import loss_masks
from alpha.mixture import Mixture, mixture_of, sampler_of, shares
from alpha.model_source import ModelSource, base_of, base_state, read_source
from alpha.option import camel_case, spelled
from alpha.parameters import check_weights
from alpha.planning import planning_warnings
from alpha.run import Run, check_new
from alpha.run_reader import resolve
from alpha.safetensors_file import Array
from alpha.sampler import Tokens
from alpha.text_stream import Continuation, continuation
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer
from alpha.trainer import Beginning, Display, Trainer
from alpha.training_step import learning_rate

SCHEDULE = ("iters", "lr", "lr_min", "warmup_iters", "schedule", "decay_fraction")
"""Fields of TrainingConfig that the learning rate of a step depends on."""

RESUMABLE = (*SCHEDULE, "batch", "accum_steps", "grad_clip", "spike_threshold", "threads", "keep", "eval_interval",
             "eval_iters", "sample_interval", "sample_prompts", "checkpoint_interval", "log_every", "log", "trace",
             "backend", "device", "recompute", "data", "val_data", "strict_planning", "require_val_data",
             "min_tokens_per_param", "warn_dataset_passes", "max_dataset_passes")  # fmt: skip
"""Fields of TrainingConfig that may be given with --resume; config.json keeps a history of them.

The schedule, what a step is made of and where to compute change the steps to come, and no other a bit of them.
"""

NOTABLE_RISE = 1.1
"""A learning rate that rises by more than this factor is warned of."""

MOST_PROMPTS = 100
PROMPTS_LIMIT = 1 << 20
"""Bytes of a file of prompts."""

LOOKED_AT = 1 << 22
"""Tokens of each side that are searched for unknown ones."""


def new_run(model: ModelConfig, training: TrainingConfig, display: Display) -> tuple[Run, Trainer]:
    """A run in a new folder and what trains it; the caller closes the run.

    Raises AlphaError or UsageError; the folder is made last, when nothing else can go wrong.
    """
    begin = time.perf_counter()
    model, training = resolve_model(model), resolve_training(training)
    if not training.data:
        raise UsageError("Say what to train on with --data=PATHS; `alpha datagen` can make a corpus.")
    training = _with_backend(training, display)
    folder = Path(training.run_dir) if training.run_dir else None
    check_new(folder)
    trainer = _from_the_start(model, training, display, begin)
    return Run.create(model, trainer.training, folder), trainer


def _from_the_start(model: ModelConfig, training: TrainingConfig, display: Display, begin: float) -> Trainer:
    """What trains a run from its first step; its configuration says which tokenizer it has, and whether documents share
    windows. `begin` is when the time of `minutes` begins, by time.perf_counter()."""
    lora = lora_of(training)  # refuses what is wrong with it before anything is read
    source = read_source(training.init) if training.init else None
    beginning, base = None, None
    if source is not None:
        if model.block == source.model.block:
            tokens = f"{model.block:,} tokens"
            display.message(f"Windows have {tokens}, all that these weights read; --block=N makes them shorter.")
        weights = source.weights_for(model)
        if lora is not None:
            beginning, base = Beginning({}, {**source.state, **base_state(source)}), weights
        else:
            beginning = Beginning(weights, source.state)
    sources = _Sources(training, display)
    backend = backends.create(training.backend, training.device, training.dtype)
    tokenizer, training = _tokenizer(training, sources.data, display, source)
    return _trainer(model, training, tokenizer, sources, backend, display, begin, beginning, base)


def examples(
    model: ModelConfig, training: TrainingConfig, count: int, display: Display
) -> list[list[tuple[str, bool]]]:
    """The first `count` windows that a new run would train on, or documents where these share windows: parts of their
    text, and whether each is learned.

    Raises AlphaError or UsageError as `new_run`; makes no folder and no model.
    """
    model, training = resolve_model(model), resolve_training(training)
    if not training.data:
        raise UsageError("Say with --data=PATHS which data is to be shown.")
    source = read_source(training.init) if training.init else None
    sources = _Sources(training, display)
    tokenizer, training = _tokenizer(training, sources.data, display, source)
    mixture, training = _mixture(sources, tokenizer, model.block, display, training, source)
    masks = [loss_masks(part.data, training.loss_on, display.message)[0] for part in mixture.parts]
    one_by_one = dataclasses.replace(training, batch=1)
    sampler = sampler_of(mixture, masks, tokenizer, model.block, one_by_one, display.message)
    found: list[list[tuple[str, bool]]] = []
    number = 0
    while len(found) < count:
        ids, targets, *begins = (each[0] for each in sampler.batch_from(number))
        number += 1
        edges = [0, len(ids)]
        if begins:
            edges = [0, *(np.flatnonzero(np.diff(begins[0])) + 1).tolist(), len(ids)]
        for low, high in itertools.pairwise(edges):
            last = targets[high - 1 : high]  # each token but the first is predicted, and those before the last are read
            tokens = np.concatenate([ids[low:high], last[last >= 0]])
            learned = np.concatenate([np.zeros(1, bool), targets[low:high] >= 0])[: len(tokens)]
            if learned.any() or (tokens != tokenizer.end_of_text).any():  # else nothing but what fills the window
                found.append(_parts(tokens, learned, tokenizer))
    return found[:count]


def _parts(tokens: Tokens, learned: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    starts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(tokens)]
    return [(tokenizer.decode(tokens[low:high]), bool(learned[low])) for low, high in itertools.pairwise(starts)]


def resumed_run(given: Mapping[str, Any], display: Display) -> tuple[Run, Trainer]:
    """Continue the run or checkpoint that `given["resume"]` names; the caller closes it.

    `given` are the options of the command line by field name. Raises UsageError for one that cannot change any more;
    the run is as it was after any error.
    """
    for name in given:
        if name not in ("resume", *RESUMABLE):
            flag = camel_case(name)
            raise UsageError(f"--{flag} cannot be changed when a run is resumed; leave it out, or start a new run.")
    begin = time.perf_counter()
    changes = {name: value for name, value in given.items() if name != "resume"}
    named = resolve(given["resume"])
    run = Run.open(named)
    try:
        if named.is_dir() and not checkpoint.list_checkpoints(named):
            return run, _started_over(run, changes, display, begin)
        path = checkpoint.find(named)
        saved = checkpoint.load(path)
        training = _with_backend(_changed(saved.training, saved.step, changes), display)
        tokenizer = tokenizer_registry.from_mapping(saved.tokenizer, str(path))
        sources = _Sources(training, display)
        backend = backends.create(training.backend, training.device, training.dtype)
        model = resolve_model(saved.model)
        base = base_of(saved, path).weights_for(model) if training.lora else None
        trainer = _trainer(model, training, tokenizer, sources, backend, display, begin, saved, base)
        run.configure(saved.model, training, saved.step)
        run.rewind(saved.step)
        display.message(f"Resuming {run.folder} after step {saved.step} of {training.iters}.")
        _say_learning_rates(saved, training, display)
    except BaseException:
        run.close()
        raise
    return run, trainer


def _started_over(run: Run, changes: Mapping[str, Any], display: Display, begin: float) -> Trainer:
    """What trains a run that ended before its first checkpoint: it begins again, as its configuration says."""
    model, training = run.config.model, _with_backend(_changed(run.config.training, 0, changes), display)
    trainer = _from_the_start(resolve_model(model), training, display, begin)
    run.configure(model, trainer.training, 0)
    run.rewind(0)
    display.message(f"The run {run.folder} has no checkpoint yet: it starts over from its configuration, at step 0.")
    return trainer


def _changed(old: TrainingConfig, step: int, changes: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of the steps after `step`, given what is changed in it."""
    if "lr" in changes and "lr_min" not in changes and old.lr_min == old.lr / 10:
        changes = {**changes, "lr_min": 0.0}  # it was chosen by the old rate
    training = resolve_training(dataclasses.replace(old, **changes))
    # More steps make the warm-up of a run no longer.
    warmup_iters = training.warmup_iters if "warmup_iters" in changes else old.warmup_iters
    training = dataclasses.replace(training, warmup_iters=warmup_iters)
    if training.iters < step:
        raise UsageError(f"--iters={training.iters} is less than the {step} steps that this run already has.")
    return training


def _with_backend(training: TrainingConfig, display: Display) -> TrainingConfig:
    """The configuration with the backend that "auto" means here."""
    name = backends.resolve(training.backend, training.dtype, training.device)
    if training.backend == "auto":
        display.message(backends.choice(name))
    return dataclasses.replace(training, backend=name)


def _say_learning_rates(saved: Checkpoint, training: TrainingConfig, display: Display) -> None:
    """Say what becomes of the learning rate where the schedule of the steps to come is another."""
    step, old = saved.step, saved.training
    if not 0 < step < training.iters or learning_rate(step, training) == learning_rate(step, old):
        return
    before, after = learning_rate(step - 1, old), learning_rate(step, training)
    text = f"The learning rate goes from {before:.3g} in step {step} to {after:.3g} in step {step + 1}"
    if after <= NOTABLE_RISE * before:
        display.message(f"{text}, by the changed schedule over {training.iters} steps.")
        return
    why = (
        "the stable rate of wsd" if training.schedule == "wsd" else f"its place in a schedule of {training.iters} steps"
    )
    display.warning(f"{text}, {why}; to stay as low, resume with --lr={before:.3g} --lrMin={before:.3g}.")


class _Sources:
    """The files of the corpus and of validation data; found once, because a pipe can be read only once."""

    def __init__(self, training: TrainingConfig, display: Display) -> None:
        lines = training.text_field, training.skip_bad_lines
        self.shares = shares(training.data)
        paths = list(self.shares) or [training.data]
        self.parts = [corpus_files.find(path, *lines) for path in paths]
        every = [file for part in self.parts for file in part.files]
        notes = [note for part in self.parts for note in part.notes]
        self.data = Selection(tuple(dict.fromkeys(every)), sum(part.skipped for part in self.parts), tuple(notes))
        self.val_data = corpus_files.find(training.val_data, *lines) if training.val_data else None
        self.prompts = read_prompts(Path(training.sample_prompts)) if training.sample_prompts else ()
        for note in (*self.data.notes, *(self.val_data.notes if self.val_data else ())):
            display.message(note)


def read_prompts(path: Path) -> tuple[str | Turns, ...]:
    """The prompts in a file: its lines; of JSON lines texts, and conversations up to the answer that is asked for: the
    next one, or that at their end.

    Raises AlphaError for a file that cannot be read, has no prompt, or more than MOST_PROMPTS.
    """
    try:
        lines = files.read_bytes(path, "file of prompts", PROMPTS_LIMIT).decode().splitlines()
    except UnicodeDecodeError as error:
        raise AlphaError(f"The prompts {path} are not UTF-8 text: {error}.") from error
    prompts: list[str | Turns] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix not in corpus_files.JSON_LINES_ENDINGS:
            prompts.append(line)
            continue
        where = f"Line {number} of {path}"
        try:
            said = read_line(json.loads(line), where)
        except (ValueError, RecursionError) as error:
            raise AlphaError(f"{where} is not valid JSON: {error}.") from error
        if said.form == TEXT:
            prompts.append(said.text)
            continue
        asked = list(itertools.dropwhile(lambda turn: turn[0] == domain.ASSISTANT, reversed(said.turns)))[::-1]
        if not asked:
            raise AlphaError(f"{where} asks for no answer: nothing is said before it.")
        prompts.append(asked)
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise AlphaError(f"{path} has {len(prompts):,} prompts; give 1 to {MOST_PROMPTS}, one a line.")
    return tuple(prompts)


def _asked(
    prompts: Sequence[str | Turns], tokenizer: Tokenizer, domain_id: str, template: str | None
) -> list[tuple[str, Continuation]]:
    """Prompts as they are shown, and what is to be continued; conversations in the model's format."""
    form = chat_format.chat_format(tokenizer, domain_id, template)
    asked = []
    for prompt in prompts:
        if isinstance(prompt, str):
            asked.append((prompt, continuation(tokenizer, prompt, domain_id)))
            continue
        messages = [{"role": role.strip("<|>"), "content": content} for role, content in prompt]
        text = chat_format.render(form.template, messages, tokenizer)
        ids = chat_format.encode_chat(tokenizer, form.template, messages)
        asked.append((text, chat_format.answer(tokenizer, form, ids)))
    return asked


def _tokenizer(
    training: TrainingConfig, data: Selection, display: Display, source: ModelSource | None
) -> tuple[Tokenizer, TrainingConfig]:
    """The tokenizer of --init, or that of --tokenizerArtifacts when that file exists, otherwise one built from the
    training data; and the configuration that says which it is."""
    path = Path(training.tokenizer_artifacts) if training.tokenizer_artifacts else None
    if source is not None and path is not None:
        flag = spelled("tokenizerArtifacts", path)
        raise UsageError(f"{flag} cannot be given with --init, whose weights have a tokenizer; leave it out.")
    known = None
    if source is not None:
        known, flag = source.tokenizer, spelled("init", training.init)
        display.message(f"Starting from the weights of {source.path}.")
    elif path is not None and _exists(path):
        known, flag = tokenizer_registry.load(path), spelled("tokenizerArtifacts", path)
        display.message(f"Using the tokenizer of {path}.")
    if known is not None:
        if shortfall := tokenizer_registry.check_agreement(known, flag, training.tokenizer, training.vocab_size):
            display.warning(shortfall)
        name = training.tokenizer or tokenizer_registry.name_of(known)
        vocab_size = known.vocab_size if tokenizer_registry.RECIPES[name].vocab_size else 0
        return known, dataclasses.replace(training, tokenizer=name, vocab_size=vocab_size)
    name = training.tokenizer or (
        domain.get(training.domain).tokenizer if training.domain else TrainingConfig.tokenizer
    )
    recipe = tokenizer_registry.check_name(name, training.vocab_size)
    display.message(f"Building the {name} tokenizer from {training.data}.")
    write = chat_format.writer_before(recipe.special_names, training.domain)
    texts = corpus.texts(data.files, recipe.special_names, display.count, write)
    tokenizer = tokenizer_registry.build(name, texts, training.vocab_size, progress=display.count, warn=display.warning)
    if path is not None:
        tokenizer_registry.save(path, tokenizer)
    return tokenizer, dataclasses.replace(training, tokenizer=name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise AlphaError(f"Cannot look for {path}: {error.strerror}.") from error


def _trainer(
    model: ModelConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    sources: _Sources,
    backend: Backend,
    display: Display,
    begin: float,
    start: Checkpoint | Beginning | None = None,
    base: Mapping[str, Array] | None = None,
) -> Trainer:
    """Prepare the data, say how large everything is, and only then take the memory for it."""
    mixture, training = _mixture(sources, tokenizer, model.block, display, training, start)
    data = [part.data for part in mixture.parts]
    specs = parameter_specs(model, tokenizer.vocab_size)
    parameters = sum(spec.size for spec in specs)
    trained = ""
    if (lora := lora_of(training)) is not None:
        check_weights(specs, base or {})
        specs = adapter_specs(specs, lora)
        trained = f", and {sum(spec.size for spec in specs):,} of an adapter, which alone are trained"
    if start is not None and start.tensors:
        weights = start.tensors
        check_weights(specs, {name: weights[name] for name in weights if not name.startswith(OPTIMIZER_PREFIX)})
    tokens_per_step = training.batch * training.accum_steps * model.block
    display.message(f"Model: {parameters:,} parameters{trained}; {tokens_per_step:,} tokens per step.")

    def warn(training: TrainingConfig) -> None:
        given = [each.validation for each in data if each.validation is not None] if training.val_data else []
        shared = max((shared_share(each.train, given[0]) for each in data), default=0.0) if given else 0.0
        for warning in planning_warnings(
            training,
            train_tokens=mixture.tokens,
            has_validation=bool(mixture.evaluated),
            window=2 if training.pack_documents else model.block + 1,
            parameters=parameters,
            tokens_per_step=tokens_per_step,
            shared_validation=shared,
        ):
            display.warning(warning)

    if not training.minutes:
        warn(training)
    try:
        template = checkpoint.chat_template(start.state) if start is not None else None
        prompts = _asked(sources.prompts, tokenizer, training.domain, template)
        trainer = Trainer(model, training, tokenizer, mixture, backend, display, start, base, prompts)
        if training.minutes:
            trainer.fit(training.minutes, begin)
            warn(trainer.training)
        return trainer
    except MemoryError as error:
        numbers = f" {error}" if isinstance(error, AlphaError) else ""
        raise AlphaError(
            f"There is no memory for a model of {parameters:,} parameters; make it smaller.{numbers}"
        ) from error


def _mixture(
    sources: _Sources,
    tokenizer: Tokenizer,
    block: int,
    display: Display,
    training: TrainingConfig,
    start: Checkpoint | Beginning | ModelSource | None,
) -> tuple[Mixture, TrainingConfig]:
    """The data of a run, and the configuration that says whether documents share windows: those of a new run do where
    there are conversations among them."""
    is_new = not isinstance(start, Checkpoint)
    template = None if start is None else checkpoint.chat_template(start.state)
    write = chat_format.writer(tokenizer, training.domain, template)

    def packs(file: TokenFile) -> bool:
        return training.pack_documents or (is_new and len(file.flips) > 0)

    def least(file: TokenFile) -> int:
        return 2 if packs(file) else block + 1

    warn = functools.cache(display.warning)  # what is true of several token files is said once
    datasets, total = [], sum(sources.shares.values())
    for index, selection in enumerate(sources.parts):
        if sources.shares:
            name, share = list(sources.shares.items())[index]
            display.message(f"{percent(share / total)} of the windows are from {name}.")
        datasets.append(_dataset(selection, sources, tokenizer, least, write, warn, display))
    mixture = mixture_of(datasets, sources.shares, one_validation=sources.val_data is not None)
    return mixture, dataclasses.replace(training, pack_documents=any(packs(each.train) for each in datasets))


def _dataset(
    selection: Selection,
    sources: _Sources,
    tokenizer: Tokenizer,
    least: Callable[[TokenFile], int],
    write: chat_format.TemplateWriter | None,
    warn: Callable[[str], None],
    display: Display,
) -> Dataset:
    data = dataset.prepare(
        selection,
        sources.val_data,
        tokenizer,
        token_cache.folder(),
        least,
        progress=display.count,
        warn=warn,
        write=write,
    )
    validation = 0 if data.validation is None else len(data.validation.tokens)
    skipped = f"; {data.skipped:,} other files were skipped" if data.skipped else ""
    display.message(
        f"Data: {len(data.train.tokens):,} tokens for training, {validation:,} for validation, "
        f"vocabulary {tokenizer.vocab_size:,}{skipped}."
    )
    _say_forms("training" if sources.val_data else "corpus", data.train, display)
    if data.validation is not None and sources.val_data:
        _say_forms("validation", data.validation, display)
    for what, file in (("training", data.train), ("validation", data.validation)):
        if file is not None:
            _warn_of_unknown(what, file, tokenizer, display)
    return data


def _say_forms(what: str, file: TokenFile, display: Display) -> None:
    """Say what the lines of JSON were recognized as."""
    if words := in_words(file.forms):
        display.message(f"Lines of the {what}: {words}.")
    if bad := file.forms.get(BAD_LINE):
        display.warning(
            f"Bad lines of the {what} that were skipped: {bad:,}; without --skipBadLines the first is named."
        )


def _warn_of_unknown(what: str, file: TokenFile, tokenizer: Tokenizer, display: Display) -> None:
    looked_at = file.tokens[:LOOKED_AT]
    share = tokenizer.count_unknown(looked_at) / len(looked_at)
    if share:
        display.warning(
            f"{percent(share)} of the {what} tokens are unknown to the tokenizer and cannot be learned; "
            f"build one from this data, or use --tokenizer=bpe."
        )
