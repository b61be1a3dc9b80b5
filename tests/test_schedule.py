"""The learning rate: exact at the edges, and bounded, monotone and without jumps between them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha.config import TrainingConfig, resolve_training
from alpha.training_step import learning_rate


def rates(**options: object) -> list[float]:
    training = resolve_training(TrainingConfig(**options))
    return [learning_rate(step, training) for step in range(training.iters)]


def test_cosine_at_its_edges_and_middle() -> None:
    all_rates = rates(lr=1e-3, lr_min=1e-4, warmup_iters=10, iters=110)
    assert all_rates[0] == 1e-3 / 10
    assert all_rates[4] == 1e-3 / 2
    assert all_rates[9] == 1e-3
    assert all_rates[59] == pytest.approx((1e-3 + 1e-4) / 2, rel=1e-12)  # half way from step 9 to step 109
    assert all_rates[34] == pytest.approx(1e-4 + 9e-4 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert all_rates[109] == 1e-4


def test_wsd_at_its_edges() -> None:
    all_rates = rates(schedule="wsd", lr=1e-3, lr_min=1e-4, warmup_iters=10, iters=100, decay_fraction=0.2)
    assert all_rates[0] == 1e-3 / 10
    assert all_rates[9:80] == [1e-3] * 71
    assert all_rates[80] == pytest.approx(1e-3 - 9e-4 / 20, rel=1e-12)
    assert all_rates[89] == pytest.approx((1e-3 + 1e-4) / 2, rel=1e-12)
    assert all_rates[99] == 1e-4


def test_defaults_are_a_fifth_of_warm_up_and_a_tenth_of_the_rate() -> None:
    all_rates = rates(lr=1.0, iters=50)
    assert all_rates[9] == 1.0
    assert all_rates[0] == 0.1
    assert all_rates[-1] == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_without_warm_up_the_first_step_has_the_full_rate(schedule: str) -> None:
    assert rates(schedule=schedule, lr=1.0, iters=4, decay_fraction=1.0)[0] == 1.0
    assert rates(schedule=schedule, lr=1.0, iters=1) == [1.0]


def test_steps_after_the_last_stay_at_the_minimum() -> None:
    training = resolve_training(TrainingConfig(lr=1.0, lr_min=0.25, iters=10))
    assert [learning_rate(step, training) for step in (9, 10, 1000)] == [0.25] * 3


def test_wsd_without_decay_keeps_the_rate() -> None:
    assert rates(schedule="wsd", lr=1.0, warmup_iters=2, iters=10, decay_fraction=0.0) == [0.5] + [1.0] * 9


@st.composite
def configurations(draw: st.DrawFn) -> TrainingConfig:
    lr = draw(st.floats(1e-6, 1.0))
    iters = draw(st.integers(1, 300))
    return resolve_training(
        TrainingConfig(
            schedule=draw(st.sampled_from(["cosine", "wsd"])),
            lr=lr,
            lr_min=lr * draw(st.floats(1e-3, 1.0)),
            iters=iters,
            warmup_iters=draw(st.integers(0, iters + 5)),
            decay_fraction=draw(st.floats(0.0, 1.0)),
        )
    )


@given(configurations())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_every_configuration_rises_then_falls_within_its_bounds(training: TrainingConfig) -> None:
    all_rates = [learning_rate(step, training) for step in range(training.iters + 3)]
    warmup = max(training.warmup_iters, 1)
    ulp = 1e-12 * training.lr

    assert all_rates[0] == pytest.approx(training.lr / warmup, rel=1e-12)
    assert all(0 < rate <= training.lr + ulp for rate in all_rates)
    rising, falling = all_rates[:warmup], all_rates[warmup - 1 :]
    assert all(later > earlier for earlier, later in pairwise(rising))
    assert all(later <= earlier + ulp for earlier, later in pairwise(falling))
    assert all(rate >= training.lr_min - ulp for rate in falling)
    if len(falling) > 0:
        assert falling[0] == training.lr

    decaying = training.iters - warmup
    if training.schedule == "wsd":
        decaying = min(decaying, round(training.decay_fraction * training.iters))
    if decaying > 0:
        assert all_rates[training.iters - 1] == training.lr_min
        # No jump: cosine's steepest slope is pi/2 times that of a straight line.
        steepest = math.pi / 2 * (training.lr - training.lr_min) / decaying
        assert all(earlier - later <= steepest + ulp for earlier, later in pairwise(falling))
