"""Differentiation: each operation against finite differences, and what a tape does with several of them."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from finite_differences import derivative

from alpha import ops, rng
from alpha.activation import ACTIVATIONS, GATED_ACTIVATIONS
from alpha.autograd import Tape, Tensor, checkpoint, recording
from alpha.backend import Backend, Heads
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_primitives import Array, RandomKey

Floats = npt.NDArray[np.float64]

STEP = 3e-4
DIRECTIONS = 3


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    return getattr(request, "param", CpuRef)()


def values(shape: Sequence[int], name: str) -> Floats:
    return rng.normal(int(np.prod(shape)), 1, rng.stream_of(name)).reshape(shape)


@dataclass(frozen=True)
class Case:
    """A function of tensors, and the shapes of its operands."""

    name: str
    function: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]

    def operands(self) -> list[Floats]:
        return [values(shape, f"{self.name}/{index}") for index, shape in enumerate(self.shapes)]


def integers(backend: Backend, *numbers: int) -> Array:
    return backend.from_numpy(np.array(numbers, np.int32))


def key(backend: Backend) -> RandomKey:
    return RandomKey(1, 2, integers(backend, 3))


def neural_cases() -> list[Case]:
    ids = (3, 0, 3, 6)
    cases = [
        Case("embedding", lambda t: ops.embedding(t, integers(t.backend, *ids)), [(7, 3)]),
        Case("soft_cap", lambda x: ops.soft_cap(x, 1.5), [(3, 4)]),
        Case("soft_cap-off", lambda x: ops.soft_cap(x, 0.0), [(3, 4)]),
        Case("layer_norm", lambda x, w, b: ops.layer_norm(x, w, b, 1e-5), [(2, 3, 5), (5,), (5,)]),
        Case("layer_norm-no-bias", lambda x, w: ops.layer_norm(x, w, None, 1e-5), [(4, 5), (5,)]),
        Case("rms_norm", lambda x, w: ops.rms_norm(x, w, 1e-5), [(2, 3, 5), (5,)]),
        Case("dropout", lambda x: ops.dropout(x, 0.4, key(x.backend)), [(5, 7)]),
        Case("dropout-off", lambda x: ops.dropout(x, 0.0, key(x.backend)), [(2, 3)]),
        Case("dropout-no-key", lambda x: ops.dropout(x, 0.4, None), [(2, 3)]),
        Case("attention", lambda x: ops.self_attention(x, Heads(1, 1)), [(2, 3, 3, 2)]),
        Case("attention-groups", lambda x: ops.self_attention(x, Heads(4, 2)), [(1, 3, 8, 2)]),
        Case("attention-cap", lambda x: ops.self_attention(x, Heads(2, 2), soft_cap=0.7), [(1, 3, 6, 2)]),
        Case("attention-norms", lambda x, *w: ops.self_attention(x, Heads(4, 2), w), [(1, 3, 8, 2), (2,), (2,)]),
        Case("attention-all", whole_attention, [(1, 3, 8, 6), (6,), (6,)]),
        Case("linear", ops.linear, [(2, 3, 4), (4, 5)]),
        Case("linear-bias", ops.linear, [(3, 4), (4, 5), (5,)]),
        Case("linear-residual", lambda x, w, r: ops.linear(x, w, residual=r), [(3, 4), (4, 5), (3, 5)]),
        Case("linear-same", lambda x, w: ops.linear(x, w, residual=x), [(3, 4), (4, 4)]),
    ]
    for kind in ACTIVATIONS:
        width = 2 if kind in GATED_ACTIVATIONS else 4
        cases += [
            Case(
                f"linear-{kind}",
                lambda x, w, b, r, kind=kind: ops.linear(x, w, b, kind, r),
                [(2, 3, 5), (5, 4), (4,), (2, 3, width)],
            ),
        ]
    for name, targets in {"": (1, 0, 6, 2), "-ignored": (1, -1, 6, -7), "-none": (-1, -1, -1, -1)}.items():
        for soft_cap in (0.0, 1.3):
            cases.append(
                Case(
                    f"cross_entropy{name}{'-cap' * bool(soft_cap)}",
                    lambda x, w, t=targets, c=soft_cap: ops.cross_entropy(x, w, integers(x.backend, *t), c),
                    [(4, 3), (7, 3)],
                )
            )
    return cases


def whole_attention(qkv: Tensor, *norms: Tensor) -> Tensor:
    backend = qkv.backend
    angles = [backend.from_numpy(each(values((3, 3), "angles"))) for each in (np.cos, np.sin)]
    return ops.self_attention(qkv, Heads(4, 2, epsilon=1e-5, angles=angles), norms, 0.7, 0.3, key(backend))


def elementwise_cases() -> list[Case]:
    cases = []
    pairs = {"same": [(3, 4), (3, 4)], "row": [(3, 4), (4,)], "columns": [(3, 1), (1, 4)], "axes": [(2, 1, 3), (4, 1)],
             "scalar": [(), (2, 3)], "one": [(1, 1), (5,)]}  # fmt: skip
    for detail, shapes in pairs.items():
        cases += [
            Case(f"add-{detail}", ops.add, shapes),
            Case(f"multiply-{detail}", ops.multiply, shapes),
        ]
    return [
        *cases,
        Case("add-number", lambda x: ops.add(x, 2.5), [(3, 4)]),
        Case("multiply-number", lambda x: ops.multiply(x, -2.5), [(3, 4)]),
        Case("tanh", ops.tanh, [(3, 4)]),
    ]


def shape_cases() -> list[Case]:
    return [
        Case("reshape", lambda x: ops.reshape(x, (4, 6)), [(2, 3, 4)]),
        Case("reshape-scalar", lambda x: ops.reshape(x, ()), [(1, 1)]),
        Case("transpose", lambda x: ops.transpose(x, (2, 0, 1)), [(2, 3, 4)]),
        Case("narrow", lambda x: ops.narrow(x, 1, 1, 2), [(2, 4, 3)]),
        Case("narrow-last", lambda x: ops.narrow(x, -1, 0, 2), [(2, 3)]),
        Case("matmul", ops.matmul, [(3, 4), (4, 2)]),
        Case("matmul-batch", ops.matmul, [(2, 3, 4), (2, 4, 2)]),
        Case("matmul-broadcast", ops.matmul, [(2, 1, 3, 4), (3, 4, 2)]),
        Case("matmul-matrix", ops.matmul, [(2, 2, 3, 4), (4, 2)]),
    ]


def composite_cases() -> list[Case]:
    def diamond(x: Tensor) -> Tensor:
        shared = ops.tanh(x)
        return ops.add(ops.tanh(shared), ops.multiply(shared, ops.multiply(x, 0.3)))

    def deep(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(4):
            x = ops.add(ops.tanh(ops.matmul(x, w)), x)
        return x

    return [
        Case("square", lambda x: ops.multiply(x, x), [(3, 4)]),
        Case("own-double", lambda x: ops.multiply(x, ops.add(x, x)), [(3,)]),
        Case("gram", lambda x: ops.matmul(x, ops.transpose(x, (1, 0))), [(3, 4)]),
        Case("diamond", diamond, [(3, 4)]),
        Case("shared-weight", deep, [(2, 3), (3, 3)]),
        Case("unused", lambda x, y: (ops.tanh(y), ops.tanh(x))[1], [(3,), (3,)]),
        Case("own-embedding", tied_head, [(5, 3)]),
        Case("own-weight", lambda x: ops.linear(x, x), [(3, 3)]),
        Case("own-head", lambda x: ops.cross_entropy(x, x, integers(x.backend, 1, 0, 2)), [(3, 3)]),
        Case("checkpoint", lambda x, w: checkpoint(lambda x: deep(x, w), x), [(2, 3), (3, 3)]),
        Case("checkpoint-inside", lambda x, w: checkpoint(lambda x: checkpoint(lambda x: deep(x, w), x), x),
             [(2, 3), (3, 3)]),
    ]  # fmt: skip


def tied_head(table: Tensor) -> Tensor:
    hidden = ops.tanh(ops.embedding(table, integers(table.backend, 1, 4, 1)))
    return ops.cross_entropy(hidden, table, integers(table.backend, 0, 1, 4))


COMPOSITE, NEURAL = composite_cases(), neural_cases()
CASES = [*elementwise_cases(), *shape_cases(), *COMPOSITE, *NEURAL]

by_backend_and_case = pytest.mark.parametrize(
    ("backend", "case"),
    [pytest.param(CpuRef, case, id=case.name) for case in CASES]
    + [pytest.param(Composition, case, id=f"{case.name}-composition") for case in [*COMPOSITE, *NEURAL]],
    indirect=["backend"],
)


def run(
    backend: Backend, function: Callable[..., Tensor], operands: Sequence[Floats], buffers: bool = False
) -> tuple[Floats, list[Tensor]]:
    """The result, and the tensors with the gradients of its sum weighted by `weights`."""
    tensors = []
    for each in operands:
        buffer = backend.from_numpy(np.full(each.shape, np.nan)) if buffers else None
        tensors.append(Tensor(backend, backend.from_numpy(each), requires_gradient=True, gradient_buffer=buffer))
    with Tape() as tape:
        result = function(*tensors)
    tape.backward(result, backend.from_numpy(weights(result.shape)))
    return backend.to_numpy(result.data), tensors


def weights(shape: tuple[int, ...]) -> Floats:
    return values(shape, "weights")


def gradient_of(tensor: Tensor) -> Floats:
    """Zeros where nothing depends on the tensor."""
    if tensor.gradient is None:
        return np.zeros(tensor.shape)
    assert tensor.gradient.shape == tensor.shape
    return tensor.backend.to_numpy(tensor.gradient)


@by_backend_and_case
def test_gradients_are_those_of_finite_differences(backend: Backend, case: Case) -> None:
    """Along random directions, so that every element takes part."""
    operands = case.operands()
    _, tensors = run(backend, case.function, operands)
    for index, tensor in enumerate(tensors):
        for number in range(DIRECTIONS):
            direction = values(tensor.shape, f"direction {number}")

            def moved(t: float, index: int = index, direction: Floats = direction) -> float:
                replaced = [*operands[:index], operands[index] + t * direction, *operands[index + 1 :]]
                y = case.function(*(Tensor(backend, backend.from_numpy(each)) for each in replaced))
                return float((backend.to_numpy(y.data) * weights(y.shape)).sum())

            expected = derivative(moved, STEP)
            assert float((gradient_of(tensor) * direction).sum()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@by_backend_and_case
def test_gradient_buffers_collect_the_same_gradients(backend: Backend, case: Case) -> None:
    operands = case.operands()
    _, plain = run(backend, case.function, operands)
    _, buffered = run(backend, case.function, operands, buffers=True)
    for tensor, with_buffer in zip(plain, buffered, strict=True):
        if tensor.gradient is None:
            assert with_buffer.gradient is None
            continue
        assert with_buffer.gradient is with_buffer.gradient_buffer
        np.testing.assert_allclose(gradient_of(with_buffer), gradient_of(tensor), rtol=1e-12, atol=1e-14)


def test_a_gradient_buffer_is_overwritten_first_and_added_to_then(backend: Backend) -> None:
    buffer = backend.from_numpy(np.array([np.nan, np.nan]))
    x = Tensor(backend, backend.from_numpy(np.array([1.0, 2.0])), requires_gradient=True, gradient_buffer=buffer)
    assert x.unused_gradient_buffer() is buffer
    x.accumulate(backend.from_numpy(np.array([3.0, 4.0])))
    assert x.gradient is buffer
    assert x.unused_gradient_buffer() is None
    assert backend.to_numpy(buffer).tolist() == [3, 4]
    x.accumulate(backend.from_numpy(np.array([10.0, 20.0])))
    assert x.gradient is buffer
    assert backend.to_numpy(buffer).tolist() == [13, 24]
    x.gradient = None  # forgotten: the next one overwrites
    x.accumulate(backend.from_numpy(np.array([7.0, 8.0])))
    assert backend.to_numpy(buffer).tolist() == [7, 8]


def test_a_gradient_written_into_the_buffer_is_not_counted_twice(backend: Backend) -> None:
    buffer = backend.from_numpy(np.array([5.0]))
    x = Tensor(backend, backend.from_numpy(np.array([1.0])), requires_gradient=True, gradient_buffer=buffer)
    x.accumulate(buffer)
    assert x.gradient is buffer
    assert backend.to_numpy(buffer).tolist() == [5]


def test_contributions_without_a_buffer_leave_the_first_one_as_it_was(backend: Backend) -> None:
    first = backend.from_numpy(np.array([1.0]))
    x, y = (Tensor(backend, backend.from_numpy(np.zeros(1)), requires_gradient=True) for _ in range(2))
    x.accumulate(first)
    y.accumulate(first)
    x.accumulate(backend.from_numpy(np.array([10.0])))
    assert (gradient_of(x).item(), gradient_of(y).item(), backend.to_numpy(first).item()) == (11, 1, 1)


def test_gradients_of_several_backward_passes_add_up(backend: Backend) -> None:
    weight, bias = values((3, 4), "weight"), values((4,), "bias")
    once = run(backend, ops.linear, [values((5, 3), "first"), weight, bias], buffers=True)[1]
    tensors = [Tensor(backend, backend.from_numpy(each), True, backend.zeros(each.shape, each.dtype))
               for each in (weight, bias)]  # fmt: skip
    for _ in range(3):
        x = Tensor(backend, backend.from_numpy(values((5, 3), "first")))
        with Tape() as tape:
            result = ops.linear(x, *tensors)
        tape.backward(result, backend.from_numpy(weights(result.shape)))
        assert x.gradient is None  # it requires none
    for tensor, expected in zip(tensors, once[1:], strict=True):
        np.testing.assert_allclose(gradient_of(tensor), 3 * gradient_of(expected), rtol=1e-12)


def test_the_default_gradient_is_one(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.array([1.0, 2.0])), requires_gradient=True)
    with Tape() as tape:
        y = ops.multiply(x, 3.0)
    tape.backward(y)
    assert gradient_of(x).tolist() == [3, 3]


def test_nothing_is_recorded_outside_a_tape_or_without_need(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.ones(2)), requires_gradient=True)
    constant = Tensor(backend, backend.from_numpy(np.ones(2)))
    assert not recording(x)
    assert not ops.tanh(x).requires_gradient
    with Tape() as tape:
        assert recording(x)
        assert recording(None, constant, x)
        assert not recording(constant, None)
        assert not ops.tanh(constant).requires_gradient
        y = ops.multiply(ops.tanh(constant), x)
        assert y.requires_gradient
    assert not recording(x)
    tape.backward(y)
    assert constant.gradient is None
    assert gradient_of(x).tolist() == [np.tanh(1.0)] * 2


def test_an_operation_saves_nothing_unless_it_is_recorded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = []
    original = backend.layer_norm

    def noted(*arguments: object) -> object:
        trainings.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(backend, "layer_norm", noted)
    x, weight = (Tensor(backend, backend.from_numpy(np.ones((2, 2)))) for _ in range(2))
    ops.layer_norm(x, weight, None, 1e-5)
    with Tape():
        ops.layer_norm(x, weight, None, 1e-5)
        weight.requires_gradient = True
        ops.layer_norm(x, weight, None, 1e-5)
    ops.layer_norm(x, weight, None, 1e-5)
    assert trainings == [False, False, True, False]


def test_an_inner_tape_records_for_itself(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.array([2.0])), requires_gradient=True)
    with Tape() as outer:
        y = ops.multiply(x, 3.0)
        with Tape() as inner:
            z = ops.multiply(x, 5.0)
        y = ops.add(y, x)
    inner.backward(z)
    assert gradient_of(x).tolist() == [5]
    x.gradient = None
    outer.backward(y)
    assert gradient_of(x).tolist() == [4]


def test_a_tape_closes_when_an_error_passes_through_it(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.ones(1)), requires_gradient=True)
    with Tape():
        with pytest.raises(ZeroDivisionError), Tape():
            raise ZeroDivisionError
        assert recording(x)
    assert not recording(x)


def test_backward_uses_the_tape_up_and_releases_what_it_held(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.ones(3)), requires_gradient=True)
    with Tape() as tape:
        hidden = ops.tanh(x)
        result = ops.multiply(hidden, hidden)
    alive = weakref.ref(hidden.data)
    del hidden
    assert alive() is not None
    tape.backward(result)
    assert alive() is None
    assert result.gradient is None
    before = gradient_of(x)
    tape.backward(x, backend.zeros((3,), x.dtype))  # nothing is left to walk
    assert np.array_equal(gradient_of(x), before)


def residual_block(x: Tensor, weight: Tensor, norm: Tensor) -> Tensor:
    random = RandomKey(1, 2, integers(x.backend, 3))
    hidden = ops.linear(ops.rms_norm(x, norm, 1e-5), weight, activation="gelu")
    return ops.add(ops.dropout(hidden, 0.3, random), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_checkpointed_gradients_have_the_same_bits(backend: Backend, dtype: npt.DTypeLike) -> None:
    def gradients(use_checkpoint: bool) -> list[npt.NDArray[np.floating]]:
        x, weight, norm = (
            Tensor(backend, backend.from_numpy(values(shape, name).astype(dtype)), True, backend.zeros(shape, dtype))
            for name, shape in {"x": (9, 6), "weight": (6, 6), "norm": (6,)}.items()
        )
        with Tape() as tape:
            y = ops.tanh(x)
            for _ in range(3):  # the weights are used by every block and after them
                if use_checkpoint:
                    y = checkpoint(lambda y: residual_block(y, weight, norm), y)
                else:
                    y = residual_block(y, weight, norm)
            y = ops.linear(y, weight)
        tape.backward(y, backend.from_numpy(weights(y.shape).astype(dtype)))
        return [backend.to_numpy(y.data), *(gradient_of(each) for each in (x, weight, norm))]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert np.array_equal(plain, checkpointed)


def test_a_checkpoint_keeps_only_its_operand(backend: Backend) -> None:
    inside: list[weakref.ref[Array]] = []

    def function(x: Tensor) -> Tensor:
        hidden = ops.add(x, 1.0)
        inside.append(weakref.ref(hidden.data))
        return ops.multiply(hidden, hidden)

    x = Tensor(backend, backend.from_numpy(np.zeros(3)), requires_gradient=True)
    with Tape() as tape:
        y = checkpoint(function, x)
    assert [each() for each in inside] == [None]
    tape.backward(y)
    assert len(inside) == 2  # computed once more
    assert gradient_of(x).tolist() == [2, 2, 2]


def test_a_checkpoint_outside_a_tape_is_the_function(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.ones(3)), requires_gradient=True)
    y = checkpoint(ops.tanh, x)
    assert not y.requires_gradient
    assert backend.to_numpy(y.data).tolist() == [np.tanh(1.0)] * 3


def test_parameters_inside_a_checkpoint_get_gradients_when_its_operand_needs_none(backend: Backend) -> None:
    x = Tensor(backend, backend.from_numpy(np.ones((1, 2))))
    weight = Tensor(backend, backend.from_numpy(np.ones((2, 2))), requires_gradient=True)
    inside: list[weakref.ref[Array]] = []

    def function(x: Tensor) -> Tensor:
        hidden = ops.linear(x, weight)
        inside.append(weakref.ref(hidden.data))
        return ops.multiply(hidden, hidden)

    with Tape() as tape:
        y = checkpoint(function, x)
        assert not checkpoint(ops.tanh, x).requires_gradient
    assert [each() for each in inside] == [None]
    tape.backward(y)
    assert len(inside) == 2
    assert gradient_of(weight).tolist() == [[4, 4], [4, 4]]
    assert x.gradient is None
