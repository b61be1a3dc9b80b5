"""Newton-Schulz iteration in 16 bits: the matrices are those of the composition, wherever they lie."""

import numpy as np
import pytest
from backend_case import Composition
from helios_device import helios

from alpha import orthogonal, rng
from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_orthogonal import _evenly_apart, _places

LAYER = 16 * 48 + 16 * 16 + 2 * 16 * 40
TOLERANCE = {"f16": 0.01, "bf16": 0.08}


def lying(storage: Storage, starts: list[int], shape: tuple[int, int] = (4, 6), stride: int = 6) -> list[HeliosArray]:
    return [HeliosArray(storage, shape, (stride, 1), "f32", start) for start in starts]


@pytest.mark.parametrize(
    ("starts", "most", "expected"),
    [
        ([7], 9, [((1, 1), (0, 0), 7)]),
        ([0, 100], 9, [((1, 2), (0, 100), 0)]),
        ([0, 6, 12, 100, 106, 112], 9, [((2, 3), (100, 6), 0)]),
        ([0, 6, 12, 100, 106, 112, 200, 206, 212], 7, [((2, 3), (100, 6), 0), ((1, 3), (0, 6), 200)]),
        ([0, 6, 12, 100, 106, 113], 9, [((1, 3), (0, 6), 0), ((1, 2), (0, 6), 100), ((1, 1), (0, 0), 113)]),
        ([0, 6, 100, 112], 9, [((1, 2), (0, 6), 0), ((1, 2), (0, 12), 100)]),
        ([0, 6, 12], 1, [((1, 1), (0, 0), 0), ((1, 1), (0, 0), 6), ((1, 1), (0, 0), 12)]),
    ],
)
def test_matrices_that_are_evenly_apart_are_one_array(
    starts: list[int], most: int, expected: list[tuple[tuple[int, int], tuple[int, int], int]]
) -> None:
    found = _evenly_apart(lying(Storage(10_000), starts), most)
    assert [(each.shape[:2], each.strides[:2], each.offset) for each in found] == expected
    assert all((each.shape[2:], each.strides[2:]) == ((4, 6), (6, 1)) for each in found)


def test_stacks_are_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpha.backend_helios_orthogonal.STACK", 5 * 24)
    storage = Storage(10_000)
    several = [
        *lying(storage, [0, 24, 48]),
        *lying(storage, [72], (6, 4), 4),
        *lying(storage, [96, 108, 500], stride=12),
    ]
    stacks = orthogonal.stacks(_places(several), 5 * 24)
    assert [[each.shape for each in stack] for stack in stacks] == [
        [(1, 3, 4, 6), (1, 2, 4, 6)], [(1, 1, 6, 4)], [(1, 1, 4, 6)]
    ]  # fmt: skip


@pytest.mark.matrix_units
@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_matrices_of_layers_are_made_orthogonal_where_they_lie(precision: str) -> None:
    backend, exact = helios(precision), Composition()
    if not backend.has_halves:
        pytest.skip("there are no matrix units")
    values = 1e-4 * rng.normal(2 * LAYER + 5, 3, 1)
    values[16 * 48 : 16 * 64] = 0  # a matrix of zeros stays so

    def of_layers(backend, flat):
        for layer in range(2):
            start = layer * LAYER
            for shape, parts in (((16, 48), 3), ((16, 16), 1), ((16, 40), 1), ((40, 16), 1)):
                whole = backend.reshape(backend.narrow(flat, 0, start, shape[0] * shape[1]), shape)
                start += shape[0] * shape[1]
                for part in range(parts):
                    yield backend.narrow(whole, 1, part * shape[1] // parts, shape[1] // parts)

    def program(flat):
        there = backend.zeros(values.shape)
        backend.copy_into(there, flat)
        backend.orthogonalize(list(of_layers(backend, there)), 0.2)
        return there

    wanted = values.copy()
    exact.orthogonalize(list(of_layers(exact, wanted)), 0.2)
    flat = backend.from_numpy(values.astype(np.float32))
    got = backend.to_numpy(program(flat))
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE[precision] * np.abs(wanted).max())
    np.testing.assert_array_equal(got[2 * LAYER :], values[2 * LAYER :].astype(np.float32))
    assert not got[16 * 48 : 16 * 64].any()
    np.testing.assert_array_equal(backend.to_numpy(backend.record(program)(flat)), got)
