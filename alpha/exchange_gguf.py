"""GGUF files of llama.cpp: what they say of a model and its tokenizer, in both directions.

The keys are those of llama.cpp's converter; names of weights, and what llama.cpp computes, are in the table of
`exchange`. What is read was written by strangers.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from alpha import exchange
from alpha.checkpoint import IMPORTED, Checkpoint
from alpha.config import ModelConfig, resolve_model
from alpha.errors import AlphaError, UsageError
from alpha.exchange import ARCHITECTURES, Architecture
from alpha.exchange_folder import ImportedModel, template_of
from alpha.exchange_gguf_tokenizer import read_tokenizer, tokenizer_keys
from alpha.exchange_weights import Exported, Imported
from alpha.files import Progress
from alpha.gguf_file import GgufFile, Value, write_in_turn
from alpha.option import camel_case, from_mapping
from alpha.safetensors_file import Array
from alpha.tokenizer import shown
from alpha.tokenizer_registry import from_mapping as tokenizer_from_mapping
from alpha.tokenizer_registry import with_unused

DTYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""The element types that a file may have, with the number of each in `general.file_type`."""

_KEYS = {
    "block": "context_length",
    "dim": "embedding_length",
    "layers": "block_count",
    "ffn_dim": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
}
_EPSILONS = {"layernorm": "attention.layer_norm_epsilon", "rmsnorm": "attention.layer_norm_rms_epsilon"}
_ROPE_BASE = "rope.freq_base"
_HEAD_WIDTH = "attention.key_length"
_WIDTHS = (_HEAD_WIDTH, "attention.value_length", "rope.dimension_count")
_UNKNOWN_SCALING = "rope.scaling.type"
_REFUSED = ("expert_count", "attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
_BLOCK_OF_Q8_0 = 32
_LARGEST_F16 = 65504.0
_TEMPLATE = "tokenizer.chat_template"


# --- out --------------------------------------------------------------------------------------------------------------


def write_file(path: Path, checkpoint: Checkpoint, dtype: str, progress: Progress) -> str:
    """Write a GGUF file; returns the architecture's name. `dtype` is one of DTYPES.

    Vectors and position embeddings stay float32, as in llama.cpp's own files, and so does a matrix whose rows are not
    whole blocks of Q8_0 in float16. Raises AlphaError when llama.cpp would compute something else.
    """
    config = checkpoint.model
    architecture = _architecture_of(config)
    tokenizer = tokenizer_from_mapping(checkpoint.tokenizer, "the checkpoint")
    template = template_of(tokenizer, checkpoint.state)
    described: dict[str, Value] = {**tokenizer_keys(tokenizer), **({_TEMPLATE: template} if template else {})}
    if path.exists():
        raise AlphaError(f"--out={path} exists; name another file, or remove it.")
    tensors = checkpoint.tensors
    if config.tied and architecture.gguf_untied:
        config, tensors = replace(config, tied=False), {**tensors, "lm_head.weight": tensors["wte.weight"]}
    weights = Exported(architecture, config, tokenizer.vocab_size, architecture.gguf, tensors)
    declared = {name: (_type_of(name, piece.shape, dtype), piece.shape) for name, piece in weights.pieces.items()}
    made = weights.made_in_turn(progress)

    def make(name: str) -> Array:
        array = made(name)
        if declared[name][0] == "f16" and abs(array).max() > _LARGEST_F16:
            raise AlphaError(f"The tensor {name!r} has weights over {_LARGEST_F16:,.0f}; use --dtype=bf16 or f32.")
        return array

    write_in_turn(path, {**_model_keys(architecture, config, dtype), **described}, declared, make)
    return architecture.name


def _architecture_of(config: ModelConfig) -> Architecture:
    architecture = exchange.architecture_of(config)
    wrong = [f"--{camel_case(name)}={value:g}" for name, value in exchange.soft_caps(config).items()]
    wrong += [
        f"--{camel_case(name)}={str(getattr(config, name)).lower()}"
        for name, allowed in architecture.gguf_options.items()
        if getattr(config, name) not in allowed
    ]
    if wrong:
        raise AlphaError(
            f"llama.cpp computes something else than this model, whose {' '.join(wrong)} its {architecture.name} does "
            f"not have; --format=hf can hold it."
        )
    return architecture


def _type_of(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) == 1 or name.startswith("position_embd"):
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % _BLOCK_OF_Q8_0 else dtype


def _model_keys(architecture: Architecture, config: ModelConfig, dtype: str) -> dict[str, Value]:
    config, name = exchange.widened(architecture, config), architecture.name
    values: dict[str, Value] = {"general.architecture": name, "general.file_type": DTYPES[dtype]}
    if dtype == "q8_0":
        values["general.quantization_version"] = 2
    values |= {f"{name}.{key}": getattr(config, field) for field, key in _KEYS.items()}
    values[f"{name}.{_EPSILONS[config.norm]}"] = config.norm_eps
    if config.position == "rope":
        values[f"{name}.{_ROPE_BASE}"] = config.rope_base
        values |= {f"{name}.{key}": config.head_width for key in _WIDTHS}
    for key, value in architecture.gguf_constants.items():
        values[key] = value * config.layers
    return values


# --- in ---------------------------------------------------------------------------------------------------------------


class GgufModel:
    """A GGUF file open for reading; use it in a `with` statement. Raises AlphaError that names what is in the way."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = GgufFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._file.entries.items()}

    def read(self, name: str) -> Array:
        return self._file.read(name)

    def model(self) -> ImportedModel:
        """The model in the file; its weights are read from the open file."""
        architecture, config = self._config()
        rows = self.shapes.get("token_embd.weight", (0,))[0]
        tokenizer = with_unused(read_tokenizer(self._file.metadata, self.name), rows, self.name)
        weights = Imported(config, tokenizer.vocab_size, architecture.gguf, self)
        template = self._file.metadata.get(_TEMPLATE)
        state = {"card": None, "chatTemplate": template if isinstance(template, str) else None}
        return ImportedModel(config, tokenizer, weights, {IMPORTED: state})

    def _config(self) -> tuple[Architecture, ModelConfig]:
        metadata = self._file.metadata
        name = metadata.get("general.architecture")
        architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
        if architecture is None:
            raise AlphaError(
                f"{self.name} has a model of type {shown(name)}; Alpha imports {', '.join(ARCHITECTURES)}."
            )
        own = {key.removeprefix(f"{name}."): value for key, value in metadata.items()}
        own.setdefault(_KEYS["kv_heads"], 0)
        options: dict[str, Any] = {field: self._required(own, key) for field, key in _KEYS.items()}
        options |= {field: allowed[0] for field, allowed in architecture.options.items()}
        options |= {field: allowed[0] for field, allowed in architecture.gguf_options.items()}
        options["norm_eps"] = _as_written(self._required(own, _EPSILONS[options["norm"]]))
        options["tied"] = "output.weight" not in self.shapes
        options.setdefault("bias", "blk.0.attn_output.bias" in self.shapes)
        options["arch"] = "gpt2" if name == "gpt2" else "modern"
        if options["position"] == "rope":
            options["head_dim"] = own.get(_HEAD_WIDTH, 0)
            options["rope_base"] = _as_written(own.get(_ROPE_BASE, 10000.0))
        try:
            written = {camel_case(field): value for field, value in options.items()}
            config = resolve_model(from_mapping(ModelConfig, written, self.name))
        except UsageError as error:
            raise AlphaError(f"{self.name} cannot be used: {error}") from error
        self._refuse(own, architecture, config)
        return architecture, config

    def _refuse(self, own: dict[str, Any], architecture: Architecture, config: ModelConfig) -> None:
        """AlphaError for what would change the computation and no option says."""
        for key in _REFUSED:
            if own.get(key):
                raise self._cannot_say(key, own[key])
        if own.get(_UNKNOWN_SCALING, "none") != "none":
            raise self._cannot_say(_UNKNOWN_SCALING, own[_UNKNOWN_SCALING])
        for key in _WIDTHS:
            if config.position == "rope" and own.get(key, width := config.head_width) != width:
                raise self._cannot_say(key, own[key])
        for key, expected in architecture.gguf_constants.items():
            value = own.get(key)
            values = value if isinstance(value, list) else [value]
            if any(not isinstance(each, float) or abs(each - expected[0]) > 1e-6 for each in values):
                raise self._cannot_say(key, value)

    def _required(self, own: dict[str, Any], key: str) -> Any:
        if key not in own:
            raise AlphaError(f"{self.name} lacks the key {key}.")
        return own[key]

    def _cannot_say(self, key: str, value: Any) -> AlphaError:
        return AlphaError(f"{self.name} cannot be used: Alpha has no model whose {key} is {shown(value)}.")


def _as_written(value: Any) -> Any:
    """A number in float32 as the shortest decimal that rounds to it: 1e-5, not 9.999999747e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
