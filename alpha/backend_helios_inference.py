"""Dispatches of an engine's steps saved by others: products compute what they read, and put what is kept.

These are decisions about a recorded list of dispatches, as those of `backend_helios_folding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_folding import disturbs, meets, same_place, uses_of
from alpha.backend_helios_planner import Argument, Dispatch, DispatchMaker

MOST_NORMS = 2048
"""Norms of rows that all workgroups together compute themselves, at least two each: a dispatch does more sooner."""


# --- operands ---------------------------------------------------------------------------------------------------------
# A norm of few rows, or the attention that is put together from its parts, is computed by what multiplies it.


def fold_operands(
    backend: DispatchMaker, dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> list[Dispatch]:
    """The dispatches without those whose results are left operands of matmul_few, and nothing else."""
    uses = uses_of(dispatches)
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
    uses = uses_of(dispatches)
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


# --- choices ----------------------------------------------------------------------------------------------------------


def fold_choices(dispatches: Sequence[Dispatch]) -> list[Dispatch]:
    """The dispatches without put_rows of ids that were chosen, which the choice puts where they go."""
    uses = uses_of(dispatches)
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
    if not same_place(rows, ids) or disturbs(used, places, target):
        return {}
    return {"put_places": places, "put_target": target, "put_rows": put.arguments["target_rows"]}
