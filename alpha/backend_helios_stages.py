"""Products, norms and losses of the same rows, one after the other, as one dispatch.

In a small model a dispatch takes as long as it takes to start and to wait for memory. Between one attention and the
next, what is made of a row needs nothing of other rows: `gather_stages` finds such dispatches in a recorded list, and
makes of them the stages of kernels/row_stages.comp, whose workgroups take a few rows each through all of them. Every
array is written as before, with the same values but for how sums are rounded: those over rows, which are the gradients
of a norm's weight and bias, and those over a row in the gradient of a norm.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_folding import meets, same_place
from alpha.backend_helios_planner import Argument, Dispatch, DispatchMaker, dependencies
from alpha.backend_helios_tiles import Hardware, Problem, choose, estimate

MOST_STAGES = 16
"""Of one dispatch, whose table of them is in shared memory."""

WIDEST = 512
"""Numbers of a row of a norm, or of logits, at most: a subgroup has them in registers, several rows at a time."""

_PRODUCT, _NORM, _GRADIENT, _LOSS = range(4)
_EARLY, _KEPT, _KEEPS, _ALONG_K, _LEFT, _ACTIVATES, _MULTIPLIES, _HALVES = (256 << each for each in range(8))
"""Kinds and flags of stages, as in kernels/row_stages.comp."""

_ZEROS = 8
"""Words behind the table, which are read where there is nothing to read."""

_STAGE = np.dtype([("addresses", np.uint64, 12), ("numbers", np.uint32, 8)])

_OF_ROWS = {
    "matmul_matrix": ("a", "residual", "c", "preactivation", "factor"),
    "norm": ("x", "y", "mean", "scale"),
    "norm_backward": ("x", "dy", "addend", "mean", "scale", "dx", "rounded"),
    "cross_entropy": ("logits", "targets", "losses", "dlogits"),
}
"""The kernels that can be stages, with the arrays of which they read and write only the rows that they are given."""

_HANDED_ON = {
    ("norm", "matmul_matrix"): ("y", "a"),
    ("norm_backward", "matmul_matrix"): ("rounded", "a"),
    ("matmul_matrix", "norm"): ("c", "x"),
    ("matmul_matrix", "norm_backward"): ("c", "dy"),
}
"""What a stage may leave in shared memory for the next, as either names it."""

_ALIKE = {"norm": ("WIDTH", "LANES", "CENTERED", "SUMS"), "matmul": ("ACTIVATION", "FACTOR")}
"""Constants that all stages whose kernels' names begin so have alike; but a product may have no activation."""

# Seconds, as of an H200: a slice of a product, what a norm or a loss takes, and a dispatch of little else.
_SLICE, _OTHER, _DISPATCH = 1.5e-6, 1.5e-6, 3.4e-6


@dataclass(frozen=True)
class Stages:
    """How a workgroup is divided: it has `m` rows, and takes slices of `k` x `n` of right operands, with `down` x
    `across` subgroups."""

    device: Hardware
    m: int = 16
    n: int = 128
    k: int = 128
    down: int = 1
    across: int = 8

    @property
    def constants(self) -> dict[str, float]:
        assert self.device.fragment is not None
        m, n, k = self.device.fragment
        return {
            "THREADS": self.down * self.across * self.device.subgroup, "SUBGROUP_SIZE": self.device.subgroup,
            "TILE_M": self.m, "TILE_N": self.n, "TILE_K": self.k, "SUBGROUPS_M": self.down, "SUBGROUPS_N": self.across,
            "FRAGMENT_M": m, "FRAGMENT_N": n, "FRAGMENT_K": k, "STAGES": MOST_STAGES,
        }  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether the device can run it."""
        device, fragment = self.device, self.device.fragment
        if fragment is None:
            return False
        threads = self.down * self.across * device.subgroup
        a, b = 16 * self.m * (self.k // 8 + 1), 16 * max(self.k * (self.n // 8 + 1), self.n * (self.k // 8 + 1))
        results = 16 * max(self.m * (self.n // 4 + 1), 2 * threads)
        shared = a + max(b, results) + MOST_STAGES * _STAGE.itemsize
        left = [self.m % (self.down * fragment[0]), self.n % (self.across * fragment[1]), self.k % fragment[2]]
        left += [self.k * self.n // 8 % threads, 8 * threads % self.k, 8 * threads % self.n]
        return not any(left) and threads <= device.invocations and shared <= device.shared_memory

    def groups(self, stages: Sequence[Dispatch]) -> int:
        """The number of workgroups."""
        return math.ceil(_rows(stages[0]) / self.m)

    def takes(self, stages: Sequence[Dispatch]) -> bool:
        """Whether stages can be one dispatch, and are faster so: rows of norms have no more lanes than a subgroup, and
        there is room for what each workgroup adds to the gradients of a norm's weight and bias."""
        lanes = max((each.constants["LANES"] for each in stages if "norm" in each.kernel.name), default=1)
        room = min((each.shape[0] for each in _parts(stages)), default=self.groups(stages))
        fits = lanes <= self.device.subgroup and self.groups(stages) <= room
        return fits and self.seconds(stages) < self.seconds_apart(stages)

    def seconds(self, stages: Sequence[Dispatch]) -> float:
        """What stages should take as one dispatch."""
        problems = [_problem(each) for each in stages if each.kernel.name == "matmul_matrix"]
        slices = sum(math.ceil(each.depth / self.k) * math.ceil(each.columns / self.n) for each in problems)
        waves = math.ceil(self.groups(stages) / self.device.units)
        return _DISPATCH + waves * (slices * _SLICE + (len(stages) - len(problems)) * _OTHER)

    def seconds_apart(self, stages: Sequence[Dispatch]) -> float:
        """What they should take as dispatches of their own."""
        products = [_problem(each) for each in stages if each.kernel.name == "matmul_matrix"]
        others = len(stages) - len(products)
        return others * _DISPATCH + sum(estimate(choose(each, self.device), each, self.device) for each in products)


def stages_for(device: Hardware) -> Stages | None:
    """How a device computes stages; None where it has no matrix units, or not enough shared memory, or is a processor,
    which has nothing to wait for."""
    forms = Stages(device), Stages(device, n=64, k=64, across=4)
    return None if device.is_processor else next((each for each in forms if each.fits), None)


def _problem(product: Dispatch) -> Problem:
    rows, depth, columns = (product.arguments[name] for name in ("rows", "depth", "columns"))
    assert isinstance(rows, int) and isinstance(depth, int) and isinstance(columns, int)
    return Problem(1, rows, columns, depth, 16, 16)


def gather_stages(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], form: Stages
) -> tuple[list[Dispatch], list[StageRun]]:
    """The dispatches with those that need of each other only their own rows as stages of one, where that is faster.

    The runs are to be uploaded once all arrays have their addresses.
    """
    needed = dependencies(dispatches)
    gathered: list[Dispatch] = []
    runs: list[StageRun] = []
    position = 0
    while position < len(dispatches):
        positions = _stages_from(position, dispatches, needed)
        stages = [dispatches[each] for each in positions]
        if len(stages) < 2 or not form.takes(stages):
            gathered.append(dispatches[position])
            position += 1
            continue
        run = StageRun(backend, stages, form)
        others = [each for each in range(positions[0], positions[-1]) if each not in positions]
        behind = _behind(positions, others, needed)
        gathered += [dispatches[each] for each in others if each not in behind]
        gathered.append(run.dispatch)
        gathered += [dispatches[each] for each in others if each in behind]
        runs.append(run)
        position = positions[-1] + 1
    groups = {id(part): run.groups for run in runs for part in run.parts}
    return [_with_parts(each, groups) for each in gathered], runs


def _with_parts(dispatch: Dispatch, groups: dict[int, int]) -> Dispatch:
    """`dispatch`, but where it adds up what the workgroups of a norm's gradient make, of as many as there are now."""
    if dispatch.kernel.name != "column_sums":
        return dispatch
    x = dispatch.arguments["x"]
    assert isinstance(x, HeliosArray)
    rows = groups.get(id(x.storage), dispatch.arguments["rows"])
    return dataclasses.replace(dispatch, arguments=dispatch.arguments | {"rows": rows})


# --- which dispatches -------------------------------------------------------------------------------------------------


def _stages_from(first: int, dispatches: Sequence[Dispatch], needed: Sequence[set[int]]) -> list[int]:
    """The positions of the stages of a run that begins with a dispatch; none if that can be no stage."""
    positions = [first] if _rows(dispatches[first]) else []
    for position in range(first + 1, len(dispatches) if positions else 0):
        if len(positions) == MOST_STAGES:
            break
        if not _rows(dispatches[position]):
            continue
        others = [each for each in range(first, position) if each not in positions]
        behind = _behind(positions, others, needed)
        if needed[position] & behind or not _goes_on([dispatches[each] for each in positions], dispatches[position]):
            break
        positions.append(position)
    return positions


def _behind(positions: Sequence[int], others: Sequence[int], needed: Sequence[set[int]]) -> set[int]:
    """Those of the others that must wait for what is at `positions`."""
    behind = set(positions)
    for each in others:
        if needed[each] & behind:
            behind.add(each)
    return behind - set(positions)


def _rows(dispatch: Dispatch) -> int:
    """The rows of a dispatch that can be a stage, 0 for another."""
    name, constants, arguments = dispatch.kernel.name, dispatch.constants, dispatch.arguments
    rows = arguments.get("rows")
    if name not in _OF_ROWS or not isinstance(rows, int) or not _has_form(name, dispatch.kernel.variant):
        return 0
    if name == "matmul_matrix":
        columns = arguments["columns"]
        assert isinstance(columns, int)
        unlike = any(constants[each] for each in ("A_ALONG_M", "HAS_SUMS", "PART_STEPS"))
        if dispatch.groups[2] != 1 or unlike or constants.get("DIAGONAL"):
            return 0
        # Eight neighbours are read and written at a time, wherever that is.
        halves = constants["C_HALF"] or constants["HAS_PREACTIVATION"]
        vectors = constants["A_VECTOR"] and constants["B_VECTOR"] and constants["C_VECTOR"] >= (8 if halves else 4)
        return rows if vectors and columns % 8 == 0 else 0
    if name == "cross_entropy":
        fits = constants["TRAINING"] and constants["VECTOR"] == 4
        return rows if fits and _number(arguments["width"]) <= WIDEST else 0
    lie = [arguments["x"], arguments.get("dy")]
    whole = all(each.is_contiguous for each in lie if isinstance(each, HeliosArray))
    fits = constants["VECTOR"] == 4 and constants["WIDTH"] % 8 == 0 and constants["WIDTH"] <= WIDEST
    return rows if whole and fits else 0


def _has_form(name: str, variant: str) -> bool:
    """Whether a variant reads and writes what its kernel does as a stage."""
    if name == "matmul_matrix":
        return variant.endswith("_16_16")
    return variant in (("f16_f16", "bf16_bf16") if name == "cross_entropy" else ("f32_f16", "f32_bf16"))


def _goes_on(members: Sequence[Dispatch], dispatch: Dispatch) -> bool:
    """Whether a dispatch can be the next stage: of what these make it reads something, and only its own rows."""
    if any(_rows(each) != _rows(dispatch) or _differ(each, dispatch) for each in members):
        return False
    own, arguments = _own(dispatch), dispatch.arguments
    for each in members:
        its_own = _own(each)
        for (direction, array), (use, other) in itertools.product(dispatch.arrays(), each.arrays()):
            is_one = same_place(array, other) and array in own and other in its_own
            if not direction == use == "in" and meets(array, other) and not is_one:
                return False
    made = _written(members)
    read = [array for direction, array in dispatch.arrays() if direction != "out"]
    if not any(same_place(array, other) for array in read for other in made):
        return False
    a = arguments.get("a")
    is_made = isinstance(a, HeliosArray) and any(same_place(a, other) for other in made)
    return not is_made or arguments["a_stride"] == arguments["depth"]


def _own(dispatch: Dispatch) -> list[HeliosArray]:
    """The arrays of which a stage reads and writes only its own rows."""
    arrays = [dispatch.arguments[name] for name in _OF_ROWS[dispatch.kernel.name]]
    return [each for each in arrays if isinstance(each, HeliosArray)]


def _alike(stage: Dispatch) -> dict[str, float]:
    """What a stage needs of constants that all of its kind have alike."""
    kind = stage.kernel.name.split("_")[0]
    found = {name: stage.constants[name] for name in _ALIKE.get(kind, ()) if name in stage.constants}
    return {name: value for name, value in found.items() if value or kind != "matmul"}


def _differ(first: Dispatch, second: Dispatch) -> bool:
    """Whether two stages cannot be of one kernel, because they are different norms, or have different activations."""
    constants = _alike(first)
    return any(constants.get(name, value) != value for name, value in _alike(second).items())


def _number(argument: Argument) -> int:
    assert isinstance(argument, int)
    return argument


# --- the dispatch -----------------------------------------------------------------------------------------------------


class StageRun:
    """Stages, in order, as one dispatch."""

    def __init__(self, backend: DispatchMaker, stages: Sequence[Dispatch], form: Stages) -> None:
        self._stages = stages
        self._form = form
        self.groups = form.groups(stages)
        self.parts = [each.storage for each in _parts(stages)]
        self._table = backend.new((len(stages) * _STAGE.itemsize // 4 + _ZEROS,), "i32")
        variant = stages[0].kernel.variant.split("_")[-1 if stages[0].kernel.name != "matmul_matrix" else 0]
        made = backend.make_dispatch(
            "row_stages", variant, self.groups, self._constants(), sum(each.operations for each in stages),
            table=self._table, stages=len(stages), rows=_rows(stages[0]),
        )  # fmt: skip
        written = _written(stages)
        read = [array for each in stages for direction, array in each.arrays() if direction != "out"]
        reads = [("in", each) for each in read if not _is_one_of(each, written)]
        self.dispatch = dataclasses.replace(made, also=(*reads, *(("out", each) for each in written)))

    def _constants(self) -> dict[str, float]:
        constants = self._form.constants | {"LANES": self._form.device.subgroup}
        products = [each for each in self._stages if each.kernel.name == "matmul_matrix"]
        constants["B_FORMS"] = sum({1 << int(each.constants["B_ALONG_K"]) for each in products})
        for each in self._stages:
            constants |= _alike(each)
        widths = [_number(each.arguments["width"]) for each in self._stages if each.kernel.name == "cross_entropy"]
        return constants | {"LOGITS": math.ceil(max(widths, default=4) / (4 * constants["LANES"]))}

    def upload(self, backend: DispatchMaker) -> None:
        """Write the kernel's table, now that all arrays have addresses."""
        table = np.zeros(len(self._stages), _STAGE)
        for place, stage in enumerate(self._stages):
            names, numbers = _FORMS[stage.kernel.name]
            arrays = [stage.arguments[name] for name in names]
            table[place]["addresses"][: len(names)] = [
                each.address if isinstance(each, HeliosArray) else 0 for each in arrays
            ]
            values = [self._flags(place), *numbers(stage)]
            table[place]["numbers"][: len(values)] = values
            if stage.kernel.name == "matmul_matrix":
                table[place]["numbers"][6] = self._product_from(place + 1)
        table[0]["numbers"][7] = self._product_from(0)
        words = np.concatenate([table.view(np.int32), np.zeros(_ZEROS, np.int32)])
        backend.copy_into(self._table, backend.from_numpy(words))

    def _product_from(self, place: int) -> int:
        """The number of the first product from a stage on, or of stages where there is none."""
        rest = range(place, len(self._stages))
        return next((each for each in rest if self._stages[each].kernel.name == "matmul_matrix"), len(self._stages))

    def _flags(self, place: int) -> int:
        """The kind and the flags of a stage."""
        stage, before = self._stages[place], self._stages[:place]
        a = stage.arguments.get("a")
        if isinstance(a, HeliosArray):
            constants = stage.constants
            flags = _ALONG_K * bool(constants["B_ALONG_K"]) + _HALVES * bool(constants["C_HALF"])
            flags += _ACTIVATES * bool(constants["ACTIVATION"]) + _MULTIPLIES * bool(constants.get("FACTOR"))
            flags += _EARLY * (not _is_one_of(a, _written(before))) + _KEPT * self._keeps(place - 1)
            return _PRODUCT + flags + _KEEPS * self._keeps(place)
        kind = {"norm": _NORM, "norm_backward": _GRADIENT}.get(stage.kernel.name, _LOSS)
        return kind + _KEEPS * self._keeps(place) + _LEFT * self._keeps(place - 1)

    def _keeps(self, place: int) -> bool:
        """Whether a stage leaves whole rows of its result in shared memory for the stage after it."""
        if not 0 <= place < len(self._stages) - 1:
            return False
        stage, following = self._stages[place : place + 2]
        names = stage.kernel.name, following.kernel.name
        if names not in _HANDED_ON:
            return False
        made, taken = (each.arguments[name] for each, name in zip((stage, following), _HANDED_ON[names], strict=True))
        is_product = names[0] == "matmul_matrix"
        width, whole = (
            (following if is_product else stage).constants["WIDTH"],
            self._form.n if is_product else self._form.k,
        )
        is_one = isinstance(made, HeliosArray) and isinstance(taken, HeliosArray) and same_place(made, taken)
        return is_one and width == whole


def _parts(stages: Iterable[Dispatch]) -> list[HeliosArray]:
    """What the workgroups of norms' gradients add up over their rows."""
    arrays = [each.arguments.get("parts") for each in stages]
    return [each for each in arrays if isinstance(each, HeliosArray)]


def _written(stages: Iterable[Dispatch]) -> list[HeliosArray]:
    return [array for each in stages for direction, array in each.arrays() if direction != "in"]


def _is_one_of(array: HeliosArray, others: Collection[HeliosArray]) -> bool:
    return any(same_place(array, other) for other in others)


def _bits(value: Argument) -> int:
    assert isinstance(value, float)
    return int(np.float32(value).view(np.uint32))


def _numbers_of_product(stage: Dispatch) -> list[int]:
    numbers = [_number(stage.arguments[name]) for name in ("depth", "columns", "a_stride", "b_stride")]
    return [*numbers, _bits(stage.arguments["scale"])]


_FORMS = {
    "matmul_matrix": (("a", "b", "bias", "residual", "factor", "c", "preactivation"), _numbers_of_product),
    "norm": (
        ("x", "weight", "bias", "y", "mean", "scale"),
        lambda stage: [_bits(stage.arguments["epsilon"])],
    ),
    "norm_backward": (
        ("x", "dy", "weight", "mean", "scale", "addend", "dx", "rounded", "parts", "first_scale", "second_scale"),
        lambda stage: [_bits(stage.arguments["dy_scale"])],
    ),
    "cross_entropy": (
        ("logits", "targets", "losses", "dlogits"),
        lambda stage: [
            _number(stage.arguments["width"]),
            *(_bits(stage.arguments[each]) for each in ("soft_cap", "scale")),
        ],
    ),
}
"""Of each kernel: the arrays whose addresses a stage has, and what makes its numbers behind the first."""
