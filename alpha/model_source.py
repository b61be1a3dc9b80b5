"""A model to go on from: weights, options and tokenizer of a checkpoint, a run, or a model from elsewhere.

And what an adapter stands on: its checkpoint says which weights, by their digest, and where they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from alpha import checkpoint, tokenizer_registry
from alpha.checkpoint import BASE, IMPORTED, Checkpoint, weights_digest
from alpha.config import ModelConfig, resolve_model
from alpha.errors import AlphaError, UsageError
from alpha.exchange_folder import CONFIG, HuggingFaceFolder, pickled
from alpha.exchange_gguf import GgufModel
from alpha.gpt import parameter_specs
from alpha.lora import Lora, adapter_specs, lora_of, merged
from alpha.option import flag_of, spelled
from alpha.parameters import check_weights
from alpha.run import METRICS
from alpha.run_reader import resolve
from alpha.safetensors_file import PICKLE_SUFFIXES, Array
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
    whole = _merged(saved, path)
    return ModelSource(path, resolve_model(saved.model), tokenizer, whole.tensors, whole.state)


def read_model(path: Path) -> tuple[Checkpoint, Tokenizer]:
    """The checkpoint in a file, without the optimizer's state, and its tokenizer; AlphaError unless they fit."""
    saved = checkpoint.load(path, weights_only=True)
    tokenizer = tokenizer_registry.from_mapping(saved.tokenizer, str(path))
    try:
        # Before anything is allocated: the sizes in the file are only what somebody wrote there.
        specs, lora = parameter_specs(saved.model, tokenizer.vocab_size), lora_of(saved.training)
        check_weights(adapter_specs(specs, lora) if lora else specs, saved.tensors)
    except AlphaError as error:
        raise AlphaError(f"{path} does not fit its own configuration. {error}") from error
    return saved, tokenizer


def read_whole(name: str) -> tuple[Path, Checkpoint]:
    """The checkpoint that a name means, without the optimizer's state; an adapter is merged with its base."""
    path = checkpoint.find(resolve(name))
    saved, _ = read_model(path)
    return path, _merged(saved, path)


def _merged(saved: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint itself, or of an adapter, that of the model that computes the same without one."""
    lora = lora_of(saved.training)
    if lora is None:
        return saved
    return merged_checkpoint(saved, base_of(saved, path).weights_for(saved.model), lora)


def merged_checkpoint(saved: Checkpoint, weights: Mapping[str, Array], lora: Lora) -> Checkpoint:
    """Of an adapter's checkpoint and the weights of its base, that of the model that computes the same without one."""
    training = replace(saved.training, lora=0)
    return replace(saved, training=training, tensors=merged(weights, saved.tensors, lora), state=_kept(saved.state))


# --- what an adapter stands on ----------------------------------------------------------------------------------------


def base_state(source: ModelSource) -> dict[str, Any]:
    """What the checkpoints of an adapter to this model say of it. Raises UsageError when it is an adapter itself."""
    if source.path.suffix == ".safetensors" and checkpoint.read_header(source.path).training.lora:
        raise UsageError(
            f"{source.path} is an adapter, and another one cannot stand on it; make a model of it first: "
            f"alpha merge {spelled('checkpoint', source.path)} --out=CHECKPOINT"
        )
    return {BASE: {"digest": weights_digest(source.weights), "path": str(source.path.absolute())}}


def base_digest(saved: Checkpoint, path: Path) -> str:
    """The digest of the weights that the adapter in a checkpoint stands on."""
    return _said_of_base(saved, path)[0]


def base_of(saved: Checkpoint, path: Path, named: str = "") -> ModelSource:
    """The model that the adapter in the checkpoint at `path` stands on: `named`, or else where it was.

    Where it is not there any more it is looked for in a run's folder beside the adapter's.
    Raises AlphaError when it is nowhere.
    """
    digest, was = _said_of_base(saved, path)
    places = [resolve(named)] if named else [was, path.parent.parent / was.parent.name / was.name]
    looked_at = []
    for place in dict.fromkeys(places):
        if not place.exists():
            continue
        if not _is_foreign(place) and checkpoint.read_header(checkpoint.find(place)).training.lora:
            looked_at.append(f"{place} is an adapter itself")
            continue
        source = read_source(str(place))
        if weights_digest(source.weights) == digest:
            return source
        looked_at.append(f"{place} has other weights")
    reason = "; ".join(looked_at) or f"{places[0]} is not there"
    raise AlphaError(
        f"{path} is an adapter, and the model that it stands on is missing: {reason}. Bring the model back to {was}, "
        f"or say where it is: alpha merge {spelled('checkpoint', path)} --base=MODEL --out=CHECKPOINT"
    )


def _said_of_base(saved: Checkpoint, path: Path) -> tuple[str, Path]:
    said = saved.state.get(BASE)
    said = said if isinstance(said, dict) else {}
    digest, place = said.get("digest"), said.get("path")
    if not isinstance(digest, str) or not isinstance(place, str) or "\0" in place:
        raise AlphaError(f"{path} is an adapter, but does not say what it is an adapter to.")
    return digest, Path(place)


# --- kinds of sources -------------------------------------------------------------------------------------------------


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
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.is_file() and path.suffix in PICKLE_SUFFIXES:
        raise pickled(path)
    if path.is_file() and path.suffix == ".safetensors":
        raise AlphaError(f"{path} is a file with weights; of a model of transformers, name the folder, {path.parent}.")
    return GgufModel(path)


def _is_foreign(path: Path) -> bool:
    """A run's folder has a config.json, too, so checkpoints come first."""
    if path.is_dir():
        return not checkpoint.list_checkpoints(path) and (path / CONFIG).is_file() and not (path / METRICS).exists()
    return path.suffix == GGUF_SUFFIX


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """The model card is left behind: it describes the source."""
    template = checkpoint.chat_template(state)
    return {IMPORTED: {"chatTemplate": template}} if template else {}
