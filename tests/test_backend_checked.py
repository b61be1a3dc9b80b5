"""The checked backend: silent on a device that computes rightly, and naming the operation of one that does not."""

import math
from typing import Any

import numpy as np
import pytest
from backend_case import Composition
from backend_cases import ONE_OF_EACH
from test_engine import DRAWN, VOCABULARY, alone
from test_gpt import SMALL_SET, model_of
from test_training_step import batch_of, make_step, run_step

from alpha.backend_checked import CheckedBackend
from alpha.backend_cpu_ref import CpuRef
from alpha.config import resolve_model
from alpha.engine import Request
from alpha.errors import AlphaError


def checked(device: Any) -> Any:
    return CheckedBackend(device, Composition())


def test_every_operation_is_let_through_when_it_is_right() -> None:
    for case in ONE_OF_EACH:
        results, wanted = case.run(checked(CpuRef()), np.float32), case.run(CpuRef(), np.float32)
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(results, wanted, strict=True)), case.name


def test_a_training_step_is_the_same_when_it_is_checked() -> None:
    plain, watched = make_step(backend=CpuRef()), make_step(backend=checked(CpuRef()))
    for index in range(2):
        assert run_step(plain, batch_of(index), 0.01).read() == run_step(watched, batch_of(index), 0.01).read()


def test_texts_and_losses_are_the_same_when_they_are_checked() -> None:
    results = []
    for backend in (CpuRef(), checked(CpuRef())):
        model = model_of(resolve_model(SMALL_SET["gpt2"]), np.float32, backend, VOCABULARY)
        made = alone(model, Request([1, 2, 3], 4, DRAWN, logprobs=2))
        ids = np.arange(8, dtype=np.int32).reshape(2, 4)
        losses = backend.to_numpy(backend.record(model.losses)(*map(backend.from_numpy, (ids, ids + 1))))
        results.append((made.ids, made.logprobs, losses.tolist()))
    assert results[0] == results[1]


class WrongTanh(Composition):
    def tanh(self, x: Any) -> Any:
        return np.tanh(x) * np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, 1.01, 1.0)


class WrongGradient(CpuRef):
    def layer_norm_backward(self, dy: Any, saved: Any, need_weight: bool = True) -> Any:
        dx, dweight, dbias = super().layer_norm_backward(dy, saved, need_weight)
        return dx, dweight * 0, dbias


class WrongInPlace(Composition):
    def add_into(self, target: Any, source: Any) -> None:
        np.add(target, 2 * source, out=target)


class NotANumber(Composition):
    def log(self, x: Any) -> Any:
        return np.log(x) * math.nan


@pytest.mark.parametrize(
    ("device", "run", "message"),
    [
        (WrongTanh(), lambda b, x: b.tanh(x), r"result of tanh on \[\[3, 5\]\] differs.* by 0\.01"),
        (NotANumber(), lambda b, x: b.log(x), "result of log .* by nan"),
        (WrongInPlace(), lambda b, x: b.add_into(x, x), r"Operand 0 after add_into on \[\[3, 5\], \[3, 5\]\]"),
    ],
)
def test_a_wrong_operation_is_named(device: Any, run: Any, message: str) -> None:
    backend = checked(device)
    with pytest.raises(AlphaError, match=message):
        run(backend, backend.from_numpy(np.linspace(0.5, 2.0, 15).reshape(3, 5)))


def test_a_wrong_gradient_is_found_in_a_training_step() -> None:
    with pytest.raises(AlphaError, match=r"result of layer_norm_backward .*, part 1, differs"):
        run_step(make_step(backend=checked(WrongGradient())), batch_of(0), 0.01)
