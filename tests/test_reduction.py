"""A step in three parts: several steps whose gradients are reduced are one step on all their targets."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from backend_case import Composition
from helios_device import helios
from replay_backend import ReplayBackend
from test_masked_targets import divided, masked_batch
from test_training_step import MODEL, VOCABULARY, NotFiniteGradient, batch_of, everything, make_step

from alpha import backend_cpu_ref
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_primitives import Array
from alpha.sampler import inputs_and_targets
from alpha.training_step import PhaseTimer, Reduction, TrainingStep


def reduced(step: TrainingStep, reduction: Reduction, timer: PhaseTimer | None = None) -> TrainingStep:
    """The same step, state and all, with a reduction."""
    phase = {"phase": timer} if timer else {}
    return TrainingStep(step.model, step.optimizer, step.training, reduction=reduction, **phase)


class Meeting:
    """Where steps that run in threads come together; each leaves with the mean of all, weighted by counts.

    One of them computes at a time, since they may have one backend.
    """

    def __init__(self, members: int) -> None:
        self._arrived = threading.Barrier(members, timeout=60)
        self._turn = threading.Lock()
        self._brought: dict[int, tuple[Any, Any, int]] = {}

    def reduction(self, backend: Backend, member: int) -> Reduction:
        def reduce(gradients: Array, loss: Array, count: int) -> Array:
            self._brought[member] = backend.to_numpy(gradients), backend.to_numpy(loss), count
            self._turn.release()
            self._arrived.wait()
            self._turn.acquire()
            brought = [self._brought[each] for each in sorted(self._brought)]
            total = max(1, sum(each[2] for each in brought))
            mean, mean_loss = (sum(each[place] * (each[2] / total) for each in brought) for place in (0, 1))
            backend.copy_into(gradients, backend.from_numpy(np.asarray(mean, gradients.dtype)))
            return backend.from_numpy(np.asarray(mean_loss, loss.dtype))

        return reduce

    def run(self, works: Sequence[Callable[[], dict[str, float]]]) -> list[dict[str, float]]:
        """What each returns."""

        def in_turn(work: Callable[[], dict[str, float]]) -> dict[str, float]:
            with self._turn:
                return work()

        with ThreadPoolExecutor(len(works)) as pool:
            return [each.result() for each in [pool.submit(in_turn, work) for work in works]]


def test_two_half_batches_averaged_by_hand_are_the_whole_batch() -> None:
    """Both halves have 24 targets, so that their plain mean is that of all."""
    options: dict[str, Any] = {"dtype": np.float64, "backend": Composition(), "grad_clip": 0.1}
    tokens = (np.arange(8 * 7, dtype=np.int32).reshape(1, 8, 7) * 5) % VOCABULARY
    ids, targets = tokens[:, :, :-1], tokens[:, :, 1:]
    whole, half = make_step(**options), make_step(**options)
    seen: list[Any] = []

    def keep(gradients: Array, loss: Array, count: int) -> Array:
        seen.append((gradients.copy(), loss.copy(), count))
        return loss

    reduced(make_step(**options), keep).run(ids[:, 4:], targets[:, 4:], 0.0)
    ((other_gradients, other_loss, other_count),) = seen

    def average(gradients: Array, loss: Array, count: int) -> Array:
        assert count == other_count == 24
        gradients[:] = (gradients + other_gradients) / 2
        return (loss + other_loss) / 2

    got = reduced(half, average).run(ids[:, :4], targets[:, :4], 0.01).read()
    wanted = whole.run(ids, targets, 0.01).read()
    assert wanted["clipped"] == 1.0
    assert got == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(half.model.parameters.values, whole.model.parameters.values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [CpuRef, ReplayBackend, helios])
@pytest.mark.parametrize("limits", [{}, {"grad_clip": 0.5, "spike_threshold": 1.2}], ids=["", "limits"])
def test_several_steps_on_targets_of_their_own_train_as_one_on_all(
    make: Callable[[], Any], limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the steps has no target that counts. The weights have the same bits in all of them."""
    monkeypatch.setattr(backend_cpu_ref, "BATCH_PARTS", {2: 1})
    meeting, backends = Meeting(3), [make() for _ in range(3)]
    options: dict[str, Any] = {"optim": "sgd", "accum_steps": 2, **limits}
    whole = make_step(backend=make(), **options)
    steps = [
        reduced(make_step(backend=backend, **options), meeting.reduction(backend, member))
        for member, backend in enumerate(backends)
    ]
    seen = set()
    for index in range(4):
        ids, targets = masked_batch(index)
        parts = [[divided(each[place : place + 4], 2) for each in (ids, targets)] for place in (0, 4, 8)]
        counts = [int((part[1] >= 0).sum()) for part in parts]
        assert counts[1] == 0 < counts[2] < counts[0]
        works = [
            lambda step=step, part=part: step.run(*part, 0.1).read() for step, part in zip(steps, parts, strict=True)
        ]
        results = meeting.run(works)
        assert results[0] == results[1] == results[2]
        wanted = whole.run(divided(ids, 2), divided(targets, 2), 0.1).read()
        assert results[0] == pytest.approx(wanted, rel=2e-5)
        seen.add((wanted["clipped"], wanted["accepted"]))
    assert len(seen) > (1 if limits else 0), "the test is to see decisions of both kinds"
    first, *others = (everything(step) for step in steps)
    assert all(each == first for each in others)
    assert [step.counters() for step in steps] == [whole.counters()] * 3
    values = [step.backend.to_numpy(step.model.parameters.values) for step in (steps[0], whole)]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("make", [CpuRef, ReplayBackend, helios])
def test_a_reduction_that_changes_nothing_changes_no_bit(make: Callable[..., Any], precision: str) -> None:
    """The step as one program and as two."""
    backend = make(precision) if make is helios else make()
    whole, parts = (
        make_step(dataclasses.replace(MODEL, dropout=0.2), backend=backend, accum_steps=2, fp16=precision == "f16")
        for _ in range(2)
    )
    parts = reduced(parts, lambda gradients, loss, count: loss)
    for index in range(3):
        batch = [divided(each, 2) for each in masked_batch(index)]
        assert whole.run(*batch, 0.01).read() == parts.run(*batch, 0.01).read()
    assert everything(whole) == everything(parts)


def test_a_gradient_that_one_step_finds_not_finite_is_skipped_by_all() -> None:
    meeting, backends = Meeting(2), [CpuRef(), CpuRef()]
    steps = [
        reduced(make_step(backend=backend), meeting.reduction(backend, member))
        for member, backend in enumerate(backends)
    ]
    before = [everything(step, but=("steps", "skipped_not_finite")) for step in steps]
    poisoned = make_step(model_class=NotFiniteGradient, backend=backends[1])
    steps[1] = reduced(poisoned, meeting.reduction(backends[1], 1))
    ids, targets = (each[None] for each in masked_batch())
    results = meeting.run([lambda step=step: step.run(ids, targets, 0.01).read() for step in steps])
    assert [each["accepted"] for each in results] == [0.0, 0.0]
    assert [everything(step, but=("steps", "skipped_not_finite")) for step in steps] == before
    assert [step.counters()["skipped_not_finite"] for step in steps] == [1, 1]


def test_the_memory_of_both_programs_is_planned_before_the_first_step() -> None:
    plans = []
    for reduction in (None, lambda gradients, loss, count: loss):
        step = make_step(backend=helios())
        if reduction:
            step = reduced(step, reduction)
        plans.append(step.plan(4))
        step.run(*inputs_and_targets(batch_of(0)), 0.01).read()
    assert plans[0].pop("activations") <= plans[1].pop("activations")
    assert plans[0] == plans[1]


def test_the_reduction_is_a_phase_of_its_own() -> None:
    timer = PhaseTimer()
    reduced(make_step(), lambda gradients, loss, count: loss, timer).run(*inputs_and_targets(batch_of(0)), 0.01)
    assert set(timer.take()) == {"forward", "backward", "reduction", "optimizer"}
