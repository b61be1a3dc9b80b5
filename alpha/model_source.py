"""A model to go on from: weights, options and tokenizer of a checkpoint, a run, or a model from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from alpha import checkpoint
from alpha.checkpoint import IMPORTED
from alpha.config import ModelConfig, resolve_model
from alpha.errors import UsageError
from alpha.exchange_folder import CONFIG, HuggingFaceFolder
from alpha.exchange_gguf import GgufModel
from alpha.model_loading import read_model
from alpha.option import flag_of
from alpha.run import METRICS
from alpha.run_reader import resolve
from alpha.safetensors_file import Array
from alpha.tokenizer import Tokenizer

GGUF_SUFFIX = ".gguf"

_FREE = ("block", "dropout")
"""Options of the model that do not decide what its weights mean."""


@dataclass(frozen=True)
class ModelSource:
    """A model to go on from; `weights` are float arrays by the name of the parameter.

    `state` is what checkpoints of every model made of it keep: the chat template that came with it, if one did.
    """

    path: Path
    model: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, Array]
    state: dict[str, Any]

    def weights_for(self, model: ModelConfig) -> dict[str, Array]:
        """The weights of a model with these options, which are resolved.

        Raises UsageError for one that contradicts the source's, and for a longer block unless the positions are rope's:
        there is nothing to be known of positions that were never learned.
        """
        for field in fields(ModelConfig):
            if field.name not in _FREE and getattr(model, field.name) != getattr(self.model, field.name):
                has = flag_of(self.model, field.name)
                raise UsageError(
                    f"{flag_of(model, field.name)} contradicts {self.path}, which has {has}; leave it out."
                )
        if model.position != "learned" or model.block == self.model.block:
            return self.weights
        if model.block > self.model.block:
            raise UsageError(
                f"--block={model.block} is more than the {self.model.block} positions that {self.path} has learned; "
                f"use at most --block={self.model.block}. A longer one needs a model with --position=rope."
            )
        return {**self.weights, "wpe.weight": self.weights["wpe.weight"][: model.block]}


def read_source(name: str) -> ModelSource:
    """The model that `--init` names: a checkpoint, a run's folder or id, a folder of Hugging Face's, or a GGUF file.

    Raises AlphaError when there is none, or when it is damaged or does not fit together.
    """
    path = resolve(name)
    if _is_foreign(path):
        with foreign_model(path) as foreign:
            imported = foreign.model()
            weights = {each: imported.weights.made(each) for each in imported.weights.shapes}
        return ModelSource(path, imported.model, imported.tokenizer, weights, _kept(imported.state))
    path = checkpoint.find(path)
    saved, tokenizer = read_model(path)
    return ModelSource(path, resolve_model(saved.model), tokenizer, saved.tensors, _kept(saved.state))


def model_options(name: str, given: Mapping[str, Any]) -> ModelConfig:
    """The options of the model that `--init` names, with those `given`, by field name; `resolve_model` is to follow."""
    path = resolve(name)
    if _is_foreign(path):
        with foreign_model(path) as foreign:
            model = foreign.model().model
    else:
        model = checkpoint.read_header(checkpoint.find(path)).model
    return replace(model, **given)


def foreign_model(path: Path) -> HuggingFaceFolder | GgufModel:
    """A model in a format of others', open for reading; use it in a `with` statement."""
    return HuggingFaceFolder(path) if path.is_dir() else GgufModel(path)


def _is_foreign(path: Path) -> bool:
    """A run's folder has a config.json, too, so checkpoints come first."""
    if path.is_dir():
        return not checkpoint.list_checkpoints(path) and (path / CONFIG).is_file() and not (path / METRICS).exists()
    return path.suffix == GGUF_SUFFIX


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """The model card is left behind: it describes the source."""
    template = checkpoint.chat_template(state)
    return {IMPORTED: {"chatTemplate": template}} if template else {}
