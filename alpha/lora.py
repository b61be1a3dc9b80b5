"""Low-rank adapters: what is trained beside weights that stay as they are (LoRA, Hu et al. 2021).

A linear layer y = x W + b gets two matrices of its own, A [inputs, rank] and B [rank, outputs], and becomes
x W + b + (alpha / rank) x A B. B begins as zeros, so an adapter begins by changing nothing. Knows nothing about how a
model computes, nor about files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import rng
from alpha.config import TrainingConfig
from alpha.errors import UsageError
from alpha.option import spelled
from alpha.parameters import ParameterSpec

A, B = ".lora_A.weight", ".lora_B.weight"
"""What the name of a linear layer is followed by, in that of its adapter."""

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The linear layers of a block."""

_LAYER = re.compile(r"(h\.[0-9]+\.(.+))\.weight")


@dataclass(frozen=True)
class Lora:
    """What an adapter is: the modules of a block that have one, all of one rank."""

    rank: int
    alpha: float
    modules: tuple[str, ...]
    dropout: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_of(training: TrainingConfig) -> Lora | None:
    """The adapter that a resolved configuration asks for, or None.

    A target is a module or all that begin like it: "attn" is attn.c_attn and attn.c_proj. Raises UsageError for one
    that is neither.
    """
    if not training.lora:
        return None
    chosen = set()
    for target in (each.strip() for each in training.lora_targets.split(",")):
        named = [module for module in MODULES if target == module or module.startswith(target + ".")]
        if not named:
            raise UsageError(
                f"{spelled('loraTargets', training.lora_targets)} names {target!r}, which is no part of a block; "
                f"choose among attn, mlp, {', '.join(MODULES)}."
            )
        chosen.update(named)
    modules = tuple(module for module in MODULES if module in chosen)
    return Lora(training.lora, training.lora_alpha, modules, training.lora_dropout)


def adapter_specs(specs: Sequence[ParameterSpec], lora: Lora, seed: int = 0) -> list[ParameterSpec]:
    """The parameters of an adapter to a model with these.

    Initial values of A are normal, with the deviation 1 / sqrt(3 inputs) of the uniform ones that PEFT draws.
    """
    made = []
    for spec in specs:
        match = _LAYER.fullmatch(spec.name)
        if match is None or match[2] not in lora.modules:
            continue
        inputs, outputs = spec.shape
        stream, deviation = rng.stream_of("parameter", match[1] + A), (3 * inputs) ** -0.5

        def draw(out: npt.NDArray[np.floating], start: int, stream: int = stream, deviation: float = deviation) -> None:
            rng.normal_into(out, seed, stream, 0, start, deviation)

        made.append(ParameterSpec(match[1] + A, (inputs, lora.rank), draw))
        made.append(ParameterSpec(match[1] + B, (lora.rank, outputs), lambda out, start: out.fill(0)))
    return made


def merged(
    weights: Mapping[str, npt.NDArray[Any]], adapter: Mapping[str, npt.NDArray[Any]], lora: Lora
) -> dict[str, npt.NDArray[Any]]:
    """The weights of the model that computes without an adapter what this one computes with it, in their precision."""
    result = dict(weights)
    for name in adapter:
        if name.endswith(A):
            layer = name.removesuffix(A)
            change = adapter[name] @ adapter[layer + B]
            result[layer + ".weight"] = weights[layer + ".weight"] + lora.scale * change
    return result
