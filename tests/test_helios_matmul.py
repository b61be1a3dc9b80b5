"""Matrix products of the Vulkan backend beyond the table of operations: 16-bit operands, every kernel and tile, split
sums, epilogues, batches that no grid can number. `build_scripts/lavapipe-matrix pytest` runs them with matrix units."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helios_device import helios

from alpha import (
    backend_helios_inference,
    backend_helios_linear,
    backend_helios_matmul,
    backend_helios_tiles,
    rng,
)
from alpha.activation import ACTIVATIONS, GATED_ACTIVATIONS
from alpha.backend import INDEPENDENT_ROWS
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_matmul import Epilogue
from alpha.backend_helios_planner import Dispatch
from alpha.backend_helios_tiles import (
    DEFAULT_UNITS,
    MATRIX,
    MOST_FEW_ROWS,
    PROMPT_ROWS,
    TILED,
    Division,
    Hardware,
    Problem,
    Tile,
    candidates,
    choose,
    division_of,
    few_of,
    few_part,
    fits,
    hardware,
    in_parts,
)

Values = npt.NDArray[np.float32]

LAPTOP = Hardware(32, 49152, 1024, (16, 16, 16), 132)
WITHOUT_MATRIX_UNITS = dataclasses.replace(LAPTOP, fragment=None)
TOLERANCE = 2e-6


def normal(*shape: int) -> Values:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def rounded(values: Values) -> Any:
    return values.astype(np.float16).astype(np.float64)


def close(got: HeliosArray | None, wanted: Any, backend: Helios, tolerance: float = TOLERANCE) -> None:
    assert got is not None
    values = backend.to_numpy(got)
    assert values.shape == wanted.shape
    np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max(initial=0.0)))


def stored_as(backend: Helios, values: Values, element: str) -> HeliosArray:
    return backend.from_numpy(values.astype(np.float16) if element == "f16" else values)


@pytest.mark.parametrize(
    ("elements", "layout"),
    [
        (("f32", "f32"), "nn"),
        (("f32", "f16"), "tn"),
        (("f16", "f32"), "nt"),
        (("f16", "f16"), "tn"),
        (("f16", "f16"), "tt"),
    ],
)
@pytest.mark.parametrize("shape", [(64, 64, 64), (37, 45, 29)])
def test_operands_are_rounded_to_sixteen_bits_and_read_as_they_lie(
    shape: tuple[int, int, int], layout: str, elements: tuple[str, str]
) -> None:
    backend = helios("f16")
    rows, columns, depth = shape
    a, b = normal(rows, depth), normal(depth, columns)
    operands = []
    for values, lies, element in zip((a, b), layout, elements, strict=True):
        stored = stored_as(backend, np.ascontiguousarray(values.T if lies == "t" else values), element)
        operands.append(backend.transpose(stored, (1, 0)) if lies == "t" else stored)
    close(backend.matmul(*operands), rounded(a) @ rounded(b), backend)


def test_operands_are_rounded_to_bfloat16() -> None:
    backend = helios("bf16")
    a, b = normal(37, 29), normal(29, 45)
    left, right = (((each.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32) for each in (a, b))
    close(backend.matmul(backend.from_numpy(a), backend.from_numpy(b)), left.astype(np.float64) @ right, backend)


def small_tiles(backend: Helios) -> list[Tile]:
    fragment = backend.hardware.fragment
    kernel = "matmul_matrix" if fragment else "matmul_tiled"
    if fragment is None:
        return [Tile(kernel, 32, 32, 16, 1, 1), Tile(kernel, 32, 64, 8, 1, 2), Tile(kernel, 48, 64, 16, 3, 2)]
    return [
        Tile(kernel, 32, 32, 16, 2, 2),
        Tile(kernel, 16, 32, fragment[2], 1, 2),  # one part to a slice
        Tile(kernel, 32, 16, 32, 2, 1),
    ]


@pytest.mark.parametrize(
    ("precision", "shape", "splits", "indices"),
    [
        ("f32", (70, 33, 100), 1, range(1)),
        ("f32", (64, 96, 128), 3, range(1)),
        ("f16", (64, 96, 128), 1, range(2)),
        ("f16", (70, 33, 100), 1, range(1)),
        ("f16", (70, 33, 100), 3, range(3)),
    ],
)
def test_every_way_to_divide_a_product_gives_it(
    precision: str, shape: tuple[int, int, int], splits: int, indices: range
) -> None:
    backend = helios(precision)
    for tile in small_tiles(backend)[indices.start : indices.stop]:
        divide(backend, tile, shape, splits)


def divide(backend: Helios, tile: Tile, shape: tuple[int, int, int], splits: int) -> None:
    """Run a product with an epilogue in one way, and compare."""
    precision = backend.precision
    rows, columns, depth = shape
    a, b, bias, residual = normal(rows, depth), normal(depth, columns), normal(columns), normal(rows, columns)
    problem = Problem(1, rows, columns, depth)
    assert fits(tile, problem, backend.hardware)
    division = division_of(tile, splits, problem)
    assert (division.splits > 1) == (splits > 1)
    added = backend.from_numpy(residual)
    before = backend.new((rows, columns), precision)
    epilogue = Epilogue(backend.from_numpy(bias), "silu", before, added)
    # The residual is the result's own place.
    backend.product(backend.from_numpy(a), backend.from_numpy(b), added, epilogue, 0.5, division)
    exact = (lambda x: x.astype(np.float64)) if precision == "f32" else rounded
    inner = 0.5 * (exact(a) @ exact(b)) + bias
    sigmoid = 1 / (1 + np.exp(-inner))
    close(added, inner * sigmoid + residual, backend)
    close(before, inner, backend, TOLERANCE if precision == "f32" else 5e-4)


@pytest.mark.matrix_units
@pytest.mark.parametrize(("index", "shape", "splits"), [(0, (64, 96, 128), 1), (1, (70, 33, 100), 3)])
def test_two_workgroups_take_tiles_in_turn(
    index: int, shape: tuple[int, int, int], splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = helios("f16")
    tile = small_tiles(backend)[index]
    if tile.kernel == "matmul_matrix":
        monkeypatch.setattr(backend_helios_matmul, "workgroups", lambda division, *_: (2, 1, division.splits))
    divide(backend, tile, shape, splits)


@pytest.mark.parametrize("precision", [pytest.param("f16", marks=pytest.mark.matrix_units), "bf16"])
def test_results_in_sixteen_bits_are_stored_eight_four_or_one_at_a_time(precision: str) -> None:
    backend = helios(precision)
    tile = small_tiles(backend)[-1]
    for rows, columns, depth in ((64, 96, 32), (70, 44, 32), (70, 33, 20)):
        a, b, bias = (rounded(each) for each in (normal(rows, depth), normal(depth, columns), normal(columns)))
        a, b = (each.astype(np.float16).astype(np.float32) / 8 for each in (a, b))
        c, before = (backend.new((rows, columns), precision) for _ in range(2))
        epilogue = Epilogue(backend.from_numpy(bias.astype(np.float32)), "silu", before)
        division = division_of(tile, 1, Problem(1, rows, columns, depth))
        backend.product(backend.from_numpy(a), backend.from_numpy(b), c, epilogue, forced=division)
        inner = a.astype(np.float64) @ b + bias
        sigmoid = 1 / (1 + np.exp(-inner))
        precise = 1e-3 if precision == "f16" else 1.2e-2
        close(c, inner * sigmoid, backend, precise)
        close(before, inner, backend, precise)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("element", ["f32", "f16"])
def test_a_product_adds_up_the_columns_of_its_right_operand(element: str, splits: int) -> None:
    backend = helios("f16" if element == "f16" else "f32")
    rows, columns, depth = (40, 70, 100) if element == "f32" else (40, 72, 96)
    a, b = normal(depth, rows), normal(depth, columns)
    left, right = backend.transpose(backend.from_numpy(a), (1, 0)), stored_as(backend, b, element)
    problem = Problem(1, rows, columns, depth, b_bits=16 if element == "f16" else 32)
    tile = next(each for each in small_tiles(backend) if fits(each, problem, backend.hardware))
    division = division_of(tile, splits, problem)
    assert (division.splits > 1) == (splits > 1)
    sums = backend.new((columns,), "f32")
    exact = rounded if element == "f16" else np.float64
    close(backend.product(left, right, forced=division, column_sums=sums), exact(a).T @ exact(b), backend)
    close(sums, exact(b).sum(0), backend)


@pytest.mark.parametrize(("activation", "converted"), [
    pytest.param("", False, marks=pytest.mark.matrix_units),
    *((each, False) for each in ACTIVATIONS),
    *((each, True) for each in ("gelu", "geglu")),
])  # fmt: skip
def test_a_linear_layer_in_sixteen_bits(activation: str, converted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference; `converted` also rounds its operands in a pass of their own, as in large products.

    The operands are such that rounding does not change them: relu's slope is 0 or 1, so a sum near 0 to which rounding
    gives another sign would change whole rows of gradients, and rightly so.
    """
    backend, reference = helios("f16"), CpuRef()
    if converted:
        monkeypatch.setattr(backend_helios_matmul, "_HALF_OPERATIONS", 0)
    gates = 2 if activation in GATED_ACTIVATIONS else 1
    # In 16 bits already, so that no value is on the other side of a kink than in the reference.
    x, weight = (rounded(each).astype(np.float32) for each in (normal(2, 21, 24), 0.3 * normal(24, 36)))
    bias = normal(36)
    residual, dy = normal(2, 21, 36 // gates), normal(2, 21, 36 // gates)[::-1].copy()
    results = []
    for each in (backend, reference):
        place = each.from_numpy
        y, saved = each.linear(place(x), place(weight), place(bias), activation, place(residual), True)
        results.append([y, *each.linear_backward(place(dy), saved)])
    for got, wanted in zip(*results, strict=True):
        close(got, reference.to_numpy(wanted), backend, 4e-3)


@pytest.mark.matrix_units
@pytest.mark.parametrize("keeps", [False, True])
def test_layers_write_sixteen_bits_for_each_other(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are matrix units to read them; what goes along residual connections stays float32."""
    backend, reference = helios("f16"), CpuRef()
    monkeypatch.setattr(backend_helios_linear, "KEPT_COLUMNS", 32 if keeps else 31)
    values = [normal(2, 20, 24), normal(24), 0.3 * normal(24, 32), 0.3 * normal(32, 24), normal(2, 20, 24)]
    results = []
    for each in (backend, reference):
        x, scale, first, second, dy = map(each.from_numpy, values)
        normed, norm = each.rms_norm(x, scale, 1e-5, True)
        hidden, first_layer = each.linear(normed, first, activation="gelu", training=True)
        y, second_layer = each.linear(hidden, second, residual=x, training=True)
        added, _ = each.linear(normed, first, residual=hidden)
        if each is backend and backend.has_halves:
            assert second_layer.x_activation == ("" if keeps else "gelu")
        dhidden, dsecond, _ = each.linear_backward(dy, second_layer)
        dnormed, dfirst, _ = each.linear_backward(dhidden, first_layer)
        dx, dscale = each.rms_norm_backward(dnormed, norm)
        results.append([normed, hidden, dhidden, dnormed, added, y, dsecond, dfirst, dx, dscale])
    got, wanted = results
    between = backend.activation_element
    assert between == ("f16" if "cooperative_matrix_f16" in backend.device_info.features else "f32")
    assert [each.element for each in got] == [between] * 5 + ["f32"] * 5
    for each, exactly in zip(got, wanted, strict=True):
        close(each, reference.to_numpy(exactly), backend, 4e-3)


def test_a_gradient_that_is_no_contiguous_array_is_written_too() -> None:
    backend = helios()
    x, weight, dy = normal(6, 5), normal(5, 4), normal(6, 4)
    _, saved = backend.linear(backend.from_numpy(x), backend.from_numpy(weight), training=True)
    target = backend.narrow(backend.zeros((5, 7)), 1, 2, 4)
    _, dweight, _ = backend.linear_backward(backend.from_numpy(dy), saved, target)
    close(dweight, x.T @ dy, backend)
    close(target, x.T @ dy, backend)


@pytest.mark.parametrize("shapes", [((2, 3, 4, 5), (2, 3, 5, 6)), ((7, 4, 5), (5, 6)), ((2, 1, 3, 4, 5), (3, 1, 5, 6)),
                                    ((2, 1, 3, 1, 4, 5), (1, 4, 1, 2, 5, 6))])  # fmt: skip
@pytest.mark.parametrize("most", [65535, 2])
def test_batches_that_a_grid_cannot_number(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = helios()
    monkeypatch.setattr(backend_helios_matmul, "MOST_GROUPS", most)
    a, b = normal(*shapes[0]), normal(*shapes[1])
    close(backend.matmul(backend.from_numpy(a), backend.from_numpy(b)), a.astype(np.float64) @ b, backend)


def test_batches_with_one_right_operand_are_one_product() -> None:
    backend = helios()
    programs = [
        backend.trace(lambda shape=shape: backend.matmul(backend.empty(shape), backend.empty((5, 6))))[1]
        for shape in ((3, 4, 5), (12, 5))
    ]
    assert [each.groups for each in programs[0]] == [each.groups for each in programs[1]]


def test_sums_over_nothing_are_zero() -> None:
    backend = helios()
    result = backend.matmul(backend.from_numpy(normal(3, 0)), backend.from_numpy(normal(0, 5)))
    close(result, np.zeros((3, 5)), backend)


@pytest.mark.parametrize("device", [LAPTOP, WITHOUT_MATRIX_UNITS])
@pytest.mark.parametrize("bits", [16, 32])
def test_every_tile_is_a_candidate_of_a_gpu_and_its_parts_cover_the_sum(device: Hardware, bits: int) -> None:
    problem = Problem(1, 1000, 1000, 5000, bits, bits)
    divisions = list(candidates(problem, device))
    assert {division.tile for division in divisions} == set(MATRIX if device.fragment else TILED)
    for division in divisions:
        assert division.split_depth % division.tile.k == 0
        assert (division.splits - 1) * division.split_depth < problem.depth <= division.splits * division.split_depth
        assert backend_helios_tiles.shared_bytes(division.tile, device) <= device.shared_memory


@pytest.mark.parametrize("need_input", [True, False])
def test_a_recorded_gradient_of_weights_is_accompanied_by_that_of_the_input(
    need_input: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, found = helios(), []

    def chosen(problem: Problem, device: Hardware, part: int, accompanied: bool) -> Division:
        found.append(accompanied)
        return choose(problem, device, part, accompanied)

    x, weight, dy = (backend.from_numpy(normal(*each)) for each in ((40, 8), (8, 12), (40, 12)))

    def gradient() -> HeliosArray:
        _, saved = backend.linear(x, weight, training=True)
        found.clear()
        return backend.linear_backward(dy, saved, need_input=need_input)[1]

    monkeypatch.setattr(backend_helios_matmul, "choose", chosen)
    gradient()
    assert not any(found), "dispatches that are not recorded run one after the other"
    backend.trace(gradient)
    assert sum(found) == need_input


def test_the_longest_product_of_a_round_begins_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what each workgroup has to do, though the longer sum may be divided."""
    backend = helios()
    backend.flush()  # what tests before have left
    made: list[Dispatch] = []
    make_program = backend.make_program

    def making(dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        made.extend(dispatches)
        return make_program(dispatches, repeated)

    monkeypatch.setattr(backend, "make_program", making)
    short, long = (backend.from_numpy(normal(40, each)) for each in (30, 3000))
    for each in (short, long):
        backend.to_numpy(each)
    products = backend.record(
        lambda: backend.add(
            backend.matmul(short, backend.transpose(short, (1, 0))),
            backend.matmul(long, backend.transpose(long, (1, 0))),
        )
    )
    backend.plan(products)
    depths = [each.arguments["depth"] for each in made if "depth" in each.arguments]
    assert depths == [3000, 30]


@pytest.mark.parametrize(("m", "n", "fit"), [(32, 32, True), (16, 32, True), (8, 64, False), (64, 16, False)])
def test_threads_without_matrix_units_lie_in_blocks_of_four_by_eight(m: int, n: int, fit: bool) -> None:
    tile = Tile("matmul_tiled", m, n, 16, 1, 1)
    assert fits(tile, Problem(1, 256, 256, 256), WITHOUT_MATRIX_UNITS) == fit


def test_a_weights_gradient_without_matrix_units_fills_whole_waves() -> None:
    for rows, columns, depth, groups in ((384, 1536, 16384, 528), (384, 384, 16384, 264), (768, 3072, 8192, 768)):
        division = choose(Problem(1, rows, columns, depth), dataclasses.replace(WITHOUT_MATRIX_UNITS, units=132))
        assert division.splits * rows // division.tile.m * columns // division.tile.n == groups


def test_small_results_of_long_sums_are_split_and_large_results_are_not() -> None:
    assert choose(Problem(1, 128, 384, 2048), LAPTOP).splits > 2
    large = choose(Problem(1, 4096, 4096, 4096, 16, 16), LAPTOP)
    assert large.splits == 1
    assert large.tile.m * large.tile.n >= 128 * 128


def test_an_accompanied_sum_leaves_places_to_what_runs_beside_it() -> None:
    alone = {shape: choose(Problem(1, *shape, 16384, 16, 16), LAPTOP).splits for shape in ((384, 1536), (384, 1152))}
    for shape, fewer in (((384, 1536), 3), ((384, 1152), 5), ((4096, 4096), 1)):
        problem = Problem(1, *shape, 16384, 16, 16)
        division = choose(problem, LAPTOP, accompanied=True)
        assert division.splits == fewer
        assert choose(problem, LAPTOP).splits == alone.get(shape, 1) >= fewer
    short = Problem(1, 384, 1536, 2048, 16, 16)
    assert choose(short, LAPTOP, accompanied=True) == choose(short, LAPTOP)


def test_little_shared_memory_makes_tiles_small() -> None:
    small = dataclasses.replace(LAPTOP, shared_memory=16384)
    division: Division = choose(Problem(1, 4096, 4096, 4096), small)
    assert backend_helios_tiles.shared_bytes(division.tile, small) <= 16384


def test_products_are_divided_for_the_device_that_there_is() -> None:
    info = helios().device_info

    def of(multiprocessors: int, kind: str = "discrete") -> Hardware:
        return hardware(dataclasses.replace(info, kind=kind, multiprocessors=multiprocessors), "f32")

    assert [of(each).units for each in (0, 2, 20, 132)] == [DEFAULT_UNITS, 2, 20, 132]
    splits = [choose(Problem(1, 128, 384, 2048), of(each)).splits for each in (2, 20, 132)]
    assert splits == sorted(splits)
    assert splits[0] < splits[-1]
    of_gpu, of_processor = (
        {division.tile.name for division in candidates(Problem(1, 1024, 1024, 1024), of(2, kind))}
        for kind in ("discrete", "cpu")
    )
    assert len(of_gpu) > len(of_processor)


def test_how_products_are_divided_is_shown_once_when_plans_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = helios()
    for level, wanted in ((0, 0), (3, 1)):
        monkeypatch.setattr(backend, "_debug", level)
        for _ in range(2):
            _, dispatches, _ = backend.trace(lambda: backend.matmul(backend.empty((21, 5)), backend.empty((5, 6))))
            assert [each.operations for each in dispatches] == [2 * 21 * 5 * 6]
        assert capsys.readouterr().err.count("[21, 5] by [5, 6]") == wanted


GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "helios_products.json").read_text())


def test_the_plan_of_every_measured_product_is_among_the_fastest() -> None:
    regrets = []
    for measured in GOLDEN["products"]:
        rows, columns, depth, layout, bits = measured["product"]
        a_line, b_line = rows if layout[0] == "t" else depth, depth if layout[1] == "t" else columns
        vectors = [length % (128 // bits) == 0 for length in (a_line, b_line)]
        device = WITHOUT_MATRIX_UNITS if measured["precision"] == "f32" else LAPTOP
        division = str(choose(Problem(1, rows, columns, depth, bits, bits, *vectors), device))
        times: dict[str, float] = measured["microseconds"]
        assert division in times, f"{measured['product']}: {division} is not within 70 % of the fastest"
        regrets.append(times[division] / min(times.values()) - 1)
    assert sum(each > 0.2 for each in regrets) <= 3  # all of 10 to 30 us
    assert sum(regrets) / len(regrets) <= 0.03


@pytest.mark.parametrize("device", [LAPTOP, dataclasses.replace(LAPTOP, fragment=None, units=16)])
@pytest.mark.parametrize(("depth", "columns"), [(768, 2304), (768, 768), (3072, 768), (768, 50257), (64, 65)])
def test_few_rows_are_summed_up_as_one_row_is(device: Hardware, depth: int, columns: int) -> None:
    part = few_part(depth, device)
    ways = set()
    for rows in (1, 2, 3, 16, 17, 32, 64, 100, 511, INDEPENDENT_ROWS):
        problem = Problem(1, rows, columns, depth, 16, 16)
        few = few_of(problem, device, part)
        most = 64 if device.fragment is not None and columns != 50257 and depth != 3072 else 16
        assert (few is not None) == (rows <= most)
        assert few is None or few.in_blocks == (rows > 16)
        for division in in_parts(problem, device, part):
            assert (division.part or division.split_depth) == part or depth <= part
            assert part % division.tile.k == 0
            ways.add(division.splits > 1)
        assert few is None or (few.part == part and few.part * few.parts >= depth)
        assert few is None or few.alone == (device.fragment is not None and columns == 50257)
    assert len(ways) == 1 + (depth > part)


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "tile"),
    [
        (512, 768, 768, "64x64x64/2x2"),
        (512, 2304, 768, "128x96x64/4x2"),
        (512, 3072, 768, "128x96x64/4x2"),
        (512, 768, 3072, "64x64x128/2x2"),
        (64, 50304, 768, "64x128x64/2x4"),
        (128, 50304, 768, "64x128x64/2x4"),
        (32, 50304, 768, "32x64x64/1x2"),
    ],
)
def test_prompts_and_heads_have_the_tiles_that_were_fastest(rows: int, columns: int, depth: int, tile: str) -> None:
    """On an H200, of gpt2-124m; see perf/LOG.md, 2026-11-30 and 2026-12-01."""
    division = choose(Problem(1, rows, columns, depth, 16, 16), LAPTOP, few_part(depth, LAPTOP))
    assert (division.tile.name, division.splits) == (tile, 1)


@pytest.mark.matrix_units
def test_a_norm_is_right_in_a_product_whose_threads_are_no_whole_groups_of_lanes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which find the norm of a row together."""
    backend, folded = helios("f16"), backend_helios_inference.MOST_NORMS
    for depth in (320, 448) if backend.device_info.kind == "cpu" else (320, 1152, 2560):
        stored = rng.normal(depth * 24, 5, 1).reshape(depth, 24).astype(np.float32)
        weight = backend.cast(backend.from_numpy(stored), backend.weight_dtype)
        scale = backend.from_numpy(np.ones(depth, np.float32))
        x = backend.from_numpy(rng.normal(depth, 5, 2).reshape(1, depth).astype(np.float32))

        def program(x: HeliosArray, scale: HeliosArray = scale, weight: HeliosArray = weight) -> HeliosArray:
            return backend.add(backend.linear(backend.rms_norm(x, scale, 1e-5)[0], weight)[0], 0.0)

        found = []
        for most in (folded, 0):
            monkeypatch.setattr(backend_helios_inference, "MOST_NORMS", most)
            found.append(backend.to_numpy(backend.record(program)(x)).tobytes())
        assert found[0] == found[1], depth


@pytest.mark.matrix_units
@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize(
    ("precision", "depth", "columns", "is_transposed"),
    [
        *(("f32", 200, 70, False), ("f32", 192, 72, True), ("f16", 200, 70, True), ("f16", 640, 72, False)),
        *(("bf16", 192, 64, True), ("f16", 24, 40, False)),  # and of one team, whose threads are fewer than its results
    ],
)
def test_few_rows_have_the_bits_that_they_have_among_many(
    precision: str, depth: int, columns: int, is_transposed: bool, is_split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a norm, a product and its epilogue, which are one dispatch for few rows."""
    backend = helios(precision)

    turn = 0

    def chosen(problem: Problem, device: Hardware, part: int, _: bool) -> Division:
        divisions = list(in_parts(problem, device, part))
        alike = [each for each in divisions if (each.splits > 1) == is_split] or divisions
        return alike[turn % len(alike)]

    monkeypatch.setattr(backend_helios_matmul, "choose", chosen)
    monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", 16)
    if not is_split:  # nor does it matter for few rows whether teams share a sum
        monkeypatch.setattr(backend_helios_tiles, "_ALONE_COLUMNS", 1)
    is_processor = backend.device_info.kind == "cpu"  # which takes minutes to compile long parts for many rows
    if is_processor:
        monkeypatch.setattr(backend_helios_tiles, "_FEW_PART", 32)
        monkeypatch.setattr(backend_helios_tiles, "_MOST_FEW_TEAMS", 8)
    recorded: list[str] = []
    made = backend.make_program

    def make_program(dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        recorded.extend(each.kernel.name for each in dispatches if repeated)
        return made(dispatches, repeated)

    monkeypatch.setattr(backend, "make_program", make_program)
    most = 40 if is_processor else PROMPT_ROWS + 44
    scale, shift, bias, x, residual = (
        backend.from_numpy(rng.normal(int(np.prod(shape)), 5, stream).reshape(shape).astype(np.float32))
        for stream, shape in enumerate([(depth,), (depth,), (columns,), (most, depth), (most, columns)])
    )
    stored = rng.normal(depth * columns, 5, 9).reshape((columns, depth) if is_transposed else (depth, columns))
    weight = backend.cast(backend.from_numpy(stored.astype(np.float32)), backend.weight_dtype)
    weight = backend.transpose(weight, (1, 0)) if is_transposed else weight

    def program(x: HeliosArray, residual: HeliosArray) -> HeliosArray:
        normed = backend.layer_norm(x, scale, shift, 1e-5)[0]
        first = backend.linear(normed, weight, bias, "gelu")[0]
        second = backend.linear(backend.rms_norm(x, scale, 1e-5)[0], weight, None, "", residual)[0]
        third = backend.linear(x, weight, bias)[0]
        return backend.concatenate([backend.cast(each, np.float32) for each in (first, second, third)], 1)

    wanted = backend.to_numpy(program(x, residual))
    for rows in (1, 7) if is_processor else (1, 7, 16):
        recorded.clear()
        operands = (backend.contiguous(backend.narrow(each, 0, most - rows, rows)) for each in (x, residual))
        got = backend.to_numpy(backend.record(program)(*operands))
        assert got.tobytes() == wanted[most - rows :].tobytes(), rows
        assert recorded.count("matmul_few") == 3
        assert "norm" not in recorded
    monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", MOST_FEW_ROWS)
    part = few_part(depth, backend.hardware)
    if is_split and few_of(Problem(1, MOST_FEW_ROWS, columns, depth, 16, 16), backend.hardware, part) is not None:
        # In blocks of rows, in turn or beside each other, behind a norm.
        for rows, workgroups in (
            ((35, 0), (35, 100)) if is_processor else ((17, 2), (32, 0), (61, 0), (61, 3), (64, 100))
        ):
            monkeypatch.setattr(backend_helios_tiles, "_BLOCKS_WORKGROUPS", workgroups)
            recorded.clear()
            operands = (backend.contiguous(backend.narrow(each, 0, most - rows, rows)) for each in (x, residual))
            got = backend.to_numpy(backend.record(program)(*operands))
            assert got.tobytes() == wanted[most - rows :].tobytes(), rows
            assert recorded.count("matmul_few") == 3
        monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", 16)
    for turn in range(1, 1 if is_processor else 8):  # every tile that a prompt can take
        assert backend.to_numpy(program(x, residual)).tobytes() == wanted.tobytes(), turn


@pytest.mark.parametrize(
    ("shape", "first", "width"),
    [((64, 64), 0, 64), ((200, 136), 0, 136), ((72, 200), 8, 96), ((70, 33), 3, 21), ((1, 9), 0, 9)],
)
def test_a_weight_of_products_with_many_rows_is_transposed(shape: tuple[int, int], first: int, width: int) -> None:
    """The operand is a part of a wider matrix from column `first` on."""
    backend = helios("f16")
    values = normal(*shape).astype(np.float16)
    weight = backend.narrow(backend.cast(backend.from_numpy(values), np.float16), 1, first, width)
    copy = backend.swapped_weight(weight, backend_helios_matmul.SWAPPING_ROWS)
    assert copy.is_contiguous
    assert copy.storage is not weight.storage
    assert np.array_equal(backend.to_numpy(copy), values[:, first : first + width].T)
    few = backend.swapped_weight(weight, backend_helios_matmul.SWAPPING_ROWS - 1)
    assert few.storage is weight.storage


@pytest.mark.matrix_units
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize(
    ("batches", "rows", "depth", "splits"), [(1, 5, 7, 1), (3, 20, 9, 1), (2, 72, 40, 1), (2, 36, 512, 2)]
)
def test_a_multiple_of_the_identity_is_added(precision: str, batches: int, rows: int, depth: int, splits: int) -> None:
    backend = helios(precision)
    a, b = normal(batches, rows, depth), normal(batches, depth, rows)
    problem = Problem(batches, rows, rows, depth)
    device = backend.hardware
    tile = choose(problem, device).tile
    part = -(-depth // splits // tile.k) * tile.k
    division = Division(tile, -(-depth // part), part)
    assert division.splits == splits
    epilogue = Epilogue(diagonal=-1.5)
    c = backend.product(*map(backend.from_numpy, (a, b)), epilogue=epilogue, scale=0.5, forced=division)
    wanted = 0.5 * (a.astype(np.float64) @ b) - 1.5 * np.eye(rows)
    np.testing.assert_allclose(
        backend.to_numpy(c), wanted, atol=(1e-5 if precision == "f32" else 5e-3) * np.abs(wanted).max()
    )
