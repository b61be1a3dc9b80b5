"""One file that alone is enough to sample from a model, evaluate it or resume its training.

`checkpoint-<step>.safetensors` holds the tensors, and as JSON in its header the configuration, the tokenizer and the
trainer's state. Knows nothing about how a model computes: tensors are names and arrays. Names that begin with
`optimizer.` are the optimizer's state, all others are weights.

Every tensor's SHA-256 stands in the header, and so does the SHA-256 of all else in the header, so that any damage is
found when a file is loaded, and the weights can be loaded and verified without reading the optimizer's state.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpha import safetensors_file
from alpha.config import ModelConfig, TrainingConfig, resolve_model
from alpha.errors import AlphaError, UsageError
from alpha.files import finite, json_text
from alpha.option import LARGEST_INTEGER, from_mapping, to_mapping
from alpha.safetensors_file import Array, InvalidFileError, SafetensorsFile, TensorEntry, parse_json, to_storable

OPTIMIZER_PREFIX = "optimizer."
IMPORTED = "imported"
"""Key of a checkpoint's state: the model card and the chat template that came with an imported model. Models made of it
keep the template."""
BASE = "base"
"""Key of the state of an adapter's checkpoint: digest and path of the weights that it stands on; see `model_source`."""

_FORMAT = "1"
_FORMAT_KEY = "alphaCheckpoint"
_JSON_KEYS = ("step", "model", "training", "tokenizer", "state", "digests")
_FILE_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})\.safetensors", re.ASCII)
_BLOCK_NAME = re.compile(r"h\.([0-9]{1,4})\.", re.ASCII)


@dataclass(frozen=True)
class Header:
    """All of a checkpoint but the content of its tensors."""

    step: int
    model: ModelConfig
    training: TrainingConfig
    tokenizer: dict[str, Any]
    state: dict[str, Any]
    entries: dict[str, TensorEntry]
    digests: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of its training.

    `state` is small JSON of the trainer's; of its keys only three mean something to others: "valLoss" is the validation
    loss measured at this step, `IMPORTED` has what came with the weights, and `BASE` says what an adapter stands on:
    with `training.lora`, the weights are those of the adapter alone. NaN and infinity in it are stored as
    None. Tensors have at least one element.
    """

    step: int
    model: ModelConfig
    training: TrainingConfig
    tokenizer: dict[str, Any]
    tensors: dict[str, Array]
    state: dict[str, Any]


def chat_template(state: Mapping[str, Any]) -> str | None:
    """The chat template that came with the weights of a checkpoint with this state, if one did."""
    return imported_text(state, "chatTemplate")


def imported_text(state: Mapping[str, Any], key: str) -> str | None:
    """A text that came with the weights; None where none did, or where it is no text."""
    imported = state.get(IMPORTED)
    text = imported.get(key) if isinstance(imported, dict) else None
    return text if isinstance(text, str) else None


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/checkpoint-<step>.safetensors` atomically and durably; returns its path.

    Raises AlphaError when the operating system refuses, and what was there before is then still there.
    """
    path = folder / f"checkpoint-{checkpoint.step}.safetensors"
    write(path, checkpoint)
    return path


def write(path: Path, checkpoint: Checkpoint) -> None:
    """The same, at another path."""
    tensors = {name: to_storable(name, array) for name, array in checkpoint.tensors.items()}
    declared = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    write_in_turn(path, checkpoint, declared, tensors.__getitem__)


def write_in_turn(
    path: Path,
    checkpoint: Checkpoint,
    declared: dict[str, tuple[str, tuple[int, ...]]],
    make: Callable[[str], Array],
) -> None:
    """Write a checkpoint whose tensors, of the dtypes and shapes declared, are made one after another: `make(name)` is
    what `to_storable` would give. `checkpoint.tensors` is not looked at.
    """
    digests = dict.fromkeys(declared, "0" * 64)
    values = {
        "step": checkpoint.step,
        "model": to_mapping(checkpoint.model),
        "training": to_mapping(checkpoint.training),
        "tokenizer": checkpoint.tokenizer,
        "state": finite(checkpoint.state),
    }
    texts = {key: json_text(value) for key, value in values.items()}

    def made(name: str) -> Array:
        array = make(name)
        digests[name] = _content_digest(array)
        return array

    def metadata() -> dict[str, str]:
        result = {**texts, "digests": json_text(digests), _FORMAT_KEY: _FORMAT}
        return {**result, "digest": _header_digest(result, declared)}

    safetensors_file.write_in_turn(path, declared, made, metadata)


def load(path: Path, weights_only: bool = False) -> Checkpoint:
    """The checkpoint in a file, verified; `weights_only` leaves the optimizer's state unread.

    Raises AlphaError for a file that is missing, damaged, not a checkpoint or of another version; it says which older
    checkpoint of the run to use when there is one.
    """
    try:
        with SafetensorsFile(path) as file:
            header = _interpret(file)
            tensors = {}
            for name in header.entries:
                if not (weights_only and name.startswith(OPTIMIZER_PREFIX)):
                    content = file.content(name)
                    if _content_digest(content) != header.digests[name]:
                        raise file.invalid(f"the content of tensor {name!r} does not match its digest")
                    tensors[name] = file.tensor(name, content)
    except InvalidFileError as error:
        raise _advise(path, error) from error
    return Checkpoint(header.step, header.model, header.training, header.tokenizer, tensors, header.state)


def read_header(path: Path) -> Header:
    """All of a checkpoint but the content of its tensors, verified; raises AlphaError as `load` does."""
    try:
        with SafetensorsFile(path) as file:
            return _interpret(file)
    except InvalidFileError as error:
        raise _advise(path, error) from error


def find(path: Path) -> Path:
    """The checkpoint that a path means: the file itself, or the newest one of a run's folder.

    Writes are atomic, so the newest is whole unless the disk damaged it; then `load` says which older one to use.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise AlphaError(f"Cannot read {path}: {error.strerror}.") from error
    if not is_folder:
        return path
    checkpoints = list_checkpoints(path)
    if not checkpoints:
        raise AlphaError(f"The folder {path} holds no checkpoint (checkpoint-<step>.safetensors).")
    return checkpoints[-1][1]


def new_path(out: str) -> Path:
    """Where `--out` wants a checkpoint of no run: at a NAME.safetensors, or in a folder. AlphaError if there is one, or
    anything else in the folder's place."""
    path = Path(out) if out.endswith(".safetensors") else Path(out) / "checkpoint-0.safetensors"
    if path.exists():
        raise AlphaError(f"{path} exists; name another place with --out, or remove it.")
    if path != Path(out) and Path(out).exists() and not Path(out).is_dir():
        raise AlphaError(f"--out={out} is neither a folder nor a name for a new .safetensors file; name another place.")
    return path


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a folder, by step; goes by the names alone."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise AlphaError(f"Cannot list the folder {folder}: {error.strerror or error}.") from error
    return sorted((int(match[1]), folder / name) for name in names if (match := _FILE_NAME.fullmatch(name)))


def weights_digest(weights: Mapping[str, Array]) -> str:
    """The SHA-256 of weights, whatever file they came from: of the names, shapes and digests of all tensors."""
    each = {name: [list(weights[name].shape), _content_digest(weights[name])] for name in weights}
    return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()


def _content_digest(array: Array) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _header_digest(metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    """SHA-256 over everything in the header but the digest itself and the tensors' places in the file.

    The places need none: the tensors must cover the file exactly, and each has its own digest.
    """
    values = {key: value for key, value in metadata.items() if key != "digest"}
    return hashlib.sha256(json.dumps([values, tensors], sort_keys=True).encode()).hexdigest()


def _interpret(file: SafetensorsFile) -> Header:
    """Raises InvalidFileError for a damaged file and AlphaError for one that is whole but of no use."""
    metadata = file.metadata
    if _FORMAT_KEY not in metadata:
        raise AlphaError(f"{file.path} is a safetensors file, but not an Alpha checkpoint.")
    if metadata[_FORMAT_KEY] != _FORMAT:
        raise AlphaError(f"{file.path} has format {metadata[_FORMAT_KEY]!r}; this version of Alpha reads {_FORMAT!r}.")
    if set(metadata) != {*_JSON_KEYS, _FORMAT_KEY, "digest"}:
        raise file.invalid("its metadata are not complete")
    shapes = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    if _header_digest(metadata, shapes) != metadata["digest"]:
        raise file.invalid("its header does not match its digest")
    try:
        values = {key: parse_json(metadata[key]) for key in _JSON_KEYS}
    except (ValueError, RecursionError) as error:
        raise file.invalid(str(error)) from error
    step, *mappings = values.values()
    if (
        type(step) is not int
        or not 0 <= step <= LARGEST_INTEGER
        or not all(isinstance(mapping, dict) for mapping in mappings)
    ):
        raise file.invalid("its metadata have the wrong types")
    if set(values["digests"]) != set(file.entries):
        raise file.invalid("its digests are not those of its tensors")
    try:
        model = from_mapping(ModelConfig, values["model"], str(file.path))
        training = from_mapping(TrainingConfig, values["training"], str(file.path))
        resolve_model(model)
    except UsageError as error:
        raise AlphaError(f"{file.path} cannot be used by this version of Alpha. {error}") from error
    if not training.lora:  # then there is an adapter only
        _check_sizes(file, model)
    return Header(step, model, training, values["tokenizer"], values["state"], file.entries, values["digests"])


def _check_sizes(file: SafetensorsFile, model: ModelConfig) -> None:
    """The sizes that every model has; the model itself checks the rest of its weights against its definition."""
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    embedding = shapes.get("wte.weight", ())
    if len(embedding) != 2 or embedding[1] != model.dim:
        raise file.invalid(f"wte.weight has shape {embedding}, but the model is {model.dim} wide")
    if model.position == "learned" and shapes.get("wpe.weight") != (model.block, model.dim):
        raise file.invalid(f"wpe.weight does not have the shape {(model.block, model.dim)} of the model")
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK_NAME.match(name))}
    if blocks != set(range(model.layers)):
        raise file.invalid(f"it has weights of {len(blocks)} blocks, but the model has {model.layers}")


def _advise(path: Path, error: InvalidFileError) -> AlphaError:
    match = _FILE_NAME.fullmatch(path.name)
    if not match:
        return error
    older = [candidate for step, candidate in list_checkpoints(path.parent) if step < int(match[1])]
    return AlphaError(f"{error} " + (f"Use the older {older[-1]}." if older else "There is no older one beside it."))
