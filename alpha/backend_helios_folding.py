"""Dispatches saved by others: what only moves, adds, rounds or multiplies a result is left to what makes or reads it.

These are decisions about a recorded list of dispatches, before it is arranged in rounds (`backend_helios_planner`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_layout import groups_for
from alpha.backend_helios_planner import Argument, Dispatch, DispatchMaker, overlap, place_of

VECTOR_BYTES = 16
"""Kernels read and write so many bytes at a time where an array starts at a multiple of them, as every storage does."""

RESULTS = {"gather_rows": "y", "norm_backward": "dx", "scatter_add_rows": "y", "scatter_add_few_rows": "y"}
"""The kernels that take an addend, with the result that it is added to; each element of both is one invocation's."""

REPEATING = "gather_rows"
"""The one that takes an addend of the shape of the result's last axes."""

COPY, ADD = 0, 1
"""Operations of kernels/operations.glsl."""


# --- uses of arrays ---------------------------------------------------------------------------------------------------


def uses_of(dispatches: Sequence[Dispatch]) -> dict[int, list[int]]:
    """The positions of the dispatches that use a storage, by its id."""
    uses: dict[int, list[int]] = {}
    for position, dispatch in enumerate(dispatches):
        for _, array in dispatch.arrays():
            uses.setdefault(id(array.storage), []).append(position)
    return uses


def disturbs(uses: Iterable[tuple[str, HeliosArray]], other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether such uses of arrays would make a difference to the sum, or it to them, if the sum were made earlier."""
    return any(meets(array, sum_) or (direction != "in" and meets(array, other)) for direction, array in uses)


def meets(first: HeliosArray, second: HeliosArray) -> bool:
    """Whether two arrays may have a byte in common."""
    (key, span), (other_key, other_span) = place_of(first), place_of(second)
    return key == other_key and span.meets(other_span)


def same_place(first: HeliosArray, second: HeliosArray) -> bool:
    """Whether two contiguous arrays are the same elements of one storage, whatever their shapes."""
    return first.storage is second.storage and (first.offset, first.size) == (second.offset, second.size)


# --- copies -----------------------------------------------------------------------------------------------------------


def forward_copies(
    dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> tuple[list[Dispatch], list[Storage]]:
    """The dispatches without copies that only move what could have been written to its destination at once.

    A storage that is copied as a whole to where an array lies that existed before, and is not used afterwards, takes
    that array's place from the start, if nothing else uses the place in the meantime. Returns the storages that still
    need one.
    """
    planned_ids = {id(storage) for storage in planned}
    uses = uses_of(dispatches)
    left_out: set[int] = set()
    moved: set[int] = set()
    for position, dispatch in enumerate(dispatches):
        if not dispatch.is_copy:
            continue
        by_direction = dict(dispatch.arrays())
        source, target = by_direction["in"], by_direction["out"]
        storage = source.storage
        if (
            id(storage) not in planned_ids - moved
            or storage is result
            or target.storage.address is None
            or target.address % VECTOR_BYTES
            or source.nbytes != storage.nbytes
            or not (source.is_contiguous and target.is_contiguous)
            or uses[id(storage)][-1] != position
        ):
            continue
        place = [target.byte_range]
        between = dispatches[uses[id(storage)][0] : position]
        if any(array.storage.address is not None and overlap([array.byte_range], place)
               for each in between for _, array in each.arrays()):  # fmt: skip
            continue
        storage.address = target.address
        left_out.add(position)
        moved.add(id(storage))
    return (
        [dispatch for position, dispatch in enumerate(dispatches) if position not in left_out],
        [storage for storage in planned if id(storage) not in moved],
    )


# --- conversions ------------------------------------------------------------------------------------------------------
# Rows of a matrix of 16-bit numbers become float32 where they are read.


def fold_conversions(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> list[Dispatch]:
    """The dispatches without conversions to float32 of what gather_rows made, where nothing else uses that."""
    uses = uses_of(dispatches)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        if dispatch.kernel.name != "elementwise" or dispatch.constants["OPERATION"] != COPY:
            continue
        rows, wide = dispatch.arguments["a"], dispatch.arguments["y"]
        if not (isinstance(rows, HeliosArray) and isinstance(wide, HeliosArray)):
            continue
        users = uses[id(rows.storage)]
        maker = folded[users[0]]
        if maker is None or maker.kernel.variant != "bits16" or len(users) != 2 or id(rows.storage) not in new:
            continue
        whole = maker.arguments["y"]
        assert isinstance(whole, HeliosArray)
        # An array that the program makes is written by nothing before its first use.
        is_new = id(wide.storage) in new and uses[id(wide.storage)][0] == position
        if is_new and wide.element == "f32" and wide.is_contiguous and same_place(whole, rows):
            folded[users[0]] = _converting(backend, maker, wide)
            folded[position] = None
    return [each for each in folded if each is not None]


def _converting(backend: DispatchMaker, maker: Dispatch, wide: HeliosArray) -> Dispatch:
    """`maker`, which gathers rows of 16-bit numbers, as it writes them as float32."""
    table, width, stride = (maker.arguments[name] for name in ("table", "width", "stride"))
    assert isinstance(table, HeliosArray) and isinstance(width, int) and isinstance(stride, int)
    unit = 1 if width % 4 or stride % 4 or table.offset % 4 else 4
    arguments = maker.arguments | {"y": wide, "width": width // unit, "stride": stride // unit}
    variant = table.element + ("x4" if unit == 4 else "")
    return backend.make_dispatch(maker.kernel.name, variant, groups_for(wide.size // unit), {}, **arguments)


# --- additions --------------------------------------------------------------------------------------------------------
# Where a tensor is used twice its gradients are added up: behind a residual connection, for tied embeddings. Embeddings
# of tokens and positions are added up, too. Some kernels take the other operand, their `addend`, and write the sum.


def fold_additions(dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage) -> list[Dispatch]:
    """The dispatches without float32 additions that the maker of one operand, used for nothing else, can do itself."""
    uses = uses_of(dispatches)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        for made, other in _addends(dispatch):
            users = uses[id(made.storage)]
            if id(made.storage) not in new or len(users) != 2 or users[1] != position:
                continue
            maker = folded[users[0]]
            sum_ = dispatch.arguments["y"]
            if maker is None or not isinstance(sum_, HeliosArray) or not _takes(maker, made, other, sum_):
                continue
            between = (each for each in folded[users[0] + 1 : position] if each is not None)
            if not any(disturbs(each.arrays(), other, sum_) for each in between):
                folded[users[0]] = _with_addend(maker, other, sum_)
                folded[position] = None
                break
    return [each for each in folded if each is not None]


def _addends(dispatch: Dispatch) -> list[tuple[HeliosArray, HeliosArray]]:
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
    same = same_place(own, made)
    aligned = all(place_of(each)[1].start % VECTOR_BYTES == 0 for each in (other, sum_))
    rest = [(direction, array) for direction, array in maker.arrays() if array is not own]
    return same and aligned and _fits(maker, other, sum_) and not disturbs(rest, other, sum_)


def _fits(maker: Dispatch, other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether `maker` takes an addend of such a shape."""
    axes = len(other.shape)
    if other.shape == sum_.shape:
        return True
    return maker.kernel.name == REPEATING and axes > 0 and other.shape == sum_.shape[-axes:] and not meets(other, sum_)


def _with_addend(maker: Dispatch, other: HeliosArray, sum_: HeliosArray) -> Dispatch:
    """`maker` as it writes the sum."""
    changed: dict[str, Argument] = {RESULTS[maker.kernel.name]: sum_, "addend": other}
    if maker.kernel.name == REPEATING:
        count, width = maker.arguments["count"], maker.arguments["width"]
        assert isinstance(count, int) and isinstance(width, int)
        changed["addend_units"] = count * width * other.size // sum_.size
    return dataclasses.replace(maker, arguments=maker.arguments | changed)


# --- scales -----------------------------------------------------------------------------------------------------------
# The gradient of the output head's input is of the summed loss, until it is multiplied by two numbers. The norm
# before the head can do that when it reads it.


def fold_scales(dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage) -> list[Dispatch]:
    """The dispatches without those of scale whose result is the gradient that a norm goes on with, and nothing else."""
    uses = uses_of(dispatches)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        if dispatch.kernel.name != "scale":
            continue
        x, y, first, second = (dispatch.arguments[name] for name in ("x", "y", "first", "second"))
        assert isinstance(x, HeliosArray) and isinstance(y, HeliosArray)
        place, *users = uses[id(y.storage)]
        if id(y.storage) not in new or place != position or len(users) != 1:
            continue
        user = dispatches[users[0]]
        dy = user.arguments.get("dy")
        if user.kernel.name != "norm_backward" or not isinstance(dy, HeliosArray) or not same_place(y, dy):
            continue
        read = [each for each in (x, first, second) if isinstance(each, HeliosArray)]
        between = (array for each in dispatches[position + 1 : users[0]] for use, array in each.arrays() if use != "in")
        if x.offset * x.itemsize % VECTOR_BYTES or any(meets(array, each) for array in between for each in read):
            continue
        scaled = HeliosArray(x.storage, dy.shape, dy.strides, x.element, x.offset)
        changed = {"dy": scaled, "first_scale": first, "second_scale": second, "dy_scale": dispatch.arguments["factor"]}
        folded[position], folded[users[0]] = None, dataclasses.replace(user, arguments=user.arguments | changed)
    return [each for each in folded if each is not None]


# --- gradients --------------------------------------------------------------------------------------------------------
# matmul_gradient rounds a gradient to 16 bits, and multiplies it by the slope of an activation, before the products of
# a linear layer read it. What makes the gradient can do that while it has it in registers.


def fold_gradients(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> list[Dispatch]:
    """The dispatches without those of matmul_gradient that the maker of their operand can do itself."""
    uses: dict[int, list[tuple[int, str]]] = {}
    for position, dispatch in enumerate(dispatches):
        for direction, array in dispatch.arrays():
            uses.setdefault(id(array.storage), []).append((position, direction))
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        if dispatch.kernel.name != "matmul_gradient":
            continue
        dy, before, dh = (dispatch.arguments[name] for name in ("dy", "preactivation", "dh"))
        assert isinstance(dy, HeliosArray) and isinstance(dh, HeliosArray)
        if not {id(dy.storage), id(dh.storage)} <= new or uses[id(dh.storage)][0][0] != position:
            continue
        place = uses[id(dy.storage)][0][0]
        maker = folded[place]
        writers = sum(direction != "in" for _, direction in uses[id(dy.storage)])
        if place == position or maker is None or writers != 1:
            continue
        changed = None
        if not isinstance(before, HeliosArray):
            changed = _rounding(maker, dy, dh)
        elif len(uses[id(dy.storage)]) == 2 and not any(
            place <= each < position and direction != "in" for each, direction in uses[id(before.storage)]
        ):
            changed = _multiplying(backend, maker, dispatch)
        if changed is not None:
            folded[place], folded[position] = changed, None
    return [each for each in folded if each is not None]


def _rounding(maker: Dispatch, dy: HeliosArray, dh: HeliosArray) -> Dispatch | None:
    """`maker`, which makes `dy`, as it also writes it rounded, to `dh`; None where it cannot."""
    if maker.kernel.name != "norm_backward" or maker.arguments["rounded"] is not None:
        return None
    dx, gradient = maker.arguments["dx"], maker.arguments["dy"]
    assert isinstance(dx, HeliosArray) and isinstance(gradient, HeliosArray)
    if gradient.element != dh.element or not same_place(dx, dy):
        return None
    return dataclasses.replace(maker, arguments=maker.arguments | {"rounded": dh})


def _multiplying(backend: DispatchMaker, maker: Dispatch, gradient: Dispatch) -> Dispatch | None:
    """`maker`, a product, as it does what `gradient` does to its result; None where it cannot."""
    if maker.kernel.name not in ("matmul_matrix", "matmul_tiled", "matmul_reduce"):
        return None
    dy, before, dh = (gradient.arguments[name] for name in ("dy", "preactivation", "dh"))
    c = maker.arguments["c"]
    assert isinstance(c, HeliosArray) and isinstance(before, HeliosArray)
    assert isinstance(dy, HeliosArray) and isinstance(dh, HeliosArray)
    aligned = all(each.offset * each.itemsize % VECTOR_BYTES == 0 for each in (before, dh))
    if not (c.element == before.element == dh.element != "f32" and same_place(c, dy) and aligned):
        return None
    constants = {**maker.constants, "FACTOR": gradient.constants["ACTIVATION"]}
    arguments = maker.arguments | {"c": dh, "factor": before}
    kernel = maker.kernel
    return backend.make_dispatch(kernel.name, kernel.variant, maker.groups, constants, maker.operations, **arguments)
