"""Attention on the Vulkan device, beyond the table of cases: long sequences, wide heads, large tiles."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from backend_case import Values
from helios_device import helios, matrix_units
from test_backend_ops import difference

from alpha import backend_helios_attention as attentions
from alpha import rng
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios
from alpha.backend_helios_array import BFLOAT16, HeliosArray
from alpha.backend_helios_cached import CACHED_THREADS, MANY_ROWS
from alpha.backend_helios_device import Device
from alpha.backend_helios_tiles import FEW_ROWS
from alpha.backend_primitives import RandomKey

HALF_TOLERANCES = {"f16": 3e-3, "bf16": 3e-2}
"""Four products of operands of so many bits one after the other, over the largest magnitude of a result."""


def normal(stream: int, *shape: int) -> Values:
    return rng.normal(int(np.prod(shape)), 1, stream).reshape(shape).astype(np.float32)


def both_halves(
    backend: Backend, shape: tuple[int, ...], soft_cap: float = 0.0, dropout: float = 0.0, segments: bool = False
) -> list[Values]:
    """out, dquery, dkey and dvalue for (B, Tq, H, D, Tk, G); with `segments`, sequences are of documents of 1 to 60."""
    B, Tq, H, D, Tk, G = shape
    shapes = ((B, Tq, H, D), (B, Tk, G, D), (B, Tk, G, D), (B, Tq, H, D))
    query, key, value, dy = (backend.from_numpy(normal(index, *each)) for index, each in enumerate(shapes))
    random = RandomKey(3, 4, backend.from_numpy(np.array([5], np.int32)))
    first_keys = backend.from_numpy(first_keys_of(B, Tq, Tk)) if segments else None
    out, saved = backend.attention(query, key, value, soft_cap, dropout, random, training=True, first_keys=first_keys)
    return [backend.to_numpy(each) for each in (out, *backend.attention_backward(dy, saved))]


def first_keys_of(B: int, Tq: int, Tk: int) -> Values:
    """Where the document of each of the last Tq of Tk tokens begins."""
    lengths = np.array([3, 60, 1, 17, 33, 8, 1, 50])
    begins = [np.cumsum([0, *np.roll(np.tile(lengths, 1 + Tk // 100), sequence)]) for sequence in range(B)]
    places = np.arange(Tk - Tq, Tk)
    return np.stack([each[np.searchsorted(each, places, "right") - 1] for each in begins]).astype(np.int32)


def check(
    backend: Backend,
    shape: tuple[int, ...],
    tolerance: float,
    soft_cap: float = 0.0,
    dropout: float = 0.0,
    segments: bool = False,
) -> None:
    results, wanted = (both_halves(each, shape, soft_cap, dropout, segments) for each in (backend, CpuRef()))
    errors = [difference(got.astype(np.float64), want) for got, want in zip(results, wanted, strict=True)]
    assert max(errors) <= tolerance, errors


def test_long_sequences_that_no_tile_divides() -> None:
    check(helios(), (1, 1000, 1, 16, 1000, 1), 1e-5)
    check(helios(), (1, 37, 2, 16, 500, 1), 1e-5, 2.0, 0.2)


@pytest.mark.parametrize("width", [130, 324, 516])
def test_wide_heads(width: int) -> None:
    """Also those of which no tile fits the device's shared memory."""
    check(helios(), (1, 21, 2, width, 21, 1), 1e-5)
    check(helios(), (1, 5, 2, width, 8, 1), 1e-5, 2.0, 0.2)


def test_small_tiles_where_shared_memory_is_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide heads need them; heads that are less wide are compiled sooner by a driver on the processor."""
    backend, width = helios(), 36
    monkeypatch.setattr(Helios, "tilings_for", lambda self, tilings: tilings)
    usual = backend.attention_divisions((1, 21, 21, 2, 1, width), True, True)
    monkeypatch.setattr(backend.device, "info", dataclasses.replace(backend.device_info, shared_memory=5 << 10))
    scarce = backend.attention_divisions((1, 21, 21, 2, 1, width), True, True)
    assert usual and scarce
    assert all(scarce[each].constants["THREADS"] < usual[each].constants["THREADS"] for each in scarce)
    check(backend, (1, 21, 2, width, 21, 1), 1e-5, 2.0, 0.2)


@pytest.mark.parametrize("width", [512, 516, 1032])
def test_wide_heads_decode(width: int) -> None:
    """A query of each head against few keys and against so many that workgroups share them, and a longer prompt."""
    for queries, keys in ((1, 3), (1, 700), (9, 9)):

        def out(on: Backend, queries: int = queries, keys: int = keys) -> Values:
            shapes = ((1, queries, 2, width), (1, keys, 1, width), (1, keys, 1, width))
            return on.to_numpy(on.attention(*(on.from_numpy(normal(i, *each)) for i, each in enumerate(shapes)))[0])

        assert difference(out(helios()).astype(np.float64), out(CpuRef())) < 2e-6


@pytest.mark.parametrize(
    ("precision", "element", "D", "pages", "soft_cap"),
    [
        ("f32", "f32", 20, 20, 0.0),
        ("f32", "f16", 20, 20, 5.0),
        ("f32", "f16", 64, 20, 0.0),
        ("f32", "f32", 6, 8, 0.0),
        ("f32", "f32", 128, 9, 5.0),
        ("f32", "f32", 260, 9, 0.0),
        *(pytest.param(precision, precision, *each, marks=pytest.mark.matrix_units)
          for precision in ("f16", "bf16") for each in ((16, 8, 0.0), (32, 20, 5.0), (64, 20, 0.0))),
    ],
    ids=str,
)  # fmt: skip
def test_queries_that_read_keys_together_have_the_bits_that_they_have_alone(
    precision: str, element: str, D: int, pages: int, soft_cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of neighbours of one sequence, in order and not, of others between them, and of some that decode; those that are
    fewer have a workgroup or a subgroup each. Against the reference as well."""
    backend, N, H, G = helios(precision), 150, 4, 2
    assert N >= MANY_ROWS
    with_memory(backend, monkeypatch)
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": BFLOAT16}[element]
    S = 12
    sequences = np.repeat(np.array([*range(S - 1, 1, -1), 0, 1, 2, 3, 4], np.int32), [1] * 10 + [60, 1, 2, 60, 17])
    sequences[20:30:3] = 4
    positions = (np.arange(N, dtype=np.int32) * 7) % (16 * pages)
    tables = np.random.default_rng(3).permutation(S * pages).astype(np.int32).reshape(S, pages)
    query, keys, values = (
        backend.to_numpy(backend.cast(backend.cast(backend.from_numpy(normal(index, *shape)), dtype), np.float32))
        for index, shape in enumerate([(N, H, D), (S * pages, 16, G, D), (S * pages, 16, G, D)])
    )
    values *= 2.0**-8  # far from the largest number of 16 bits
    if pages > 16:  # of some rows two parts cancel out, and the third one shows in which order they are put together
        query[::3] = 0.0
        values[tables[:, 8:16]] = -values[tables[:, :8]]
        values[tables[:, 16:]] *= 2.0**-6

    def attended(on: Backend, rows: slice, dtype: Any = np.float32) -> Values:
        arrays = [on.cast(on.from_numpy(each), dtype) for each in (query[rows], keys, values)]
        places = [on.from_numpy(each) for each in (sequences[rows], positions[rows], tables)]
        return on.to_numpy(on.cast(on.cached_attention(*arrays, *places, soft_cap), np.float32))

    together = attended(backend, slice(None), dtype)
    assert (
        difference(together.astype(np.float64), attended(CpuRef(), slice(None)))
        < ({"f32": 2e-6, "f16": 1e-3, "bf16": 8e-3}[element])
    )
    fewer = [slice(row, row + 1) for row in range(0, N, 11)]
    for rows in (*fewer, slice(3, 3 + FEW_ROWS), slice(3, 4 + FEW_ROWS), slice(50, MANY_ROWS + 49)):
        assert attended(backend, rows, dtype).tobytes() == together[rows].tobytes(), rows
    # What is not a number is one in the rows that see it, and in no other; nor has a large number any influence there.
    last = 25  # the last position that it sees is the last one of a fragment, but of no larger piece
    spoiled = int(positions[last])
    sees = (sequences == 0) & (positions >= spoiled)
    assert sees[32:48].any() and not sees[32:48].all(), "rows of one workgroup differ"
    for number in (np.nan, np.inf, 6e4):
        values[tables[0, spoiled // 16], spoiled % 16] = number
        again = attended(backend, slice(None), dtype)
        assert not np.isnan(number) or np.isnan(again[sees]).all()
        if precision != "f32":
            assert not np.isinf(number) or not np.isfinite(again[sees]).any()
            alone = (slice(row, row + 1) for row in (last, *np.flatnonzero(sees)[::5]))
            for rows in (*alone, slice(20, 21 + FEW_ROWS), slice(32, 48 + FEW_ROWS)):
                np.testing.assert_array_equal(attended(backend, rows, dtype), again[rows], str((number, rows)))
        assert again[~sees].tobytes() == together[~sees].tobytes(), number
        rows = slice(32, 48 + FEW_ROWS)
        assert attended(backend, rows, dtype)[~sees[rows]].tobytes() == together[rows][~sees[rows]].tobytes(), number


def with_memory(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 64 take 37 KB of shared memory on matrix units; lavapipe says that it has 32, and gives more."""
    info = backend.device_info
    enough = max(48 << 10, info.shared_memory)
    monkeypatch.setattr(backend.device, "info", dataclasses.replace(info, shared_memory=enough))


IN_PARTS = ["attention_combine"]


@pytest.mark.parametrize(
    ("precision", "D", "N", "S", "can_choose", "kernels"),
    [
        ("f32", 16, MANY_ROWS, 2, True, ["attention_cached_rows", *IN_PARTS]),
        ("f32", 16, MANY_ROWS, MANY_ROWS, True, ["attention_cached", *IN_PARTS]),  # each may be of its own sequence
        ("f32", 16, MANY_ROWS - 1, 2, True, ["attention_cached", *IN_PARTS]),
        ("f32", 16, MANY_ROWS, 2, False, ["attention_cached", *IN_PARTS]),  # subgroups may be of different sizes
        *(pytest.param("f16", *each, marks=pytest.mark.matrix_units) for each in (
            (16, MANY_ROWS, 2, True, ["attention_cached_matrix_rows"]),
            (64, MANY_ROWS, 2, True, ["attention_cached_matrix_rows"]),
            (32, MANY_ROWS, MANY_ROWS, True, ["attention_cached_matrix_subgroup", *IN_PARTS]),
            (32, FEW_ROWS + 1, 2, True, ["attention_cached_matrix_subgroup", *IN_PARTS]),
            (16, FEW_ROWS, 2, True, ["attention_cached_matrix", *IN_PARTS]),
            (16, 1, 1, True, ["attention_cached_matrix", *IN_PARTS]),
            (16, 1, 1, False, ["attention_cached", *IN_PARTS]),
            (8, MANY_ROWS, 2, True, ["attention_cached_rows", *IN_PARTS]),
            (128, 1, 1, True, ["attention_cached", *IN_PARTS]),
        )),
    ],
    ids=str,
)  # fmt: skip
def test_which_kernel_attends_to_the_cache(
    precision: str, D: int, N: int, S: int, can_choose: bool, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows read keys together where they are mostly of prompts; matrix units put parts together at once there."""
    backend = helios(precision)
    with_memory(backend, monkeypatch)
    info = backend.device_info
    if "matrix" in kernels[0]:
        matrix_units(backend)
    features = (info.features - {"subgroup_size_control"}) | ({"subgroup_size_control"} if can_choose else set())
    monkeypatch.setattr(backend.device, "info", dataclasses.replace(info, features=features))
    query, keys = (
        backend.zeros(shape, {"f32": np.float32, "f16": np.float16}[precision])
        for shape in ((N, 2, D), (9 * S, 16, 1, D))
    )
    places = [backend.zeros(shape, np.int32) for shape in ((N,), (N,), (S, 9))]
    _, dispatches, _ = backend.trace(lambda: backend.cached_attention(query, keys, keys, *places))
    made = [each for each in dispatches if each.kernel.name.startswith("attention_")]
    assert [each.kernel.name for each in made] == kernels
    assert made[0].constants["SUBGROUP_SIZE"] == (info.subgroup_size if can_choose else 0)


@pytest.mark.matrix_units
def test_queries_that_lie_anywhere_are_read_from_where_matrix_units_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read eight numbers at a time."""
    backend = helios("f16")
    matrix_units(backend)
    flat = backend.cast(backend.from_numpy(normal(1, 4 + 2 * 2 * 16)), np.float16)
    query = backend.reshape(backend.narrow(flat, 0, 4, 2 * 2 * 16), (2, 2, 16))
    keys, values = (backend.cast(backend.from_numpy(normal(each, 9, 16, 1, 16)), np.float16) for each in (2, 3))
    places = [backend.from_numpy(np.zeros((2,), np.int32)), backend.from_numpy(np.array([30, 9], np.int32))]
    tables = backend.from_numpy(np.arange(9, dtype=np.int32)[None])

    def attended(query: HeliosArray) -> HeliosArray:
        return backend.cached_attention(query, keys, values, *places, tables)

    found = [backend.to_numpy(attended(each)).tobytes() for each in (query, backend.add(query, 0.0))]
    assert found[0] == found[1]
    _, dispatches, _ = backend.trace(lambda: attended(query))
    [made] = [each for each in dispatches if each.kernel.name.startswith("attention_cached")]
    assert made.kernel.name == "attention_cached_matrix"
    given = made.arguments["query"]
    assert isinstance(given, HeliosArray) and given.offset % 8 == 0


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((16, 128, 128, 4, 4, 32), (64, 64, 64)),
        ((64, 256, 256, 6, 6, 64), (64, 64, 128)),
        ((1, 64, 64, 4, 4, 32), (32, 32, 32)),
    ],
)
def test_tiles_in_registers_leave_room_for_two_workgroups(shape: attentions.Dimensions, rows: tuple[int, ...]) -> None:
    """quickstart's, chars10m's, and so few that the smallest are taken."""
    features = helios().device_info.features | {"cooperative_matrix_f16", "cooperative_matrix_2"}
    shapes = ((16, 16, 16, "f16", "f16", "f32", "f32"),)
    info = dataclasses.replace(
        helios().device_info, shared_memory=48 << 10, kind="discrete", subgroup_size=32, features=features,
        cooperative_matrices=shapes,
    )  # fmt: skip
    backend = Helios.__new__(Helios)
    backend.device, backend.precision = cast(Device, SimpleNamespace(info=info)), "f16"
    divisions = backend.attention_divisions(shape, False, True)
    assert divisions is not None
    assert tuple(divisions[each].rows for each in ("forward", "key", "query")) == rows


@pytest.mark.parametrize("shared_memory", [16 << 10, 48 << 10])
def test_the_width_of_heads_that_kernels_take_follows_from_shared_memory(shared_memory: int) -> None:
    info = dataclasses.replace(helios().device_info, shared_memory=shared_memory, kind="discrete")
    backend = Helios.__new__(Helios)
    backend.device, backend.precision = cast(Device, SimpleNamespace(info=info)), "f32"
    for training in (False, True):
        fits = [
            backend.attention_divisions((1, 9, 9, 1, 1, width), False, training) is not None
            for width in range(4, 1028, 4)
        ]
        assert fits == sorted(fits, reverse=True), "up to a width"
        assert fits[128 // 4]
        assert not fits[-1]


def test_large_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor is given small ones otherwise."""
    monkeypatch.setattr(Helios, "tilings_for", lambda self, tilings: tilings)
    check(helios(), (2, 70, 2, 8, 75, 1), 1e-5, 2.0, 0.2)
    check(helios(), (2, 150, 1, 8, 160, 1), 1e-5, segments=True)


def test_threads_with_several_fours_of_keys_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tiling = attentions.Tiling(threads=64, columns=8, rows=2, fours=2)
    monkeypatch.setattr(attentions, "TILINGS", dict.fromkeys(attentions.TILINGS, (tiling,)))
    monkeypatch.setattr(Helios, "tilings_for", lambda self, tilings: tilings)
    check(helios(), (1, 40, 2, 8, 140, 1), 1e-5, 2.0, 0.2, segments=True)


def test_tilings_leave_no_thread_without_a_part_of_a_result() -> None:
    info = dataclasses.replace(helios().device_info, shared_memory=48 << 10, kind="discrete")
    backend = Helios.__new__(Helios)
    backend.device, backend.precision = cast(Device, SimpleNamespace(info=info)), "f32"
    threads_across = []
    for width in (32, 64):
        divisions = backend.attention_divisions((64, 256, 256, 6, 6, width), False, True)
        assert divisions is not None
        key, query = (divisions[each].constants for each in ("key", "query"))
        threads_across.append((key["THREADS"] // key["COLUMN_THREADS"], query["COLUMN_THREADS"]))
    assert threads_across == [(8, 8), (16, 16)]


@pytest.mark.parametrize(
    ("precision", "in_registers"),
    [("f32", False), *(pytest.param("f16", each, marks=pytest.mark.matrix_units) for each in (True, False))],
)
def test_no_bit_of_a_document_depends_on_others(
    monkeypatch: pytest.MonkeyPatch, precision: str, in_registers: bool
) -> None:
    backend = helios(precision)
    if not in_registers:
        monkeypatch.setattr(Helios, "_in_registers", lambda self, *_: None)
    arrays = [normal(index, 1, 150, 2, 8) for index in range(4)]
    first_keys = first_keys_of(1, 150, 150)
    own = first_keys[0] == 64  # 17 tokens between others

    def results() -> list[Values]:
        query, key, value, dy = map(backend.from_numpy, arrays)
        first = backend.from_numpy(first_keys)
        out, saved = backend.attention(query, key, value, training=True, first_keys=first)
        return [backend.to_numpy(each) for each in (out, *backend.attention_backward(dy, saved))]

    before = results()
    for each in arrays:
        each[:, ~own] = 100 * each[:, ~own] + 3
    for old, new in zip(before, results(), strict=True):
        assert np.array_equal(old[:, own], new[:, own])
        assert not np.array_equal(old[:, ~own], new[:, ~own])


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_what_comes_later_changes_no_bit(precision: str) -> None:
    backend = helios(precision)
    query, key, value = (normal(index, 1, 70, 2, 8) for index in range(3))
    changed = 41

    def out() -> Values:
        arrays = [backend.from_numpy(each) for each in (query, key, value)]
        return backend.to_numpy(backend.attention(*arrays, training=True)[0])

    before = out()
    for each in (query, key, value):
        each[:, changed:] = 100 * each[:, changed:] + 3
    after = out()
    assert np.array_equal(before[:, :changed], after[:, :changed])
    assert not np.array_equal(before[:, changed:], after[:, changed:])


def test_one_query_against_many_keys_is_divided_among_workgroups() -> None:
    backend, reference = helios(), CpuRef()
    positions = np.array([1499, 0, 255, 256, 700], np.int32)
    tables = np.arange(100, dtype=np.int32)[::-1][None]

    def out(on: Backend, rows: slice = slice(None)) -> Values:
        query, keys, values = (normal(0, 5, 4, 8)[rows], normal(1, 100, 16, 2, 8), normal(2, 100, 16, 2, 8))
        operands = (query, keys, values, np.zeros(5, np.int32)[rows], positions[rows], tables)
        return on.to_numpy(on.cached_attention(*map(on.from_numpy, operands), 3.0))

    assert tables.size * 16 > 2 * CACHED_THREADS
    together = out(backend)
    assert difference(together.astype(np.float64), out(reference)) < 2e-6
    for row in range(5):
        assert np.array_equal(out(backend, slice(row, row + 1)), together[row : row + 1])


def test_gradients_lie_side_by_side() -> None:
    backend = helios()
    B, T, H, D = 1, 5, 4, 8
    query, dy = (backend.from_numpy(normal(index, B, T, H, D)) for index in range(2))
    key = backend.from_numpy(normal(2, B, T, 2, D))
    _, saved = backend.attention(query, key, key, training=True)
    gradients = backend.attention_backward(dy, saved)
    packed = backend.concatenate(gradients, 2)
    assert packed.storage is gradients[0].storage
    assert packed.shape == (B, T, H + 4, D)


def test_no_matrix_of_queries_by_keys_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = helios()
    sizes: list[int] = []
    new: Callable[..., object] = Helios.new

    def noted(self: Helios, shape: tuple[int, ...], element: str) -> object:
        sizes.append(int(np.prod(shape)))
        return new(self, shape, element)

    monkeypatch.setattr(Helios, "new", noted)
    monkeypatch.setattr(attentions, "QUERY_PARTS_BYTES", 0)
    both_halves(backend, (1, 300, 1, 16, 300, 1))
    assert 0 < max(sizes) <= 3 * 300 * 16


@pytest.mark.parametrize("shape", [(2, 70, 4, 16, 70, 2), (1, 33, 2, 20, 90, 1)])
def test_gradients_of_queries_from_tiles_of_keys_and_by_themselves(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With documents that share a sequence, too, some of whose tiles of keys no query of another sees."""
    backend = helios()
    for most, kernel in ((attentions.QUERY_PARTS_BYTES, "attention_query_sums"), (0, "attention_backward_query")):
        monkeypatch.setattr(attentions, "QUERY_PARTS_BYTES", most)
        for segments in (False, True):
            check(backend, shape, 1e-5, 2.0, 0.2, segments=segments)
        query, key, value, dy = (backend.from_numpy(normal(index, 1, 5, 1, 8)) for index in range(4))
        saved = backend.attention(query, key, value, training=True)[1]
        dispatches = backend.trace(lambda saved=saved, dy=dy: backend.attention_backward(dy, saved)[0])[1]
        assert kernel in [each.kernel.name for each in dispatches]


@pytest.mark.parametrize("precision", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("shape", "soft_cap", "dropout", "segments"),
    [
        ((2, 70, 4, 16, 70, 2), 0.0, 0.0, False),
        ((1, 33, 2, 40, 90, 1), 2.0, 0.2, False),
        ((1, 100, 1, 64, 100, 1), 0.0, 0.1, False),
        ((2, 150, 2, 16, 160, 1), 0.0, 0.1, True),
    ],
)
def test_half_precision(
    precision: str, shape: tuple[int, ...], soft_cap: float, dropout: float, segments: bool
) -> None:
    check(helios(precision), shape, HALF_TOLERANCES[precision], soft_cap, dropout, segments)


def test_two_blocks_of_queries_to_a_subgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are many workgroups."""
    monkeypatch.setattr(attentions, "FEW_WORKGROUPS", 0)
    check(helios("f16"), (2, 70, 2, 16, 75, 1), HALF_TOLERANCES["f16"], 2.0, 0.2, segments=True)


@pytest.mark.matrix_units
@pytest.mark.parametrize(
    ("shape", "soft_cap", "dropout", "blocks", "stages", "segments", "own_delta"),
    [
        ((1, 21, 2, 16, 37, 1), 2.0, 0.2, 1, 2, False, True),
        ((1, 37, 2, 10, 37, 2), 0.0, 0.0, 2, 1, False, False),
        ((2, 150, 2, 16, 150, 1), 0.0, 0.0, 1, 2, True, False),
        ((2, 131, 2, 10, 140, 1), 2.0, 0.2, 2, 1, True, True),
    ],
)
def test_scores_in_registers(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    soft_cap: float,
    dropout: float,
    blocks: int,
    stages: int,
    segments: bool,
    own_delta: bool,
) -> None:
    backend = helios("f16")
    if not {"cooperative_matrix_f16", "cooperative_matrix_2"} <= backend.device_info.features:
        pytest.skip("ATTENTION IN REGISTERS IS NOT TESTED: the Vulkan device has no VK_NV_cooperative_matrix2")
    tiles, keys = (attentions.RegisterTiles(2, each, 16, stages) for each in (blocks, 1))
    kernels = {"forward": (tiles,), "key": (keys,), "query": (tiles,)}
    monkeypatch.setattr(attentions, "REGISTER_TILES", kernels)
    monkeypatch.setattr(attentions, "OWN_DELTA_OPERATIONS", 1e9 if own_delta else 0)
    check(backend, shape, HALF_TOLERANCES["f16"], soft_cap, dropout, segments)
    B, T, H, D, Tk, G = shape
    shapes = ((B, T, H, D), (B, Tk, G, D), (B, Tk, G, D), (B, T, H, D))
    arrays = [backend.from_numpy(normal(index, *each)) for index, each in enumerate(shapes)]
    query, key, value, dy = (backend.cast_element(each, "f16") for each in arrays)
    out, saved = backend.attention(query, key, value, training=True)
    _, dispatches, _ = backend.trace(lambda: backend.attention_backward(dy, saved)[0])
    assert ("attention_delta" in {each.kernel.name for each in dispatches}) != own_delta
    results = (out, *backend.attention_backward(dy, saved))
    assert {each.element for each in results} == {"f16"}  # as the operands
    reference = CpuRef()
    query, key, value, dy = (backend.to_numpy(each).astype(np.float32) for each in (query, key, value, dy))
    wanted, saved = reference.attention(query, key, value, training=True)
    pairs = zip(results, (wanted, *reference.attention_backward(dy, saved)), strict=True)
    errors = [difference(backend.to_numpy(got).astype(np.float64), want) for got, want in pairs]
    assert max(errors) <= HALF_TOLERANCES["f16"], errors


@pytest.mark.matrix_units
def test_matrix_units_that_only_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VK_NV_cooperative_matrix2 scores pass through shared memory."""
    monkeypatch.setattr(Helios, "_in_registers", lambda self, *_: None)
    check(helios("f16"), (1, 37, 2, 10, 37, 2), HALF_TOLERANCES["f16"], 2.0, 0.2)
    check(helios("f16"), (1, 70, 1, 10, 72, 1), HALF_TOLERANCES["f16"], segments=True)
