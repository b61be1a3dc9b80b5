"""The forward pass of a training step in parts of its batch, each of which is a round behind the one before.

A round lasts as long as its last workgroup, and leaves idle what it does not need: matrix units while rows are
normalized, places for workgroups at the end of a product. What the body of a model makes of each row or sequence by
itself is made by several dispatches here, a part of the rows each, so that a round has products of some parts and norms
and attention of others. A part is said to read what the part before it writes, which keeps the two apart.

Every element is computed as before, bit for bit. Gradients stay whole: those of weights are sums over all rows. So does
the head, whose rows are few workgroups, or come in chunks anyway.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpha.backend_helios_array import HeliosArray, narrowed
from alpha.backend_helios_planner import Argument, Dispatch
from alpha.backend_helios_tiles import Hardware

_ATTENTION = ("query", "key", "value", "first_keys", "attended", "logsumexp")
_OF_ROWS = {
    "norm": ("x", "y", "mean", "scale"),
    "matmul_matrix": ("a", "residual", "factor", "c", "preactivation"),
    "attention_matrix_forward": _ATTENTION,
    "attention_matrix2_forward": _ATTENTION,
}
"""The kernels whose dispatches can be divided, with the arrays whose first axis is."""


@dataclass(frozen=True)
class ForwardParts:
    """Into how many parts a forward pass is divided on a device with so many multiprocessors, and when.

    Of the product with the fewest workgroups a part has at least `fewest` for each multiprocessor, since other parts'
    dispatches beside it fill the rest; with more than `most` the whole product leaves little idle, and stays one.
    """

    units: int
    count: int = 4
    fewest: float = 0.5
    most: float = 2.0

    def takes(self, products: Sequence[Dispatch]) -> bool:
        """Whether to divide a forward pass of which these are parts of products."""
        smallest = min((math.prod(each.groups) for each in products), default=0)
        return self.fewest * self.units <= smallest <= self.most * self.units


def forward_parts_for(device: Hardware) -> ForwardParts | None:
    """How a device divides forward passes; None where it has no matrix units that could be idle, or is a processor."""
    return None if device.fragment is None or device.is_processor else ForwardParts(device.units)


def in_parts(dispatches: Sequence[Dispatch], form: ForwardParts) -> list[Dispatch]:
    """The dispatches with the parts of those of forward passes, where all can be divided that must be.

    What reads a part and cannot be divided would wait for all of them, in every layer; so the passes then stay whole.
    """
    divided: dict[int, list[Dispatch]] = {}
    made: set[int] = set()  # storages, by id, that are written in parts
    for position in _forward(dispatches):
        dispatch = dispatches[position]
        parts = _parts(dispatch, form.count)
        if parts:
            divided[position] = parts
            made |= _storages(dispatch, "out")
        elif made & _storages(dispatch, "in"):
            return list(dispatches)
    products = [each for parts in divided.values() for each in parts if each.kernel.name == "matmul_matrix"]
    if not form.takes(products):
        return list(dispatches)
    return [part for position, each in enumerate(dispatches) for part in divided.get(position, [each])]


def _forward(dispatches: Sequence[Dispatch]) -> list[int]:
    """The positions of what makes the rows that the head reads: the body of the model, from the embedding on.

    The head is the product that makes the logits of a loss that is trained.
    """
    logits: set[int] = set()
    needed: set[int] = set()
    found = []
    for position in reversed(range(len(dispatches))):
        dispatch = dispatches[position]
        made = _storages(dispatch, "out")
        if dispatch.kernel.name == "cross_entropy":
            if dispatch.constants["TRAINING"]:
                logits |= _storages_of(dispatch.arguments["logits"])
        elif made & logits:
            needed |= _storages_of(dispatch.arguments.get("a"))
        elif made & needed:
            needed |= _storages(dispatch, "in")
            found.append(position)
    return found[::-1]


def _storages(dispatch: Dispatch, direction: str) -> set[int]:
    """The storages, by id, that a dispatch reads ("in") or writes ("out")."""
    return {id(array.storage) for use, array in dispatch.arrays() if use in (direction, "inout")}


def _storages_of(argument: Argument) -> set[int]:
    return {id(argument.storage)} if isinstance(argument, HeliosArray) else set()


# --- one dispatch -----------------------------------------------------------------------------------------------------


def _parts(dispatch: Dispatch, count: int) -> list[Dispatch]:
    """The dispatches that do the same, each for its part of the rows or sequences; none where it cannot be divided."""
    arrays = {
        name: array
        for name in _OF_ROWS.get(dispatch.kernel.name, ())
        if isinstance(array := dispatch.arguments[name], HeliosArray)
    }
    if not arrays or not _is_divisible(dispatch, count) or any(each.shape[0] % count for each in arrays.values()):
        return []
    x, y, z = dispatch.groups
    by_sequence = "query" in arrays
    groups = (x, y, z // count) if by_sequence else (math.ceil(x / count), y, z)
    rows: dict[str, Argument] = {} if by_sequence else {"rows": _number(dispatch, "rows") // count}
    parts: list[Dispatch] = []
    for part in range(count):
        own: dict[str, Argument] = {name: _part(array, part, count) for name, array in arrays.items()}
        before = [array for direction, array in parts[-1].arrays() if direction == "out"] if parts else []
        parts.append(
            dataclasses.replace(
                dispatch, groups=groups, arguments=dispatch.arguments | rows | own, part=part + 1,
                operations=dispatch.operations / count, also=(*dispatch.also, *(("in", each) for each in before)),
            )
        )  # fmt: skip
    return parts


def _is_divisible(dispatch: Dispatch, count: int) -> bool:
    """Whether a dispatch makes `count` times as many rows, or sequences, as can be a part, and each by itself."""
    constants, arguments = dispatch.constants, dispatch.arguments
    if dispatch.kernel.name == "norm":
        rows = arguments["x"]
        return isinstance(rows, HeliosArray) and rows.is_contiguous and _number(dispatch, "rows") % count == 0
    if dispatch.kernel.name != "matmul_matrix":  # of attention; random bits are numbered from the first sequence on
        return dispatch.groups[2] % count == 0 and not constants["DROPOUT"]
    unlike = any(constants.get(each) for each in ("A_ALONG_M", "HAS_SUMS", "DIAGONAL", "PUTS"))
    rows, columns = _number(dispatch, "rows"), _number(dispatch, "columns")
    tile_rows, tile_columns = int(constants["TILE_M"]), int(constants["TILE_N"])
    a = arguments["a"]
    assert isinstance(a, HeliosArray)
    is_even = a.shape[0] * a.strides[0] == rows * _number(dispatch, "a_stride")
    whole = rows // tile_rows * math.ceil(columns / tile_columns), 1, 1
    return not unlike and is_even and rows % (count * tile_rows) == 0 and dispatch.groups == whole


def _part(array: HeliosArray, part: int, count: int) -> HeliosArray:
    length = array.shape[0] // count
    return narrowed(array, 0, part * length, length)


def _number(dispatch: Dispatch, name: str) -> int:
    number = dispatch.arguments[name]
    assert isinstance(number, int)
    return number
