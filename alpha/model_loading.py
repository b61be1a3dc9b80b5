"""A trained model, ready to use, from a checkpoint, a run's folder or a run's id."""

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from alpha import checkpoint
from alpha.backend import Backend
from alpha.checkpoint import weights_digest
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


def load_model(name: str, backend: Backend, shared: SharedModels | None = None) -> LoadedModel:
    """The model to be used, not trained: it has no gradients. With `shared`, adapters to one base share its weights.

    Raises AlphaError when there is no such checkpoint, when it is damaged or does not fit together, or when it is an
    adapter whose base is not there.
    """
    path = checkpoint.find(resolve(name))
    saved, tokenizer = read_model(path)
    lora = lora_of(saved.training)
    config = replace(saved.model, dropout=0.0)
    model = None
    if shared is not None:
        digest = base_digest(saved, path) if lora else weights_digest(saved.tensors)
        model = shared.get((digest, config))
    if model is None:
        weights = base_of(saved, path).weights_for(saved.model) if lora else saved.tensors
        model = _model_of(weights, config, tokenizer, backend)
        if shared is not None:
            shared[digest, config] = model
    if lora:
        model = model.adapted(lora, trained=False)
        model.parameters.load(saved.tensors)
    return LoadedModel(path, saved.step, model, tokenizer, saved.training, checkpoint.chat_template(saved.state))


def _model_of(weights: dict[str, Array], config: ModelConfig, tokenizer: Tokenizer, backend: Backend) -> GPT:
    model = GPT(backend, config, tokenizer.vocab_size, trained=lambda spec: False)
    model.parameters.load(weights)
    return model
