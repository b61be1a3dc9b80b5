"""Every operation of every backend: against plain numpy, against the composition, and for what all of them promise."""

import functools
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Case, Composition, Values
from backend_cases import CASES, ONE_OF_EACH
from helios_device import helios
from replay_backend import ReplayBackend

from alpha import (
    backend_cpu_ref,
    backend_cpu_ref_attention,
    backend_cpu_ref_sidecar,
    backend_cpu_ref_training,
    backend_cpu_ref_updates,
)
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_primitives import Array, RandomKey

FLOAT64_TOLERANCE = 1e-12
FACTORIES: dict[str, Callable[[], Backend]] = {
    "composition": Composition,
    "cpu_ref": CpuRef,
    "cpu_ref_small_blocks": CpuRef,  # so small that the cases cross the borders of blocks
    "cpu_ref_small_parts": CpuRef,  # the same of what the native sidecar does
    "cpu_ref_numpy": CpuRef,  # as where the native sidecar was not built
    "helios": helios,
}
DIVIDED = [case for case in CASES if case.fused or case.name.startswith("matmul")]
SMALL, LARGE = [case for case in DIVIDED if case.size < 5000], [case for case in DIVIDED if case.size > 10_000]
DTYPES = (np.float32, np.float64)

by_backend_and_case = pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case.name}")
        for name in FACTORIES
        for case in {"cpu_ref_small_blocks": SMALL, "cpu_ref_small_parts": SMALL, "cpu_ref_numpy": DIVIDED}.get(
            name, CASES
        )
    ],
    indirect=["backend"],
)


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size that divides the work of the reference backend becomes its cube root."""
    for module in (backend_cpu_ref, backend_cpu_ref_attention, backend_cpu_ref_training, backend_cpu_ref_updates):
        sizes = {name: value for name, value in vars(module).items() if name.isupper() and type(value) is int}
        assert sizes
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, round(value ** (1 / 3)))


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param in ("cpu_ref_small_blocks", "cpu_ref_small_parts"):
        use_small_blocks(monkeypatch)
    if request.param in ("cpu_ref_small_blocks", "cpu_ref_numpy"):
        monkeypatch.setattr(backend_cpu_ref_sidecar, "library", lambda: None)
    return FACTORIES[request.param]()


def difference(got: Values, wanted: Values) -> float:
    """The largest difference, relative to the largest magnitude wanted; infinite where only one is finite."""
    if not wanted.size:
        return 0.0
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return np.inf
    scale = np.abs(wanted[finite]).max(initial=0.0)
    error = np.abs(got[finite] - wanted[finite]).max(initial=0.0)
    return float(error / scale if scale else np.where(error, np.inf, 0.0))


def check(results: Sequence[Values], wanted: Sequence[Values], dtype: npt.DTypeLike, tolerance: float) -> None:
    for index, (got, want) in enumerate(zip(results, wanted, strict=True)):
        assert got.shape == want.shape, f"result {index}"
        if want.dtype != np.float64:
            assert got.dtype.kind == want.dtype.kind, f"result {index}"
            assert np.array_equal(got, want), f"result {index}"
            continue
        assert got.dtype == dtype, f"result {index}"
        error = difference(got.astype(np.float64), want)
        assert error <= tolerance, f"result {index}"


def exactly(values: Sequence[Values]) -> list[Values]:
    """Floating-point operands in float64."""
    return [each.astype(np.float64) if each.dtype == np.float32 else each for each in values]


@functools.cache
def defined(case: Case, dtype: npt.DTypeLike) -> list[Values]:
    assert case.definition is not None
    results = case.definition(*exactly(case.values(dtype)))
    return [np.asarray(each) for each in (results if isinstance(results, list) else [results])]


@functools.cache
def composed(case: Case, dtype: npt.DTypeLike) -> list[Values]:
    backend = Composition()
    arrays = [
        operand.place(backend, values)
        for operand, values in zip(case.operands, exactly(case.values(dtype)), strict=True)
    ]
    return [backend.to_numpy(each) for each in case.program(backend, *arrays)]


@by_backend_and_case
def test_results_are_those_of_the_definition_and_of_the_composition(backend: Backend, case: Case) -> None:
    for dtype in DTYPES[:1] if backend.name == "helios" else DTYPES:
        tolerance = case.tolerance if dtype == np.float32 else min(case.tolerance, FLOAT64_TOLERANCE)
        operands = case.arrays(backend, dtype)
        results = [backend.to_numpy(each) for each in case.program(backend, *operands)]
        if case.definition is not None:
            wanted = defined(case, dtype)
            check(results[: len(wanted)], wanted, dtype, tolerance)
        if case.fused and not isinstance(backend, Composition):
            check(results, composed(case, dtype), dtype, tolerance)
        for operand, values in zip(operands, case.values(dtype), strict=True):
            assert np.array_equal(backend.to_numpy(operand), values, equal_nan=True), "an operand was changed"


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_number_of_threads_changes_no_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    one, two = case.run(CpuRef(threads=1), np.float32), case.run(CpuRef(threads=2), np.float32)
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_the_number_of_threads_changes_no_bit_in_blocks_of_real_size(case: Case) -> None:
    one, two = case.run(CpuRef(threads=1), np.float32), case.run(CpuRef(threads=2), np.float32)
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("K", "N", "transposed"), [(100, 96, False), (64, 65, True), (48, 13, True), (384, 1000, False), (16, 33, False)]
)
def test_no_row_outside_training_depends_on_the_others(K: int, N: int, transposed: bool) -> None:
    backend = CpuRef()
    x = np.random.default_rng(1).standard_normal((700, K), np.float32)
    weight = np.random.default_rng(2).standard_normal((N, K) if transposed else (K, N), np.float32)
    weight = weight.T if transposed else weight

    def results(rows: slice) -> list[Values]:
        part = np.ascontiguousarray(x[rows])
        return [
            backend.linear(part, weight)[0],
            backend.linear(part, weight, None, "gelu")[0],
            backend.layer_norm(part, x[0], x[1], 1e-5)[0],
            backend.rms_norm(part, x[0], 1e-5)[0],
        ]

    everything = results(slice(0, 700))
    for start, count in [
        (0, 1),
        (699, 1),
        (3, 2),
        (5, 3),
        (9, 7),
        (11, 16),
        (100, 65),
        (77, 256),
        (1, 300),
        (255, 400),
    ]:
        rows = slice(start, start + count)
        for alone, all_rows in zip(results(rows), everything, strict=True):
            assert np.array_equal(alone, all_rows[rows])


class Spy:
    """A backend that notes which of its operations are called from outside."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._backend, name)


def test_the_table_covers_every_operation() -> None:
    spy = Spy(CpuRef())
    for case in ONE_OF_EACH:
        case.run(spy, np.float32)  # type: ignore[arg-type]
    operations = {name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")}
    own_tests = {"batch_parts", "memory_in_use", "plan", "record", "record_inference", "replacement"}
    assert operations - spy.called == own_tests | {"shared_zeros", "side_by_side", "thread_choices"}


@pytest.mark.parametrize("make_backend", [Composition, CpuRef, ReplayBackend, helios])
def test_a_recorded_program_does_the_same_with_other_values(make_backend: Callable[[], Backend]) -> None:
    backend = make_backend()
    for case in ONE_OF_EACH:

        def program(*operands: Array, case: Case = case) -> Array:
            """All results one after the other, since a program has one."""
            results = case.program(backend, *operands)
            return backend.concatenate([backend.reshape(each, (math.prod(each.shape),)) for each in results], 0)

        recorded = backend.record(program)
        for variation in (0, 1, 0):
            results = backend.to_numpy(recorded(*case.arrays(backend, np.float32, variation)))
            wanted = backend.to_numpy(program(*case.arrays(backend, np.float32, variation)))
            assert np.array_equal(results, wanted, equal_nan=True), case.name


def test_the_thread_choices_are_powers_of_two_up_to_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, choices in {1: [1], 2: [1, 2], 6: [1, 2, 4, 6], 8: [1, 2, 4, 8]}.items():
        monkeypatch.setattr(backend_cpu_ref, "available_cpus", lambda cpus=cpus: cpus)
        assert CpuRef().thread_choices() == choices
    monkeypatch.setattr(backend_cpu_ref, "startable_threads", lambda most: min(most, 3))
    assert CpuRef().thread_choices() == [1, 2, 4]
    assert Composition().thread_choices() == [1]


@pytest.mark.parametrize(
    ("sequences", "length", "parts"),
    [(8, 32, 1), (8, 64, 2), (8, 256, 2), (1, 4096, 1), (6, 4096, 2), (12, 4096, 4), (64, 256, 8), (7, 1024, 1)],
)
def test_a_batch_is_divided_into_equal_parts_that_are_worth_it(sequences: int, length: int, parts: int) -> None:
    for threads in (1, 2, 64):
        assert CpuRef(threads).batch_parts(sequences, length) == parts
    assert Composition().batch_parts(sequences, length) == 1


@pytest.mark.parametrize("backend", [Composition(), CpuRef(1), CpuRef(2), CpuRef(16)], ids=lambda each: each.name)
def test_parts_side_by_side_read_and_change_shared_arrays(backend: Backend) -> None:
    x, totals = backend.shared_zeros((2048, 300)), backend.shared_zeros((4,), np.float64)
    assert not backend.to_numpy(x).any()
    backend.matmul(x, backend.transpose(x, (1, 0)))  # divided too, so threads may be running before the first part does
    threads = backend.threads

    def work(part: int) -> None:
        product = backend.matmul(backend.multiply(x, float(part)), backend.transpose(x, (1, 0)))
        total = backend.reshape(backend.max(product, (0, 1)), (1,))
        backend.add_into(backend.narrow(totals, 0, part, 1), backend.cast(total, np.float64))

    run = backend.side_by_side(work, 4)
    for repetition in range(1, 4):
        backend.fill(x, float(repetition))
        backend.fill(totals, 0.0)
        run()
        assert backend.to_numpy(totals).tolist() == [300.0 * repetition**2 * part for part in range(4)]
        assert backend.threads == threads


def test_parts_in_other_processes_use_their_share_of_threads() -> None:
    backend = CpuRef(8)
    x, running = backend.shared_zeros((2048, 300)), backend.shared_zeros((2,), np.int64)
    backend.matmul(x, x.T)  # in four parts; starts threads, which a forked process does not have

    def work(part: int) -> None:
        backend.matmul(x, x.T)
        running[part] = threading.active_count()

    backend.side_by_side(work, 2)()
    assert running.min() >= 4


@pytest.mark.parametrize("backend", FACTORIES, indirect=True)
def test_an_array_shares_no_memory_with_numpy(backend: Backend) -> None:
    source = np.arange(6, dtype=np.float32)
    array = backend.from_numpy(source)
    source[:] = 9
    copy = backend.to_numpy(array)
    assert copy.tolist() == [0, 1, 2, 3, 4, 5]
    copy[:] = 9
    assert backend.to_numpy(array).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("backend", FACTORIES, indirect=True)
def test_an_empty_array_has_the_shape_and_dtype_asked_for(backend: Backend) -> None:
    for shape in ((), (3,), (0, 2), (2, 3, 4)):
        for dtype in (np.float32, np.int32, np.bool_, np.float16 if backend.name == "helios" else np.float64):
            array = backend.empty(shape, dtype)
            assert (array.shape, array.dtype) == (shape, dtype)
    assert backend.empty((2,)).dtype == np.float32


@pytest.mark.parametrize("backend", FACTORIES, indirect=True)
def test_an_unknown_activation_is_refused(backend: Backend) -> None:
    x, weight = backend.from_numpy(np.ones((2, 2), np.float32)), backend.from_numpy(np.ones((2, 2), np.float32))
    with pytest.raises((KeyError, ValueError), match="softplus"):
        backend.activation(x, "softplus")
    with pytest.raises((KeyError, ValueError), match="softplus"):
        backend.linear(x, weight, activation="softplus")


@pytest.mark.parametrize("backend", FACTORIES, indirect=True)
def test_the_gradient_of_a_linear_layer_is_written_where_it_is_wanted(backend: Backend) -> None:
    x, weight, dy = (backend.from_numpy(np.ones(shape, np.float32)) for shape in ((4, 3), (3, 2), (4, 2)))
    buffer = backend.zeros((3, 2), x.dtype)
    _, saved = backend.linear(x, weight, training=True)
    assert backend.linear_backward(dy, saved, buffer)[1] is buffer
    assert backend.to_numpy(buffer).tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("backend", FACTORIES, indirect=True)
def test_the_gradient_of_the_output_head_is_written_where_it_is_wanted(backend: Backend) -> None:
    x, weight = (backend.from_numpy(np.ones(shape, np.float32)) for shape in ((4, 3), (2, 3)))
    targets, buffer = backend.from_numpy(np.zeros(4, np.int32)), backend.zeros((2, 3), x.dtype)
    _, saved = backend.cross_entropy(x, weight, targets, training=True)
    assert backend.cross_entropy_backward(backend.from_numpy(np.array(2.0, np.float32)), saved, buffer)[1] is buffer
    assert backend.to_numpy(buffer).tolist() == [[-1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("backend", ["composition", "cpu_ref", "helios"], indirect=True)
def test_dropout_drops_at_its_rate_and_keeps_the_mean(backend: Backend, probability: float) -> None:
    count = 200_000
    step = backend.from_numpy(np.array([5], np.int32))
    ones = backend.from_numpy(np.ones(count, np.float32))
    values = backend.to_numpy(backend.dropout(ones, probability, RandomKey(1, 2, step))).astype(np.float64)
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(float((values == 0).mean()) - probability) < 4 * deviation
    assert abs(float(values.mean()) - 1) < 4 * deviation / (1 - probability)
    assert set(np.unique(values)) == {0.0, float(np.float32(1 / (1 - probability)))}


@pytest.mark.parametrize("backend", ["composition", "cpu_ref", "helios"], indirect=True)
def test_dropout_depends_on_every_part_of_its_key_and_on_nothing_else(backend: Backend) -> None:
    def mask(seed: int, stream: int, step: int) -> Values:
        key = RandomKey(seed, stream, backend.from_numpy(np.array([step], np.int32)))
        return backend.to_numpy(backend.dropout(backend.from_numpy(np.ones(20_000, np.float32)), 0.3, key)) == 0

    first = mask(1, 2, 3)
    assert np.array_equal(mask(1, 2, 3), first)
    for other in (mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4), mask(1 + (1 << 32), 2, 3)):
        both = float((first & other).mean())
        assert abs(both - 0.09) < 4 * math.sqrt(0.09 * 0.91 / 20_000)  # independent: 0.3^2
