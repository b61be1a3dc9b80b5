"""What a training step computes in the native sidecar, of any width: right, and of what is hidden or no number, too."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from alpha import backend_cpu_ref_kernels as kernels
from alpha import backend_cpu_ref_sidecar as sidecar
from alpha import backend_cpu_ref_training as training
from alpha.backend_cpu_ref import CpuRef

WIDTHS = (1, 2, 7, 8, 9, 32, 77, 1024, 1025, 4100)
"""On both sides of a vector's lanes, and of the chunks of sums."""

F32, F64 = np.float32, np.float64


@pytest.fixture(autouse=True)
def _is_built() -> None:
    if sidecar.library() is None:
        pytest.skip("THE NATIVE SIDECAR WAS NOT BUILT, so its training is not tested here")


def normal(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, F32)


def losses(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], soft_cap: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Each row's loss, and 0.5 times its gradients."""
    gradients, out = logits.copy(), np.empty((len(logits), 1), F32)
    training.losses(gradients, ids, np.full(len(logits), 0.5, F32), soft_cap, True, out)
    return out[:, 0], gradients


@pytest.mark.parametrize("soft_cap", [0.0, 15.0, 1000.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_losses_and_their_gradients(soft_cap: float, size: float) -> None:
    for width in WIDTHS:
        logits, ids = normal(5, width) * F32(size), np.arange(5) * 7 % width
        found, gradients = losses(logits, ids, soft_cap)
        exact = logits.astype(F64)
        capped = soft_cap * np.tanh(exact / soft_cap) if soft_cap else exact
        exponentials = np.exp(capped - capped.max(1, keepdims=True))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        chosen = capped[range(5), ids]
        wanted = np.log(exponentials.sum(1)) + capped.max(1) - chosen
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=size * 5e-7 + 1e-7)
        probabilities[range(5), ids] -= 1.0
        slope = 1.0 - (capped / soft_cap) ** 2 if soft_cap else 1.0
        np.testing.assert_allclose(gradients, 0.5 * probabilities * slope, rtol=0, atol=3e-7 + size * 2e-7)


def test_a_loss_of_what_is_no_number_is_none_and_spoils_no_other() -> None:
    for soft_cap in (0.0, 15.0):
        for width in (3, 100):
            logits = normal(4, width)
            before, _ = losses(logits, np.zeros(4, int), soft_cap)
            logits[1, -1], logits[2, 0] = np.nan, np.inf
            found, gradients = losses(logits, np.zeros(4, int), soft_cap)
            assert np.isnan(found[1])
            assert np.isnan(gradients[1]).all()
            assert np.isfinite(found[2]) if soft_cap else np.isnan(found[2])
            assert np.array_equal(found[[0, 3]], before[[0, 3]])


def test_an_id_without_a_row_is_an_error() -> None:
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match="and 10 rows"):
            losses(normal(2, 10), np.array([3, wrong]), 0.0)
        with pytest.raises(IndexError, match="and 10 rows"):
            training.add_rows(normal(10, 3), np.array([3, wrong]), normal(2, 3))


@pytest.mark.parametrize("centered", [False, True])
def test_norms_of_any_width(centered: bool) -> None:
    for width in WIDTHS:
        x, weight, bias, dy = normal(6, width) + 1, normal(width), normal(width), normal(6, width)
        results = [np.empty((6, width), F32) for _ in range(3)] + [np.empty((6, 1), F32), np.empty(width, F32)]
        y, normalized, dx, scale, dweight = results
        training.norm(x, weight, bias, 1e-5, centered, y, normalized, scale)
        training.norm_backward(dy, normalized, scale, weight, centered, dx, dweight)
        exact = x.astype(F64)
        if centered:
            exact -= exact.mean(1, keepdims=True)
        factor = 1.0 / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, exact * factor * weight + bias, rtol=0, atol=1e-5)
        np.testing.assert_allclose(dweight, (dy * exact * factor).sum(0), rtol=0, atol=2e-5)
        dnormalized = dy.astype(F64) * weight
        wanted = dnormalized - exact * factor * (dnormalized * exact * factor).mean(1, keepdims=True)
        if centered:
            wanted -= dnormalized.mean(1, keepdims=True)
        if width > 1:  # of one alone the derivative is nothing but rounding
            np.testing.assert_allclose(dx, wanted * factor, rtol=0, atol=2e-5 * float(factor.max()))


def test_softmax_sees_no_key_behind_its_query() -> None:
    for queries, keys in ((1, 1), (1, 9), (4, 4), (5, 13), (8, 24), (64, 128)):
        scores = normal(3 * queries, keys)
        seen = np.tile(np.arange(keys) <= np.arange(keys - queries, keys)[:, None], (3, 1))
        scores[~seen] = np.nan
        exponentials = scores.copy()
        sums = training.softmax(exponentials, queries)
        wanted = np.where(seen, np.exp(scores.astype(F64) - np.nanmax(scores, 1, keepdims=True)), 0.0)
        np.testing.assert_allclose(exponentials, wanted, rtol=1e-6, atol=0)
        np.testing.assert_allclose(sums, wanted.sum(1, keepdims=True), rtol=1e-6)
        gradients, along = normal(3 * queries, keys), normal(3 * queries, 1)
        found = gradients.copy()
        training.softmax_backward(found, exponentials, along)
        np.testing.assert_allclose(found, (gradients - along) * exponentials, rtol=0, atol=1e-6)


def test_softmax_of_scores_far_apart() -> None:
    scores = np.array([[0.0, -86.0, -88.0, -1e30, -math.inf, -5.0]], F32)
    exponentials = scores.copy()
    sums = training.softmax(exponentials, 1)
    np.testing.assert_allclose(exponentials[0], [1.0, math.exp(-86.0), 0.0, 0.0, 0.0, math.exp(-5.0)], rtol=3e-6)
    assert sums[0, 0] == F32(exponentials.sum())
    scores[0, 3] = np.nan
    assert np.isnan(training.softmax(scores, 1)).all()


def test_rows_are_added_in_order() -> None:
    ids, rows = np.array([2, 0, 2, 2], np.int64), np.array([[1e8, 1.0], [5.0, 6.0], [1.0, 2.0], [-1e8, 3.0]], F32)
    found = CpuRef().scatter_add_rows(ids, rows, 4)
    assert np.array_equal(found, np.array([[5.0, 6.0], [0.0, 0.0], [0.0, 6.0], [0.0, 0.0]], F32))


def test_a_matrix_is_made_orthogonal_whichever_way_it_lies() -> None:
    wide = normal(24, 70)
    for matrix in (wide.copy(), wide.T.copy(), np.asfortranarray(wide)):
        kernels.orthogonalize(matrix, 1.0)
        singular = np.linalg.svd(matrix / math.sqrt(70), compute_uv=False)
        assert 0.6 < singular.min() <= singular.max() < 1.3
