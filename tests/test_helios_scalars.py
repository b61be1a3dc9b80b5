"""Scalar operations of recorded programs on the Vulkan device: the bits of the same operations one by one, in few
dispatches."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helios_device import helios
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import backend_helios_planner as planner
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_planner import Dispatch, needs_barrier
from alpha.config import ModelConfig, TrainingConfig, resolve_model
from alpha.gpt import GPT
from alpha.optimizer import AdamW
from alpha.sampler import inputs_and_targets
from alpha.training_step import TrainingStep

NUMBERS = (0.0, 1.0, -2.0, 0.3, 1e-6, 3e38, float("nan"))
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum")
UNARY = ("exp", "log", "sqrt", "tanh", "erf", "sign", "absolute")
COMPARISONS = ("greater", "equal")
KINDS = (*BINARY, *UNARY, *COMPARISONS, "where", "sum", "squares", "cast", "integers")
CHANGES = ("fill", "copy_into", "add_into", "copy_into_if", "row")
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS + CHANGES), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), max_size=24
)


class State:
    """Arrays that exist before a program: numbers of every element type, and a row of several numbers."""

    def __init__(self, backend: Helios) -> None:
        self.floats = [backend.from_numpy(np.array([value], np.float32)) for value in (0.7, -3.0, 1e-40, 2.5)]
        self.integers = [backend.from_numpy(np.array([value], np.int32)) for value in (3, -7)]
        self.flags = [backend.from_numpy(np.array([value])) for value in (True, False)]
        self.row = backend.from_numpy(np.array([1.5, -0.1, 4.0], np.float32))
        self.many = backend.from_numpy(np.sin(np.arange(70_001, dtype=np.float32)))  # whose squares are 18 sums first


class Run:
    """Does steps on the arrays there are and on the results of steps before."""

    def __init__(self, backend: Helios, state: State) -> None:
        self.backend, self.state = backend, state
        self.floats, self.integers, self.flags = list(state.floats), list(state.integers), list(state.flags)

    def step(self, kind: str, first: int, second: int, third: int) -> None:
        a, b = (self.floats[each % len(self.floats)] for each in (first, second))
        flag = self.flags[third % len(self.flags)]
        if kind in CHANGES:
            self.change(kind, self.state.floats[third % len(self.state.floats)], a, flag)
        else:
            self.compute(kind, a, NUMBERS[third % len(NUMBERS)] if third % 2 else b, flag, first)

    def compute(self, kind: str, a: HeliosArray, operand: Any, flag: HeliosArray, choice: int) -> None:
        backend, integer = self.backend, self.integers[choice % len(self.integers)]
        if kind in BINARY:
            self.floats.append(getattr(backend, kind)(a, operand))
        elif kind in UNARY:
            self.floats.append(getattr(backend, kind)(a))
        elif kind in COMPARISONS:
            self.flags.append(getattr(backend, kind)(a, operand))
        elif kind == "where":
            self.floats.append(backend.where(flag, a, operand))
        elif kind == "sum":
            self.floats.append(backend.sum(self.state.row, (0,), keep=True))
        elif kind == "squares":
            self.floats.append(backend.sum_of_squares(self.state.many if choice % 2 else a))
        elif kind == "cast":
            self.floats.append(backend.cast(integer, np.float32))
            self.integers.append(backend.cast(flag, np.int32))
        else:
            self.integers.append(backend.subtract(backend.multiply(integer, 3), self.integers[-1]))
            self.flags.append(backend.logical_and(backend.isfinite(a), flag))

    def change(self, kind: str, target: HeliosArray, a: HeliosArray, flag: HeliosArray) -> None:
        backend = self.backend
        if kind == "fill":
            backend.fill(target, 3.0)
        elif kind == "copy_into":
            backend.copy_into(target, a)
        elif kind == "add_into":
            backend.add_into(target, a)
            backend.add_into(self.state.integers[0], self.integers[-1])
        elif kind == "copy_into_if":
            backend.copy_into_if(flag, target, a)
        else:
            backend.copy_into(self.state.row, backend.add(self.state.row, a))


def run(backend: Helios, state: State, steps: list[tuple[str, int, int, int]]) -> HeliosArray:
    """Do the steps; returns all numbers."""
    doing = Run(backend, state)
    for step in steps:
        doing.step(*step)
    others = (backend.cast(each, np.float32) for each in (*doing.integers, *doing.flags))
    return backend.concatenate([*doing.floats, *others, state.row], 0)


def bits_of(backend: Helios, numbers: HeliosArray) -> list[int]:
    """The bits of float32 numbers; which of many NaNs an operation gives is left to the device."""
    values = backend.to_numpy(numbers)
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32).tolist()


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_a_recorded_program_gives_the_bits_of_its_operations_one_by_one(steps: list[tuple[str, int, int, int]]) -> None:
    backend = helios()
    recorded, one_by_one = State(backend), State(backend)
    program = backend.record(lambda: run(backend, recorded, steps))
    for _ in range(2):
        assert bits_of(backend, program()) == bits_of(backend, run(backend, one_by_one, steps))


@pytest.fixture
def dispatches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels of every repeated program made meanwhile, but for those that only copy, as operands and results."""
    backend, names = helios(), []
    make = backend.make_program

    def listed(dispatches: Any, repeated: bool = True) -> int:
        if repeated:
            names.extend(each.kernel.name for each in dispatches if not each.is_copy)
        return make(dispatches, repeated)

    monkeypatch.setattr(backend, "make_program", listed)
    return names


def test_what_stands_between_scalar_operations_does_not_part_them(dispatches: list[str]) -> None:
    backend = helios()
    x = backend.from_numpy(np.arange(8, dtype=np.float32))
    y = backend.from_numpy(np.ones(1, np.float32))

    def program() -> HeliosArray:
        early = backend.multiply(y, 3.0)
        total = backend.sum(x, (0,), keep=True)
        norm = backend.sqrt(total)
        backend.copy_into(x, backend.multiply(x, 2.0))
        ratio = backend.divide(early, backend.add(norm, 1.0))
        return backend.multiply(x, ratio)

    result = backend.to_numpy(backend.record(program)())
    assert np.allclose(result, 2 * np.arange(8) * 3 / (np.sqrt(28) + 1))
    assert sorted(dispatches) == ["elementwise", "elementwise", "reduce", "scalars"]


def test_more_operations_than_one_dispatch_takes_are_divided(
    dispatches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_INSTRUCTIONS", 4)
    backend = helios()
    x = backend.from_numpy(np.ones(1, np.float32))

    def program() -> HeliosArray:
        y = x
        for _ in range(9):
            y = backend.add(y, y)
        return y

    assert backend.to_numpy(backend.record(program)()) == 2**9
    assert dispatches == ["scalars", "scalars", "elementwise"]


def training_step(backend: Helios, precision: str, accum_steps: int = 2) -> TrainingStep:
    model = GPT(backend, resolve_model(ModelConfig(block=8, layers=1, dim=16, heads=2)), 20)
    model.parameters.initialize()
    training = TrainingConfig(data="", batch=2, dtype=precision, accum_steps=accum_steps, spike_threshold=50.0)
    return TrainingStep(model, AdamW(model.parameters, training), training)


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_a_training_step_is_a_short_list_of_dispatches(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, made = helios(precision), []
    make = backend.make_program

    def kept(dispatches: Any, repeated: bool = True) -> int:
        if repeated:
            made.append([each for each in dispatches if not each.is_copy])
        return make(dispatches, repeated)

    monkeypatch.setattr(backend, "make_program", kept)
    monkeypatch.setattr(backend, "stages", None)  # of dispatches that become one, see test_helios_stages
    training_step(backend, precision, accum_steps=1).plan(2)
    (dispatches,) = made
    kernels = Counter(each.kernel.name for each in dispatches)
    assert not {"where", "copy_into_if"} & set(kernels)
    assert kernels["norm_backward"] == kernels["norm"] == 3
    if not backend.device_info.cooperative_matrices:  # products of other kernels may take other numbers of dispatches
        assert kernels["scalars"] == 1
        assert kernels["elementwise"] == (precision == "f16"), "what the gradient of the loss is scaled by"
        assert len(dispatches) == 40 + kernels["elementwise"]
        assert sum(needs_barrier(dispatches)) == 26


@pytest.mark.parametrize("precision", ["f32", pytest.param("f16", marks=pytest.mark.matrix_units)])
def test_recorded_training_steps_give_the_bits_of_their_operations_one_by_one(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_they_are(backend: Helios, dispatches: list[Dispatch], *others: object) -> list[Dispatch]:
        return dispatches

    # Gradients that matrix units read are an exception: test_helios_gradients tells how far they differ. So are stages.
    monkeypatch.setattr("alpha.backend_helios_program.fold_gradients", as_they_are)
    backend = helios(precision)
    monkeypatch.setattr(backend, "stages", None)
    tokens = np.random.default_rng(1).integers(0, 20, (3, 2, 2, 9))

    def bits() -> list[bytes]:
        step, found = training_step(backend, precision), []
        for number, batch in enumerate(tokens):
            rate = np.inf if number == 1 else 1e-2  # the second step is not accepted
            found.append(backend.to_numpy(step.run(*inputs_and_targets(batch), rate).values).tobytes())
        state = {**step.state(), "weights": step.model.parameters.values}
        return found + [backend.to_numpy(each).tobytes() for each in state.values()]

    recorded = bits()
    assert len(set(recorded[:3])) == 3

    def as_is(program: Callable[..., HeliosArray]) -> Callable[..., HeliosArray]:
        return program

    monkeypatch.setattr(backend, "record", as_is)
    assert recorded == bits()
