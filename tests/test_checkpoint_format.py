"""Logits from a checkpoint file by the page "A checkpoint, for other readers" of ARCHITECTURE.md, in numpy alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from definitions import initial_values
from small_checkpoint import TRAINING

from alpha import checkpoint, safetensors_file
from alpha.backend_cpu_ref import CpuRef
from alpha.checkpoint import Checkpoint
from alpha.config import ARCHITECTURES, ModelConfig, resolve_model
from alpha.gpt import GPT, parameter_specs
from alpha.safetensors_file import SafetensorsFile

Array = Any
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
SIZES: dict[str, Any] = {"block": 12, "layers": 2, "dim": 24, "heads": 4}
MODELS: list[dict[str, Any]] = [
    {},
    {"arch": "modern", **ARCHITECTURES["modern"]},
    {"activation": "swiglu", "position": "rope", "kv_heads": 2, "norm": "rmsnorm", "tied": False},
    {"activation": "geglu", "bias": False, "ffn_dim": 40, "attention_soft_cap": 1.5, "kv_heads": 1},
    {"activation": "gelu_exact", "qk_norm": True, "logit_soft_cap": 0.5},
    {"activation": "silu", "position": "rope", "tied": False, "kv_heads": 2, "qk_norm": True},
    {"activation": "relu", "norm_eps": 0.3},
    {"position": "rope", "head_dim": 10, "heads": 5, "kv_heads": 1, "qk_norm": True},
    {"norm": "rmsnorm", "qk_norm": True, "position": "rope", "norm_eps": 0.3, "rope_base": 50.0},
]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The model's options and the weights."""
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    metadata = header.pop("__metadata__")
    assert metadata["alphaCheckpoint"] == "1"
    weights = {}
    for name, entry in header.items():
        if not name.startswith("optimizer."):
            assert entry["dtype"] == "F32"
            start, end = (size + offset for offset in entry["data_offsets"])
            weights[name] = np.frombuffer(content[start:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return json.loads(metadata["model"]), weights


def rebuilt_logits(path: Path, ids: list[int]) -> Array:
    model, weights = read(path)
    C, H, G, n = model["dim"], model["heads"], model["kvHeads"], len(ids)
    D = model.get("headDim") or C // H

    def linear(x: Array, name: str) -> Array:
        y = x @ weights[name + ".weight"]
        return y + weights[name + ".bias"] if model["bias"] else y

    def rms_norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.get("normEps", 1e-5)) * weights[name + ".weight"]

    def norm(x: Array, name: str) -> Array:
        if model["norm"] == "rmsnorm":
            return rms_norm(x, name)
        y = (
            (x - x.mean(-1, keepdims=True))
            / np.sqrt(x.var(-1, keepdims=True) + model.get("normEps", 1e-5))
            * weights[name + ".weight"]
        )
        return y + weights[name + ".bias"] if model["bias"] else y

    def rotated(x: Array) -> Array:
        result = np.empty_like(x)
        for p in range(n):
            for i in range(D // 2):
                a = p * model.get("ropeBase", 10000) ** (-2 * i / D)
                result[p, :, i] = x[p, :, i] * np.cos(a) - x[p, :, i + D // 2] * np.sin(a)
                result[p, :, i + D // 2] = x[p, :, i + D // 2] * np.cos(a) + x[p, :, i] * np.sin(a)
        return result

    def capped(x: Array, cap: float) -> Array:
        return cap * np.tanh(x / cap) if cap > 0 else x

    def attention(x: Array, prefix: str) -> Array:
        columns = linear(x, prefix + "c_attn").reshape(n, H + 2 * G, D)
        query, key, value = columns[:, :H], columns[:, H : H + G], columns[:, H + G :]
        if model["qkNorm"]:
            query, key = rms_norm(query, prefix + "q_norm"), rms_norm(key, prefix + "k_norm")
        if model["position"] == "rope":
            query, key = rotated(query), rotated(key)
        heads = []
        for h in range(H):
            g = h // (H // G)
            scores = capped(query[:, h] @ key[:, g].T / math.sqrt(D), model["attentionSoftCap"])
            scores[np.triu_indices(n, 1)] = -np.inf
            weighing = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weighing / weighing.sum(-1, keepdims=True) @ value[:, g])
        return np.concatenate(heads, -1)

    def gelu(x: Array) -> Array:
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def silu(x: Array) -> Array:
        return x / (1 + np.exp(-x))

    activations = {
        "gelu": gelu,
        "gelu_exact": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
        "relu": lambda x: np.maximum(x, 0),
        "relu2": lambda x: np.maximum(x, 0) ** 2,
        "silu": silu,
        "swiglu": lambda x: silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
        "geglu": lambda x: gelu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
    }
    x = weights["wte.weight"][ids]
    if model["position"] == "learned":
        x = x + weights["wpe.weight"][:n]
    for layer in range(model["layers"]):
        prefix = f"h.{layer}."
        x = x + linear(attention(norm(x, prefix + "ln_1"), prefix + "attn."), prefix + "attn.c_proj")
        hidden = activations[model["activation"]](linear(norm(x, prefix + "ln_2"), prefix + "mlp.c_fc"))
        x = x + linear(hidden, prefix + "mlp.c_proj")
    output = weights["wte.weight" if model["tied"] else "lm_head.weight"]
    return capped(norm(x, "ln_f") @ output.T, model["logitSoftCap"])


def without(path: Path, *options: str) -> None:
    """Rewrite a checkpoint as a version of Alpha wrote it that did not have these options of the model."""
    with SafetensorsFile(path) as file:
        metadata = dict(file.metadata)
        tensors = {name: file.read(name) for name in file.entries}
    model = json.loads(metadata["model"])
    for option in options:
        del model[option]
    metadata["model"] = json.dumps(model)
    shapes = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    metadata["digest"] = checkpoint._header_digest(metadata, shapes)
    safetensors_file.write(path, tensors, metadata)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_file_from_before_some_options_is_read_as_it_was_meant(tmp_path: Path, arch: str) -> None:
    model = resolve_model(ModelConfig(**SIZES | ARCHITECTURES[arch]))
    tensors = {spec.name: initial_values(spec).astype(np.float32) for spec in parameter_specs(model, 11)}
    path = checkpoint.save(tmp_path, Checkpoint(1, model, TRAINING, {}, tensors, {}))
    before = rebuilt_logits(path, IDS)
    without(path, "normEps", "ropeBase", "headDim")
    assert "normEps" not in path.read_bytes()[:10_000].decode(errors="replace")
    loaded = checkpoint.load(path).model
    assert loaded == model
    np.testing.assert_array_equal(rebuilt_logits(path, IDS), before)


@pytest.mark.parametrize("options", MODELS, ids=lambda options: options.get("activation", "gpt2"))
def test_the_page_is_enough_to_compute_the_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = resolve_model(ModelConfig(**SIZES | options))
    # Large weights, and none of them 0 or 1, so that every step counts.
    draws = np.random.Generator(np.random.PCG64(1))
    tensors = {spec.name: draws.normal(0.1, 0.7, spec.shape).astype(np.float32) for spec in parameter_specs(model, 11)}
    path = checkpoint.save(tmp_path, Checkpoint(1, model, TRAINING, {}, tensors, {}))
    backend = CpuRef()
    gpt = GPT(backend, model, vocab_size=11)
    gpt.parameters.load(tensors)
    expected = backend.to_numpy(gpt.logits(backend.from_numpy(np.array([IDS], np.int32))).data)[0]
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(rebuilt_logits(path, IDS), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
