"""A trained model, ready to use, from a checkpoint, a run's folder or a run's id."""

from dataclasses import dataclass
from pathlib import Path

from alpha import checkpoint, tokenizer_registry
from alpha.backend import Backend
from alpha.checkpoint import Checkpoint
from alpha.config import TrainingConfig
from alpha.errors import AlphaError
from alpha.gpt import GPT, parameter_specs
from alpha.parameters import check_weights
from alpha.run_reader import resolve
from alpha.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model with the tokenizer it was trained with."""

    path: Path
    step: int
    model: GPT
    tokenizer: Tokenizer
    training: TrainingConfig
    chat_template: str | None
    """The one that came with it, if it was imported with one."""


def load_model(name: str, backend: Backend) -> LoadedModel:
    """The model to be used, not trained: it has no gradients.

    Raises AlphaError when there is no such checkpoint, or when it is damaged or does not fit together.
    """
    path = checkpoint.find(resolve(name))
    saved, tokenizer = read_model(path)
    model = GPT(backend, saved.model, tokenizer.vocab_size, trained=lambda spec: False)
    model.parameters.load(saved.tensors)
    template = checkpoint.chat_template(saved.state)
    return LoadedModel(path, saved.step, model, tokenizer, saved.training, template)


def read_model(path: Path) -> tuple[Checkpoint, Tokenizer]:
    """The checkpoint in a file, without the optimizer's state, and its tokenizer; AlphaError unless they fit."""
    saved = checkpoint.load(path, weights_only=True)
    tokenizer = tokenizer_registry.from_mapping(saved.tokenizer, str(path))
    try:
        # Before anything is allocated: the sizes in the file are only what somebody wrote there.
        check_weights(parameter_specs(saved.model, tokenizer.vocab_size), saved.tensors)
    except AlphaError as error:
        raise AlphaError(f"{path} does not fit its own configuration. {error}") from error
    return saved, tokenizer
