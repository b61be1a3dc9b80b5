"""What learns much in a given time: the options that `--recipe` sets; perf/LOG.md says what is measured of them.

A recipe is data, like the preset of a domain, whose learning it shares; whoever builds the configuration decides what
wins over it.
"""

from typing import Any

from alpha.errors import UsageError
from alpha.option import nearest

LEARNING: dict[str, Any] = {
    "arch": "modern",
    "tied": True,
    "optim": "muon",
    "schedule": "wsd",
    "decay_fraction": 0.7,
    "warmup_iters": 20,
    "lr_min": 1e-5,
}
LEARNING_RATES = {64: 8e-3, 96: 6e-3, 128: 6e-3, 192: 4e-3, 256: 4e-3, 384: 3e-3, 512: 2.5e-3, 768: 1.5e-3}
"""By the model's width."""


def _recipe(
    minutes: float, vocab_size: int, shape: tuple[int, int, int, int], batch: int, **more: Any
) -> dict[str, Any]:
    block, layers, dim, heads = shape
    return {
        **LEARNING,
        "minutes": minutes,
        "tokenizer": "bpe",
        "vocab_size": vocab_size,
        "block": block,
        "layers": layers,
        "dim": dim,
        "heads": heads,
        "batch": batch,
        "lr": LEARNING_RATES[dim],
        "min_tokens_per_param": 0.0,
        **more,
    }


RECIPES = {
    "cpu-2-minutes": _recipe(1.8, 4096, (128, 3, 128, 4), 16, muon_momentum=0.9),
    "cpu-20-minutes": _recipe(20.0, 4096, (256, 3, 192, 6), 8),
    "gpu-1-minute": _recipe(1.0, 8192, (256, 6, 384, 6), 64, dtype="f16"),
    "gpu-10-minutes": _recipe(10.0, 8192, (512, 8, 512, 8), 64, dtype="f16", weight_decay=0.3),
    "chat-cpu-2-minutes": _recipe(
        2.0, 2048, (256, 6, 96, 3), 4, tokenizer="bpe-chat-4k", tied=False, eval_interval=250
    ),
    "chat-gpu-1-minute": _recipe(
        1.0, 4096, (256, 6, 256, 4), 32, tokenizer="bpe-chat-4k", dtype="f16", tied=False, eval_interval=500
    ),
}
"""By name: the fields of ModelConfig and TrainingConfig that each sets. The CPUs are two cores of a server of 2026, the
GPU is an H100 or H200. `chat` is for both steps from text to chat. All are measured; the CPU's learned most of those
tried, and the shapes of `gpu-1-minute` and `gpu-10-minutes` follow from how loss scales."""


def get(name: str) -> dict[str, Any]:
    """What a recipe sets. Raises UsageError that names the nearest valid name."""
    try:
        return RECIPES[name]
    except KeyError:
        raise UsageError(f"There is no recipe {name!r}. {nearest(name, RECIPES)}") from None
