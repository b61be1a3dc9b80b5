"""The model against stored results of an independent implementation in PyTorch: see `golden/README.md`."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from safetensors import safe_open

from alpha import training_step
from alpha.autograd import Tape
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ModelConfig, TrainingConfig
from alpha.gpt import GPT
from alpha.optimizer import make_optimizer
from alpha.option import from_mapping
from alpha.sampler import inputs_and_targets
from alpha.training_step import TrainingStep

FOLDER = Path(__file__).parent / "golden"
MODELS = ("gpt2", "modern", "modern_gqa", "geglu_bias")
PACKED = ("packed_gpt2", "packed_modern")

# Largest absolute differences. PyTorch's own float32 differs from its float64 by up to 1.7e-6 in logits and by 5.5e-7
# in losses, and a wrong clip factor moves losses by only 5e-6 (golden/README.md).
TOLERANCES = {np.float64: 1e-13, np.float32: 5e-6}
LOSS_TOLERANCES = {np.float64: 1e-13, np.float32: 2e-6}

by_model = pytest.mark.parametrize("name", MODELS)
by_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
by_backend = pytest.mark.parametrize("make_backend", [CpuRef, Composition])


class Golden:
    """One file: its arrays by name, and its metadata as values."""

    def __init__(self, name: str) -> None:
        with safe_open(FOLDER / f"{name}.safetensors", framework="np") as file:
            self.arrays: Mapping[str, npt.NDArray[Any]] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.metadata = {key: json.loads(text) for key, text in file.metadata().items()}

    def part(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        return {name[len(prefix) :]: array for name, array in self.arrays.items() if name.startswith(prefix)}

    def model(self, backend: Backend, dtype: npt.DTypeLike) -> GPT:
        options = dict(self.metadata["config"])
        vocabulary = options.pop("vocabSize")
        model = GPT(backend, from_mapping(ModelConfig, options, "the golden file"), vocabulary, dtype=dtype)
        model.parameters.load(self.part("parameter."))
        return model


@functools.cache
def golden(name: str) -> Golden:
    return Golden(f"model_{name}")


def difference(got: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max())


@by_model
@by_dtype
@by_backend
def test_logits_loss_and_gradients(name: str, dtype: type[np.floating], make_backend: type[Backend]) -> None:
    stored, backend, tolerance = golden(name), make_backend(), TOLERANCES[dtype]
    model = stored.model(backend, dtype)
    ids, targets = (
        backend.from_numpy(each) for each in (stored.arrays["tokens"][:, :-1], stored.arrays["tokens"][:, 1:])
    )
    logits = backend.to_numpy(model.logits(ids).data)
    assert logits.dtype == dtype
    assert difference(logits, stored.arrays["logits"]) < tolerance
    with Tape() as tape:
        loss = model.loss(ids, targets)
    tape.backward(loss)
    assert difference(backend.to_numpy(loss.data), stored.arrays["loss"]) < LOSS_TOLERANCES[dtype]
    gradients = stored.part("gradient.")
    assert set(gradients) == set(model.parameters.to_numpy())
    for parameter, gradient in gradients.items():
        assert difference(backend.to_numpy(model.parameters[parameter].gradient), gradient) < tolerance, parameter


@by_model
@by_dtype
@by_backend
def test_ten_training_steps(
    name: str, dtype: type[np.floating], make_backend: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "CLIP_EPSILON", 0.0)  # the stored steps divide by the norm alone
    stored = golden(name)
    training = from_mapping(TrainingConfig, stored.metadata["training"], "the golden file")
    model = stored.model(make_backend(), dtype)
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    results = [
        step.run(*inputs_and_targets(batch[None]), training.lr).read() for batch in stored.arrays["training.tokens"]
    ]
    assert difference([each["loss"] for each in results], stored.arrays["training.losses"]) < LOSS_TOLERANCES[dtype]
    norms = stored.arrays["training.gradient_norms"]
    assert difference([each["gradient_norm"] for each in results] / norms, np.ones(len(norms))) < TOLERANCES[dtype]
    assert [bool(each["clipped"]) for each in results] == (norms > training.grad_clip).tolist()


def packed_losses(name: str, backend: Backend, dtype: npt.DTypeLike, sequences: int = 2) -> list[float]:
    """The losses of twenty steps on documents that share windows, in micro-batches of so many windows."""
    stored = Golden(name)
    training = from_mapping(TrainingConfig, stored.metadata["training"], "the golden file")
    training = dataclasses.replace(training, accum_steps=4 // sequences)
    model = stored.model(backend, dtype)
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    parts = [stored.arrays[each].reshape(20, -1, sequences, 12) for each in ("ids", "targets", "begins")]
    results = [step.run(ids, targets, training.lr, begins) for ids, targets, begins in zip(*parts, strict=True)]
    return [each.read()["loss"] for each in results]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("sequences", [1, 2, 4])
def test_twenty_steps_on_packed_documents(name: str, sequences: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a batch is divided, the loss is the mean over the targets that count, and each document is read alone."""
    monkeypatch.setattr(training_step, "CLIP_EPSILON", 0.0)
    wanted = Golden(name).arrays["losses"]
    assert difference(packed_losses(name, CpuRef(), np.float64, sequences), wanted) < 1e-12
    if sequences == 2:
        assert difference(packed_losses(name, CpuRef(), np.float32), wanted) < 1e-5
        assert difference(packed_losses(name, Composition(), np.float64), wanted) < 1e-12
