"""The forward pass in parts of its batch: which dispatches, in which rounds, and that no bit of a step changes."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from helios_device import helios

from alpha import backend_helios_matmul
from alpha.backend_helios_array import HeliosArray, Storage, contiguous_strides
from alpha.backend_helios_forward import ForwardParts, forward_parts_for, in_parts
from alpha.backend_helios_kernels import Field, Kernel
from alpha.backend_helios_planner import Dispatch, arrange, longest_first, needs_barrier
from alpha.backend_helios_tiles import Division, Hardware, Problem, candidates, estimate
from alpha.config import ARCHITECTURES, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.gpt import GPT
from alpha.optimizer import make_optimizer
from alpha.training_step import TrainingStep

H200 = Hardware(32, 49152, 1024, (16, 16, 16), 132)
BATCH, LENGTH, HEADS, WIDTH, TILE, TOKENS = 8, 32, 2, 64, 16, 40
ROWS = BATCH * LENGTH
ANY = ForwardParts(units=1, count=4, fewest=0, most=1e9)
"""Four parts, of however many workgroups."""


def array(*shape: int, element: str = "f16") -> HeliosArray:
    x = HeliosArray(Storage(0), shape, contiguous_strides(shape), element)
    x.storage.nbytes = x.nbytes
    return x


def dispatch(
    name: str, groups: tuple[int, int, int], constants: dict[str, float], numbers: dict[str, Any], **arrays: Any
) -> Dispatch:
    """`arrays`: by name, how the kernel uses each, and the array itself or None."""
    fields = tuple(Field(each, "f32", direction, 8 * at) for at, (each, (direction, _)) in enumerate(arrays.items()))
    arguments = {each: value for each, (_, value) in arrays.items()} | numbers
    kernel = Kernel(name, "f16", fields, (), (), b"")
    return Dispatch(kernel, Future(), groups, arguments, operations=4.0 * math.prod(groups), constants=constants)


def norm(x: HeliosArray, y: HeliosArray) -> Dispatch:
    scale = array(ROWS, element="f32")
    uses: dict[str, Any] = {"x": ("in", x), "y": ("out", y), "mean": ("out", None), "scale": ("out", scale)}
    return dispatch("norm", (ROWS // 4, 1, 1), {}, {"rows": ROWS}, **uses)


def product(
    a: HeliosArray, b: HeliosArray, c: HeliosArray, residual: HeliosArray | None = None, **changed: float
) -> Dispatch:
    rows, columns = c.shape[0], c.shape[1]
    constants: dict[str, float] = {"TILE_M": TILE, "TILE_N": 64, "A_ALONG_M": 0, "HAS_SUMS": 0} | changed
    numbers = {"rows": rows, "columns": columns, "depth": a.shape[-1], "a_stride": a.shape[-1], "splits": 1}
    uses: dict[str, Any] = {"a": ("in", a), "b": ("in", b), "residual": ("in", residual), "c": ("out", c)}
    uses |= {"factor": ("in", None), "preactivation": ("out", None)}
    return dispatch("matmul_matrix", (rows // TILE * -(-columns // 64), 1, 1), constants, numbers, **uses)


def attention(packed: HeliosArray, y: HeliosArray, dropout: int = 0) -> Dispatch:
    strides = (LENGTH * 3 * WIDTH, 3 * WIDTH, WIDTH // HEADS, 1)
    shape = (BATCH, LENGTH, HEADS, WIDTH // HEADS)
    uses: dict[str, Any] = {
        name: ("in", packed.view(shape, strides, place * WIDTH)) for place, name in enumerate(("query", "key", "value"))
    }
    uses |= {"first_keys": ("in", None), "attended": ("out", y.view(shape, contiguous_strides(shape)))}
    uses |= {"logsumexp": ("out", array(BATCH, HEADS, LENGTH, element="f32"))}
    return dispatch("attention_matrix_forward", (1, HEADS, BATCH), {"DROPOUT": dropout}, {}, **uses)


def other(name: str, x: HeliosArray, y: HeliosArray) -> Dispatch:
    return dispatch(name, (1, 1, 1), {}, {}, x=("in", x), y=("out", y))


def loss(logits: HeliosArray, dlogits: HeliosArray, training: int = 1) -> Dispatch:
    uses: dict[str, Any] = {"logits": ("in", logits), "dlogits": ("out", dlogits)}
    return dispatch("cross_entropy", (ROWS, 1, 1), {"TRAINING": training}, {}, **uses)


def step(training: int = 1, between: str = "", dropout: int = 0, **changed: float) -> list[Dispatch]:
    """A step's dispatches: embedding, a block of one product after the attention, head, loss, and a gradient."""
    x, wide, residual, logits = array(ROWS, WIDTH), array(ROWS, 3 * WIDTH), array(ROWS, WIDTH), array(ROWS, TOKENS)
    normed, attended, last = (array(ROWS, WIDTH) for _ in range(3))
    weight, head = array(WIDTH, 3 * WIDTH), array(WIDTH, TOKENS)
    body = [other("gather_rows", array(ROWS), x), norm(x, normed), product(normed, weight, wide)]
    if between:
        changed_rows = array(ROWS, 3 * WIDTH)
        body.append(other(between, wide, changed_rows))
        wide = changed_rows
    body.append(attention(wide, attended, dropout))
    body += [product(attended, array(WIDTH, WIDTH), residual, x, **changed), norm(residual, last)]
    dlogits = array(ROWS, TOKENS)
    gradient = product(last, dlogits, array(WIDTH, TOKENS), A_ALONG_M=1)
    return [*body, product(last, head, logits), loss(logits, dlogits, training), gradient]


def names(dispatches: Sequence[Dispatch]) -> list[str]:
    short = {"matmul_matrix": "product", "attention_matrix_forward": "attention"}
    return [short.get(each.kernel.name, each.kernel.name) + f" {each.part}" * bool(each.part) for each in dispatches]


def test_the_body_is_divided_and_the_rest_stays_whole() -> None:
    divided = in_parts(step(), ANY)
    body = ("norm", "product", "attention", "product", "norm")
    expected = ["gather_rows", *(f"{name} {part}" for name in body for part in (1, 2, 3, 4))]
    assert names(divided) == [*expected, "product", "cross_entropy", "product"]
    assert sum(each.operations for each in divided) == sum(each.operations for each in step())


def test_parts_have_the_rows_and_the_sequences_of_the_whole_one_after_the_other() -> None:
    whole = step()
    divided = iter(in_parts(whole, ANY))
    for each in whole:
        parts = [next(divided)]
        while 0 < parts[-1].part < 4:
            parts.append(next(divided))
        if len(parts) == 1:
            assert parts == [each]
            continue
        assert all(np.prod(part.groups) * 4 == np.prod(each.groups) for part in parts)
        for name, array_of_all in each.arguments.items():
            if name == "b" or not isinstance(array_of_all, HeliosArray):
                continue
            step_bytes = array_of_all.shape[0] // 4 * array_of_all.strides[0]
            for number, part in enumerate(parts):
                own = part.arguments[name]
                assert isinstance(own, HeliosArray)
                assert own.storage is array_of_all.storage
                assert own.offset == array_of_all.offset + number * step_bytes
                assert own.shape == (array_of_all.shape[0] // 4, *array_of_all.shape[1:])
        if "rows" in each.arguments:
            assert [part.arguments["rows"] for part in parts] == [ROWS // 4] * 4


def test_each_part_is_a_round_behind_the_one_before() -> None:
    rounds = [longest_first(each) for each in arrange(in_parts(step(), ANY))]
    assert [names(each) for each in rounds[:9]] == [
        ["gather_rows"],
        ["norm 1"],
        ["product 1", "norm 2"],
        ["product 2", "norm 3", "attention 1"],
        ["product 3", "product 1", "norm 4", "attention 2"],
        ["product 4", "product 2", "attention 3", "norm 1"],
        ["product 3", "attention 4", "norm 2"],
        ["product 4", "norm 3"],
        ["norm 4"],
    ]
    assert [names(each) for each in rounds[9:]] == [["product"], ["cross_entropy"], ["product"]]
    place = 1 << 40
    for each in {
        id(array.storage): array.storage for round_ in rounds for x in round_ for _, array in x.arrays()
    }.values():
        each.address, place = place, place + each.nbytes
    flat = [each for round_ in rounds for each in round_]
    begins = [position == 0 for round_ in rounds for position in range(len(round_))]
    assert needs_barrier(flat) == [False, *begins[1:]]


@pytest.mark.parametrize(
    "changed",
    [
        {"training": 0},
        {"between": "query_key"},
        {"dropout": 1},
        {"HAS_SUMS": 1},
        {"DIAGONAL": 1.0},
        {"PUTS": 8},
        {"TILE_M": 128},
    ],
    ids=str,
)
def test_what_cannot_be_divided_leaves_the_pass_whole(changed: dict[str, Any]) -> None:
    dispatches = step(**changed)
    assert in_parts(dispatches, ANY) == dispatches


def test_rows_that_lie_otherwise_than_parts_need_leave_the_pass_whole() -> None:
    dispatches = step()

    def stays(position: int, name: str, x: HeliosArray, **changed: Any) -> bool:
        dispatch = dispatches[position]
        changed |= {"arguments": dispatch.arguments | {name: x}}
        others = [*dispatches[:position], dataclasses.replace(dispatch, **changed), *dispatches[position + 1 :]]
        return in_parts(others, ANY) == others

    normed, x = dispatches[2].arguments["a"], dispatches[5].arguments["x"]
    assert isinstance(normed, HeliosArray) and isinstance(x, HeliosArray)
    assert not stays(5, "x", x)
    assert stays(5, "x", x.view((ROWS, WIDTH // 2), (WIDTH, 1))), "rows of a norm with gaps"
    assert not stays(2, "a", normed)
    gaps = normed.view((BATCH, LENGTH, WIDTH), (2 * LENGTH * WIDTH, WIDTH, 1))
    assert stays(2, "a", gaps), "operands with gaps between sequences"
    assert stays(2, "a", normed, groups=(7, 1, 1)), "a workgroup has several tiles"


def test_a_batch_that_is_no_multiple_of_the_parts_stays_whole() -> None:
    dispatches = step()
    assert in_parts(dispatches, dataclasses.replace(ANY, count=3)) == dispatches
    assert in_parts(dispatches, dataclasses.replace(ANY, count=16)) == dispatches, "a sequence is of one part"


def test_what_is_computed_again_for_gradients_stays_whole() -> None:
    """A second norm of the same rows, which only a gradient reads."""
    dispatches = step()
    x = dispatches[1].arguments["x"]
    assert isinstance(x, HeliosArray)
    again = array(ROWS, WIDTH)
    later = [norm(x, again), product(again, array(ROWS, WIDTH), array(WIDTH, WIDTH), A_ALONG_M=1)]
    assert in_parts([*dispatches, *later], ANY)[-2:] == later


def test_each_of_several_micro_batches_has_parts() -> None:
    assert sum(each.part > 0 for each in in_parts([*step(), *step()], ANY)) == 40


def test_the_smallest_product_decides() -> None:
    dispatches, groups = step(), ROWS // TILE // 4

    def is_divided(**limits: float) -> bool:
        return len(in_parts(dispatches, dataclasses.replace(ANY, **limits))) > len(dispatches)  # type: ignore[arg-type]

    assert is_divided(fewest=groups, most=groups)
    assert not is_divided(fewest=groups + 0.1)
    assert not is_divided(most=groups - 0.1)


def test_a_device_has_parts_if_it_has_matrix_units() -> None:
    assert forward_parts_for(H200) == ForwardParts(132)
    assert forward_parts_for(dataclasses.replace(H200, fragment=None)) is None
    assert forward_parts_for(dataclasses.replace(H200, is_processor=True)) is None


# --- on a device ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["f16", "bf16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    backend = helios(request.param)
    if backend.hardware.fragment is None:
        pytest.skip(f"FORWARD PASSES IN PARTS ARE NOT TESTED IN {request.param}: the device has no matrix units for it")
    monkeypatch.setattr(backend, "stages", None)
    monkeypatch.setattr(backend, "forward_parts", None)
    monkeypatch.setattr(backend_helios_matmul, "choose", in_low_tiles)
    yield request.param


def in_low_tiles(problem: Problem, device: Hardware, part: int = 0, accompanied: bool = False) -> Division:
    """A product in tiles with few rows and its sum whole, as these small ones have it otherwise on no large device."""
    divisions = [each for each in candidates(problem, device) if each.splits == 1]
    return min(divisions, key=lambda division: (division.tile.m, estimate(division, problem, device)))


MODEL = ModelConfig(layers=2, heads=HEADS, dim=WIDTH, block=LENGTH)
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (True, {}),
    "rmsnorm": (True, {"norm": "rmsnorm", "bias": False, "activation": "relu2", "logit_soft_cap": 20.0}),
    "micro-batches": (True, {"accum_steps": 2}),
    "documents": (True, {"documents": True}),
    "computed again": (True, {"recompute": True}),
    "modern": (False, ARCHITECTURES["modern"]),
    "dropout": (False, {"dropout": 0.1}),
    "odd": (False, {"batch": 7}),
}
"""By name: whether there are parts, and what is not as in MODEL, or not as in a plain step."""


def results_of(
    precision: str, parts: ForwardParts | None, documents: bool = False, batch: int = BATCH, **changed: Any
) -> tuple[list[Dispatch], list[bytes]]:
    """A step's dispatches, and the bits of what two steps give: results, gradients and parameters."""
    backend = helios(precision)
    backend.forward_parts = parts
    names_of_model = {each.name for each in dataclasses.fields(ModelConfig)}
    of_model = {name: value for name, value in changed.items() if name in names_of_model}
    others = {name: value for name, value in changed.items() if name not in names_of_model}
    training = resolve_training(TrainingConfig(batch=batch, dtype=precision, **others))
    model = GPT(backend, resolve_model(dataclasses.replace(MODEL, **of_model)), TOKENS, 7)
    model.parameters.initialize()
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    shape = (training.accum_steps, batch, LENGTH + 1)
    tokens = np.random.default_rng(5).integers(0, TOKENS, shape).astype(np.int32)
    begins = np.broadcast_to(np.where(np.arange(LENGTH) < 11, 0, 11), tokens[..., 1:].shape).astype(np.int32)
    found = []
    for _ in range(2):
        ids, targets = (np.ascontiguousarray(each) for each in (tokens[..., :-1], tokens[..., 1:]))
        result = step.run(ids, targets, 1e-3, np.ascontiguousarray(begins) if documents else None).read()
        found.append(np.array(list(result.values())).tobytes())
    arrays = model.parameters.gradients, model.parameters.values
    return step._whole._dispatches, [*found, *(backend.to_numpy(each).tobytes() for each in arrays)]  # type: ignore[attr-defined]


@pytest.mark.matrix_units
@pytest.mark.parametrize("name", CASES)
def test_a_step_in_parts_has_the_bits_of_the_whole(precision: str, name: str) -> None:
    is_divided, changed = CASES[name]
    whole, expected = results_of(precision, None, **changed)
    divided, got = results_of(precision, ANY, **changed)
    assert not any(each.part for each in whole)
    assert any(each.part for each in divided) == is_divided
    # Four instead of one: of seven dispatches of each layer, and of the norm before the head.
    assert len(divided) - len(whole) == (3 * (2 * 7 + 1) * changed.get("accum_steps", 1) if is_divided else 0)
    assert got == expected
