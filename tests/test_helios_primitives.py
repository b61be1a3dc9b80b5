"""What the table of backend operations does not ask of the primitives on the Vulkan device: half-precision elements,
many axes, shapes that take several dispatches, and equal bits."""

import math
from typing import Any

import definitions
import numpy as np
import pytest
from helios_device import helios

from alpha import rng
from alpha.backend_checked import CheckedBackend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios
from alpha.backend_helios_array import BFLOAT16, HeliosArray
from alpha.backend_primitives import RandomKey

HALVES = {"f16": 2.0**-11, "bf16": 2.0**-8}
"""The relative error of rounding to each element."""


@pytest.fixture
def backend() -> Helios:
    return helios()


def normal(*shape: int, stream: int = 0) -> np.ndarray:
    return rng.normal(math.prod(shape), 5, stream).reshape(shape).astype(np.float32)


def half(backend: Helios, values: np.ndarray, element: str) -> HeliosArray:
    if not backend.device_info.features >= {"float16"}:
        pytest.skip("THIS DEVICE HAS NO 16-BIT FLOATS")
    return backend.cast_element(backend.from_numpy(values), element)


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, by the bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("shape", [(3, 8), (5, 7)])
def test_elements_of_half_precision_are_rounded_to_nearest(backend: Helios, shape: tuple[int, ...]) -> None:
    values = normal(*shape)
    values.reshape(-1)[:4] = 1.00390625, 1.01171875, np.inf, np.nan  # two ties of bfloat16
    assert np.array_equal(backend.to_numpy(half(backend, values, "f16")), values.astype(np.float16), equal_nan=True)
    wanted = rounded_to_bfloat16(values)
    wanted.reshape(-1)[3] = np.nan
    result = half(backend, values, "bf16")
    assert np.array_equal(backend.to_numpy(result), wanted, equal_nan=True)
    assert result.dtype == BFLOAT16
    assert backend.zeros(result.shape, result.dtype).element == "bf16"
    assert CheckedBackend(backend, CpuRef(), "bf16").cast(backend.from_numpy(wanted), BFLOAT16).element == "bf16"
    back = backend.cast(result, np.float32)
    assert back.element == "f32"
    assert np.array_equal(backend.to_numpy(back), wanted, equal_nan=True)


@pytest.mark.parametrize("width", [8, 7, 1])
@pytest.mark.parametrize("element", HALVES)
def test_primitives_take_elements_of_half_precision(backend: Helios, element: str, width: int) -> None:
    values, others = normal(6, width), normal(6, width, stream=1)
    x, y = half(backend, values, element), half(backend, others, element)
    a, b = (backend.to_numpy(each).astype(np.float32) for each in (x, y))
    ids = np.array([5, 0, 2, 2], np.int32)
    columns = np.arange(6, dtype=np.int32) % width
    on_device = backend.from_numpy(ids)
    results = {
        "add": (backend.add(x, y), a + b),
        "by column": (backend.multiply(backend.transpose(x, (1, 0)), backend.transpose(y, (1, 0))), (a * b).T),
        "number": (backend.subtract(x, 0.5), a - 0.5),
        "mixed": (backend.add(x, backend.from_numpy(others)), a + others),
        "exp": (backend.exp(x), np.exp(a)),
        "where": (backend.where(backend.greater(x, y), x, 0.0), np.where(a > b, a, 0)),
        "sum": (backend.sum(x, (0,)), a.sum(0)),
        "sum of rows": (backend.sum(x, (1,)), a.sum(1)),
        "max": (backend.max(x, (0, 1)), a.max()),
        "gather_rows": (backend.gather_rows(x, on_device), a[ids]),
        "scatter_add_rows": (
            backend.scatter_add_rows(on_device, backend.narrow(x, 0, 0, 4), 6),
            np.stack([a[:4][ids == row].sum(0) for row in range(6)]),
        ),
        "pick": (backend.pick(x, backend.from_numpy(columns)), a[np.arange(6), columns]),
        "concatenate": (backend.concatenate([x, y], 1), np.concatenate([a, b], 1)),
    }
    for name, (result, wanted) in results.items():
        assert result.element == ("f32" if name in ("mixed", "scatter_add_rows") else element), name
        error = np.abs(backend.to_numpy(result) - wanted).max() / np.abs(wanted).max()
        assert error <= HALVES[element], name


def test_more_axes_than_a_kernel_takes(backend: Helios) -> None:
    values = normal(2, 3, 2, 3, 2, 3, 2)
    axes = (6, 1, 4, 3, 2, 5, 0)
    x = backend.transpose(backend.from_numpy(values), axes)
    assert np.array_equal(backend.to_numpy(backend.add(x, 1.0)), values.transpose(axes) + np.float32(1))
    row = normal(3, 1, 3, 1, 3, 1, stream=1)
    total = backend.add(backend.from_numpy(values), backend.from_numpy(row))
    assert np.array_equal(backend.to_numpy(total), values + row)
    target = backend.from_numpy(np.zeros(values.transpose(axes).shape, np.float32))
    backend.copy_into(target, x)
    assert np.array_equal(backend.to_numpy(target), values.transpose(axes))
    for reduced in ((0, 2, 4, 6), (1, 3, 5), (0, 6)):
        wanted = values.sum(reduced)
        result = backend.to_numpy(backend.sum(backend.from_numpy(values), reduced))
        assert np.allclose(result, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(30_000, 3), (3, 30_000), (70, 4100), (200, 1000), (300_001,), (1, 1)])
def test_reductions_of_any_proportions(backend: Helios, shape: tuple[int, ...]) -> None:
    values = normal(*shape)
    x = backend.from_numpy(values)
    for axes in ((0,), (-1,), tuple(range(len(shape)))):
        exact = values.astype(np.float64).sum(axes)
        scale = np.abs(values).astype(np.float64).sum(axes).max()
        total = backend.to_numpy(backend.sum(x, axes))
        assert np.abs(total - exact).max() <= 1e-6 * scale, axes
        assert np.array_equal(backend.to_numpy(backend.sum(x, axes)), total), axes
        assert np.array_equal(backend.to_numpy(backend.max(x, axes)), values.max(axes)), axes


def test_a_maximum_with_nan_is_nan(backend: Helios) -> None:
    values = normal(70, 65)
    values[3, 5] = np.nan
    x = backend.from_numpy(values)
    for axes in ((0,), (1,), (0, 1)):
        assert np.array_equal(backend.to_numpy(backend.max(x, axes)), values.max(axes), equal_nan=True)
    for name in ("maximum", "minimum"):
        for operands in ((x, 0.0), (0.0, x)):
            result = backend.to_numpy(getattr(backend, name)(*operands))
            assert np.array_equal(np.isnan(result), np.isnan(values))


def test_a_maximum_of_nothing_is_refused(backend: Helios) -> None:
    with pytest.raises(ValueError, match="no maximum"):
        backend.max(backend.from_numpy(np.zeros((3, 0), np.float32)), (1,))


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, 3e38, -3e38, 1e-30, -1e-30, 0.0, np.nan])
def test_functions_of_extremes(backend: Helios, extreme: float) -> None:
    values = np.array([extreme, 1.0], np.float32)
    for name, result, wanted in _functions(backend, values, values):
        assert np.allclose(result, wanted, rtol=3e-7, atol=2e-38, equal_nan=True), name


@pytest.mark.parametrize("tiny", [1.2e-38, -1.2e-38, 1e-38, -1e-38])
def test_functions_may_take_subnormal_numbers_for_zero(backend: Helios, tiny: float) -> None:
    """Vulkan lets a device do so in any operation; NVIDIA's do: log gives -inf, and small errors stay uncorrected."""
    values = np.array([tiny, 1.0], np.float32)
    flushed = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)
    for kept, zero in zip(*(_functions(backend, values, each) for each in (values, flushed)), strict=True):
        name, result, _ = kept
        assert any(np.allclose(result, each[2], rtol=1e-6, atol=2e-38, equal_nan=True) for each in (kept, zero)), name


def _functions(backend: Helios, values: Any, reference: Any) -> list[tuple[str, Any, Any]]:
    """Functions by name, with their results for `values` on the device and for `reference` in numpy."""
    x = backend.from_numpy(values)
    found = []
    with np.errstate(all="ignore"):
        for name in ("exp", "log", "sqrt", "tanh", "sign", "absolute", "isfinite"):
            found.append((name, backend.to_numpy(getattr(backend, name)(x)), getattr(np, name)(reference)))
        for divisor in (2.0, 0.0, np.inf):
            result = backend.to_numpy(backend.divide(x, divisor))
            found.append((f"divided by {divisor}", result, reference / np.float32(divisor)))
    return found


def test_integers_are_exact_and_only_among_themselves(backend: Helios) -> None:
    values = np.array([16_777_217, -5, 7], np.int32)
    x = backend.from_numpy(values)
    assert backend.to_numpy(backend.add(x, 2)).tolist() == (values + 2).tolist()
    assert backend.to_numpy(backend.maximum(x, backend.multiply(x, -1))).tolist() == np.abs(values).tolist()
    assert backend.to_numpy(backend.greater(x, 16_777_216)).tolist() == [True, False, False]
    assert backend.to_numpy(backend.where(backend.greater(x, 0), x, -1)).tolist() == [16_777_217, -1, 7]
    assert backend.to_numpy(backend.cast(backend.from_numpy(np.float32([-1.5, 2.9])), np.int32)).tolist() == [-1, 2]
    assert backend.to_numpy(backend.cast(x, np.float32)).tolist() == [16_777_216, -5, 7]
    assert backend.to_numpy(backend.greater(x, -5.5)).tolist() == [True, True, True]
    assert backend.to_numpy(backend.cast(x, np.bool_)).tolist() == [True, True, True]
    for wrong in (lambda: backend.add(x, 0.5), lambda: backend.exp(x), lambda: backend.sum(x, (0,))):
        with pytest.raises(TypeError, match="cast them first"):
            wrong()
    with pytest.raises(ValueError, match="broadcast"):
        backend.add(x, backend.from_numpy(np.zeros(2, np.float32)))


@pytest.mark.parametrize(
    ("vocabulary", "count", "width"),
    [
        *((96, 2048, 128), (300, 4096, 5), (2, 3000, 1030), (1, 1025, 3), (2048, 9, 12), (7, 100, 300)),
        *((50_304, 5000, 8), (100_000, 3000, 4), (300, 4100, 5), (2, 5000, 1030), (96, 4100, 128), (1, 4097, 3)),
        *((65, 4225, 384), (64, 4097, 388), (65, 4159, 384)),
    ],
)
def test_rows_are_added_in_the_order_in_which_they_stand(
    backend: Helios, vocabulary: int, count: int, width: int
) -> None:
    uniform = definitions.uniform(count, 3, vocabulary)
    ids = (vocabulary * uniform**2).astype(np.int32)  # small ids are frequent
    rows = normal(count, width)
    operands = backend.from_numpy(ids), backend.from_numpy(rows)
    result = backend.to_numpy(backend.scatter_add_rows(*operands, vocabulary))
    wanted = np.zeros((vocabulary, width))
    np.add.at(wanted, ids, rows.astype(np.float64))
    assert np.abs(result - wanted).max() <= 1e-6 * np.bincount(ids).max()
    assert np.array_equal(backend.to_numpy(backend.scatter_add_rows(*operands, vocabulary)), result)


def test_ids_out_of_range_touch_no_other_memory(backend: Helios) -> None:
    table = normal(4, 3)
    x, ids = backend.from_numpy(table), backend.from_numpy(np.array([-7, 2, 1 << 30], np.int32))
    assert np.array_equal(backend.to_numpy(backend.gather_rows(x, ids)), table[[0, 2, 3]])
    assert np.array_equal(backend.to_numpy(backend.pick(backend.narrow(x, 0, 0, 3), ids)), table[[0, 1, 2], [0, 2, 2]])
    summed = backend.to_numpy(backend.scatter_add_rows(ids, backend.narrow(x, 0, 0, 3), 4))
    assert np.array_equal(summed, [table[0], np.zeros(3), table[1], table[2]])


@pytest.mark.parametrize(
    ("variable", "value", "submitted"),
    [
        ("ALPHA_ADAPTIVE_SYNC_PENDING_THRESHOLD", 256, [False] * 4),
        ("ALPHA_ADAPTIVE_SYNC_PENDING_THRESHOLD", 2, [True] * 4),  # an upload and an addition each
        ("ALPHA_ADAPTIVE_SYNC_PENDING_THRESHOLD", 4, [False, True] * 2),
        ("ALPHA_ADAPTIVE_SYNC_DEFERRED_THRESHOLD", 1, [True] * 4),
        ("ALPHA_ADAPTIVE_SYNC_DEFERRED_THRESHOLD", 2, [False, True] * 2),
    ],
)
def test_operations_and_values_are_collected_up_to_a_threshold(
    variable: str, value: int, submitted: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(value))
    backend = Helios(helios().device)
    calls: list[int] = []
    submit = backend.submit

    def counted(programs: Any) -> int:
        calls.append(len(programs))
        return submit(programs)

    monkeypatch.setattr(backend, "submit", counted)
    seen, results = [], []
    for _ in submitted:
        results.append(backend.add(backend.from_numpy(np.ones(1 << 18, np.float32)), 1.0))
        seen.append(bool(calls))
        calls.clear()
    assert seen == submitted
    assert all(np.all(backend.to_numpy(each) == 2.0) for each in results)


def test_the_memory_in_use_is_known(backend: Helios) -> None:
    used, budget = backend.memory_in_use()
    assert 0 < used <= budget


def test_random_bits_are_those_of_rng(backend: Helios) -> None:
    step = backend.from_numpy(np.array([2_000_000_000], np.int32))
    for count, seed, stream in ((1, 1, 2), (100_003, (7 << 32) + 5, 0xFFFFFFFF)):
        result = backend.random_uint16((count,), RandomKey(seed, stream, step))
        assert np.array_equal(backend.to_numpy(result), rng.random_uint16(count, seed, stream, 2_000_000_000))


def test_parts_that_lie_together_are_joined_without_a_copy(backend: Helios) -> None:
    x = backend.from_numpy(normal(2, 6))
    parts = [backend.narrow(x, 1, start, 2) for start in (0, 2, 4)]
    assert backend.concatenate(parts, 1).storage is x.storage
    assert backend.concatenate(parts[::-1], 1).storage is not x.storage
