"""The cases of the primitives: each against the numpy function that it is named after."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import definitions
import numpy as np
from backend_case import Case, Operand, Values, boolean, call, ids, normal, positive, tied, wide

from alpha import rng
from alpha.backend import Backend
from alpha.backend_primitives import Array, RandomKey

STREAM = 11


def memory() -> Iterator[Case]:
    def made(backend: Backend, operation: str, x: Array, source: Array | float) -> list[Array]:
        target = backend.empty(x.shape, x.dtype)
        backend.copy_into(target, x)
        getattr(backend, operation)(target, source)
        return [target]

    def into_part(backend: Backend, operation: str, x: Array, source: Array) -> list[Array]:
        """The operation changes a part of an array through a view of it."""
        whole = backend.from_numpy(np.ones((4, 3, 5), x.dtype))
        part = backend.reshape(backend.narrow(whole, 0, 1, 2), (6, 5))
        getattr(backend, operation)(part, source)
        return [whole]

    def part_of_ones(source: Values, start: float) -> Values:
        whole = np.ones((4, 3, 5))
        whole[1:3] = (start * whole[1:3].reshape(6, 5) + source).reshape(2, 3, 5)
        return whole

    yield Case("fill", lambda b, x: made(b, "fill", x, 2.5), (normal(3, 5),), lambda x: np.full_like(x, 2.5))
    yield Case("zeros", lambda b, x: [b.zeros(x.shape, x.dtype)], (normal(3, 5),), np.zeros_like)
    yield Case("zeros-of-no-axes", lambda b, x: [b.zeros((), x.dtype)], (normal(),), np.zeros_like)
    for name, source in {
        "whole": normal(3, 4),
        "row": normal(4),
        "column": normal(3, 1),
        "swapped": normal(3, 4).swapped(),
        "one": normal(1),
    }.items():
        operands = (normal(3, 4), source)
        copied = lambda x, y: np.broadcast_to(y, x.shape)  # noqa: E731
        yield Case(f"copy_into-{name}", lambda b, x, y: made(b, "copy_into", x, y), operands, copied)
        yield Case(f"add_into-{name}", lambda b, x, y: made(b, "add_into", x, y), operands, np.add, 1e-7)
    flat = (normal(6, 5), normal(6, 5))
    yield Case("copy_into-view", lambda b, x, y: into_part(b, "copy_into", x, y), flat, lambda x, y: part_of_ones(y, 0))
    yield Case(
        "add_into-view", lambda b, x, y: into_part(b, "add_into", x, y), flat, lambda x, y: part_of_ones(y, 1), 1e-7
    )


def views() -> Iterator[Case]:
    x = normal(3, 4, 5)
    for name, operand in {"": x, "-swapped": x.swapped(), "-narrowed": x.narrowed(), "-middle": x.narrowed(1)}.items():
        yield Case(f"reshape{name}", call("reshape", (12, 5)), (operand,), lambda x: x.reshape(12, 5))
        yield Case(f"reshape-split{name}", call("reshape", (3, 2, 2, 5)), (operand,), lambda x: x.reshape(3, 2, 2, 5))
        yield Case(f"transpose{name}", call("transpose", (2, 0, 1)), (operand,), lambda x: x.transpose(2, 0, 1))
        yield Case(f"narrow{name}", call("narrow", 1, 1, 2), (operand,), lambda x: x[:, 1:3])
        yield Case(f"narrow-last{name}", call("narrow", -1, 0, 3), (operand,), lambda x: x[..., :3])
    yield Case("reshape-scalar", call("reshape", ()), (normal(1, 1),), lambda x: x.reshape(()))
    yield Case("reshape-nothing", call("reshape", (5, 0)), (normal(0, 3),), lambda x: x.reshape(5, 0))
    yield Case("narrow-nothing", call("narrow", 0, 2, 0), (x,), lambda x: x[2:2])
    for shape, to in (((4,), (3, 4)), ((3, 1), (3, 4)), ((1, 1), (2, 3)), ((), (2, 2)), ((1, 3), (0, 3))):
        yield Case(f"expand-{shape}-{to}", call("expand", to), (normal(*shape),), lambda x, to=to: np.zeros(to) + x)
    for axis, shapes in ((0, [(2, 3), (1, 3), (0, 3)]), (1, [(2, 3), (2, 1)]), (-1, [(2, 2, 3)]), (1, [(2, 1, 3)] * 3)):
        yield Case(
            f"concatenate-{axis}-{len(shapes)}",
            lambda b, *parts, axis=axis: [b.concatenate(parts, axis)],
            tuple(normal(*shape) for shape in shapes),
            lambda *parts, axis=axis: np.concatenate(parts, axis),
        )

    def neighbours(backend: Backend, x: Array) -> list[Array]:
        """Parts of one array beside each other, in order, in another order, overlapping, and with one left out."""
        parts = [backend.narrow(x, 1, start, 2) for start in (0, 2, 4)]
        overlapping = backend.narrow(x, 1, 1, 2)
        orders = [parts, parts[::-1], [parts[0], parts[0]], [parts[0], parts[2]], [parts[0], overlapping]]
        return [backend.concatenate(each, 1) for each in orders]

    orders = [[0, 1, 2, 3, 4, 5], [4, 5, 2, 3, 0, 1], [0, 1, 0, 1], [0, 1, 4, 5], [0, 1, 1, 2]]
    for name, operand in {"": normal(3, 6, 2), "-swapped": normal(3, 6, 2).swapped()}.items():
        yield Case(f"concatenate-parts{name}", neighbours, (operand,), lambda x: [x[:, order] for order in orders])


def elementwise() -> Iterator[Case]:
    pairs = {
        "same": (normal(3, 5), normal(3, 5)),
        "row": (normal(3, 5), normal(5)),
        "columns": (normal(3, 1), normal(1, 5)),
        "axes": (normal(2, 1, 5), normal(3, 1)),
        "scalar": (normal(), normal(4)),
        "one": (normal(1), normal(1)),
        "none": (normal(0, 4), normal(4)),
        "views": (normal(4, 5).swapped(), normal(4, 5).narrowed()),
        "expanded": (normal(4, 5).expanded(), normal(4, 5).narrowed(0)),
        "ties": (tied(6, 7), tied(6, 7)),
        "many": (normal(1030, 17), normal(17)),
    }
    functions: dict[str, tuple[Callable[..., Any], float]] = {
        "add": (np.add, 1e-7),
        "subtract": (np.subtract, 1e-7),
        "multiply": (np.multiply, 1e-7),
        "maximum": (np.maximum, 0),
        "minimum": (np.minimum, 0),
        "greater": (np.greater, 0),
        "equal": (np.equal, 0),
    }
    for name, (function, tolerance) in functions.items():
        for detail, operands in pairs.items():
            yield Case(f"{name}-{detail}", call(name), operands, function, tolerance)
    for detail, (a, b) in pairs.items():
        below = dataclasses.replace(b, kind="positive")
        yield Case(f"divide-{detail}", call("divide"), (a, below), np.divide, 1e-7)
        yield Case(
            f"where-{detail}",
            lambda backend, a, b: [backend.where(backend.greater(a, b), a, b)],
            (a, b),
            lambda a, b: np.where(a > b, a, b),
        )
    for name, function in {**{key: each[0] for key, each in functions.items()}, "divide": np.divide}.items():
        yield Case(
            f"{name}-number",
            lambda b, x, name=name: [getattr(b, name)(x, 1.5), getattr(b, name)(-2.0, x)],
            (positive(3, 5),),
            lambda x, function=function: [function(x, 1.5), function(-2.0, x)],
            1e-7,
        )
    yield Case(
        "where-numbers",
        lambda b, c, x: [b.where(c, 0.0, x), b.where(c, x, -1.5)],
        (boolean(4, 1), normal(4, 5)),
        lambda c, x: [np.where(c, 0, x), np.where(c, x, -1.5)],
    )
    yield Case("where-integers", lambda b, c, x: [b.where(c, x, 0)], (boolean(9), ids(5, 9)), lambda c, x: x * c)
    yield Case("logical_and", call("logical_and"), (boolean(4, 1), boolean(7)), np.logical_and)
    yield Case("greater-integers", lambda b, x: [b.greater(x, -0.5)], (Operand((9,), "targets", 5),), lambda x: x >= 0)
    yield Case("equal-integers", call("equal"), (ids(4, 30, 1), ids(4, 5)), np.equal)
    shapes = [normal(3, 5), normal(1), normal(), normal(0, 3), normal(4, 5).swapped(), normal(4, 5).narrowed()]
    unary: dict[str, tuple[Callable[..., Any], str, float]] = {
        "exp": (np.exp, "normal", 3e-7),
        "log": (np.log, "positive", 3e-7),
        "sqrt": (np.sqrt, "positive", 1e-7),
        "tanh": (np.tanh, "normal", 3e-7),
        "erf": (definitions.erf, "normal", 5e-7),
        "sign": (np.sign, "tied", 0),
        "absolute": (np.absolute, "normal", 0),
        "isfinite": (np.isfinite, "special", 0),
    }
    for name, (function, kind, tolerance) in unary.items():
        for index, operand in enumerate([*shapes, normal(1030, 7)]):
            yield Case(f"{name}-{index}", call(name), (dataclasses.replace(operand, kind=kind),), function, tolerance)
    for name in ("tanh", "erf"):
        yield Case(f"{name}-far", call(name), (wide(50),), unary[name][0], 3e-7)
    yield Case("cast-integers", lambda b, x, i: [b.cast(i, x.dtype)], (normal(1), ids(9, 3, 4)), lambda x, i: i * 1.0)
    yield Case("cast-booleans", lambda b, x, c: [b.cast(c, x.dtype)], (normal(1), boolean(3, 4)), lambda x, c: c * 1.0)
    yield Case("cast-same", lambda b, x: [b.cast(x, x.dtype)], (normal(3, 4).swapped(),), lambda x: x)


def reductions_and_products() -> Iterator[Case]:
    operands = {"": normal(3, 4, 5), "-swapped": normal(3, 4, 5).swapped(), "-narrowed": normal(3, 4, 5).narrowed(1)}
    for name, operand in operands.items():
        for axes in ((0,), (-1,), (0, 2), (1, -1), (0, 1, 2), ()):
            for keep in (False, True):
                detail, options = f"{axes}{'-keep' * keep}{name}", {"axis": axes, "keepdims": keep}
                yield Case(
                    f"sum-{detail}", call("sum", axes, keep), (operand,), lambda x, o=options: np.sum(x, **o), 1e-6
                )
                if axes:
                    yield Case(
                        f"max-{detail}", call("max", axes, keep), (operand,), lambda x, o=options: np.max(x, **o)
                    )
    yield Case("sum-many", call("sum", (0,)), (normal(1030, 17),), lambda x: x.sum(0), 1e-6)
    yield Case("sum-many-of-rows", call("sum", (-1,)), (normal(17, 1030),), lambda x: x.sum(-1), 1e-6)
    yield Case("sum-none", call("sum", (0,)), (normal(0, 3),), lambda x: x.sum(0))
    yield Case("max-of-no-rows", call("max", (-1,)), (normal(0, 3),), lambda x: x.max(-1))
    shapes = {
        "square": (normal(5, 5), normal(5, 5)),
        "odd": (normal(3, 7), normal(7, 5)),
        "dot": (normal(1, 9), normal(9, 1)),
        "outer": (normal(4, 1), normal(1, 3)),
        "no-rows": (normal(0, 3), normal(3, 2)),
        "no-terms": (normal(2, 0), normal(0, 3)),
        "left-swapped": (normal(6, 7).swapped(), normal(7, 5)),
        "right-swapped": (normal(6, 7), normal(7, 5).swapped()),
        "both-swapped": (normal(6, 7).swapped(), normal(7, 5).swapped()),
        "narrowed": (normal(6, 7).narrowed(), normal(7, 5).narrowed(0)),
        "expanded": (normal(6, 7).expanded(), normal(7, 5).expanded()),
        "batch": (normal(2, 3, 4, 5), normal(2, 3, 5, 6)),
        "batch-broadcast": (normal(2, 1, 4, 5), normal(3, 5, 6)),
        "batch-by-matrix": (normal(2, 3, 4, 5), normal(5, 6)),
        "batch-swapped": (normal(2, 3, 4, 5).swapped(), normal(2, 3, 5, 6).swapped()),
        "stack": (normal(9, 40, 30), normal(9, 30, 7)),
        "tall": (normal(1030, 65), normal(65, 150)),
        "broad": (normal(65, 130), normal(130, 1030)),
    }
    for name, pair in shapes.items():
        yield Case(f"matmul-{name}", call("matmul"), pair, lambda a, b: np.einsum("...mk,...kn->...mn", a, b), 1e-6)


def indexing() -> Iterator[Case]:
    for name, each in {"": ids(7, 2, 5), "-one": ids(7, 1), "-none": ids(7, 0), "-many": ids(7, 1030)}.items():
        table = normal(7, 3)
        yield Case(f"gather_rows{name}", call("gather_rows"), (table, each), lambda table, ids: table[ids])
        yield Case(
            f"scatter_add_rows{name}",
            call("scatter_add_rows", 7),
            (each, normal(*each.shape, 3)),
            lambda ids, rows: np.stack([rows[ids == row].sum(0) for row in range(7)]),
            1e-6,
        )
    yield Case(
        "scatter_add_rows-sparse",
        call("scatter_add_rows", 1000),
        (ids(1000, 6), normal(6, 3).narrowed()),
        lambda ids, rows: np.stack([rows[ids == row].sum(0) for row in range(1000)]),
        1e-6,
    )
    yield Case("gather_rows-views", call("gather_rows"), (normal(7, 3).swapped(), ids(7, 4)), lambda x, ids: x[ids])
    for name, x in {"": normal(4, 9), "-swapped": normal(4, 9).swapped(), "-none": normal(0, 9)}.items():
        yield Case(
            f"pick{name}",
            call("pick"),
            (x, ids(9, x.shape[0])),
            lambda x, ids: np.array([row[index] for row, index in zip(x, ids, strict=True)]),
        )
    yield Case(
        "pick-axes",
        call("pick"),
        (normal(2, 3, 9), ids(9, 2, 3)),
        lambda x, ids: np.array([[x[i, j, ids[i, j]] for j in range(3)] for i in range(2)]),
    )
    for shape in ((), (1,), (3, 5), (0, 2), (1031,)):
        yield Case(
            f"random_uint16-{shape}",
            lambda b, step, shape=shape: [b.random_uint16(shape, RandomKey(3, STREAM, step))],
            (ids(100, 1),),
            lambda step, shape=shape: rng.random_uint16(math.prod(shape), 3, STREAM, int(step[0])).reshape(shape),
        )


def choices() -> Iterator[Case]:
    """Rows of logits with all combinations of options, and numbers that fall nowhere near a border."""
    combinations = [
        (temperature, top_p, min_p, top_k)
        for temperature in (0.0, 0.01, 0.7, 5.0)
        for top_p in (0.0, 0.3, 0.95, 1.0)
        for min_p in (0.0, 0.2)
        for top_k in (0, 1, 7, 300)
    ]

    def chosen(logits: Values, options: Values, top_k: Values) -> Values:
        ids = []
        for row, (temperature, top_p, min_p, number), k in zip(logits, options, top_k, strict=True):
            if not np.isfinite(row).all():
                ids.append(-1)
                continue
            places = sorted(range(len(row)), key=lambda place, row=row: (-row[place], place))[: k or None]
            if temperature == 0:
                ids.append(places[0])
                continue
            weights = [math.exp((float(row[place]) - float(row.max())) / float(temperature)) for place in places]
            needed = next(
                count
                for count in range(1, len(places) + 1)
                if (top_p == 1 and count == len(places)) or sum(weights[:count]) >= top_p * sum(weights)
            )
            kept = sorted((p, w) for p, w in zip(places[:needed], weights, strict=False) if w >= min_p)
            draw = number * sum(w for _, w in kept)
            ids.append(next(p for index, (p, _) in enumerate(kept) if sum(w for _, w in kept[: index + 1]) > draw))
        return np.array(ids, np.int32)

    def case(name: str, logits: Operand) -> Case:
        numbers = definitions.uniform(len(combinations), 9, STREAM)
        options = np.array(
            [[*each[:3], number] for each, number in zip(combinations, numbers, strict=True)], np.float32
        )
        top_k = np.array([each[3] for each in combinations], np.int32)
        return Case(
            f"choose-{name}",
            lambda b, logits: [b.choose(logits, b.from_numpy(options.astype(logits.dtype)), b.from_numpy(top_k))],
            (logits,),
            lambda logits: chosen(logits, options, top_k),
        )

    count = len(combinations)
    yield case("one", normal(count, 1))
    yield case("some", normal(count, 65))
    yield case("equal", tied(count, 300))
    yield case("many", normal(count, 1031))
    yield case("infinite", Operand((count, 5), "special"))


def primitives() -> list[Case]:
    return [*memory(), *views(), *elementwise(), *reductions_and_products(), *indexing(), *choices()]
