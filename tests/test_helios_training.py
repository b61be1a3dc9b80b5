"""Training on the Vulkan backend: the stored results, every optimizer, bits that do not change, causality, float16.

One configuration serves nearly all tests here: on a driver that computes on the CPU, compiling pipelines costs most.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helios_device import helios
from test_evaluation import BLOCK, TOKENIZER, file_of
from test_golden import MODELS, Golden, difference, golden, packed_losses
from test_gpt import Decoding, assert_causal, configuration, gradients_of, logits_of, model_of, tokens
from test_packing import SHAPES, assert_packed_is_what_each_gives_alone
from test_training_step import MODEL, batch_of, everything, loss_scale_of, make_step, run_step, saved

from alpha import evaluation
from alpha.autograd import Tape
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ARCHITECTURES, OPTIMIZERS, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.evaluation import Evaluator
from alpha.lora import lora_of
from alpha.optimizer import make_optimizer
from alpha.training_step import FIRST_LOSS_SCALE, TrainingStep

# Largest absolute differences from the stored float64 results. cpu_ref is held to 5e-6 and 2e-6 in float32; the sums of
# the device are divided differently, and its exp and tanh may err by a few units in the last place.
TOLERANCE, LOSS_TOLERANCE = 1e-5, 2e-6

DROPPED = dataclasses.replace(MODEL, dropout=0.2, bias=False)
"""Without biases: the gradient of the keys' bias is zero but for rounding, which some optimizers would enlarge."""

BIG_LOSS_SCALE = 2.0**40
"""With which the gradients of any model overflow in float16."""


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_are_the_stored_ones(name: str) -> None:
    stored, backend = golden(name), helios()
    model = stored.model(backend, np.float32)
    ids, targets = (
        backend.from_numpy(np.ascontiguousarray(each, np.int32))
        for each in (stored.arrays["tokens"][:, :-1], stored.arrays["tokens"][:, 1:])
    )
    assert difference(backend.to_numpy(model.logits(ids).data), stored.arrays["logits"]) < TOLERANCE
    with Tape() as tape:
        loss = model.loss(ids, targets)
    tape.backward(loss)
    assert difference(backend.to_numpy(loss.data), stored.arrays["loss"]) < LOSS_TOLERANCE
    gradients = stored.part("gradient.")
    assert set(gradients) == set(model.parameters.to_numpy())
    for parameter, gradient in gradients.items():
        got = model.parameters[parameter].gradient
        assert got is not None
        assert difference(backend.to_numpy(got), gradient) < TOLERANCE, parameter


def test_evaluation_is_recorded_once_for_each_shape_and_has_the_figures_of_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "STEP_TOKENS", 4 * BLOCK)
    backend, traced = helios(), []
    trace = backend.trace
    monkeypatch.setattr(backend, "trace", lambda program: (traced.append(program), trace(program))[1])
    file, figures = file_of(11 * BLOCK + 4), []
    for each in (CpuRef(), backend):
        model = model_of(resolve_model(ModelConfig(block=BLOCK, layers=1, dim=8, heads=2)), np.float32, each, 11)
        evaluator = Evaluator(model, TOKENIZER)
        results = {evaluator.file(file, batch) for batch in (1, 4, 50, 4)}
        assert len(results) == 1
        figures += results
    reference, got = figures
    assert len(traced) == 3  # four windows, the last three whole ones, and what is left
    assert (got.tokens, got.text_bytes, got.unknown) == (reference.tokens, reference.text_bytes, reference.unknown)
    assert got.loss == pytest.approx(reference.loss, rel=1e-5)
    assert got.bits == pytest.approx(reference.bits, rel=1e-5)


def test_twenty_steps_on_packed_documents_are_the_stored_ones() -> None:
    assert (
        difference(packed_losses("packed_modern", helios(), np.float32), Golden("packed_modern").arrays["losses"])
        < 1e-4
    )


# --- optimizers -------------------------------------------------------------------------------------------------------


def step_of(optim: str, **options: Any) -> TrainingStep:
    """A step with dropout and accumulation."""
    return make_step(DROPPED, optim=optim, accum_steps=2, **{"backend": helios(), **options})


def rate_of(index: int) -> float:
    """A learning rate for each step; that of the third is none."""
    return math.inf if index == 2 else 0.01 / (index + 1)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_trains_as_on_the_reference_backend(optim: str) -> None:
    # One recording; batch, learning rate, dropout, bias corrections and the decisions to clip and to skip change.
    probe = step_of(optim, backend=CpuRef())
    norms = [run_step(probe, batch_of(index, 2), rate_of(index)).read()["gradient_norm"] for index in range(6)]
    low, high = sorted(norms)[2:5:2]
    limits = {"grad_clip": 0.5 * (low + sorted(norms)[3]), "spike_threshold": 0.5 * (high + sorted(norms)[5])}
    expected, step = (step_of(optim, backend=backend, **limits) for backend in (CpuRef(), helios()))
    seen = set()
    for index in range(6):
        wanted, got = (run_step(each, batch_of(index, 2), rate_of(index)).read() for each in (expected, step))
        assert got == pytest.approx(wanted, rel=5e-6), index
        seen.add((got["clipped"], got["accepted"]))
    assert len(seen) > 2, "the test is to see decisions of all kinds"
    assert step.counters() == expected.counters() == {"steps": 6, "skipped_not_finite": 1, "skipped_spike": 1}
    for name, array in {"values": expected.model.parameters.values, **expected.state()}.items():
        wanted_values = expected.backend.to_numpy(array)
        got_values = step.backend.to_numpy({"values": step.model.parameters.values, **step.state()}[name])
        scale = max(1e-6, float(np.abs(wanted_values).max()))
        assert np.abs(got_values - wanted_values).max() < 2e-5 * scale, name


@pytest.mark.parametrize("trained", [*OPTIMIZERS, "adapter"])
def test_a_run_repeated_or_resumed_has_the_same_bits(trained: str) -> None:
    make = (lambda: adapted_step(helios())) if trained == "adapter" else lambda: step_of(trained)
    whole, first = make(), make()
    under_way = [run_step(whole, batch_of(index, 2), 0.01) for index in range(5)]  # read late, all in flight
    results = [each.read() for each in under_way]
    assert [run_step(first, batch_of(index, 2), 0.01).read() for index in range(2)] == results[:2]
    weights, state = saved(first)
    resumed = make()
    resumed.model.parameters.load(weights)
    resumed.load_state(state)
    assert [run_step(resumed, batch_of(index, 2), 0.01).read() for index in range(2, 5)] == results[2:]
    assert everything(resumed) == everything(whole)
    assert resumed.counters()["steps"] == 5


def adapted_step(backend: Backend, model: ModelConfig = MODEL, **options: Any) -> TrainingStep:
    """A step that trains an adapter, in two micro-steps."""
    given = {"lora_targets": "attn,mlp", **options}
    training = resolve_training(TrainingConfig(lora=3, init="base", accum_steps=2, **given))
    base = model_of(resolve_model(model), np.float32, backend, trained=False, matrix_dtype=backend.weight_dtype)
    lora = lora_of(training)
    assert lora is not None
    adapted = base.adapted(lora, 5)
    adapted.parameters.initialize()
    return TrainingStep(adapted, make_optimizer(adapted.parameters, training), training)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_adapter_trains_as_on_the_reference_backend(dropout: float) -> None:
    expected, step = (adapted_step(backend, lora_dropout=dropout) for backend in (CpuRef(), helios()))
    for index in range(6):
        wanted, got = (run_step(each, batch_of(index, 2), 0.01).read() for each in (expected, step))
        assert got == pytest.approx(wanted, rel=2e-5), index
    for name, array in expected.model.parameters.to_numpy().items():
        assert np.abs(step.model.parameters.to_numpy()[name] - array).max() < 2e-5, name
    uses = step.plan(4)
    assert uses["gradients"] == 4 * step.model.parameters.size
    assert uses["optimizer"] == pytest.approx(2 * uses["gradients"], abs=16)
    assert uses["weights"] == uses["gradients"] + 4 * model_of(resolve_model(MODEL)).parameters.size


@pytest.mark.parametrize("precision", ["f32", pytest.param("f16", marks=pytest.mark.matrix_units)])
def test_an_adapter_takes_no_memory_for_what_only_frozen_weights_need(precision: str) -> None:
    """Of a whole step's memory, activations and work are no more; and recomputation leaves even fewer."""
    backend = helios(precision)
    model, halves = ModelConfig(block=64, layers=6, dim=64, heads=2), {"fp16": precision == "f16"}
    plain = make_step(model, backend=backend, accum_steps=2, **halves)
    adapted, again = (adapted_step(backend, model, recompute=recompute, **halves) for recompute in (False, True))
    whole, less, least = (step.plan(4)["activations"] for step in (plain, adapted, again))
    assert least < less < whole


@pytest.mark.matrix_units
def test_an_adapter_in_float16_has_the_gradients_of_the_reference_backend() -> None:
    whole, half = (adapted_step(backend, fp16=fp16) for backend, fp16 in ((CpuRef(), False), (helios("f16"), True)))
    for index in range(3):
        wanted, got = (run_step(each, batch_of(index, 2), 0.01).read() for each in (whole, half))
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-3), index
        assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-2), index


@pytest.mark.parametrize("make", [step_of, lambda optim, **options: adapted_step(helios(), optim=optim, **options)])
def test_activation_checkpointing_changes_no_bit(make: Callable[..., TrainingStep]) -> None:
    plain, checkpointed = make("adamw"), make("adamw", recompute=True)
    for index in range(3):
        assert (
            run_step(plain, batch_of(index, 2), 0.01).read() == run_step(checkpointed, batch_of(index, 2), 0.01).read()
        )
    assert everything(plain) == everything(checkpointed)


# --- causality and decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_depends_on_later_tokens(arch: str) -> None:
    config = configuration(arch, kv_heads=2, tied=False)
    model = model_of(config, np.float32, helios())
    assert_causal(model, 12, (0, 4, 10), training=True)
    ids = tokens(2, 12)
    for t in (0, 6):
        changed, targets = ids.copy(), np.full_like(ids, -1)
        changed[:, t + 1 :] = (ids[:, t + 1 :] + 1) % model.vocab_size
        targets[:, : t + 1] = tokens(2, 12, "targets")[:, : t + 1]
        before, after = (gradients_of(model, each, targets) for each in (ids, changed))
        for name, gradient in before.items():
            assert np.array_equal(gradient, after[name]), (name, t)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoding_with_a_cache_equals_the_full_forward_pass(arch: str) -> None:
    config = configuration(arch, kv_heads=2, tied=False)
    model, ids = model_of(config, np.float32, helios()), tokens(2, 12)
    full = logits_of(model, ids)
    decoding = Decoding(model, 2)
    start = 0
    for chunk in (5, 1, 1, 1, 4):
        part = decoding.logits(ids[:, start : start + chunk])
        assert np.abs(part - full[:, start : start + chunk]).max() < 1e-5 * np.abs(full).max()
        start += chunk


def test_heads_too_wide_for_the_kernels_train_with_dropout_and_a_soft_cap() -> None:
    config = ModelConfig(
        block=6, layers=1, dim=32, heads=1, head_dim=344, ffn_dim=16, dropout=0.1, attention_soft_cap=5.0
    )
    steps = [make_step(config, backend=backend) for backend in (CpuRef(), helios())]
    for index in range(2):
        wanted, got = (run_step(step, batch_of(index), 0.01).read() for step in steps)
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-3)


# --- float16 ----------------------------------------------------------------------------------------------------------


def half_step(**options: Any) -> TrainingStep:
    return step_of("adamw", backend=helios("f16"), fp16=True, **options)


@pytest.mark.parametrize(("precision", "factor"), [("f16", 1), ("bf16", 8)])  # bf16 has three bits less
def test_training_in_sixteen_bits_follows_float32(precision: str, factor: int) -> None:
    full, half = step_of("adamw"), step_of("adamw", backend=helios(precision), fp16=precision == "f16")
    for index in range(6):
        wanted, got = (run_step(step, batch_of(index, 2), 0.01).read() for step in (full, half))
        assert got["loss"] == pytest.approx(wanted["loss"], rel=factor * 1e-4)
        assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=factor * 5e-3)
        assert got["loss"] != wanted["loss"], "products are to be rounded"
    assert precision == "bf16" or loss_scale_of(half) == FIRST_LOSS_SCALE


def test_gradients_too_large_for_float16_halve_the_loss_scale_and_change_nothing_else() -> None:
    step = half_step()
    run_step(step, batch_of(0, 2), 0.01)
    step.backend.copy_into(step.state()["loss_scale"], step.backend.from_numpy(np.array([BIG_LOSS_SCALE], np.float32)))
    counters = ("steps", "skipped_not_finite", "loss_scale", "loss_scale_steps")
    before = everything(step, but=counters)
    result = run_step(step, batch_of(1, 2), 0.01).read()
    assert result["accepted"] == 0.0
    assert math.isfinite(result["loss"])
    assert everything(step, but=counters) == before
    assert loss_scale_of(step) == BIG_LOSS_SCALE / 2
    while not result["accepted"]:
        result = run_step(step, batch_of(1, 2), 0.01).read()
    assert loss_scale_of(step) < BIG_LOSS_SCALE / 2
    assert everything(step, but=counters) != before


@pytest.mark.matrix_units
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_is_what_each_document_gives_alone_in_float16(shape: str) -> None:
    assert_packed_is_what_each_gives_alone(helios("f16"), shape, 1e-2)


@pytest.mark.matrix_units
def test_a_step_in_float16_uses_matrix_units_where_there_are_some() -> None:
    # Attention as in the start-up test, so that its kernels, which take long to compile, are compiled already.
    backend, model = helios("f16"), ModelConfig(block=35, layers=1, dim=32, heads=2)
    tokens_of_step = (np.arange(2 * 36, dtype=np.int32).reshape(1, 2, 36) * 7) % 13
    full, half = make_step(model, backend=CpuRef()), make_step(model, backend=backend, fp16=True)
    wanted, got = (run_step(step, tokens_of_step, 0.01).read() for step in (full, half))
    assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=5e-3)
    has_units = "cooperative_matrix_f16" in backend.device_info.features
    assert has_units or "lavapipe-matrix" not in os.environ.get("VK_DRIVER_FILES", ""), "that driver has them"
    made = {kernel.name for kernel, _ in backend.pipelines._made.values()}
    attention = "attention_matrix2" if "cooperative_matrix_2" in backend.device_info.features else "attention_matrix"
    assert {"matmul_matrix", f"{attention}_forward"} <= made if has_units else "matmul_tiled" in made
