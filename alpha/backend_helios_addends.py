"""Sums that a recorded program leaves to the kernel that makes one of their operands.

Where a tensor is used twice its gradients are added up: behind a residual connection, for tied embeddings. Embeddings
of tokens and positions are added up, too. Some kernels take the other operand, their `addend`, and write the sum, with
the same bits as an addition of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_plan import VECTOR_BYTES, Argument, Dispatch, place_of

RESULTS = {"gather_rows": "y", "norm_backward": "dx", "scatter_add_rows": "y", "scatter_add_few_rows": "y"}
"""The kernels that take an addend, with the result that it is added to; each element of both is one invocation's."""

REPEATING = "gather_rows"
"""The one that takes an addend of the shape of the result's last axes."""

ADD = 1
"""The operation of kernels/operations.glsl."""


def fold_additions(dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage) -> list[Dispatch]:
    """The dispatches without float32 additions that the maker of one operand, used for nothing else, can do itself."""
    uses: dict[int, list[int]] = {}
    for position, dispatch in enumerate(dispatches):
        for _, array in dispatch.arrays():
            uses.setdefault(id(array.storage), []).append(position)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        for made, other in _operands(dispatch):
            users = uses[id(made.storage)]
            if id(made.storage) not in new or len(users) != 2 or users[1] != position:
                continue
            maker = folded[users[0]]
            sum_ = dispatch.arguments["y"]
            if maker is None or not isinstance(sum_, HeliosArray) or not _takes(maker, made, other, sum_):
                continue
            between = (each for each in folded[users[0] + 1 : position] if each is not None)
            if not any(_disturbs(each.arrays(), other, sum_) for each in between):
                folded[users[0]] = _with_addend(maker, other, sum_)
                folded[position] = None
                break
    return [each for each in folded if each is not None]


def _operands(dispatch: Dispatch) -> list[tuple[HeliosArray, HeliosArray]]:
    """The operands of an addition of float32 arrays that can have the shape of the result, each with the other one."""
    if dispatch.kernel.name != "elementwise" or dispatch.constants["OPERATION"] != ADD:
        return []
    a, b, y = (dispatch.arguments[name] for name in ("a", "b", "y"))
    if not (isinstance(a, HeliosArray) and isinstance(b, HeliosArray) and isinstance(y, HeliosArray)):
        return []
    if not all(each.element == "f32" and each.is_contiguous for each in (a, b, y)):
        return []
    return [(made, other) for made, other in ((b, a), (a, b)) if made.shape == y.shape]


def _takes(maker: Dispatch, made: HeliosArray, other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether `maker`, which makes `made`, can write `sum_` instead."""
    own = maker.arguments.get(RESULTS.get(maker.kernel.name, ""))
    if not isinstance(own, HeliosArray) or maker.arguments["addend"] is not None:
        return False
    same = own.storage is made.storage and (own.offset, own.nbytes) == (made.offset, made.nbytes)
    aligned = all(place_of(each)[1].start % VECTOR_BYTES == 0 for each in (other, sum_))
    rest = [(direction, array) for direction, array in maker.arrays() if array is not own]
    return same and aligned and _fits(maker, other, sum_) and not _disturbs(rest, other, sum_)


def _fits(maker: Dispatch, other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether `maker` takes an addend of such a shape."""
    axes = len(other.shape)
    if other.shape == sum_.shape:
        return True
    return maker.kernel.name == REPEATING and axes > 0 and other.shape == sum_.shape[-axes:] and not _meet(other, sum_)


def _with_addend(maker: Dispatch, other: HeliosArray, sum_: HeliosArray) -> Dispatch:
    """`maker` as it writes the sum."""
    changed: dict[str, Argument] = {RESULTS[maker.kernel.name]: sum_, "addend": other}
    if maker.kernel.name == REPEATING:
        count, width = maker.arguments["count"], maker.arguments["width"]
        assert isinstance(count, int) and isinstance(width, int)
        changed["addend_units"] = count * width * other.size // sum_.size
    return dataclasses.replace(maker, arguments=maker.arguments | changed)


def _disturbs(uses: Iterable[tuple[str, HeliosArray]], other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether such uses of arrays would make a difference to the sum, or it to them, if the sum were made earlier."""
    return any(_meet(array, sum_) or (direction != "in" and _meet(array, other)) for direction, array in uses)


def _meet(first: HeliosArray, second: HeliosArray) -> bool:
    """Whether two arrays may have a byte in common."""
    (key, span), (other_key, other_span) = place_of(first), place_of(second)
    return key == other_key and span.meets(other_span)
