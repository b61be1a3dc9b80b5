"""The training step: it learns, skips what it must, accumulates, resumes, and can be recorded and replayed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from replay_backend import ReplayBackend

from alpha import backend_cpu_ref, ops, rng, training_step
from alpha.autograd import Tensor, record
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.config import OPTIMIZERS, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.errors import AlphaError
from alpha.gpt import GPT, DropoutKeys
from alpha.optimizer import make_optimizer
from alpha.parameters import ParameterSpec
from alpha.sampler import inputs_and_targets
from alpha.training_step import PhaseTimer, StepResult, TrainingStep

VOCABULARY = 13
MODEL = ModelConfig(block=6, layers=2, dim=8, heads=2)
LEARNING_RATES = {"lion": 0.003, "sgd": 0.1}
"""Those that do not learn well at 0.01."""


def make_step(
    model: ModelConfig = MODEL,
    dtype: npt.DTypeLike = np.float32,
    backend: Backend | None = None,
    model_class: type[GPT] = GPT,
    timer: PhaseTimer | None = None,
    trained: Callable[[ParameterSpec], bool] = lambda spec: True,
    **options: Any,
) -> TrainingStep:
    training = resolve_training(TrainingConfig(**options))
    gpt = model_class(backend or CpuRef(), resolve_model(model), VOCABULARY, 5, dtype, trained)
    gpt.parameters.initialize()
    optimizer = make_optimizer(gpt.parameters, training)
    return TrainingStep(gpt, optimizer, training, timer) if timer else TrainingStep(gpt, optimizer, training)


def batch_of(step: int, accum_steps: int = 1, batch: int = 4) -> npt.NDArray[np.int32]:
    """Random tokens [accumSteps, B, T + 1]."""
    count = accum_steps * batch * (MODEL.block + 1)
    bits = rng.random_bits(count, 3, rng.stream_of("batch"), step)
    return (bits % VOCABULARY).astype(np.int32).reshape(accum_steps, batch, MODEL.block + 1)


def counting_batch(step: int) -> npt.NDArray[np.int32]:
    """Sequences in which each token is the one before plus one: easy to learn."""
    starts = batch_of(step)[:, :, :1]
    return (starts + np.arange(MODEL.block + 1, dtype=np.int32)) % VOCABULARY


def run_step(step: TrainingStep, windows: npt.NDArray[np.int32], rate: float) -> StepResult:
    """One step on windows [accumSteps, B, T + 1], in which each token predicts the next."""
    return step.run(*inputs_and_targets(windows), rate)


def everything(step: TrainingStep, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    arrays = {"values": step.model.parameters.values, **step.state()}
    return {name: step.backend.to_numpy(array).tobytes() for name, array in arrays.items() if name not in but}


def saved(step: TrainingStep) -> tuple[dict[str, Any], dict[str, Any]]:
    return step.model.parameters.to_numpy(), {n: step.backend.to_numpy(array) for n, array in step.state().items()}


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_learns_to_count(optim: str) -> None:
    step = make_step(optim=optim)
    losses = [
        run_step(step, counting_batch(index), LEARNING_RATES.get(optim, 0.01)).read()["loss"] for index in range(120)
    ]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.1)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert step.counters() == {"steps": 120, "skipped_not_finite": 0, "skipped_spike": 0}


def test_the_result_can_be_read_after_later_steps() -> None:
    late, at_once = make_step(), make_step()
    results = [run_step(late, batch_of(index), 0.01) for index in range(3)]
    assert [result.read() for result in results] == [
        run_step(at_once, batch_of(index), 0.01).read() for index in range(3)
    ]


def test_the_loss_is_the_models_and_the_gradient_norm_is_before_clipping() -> None:
    step = make_step(dtype=np.float64, grad_clip=1e-3)
    tokens = batch_of(0)
    expected = float(step.backend.to_numpy(step.model.loss(tokens[0, :, :-1], tokens[0, :, 1:]).data))
    result = run_step(step, tokens, 0.0).read()
    gradients = step.backend.to_numpy(step.model.parameters.gradients)
    assert result["loss"] == pytest.approx(expected, rel=1e-14)
    assert result["gradient_norm"] == pytest.approx(math.sqrt(float(gradients @ gradients)), rel=1e-12)
    assert (result["clipped"], result["accepted"]) == (1.0, 1.0)


@pytest.mark.parametrize(("clip", "clipped"), [(0.01, True), (1e6, False), (0.0, False)])
def test_clipping_limits_the_global_norm(clip: float, clipped: bool) -> None:
    step = make_step(dtype=np.float64, optim="sgd", weight_decay=0.0, grad_clip=clip)
    before = step.backend.to_numpy(step.model.parameters.values)
    result = run_step(step, batch_of(0), 0.5).read()
    moved = (before - step.backend.to_numpy(step.model.parameters.values)) / 0.5
    gradients = step.backend.to_numpy(step.model.parameters.gradients)
    expected = clip / (result["gradient_norm"] + 1e-6) if clipped else 1.0
    np.testing.assert_allclose(moved, expected * gradients, atol=1e-14)
    assert result["clipped"] == float(clipped)


# --- skipping ---------------------------------------------------------------------------------------------------------

POISONED_TOKEN = 7


class NotFiniteGradient(GPT):
    """The loss is that of a GPT, but an operation that adds 0 makes one gradient NaN."""

    def loss(self, *arguments: Any) -> Tensor:
        weight = ops.reshape(ops.narrow(self.parameters["ln_f.bias"], 0, 0, 1), ())
        backend = self.backend
        zero = backend.multiply(weight.data, 0.0)
        nothing = record(zero, [weight], lambda dy: [backend.multiply(dy, math.nan)], backend)
        return ops.add(super().loss(*arguments), nothing)


class NotFiniteLoss(GPT):
    """The loss is infinite; its gradient is that of a GPT."""

    def loss(self, *arguments: Any) -> Tensor:
        return ops.add(super().loss(*arguments), math.inf)


class Checkpointed(GPT):
    """Insists on activation checkpointing."""

    def loss(self, *arguments: Any) -> Tensor:
        _, _, _, checkpoint, *_ = arguments
        assert checkpoint
        return super().loss(*arguments)


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("model_class", [NotFiniteGradient, NotFiniteLoss])
def test_a_step_that_is_not_finite_changes_nothing(optim: str, model_class: type[GPT]) -> None:
    healthy = make_step(optim=optim)
    for index in range(2):
        run_step(healthy, batch_of(index), 0.01)
    step = make_step(optim=optim, model_class=model_class)
    weights, state = saved(healthy)
    step.model.parameters.load(weights)
    step.load_state(state)
    before = everything(step, but=("steps", "skipped_not_finite"))

    result = run_step(step, batch_of(2), 0.01).read()

    assert result["accepted"] == 0.0
    assert math.isfinite(result["loss"]) is (model_class is NotFiniteGradient)
    assert math.isfinite(result["gradient_norm"]) is (model_class is NotFiniteLoss)
    assert everything(step, but=("steps", "skipped_not_finite")) == before
    assert step.counters() == {"steps": 3, "skipped_not_finite": 1, "skipped_spike": 0}


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_training_goes_on_after_a_skipped_step_as_if_it_had_not_been(optim: str) -> None:
    untied = dataclasses.replace(MODEL, tied=False)
    bad, good = counting_batch(0), [np.where(batch == POISONED_TOKEN, 0, batch) for batch in map(batch_of, range(3))]
    bad[0, 0, 0] = POISONED_TOKEN
    results = {}
    for name, batches in {"with": [good[0], bad, good[1], bad, bad, good[2]], "without": good}.items():
        step = make_step(untied, optim=optim)
        _, table = next(step.model.parameters.views(step.model.parameters.values))
        step.backend.copy_into(step.backend.narrow(table, 0, POISONED_TOKEN, 1), np.array(math.nan))
        accepted = [run_step(step, batch, 0.01).read()["accepted"] for batch in batches]
        assert accepted == [float(batch is not bad) for batch in batches]
        results[name] = everything(step, but=("steps", "skipped_not_finite"))
        assert step.counters()["skipped_not_finite"] == sum(batch is bad for batch in batches)
    assert results["with"] == results["without"]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_spike_is_skipped_and_counted(optim: str) -> None:
    norm = run_step(make_step(optim=optim, dtype=np.float64), batch_of(0), 0.01).read()["gradient_norm"]
    below = make_step(optim=optim, dtype=np.float64, spike_threshold=math.nextafter(norm, 0))
    before = everything(below, but=("steps", "skipped_spike"))
    assert run_step(below, batch_of(0), 0.01).read()["accepted"] == 0.0
    assert everything(below, but=("steps", "skipped_spike")) == before
    assert below.counters() == {"steps": 1, "skipped_not_finite": 0, "skipped_spike": 1}

    equal = make_step(optim=optim, dtype=np.float64, spike_threshold=norm)
    assert run_step(equal, batch_of(0), 0.01).read()["accepted"] == 1.0
    assert everything(equal, but=("steps",)) != before
    assert equal.counters() == {"steps": 1, "skipped_not_finite": 0, "skipped_spike": 0}


@pytest.mark.parametrize("threshold", [1e-9, 1e9])
@pytest.mark.parametrize("model_class", [NotFiniteGradient, NotFiniteLoss])
def test_a_step_that_is_not_finite_is_no_spike_whatever_the_threshold(model_class: type[GPT], threshold: float) -> None:
    step = make_step(model_class=model_class, spike_threshold=threshold)
    assert run_step(step, batch_of(0), 0.01).read()["accepted"] == 0.0
    assert step.counters() == {"steps": 1, "skipped_not_finite": 1, "skipped_spike": 0}


@pytest.mark.parametrize("rate", [1e39, math.inf, math.nan])
def test_a_learning_rate_beyond_the_range_of_floats_changes_nothing(rate: float) -> None:
    step = make_step()
    before = everything(step, but=("steps", "skipped_not_finite"))
    assert run_step(step, batch_of(0), rate).read()["accepted"] == 0.0
    assert everything(step, but=("steps", "skipped_not_finite")) == before
    assert step.counters() == {"steps": 1, "skipped_not_finite": 1, "skipped_spike": 0}


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_only_trained_parameters_have_gradients_and_state_and_share_in_the_norm(optim: str, recompute: bool) -> None:
    """Also where they are neither all at the front nor of one kind."""

    def is_trained(spec: ParameterSpec) -> bool:
        return spec.name.startswith(("wpe", "h.1.")) and "c_fc" not in spec.name

    step = make_step(optim=optim, recompute=recompute, trained=is_trained, grad_clip=0.0)
    whole = make_step(optim=optim, recompute=recompute, grad_clip=0.0)
    parameters, before = step.model.parameters, step.model.parameters.to_numpy()
    norm = run_step(step, batch_of(0), 0.01).read()["gradient_norm"]
    run_step(whole, batch_of(0), 0.01).read()
    assert parameters.gradients.shape == (sum(spec.size for spec in parameters.specs if is_trained(spec)),)
    wanted = {
        spec.name: np.asarray(view) for spec, view in whole.model.parameters.views(whole.model.parameters.gradients)
    }
    for spec, gradient in parameters.views(parameters.gradients):
        np.testing.assert_allclose(gradient, wanted[spec.name], rtol=1e-4, atol=1e-7)
    assert norm == pytest.approx(
        math.sqrt(sum((wanted[spec.name] ** 2).sum() for spec in parameters.trained)), rel=1e-5
    )
    for spec in parameters.specs:
        is_same = np.array_equal(parameters.to_numpy()[spec.name], before[spec.name])
        assert is_same is not is_trained(spec), spec.name
        assert any(name.endswith(f".{spec.name}") for name in step.state()) is is_trained(spec), spec.name


# --- accumulation, checkpointing, dropout -----------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_accumulation_equals_the_big_batch(optim: str) -> None:
    # Without biases: the gradient of the keys' bias is zero but for rounding, which Lion and Adafactor would enlarge.
    model = dataclasses.replace(MODEL, bias=False)
    parts, whole = (make_step(model, optim=optim, dtype=np.float64, accum_steps=count) for count in (3, 1))
    for index in range(3):
        tokens = batch_of(index, accum_steps=3)
        small = run_step(parts, tokens, 0.01).read()
        big = run_step(whole, tokens.reshape(1, -1, MODEL.block + 1), 0.01).read()
        assert small == pytest.approx(big, rel=1e-12)
    np.testing.assert_allclose(
        parts.backend.to_numpy(parts.model.parameters.values),
        whole.backend.to_numpy(whole.model.parameters.values),
        rtol=1e-12,
        atol=1e-12,
    )


def test_activation_checkpointing_changes_no_bit() -> None:
    dropped = dataclasses.replace(MODEL, dropout=0.2)
    plain = make_step(dropped, accum_steps=2)
    checkpointed = make_step(dropped, accum_steps=2, recompute=True, model_class=Checkpointed)
    for index in range(3):
        tokens = batch_of(index, accum_steps=2)
        assert run_step(plain, tokens, 0.01).read() == run_step(checkpointed, tokens, 0.01).read()
    assert everything(plain) == everything(checkpointed)


class BatchSizes(GPT):
    """Notes the number of sequences in each forward pass."""

    seen: ClassVar[list[int]] = []

    def loss(self, *arguments: Any) -> Tensor:
        self.seen.append(arguments[0].shape[0])
        return super().loss(*arguments)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are divided into single sequences, or eight parts."""
    monkeypatch.setattr(backend_cpu_ref, "BATCH_PARTS", {2: 1, 4: 1, 8: 1})
    monkeypatch.setattr(BatchSizes, "seen", [])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("accum_steps", [1, 3])
def test_a_batch_in_parts_gives_what_the_whole_gives(accum_steps: int) -> None:
    options: dict[str, Any] = {"dtype": np.float64, "accum_steps": accum_steps}
    parts = make_step(model_class=BatchSizes, **options)
    whole = make_step(backend=Composition(), **options)
    for index in range(3):
        tokens = batch_of(index, accum_steps)
        assert run_step(parts, tokens, 0.01).read() == pytest.approx(run_step(whole, tokens, 0.01).read(), rel=1e-12)
        for name in ("gradients", "values"):
            ours, theirs = (getattr(step.model.parameters, name) for step in (parts, whole))
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert BatchSizes.seen == [1] * (3 * accum_steps * 4)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("recompute", [False, True])
def test_the_number_of_threads_changes_no_bit_of_a_batch_in_parts(recompute: bool) -> None:
    steps = [make_step(backend=CpuRef(threads), recompute=recompute, accum_steps=2) for threads in (1, 2, 3, 16)]
    results = [[run_step(step, batch_of(index, 2, 8), 0.01).read() for index in range(3)] for step in steps]
    assert results == [results[0]] * 4
    assert [everything(step) for step in steps] == [everything(steps[0])] * 4


@pytest.mark.usefixtures("small_parts")
def test_a_batch_with_dropout_stays_whole() -> None:
    run_step(make_step(dataclasses.replace(MODEL, dropout=0.2), model_class=BatchSizes), batch_of(0), 0.01)
    assert BatchSizes.seen == [4]


def test_dropout_is_drawn_by_seed_and_micro_step() -> None:
    dropped = dataclasses.replace(MODEL, dropout=0.3)
    step = make_step(dropped, dtype=np.float64, accum_steps=2, seed=8)
    tokens = np.repeat(batch_of(0), 2, axis=0)
    ids, targets = tokens[0, :, :-1], tokens[0, :, 1:]
    for index in range(3):
        keys = [DropoutKeys(8, np.array([2 * index + micro_step])) for micro_step in range(2)]
        losses = [float(step.model.loss(ids, targets, key).data) for key in keys]
        assert losses[0] != losses[1]
        assert run_step(step, tokens, 0.0).read()["loss"] == pytest.approx(sum(losses) / 2, rel=1e-14)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(optim: str) -> None:
    dropped = dataclasses.replace(MODEL, dropout=0.2)

    def fresh() -> TrainingStep:
        return make_step(dropped, optim=optim, accum_steps=2)

    whole, first = fresh(), fresh()
    results = [run_step(whole, batch_of(index, 2), 0.01).read() for index in range(5)]
    for index in range(2):
        run_step(first, batch_of(index, 2), 0.01)
    weights, state = saved(first)
    resumed = fresh()
    resumed.model.parameters.load(weights)
    resumed.load_state(state)
    assert [run_step(resumed, batch_of(index, 2), 0.01).read() for index in range(2, 5)] == results[2:]
    assert everything(resumed) == everything(whole)
    assert resumed.counters()["steps"] == 5


def test_state_without_the_counters_is_refused() -> None:
    step = make_step()
    _, state = saved(step)
    del state["steps"]
    with pytest.raises(AlphaError, match="lacks 'steps'"):
        step.load_state(state)


# --- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_recorded_step_replays_to_the_same_bits(optim: str) -> None:
    # A recording that held on to any value of its first run would go wrong later: learning rate, batch, dropout, bias
    # corrections and the decisions to clip and to skip change.
    dropped = dataclasses.replace(MODEL, dropout=0.2)
    probe = make_step(dropped, backend=NumpyPrimitives(), optim=optim, accum_steps=2)
    norms = [run_step(probe, batch_of(index, 2), 0.01 / (index + 1)).read()["gradient_norm"] for index in range(5)]
    middle, high = sorted(norms)[2], sorted(norms)[4]
    plain, replayed = (
        make_step(
            dropped,
            backend=backend,
            optim=optim,
            accum_steps=2,
            recompute=True,
            grad_clip=middle,
            spike_threshold=high * 0.999,
        )
        for backend in (NumpyPrimitives(), ReplayBackend())
    )
    seen = []
    for index in range(5):
        results = [run_step(step, batch_of(index, 2), 0.01 / (index + 1)) for step in (plain, replayed)]
        expected, result = (each.read() for each in results)
        assert result == expected
        seen.append((result["clipped"], result["accepted"]))
    assert everything(replayed) == everything(plain)
    assert len(set(seen)) > 1, "the test is to see decisions of both kinds"


def test_tokens_of_another_shape_are_refused() -> None:
    step, tokens = make_step(accum_steps=2), batch_of(0, 2)
    for ids, targets in ((tokens[:1], tokens[:1]), (tokens, tokens[:, :, 1:]), (tokens[0], tokens[0])):
        with pytest.raises(ValueError, match=r"not all \[2, B, T\]"):
            step.run(ids, targets, 0.01)


def test_phases_are_timed_when_asked() -> None:
    timer = PhaseTimer()
    step = make_step(accum_steps=2, timer=timer)
    run_step(step, batch_of(0, 2), 0.01)
    milliseconds = timer.take()
    assert set(milliseconds) == {"forward", "backward", "optimizer"}
    assert all(value > 0 for value in milliseconds.values())
    assert timer.take() == {}


# --- loss scaling -----------------------------------------------------------------------------------------------------


def make_scaled_step(**options: Any) -> TrainingStep:
    """A step with a loss scale, as training in half precision has; computed in full precision here."""
    training = resolve_training(TrainingConfig(dtype="f16", **options))
    gpt = GPT(CpuRef(), resolve_model(MODEL), VOCABULARY, seed=5, dtype=np.float64)
    gpt.parameters.initialize()
    return TrainingStep(gpt, make_optimizer(gpt.parameters, training), training)


def loss_scale_of(step: TrainingStep) -> float:
    return float(step.backend.to_numpy(step.state()["loss_scale"])[0])


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_a_loss_scale_changes_no_bit_while_nothing_overflows(clip: float) -> None:
    plain, scaled = make_step(dtype=np.float64, grad_clip=clip), make_scaled_step(grad_clip=clip)
    for index in range(3):
        assert run_step(plain, batch_of(index), 0.01).read() == run_step(scaled, batch_of(index), 0.01).read()
    left, right = everything(plain), everything(scaled)
    assert {name: right[name] for name in left} == left
    assert loss_scale_of(scaled) == training_step.FIRST_LOSS_SCALE


def test_the_loss_scale_is_halved_when_gradients_overflow_and_the_step_is_skipped() -> None:
    step = make_scaled_step()
    step.backend.copy_into(step.state()["loss_scale"], np.array([1e308]))
    before = everything(step, but=("steps", "skipped_not_finite", "loss_scale"))
    result = run_step(step, 1 + 0 * batch_of(0), 0.01).read()
    assert result["accepted"] == 0.0
    assert math.isfinite(result["loss"])
    assert everything(step, but=("steps", "skipped_not_finite", "loss_scale")) == before
    assert loss_scale_of(step) == 0.5e308


def test_the_loss_scale_is_doubled_after_enough_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "LOSS_SCALE_PATIENCE", 3)
    monkeypatch.setattr(training_step, "LARGEST_LOSS_SCALE", 2.0**17)
    step = make_scaled_step()
    scales = []
    for index in range(10):
        run_step(step, batch_of(index), 0.01)
        scales.append(math.log2(loss_scale_of(step)))
    assert scales == [15, 15, 16, 16, 16, 17, 17, 17, 17, 17]


def test_the_loss_scale_is_part_of_the_state() -> None:
    whole = make_scaled_step()
    run_step(whole, batch_of(0), 0.01)
    weights, state = saved(whole)
    resumed = make_scaled_step()
    resumed.model.parameters.load(weights)
    resumed.load_state(state)
    assert run_step(whole, batch_of(1), 0.01).read() == run_step(resumed, batch_of(1), 0.01).read()
    assert everything(whole) == everything(resumed)
    with pytest.raises(AlphaError, match="loss_scale"):
        make_step(dtype=np.float64).load_state(state)
