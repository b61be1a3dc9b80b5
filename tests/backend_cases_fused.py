"""The cases of the fused operations, forward and backward in one program: [result, gradients ..., result without
training], against a definition of the result and the composition for everything.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import definitions
import numpy as np
from backend_case import Case, Operand, Program, Values, boolean, ids, normal, positive, wide

from alpha.activation import ACTIVATIONS, GATED_ACTIVATIONS
from alpha.backend import Backend, Heads
from alpha.backend_helios_update import UPDATES
from alpha.backend_primitives import Array, RandomKey
from alpha.backend_updates import AdamControl

EPSILON = 1e-5
SEED, STREAM = 3, 11
STEP = ids(100, 1)


NUMBERS = {"beta": 0.9, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}


def update_operands(operation: str) -> tuple[int, dict[str, float]]:
    """How many arrays an optimizer's step takes before its control, and numbers for what comes after that."""
    names = list(inspect.signature(getattr(Backend, operation)).parameters)[1:]
    arrays = names.index("control")
    return arrays, {name: NUMBERS[name] for name in names[arrays + 1 :]}


def both_ways(backend: Backend, operation: str, *arguments: Any, **in_training: Any) -> tuple[Array, Any, Array]:
    """The result and what is saved in training, and the result outside training, which must save nothing."""
    y, saved = getattr(backend, operation)(*arguments, training=True, **in_training)
    plain, nothing = getattr(backend, operation)(*arguments, training=False)
    assert saved is not None
    assert nothing is None
    return y, saved, plain


def activations() -> Iterator[Case]:
    def program(kind: str) -> Program:
        def run(backend: Backend, x: Array, dy: Array) -> list[Array]:
            y, saved, plain = both_ways(backend, "activation", x, kind)
            return [y, backend.activation_backward(dy, saved), plain]

        return run

    for kind in ACTIVATIONS:
        gates = 2 if kind in GATED_ACTIVATIONS else 1
        for name, x in {
            "": normal(3, 5, 6),
            "-one": normal(1, 2),
            "-none": normal(0, 4),
            "-many": normal(1030, 34),
            "-swapped": normal(5, 6).swapped(),
            "-narrowed": normal(5, 6).narrowed(),
            "-wide": wide(40, 8),
        }.items():
            dy = normal(*x.shape[:-1], x.shape[-1] // gates)
            yield Case(
                f"activation-{kind}{name}",
                program(kind),
                (x, dy.swapped() if name == "-swapped" else dy),
                lambda x, dy, kind=kind: definitions.activation(x, kind),
                2e-6,
                fused=True,
            )


def linears() -> Iterator[Case]:
    def case(
        name: str, x: Operand, weight: Operand, dy: Operand | None = None, bias: bool = False, kind: str = "",
        residual: Operand | None = None, need_input: bool = True, buffer: bool = False, need_weight: bool = True,
    ) -> Case:  # fmt: skip
        outputs = (*x.shape[:-1], weight.shape[1] // (2 if kind in GATED_ACTIVATIONS else 1))
        operands = {"x": x, "weight": weight, "dy": dy or normal(*outputs)}
        operands |= {"bias": normal(weight.shape[1])} if bias else {}
        operands |= {"residual": residual} if residual else {}

        def run(backend: Backend, *arrays: Array) -> list[Array]:
            by_name = dict(zip(operands, arrays, strict=True))
            arguments = by_name["x"], by_name["weight"], by_name.get("bias"), kind, by_name.get("residual")
            y, saved, plain = both_ways(backend, "linear", *arguments)
            target = backend.zeros(weight.shape, arrays[0].dtype) if buffer else None
            gradients = backend.linear_backward(by_name["dy"], saved, target, need_input, need_weight)
            return [each for each in (y, *gradients, target, plain) if each is not None]

        def definition(*arrays: Values) -> Values:
            by_name = dict(zip(operands, arrays, strict=True))
            return definitions.linear(
                by_name["x"], by_name["weight"], by_name.get("bias", 0.0), kind, by_name.get("residual", 0.0)
            )

        return Case(f"linear-{name}", run, tuple(operands.values()), definition, 3e-6, fused=True)

    yield case("plain", normal(5, 7), normal(7, 3))
    yield case("bias", normal(5, 7), normal(7, 3), bias=True)
    yield case("residual", normal(2, 5, 7), normal(7, 3), residual=normal(2, 5, 3))
    yield case("buffer", normal(2, 5, 7), normal(7, 3), bias=True, buffer=True)
    yield case("no-input-gradient", normal(5, 7), normal(7, 3), bias=True, kind="gelu", need_input=False)
    yield case("no-weight-gradient", normal(2, 5, 7), normal(7, 6), bias=True, kind="swiglu", need_weight=False)
    yield case("no-input-gradient-buffer", normal(5, 7), normal(7, 3), need_input=False, buffer=True)
    for kind in ACTIVATIONS:
        yield case(kind, normal(5, 7), normal(7, 6), kind=kind)
        yield case(f"{kind}-all", normal(2, 5, 7), normal(7, 2), bias=True, kind=kind,
                   residual=normal(2, 5, 1 if kind in GATED_ACTIVATIONS else 2), buffer=True)  # fmt: skip
    for name, (x, weight) in {
        "one": (normal(1, 1), normal(1, 1)),
        "one-row": (normal(1, 7), normal(7, 5)),
        "one-input": (normal(5, 1), normal(1, 3)),
        "one-output": (normal(5, 7), normal(7, 1)),
        "no-rows": (normal(0, 7), normal(7, 3)),
        "x-swapped": (normal(5, 7).swapped(), normal(7, 3)),
        "x-narrowed": (normal(2, 5, 7).narrowed(), normal(7, 3)),
        "weight-swapped": (normal(5, 7), normal(7, 3).swapped()),
        "weight-narrowed": (normal(5, 7), normal(7, 3).narrowed(0)),
        "tall": (normal(1030, 65), normal(65, 150)),
        "broad": (normal(65, 130), normal(130, 1030)),
    }.items():
        yield case(name, x, weight, bias=True)
    yield case("tall-gelu", normal(2, 515, 33), normal(33, 70), bias=True, kind="gelu", residual=normal(2, 515, 70))
    yield case("tall-swiglu", normal(2, 515, 33), normal(33, 70), kind="swiglu", residual=normal(2, 515, 35))
    for name, (dy, residual) in {
        "dy-swapped": (normal(2, 5, 4).swapped(), normal(2, 5, 4).narrowed()),
        "dy-narrowed": (normal(2, 5, 4).narrowed(1), normal(2, 5, 4).swapped()),
        "dy-expanded": (normal(2, 5, 4).expanded(), normal(2, 5, 4).expanded()),
    }.items():
        yield case(name, normal(2, 5, 7), normal(7, 4), dy, bias=True, kind="silu", residual=residual)


def adapted_linears() -> Iterator[Case]:
    def case(
        name: str, x: Operand, weight: Operand, rank: int, bias: bool = False, kind: str = "", residual: bool = False,
        need_input: bool = True, normed: bool = False,
    ) -> Case:  # fmt: skip
        """With `normed`, x is what a norm makes of the operand."""
        outputs = (*x.shape[:-1], weight.shape[1] // (2 if kind in GATED_ACTIVATIONS else 1))
        down, up = normal(weight.shape[0], rank), normal(rank, weight.shape[1])
        operands = {"x": x, "weight": weight, "down": down, "up": up, "dy": normal(*outputs)}
        operands |= {"bias": normal(weight.shape[1])} if bias else {}
        operands |= {"residual": normal(*outputs)} if residual else {}
        operands |= {"norm": normal(x.shape[-1])} if normed else {}

        def run(backend: Backend, *arrays: Array) -> list[Array]:
            by_name = dict(zip(operands, arrays, strict=True))
            x, saved_norm = by_name["x"], None
            if normed:
                x, saved_norm = backend.rms_norm(x, by_name["norm"], EPSILON, training=True)
            factors = by_name["down"], by_name["up"], 0.5
            others = by_name.get("bias"), kind, by_name.get("residual")
            y, saved, plain = both_ways(backend, "adapted_linear", x, by_name["weight"], *factors, *others)
            dx, *gradients = backend.adapted_linear_backward(by_name["dy"], saved, need_input)
            if saved_norm is not None:
                dx, nothing = backend.rms_norm_backward(dx, saved_norm, need_weight=False)
                assert nothing is None
            return [each for each in (y, dx, *gradients, plain) if each is not None]

        def definition(*arrays: Values) -> Values:
            by_name = dict(zip(operands, arrays, strict=True))
            x = definitions.rms_norm(by_name["x"], by_name["norm"], EPSILON) if normed else by_name["x"]
            weight = by_name["weight"] + 0.5 * by_name["down"] @ by_name["up"]
            return definitions.linear(x, weight, by_name.get("bias", 0.0), kind, by_name.get("residual", 0.0))

        return Case(f"adapted_linear-{name}", run, tuple(operands.values()), definition, 5e-6, fused=True)

    yield case("plain", normal(5, 7), normal(7, 3), 2)
    yield case("one", normal(1, 1), normal(1, 1), 1)
    yield case("no-rows", normal(0, 7), normal(7, 3), 2)
    yield case("residual", normal(2, 5, 7), normal(7, 3), 2, bias=True, residual=True)
    yield case("no-input-gradient", normal(5, 7), normal(7, 3), 4, need_input=False)
    yield case("swapped", normal(5, 7).swapped(), normal(7, 4).swapped(), 4, bias=True)
    yield case("gelu", normal(2, 5, 8), normal(8, 6), 3, bias=True, kind="gelu")
    yield case("swiglu", normal(2, 5, 8), normal(8, 6), 3, kind="swiglu", residual=True)
    yield case("normed", normal(2, 5, 8), normal(8, 6), 3, bias=True, kind="gelu", normed=True)
    yield case("tall", normal(2, 515, 33), normal(33, 70), 8, bias=True, kind="gelu", normed=True)


def norms() -> Iterator[Case]:
    def layer_norm(backend: Backend, x: Array, dy: Array, weight: Array, bias: Array | None = None) -> list[Array]:
        y, saved, plain = both_ways(backend, "layer_norm", x, weight, bias, EPSILON)
        return [each for each in (y, *backend.layer_norm_backward(dy, saved), plain) if each is not None]

    def rms_norm(backend: Backend, x: Array, dy: Array, weight: Array) -> list[Array]:
        y, saved, plain = both_ways(backend, "rms_norm", x, weight, EPSILON)
        return [y, *backend.rms_norm_backward(dy, saved), plain]

    def defined_layer_norm(x: Values, dy: Values, weight: Values, bias: Values | float = 0.0) -> Values:
        return definitions.layer_norm(x, weight, bias, EPSILON)

    def defined_rms_norm(x: Values, dy: Values, weight: Values) -> Values:
        return definitions.rms_norm(x, weight, EPSILON)

    for name, (x, tolerance) in {
        "": (normal(5, 7), 2e-6),
        "-axes": (normal(2, 5, 3, 8), 2e-6),
        "-one": (normal(1, 1), 2e-6),
        "-width-1": (normal(5, 1), 2e-6),
        "-no-rows": (normal(0, 7), 2e-6),
        "-many": (normal(1030, 48), 5e-6),
        "-swapped": (normal(6, 7).swapped(), 2e-6),
        "-narrowed": (normal(2, 5, 3, 8).narrowed(2), 2e-6),
        "-far": (Operand((6, 33), "far"), 2e-5),
        "-wide": (wide(6, 33), 5e-6),
        "-zero": (Operand((6, 8), "zero"), 2e-6),
    }.items():
        dy, vector = dataclasses.replace(x, kind="normal"), normal(x.shape[-1])
        layer_operands = (x, dy, vector, vector)
        yield Case(f"layer_norm{name}", layer_norm, layer_operands, defined_layer_norm, tolerance, fused=True)
        yield Case(
            f"layer_norm-no-bias{name}", layer_norm, layer_operands[:3], defined_layer_norm, tolerance, fused=True
        )
        # At width 1 the gradient is what epsilon leaves of a difference of equal terms: nothing to compare.
        comparable = x.shape[-1] > 1
        yield Case(f"rms_norm{name}", rms_norm, layer_operands[:3], defined_rms_norm, tolerance, fused=comparable)


def cached_attentions() -> Iterator[Case]:
    """Rows of sequences whose keys and values stand in blocks of 4, in no order, among blocks that no row sees."""

    def case(name: str, lengths: list[int], H: int, D: int, G: int = 0, soft_cap: float = 0.0, chunk: int = 1) -> Case:
        G = G or H
        pages = max(-(-length // 4) for length in lengths)
        blocks = 3 + pages * len(lengths)
        tables = ((5 * np.arange(pages * len(lengths)) + 3) % blocks).astype(np.int32).reshape(len(lengths), pages)
        rows = [(s, p) for s, length in enumerate(lengths) for p in range(max(0, length - chunk), length)]
        sequences, positions = (np.array(each, np.int32) for each in zip(*rows, strict=True))

        def run(backend: Backend, query: Array, keys: Array, values: Array) -> list[Array]:
            places = [backend.from_numpy(each) for each in (sequences, positions, tables)]
            return [backend.cached_attention(query, keys, values, *places, soft_cap)]

        def definition(query: Values, keys: Values, values: Values) -> Values:
            results = []
            for row, (sequence, position) in enumerate(rows):
                k, v = (store[tables[sequence]].reshape(1, -1, G, D)[:, : position + 1] for store in (keys, values))
                results.append(definitions.attention(query[None, row, None], k, v, soft_cap)[0, 0])
            return np.array(results)

        store = normal(blocks, 4, G, D)
        return Case(f"cached_attention-{name}", run, (normal(len(rows), H, D), store, store), definition, 3e-6, True)

    yield case("one", [1], 1, 2)
    yield case("plain", [5, 12, 1], 4, 8)
    yield case("groups", [7, 16, 9], 6, 4, 2)
    yield case("one-key-head", [7, 16, 9], 6, 4, 1, 2.0)
    yield case("chunks", [13, 8], 4, 8, 2, 2.0, chunk=11)
    yield case("long", [300, 1, 77], 2, 16, 1)
    yield case("many", [1 + number % 9 for number in range(70)], 2, 4)
    yield case("wide", [9, 30], 2, 130, 1)


def put_rows() -> Iterator[Case]:
    def case(name: str, count: int, places: list[int], *shape: int, layout: str = "") -> Case:
        def run(backend: Backend, target: Array, rows: Array) -> list[Array]:
            changed = backend.zeros(target.shape, target.dtype)
            backend.copy_into(changed, target)
            backend.put_rows(changed, backend.from_numpy(np.array(places, np.int32)), rows)
            return [changed]

        def definition(target: Values, rows: Values) -> Values:
            target = target.copy()
            target[places] = rows
            return target

        rows = dataclasses.replace(normal(len(places), *shape), layout=layout)
        return Case(f"put_rows-{name}", run, (normal(count, *shape), rows), definition, 0.0, True)

    yield case("one", 3, [1], 2)
    yield case("all", 4, [2, 0, 3, 1], 3, 5)
    yield case("some", 40, [7, 39, 0, 12], 2, 8)
    yield case("narrowed", 9, [8, 2], 4, 4, layout="narrowed")
    yield case("many", 500, list(range(3, 480, 2)), 2, 3)


def newest_ids() -> Iterator[Case]:
    def run(backend: Backend, slots: Array) -> list[Array]:
        newest, given = (backend.from_numpy(np.arange(start, start + 9, dtype=np.int32)) for start in (50, 70))
        return [backend.newest_ids(newest, slots, given)]

    def definition(slots: Values) -> Values:
        return np.where(slots < 8, 50 + slots, 70 + np.arange(9))

    yield Case("newest_ids", run, (ids(9, 9),), definition, 0.0, True)


def attentions() -> Iterator[Case]:
    def case(
        name: str, B: int, Tq: int, H: int, D: int, Tk: int = 0, G: int = 0, soft_cap: float = 0.0,
        dropout: float = 0.0, tolerance: float = 3e-6, layout: str = "", kind: str = "normal", fused: bool = True,
        segments: int = 0,
    ) -> Case:  # fmt: skip
        """With `segments`, sequences begin with so many documents, each sequence's of other lengths."""
        Tk, G = Tk or Tq, G or H
        query, key = Operand((B, Tq, H, D), kind), Operand((B, Tk, G, D), kind)
        operands = [query, key, normal(B, Tk, G, D), normal(B, Tq, H, D)]
        lengths = 1 + (7 * np.arange(B)[:, None] + 5 * np.arange(segments)) % (2 * Tk // (segments + 1) or 1)
        begins = np.concatenate([np.zeros((B, 1), np.int64), np.cumsum(lengths, axis=1)], axis=1)
        places = np.arange(Tk - Tq, Tk)
        first_keys = np.max(np.where(begins[:, None] <= places[:, None], begins[:, None], 0), axis=2, initial=0)
        if layout == "narrowed":
            operands = [each.narrowed(2) for each in operands]
        elif layout:
            operands = [dataclasses.replace(each, layout=layout) for each in operands]

        def run(backend: Backend, query: Array, key: Array, value: Array, dy: Array, step: Array) -> list[Array]:
            random = RandomKey(SEED, STREAM, step)
            first = backend.from_numpy(first_keys.astype(np.int32)) if segments else None
            arguments = (query, key, value, soft_cap, dropout, random)
            y, saved = backend.attention(*arguments, training=True, first_keys=first)
            plain, nothing = backend.attention(*arguments, first_keys=first)
            assert nothing is None
            return [y, *backend.attention_backward(dy, saved), plain]

        def definition(query: Values, key: Values, value: Values, dy: Values, step: Values) -> Values:
            factors = definitions.dropout_factors((B, H, Tq, Tk), dropout, SEED, STREAM, int(step[0]))
            return definitions.attention(query, key, value, soft_cap, factors if dropout else None, first_keys)

        return Case(f"attention-{name}", run, (*operands, STEP), definition, tolerance, fused)

    yield case("plain", 2, 5, 4, 8)
    yield case("one", 1, 1, 1, 1)
    yield case("odd", 3, 7, 5, 3)
    for Tk, G, soft_cap, dropout in itertools.product((0, 9), (1, 2, 6), (0.0, 2.0), (0.0, 0.3)):
        detail = f"{G}-heads{'-cached' * bool(Tk)}{'-cap' * bool(soft_cap)}{'-dropout' * bool(dropout)}"
        yield case(detail, 2, 5, 6, 4, Tk, G, soft_cap, dropout)
    yield case("decode", 2, 1, 4, 8, 33, 2)
    yield case("decode-long", 1, 1, 4, 8, 300, 2)
    yield case("chunk", 2, 3, 4, 8, 10, 2)
    yield case("nothing", 0, 3, 2, 4)
    yield case("tiles", 3, 13, 4, 6)
    yield case("tiles-all", 3, 13, 4, 6, 19, 2, 2.0, 0.2)
    yield case("long", 2, 131, 4, 8, tolerance=1e-5)
    yield case("longer", 1, 261, 3, 8, 0, 1, tolerance=1e-5)
    yield case("long-all", 2, 131, 4, 8, 140, 2, 2.0, 0.1, tolerance=1e-5)
    yield case("segments", 3, 13, 4, 6, segments=3)
    yield case("segments-all", 3, 13, 4, 6, 19, 2, 2.0, 0.2, segments=3)
    yield case("segments-long", 3, 261, 4, 8, 0, 2, tolerance=1e-5, segments=5)
    yield case("segments-many", 2, 131, 2, 8, 140, 1, 2.0, 0.1, tolerance=1e-5, segments=60)
    yield case("large-scores", 2, 9, 4, 8, tolerance=1e-4, kind="large")
    yield case("large-scores-cap", 2, 9, 4, 8, soft_cap=5.0, tolerance=1e-4, kind="large")
    # The gradients are next to nothing where one key has all of the probability: nothing to compare them with.
    yield case("huge-scores", 2, 9, 4, 8, kind="wide", fused=False)
    for layout in ("narrowed", "swapped", "expanded"):
        yield case(layout, 2, 5, 4, 6, layout=layout)
        yield case(f"{layout}-all", 2, 5, 4, 6, 9, 2, 2.0, 0.3, layout=layout)


def softmaxes() -> Iterator[Case]:
    def run(backend: Backend, x: Array, dy: Array) -> list[Array]:
        y = backend.softmax(x)
        return [y, backend.softmax_backward(dy, y)]

    for name, x in {
        "": normal(3, 5),
        "-axes": normal(2, 3, 4, 5),
        "-one": normal(4, 1),
        "-no-rows": normal(0, 5),
        "-many": normal(1030, 37),
        "-wide": wide(20, 9),
        "-swapped": normal(5, 6).swapped(),
        "-narrowed": normal(5, 6).narrowed(),
    }.items():
        dy = dataclasses.replace(x, kind="normal")
        yield Case(f"softmax{name}", run, (x, dy), lambda x, dy: definitions.softmax(x), 2e-6, fused=True)


def rotaries() -> Iterator[Case]:
    def case(name: str, x: Operand, positions: int = 0, own: tuple[int, ...] = ()) -> Case:
        """With `positions`, the tables are a part of longer ones, as in decoding; `own` is the number of sequences that
        have tables of their own."""
        T, half = x.shape[1], x.shape[-1] // 2

        def run(backend: Backend, x: Array, cosine: Array, sine: Array) -> list[Array]:
            if positions:
                cosine, sine = (backend.narrow(each, 0, positions - T, T) for each in (cosine, sine))
            return [backend.rotary(x, cosine, sine)]

        def definition(x: Values, cosine: Values, sine: Values) -> Values:
            return definitions.rotary(x, cosine[..., -T:, :], sine[..., -T:, :])

        tables = normal(*own, positions or T, half)
        return Case(f"rotary-{name}", run, (x, tables, tables), definition, 1e-6, fused=True)

    yield case("plain", normal(2, 5, 3, 8))
    yield case("own-positions", normal(2, 5, 3, 8), own=(2,))
    yield case("narrowest", normal(2, 5, 3, 2))
    yield case("one", normal(1, 1, 1, 2))
    yield case("no-batch", normal(0, 5, 3, 4))
    yield case("decode", normal(2, 1, 3, 8), 17)
    yield case("long", normal(2, 261, 3, 6))
    yield case("narrowed", normal(2, 5, 3, 8).narrowed(2))
    yield case("swapped", normal(2, 5, 3, 8).swapped())


def self_attentions() -> Iterator[Case]:
    def case(
        name: str, B: int, T: int, H: int, D: int, G: int = 0, norm: bool = True, turned: bool = True,
        layout: str = "", own: bool = False, need_weight: bool = True, **options: float,
    ) -> Case:  # fmt: skip
        """`own`: each sequence has positions of its own."""
        G = G or H
        qkv, tables = normal(B, T, H + 2 * G, D), normal(*((B,) if own else ()), T, D // 2)
        operands = [qkv.narrowed(2) if layout else qkv, normal(B, T, H, D)]
        operands += [normal(D)] * 2 if norm else []
        operands += [tables] * 2 if turned else []

        def run(backend: Backend, qkv: Array, dy: Array, *rest: Array) -> list[Array]:
            heads = Heads(H, G, rest[:2] if norm else None, EPSILON, rest[-2:] if turned else None)
            y, saved = backend.self_attention(qkv, heads, training=True, **options)
            plain, nothing = backend.self_attention(qkv, heads, **options)
            assert nothing is None
            gradients = backend.self_attention_backward(dy, saved, need_weight)
            return [each for each in (*backend.split_heads(qkv, heads), y, *gradients, plain) if each is not None]

        def definition(qkv: Values, dy: Values, *rest: Values) -> list[Values]:
            query, key, value = np.split(qkv, [H, H + G], axis=2)
            if norm:
                query, key = (definitions.rms_norm(x, w, EPSILON) for x, w in ((query, rest[0]), (key, rest[1])))
            if turned:
                query, key = (definitions.rotary(x, *rest[-2:]) for x in (query, key))
            return [query, key, value, definitions.attention(query, key, value, **options)]

        return Case(f"self_attention-{name}", run, tuple(operands), definition, 1e-5, fused=True)

    yield case("plain", 2, 5, 3, 8, norm=False, turned=False)
    yield case("norm", 2, 5, 3, 8, turned=False)
    yield case("rotary", 2, 5, 3, 8, norm=False)
    yield case("both", 2, 5, 3, 8)
    yield case("groups", 2, 7, 4, 12, 2, soft_cap=2.0)
    yield case("odd", 2, 5, 2, 7, turned=False)
    yield case("narrowest", 2, 5, 2, 2, 1)
    yield case("one", 1, 1, 1, 2)
    yield case("nothing", 0, 3, 2, 4)
    yield case("own-positions", 2, 5, 2, 8, own=True)
    yield case("narrowed", 2, 5, 2, 8, layout="narrowed")
    yield case("no-weight-gradients", 2, 5, 2, 8, need_weight=False)
    yield case("wide", 1, 3, 1, 150)
    yield case("long", 2, 131, 4, 8)


def dropouts() -> Iterator[Case]:
    def case(name: str, x: Operand, probability: float) -> Case:
        def run(backend: Backend, x: Array, step: Array) -> list[Array]:
            return [backend.dropout(x, probability, RandomKey(SEED, STREAM, step))]

        def definition(x: Values, step: Values) -> Values:
            return x * definitions.dropout_factors(x.shape, probability, SEED, STREAM, int(step[0]))

        return Case(f"dropout-{name}", run, (x, STEP), definition, 3e-7, fused=True)

    for probability in (0.0, 1 / 3, 0.5, 0.95):
        yield case(f"{probability:.2f}", normal(7, 33), probability)
    for name, x in {
        "one": normal(1),
        "none": normal(0, 3),
        "axes": normal(2, 3, 5, 7),
        "many": normal(2, 40_001),
        "swapped": normal(5, 7).swapped(),
        "narrowed": normal(5, 7).narrowed(),
    }.items():
        yield case(name, x, 0.25)
    yield Case("dropout-no-key", lambda b, x: [b.dropout(x, 0.5, None)], (normal(4),), lambda x: x, fused=True)


def losses() -> Iterator[Case]:
    def case(
        name: str, x: Operand, vocabulary: int, targets: str = "ids", soft_cap: float = 0.0, with_buffer: bool = False,
        weight: Operand | None = None, tolerance: float = 3e-6, need_weight: bool = True,
    ) -> Case:  # fmt: skip
        def run(backend: Backend, x: Array, weight: Array, targets: Array, dloss: Array) -> list[Array]:
            options = {} if need_weight else {"need_weight": False}
            loss, saved, plain = both_ways(backend, "cross_entropy", x, weight, targets, soft_cap, **options)
            buffer = backend.zeros(weight.shape, weight.dtype) if with_buffer else None
            gradients = backend.cross_entropy_backward(dloss, saved, buffer)
            losses = backend.row_losses(x, weight, targets, soft_cap)
            return [each for each in (loss, *gradients, plain, losses) if each is not None]

        def definition(x: Values, weight: Values, targets: Values, dloss: Values) -> Values:
            return definitions.cross_entropy(x, weight, targets, soft_cap)

        operands = (
            x, weight or normal(vocabulary, x.shape[1]), Operand((x.shape[0],), targets, vocabulary), positive(),
        )  # fmt: skip
        return Case(f"cross_entropy-{name}", run, operands, definition, tolerance, fused=True)

    x = normal(9, 4)
    yield case("plain", x, 7)
    yield case("cap", x, 7, soft_cap=3.0)
    yield case("ignored", x, 7, "targets")
    yield case("no-weight-gradient", x, 7, "targets", need_weight=False)
    yield case("ignored-cap-buffer", x, 7, "targets", 3.0, with_buffer=True)
    yield case("all-ignored", x, 7, "ignored")
    yield case("all-ignored-cap", x, 7, "ignored", 3.0)
    yield case("buffer", x, 7, with_buffer=True)
    yield case("one", normal(1, 1), 1)
    yield case("one-row", normal(1, 5), 7)
    yield case("no-rows", normal(0, 4), 7)
    yield case("many-rows", normal(1030, 8), 37, "targets", tolerance=1e-5)
    yield case("many-words", normal(17, 8), 2053, "targets", 3.0, tolerance=1e-5)
    yield case("both-many", normal(300, 24), 1501, tolerance=1e-5)
    yield case("chunks", normal(37, 8), 41, "targets", 3.0)
    yield case("wide", wide(9, 4), 7, tolerance=1e-5)
    yield case("swapped", x.swapped(), 7, weight=normal(7, 4).swapped())
    yield case("narrowed", x.narrowed(), 7, weight=normal(7, 4).narrowed(0))


def updates() -> Iterator[Case]:
    def squares(x: Values) -> Values:
        return (x**2).sum().reshape(1)

    for name, x in {
        "": normal(3, 5),
        "-one": normal(1),
        "-none": normal(0),
        "-swapped": normal(5, 7).swapped(),
        "-narrowed": normal(5, 7).narrowed(),
        "-many": normal(70_001),
    }.items():
        yield Case(f"sum_of_squares{name}", lambda b, x: [b.sum_of_squares(x)], (x,), squares, 2e-6, fused=True)

    def case(
        name: str, shape: tuple[int, ...], operation: str, in_place: int, accept: str = "true", **options: float
    ) -> Case:
        """Operands: gradient (or step), parameter and state, learning rate, gradient scale, accept, corrections.

        The parameter and its state are changed in place: each is a part of a flat array with one element more on each
        side, which must not change.
        """
        size = int(np.prod(shape))

        def run(backend: Backend, gradient: Array, *arrays: Array) -> list[Array]:
            flats = [backend.zeros((size + 2,), gradient.dtype) for _ in range(in_place)]
            parts = [backend.reshape(backend.narrow(flat, 0, 1, size), shape) for flat in flats]
            for part, source in zip(parts, arrays, strict=False):
                backend.copy_into(part, source)
            control = AdamControl(*arrays[in_place:])
            getattr(backend, operation)(parts[0], gradient, *parts[1:], control, **options)
            return flats

        def definition(gradient: Values, *arrays: Values) -> list[Values]:
            parameter, *state = arrays[:in_place]
            control = definitions.Control(*arrays[in_place:])
            updated = getattr(definitions, operation)(parameter, gradient, *state, control, **options)
            return [np.pad(each.reshape(-1), 1) for each in updated]

        operands = (normal(*shape), *[positive(*shape)] * in_place)
        if size == 1:
            # One number is its own scale, so the parameter and the step must not cancel: then a rounding of either
            # counts 2 |p| / |p - step| times. With these signs they add up, and an error is at most that of the step,
            # in units of 2^-23: AdamW's has 10 roundings (5), two quotients of 2.5 and one under a root (1.25), and a
            # root of 4.5, all of them what Vulkan allows: 15.75, or 1.9e-6.
            operands = (Operand(shape, "negative"), positive(*shape), Operand(shape, "negative"), positive(*shape))
            operands = operands[: 1 + in_place]
        control = (positive(1), positive(1), Operand((1,), accept), positive(1), positive(1))
        return Case(f"{operation}-{name}", run, (*operands, *control), definition, 3e-6, fused=True)

    for operation in UPDATES:
        arrays, options = update_operands(operation)
        in_place = arrays - 1  # all but the gradient
        decay = {"weight_decay": 0.0} if "weight_decay" in options else {}
        yield case("matrix", (5, 7), operation, in_place, **options)
        yield case("vector", (9,), operation, in_place, **options | decay)
        yield case("refused", (5, 7), operation, in_place, "false", **options)
        yield case("one", (1,), operation, in_place, **options)
        yield case("none", (0,), operation, in_place, **options)
        yield case("many", (40_001,), operation, in_place, **options)

    def copy_into_if(backend: Backend, condition: Array, x: Array, source: Array) -> list[Array]:
        target = backend.zeros(x.shape, x.dtype)
        backend.copy_into(target, x)
        backend.copy_into_if(condition, target, source)
        return [target]

    for name, condition in {
        "true": Operand((1,), "true"),
        "false": Operand((1,), "false"),
        "each": boolean(3, 1),
    }.items():
        yield Case(
            f"copy_into_if-{name}", copy_into_if, (condition, normal(3, 5), normal(3, 5)),
            lambda c, x, y: np.where(c, y, x), fused=True,
        )  # fmt: skip


def orthogonalizations() -> Iterator[Case]:
    def case(name: str, rows: int, widths: tuple[int, ...], layers: int = 1, swapped: bool = False) -> Case:
        """Matrices side by side, in each of so many layers."""

        def run(backend: Backend, x: Array) -> list[Array]:
            whole = backend.zeros(x.shape, x.dtype)
            backend.copy_into(whole, x)
            starts = np.cumsum((0, *widths))
            layer = [backend.reshape(backend.narrow(whole, 0, index, 1), x.shape[1:]) for index in range(layers)]
            parts = [backend.narrow(each, 1, s, w) for each in layer for s, w in zip(starts, widths, strict=False)]
            backend.orthogonalize([backend.transpose(each, (1, 0)) if swapped else each for each in parts], 0.2)
            return [whole]

        def definition(x: Values) -> Values:
            parts = np.split(x, np.cumsum(widths)[:-1], axis=2)
            return np.concatenate([definitions.orthogonal(each, 0.2) for each in parts], axis=2)

        return Case(f"orthogonalize-{name}", run, (normal(layers, rows, sum(widths)),), definition, 1e-5, fused=True)

    yield case("square", 6, (6,))
    yield case("wide", 5, (16,))
    yield case("tall", 17, (4,))
    yield case("swapped", 5, (16,), swapped=True)
    yield case("one", 1, (1,))
    yield case("row", 1, (9,), 2)
    yield case("parts", 8, (8, 8, 8), 3)
    yield case("unlike", 8, (8, 4, 4, 12, 8), 2)
    yield case("many", 32, (32, 64), 5)


def fused() -> list[Case]:
    families = (
        activations, linears, adapted_linears, norms, attentions, cached_attentions, put_rows, newest_ids, softmaxes,
        rotaries, self_attentions, dropouts, losses, updates, orthogonalizations,
    )  # fmt: skip
    return [case for family in families for case in family()]
