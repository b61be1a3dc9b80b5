"""Targets that do not count: a step gives the loss and gradients of the definition however it is divided."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import definitions
import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from finite_differences import derivative
from helios_device import helios
from test_training_step import MODEL, VOCABULARY, batch_of, everything, make_step

from alpha import backend_cpu_ref, rng
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ARCHITECTURES, OPTIMIZERS, ModelConfig, resolve_model
from alpha.sampler import inputs_and_targets

Tokens = npt.NDArray[np.int32]
SEQUENCES = 12
CAPPED = dataclasses.replace(MODEL, logit_soft_cap=2.0, tied=False)
SMALL = {"gpt2": MODEL, "capped": CAPPED, "modern": dataclasses.replace(MODEL, **ARCHITECTURES["modern"])}


def masked_batch(step: int = 0) -> tuple[Tokens, Tokens]:
    """Ids and targets [12, T]: some do not count, none of five sequences in a row, and one alone of another does."""
    ids, targets = (each[0].copy() for each in inputs_and_targets(batch_of(step, batch=SEQUENCES)))
    targets[rng.random_bits(targets.size, 7, rng.stream_of("mask"), step).reshape(targets.shape) % 3 == 0] = -1
    targets[4:9] = -1
    targets[9], targets[9, 2] = -7, targets[9, 3] % VOCABULARY
    assert len(set(np.count_nonzero(targets >= 0, axis=1).tolist())) > 3
    return ids, targets


def divided(tokens: Tokens, accum_steps: int) -> Tokens:
    return tokens.reshape(accum_steps, -1, tokens.shape[-1])


def loss_by_definition(config: ModelConfig, weights: dict[str, Any], ids: Tokens, targets: Tokens) -> float:
    """The mean of -log p over the targets that count, from float64 logits."""
    logits = definitions.gpt_logits(config, weights, ids)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return -float(chosen[targets >= 0].sum()) / int((targets >= 0).sum())


@pytest.fixture
def single_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """cpu_ref divides batches into as many parts as it can."""
    monkeypatch.setattr(backend_cpu_ref, "BATCH_PARTS", {2: 1, 4: 1, 8: 1})


@pytest.mark.usefixtures("single_sequences")
@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_loss_and_gradients_are_those_of_the_definition_in_any_division(model: ModelConfig) -> None:
    ids, targets = masked_batch()
    options: dict[str, Any] = {"dtype": np.float64, "grad_clip": 0.0}
    whole = make_step(model, backend=Composition(), **options)
    weights = whole.model.parameters.to_numpy()
    wanted = whole.run(ids[None], targets[None], 0.0).read()
    config = resolve_model(model)
    assert wanted["loss"] == pytest.approx(loss_by_definition(config, weights, ids, targets), rel=1e-12)

    parameters = whole.model.parameters
    for number, (spec, gradient) in enumerate(parameters.views(parameters.gradients)):
        direction = rng.normal(spec.size, 4, number).reshape(spec.shape)

        def along(step: float, name: str = spec.name, direction: npt.NDArray[Any] = direction) -> float:
            return loss_by_definition(config, weights | {name: weights[name] + step * direction}, ids, targets)

        slope = float((np.asarray(gradient) * direction).sum())
        assert slope == pytest.approx(derivative(along, 3e-5), rel=1e-5, abs=1e-9), spec.name

    for threads, accum_steps in ((1, 1), (1, 3), (2, 2), (3, 6), (1, 12)):
        step = make_step(model, backend=CpuRef(threads), accum_steps=accum_steps, **options)
        got = step.run(divided(ids, accum_steps), divided(targets, accum_steps), 0.0).read()
        assert got == pytest.approx(wanted, rel=1e-12), accum_steps
        np.testing.assert_allclose(step.model.parameters.gradients, parameters.gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("single_sequences")
def test_what_a_target_that_does_not_count_says_changes_no_bit() -> None:
    ids, targets = masked_batch()
    steps = [make_step(accum_steps=3), make_step(accum_steps=3)]
    others = np.where(targets < 0, -1 - np.abs(ids), targets)
    assert not np.array_equal(others, targets)
    results = [
        step.run(divided(ids, 3), divided(each, 3), 0.01).read()
        for step, each in zip(steps, (targets, others), strict=True)
    ]
    assert results[0] == results[1]
    assert everything(steps[0]) == everything(steps[1])


@pytest.mark.usefixtures("single_sequences")
@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("make", [CpuRef, helios])
def test_a_step_without_targets_has_loss_and_gradients_of_zero(optim: str, make: Callable[[], Any]) -> None:
    step = make_step(backend=make(), optim=optim, accum_steps=2)
    ids, targets = (divided(each[:8], 2) for each in masked_batch())
    step.run(ids, targets, 0.01)
    result = step.run(ids, np.full_like(targets, -1), 0.01).read()
    assert result == {"loss": 0.0, "gradient_norm": 0.0, "clipped": 0.0, "accepted": 1.0}
    assert not step.backend.to_numpy(step.model.parameters.gradients).any()
    for array in (step.model.parameters.values, *step.state().values()):
        assert np.isfinite(step.backend.to_numpy(array)).all()
    assert math.isfinite(step.run(ids, targets, 0.01).read()["loss"])


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_device_gives_the_loss_and_gradients_of_the_reference_in_any_division(precision: str) -> None:
    tolerance = 2e-5 if precision == "f32" else 5e-3
    backend, half = helios(precision), {"fp16": precision == "f16"}
    expected = make_step(CAPPED, dtype=np.float64, backend=Composition(), grad_clip=0.0)
    steps = {count: make_step(CAPPED, backend=backend, accum_steps=count, grad_clip=0.0, **half) for count in (1, 6)}
    for index in range(3):  # the numbers of targets change from one replay of the recorded step to the next
        ids, targets = masked_batch(index)
        wanted = expected.run(ids[None], targets[None], 0.0).read()
        gradients = np.asarray(expected.model.parameters.gradients)
        for count, step in steps.items():
            got = step.run(divided(ids, count), divided(targets, count), 0.0).read()
            assert got == pytest.approx(wanted, rel=tolerance), (index, count)
            scale = 2.0**15 if precision == "f16" else 1.0
            found = backend.to_numpy(step.model.parameters.gradients) / scale
            assert np.abs(found - gradients).max() < tolerance * np.abs(gradients).max(), (index, count)
