"""Dispatches that become the stages of one: which, in which order, and that they give the same results."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest
from helios_device import helios

from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_kernels import Field, Kernel
from alpha.backend_helios_planner import Dispatch
from alpha.backend_helios_stages import MOST_STAGES, StageRun, Stages, gather_stages, stages_for
from alpha.backend_helios_tiles import Hardware
from alpha.bench_cases import Subject
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.gpt import GPT
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

H200 = Hardware(32, 49152, 1024, (16, 16, 16), 132)
ROWS, WIDTH = 64, 128


def rows_of(width: int = WIDTH, element: str = "f16", rows: int = ROWS) -> HeliosArray:
    nbytes = rows * width * (2 if element == "f16" else 4)
    return HeliosArray(Storage(nbytes), (rows, width), (width, 1), element)


def dispatch(
    name: str,
    variant: str,
    constants: Mapping[str, float],
    numbers: dict[str, Any],
    **arrays: tuple[str, HeliosArray | None],
) -> Dispatch:
    fields = tuple(Field(each, "f32", direction, 8 * at) for at, (each, (direction, _)) in enumerate(arrays.items()))
    values: Any = {each: value for each, (_, value) in arrays.items()} | numbers
    return Dispatch(Kernel(name, variant, fields, (), (), b""), Future(), (1, 1, 1), values, constants=constants)


def product(
    a: HeliosArray, c: HeliosArray, residual: HeliosArray | None = None, b: HeliosArray | None = None, **changed: Any
) -> Dispatch:
    constants = dict.fromkeys(("A_ALONG_M", "B_ALONG_K", "HAS_SUMS", "PART_STEPS", "HAS_PREACTIVATION"), 0)
    constants |= {"A_VECTOR": 1, "B_VECTOR": 1, "C_VECTOR": 8, "C_HALF": 1, "ACTIVATION": 0}
    (rows, depth), columns = a.shape, c.shape[1]
    numbers = {"rows": rows, "columns": columns, "depth": depth, "a_stride": depth, "b_stride": columns, "scale": 1.0}
    b = rows_of(columns, rows=depth) if b is None else b
    arrays: Any = {"a": ("in", a), "b": ("in", b), "residual": ("in", residual), "c": ("out", c)}
    arrays |= dict.fromkeys(("bias", "factor", "preactivation"), ("in", None))
    made = dispatch("matmul_matrix", "f16_16_16", constants, numbers, **arrays)
    return dataclasses.replace(
        made,
        constants=dict(made.constants) | {name: value for name, value in changed.items() if name in constants},
        arguments=made.arguments | {name: value for name, value in changed.items() if name in numbers},
    )


def norm(x: HeliosArray, y: HeliosArray, **changed: float) -> Dispatch:
    constants = {"WIDTH": x.shape[1], "LANES": 32, "VECTOR": 4, "CENTERED": 1, "HAS_BIAS": 0, "SAVE": 1}
    arrays: Any = {"x": ("in", x), "y": ("out", y)}
    arrays |= dict.fromkeys(("weight", "bias", "mean", "scale"), ("in", None))
    numbers = {"rows": x.shape[0], "epsilon": 1e-5}
    return dispatch("norm", "f32_f16", constants | changed, numbers, **arrays)


def norm_backward(x: HeliosArray, dy: HeliosArray, groups: int, lanes: int = 32) -> Dispatch:
    parts = HeliosArray(Storage(groups * WIDTH * 8), (groups, 2 * WIDTH), (2 * WIDTH, 1), "f32")
    constants = {"WIDTH": WIDTH, "LANES": lanes, "VECTOR": 4, "CENTERED": 1, "SUMS": 2}
    made = rows_of(element="f32")
    arrays: Any = {"x": ("in", x), "dy": ("in", dy), "dx": ("out", made), "parts": ("out", parts)}
    names = ("addend", "mean", "scale", "rounded", "weight", "first_scale", "second_scale")
    arrays |= dict.fromkeys(names, ("in", None))
    return dispatch("norm_backward", "f32_f16", constants, {"rows": ROWS, "dy_scale": 1.0}, **arrays)


def reader(x: HeliosArray, y: HeliosArray | None = None) -> Dispatch:
    return dispatch("reduce", "f32", {}, {}, x=("in", x), y=("out", rows_of() if y is None else y))


class Maker:
    """As much of a backend as makes dispatches."""

    def new(self, shape: tuple[int, ...], element: str) -> HeliosArray:
        return HeliosArray(Storage(4 * shape[0]), shape, (1,), element)

    def make_dispatch(
        self, name: str, variant: str, groups: Any, constants: Any, operations: float, **given: Any
    ) -> Dispatch:
        kernel = Kernel(name, variant, (Field("table", "u32", "in", 0),), (), (), b"")
        return Dispatch(kernel, Future(), (groups, 1, 1), given, constants=constants)


def gathered(*dispatches: Dispatch) -> tuple[list[Dispatch], list[StageRun]]:
    return gather_stages(cast(Any, Maker()), dispatches, Stages(H200))


def names(dispatches: list[Dispatch]) -> list[str]:
    return [each.kernel.name for each in dispatches]


def chain(length: int) -> list[Dispatch]:
    """Products each of which reads the rows that the one before makes."""
    arrays = [rows_of() for _ in range(length + 1)]
    return [product(*pair) for pair in itertools.pairwise(arrays)]


def test_products_and_norms_of_the_same_rows_become_stages() -> None:
    x, h, y, z = rows_of(), rows_of(element="f32"), rows_of(), rows_of(256)
    left, (run,) = gathered(product(x, h, C_HALF=0), norm(h, y), product(y, z))
    assert names(left) == ["row_stages"]
    assert (left[0].arguments["stages"], left[0].arguments["rows"], run.groups) == (3, ROWS, ROWS // 16)
    uses = [(direction, array) for direction, array in left[0].arrays()]
    assert [array for direction, array in uses if direction == "out"] == [h, y, z], "all are written as before"
    assert x in [array for direction, array in uses if direction == "in"]
    assert not {id(h), id(y)} & {id(array) for direction, array in uses if direction == "in"}, (
        "it waits for none of its own"
    )


def test_there_are_no_more_stages_than_the_kernel_has_room_for() -> None:
    left, runs = gathered(*chain(MOST_STAGES + 3))
    assert [each.arguments["stages"] for each in left] == [MOST_STAGES, 3]
    assert len(runs) == 2


def test_what_lies_between_goes_before_or_behind() -> None:
    x, y, z, weight = (rows_of() for _ in range(4))
    ready = reader(rows_of(), weight)
    used = reader(y)
    left, _ = gathered(product(x, y), used, ready, product(y, z, b=weight))
    assert left[0] is ready
    assert names(left) == ["reduce", "row_stages", "reduce"]
    assert left[2] is used


def test_what_needs_other_rows_is_no_stage() -> None:
    x, y, z = rows_of(), rows_of(), rows_of()
    first = product(x, y)
    through = reader(y, rows_of())
    changed = through.arguments["y"]
    assert isinstance(changed, HeliosArray)

    def stays(*dispatches: Dispatch) -> bool:
        return gathered(*dispatches)[1] == []

    assert not stays(first, product(y, z))
    assert stays(first), "one alone"
    assert stays(first, product(x, z)), "it reads nothing that the first makes"
    assert stays(first, product(rows_of(ROWS), z, b=y)), "it reads the first's result as right operand"
    assert stays(first, through, product(y, z, b=changed)), "it waits for something that waits for the first"
    assert stays(first, product(y, z, A_ALONG_M=1)), "it reads columns"
    assert stays(first, product(y, z, PART_STEPS=2)), "sums in parts"
    assert stays(first, product(y, z, HAS_SUMS=1)), "sums over rows"
    assert stays(first, product(y, z, A_VECTOR=0))
    assert stays(first, product(y, z, C_VECTOR=4)), "four neighbours of 16 bits at a time"
    assert stays(first, product(y, z, a_stride=2 * WIDTH)), "every second row"
    assert stays(first, product(y.view((ROWS // 2, 2 * WIDTH), (2 * WIDTH, 1)), rows_of(rows=ROWS // 2))), (
        "two rows as one"
    )
    assert stays(first, product(y.view((ROWS, WIDTH), (WIDTH, 1), 8), z)), "the place overlaps only"
    assert stays(first, product(y, z.view((ROWS, 100), (100, 1)))), "no multiple of eight columns"
    assert not stays(first, product(y, x)), "each row is read before it is written"
    assert stays(product(x, y, b=z), product(y, z)), "others still read the right operand"


def test_norms_of_one_dispatch_are_alike() -> None:
    h, y, k, z = rows_of(element="f32"), rows_of(), rows_of(element="f32"), rows_of()
    same = [norm(h, y), product(y, k, C_HALF=0), norm(k, z)]
    assert gathered(*same)[0][0].arguments["stages"] == 3
    left, _ = gathered(*same[:2], norm(k, z, CENTERED=0))
    assert names(left) == ["row_stages", "norm"]


def test_a_norms_gradient_has_room_for_each_workgroup_and_lanes_within_a_subgroup() -> None:
    x, dy = rows_of(element="f32"), rows_of()
    first = product(rows_of(), dy)
    taken = norm_backward(x, dy, ROWS // 16)
    parts = taken.arguments["parts"]
    sums = dispatch("column_sums", "f32", {}, {"rows": 99}, x=("in", parts if isinstance(parts, HeliosArray) else None))
    left, _ = gathered(first, taken, sums)
    assert names(left) == ["row_stages", "column_sums"]
    assert left[1].arguments["rows"] == ROWS // 16, "as many parts are added up as there are workgroups"
    assert gathered(first, norm_backward(x, dy, ROWS // 16 - 1))[1] == []
    assert gathered(first, norm_backward(x, dy, ROWS // 16, lanes=64))[1] == []


def test_many_rows_or_wide_layers_are_faster_apart() -> None:
    def stages(rows: int, width: int) -> int:
        arrays = [rows_of(width, rows=rows) for _ in range(5)]
        return len(gathered(*(product(*pair) for pair in itertools.pairwise(arrays)))[1])

    assert stages(2048, 128) == 1
    assert stages(32768, 768) == 0
    assert stages(2048, 1024) == 0


def test_a_device_has_stages_if_it_has_matrix_units_and_shared_memory() -> None:
    assert stages_for(H200) == Stages(H200)
    assert stages_for(dataclasses.replace(H200, fragment=None)) is None
    assert stages_for(dataclasses.replace(H200, is_processor=True)) is None
    small = stages_for(dataclasses.replace(H200, shared_memory=32768))
    assert small is not None and (small.n, small.k) == (64, 64)
    assert stages_for(dataclasses.replace(H200, shared_memory=8192)) is None


# --- on a device ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Always(Stages):
    """Stages wherever they are possible."""

    def seconds(self, stages: Any) -> float:
        return 0.0


@pytest.fixture(params=["f16", "bf16"])
def form(request: pytest.FixtureRequest) -> Iterator[tuple[str, Stages]]:
    backend = helios(request.param)
    form = Always(backend.hardware, m=32, n=32, k=32, down=2, across=2)
    if not form.fits:
        pytest.skip(f"STAGES ARE NOT TESTED IN {request.param}: the device has no matrix units for them")
    before = backend.stages
    yield request.param, form
    backend.stages = before


MODELS = {
    "layernorm": ModelConfig(layers=2, heads=2, dim=32, block=24),
    "rmsnorm": ModelConfig(layers=2, heads=2, dim=64, block=24, norm="rmsnorm", bias=False, logit_soft_cap=20.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_by_stages_is_the_step_by_dispatches(form: tuple[str, Stages], name: str) -> None:
    """With rows that are no multiple of a workgroup's, and logits of 40 tokens."""
    precision, stages = form
    backend, subject = helios(precision), Subject(2, 2, 64, 24, 3, 40)
    tokens = subject.random_tokens(3 * 25).astype(np.int32).reshape(1, 3, 25)
    tokens[0, 1, 5:9] = -1
    results, gradients = [], []
    for each in (None, stages):
        backend.stages = each
        training = resolve_training(TrainingConfig(batch=3, dtype=precision, grad_clip=0.0))
        model = GPT(backend, resolve_model(MODELS[name]), 40, 7)
        model.parameters.initialize()
        step = TrainingStep(model, make_optimizer(model.parameters, training), training)
        results.append(step.run(np.maximum(tokens[..., :-1], 0), tokens[..., 1:], 1e-3).read())
        gradients.append(backend.to_numpy(model.parameters.gradients))
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert results[0]["gradient_norm"] == pytest.approx(results[1]["gradient_norm"], rel=1e-5)
    apart, staged = gradients
    assert np.abs(apart - staged).max() < 1e-3 * np.abs(apart).max()
