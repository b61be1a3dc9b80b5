"""Inference of the reference backend, with the native sidecar and without it: right, and each row by itself."""

import _ctypes
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from alpha import backend_cpu_ref_sidecar as sidecar
from alpha.backend_cpu_ref import CpuRef
from alpha.errors import AlphaError

SHAPES = ((1, 1), (3, 5), (8, 16), (64, 65), (300, 77), (257, 1000), (1536, 384))
F32 = np.float32


@pytest.fixture(params=["native", "numpy"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CpuRef:
    if request.param == "numpy":
        monkeypatch.setattr(sidecar, "library", lambda: None)
    elif sidecar.library() is None:
        pytest.skip("THE NATIVE SIDECAR WAS NOT BUILT, so its inference is not tested here")
    return CpuRef()


def normal(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, F32)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_row_of_a_linear_layer_is_right_and_has_the_bits_that_it_has_alone(
    backend: CpuRef, is_transposed: bool
) -> None:
    for K, N in SHAPES:
        weight = normal(N, K).T if is_transposed else normal(K, N)
        x, bias, residual = normal(261, K), normal(N), normal(261, N)
        whole, _ = backend.linear(x, weight, bias, residual=residual)
        expected = x.astype(np.float64) @ weight.astype(np.float64) + bias + residual
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5 * np.sqrt(K))
        for first, count in ((0, 1), (7, 2), (250, 11), (100, 6), (3, 19), (5, 20), (60, 33), (1, 260)):
            rows = slice(first, first + count)
            backend.threads = 1 + count % 3
            part, _ = backend.linear(x[rows], weight, bias, residual=residual[rows])
            assert np.array_equal(part, whole[rows]), (K, N, first, count)


def test_a_row_of_a_norm_has_the_bits_that_it_has_alone(backend: CpuRef) -> None:
    for width in (1, 7, 64, 385):
        x, weight, bias = normal(40, width), normal(width), normal(width)
        norms = [backend.layer_norm(x, weight, bias, 1e-5)[0], backend.rms_norm(x, weight, 1e-5)[0]]
        for first, count in ((0, 1), (5, 3), (1, 39)):
            rows = slice(first, first + count)
            again = [backend.layer_norm(x[rows], weight, bias, 1e-5)[0], backend.rms_norm(x[rows], weight, 1e-5)[0]]
            for norm, part in zip(norms, again, strict=True):
                assert np.array_equal(part, norm[rows])


def test_a_row_of_attention_has_the_bits_that_it_has_alone_on_any_number_of_threads(backend: CpuRef) -> None:
    for H, G, D, soft_cap in ((1, 1, 3, 0.0), (6, 2, 24, 5.0), (4, 4, 64, 0.0)):
        keys, values = normal(9, 16, G, D), normal(9, 16, G, D) + 1
        tables = np.array([[3, 5, 1, 8], [2, 7, 4, 6]], np.int32)
        sequences = np.repeat(np.array([0, 1], np.int32), 50)
        positions = np.concatenate([np.arange(50), np.arange(14, 64)]).astype(np.int32)
        query = normal(100, H, D)
        whole = backend.cached_attention(query, keys, values, sequences, positions, tables, soft_cap)
        for first, count in ((0, 1), (49, 2), (17, 16), (3, 97)):
            rows = slice(first, first + count)
            backend.threads = 1 + count % 3
            part = backend.cached_attention(
                query[rows], keys, values, sequences[rows], positions[rows], tables, soft_cap
            )
            assert np.array_equal(part, whole[rows])
        # What is not a number is one in the rows that see it, and in no other.
        keys[1, 5] = np.nan
        spoiled = backend.cached_attention(query, keys, values, sequences, positions, tables, soft_cap)
        sees = (sequences == 0) & (positions >= 37)
        assert np.isnan(spoiled[sees]).all()
        assert np.array_equal(spoiled[~sees], whole[~sees])


def test_products_are_right_where_many_threads_ask_for_them_and_in_a_forked_process(backend: CpuRef) -> None:
    x, weight = normal(3, 300), normal(300, 1000)
    expected = backend.linear(x, weight)[0].tobytes()

    def compute(threads: int) -> bool:
        own = CpuRef(threads)
        return all(own.linear(x, weight)[0].tobytes() == expected for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compute, (1, 2, 3, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads is forked, as training does
        process = os.fork()
    if not process:
        os._exit(not compute(3))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_sidecar_of_another_version_is_an_error_to_act_on(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(_ctypes.__file__)
    monkeypatch.setattr(sidecar, "library_files", lambda: [other])
    sidecar.library.cache_clear()
    try:
        with pytest.raises(AlphaError, match=f"{other.name} is of another version of Alpha; build it again"):
            sidecar.can_do(normal(1))
    finally:
        sidecar.library.cache_clear()
