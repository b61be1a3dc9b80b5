"""A checkpoint of a few hundred bytes of weights, for tests."""

from typing import Any

import numpy as np

from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig
from alpha.safetensors_file import Array

MODEL = ModelConfig(block=4, layers=1, dim=8, heads=2)
TRAINING = TrainingConfig(data="corpus.txt", domain="abc", iters=30, keep=2)


def tensors(seed: int = 0, width: int = 8, rows: int = 5) -> dict[str, Array]:
    generator = np.random.Generator(np.random.PCG64(seed))
    return {
        "wte.weight": generator.normal(size=(rows, width)).astype(np.float32),
        "wpe.weight": generator.normal(size=(4, width)).astype(np.float16),
        "h.0.attn.c_attn.weight": generator.normal(size=(width, 3)),
        "optimizer.moment.wte.weight": generator.normal(size=(rows, width)).astype(np.float32),
        "optimizer.steps.all": np.array(7, dtype=np.int64),
    }


def small_checkpoint(step: int = 10, val_loss: float | None = None, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "step": step,
        "model": MODEL,
        "training": TRAINING,
        "tokenizer": {"type": "char", "vocabulary": ["a", "é", "\n", "🙂", '"', "\\"]},
        "tensors": tensors(step),
        "state": {"sampler": {"position": 3}, "bestValLoss": 1.5, "valLoss": val_loss},
    }
    return Checkpoint(**values | changes)


def assert_equal(actual: Checkpoint, expected: Checkpoint) -> None:
    assert (actual.step, actual.model, actual.training) == (expected.step, expected.model, expected.training)
    assert (actual.tokenizer, actual.state) == (expected.tokenizer, expected.state)
    assert set(actual.tensors) == set(expected.tensors)
    for name, array in expected.tensors.items():
        assert actual.tensors[name].dtype == array.dtype
        assert actual.tensors[name].shape == array.shape
        assert actual.tensors[name].tobytes() == array.tobytes()
