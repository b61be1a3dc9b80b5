"""Sums that a kernel takes over from an addition: when it may, and that it gives the same bits."""

from collections import Counter
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from helios_device import helios

from alpha import rng
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray, Storage, narrowed
from alpha.backend_helios_folding import ADD, fold_additions
from alpha.backend_helios_kernels import Field, Kernel
from alpha.backend_helios_planner import Dispatch
from alpha.backend_helios_primitives import ELEMENTWISE

SHAPE = (4, 16)


def array(address: int | None = None, shape: tuple[int, ...] = SHAPE, element: str = "f32") -> HeliosArray:
    return HeliosArray(Storage(256, address), shape, (shape[-1], 1)[-len(shape) :], element)


def dispatch(name: str, constants: dict[str, float], **arguments: tuple[str, HeliosArray | None]) -> Dispatch:
    fields = tuple(
        Field(each, "f32", direction, 8 * place) for place, (each, (direction, _)) in enumerate(arguments.items())
    )
    values: Any = {each: value for each, (_, value) in arguments.items()}
    return Dispatch(Kernel(name, "f32", fields, (), (), b""), Future(), (1, 1, 1), values, constants=constants)


def maker(x: HeliosArray, y: HeliosArray, addend: HeliosArray | None = None) -> Dispatch:
    return dispatch("scatter_add_rows", {}, x=("in", x), addend=("in", addend), y=("out", y))


def operation(a: HeliosArray, b: HeliosArray, y: HeliosArray, name: str = "add") -> Dispatch:
    return dispatch("elementwise", {"OPERATION": ELEMENTWISE.index(name)}, a=("in", a), b=("in", b), y=("out", y))


def test_the_code_of_an_addition_is_the_elementwise_kernels() -> None:
    assert ELEMENTWISE[ADD] == "add"


def folds(*dispatches: Dispatch, new: list[HeliosArray], result: HeliosArray | None = None) -> bool:
    left = fold_additions(dispatches, [each.storage for each in new], (result or array(0)).storage)
    return len(left) < len(dispatches)


def test_an_addition_is_left_to_the_maker_of_an_operand_used_for_nothing_else() -> None:
    x, other, made, total = array(4096), array(8192), array(), array()
    first, second = maker(x, made), operation(other, made, total)
    (left,) = fold_additions([first, second], [made.storage, total.storage], Storage(1))
    assert left.arguments == {"x": x, "addend": other, "y": total}
    assert folds(first, operation(made, other, total), new=[made, total]), "the order does not matter"
    assert folds(first, operation(other, made, other), new=[made]), "in place"
    assert folds(first, operation(made, array(4096 + 512), total), second, new=[made, total]) is False, "used twice"
    assert folds(first, operation(made, made, total), new=[made, total]) is False
    assert folds(first, second, new=[total]) is False, "it was there before"
    assert folds(first, second, new=[made, total], result=made) is False, "it is the result"


def test_only_a_sum_of_two_like_arrays_is_left_to_another() -> None:
    x, other, made, total = array(4096), array(8192), array(), array()
    first = maker(x, made)
    assert not folds(first, operation(other, made, total, "subtract"), new=[made, total])
    assert not folds(first, operation(array(8192, (16,)), made, total), new=[made, total])
    assert not folds(first, operation(array(8192, element="f16"), made, total), new=[made, total])
    assert not folds(first, operation(array(8192, (1, 16)), made, total), new=[made, total])
    assert not folds(first, operation(array(8192 + 4), made, total), new=[made, total]), "four at a time need alignment"
    assert not folds(maker(x, made, array(0)), operation(other, made, total), new=[made, total]), "it has an addend"
    assert not folds(maker(x, narrowed(made, 0, 0, 2)), operation(other, made, total), new=[made, total])
    assert not folds(operation(x, x, made), operation(other, made, total), new=[made, total]), "it takes none"


def test_nothing_between_may_touch_what_the_sum_is_made_of() -> None:
    x, other, made, total, there = array(4096), array(8192), array(), array(), array(16384)

    def with_between(between: Dispatch, target: HeliosArray = total) -> bool:
        return folds(maker(x, made), between, operation(other, made, target), new=[made, total])

    assert with_between(operation(other, x, array(512)))
    assert not with_between(operation(x, x, other)), "the addend changes"
    assert with_between(operation(x, there, array(512)))
    assert not with_between(operation(x, there, array(512)), there), "somebody still reads what was there"
    assert not with_between(operation(x, x, there), there), "it would be overwritten"
    assert not folds(maker(there, made), operation(other, made, there), new=[made]), "the maker reads what was there"


@pytest.fixture
def backend() -> Helios:
    return helios()


def normal(backend: Helios, *shape: int, stream: int = 0) -> HeliosArray:
    return backend.from_numpy(rng.normal(int(np.prod(shape)), 5, stream).reshape(shape).astype(np.float32))


@pytest.mark.parametrize("width", [16, 7])
def test_the_sum_has_the_bits_of_an_addition(backend: Helios, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy, other = (normal(backend, 9, width, stream=stream) for stream in range(3))
    weight, bias = (normal(backend, width, stream=stream) for stream in (3, 4))
    many = backend.from_numpy(rng.random_bits(5000, 1, 2).astype(np.int32) % 9)
    rows = normal(backend, 5000, width, stream=5)

    def program() -> HeliosArray:
        parts = []
        for centered in (False, True):
            if centered:
                _, saved = backend.layer_norm(x, weight, bias, 1e-5, True)
                dx, dweight, dbias = backend.layer_norm_backward(dy, saved)
                parts.append(dbias)
            else:
                _, saved = backend.rms_norm(x, weight, 1e-5, True)
                dx, dweight = backend.rms_norm_backward(dy, saved)
            parts += [dweight, backend.reshape(backend.add(other, dx), (9 * width,))]
        for ids in (many, backend.narrow(many, 0, 0, 40)):
            total = backend.multiply(other, 3.0)
            backend.add_into(total, backend.scatter_add_rows(ids, backend.narrow(rows, 0, 0, ids.shape[0]), 9))
            parts.append(backend.reshape(total, (9 * width,)))
        for position in (normal(backend, 4, width, stream=6), normal(backend, width, stream=7)):
            embedded = backend.add(backend.gather_rows(other, backend.reshape(backend.narrow(many, 0, 0, 12), (3, 4))),
                                   position)  # fmt: skip
            parts.append(backend.reshape(embedded, (12 * width,)))
        return backend.concatenate(parts, 0)

    kernels: list[str] = []
    make = backend.make_program

    def listed(dispatches: Any, repeated: bool = True) -> int:
        if repeated and len(dispatches) > 1:
            kernels.extend(each.kernel.name for each in dispatches if each.arguments.get("addend") is not None)
        return make(dispatches, repeated)

    monkeypatch.setattr(backend, "make_program", listed)
    folded = backend.to_numpy(backend.record(program)())
    assert Counter(kernels) == {
        "gather_rows": 2, "norm_backward": 2, "scatter_add_few_rows": 1, "scatter_add_rows": 1
    }  # fmt: skip
    assert np.array_equal(folded.view(np.uint32), backend.to_numpy(program()).view(np.uint32))
