"""A trained model, ready to use, from a checkpoint, a run's folder or a run's id."""

from collections.abc import Generator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from alpha import checkpoint
from alpha.backend import Backend
from alpha.checkpoint import Checkpoint, weights_digest
from alpha.config import ModelConfig, TrainingConfig
from alpha.gpt import GPT
from alpha.lora import lora_of
from alpha.model_source import base_digest, base_of, read_model
from alpha.run_reader import resolve
from alpha.safetensors_file import Array
from alpha.tokenizer import Tokenizer

SharedModels = MutableMapping[tuple[str, ModelConfig], GPT]
"""Models without adapters that are loaded already, by the digest of their weights and by their options."""


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

    @property
    def context(self) -> int:
        """How many tokens it can look at."""
        return self.model.config.block


def load_model(name: str, backend: Backend, shared: SharedModels | None = None) -> LoadedModel:
    """The model to be used, not trained: it has no gradients. With `shared`, adapters to one base share its weights.

    Raises AlphaError when there is no such checkpoint, when it is damaged or does not fit together, or when it is an
    adapter whose base is not there.
    """
    turns = place_in_turn(read_parts(checkpoint.find(resolve(name)), shared), backend, shared)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Parts:
    """What a model is made of, read from its files: a checkpoint, and the weights of what it is an adapter to."""

    path: Path
    saved: Checkpoint
    tokenizer: Tokenizer
    key: tuple[str, ModelConfig]
    base: dict[str, Array] | None
    """None where the model is shared."""


def read_parts(path: Path, shared: SharedModels | None = None) -> Parts:
    """The files of the model; what is in `shared` already is not read. Needs no backend, and raises as `load_model`."""
    saved, tokenizer = read_model(path)
    lora = lora_of(saved.training)
    digest = ""
    if shared is not None:
        digest = base_digest(saved, path) if lora else weights_digest(saved.tensors)
    key = (digest, replace(saved.model, dropout=0.0))
    base = None
    if shared is None or key not in shared:
        base = base_of(saved, path).weights_for(saved.model) if lora else saved.tensors
    return Parts(path, saved, tokenizer, key, base)


def place_in_turn(
    parts: Parts, backend: Backend, shared: SharedModels | None = None
) -> Generator[None, None, LoadedModel]:
    """Makes the model, another array each time that it is asked, so that its backend may do other things between."""
    saved, lora = parts.saved, lora_of(parts.saved.training)
    model = None if shared is None else shared.get(parts.key)
    if model is None:
        base = parts.base
        if base is None:  # what shared it has gone since
            base = base_of(saved, parts.path).weights_for(saved.model) if lora else saved.tensors
        config, size = parts.key[1], parts.tokenizer.vocab_size
        model = GPT(backend, config, size, trained=lambda spec: False, matrix_dtype=backend.weight_dtype)
        yield from model.parameters.load_in_turn(base)
        if shared is not None:
            shared[parts.key] = model
    if lora:
        model = model.adapted(lora, trained=False)
        yield from model.parameters.load_in_turn(saved.tensors)
    template = checkpoint.chat_template(saved.state)
    return LoadedModel(parts.path, saved.step, model, parts.tokenizer, saved.training, template)
