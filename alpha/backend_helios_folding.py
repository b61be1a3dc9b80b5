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

MOST_NORMS = 2048
"""Norms of rows that all workgroups together compute themselves, at least two each: a dispatch does more sooner."""

COPY, ADD = 0, 1
"""Operations of kernels/operations.glsl."""


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
    uses = _uses(dispatches)
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
    uses = _uses(dispatches)
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


# --- operands ---------------------------------------------------------------------------------------------------------
# A norm of few rows, or the attention that is put together from its parts, is computed by what multiplies it.


def fold_operands(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> list[Dispatch]:
    """The dispatches without those whose results are left operands of matmul_few, and nothing else."""
    uses = _uses(dispatches)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for position, dispatch in enumerate(dispatches):
        left = None if dispatch.constants.get("BLOCKS") else dispatch.arguments.get("a")  # of few rows
        if dispatch.kernel.name != "matmul_few" or not isinstance(left, HeliosArray) or id(left.storage) not in new:
            continue
        place, *others = uses[id(left.storage)]
        maker = folded[place]
        if others != [position] or maker is None or maker.kernel.name not in _OPERANDS:
            continue
        read = [array for direction, array in maker.arrays() if direction == "in"]
        between = [each for each in folded[place + 1 : position] if each is not None]
        changed = _OPERANDS[maker.kernel.name](backend, maker, dispatch, left)
        if changed is None or any(
            direction != "in" and meets(array, each)
            for it in between
            for direction, array in it.arrays()
            for each in read
        ):
            continue
        folded[place], folded[position] = None, changed
    return [each for each in folded if each is not None]


def _with_norm(backend: DispatchMaker, maker: Dispatch, product: Dispatch, left: HeliosArray) -> Dispatch | None:
    """`product`, which multiplies `left`, as it computes the norm itself that `maker` is; None where it cannot."""
    x, y, constants = maker.arguments["x"], maker.arguments["y"], maker.constants
    assert isinstance(x, HeliosArray) and isinstance(y, HeliosArray)
    if x.element != "f32" or not x.is_contiguous or not same_place(y, left) or constants["SAVE"]:
        return None
    if constants["WIDTH"] != product.arguments["depth"] or product.constants["THREADS"] < constants["LANES"]:
        return None
    if product.groups[0] * max(2, x.size // x.shape[-1]) > MOST_NORMS:
        return None
    taken = {name: constants[name] for name in ("WIDTH", "LANES", "VECTOR", "CENTERED")}
    taken |= {"SOURCE": 1, "NORM_BIAS": constants["HAS_BIAS"], "A_VECTOR": int(constants["VECTOR"] == 4)}
    epsilon = maker.arguments["epsilon"]
    assert isinstance(epsilon, float)
    arguments = {"norm_weight": maker.arguments["weight"], "norm_bias": maker.arguments["bias"]}
    return _reading(backend, product, taken | {"EPSILON": epsilon}, a=x, **arguments)


def _with_attention(backend: DispatchMaker, maker: Dispatch, product: Dispatch, left: HeliosArray) -> Dispatch | None:
    """`product` as it puts attention together itself."""
    attended = maker.arguments["attended"]
    if (
        not (isinstance(attended, HeliosArray) and same_place(attended, left))
        or product.arguments["factor"] is not None
    ):
        return None
    taken = {"SOURCE": 2, "HEAD": maker.constants["WIDTH"], "KEYS": maker.constants["PART"]}
    partial, statistics, splits, positions = (
        maker.arguments[name] for name in ("partial", "statistics", "splits", "positions")
    )
    return _reading(backend, product, taken, a=partial, statistics=statistics, parts=splits, factor=positions)


def _reading(
    backend: DispatchMaker, product: Dispatch, constants: dict[str, float], /, **arguments: Argument
) -> Dispatch:
    """`product` with another left operand, of float32."""
    kernel, variant = product.kernel, product.kernel.variant
    if variant != "f32":
        *precision, _, bits = variant.split("_")
        variant = "_".join([*precision, "32", bits])
    return backend.make_dispatch(
        kernel.name, variant, product.groups, {**product.constants, **constants}, product.operations,
        **(product.arguments | arguments),
    )  # fmt: skip


_OPERANDS = {"norm": _with_norm, "attention_combine": _with_attention}


# --- keys and values --------------------------------------------------------------------------------------------------
# Where keys and values are columns of a product, it writes them where they are kept.

_PUT_FIELDS = ("factor", "preactivation", "b_sums")
"""The fields of a product for slots, keys and values, which kernels/matmul.glsl calls by these names."""


def fold_puts(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> list[Dispatch]:
    """The dispatches without pairs of put_rows whose rows are the last columns of what a product, or the dispatch that
    adds its parts up, makes, and used by nothing else."""
    uses = _uses(dispatches)
    new = {id(each) for each in planned} - {id(result)}
    folded: list[Dispatch | None] = list(dispatches)
    for place, product in enumerate(dispatches):
        made = product.arguments.get("c")
        if not isinstance(made, HeliosArray) or id(made.storage) not in new:
            continue
        positions = sorted(set(uses[id(made.storage)][1:]))
        puts = [each for each in positions if dispatches[each].kernel.name == "put_rows"]
        changed = _putting(backend, product, made, [dispatches[each] for each in puts])
        if changed is None:
            continue
        begin = _put_begin(changed)
        readers = [array for each in positions if each not in puts for _, array in dispatches[each].arrays()]
        if any(not _is_before(array, made, begin) for array in readers if array.storage is made.storage):
            continue
        read, *written = (changed.arguments[name] for name in _PUT_FIELDS)
        between = [each for each in dispatches[place + 1 : max(puts)] if each not in [dispatches[put] for put in puts]]
        if any(
            (each is not read or direction != "in") and meets(array, each)
            for it in between
            for direction, array in it.arrays()
            for each in (read, *written)
            if isinstance(each, HeliosArray)
        ):
            continue
        folded[place] = changed
        for each in puts:
            folded[each] = None
    return [each for each in folded if each is not None]


def _putting(backend: DispatchMaker, product: Dispatch, made: HeliosArray, puts: Sequence[Dispatch]) -> Dispatch | None:
    """`product` as it puts its last columns, keys and then values, where `puts` do; None where it cannot."""
    if len(puts) != 2 or any(product.arguments[name] is not None for name in _PUT_FIELDS):
        return None
    vector = int(product.constants["C_VECTOR"])
    if vector == 0 or product.constants["ACTIVATION"] or product.constants["HAS_RESIDUAL"]:
        return None
    keys, values = (each.arguments["rows"] for each in puts)
    targets = [each.arguments["target"] for each in puts]
    slots, columns = puts[0].arguments["ids"], product.arguments["columns"]
    assert isinstance(keys, HeliosArray) and isinstance(values, HeliosArray) and isinstance(columns, int)
    width = keys.shape[1]
    begin = columns - 2 * width
    are_last = begin >= 0 and (keys.offset - made.offset, values.offset - made.offset) == (begin, begin + width)
    if (
        not are_last
        or keys.shape != values.shape
        or any(each.strides[1] != 1 or (each.strides[0] != columns and each.shape[0] > 1) for each in (keys, values))
    ):
        return None
    other = puts[1].arguments["ids"]
    assert isinstance(slots, HeliosArray) and isinstance(other, HeliosArray)
    kept = {each.arguments["target_rows"] for each in puts}
    if len(kept) != 1 or not same_place(slots, other) or width % vector or begin % vector:
        return None
    if any(
        not isinstance(each, HeliosArray) or each.element != made.element or each.offset % vector for each in targets
    ):
        return None
    arguments: dict[str, Argument] = dict(zip(_PUT_FIELDS, (slots, *targets), strict=True))
    arguments["put_rows"] = kept.pop()
    return backend.make_dispatch(
        product.kernel.name, product.kernel.variant, product.groups, {**product.constants, "PUTS": width},
        product.operations, **(product.arguments | arguments),
    )  # fmt: skip


def _put_begin(product: Dispatch) -> int:
    """The first column that a product puts where keys are kept."""
    columns = product.arguments["columns"]
    assert isinstance(columns, int)
    return columns - 2 * int(product.constants["PUTS"])


def _is_before(array: HeliosArray, whole: HeliosArray, column: int) -> bool:
    """Whether an array has nothing of the columns of a matrix from this one on."""
    if array.offset != whole.offset or (array.strides[0] != whole.shape[1] and array.shape[0] > 1):
        return False
    inner = zip(array.shape[1:], array.strides[1:], strict=True)
    return sum((length - 1) * stride for length, stride in inner) < column


def fold_choices(dispatches: Sequence[Dispatch]) -> list[Dispatch]:
    """The dispatches without put_rows of ids that were chosen, which the choice puts where they go."""
    uses = _uses(dispatches)
    folded: list[Dispatch | None] = list(dispatches)
    for place, choice in enumerate(dispatches):
        ids = choice.arguments.get("ids")
        if choice.kernel.name != "choose" or not isinstance(ids, HeliosArray):
            continue
        for position in uses[id(ids.storage)]:
            if puts := _choice_puts(ids, dispatches[position], dispatches[place + 1 : position]):
                folded[place] = dataclasses.replace(choice, arguments=choice.arguments | puts)
                folded[position] = None
                break
    return [each for each in folded if each is not None]


def _choice_puts(ids: HeliosArray, put: Dispatch, between: Sequence[Dispatch]) -> dict[str, Argument]:
    """The arguments of a choice of these ids that does what `put` does behind what is `between`; none if it cannot."""
    rows, target, places = (put.arguments.get(name) for name in ("rows", "target", "ids"))
    if put.kernel.name != "put_rows" or put.arguments["width"] != 1:
        return {}
    assert isinstance(rows, HeliosArray) and isinstance(target, HeliosArray) and isinstance(places, HeliosArray)
    used = [use for dispatch in between for use in dispatch.arrays()]
    if not same_place(rows, ids) or _disturbs(used, places, target):
        return {}
    return {"put_places": places, "put_target": target, "put_rows": put.arguments["target_rows"]}


# --- additions --------------------------------------------------------------------------------------------------------
# Where a tensor is used twice its gradients are added up: behind a residual connection, for tied embeddings. Embeddings
# of tokens and positions are added up, too. Some kernels take the other operand, their `addend`, and write the sum.


def fold_additions(dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage) -> list[Dispatch]:
    """The dispatches without float32 additions that the maker of one operand, used for nothing else, can do itself."""
    uses = _uses(dispatches)
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
            if not any(_disturbs(each.arrays(), other, sum_) for each in between):
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
    return same and aligned and _fits(maker, other, sum_) and not _disturbs(rest, other, sum_)


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


def _uses(dispatches: Sequence[Dispatch]) -> dict[int, list[int]]:
    """The positions of the dispatches that use a storage, by its id."""
    uses: dict[int, list[int]] = {}
    for position, dispatch in enumerate(dispatches):
        for _, array in dispatch.arrays():
            uses.setdefault(id(array.storage), []).append(position)
    return uses


def _disturbs(uses: Iterable[tuple[str, HeliosArray]], other: HeliosArray, sum_: HeliosArray) -> bool:
    """Whether such uses of arrays would make a difference to the sum, or it to them, if the sum were made earlier."""
    return any(meets(array, sum_) or (direction != "in" and meets(array, other)) for direction, array in uses)


def meets(first: HeliosArray, second: HeliosArray) -> bool:
    """Whether two arrays may have a byte in common."""
    (key, span), (other_key, other_span) = place_of(first), place_of(second)
    return key == other_key and span.meets(other_span)


# --- scales -----------------------------------------------------------------------------------------------------------
# The gradient of the output head's input is of the summed loss, until it is multiplied by two numbers. The norm
# before the head can do that when it reads it.


def fold_scales(dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage) -> list[Dispatch]:
    """The dispatches without those of scale whose result is the gradient that a norm goes on with, and nothing else."""
    uses = _uses(dispatches)
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


def same_place(first: HeliosArray, second: HeliosArray) -> bool:
    """Whether two contiguous arrays are the same elements of one storage, whatever their shapes."""
    return first.storage is second.storage and (first.offset, first.size) == (second.offset, second.size)
