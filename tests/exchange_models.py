"""Small models for the tests of import and export, and what is done with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from alpha import backends, checkpoint, cli, tokenizer_registry
from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_model
from alpha.gpt import parameter_specs
from alpha.model_loading import load_model
from alpha.safetensors_file import Array
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe
from alpha.tokenizer_simple import build_char

GOLDEN = Path(__file__).parent / "golden" / "exchange"
GOLDEN_GGUF = Path(__file__).parent / "golden" / "exchange_gguf"
CASES = sorted(path.name for path in GOLDEN.iterdir())
ROPE = {"norm": "rmsnorm", "position": "rope", "bias": False}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2_untied": {"activation": "relu2", "tied": False, "dropout": 0.1},
    "gpt2_narrow": {"bias": False, "kv_heads": 2, "activation": "gelu_exact"},
    "llama": {**ROPE, "activation": "swiglu", "tied": False, "kv_heads": 2, "rope_base": 5e5, "norm_eps": 1e-6},
    "llama_wide": {**ROPE, "activation": "swiglu", "kv_heads": 1, "head_dim": 24},
    "llama_bias": {**ROPE, "activation": "geglu", "bias": True},
    "qwen3": {**ROPE, "activation": "swiglu", "qk_norm": True, "kv_heads": 2},
    "qwen3_wide": {**ROPE, "activation": "swiglu", "qk_norm": True, "kv_heads": 2, "head_dim": 16},
    "arcee": {**ROPE, "activation": "relu2", "tied": False},
    "arcee_bias": {**ROPE, "activation": "gelu", "bias": True},
    "arcee_narrow": {**ROPE, "activation": "relu2", "head_dim": 4},
    "apertus": {**ROPE, "arch": "modern", "activation": "relu2", "qk_norm": True, "tied": False, "kv_heads": 2},
    "apertus_wide": {**ROPE, "activation": "relu2", "qk_norm": True, "tied": False, "heads": 3, "head_dim": 16},
    "apertus_caps": {
        **ROPE, "arch": "modern", "activation": "relu2", "qk_norm": True, "logit_soft_cap": 2.0,
        "attention_soft_cap": 1.5,
    },
    "gpt2_caps": {"logit_soft_cap": 2.0, "attention_soft_cap": 1.5},
}  # fmt: skip
"""Options of a model for each row of the table."""


def make_checkpoint(folder: Path, name: str, block: int = 24) -> Path:
    """A checkpoint of a model with random weights, none of them near its initial value."""
    model = resolve_model(ModelConfig(**{"block": block, "layers": 2, "dim": 32, "heads": 4, **MODELS[name]}))
    tokenizer = build_bpe(["The cat sees the dog. " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
    draw = np.random.Generator(np.random.PCG64(sorted(MODELS).index(name)))
    tensors = {}
    for spec in parameter_specs(model, tokenizer.vocab_size):
        around = float(len(spec.shape) == 1 and spec.name.endswith("weight"))
        tensors[spec.name] = (around + 0.3 * draw.normal(size=spec.shape)).astype(np.float32)
    training = TrainingConfig(data="private/corpus.txt", iters=10)
    saved = Checkpoint(10, model, training, tokenizer.to_mapping(), tensors, {"valLoss": 2.5})
    return checkpoint.save(folder, saved)


def golden_folder(name: str, folder: Path) -> Path:
    """A copy of a folder that transformers wrote, with a tokenizer.json."""
    shutil.copytree(GOLDEN / name, folder)
    (folder / "logits.safetensors").unlink()
    tokenizer_registry.save_tokenizer_json(folder / "tokenizer.json", build_char(["abcdefghijklmnop"]))
    return folder


def run(*arguments: object, code: int = 0) -> None:
    """A command that must end with `code`."""
    assert cli.main([str(each) for each in arguments]) == code


def logits_of(path: Path, ids: Array) -> Array:
    """Alpha's logits [B, T, V] of a checkpoint."""
    backend = backends.create("cpu_ref", -1, "f32")
    model = load_model(str(path), backend).model
    return backend.to_numpy(model.logits(backend.from_numpy(ids.astype(np.int32))).data)


def relative_difference(actual: Array, expected: Array) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    mapping = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in mapping.items() if value is not None}))
