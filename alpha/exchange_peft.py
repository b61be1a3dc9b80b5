"""Adapters as Hugging Face's PEFT keeps them: adapter_config.json, and adapter_model.safetensors.

What an architecture's layers are called stands in the table of `exchange`. PEFT has an adapter for each of its
layers, Alpha one for all that read the same and stand side by side, such as queries, keys and values: going out, the
layers have one A and each its columns of B; coming in, their As stand side by side, and each has its own rows of B.

Source: `tuners/lora` and `utils/save_and_load.py` of the `peft` package 0.21.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpha import exchange, files, safetensors_file
from alpha.checkpoint import BASE, Checkpoint
from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import AlphaError
from alpha.exchange_weights import Piece, pieces, widened_parameter
from alpha.gpt import parameter_specs
from alpha.lora import MODULES, A, B, Lora
from alpha.model_source import ModelSource, base_state, read_source
from alpha.new_folder import filling
from alpha.parameters import ParameterSpec
from alpha.safetensors_file import Array, SafetensorsFile
from alpha.tokenizer import Tokenizer, shown

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_LIMIT = 1 << 20
_MOST_RANK = 4096
_TENSOR = re.compile(re.escape(_PREFIX) + r"(.+)(\.lora_[AB]\.weight)")
_ABSENT = {
    "bias": "none", "use_dora": False, "modules_to_save": None, "layer_replication": None, "target_parameters": None,
    "alora_invocation_tokens": None, "trainable_token_indices": None, "lora_bias": False, "use_qalora": False,
    "use_bdlora": None, "velora_config": None, "kasa_config": None, "arrow_config": None, "monteclora_config": None,
}  # fmt: skip
"""Keys that would change what is computed, and what they are when they do not."""


def _layers(model: ModelConfig, vocab_size: int) -> dict[str, Piece]:
    """The matrices that may have an adapter, by the name of their layer there."""
    architecture = exchange.architecture_of(model)
    wide = exchange.widened(architecture, model)
    found = {}
    for piece in pieces(wide, vocab_size, architecture.weights):
        layer, _, kind = piece.name.rpartition(".")
        if kind == "weight" and piece.parameter.removesuffix(".weight").split(".", 2)[-1] in MODULES:
            found[layer] = piece
    return found


# --- out --------------------------------------------------------------------------------------------------------------


def write_folder(folder: Path, saved: Checkpoint, tokenizer: Tokenizer, lora: Lora) -> str:
    """Write an adapter as PEFT reads it; returns the name of its base's architecture.

    Raises AlphaError when no architecture says the same as the base, or when the folder is not empty.
    """
    architecture = exchange.architecture_of(saved.model)
    wide = exchange.widened(architecture, saved.model)
    specs = {spec.name: spec for spec in parameter_specs(wide, tokenizer.vocab_size)}
    matrices = {}
    for name, piece in _layers(saved.model, tokenizer.vocab_size).items():
        layer = piece.parameter.removesuffix(".weight")
        if layer + A in saved.tensors:
            narrow, broad = saved.tensors[layer + A], saved.tensors[layer + B]
            spec = replace(specs[piece.parameter], name=layer + B, shape=(lora.rank, specs[piece.parameter].shape[1]))
            broad = widened_parameter(spec, saved.model, {layer + B: broad})
            matrices[name] = narrow.T, broad[:, piece.start : piece.start + piece.width]
    # What came from several adapters side by side has rows of zeros for the others, and some layers had none.
    used = {name: broad.any(axis=1) for name, (_, broad) in matrices.items()}
    rank = max(int(each.sum()) for each in used.values()) or lora.rank
    targets = {_target(name) for name in used if used[name].any()} or set(map(_target, used))
    tensors: dict[str, Array] = {}
    for name, (narrow, broad) in matrices.items():
        if _target(name) not in targets:
            continue
        chosen = np.argsort(~used[name], kind="stable")[:rank]
        tensors[_PREFIX + name + A] = np.ascontiguousarray(narrow[chosen], np.float32)
        tensors[_PREFIX + name + B] = np.ascontiguousarray(broad[chosen].T, np.float32)
    base = saved.state.get(BASE)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.get("path") if isinstance(base, dict) else None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": lora.scale * rank,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(targets),
        "fan_in_fan_out": not architecture.weights.transposed,
        "bias": "none",
    }
    with filling(folder) as new:
        safetensors_file.write(new / WEIGHTS, tensors, {"format": "pt"})
        files.write_json(new / CONFIG, values)
    return architecture.name


def _target(layer: str) -> str:
    """What a layer is called in every block."""
    return re.sub(r".*\.[0-9]+\.", "", layer)


# --- in ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """An adapter to one layer there: A [r, inputs], B [outputs, r], in its place in Alpha's matrix."""

    piece: Piece
    narrow: Array
    broad: Array
    scale: float


def is_adapter(folder: Path) -> bool:
    """Whether a folder is one of PEFT's."""
    return (folder / CONFIG).is_file()


def read_folder(folder: Path, base: str = "") -> Checkpoint:
    """The adapter in a folder, as a checkpoint of Alpha's; its base is the model `base`, or where the folder says.

    Raises AlphaError that names what is in the way.
    """
    path = folder / CONFIG
    values = files.read_json(path, "adapter's configuration", _LIMIT)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise AlphaError(f"{path} does not describe an adapter of type LORA, the only one that Alpha has.")
    for key, value in _ABSENT.items():
        if values.get(key) not in (value, None):
            raise AlphaError(f"{path} cannot be used: Alpha has no adapter whose {key} is {shown(values[key])}.")
    source = _base(path, values, base)
    vocab_size = source.tokenizer.vocab_size
    layers = _layers(source.model, vocab_size)
    specs = {spec.name: spec for spec in parameter_specs(source.model, vocab_size)}
    with SafetensorsFile(folder / WEIGHTS) as file:
        parts = list(_parts(file, layers, specs, values, path))
    if not parts:
        raise AlphaError(f"{folder / WEIGHTS} has no adapter to any layer.")
    tensors, lora = _joined(parts, specs)
    training = TrainingConfig(
        tokenizer=source.tokenizer.kind, init=str(source.path), lora=lora.rank, lora_alpha=lora.alpha,
        lora_targets=",".join(lora.modules),
    )  # fmt: skip
    state = {**source.state, **base_state(source)}
    return Checkpoint(0, source.model, training, source.tokenizer.to_mapping(), tensors, state)


def _base(path: Path, values: Mapping[str, Any], base: str) -> ModelSource:
    named = base or values.get("base_model_name_or_path")
    if not isinstance(named, str) or "\0" in named or not (base or Path(named).exists()):
        said = f"it names {shown(named)}, which is not here" if isinstance(named, str) else "it names none"
        raise AlphaError(f"{path} does not say where the model is that it adapts: {said}. Say it with --base=MODEL.")
    return read_source(named)


def _parts(
    file: SafetensorsFile,
    layers: Mapping[str, Piece],
    specs: Mapping[str, ParameterSpec],
    values: Mapping[str, Any],
    path: Path,
) -> Iterator[_Part]:
    """The adapters in a file; AlphaError for what is none, or does not fit."""
    names = {name: _TENSOR.fullmatch(name) for name in file.entries}
    for name, match in names.items():
        if match is None or match[1] not in layers:
            raise AlphaError(f"{file.path} has the tensor {name!r}, for which an adapter to this model has no place.")
    for layer in sorted({match[1] for match in names.values() if match}):
        piece = layers[layer]
        inputs, wide = specs[piece.parameter].shape
        shapes = [file.entries[name].shape if name in names else () for name in (_name(layer, A), _name(layer, B))]
        rank = shapes[0][0] if shapes[0] else 0
        fits = piece.start + piece.width <= wide and 0 < rank <= _MOST_RANK
        if not fits or shapes != [(rank, inputs), (piece.width, rank)]:
            raise AlphaError(
                f"The adapter to {layer!r} in {file.path} has the shapes {[list(each) for each in shapes]}, but this "
                f"model needs [r, {inputs}] and [{piece.width}, r]."
            )
        said = _value_for(layer, values, "rank_pattern", "r", path)
        if said != rank:
            raise AlphaError(
                f"{path} cannot be used: it says that r is {said:g} for {layer!r}, but the adapter to it in "
                f"{file.path} has a rank of {rank}."
            )
        narrow, broad = (file.read(_name(layer, each)).astype(np.float32, copy=False) for each in (A, B))
        alpha = _value_for(layer, values, "alpha_pattern", "lora_alpha", path)
        yield _Part(piece, narrow, broad, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))


def _name(layer: str, part: str) -> str:
    return _PREFIX + layer + part


def _value_for(layer: str, values: Mapping[str, Any], patterns: str, key: str, path: Path) -> float:
    """The value of a layer: that of the first pattern that is the end of its name, or else of all layers."""
    special = values.get(patterns) or {}
    found = values.get(key)
    for pattern in special if isinstance(special, dict) else ():
        if not re.fullmatch(r"[A-Za-z0-9_.]+", pattern):
            raise AlphaError(
                f"{path} has the {patterns} {shown(pattern)}; Alpha reads names of layers, no expressions."
            )
        if layer == pattern or layer.endswith("." + pattern):
            found = special[pattern]
            break
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise AlphaError(f"{path} cannot be used: its {key} is {shown(found)}, not a number above 0.")
    return float(found)


def _joined(parts: list[_Part], specs: Mapping[str, ParameterSpec]) -> tuple[dict[str, Array], Lora]:
    """The adapters of layers side by side as one each, all of one rank; what is left of it is zero."""
    sides: dict[str, list[_Part]] = {}
    for part in parts:
        sides.setdefault(part.piece.parameter, []).append(part)
    shared = {
        name: all(np.array_equal(each.narrow, own[0].narrow) for each in own) for name, own in sides.items()
    }  # fmt: skip
    rank = max(
        len(own[0].narrow) if shared[name] else sum(len(each.narrow) for each in own) for name, own in sides.items()
    )
    if rank > _MOST_RANK:
        raise AlphaError(f"The adapter has a rank of {rank:,} where it is joined; Alpha takes up to {_MOST_RANK:,}.")
    scale = parts[0].scale
    used = {parameter.removesuffix(".weight").split(".", 2)[-1] for parameter in sides}
    modules = tuple(module for module in MODULES if module in used)
    tensors: dict[str, Array] = {}
    for name, spec in specs.items():
        layer = name.removesuffix(".weight")
        if layer.split(".", 2)[-1] not in modules or len(spec.shape) != 2:
            continue
        narrow, broad = np.zeros((spec.shape[0], rank), np.float32), np.zeros((rank, spec.shape[1]), np.float32)
        row = 0
        for part in sides.get(name, ()):
            end, columns = row + len(part.narrow), slice(part.piece.start, part.piece.start + part.piece.width)
            narrow[:, row:end] = part.narrow.T
            broad[row:end, columns] = part.broad.T * np.float32(part.scale / scale)
            row = row if shared[name] else end
        tensors |= {layer + A: narrow, layer + B: broad}
    return tensors, Lora(rank, scale * rank, modules, 0.0)
