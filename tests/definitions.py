"""Fused operations and the model once more, in plain float64 numpy straight from their formulas: easy to check.

Independent of the code under test but for the random integers of dropout. Forward only; gradients are held against
finite differences.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpha import rng
from alpha.config import ModelConfig
from alpha.parameters import ParameterSpec

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

GATES = {"swiglu": "silu", "geglu": "gelu"}


def initial_values(spec: ParameterSpec) -> Floats:
    """A small parameter's initial values, in its shape."""
    values = np.empty(spec.size)
    spec.initial(values, 0)
    return values.reshape(spec.shape)


def uniform(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> Floats:
    """The middles of the intervals of (0, 1) that random integers stand for."""
    return (rng.random_bits(count, seed, stream, step, start).astype(np.float64) + 0.5) / 2.0**32


def erf(x: Floats) -> Floats:
    return np.array([math.erf(each) for each in x.reshape(-1)]).reshape(x.shape)


def activation(x: Floats, kind: str) -> Floats:
    """Each formula as its paper has it; the gated kinds activate the first half and multiply by the second."""
    if kind in GATES:
        gate, up = np.split(x, 2, axis=-1)
        return activation(gate, GATES[kind]) * up
    if kind == "gelu":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "gelu_exact":
        return x * 0.5 * (1 + erf(x / math.sqrt(2)))
    if kind == "silu":
        return x * 0.5 * (1 + np.tanh(x / 2))
    return np.where(x > 0, x, 0) ** {"relu": 1, "relu2": 2}[kind]


def linear(x: Floats, weight: Floats, bias: Floats | float = 0, kind: str = "", residual: Floats | float = 0) -> Floats:
    y = np.einsum("...k,kn->...n", x, weight) + bias
    return (activation(y, kind) if kind else y) + residual


def layer_norm(x: Floats, weight: Floats, bias: Floats | float, epsilon: float) -> Floats:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weight + bias


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def softmax(x: Floats) -> Floats:
    exponential = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return exponential / exponential.sum(-1, keepdims=True)


def rotary(x: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Multiplication of the complex numbers (first half) + i (second half) by cosine + i sine."""
    first, second = np.split(x, 2, axis=-1)
    rotated = (first + 1j * second) * (cosine + 1j * sine)[..., None, :]
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def dropout_factors(shape: tuple[int, ...], probability: float, seed: int, stream: int, step: int) -> Floats:
    """0 where the element is dropped, otherwise 1 / (1 - probability)."""
    integers = rng.random_uint16(math.prod(shape), seed, stream, step).reshape(shape)
    return np.where(integers / 2**16 < round(probability * 2**16) / 2**16, 0, 1 / (1 - probability))


def attention(
    query: Floats,
    key: Floats,
    value: Floats,
    soft_cap: float = 0,
    factors: Floats | None = None,
    first_keys: Integers | None = None,
) -> Floats:
    """One query at a time, over the keys that it may see; `factors` [B, H, Tq, Tk] are those of dropout."""
    B, Tq, H, D = query.shape
    Tk, G = key.shape[1:3]
    out = np.empty_like(query)
    for b, t, h in np.ndindex(B, Tq, H):
        head = h // (H // G)
        seen = slice(0 if first_keys is None else first_keys[b, t], Tk - Tq + t + 1)
        scores = key[b, seen, head] @ query[b, t, h] / math.sqrt(D)
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        probabilities = softmax(scores)
        if factors is not None:
            probabilities = probabilities * factors[b, h, t, seen]
        out[b, t, h] = probabilities @ value[b, seen, head]
    return out


def cross_entropy(x: Floats, weight: Floats, targets: Integers, soft_cap: float = 0) -> Floats:
    """The mean over the rows whose target counts, one row at a time; 0 when there is none."""
    losses = []
    for row, target in zip(x, targets, strict=True):
        if target < 0:
            continue
        logits = weight @ row
        if soft_cap:
            logits = soft_cap * np.tanh(logits / soft_cap)
        largest = logits.max()
        losses.append(largest + np.log(np.exp(logits - largest).sum()) - logits[target])
    return np.array(np.mean(losses) if losses else 0.0)


def gpt_logits(config: ModelConfig, weights: Mapping[str, Floats], ids: Integers) -> Floats:
    """Logits [B, T, V] of the model with these weights for ids [B, T]."""
    B, T = ids.shape
    H, G, D = config.heads, config.kv_heads, config.head_dim or config.dim // config.heads

    def norm(x: Floats, name: str) -> Floats:
        if config.norm == "rmsnorm":
            return rms_norm(x, weights[f"{name}.weight"], config.norm_eps)
        return layer_norm(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0), config.norm_eps)

    def project(x: Floats, name: str, kind: str = "") -> Floats:
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0), kind)

    def attend(x: Floats, name: str) -> Floats:
        heads = project(x, f"{name}.c_attn").reshape(B, T, H + 2 * G, D)
        query, key, value = np.split(heads, [H, H + G], axis=2)
        if config.qk_norm:
            query = rms_norm(query, weights[f"{name}.q_norm.weight"], config.norm_eps)
            key = rms_norm(key, weights[f"{name}.k_norm.weight"], config.norm_eps)
        if config.position == "rope":
            angles = np.arange(T)[:, None] / config.rope_base ** (np.arange(D // 2) * 2 / D)
            query, key = (rotary(each, np.cos(angles), np.sin(angles)) for each in (query, key))
        attended = attention(query, key, value, config.attention_soft_cap)
        return project(attended.reshape(B, T, H * D), f"{name}.c_proj")

    x = weights["wte.weight"][ids]
    if config.position == "learned":
        x = x + weights["wpe.weight"][:T]
    for layer in range(config.layers):
        x = x + attend(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn")
        hidden = project(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc", config.activation)
        x = x + project(hidden, f"h.{layer}.mlp.c_proj")
    logits = norm(x, "ln_f") @ weights["wte.weight" if config.tied else "lm_head.weight"].T
    cap = config.logit_soft_cap
    return cap * np.tanh(logits / cap) if cap else logits


def orthogonal(matrices: Floats, size: float) -> Floats:
    """Each matrix with its singular values, over the root of the sum of their squares, put through the quintic of
    Jordan 2024 five times, and scaled for its longer side."""
    u, values, v = np.linalg.svd(matrices, full_matrices=False)
    values = values / (np.sqrt((values**2).sum(-1, keepdims=True)) + 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return size * math.sqrt(max(matrices.shape[-2:])) * (u * values[..., None, :]) @ v


@dataclass(frozen=True)
class Control:
    """What steers an update: arrays of shape [1]. The corrections are those of AdamW."""

    learning_rate: Floats
    scale: Floats
    accept: npt.NDArray[np.bool_]
    correction1: Floats
    correction2: Floats


def decayed_step(parameter: Floats, step: Floats, control: Control, weight_decay: float) -> list[Floats]:
    if not control.accept[0]:
        return [parameter]
    return [parameter - control.learning_rate * weight_decay * parameter - control.learning_rate * step]


def adamw_update(
    parameter: Floats, gradient: Floats, first: Floats, second: Floats, control: Control,
    beta1: float, beta2: float, epsilon: float, weight_decay: float,
) -> list[Floats]:  # fmt: skip
    """Algorithm 2 of Loshchilov and Hutter with the bias corrections given: the parameter and both moments."""
    if not control.accept[0]:
        return [parameter, first, second]
    g = control.scale * gradient
    m = beta1 * first + (1 - beta1) * g
    v = beta2 * second + (1 - beta2) * g**2
    step = (m / control.correction1) / (np.sqrt(v / control.correction2) + epsilon)
    return [*decayed_step(parameter, step, control, weight_decay), m, v]


def lion_update(
    parameter: Floats, gradient: Floats, momentum: Floats, control: Control,
    beta1: float, beta2: float, weight_decay: float,
) -> list[Floats]:  # fmt: skip
    """Algorithm 2 of Chen et al.: the parameter and the momentum."""
    if not control.accept[0]:
        return [parameter, momentum]
    g = control.scale * gradient
    step = np.sign(beta1 * momentum + (1 - beta1) * g)
    return [*decayed_step(parameter, step, control, weight_decay), beta2 * momentum + (1 - beta2) * g]


def momentum_update(momentum: Floats, gradient: Floats, step: Floats, control: Control, beta: float) -> list[Floats]:
    """The momentum, and the gradient at where it leads."""
    if not control.accept[0]:
        return [momentum, step]
    m = beta * momentum + control.scale * gradient
    return [m, control.scale * gradient + beta * m]


def sgd_update(
    parameter: Floats, gradient: Floats, momentum: Floats, control: Control, beta: float, weight_decay: float
) -> list[Floats]:
    """Heavy-ball momentum: the parameter and the momentum."""
    if not control.accept[0]:
        return [parameter, momentum]
    m = beta * momentum + control.scale * gradient
    return [*decayed_step(parameter, m, control, weight_decay), m]
