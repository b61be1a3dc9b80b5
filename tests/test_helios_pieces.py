"""Float32 products on matrix units, of operands in two pieces of float16: as exact as without, for all numbers."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helios_device import helios_in_pieces
from test_training_step import make_step, run_step

from alpha import backend_helios_pieces, rng
from alpha.backend import INDEPENDENT_ROWS
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_matmul import NOTHING, Epilogue
from alpha.backend_helios_pieces import PIECES, PieceProducts, pays
from alpha.backend_helios_planner import Dispatch
from alpha.backend_helios_tiles import PIECES as PIECE_TILES
from alpha.backend_helios_tiles import (
    Division,
    Hardware,
    Problem,
    Tile,
    choose,
    division_of,
    fits,
    threads,
    tiles_for,
)
from alpha.config import ModelConfig

Values = npt.NDArray[np.float32]

H200 = Hardware(32, 49152, 1024, (16, 16, 16), 132)
EXACT = 5e-7
"""The largest error, relative to the sum of magnitudes; operands in float16 alone make 1e-4 of it."""


def normal(*shape: int, stream: int = 0) -> Values:
    return rng.normal(int(np.prod(shape)), 7, stream).reshape(shape).astype(np.float32)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Helios:
    return helios_in_pieces(monkeypatch)


def division(backend: Helios, rows: int, columns: int, depth: int, splits: int = 1) -> Division:
    """A tile as small as any, so that results of the tests have several, and sums several slices."""
    assert backend.units is not None and backend.units.fragment is not None
    m, n, k = backend.units.fragment
    problem = Problem(1, rows, columns, depth, 16, 16, pieces=PIECES)
    made = division_of(Tile("matmul_matrix", 2 * m, 2 * n, 2 * k, 2, 2), splits, problem)
    assert fits(made.tile, problem, backend.units) and (made.splits > 1) == (splits > 1)
    return made


def product(
    backend: Helios,
    a: Values,
    b: Values,
    layout: str = "nn",
    splits: int = 1,
    epilogue: Epilogue = NOTHING,
    **options: Any,
) -> HeliosArray:
    """a @ b in pieces, of operands that lie transposed where `layout` says t."""
    found = []
    for values, lies in zip((a, b), layout, strict=True):
        (pieces,) = backend.divided(backend.from_numpy(np.ascontiguousarray(values.T) if lies == "t" else values))
        found.append(backend.swapped(pieces) if lies == "t" else pieces)
    ways = division(backend, len(a), b.shape[1], len(b), splits)
    return backend.product(found[0], found[1], None, epilogue, forced=ways, **options)


def exact(values: Values) -> Any:
    return values.astype(np.float64)


def errors(got: npt.NDArray[Any], a: Values, b: Values) -> Any:
    """Relative to the sum of magnitudes."""
    return (got - exact(a) @ exact(b)) / (exact(np.abs(a)) @ exact(np.abs(b)))


KINDS: dict[str, Callable[[Values, Values], tuple[Any, Any]]] = {
    "normal": lambda a, b: (a, b),
    "positive": lambda a, b: (np.abs(a), np.abs(b)),
    "rows of many sizes": lambda a, b: (
        a * 2.0 ** np.linspace(-20, 0, len(a))[:, None],
        b * 2.0 ** np.linspace(0, -20, len(b))[:, None],
    ),
    "gradients": lambda a, b: (1e-8 * a, 1e4 * b),
    "far apart": lambda a, b: (1e30 * a, 1e-30 * b),
}


@pytest.mark.matrix_units
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layout", "shape"), [("nn", (64, 40, 96)), ("nt", (40, 72, 120)), ("tn", (40, 24, 200))])
def test_products_in_pieces_are_as_exact_as_those_of_float32(
    backend: Helios, kind: str, layout: str, shape: tuple[int, int, int]
) -> None:
    rows, columns, depth = shape
    a, b = (each.astype(np.float32) for each in KINDS[kind](normal(rows, depth), normal(depth, columns, stream=1)))
    of_pieces = np.abs(errors(backend.to_numpy(product(backend, a, b, layout)), a, b))
    whole = np.zeros((rows, columns), np.float32)
    for left, right in zip(a.T, b, strict=True):  # one after the other; a GPU may add up parts, each less wrong
        whole = (whole + exact(left)[:, None] * exact(right)).astype(np.float32)
    of_float32 = np.abs(errors(whole, a, b))
    assert 0 < of_pieces.max() <= min(of_float32.max(), EXACT)
    assert of_pieces.mean() <= of_float32.mean()


@pytest.mark.matrix_units
@pytest.mark.parametrize("shape", [(33, 45, 29), (1, 7, 5)])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
def test_lines_of_any_length_are_read(backend: Helios, layout: str, shape: tuple[int, int, int]) -> None:
    rows, columns, depth = shape
    a, b = normal(rows, depth), normal(depth, columns, stream=1)
    assert np.abs(errors(backend.to_numpy(product(backend, a, b, layout)), a, b)).max() < EXACT


@pytest.mark.matrix_units
@pytest.mark.parametrize("splits", [1, 3])
def test_bias_activation_residual_and_sums_of_columns_ride_along(backend: Helios, splits: int) -> None:
    rows, columns, depth = 40, 72, 136
    a, b, bias, residual = normal(rows, depth), normal(depth, columns, stream=1), normal(columns), normal(rows, columns)
    before, sums = backend.new((rows, columns), "f32"), backend.new((columns,), "f32")
    epilogue = Epilogue(backend.from_numpy(bias), "silu", before, backend.from_numpy(residual))
    got = product(backend, a, b, "tn", splits, epilogue, scale=0.5, column_sums=sums)
    inner = 0.5 * (exact(a) @ exact(b)) + bias
    np.testing.assert_allclose(backend.to_numpy(before), inner, atol=1e-5, rtol=0)
    np.testing.assert_allclose(backend.to_numpy(got), inner / (1 + np.exp(-inner)) + residual, atol=1e-5, rtol=0)
    np.testing.assert_allclose(backend.to_numpy(sums), exact(b).sum(0), atol=EXACT * np.abs(b).sum(0).max(), rtol=0)


@pytest.mark.matrix_units
def test_an_operand_of_zeros_gives_zeros(backend: Helios) -> None:
    for a, b in ((np.zeros((8, 24)), normal(24, 8)), (normal(8, 24), np.zeros((24, 8)))):
        got = backend.to_numpy(product(backend, a.astype(np.float32), b.astype(np.float32)))
        assert not got.any()


@pytest.mark.matrix_units
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("left", [True, False])
def test_what_is_not_finite_stays_so_and_spoils_nothing_else(backend: Helios, value: float, left: bool) -> None:
    a, b = normal(40, 24), normal(24, 40, stream=1)
    wanted = exact(a) @ exact(b)
    if left:
        a[3, 5] = value
        spoilt: Any = np.s_[3]
    else:
        b[5, 3] = value
        spoilt = np.s_[:, 3]
    got = backend.to_numpy(product(backend, a, b))
    assert not np.isfinite(got[spoilt]).any()
    got[spoilt] = wanted[spoilt]
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.matrix_units
@pytest.mark.parametrize("size", [2.0**-126, 2.0**-112, 1e-8, 65504.0, 65536.0, 3e38])
def test_the_largest_and_the_smallest_numbers(backend: Helios, size: float) -> None:
    a, b = np.full((8, 16), size, np.float32), np.full((16, 8), 0.5, np.float32)
    a[0] /= 16.0 if size > 1 else 1.0
    a[1] = 0.0
    a[2, 2:] = 0.0
    with np.errstate(over="ignore"):
        wanted = (exact(a) @ exact(b)).astype(np.float32)
    np.testing.assert_allclose(backend.to_numpy(product(backend, a, b)), wanted, rtol=5e-7)


@pytest.mark.matrix_units
def test_the_pieces_are_those_of_the_description(backend: Helios) -> None:
    """Of odd lengths, and of a view that is not contiguous."""
    for shape in ((5, 7), (6, 8)):
        x = normal(*shape) * np.float32(300.0)
        (pieces,) = backend.divided(backend.transpose(backend.from_numpy(np.ascontiguousarray(x.T)), (1, 0)))
        stored = backend.to_numpy(pieces.stored)
        exponent = int(stored[-2:].view(np.int32)[0])
        assert exponent == int(np.floor(np.log2(np.abs(x).max()))) - 14
        scaled = x / np.float32(2.0**exponent)
        first = scaled.astype(np.float16)
        second = (np.float32(2048) * (scaled - first.astype(np.float32))).astype(np.float16)
        assert np.array_equal(stored[:-2].reshape(shape[0], 2, shape[1]), np.stack([first, second], 1))


def kernels_of(monkeypatch: pytest.MonkeyPatch, backend: Helios) -> list[str]:
    """The kernels of what is dispatched from now on, by name and variant."""
    found: list[str] = []
    add = backend._add

    def note(dispatch: Dispatch) -> None:
        found.append(f"{dispatch.kernel.name}.{dispatch.kernel.variant}")
        add(dispatch)

    monkeypatch.setattr(backend, "_add", note)
    return found


IN_PIECES = "matmul_matrix.f32_pieces"


@pytest.mark.matrix_units
@pytest.mark.parametrize("activation", ["", "gelu"])
def test_a_linear_layer_in_pieces(backend: Helios, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_helios_pieces, "pays", lambda problem: True)
    kernels, reference = kernels_of(monkeypatch, backend), CpuRef()
    values = [normal(2, 20, 24), normal(24, 32, stream=1), normal(32), normal(2, 20, 32, stream=2)]
    results = []
    backends: tuple[Any, ...] = backend, reference
    for each in backends:
        x, weight, bias, residual = map(each.from_numpy, values)
        y, saved = each.linear(x, weight, bias, activation, residual, training=True)
        results.append([y, *each.linear_backward(residual, saved)])
        alone, _, _ = each.linear_backward(residual, saved, need_weight=False)
        results[-1].append(alone)
    assert kernels.count(IN_PIECES) == 4
    assert kernels.count("pieces.f32") == 2 + 3 + 2
    assert kernels.count("largest_magnitude.f32") == 2 + 1 + 2  # those of the forward pass are kept
    assert not any(each.startswith("matmul_tiled") for each in kernels)
    for got, wanted in zip(*results, strict=True):
        expected = reference.to_numpy(wanted)
        np.testing.assert_allclose(backend.to_numpy(got), expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.matrix_units
def test_a_gradient_of_weights_is_in_pieces_where_its_own_operands_may_be(
    backend: Helios, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of the input has others, which may be smaller."""
    monkeypatch.setattr(backend_helios_pieces, "pays", lambda problem: problem.rows == 40)
    kernels = kernels_of(monkeypatch, backend)
    values = [normal(40, 24), normal(24, 32, stream=1), normal(40, 32, stream=2)]
    x, weight, dy = map(backend.from_numpy, values)
    _, saved = backend.linear(x, weight, training=True)
    kernels.clear()
    dx, dweight, _ = backend.linear_backward(dy, saved)
    assert kernels.count(IN_PIECES) == 1 and kernels.count("pieces.f32") == 2
    np.testing.assert_allclose(backend.to_numpy(dx), values[2] @ values[1].T, atol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(dweight), values[0].T @ values[2], atol=1e-5)


@pytest.mark.matrix_units
def test_few_rows_without_training_are_left_to_ordinary_units(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the engine has the same bits among however many."""
    monkeypatch.setattr(backend_helios_pieces, "pays", lambda problem: True)
    kernels = kernels_of(monkeypatch, backend)
    weight = backend.from_numpy(normal(8, 16))
    for rows, is_in_pieces in ((1, False), (INDEPENDENT_ROWS, False), (INDEPENDENT_ROWS + 1, True)):
        kernels.clear()
        backend.linear(backend.from_numpy(normal(rows, 8)), weight)
        assert (IN_PIECES in kernels) == is_in_pieces, rows
    kernels.clear()
    backend.matmul(backend.from_numpy(normal(600, 8)), weight)
    assert IN_PIECES not in kernels


@pytest.mark.matrix_units
def test_a_training_step_in_pieces_is_that_of_the_reference(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_helios_pieces, "pays", lambda problem: True)
    kernels = kernels_of(monkeypatch, backend)
    model = ModelConfig(block=32, layers=2, dim=32, heads=2)
    tokens = (np.arange(2 * 33, dtype=np.int32).reshape(1, 2, 33) * 7) % 13
    steps = [make_step(model, backend=each) for each in (CpuRef(), backend)]
    for _ in range(2):
        wanted, got = (run_step(step, tokens, 0.01).read() for step in steps)
        assert got["loss"] == pytest.approx(wanted["loss"], rel=2e-6)
        assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=2e-5)
    assert kernels.count(IN_PIECES) >= 2 * 4 * 3 + 3
    assert not any(each.startswith("matmul_tiled") for each in kernels)


@pytest.mark.matrix_units
def test_pieces_are_not_kept_from_forward_to_backward(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(block=64, layers=8, dim=64, heads=2)
    plain = make_step(model, backend=backend).plan(8)["activations"]
    monkeypatch.setattr(backend_helios_pieces, "pays", lambda problem: True)
    assert make_step(model, backend=backend).plan(8)["activations"] < 1.05 * plain


# --- without a device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "wanted"),
    [
        (8192, 768, 768, True),
        (8192, 768, 3072, True),
        (8192, 50304, 768, True),
        (768, 3072, 8192, True),
        (8192, 50257, 768, False),  # lines that are no multiple of what is read at a time
        (2048, 512, 128, False),
        (2048, 384, 384, False),
        (16, 3072, 768, False),
        (65536, 4096, 56, False),  # less exact than float32
    ],
)
def test_large_products_pay(rows: int, columns: int, depth: int, wanted: bool) -> None:
    assert pays(Problem(1, rows, columns, depth)) == wanted


def test_a_batch_of_products_has_no_pieces() -> None:
    assert not pays(Problem(2, 8192, 768, 3072))


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "tile", "splits"),
    [
        (8192, 3072, 768, "128x128x32/2x4", 1),
        (8192, 768, 3072, "128x128x32/2x4", 1),
        (8192, 768, 768, "128x128x32/2x4", 1),
        (768, 3072, 8192, "128x128x32/2x4", 6),
        (640, 50304, 768, "128x128x32/2x4", 1),
    ],
)
@pytest.mark.parametrize("accompanied", [False, True])
def test_the_fastest_measured_division_is_chosen(
    rows: int, columns: int, depth: int, tile: str, splits: int, accompanied: bool
) -> None:
    division = choose(Problem(1, rows, columns, depth, 16, 16, pieces=2), H200, accompanied=accompanied)
    assert (division.tile.name, division.splits) == (tile, splits)


def test_tiles_of_pieces_fit_what_they_need() -> None:
    """Shared memory for both pieces, registers for as many totals as sums, an even number of fragments along a sum."""
    problem = Problem(1, 8192, 768, 3072, 16, 16, pieces=2)
    assert tiles_for(problem, H200) == list(PIECE_TILES)
    for tile in PIECE_TILES:
        assert tile.m * tile.n <= 64 * threads(tile, H200)
    assert PIECE_TILES[0] not in tiles_for(problem, dataclasses.replace(H200, shared_memory=32768))
    assert not tiles_for(problem, dataclasses.replace(H200, fragment=(16, 16, 32)))


units_of = PieceProducts.__dict__["units"].func


@pytest.mark.parametrize(
    ("how", "name", "precision", "wanted"),
    [
        ("auto", "NVIDIA H200", "f32", True),
        ("auto", "NVIDIA GeForce RTX 4090", "f32", False),
        ("on", "NVIDIA GeForce RTX 4090", "f32", True),
        ("off", "NVIDIA H200", "f32", False),
        ("on", "NVIDIA H200", "f16", False),
    ],
)
def test_matrix_units_are_used_for_float32_where_they_are_asked_for(
    how: str, name: str, precision: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_SPLIT", how)
    monkeypatch.setattr(backend_helios_pieces, "hardware", lambda info, precision: H200)
    asked = SimpleNamespace(precision=precision, device_info=SimpleNamespace(name=name))
    assert units_of(asked) == (H200 if wanted else None)


@pytest.mark.parametrize("lacking", [{"fragment": None}, {"shared_memory": 16384}, {"fragment": (16, 16, 32)}])
def test_a_device_on_which_no_tile_of_pieces_fits_goes_on_without(
    lacking: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is said where pieces were asked for."""
    monkeypatch.setattr(backend_helios_pieces, "hardware", lambda info, precision: dataclasses.replace(H200, **lacking))
    asked = SimpleNamespace(precision="f32", device_info=SimpleNamespace(name="NVIDIA H200"))
    for how, is_said in (("auto", False), ("on", True)):
        monkeypatch.setenv("ALPHA_SPLIT", how)
        assert units_of(asked) is None
        assert ("ALPHA_SPLIT is on, but NVIDIA H200 has no matrix units" in capsys.readouterr().err) == is_said
