"""The Vulkan backend's norms, loss, activations and updates, beyond the table of cases: sizes, storage, same bits."""

from collections.abc import Callable
from typing import Any

import definitions
import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from backend_cases_fused import update_operands
from helios_device import helios

from alpha import backend_helios_loss, backend_helios_matmul, backend_helios_update, rng
from alpha.backend import Backend, Heads
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_kernels import read_bundle
from alpha.backend_helios_loss import GRADIENT_SCALES
from alpha.backend_primitives import RandomKey
from alpha.backend_updates import AdamControl

Values = npt.NDArray[Any]

PRECISIONS = ("f32", "f16", "bf16")
ROUNDING = {"f32": 5e-6, "f16": 2e-3, "bf16": 1.6e-2}
"""What a result may be off by, relative to its largest element, when it or an operand is stored so."""


def normal(*shape: int, stream: int = 0) -> Values:
    return rng.normal(int(np.prod(shape)), 5, stream).reshape(shape).astype(np.float32)


def stored(backend: Helios, values: Values, element: str) -> HeliosArray:
    """An array of this element with the values rounded."""
    array = backend.new(values.shape, element)
    backend.copy_into(array, backend.from_numpy(values))
    return array


def read(backend: Helios, array: HeliosArray) -> Values:
    return backend.to_numpy(array).astype(np.float64)


def check(backend: Helios, results: Any, wanted: Any, tolerance: float) -> None:
    for index, (got, want) in enumerate(zip(results, wanted, strict=True)):
        error = np.abs(read(backend, got) - want).max(initial=0.0) / np.abs(want).max(initial=1e-30)
        assert error < tolerance, f"result {index}"


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "element"),
    [*((width, "f32") for width in (3, 16, 30, 100, 768, 1027, 4096)), (96, "f16"), (5, "f16"), (96, "bf16")],
)
def test_norms_of_any_width(width: int, element: str) -> None:
    backend, exact = helios(), Composition()
    for rows in (1, 21 if width > 1000 else 150):
        x, dy = (stored(backend, normal(rows, width, stream=stream), element) for stream in (1, 2))
        vectors = normal(width, stream=3), normal(width, stream=4)
        weight, bias = map(backend.from_numpy, vectors)
        exact_weight, exact_bias = (each.astype(np.float64) for each in vectors)

        y, saved = backend.layer_norm(x, weight, bias, 1e-5, training=True)
        want, exact_saved = exact.layer_norm(read(backend, x), exact_weight, exact_bias, 1e-5, training=True)
        assert y.element == element
        check(backend, [y], [want], ROUNDING[element])
        gradients = backend.layer_norm_backward(dy, saved)
        check(backend, gradients, exact.layer_norm_backward(read(backend, dy), exact_saved), ROUNDING[element])

        y, saved = backend.rms_norm(x, weight, 1e-5, training=True)
        want, exact_saved = exact.rms_norm(read(backend, x), exact_weight, 1e-5, training=True)
        check(backend, [y], [want], ROUNDING[element])
        gradients = backend.rms_norm_backward(dy, saved)
        check(backend, gradients, exact.rms_norm_backward(read(backend, dy), exact_saved), ROUNDING[element])


def test_the_heads_of_queries_and_keys_are_normalized_where_they_lie() -> None:
    backend, exact = helios(), Composition()
    values, dy, weight = normal(2, 5, 8, 16), normal(2, 5, 2, 16, stream=1), normal(16, stream=2)
    heads = backend.narrow(backend.from_numpy(values), 2, 4, 2)
    y, saved = backend.rms_norm(heads, backend.from_numpy(weight), 1e-5, training=True)
    assert saved.rows.array is heads, "it was copied"
    gradients = backend.rms_norm_backward(backend.from_numpy(dy), saved)
    want, exact_saved = exact.rms_norm(values[:, :, 4:6].astype(np.float64), weight.astype(np.float64), 1e-5, True)
    check(backend, [y, *gradients], [want, *exact.rms_norm_backward(dy.astype(np.float64), exact_saved)], 5e-6)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("vocabulary", [65, 3000])
def test_the_loss_in_chunks_and_in_every_precision(
    vocabulary: int, large: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, exact = helios(precision), Composition()
    monkeypatch.setattr(backend_helios_loss, "CHUNK_BYTES", 4 * vocabulary * 19)
    for name in ("CHUNK_MULTIPLE", "TILED_CHUNK_MULTIPLE"):
        monkeypatch.setattr(backend_helios_loss, name, 8)
    if large:
        monkeypatch.setattr(backend_helios_matmul, "_HALF_OPERATIONS", 0)
    x, weight = normal(70, 16), 0.3 * normal(vocabulary, 16, stream=1)
    targets = (definitions.uniform(70, 5, 2) * (vocabulary + 1) - 1).astype(np.int32)
    targets[::7] = -1
    operands = backend.from_numpy(x), backend.from_numpy(weight), backend.from_numpy(targets)
    loss, saved = backend.cross_entropy(*operands, 5.0, training=True)
    gradients = backend.cross_entropy_backward(backend.from_numpy(np.array(0.5, np.float32)), saved)
    plain, _ = backend.cross_entropy(*operands, 5.0)
    exact_operands = x.astype(np.float64), weight.astype(np.float64), targets
    want, exact_saved = exact.cross_entropy(*exact_operands, 5.0, training=True)
    wanted = want, *exact.cross_entropy_backward(np.array(0.5), exact_saved), want
    check(backend, [loss, *gradients, plain], wanted, ROUNDING[precision])


def test_chunks_without_matrix_units_are_whole_tiles() -> None:
    """Of 96 rows; and of 128, with a vocabulary of 50,304 logits in float32."""
    backend = helios()

    def losses() -> HeliosArray:
        x, weight = backend.empty((2000, 8)), backend.empty((50304, 8))
        return backend.cross_entropy(x, weight, backend.zeros((2000,), np.int32), training=True)[0]

    first = next(each for each in backend.trace(losses)[1] if each.kernel.name == "cross_entropy")
    assert first.arguments["rows"] == 1152


def test_each_row_that_takes_a_workgroup_has_one() -> None:
    backend = helios()

    def losses() -> HeliosArray:
        x, weight = backend.empty((300, 8)), backend.empty((20000, 8))
        return backend.cross_entropy(x, weight, backend.zeros((300,), np.int32), training=True)[0]

    (found,) = (each for each in backend.trace(losses)[1] if each.kernel.name == "cross_entropy")
    assert (found.constants["LANES"], found.groups) == (found.constants["THREADS"], (300, 1, 1))


def test_small_probabilities_count_in_half_precision() -> None:
    """With equal logits each of 50,000 probabilities is 2e-5, which float16 stores with an error of 0.1 %."""
    backend = helios("f16")
    vocabulary = 50_000
    x, weight = backend.from_numpy(np.ones((1, 4), np.float32)), backend.zeros((vocabulary, 4))
    _, saved = backend.cross_entropy(x, weight, backend.from_numpy(np.array([7], np.int32)), training=True)
    dloss = backend.from_numpy(np.array(1.0, np.float32))
    _, dweight = backend.cross_entropy_backward(dloss, saved)
    values = backend.to_numpy(dweight)
    np.testing.assert_allclose(np.delete(values, 7, 0), 1 / vocabulary, rtol=5e-4)
    assert GRADIENT_SCALES["f16"] > 1


def test_a_target_that_is_no_token_gives_no_loss() -> None:
    backend = helios()
    x, weight = backend.from_numpy(normal(3, 4)), backend.from_numpy(normal(7, 4))
    loss, _ = backend.cross_entropy(x, weight, backend.from_numpy(np.array([1, 7, 2], np.int32)))
    assert np.isnan(backend.to_numpy(loss))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_loss_and_norm(value: float) -> None:
    backend = helios()
    x = normal(5, 8)
    x[3, 2] = value
    operands = backend.from_numpy(x), backend.from_numpy(normal(7, 8)), backend.from_numpy(np.arange(5, dtype=np.int32))
    loss, saved = backend.cross_entropy(*operands, training=True)
    dx, _ = backend.cross_entropy_backward(backend.from_numpy(np.array(1.0, np.float32)), saved)
    assert not np.isfinite(backend.to_numpy(loss))
    assert not np.isfinite(backend.to_numpy(backend.sum_of_squares(dx)))


# --- elementwise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_elementwise_operations_on_half_storage(element: str) -> None:
    backend, exact = helios(), Composition()
    x = stored(backend, normal(2, 5, 3, 8), element)
    for kind in ("gelu", "swiglu"):
        y, saved = backend.activation(x, kind, training=True)
        want, exact_saved = exact.activation(read(backend, x), kind, training=True)
        dy = stored(backend, normal(*want.shape, stream=1), element)
        dx = backend.activation_backward(dy, saved)
        assert (y.element, dx.element) == (element, element)
        check(backend, [y, dx], [want, exact.activation_backward(read(backend, dy), exact_saved)], ROUNDING[element])
    tables, weight = (normal(5, 4, stream=2), normal(5, 4, stream=3)), normal(8, stream=4)
    heads = Heads(1, 1, (backend.from_numpy(weight),) * 2, 1e-5, tuple(map(backend.from_numpy, tables)))
    parts = backend.split_heads(x, heads)
    check(
        backend, parts, exact.split_heads(read(backend, x), Heads(1, 1, (weight,) * 2, 1e-5, tables)), ROUNDING[element]
    )
    assert {each.element for each in parts} == {element}
    step = np.array([3], np.int32)
    dropped = backend.dropout(x, 0.25, RandomKey(1, 2, backend.from_numpy(step)))
    check(backend, [dropped], [exact.dropout(read(backend, x), 0.25, RandomKey(1, 2, step))], ROUNDING[element])


def test_dropout_uses_all_bits_of_its_seed_and_the_values_of_numpy() -> None:
    backend, exact = helios(), Composition()
    x, step, seed = normal(1003), np.array([77], np.int32), (5 << 40) + 12345
    dropped = backend.to_numpy(
        backend.dropout(backend.from_numpy(x), 0.5, RandomKey(seed, 9, backend.from_numpy(step)))
    )
    assert np.array_equal(dropped, exact.dropout(x, 0.5, RandomKey(seed, 9, step)))


# --- updates ----------------------------------------------------------------------------------------------------------


def control(backend: Backend, accept: bool) -> AdamControl:
    numbers = (backend.from_numpy(np.array([value], np.float32)) for value in (0.01, 0.5, 0.1, 0.05))
    rate, scale, correction1, correction2 = numbers
    return AdamControl(rate, scale, backend.from_numpy(np.array([accept])), correction1, correction2)


UPDATES = {name: update_operands(name) for name in backend_helios_update.UPDATES}


def test_every_update_is_a_method_with_a_kernel() -> None:
    kernels = {name for name, _ in read_bundle().kernels if name.endswith(("_update", "decayed_step"))}
    assert {"adamw_update", "lion_update", "sgd_update", "decayed_step"} <= set(UPDATES) == kernels


def updated(backend: Backend, operation: str, arrays: list[Values], accept: bool = True) -> list[Values]:
    """Parameter, gradient and state after an update."""
    placed = [backend.from_numpy(each) for each in arrays]
    getattr(backend, operation)(*placed, control(backend, accept), **UPDATES[operation][1])
    return [backend.to_numpy(each) for each in placed]


@pytest.mark.parametrize("operation", UPDATES)
@pytest.mark.parametrize("size", [1, 3, 4, 1003])
def test_updates_reach_the_last_element_of_any_size(size: int, operation: str) -> None:
    arrays = [np.abs(normal(size, stream=stream)) for stream in range(UPDATES[operation][0])]
    got = updated(helios(), operation, arrays)
    wanted = updated(Composition(), operation, [each.astype(np.float64) for each in arrays])
    for each, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(each, want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("operation", UPDATES)
def test_a_refused_update_changes_no_bit(operation: str) -> None:
    arrays = [normal(103, stream=stream) for stream in range(UPDATES[operation][0])]
    arrays[1][:] = np.nan
    for before, after in zip(arrays, updated(helios(), operation, arrays, accept=False), strict=True):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("operation", UPDATES)
def test_parameters_that_are_not_contiguous_are_updated_too(operation: str) -> None:
    backend, count = helios(), UPDATES[operation][0]
    arrays = [np.abs(normal(6, 5, stream=stream)) for stream in range(count)]
    placed = [backend.transpose(backend.from_numpy(np.ascontiguousarray(each.T)), (1, 0)) for each in arrays]
    getattr(backend, operation)(*placed, control(backend, True), **UPDATES[operation][1])
    for each, want in zip(placed, updated(Composition(), operation, arrays), strict=True):
        np.testing.assert_allclose(backend.to_numpy(each), want, rtol=3e-6, atol=1e-7)


def test_a_sum_of_squares_of_many_elements_is_exact_to_the_last_bits() -> None:
    backend, x = helios(), normal(1_000_003)
    total = float(backend.to_numpy(backend.sum_of_squares(backend.from_numpy(x)))[0])
    assert abs(total / np.vdot(x.astype(np.float64), x) - 1) < 2e-7


# --- the same bits ----------------------------------------------------------------------------------------------------


def _layer_norm_gradients(backend: Helios) -> list[HeliosArray]:
    x, weight = backend.from_numpy(normal(700, 96)), backend.from_numpy(normal(96, stream=1))
    _, saved = backend.layer_norm(x, weight, weight, 1e-5, training=True)
    return [each for each in backend.layer_norm_backward(x, saved) if each is not None]


def _loss_gradients(backend: Helios) -> list[HeliosArray]:
    x, weight = backend.from_numpy(normal(300, 16)), backend.from_numpy(normal(500, 16, stream=1))
    targets = backend.from_numpy((np.arange(300) % 500).astype(np.int32))
    loss, saved = backend.cross_entropy(x, weight, targets, training=True)
    return [loss, *backend.cross_entropy_backward(backend.from_numpy(np.array(1.0, np.float32)), saved)]


def _sum_of_squares(backend: Helios) -> list[HeliosArray]:
    return [backend.sum_of_squares(backend.from_numpy(normal(200_001)))]


@pytest.mark.parametrize("results", [_layer_norm_gradients, _loss_gradients, _sum_of_squares])
def test_sums_have_the_same_bits_each_time(results: Callable[[Helios], list[HeliosArray]]) -> None:
    backend = helios()
    first = [backend.to_numpy(each).tobytes() for each in results(backend)]
    for _ in range(3):
        assert [backend.to_numpy(each).tobytes() for each in results(backend)] == first
