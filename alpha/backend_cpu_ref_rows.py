"""Inference of the reference backend in the native sidecar: linear layers, norms and attention to a cache, in float32.

`native/rows.h` says what its functions do. In each, the bits of a row do not depend on how many rows there are, so that
a request's output does not depend on what else is computed. Each is as fast for few rows as weights can be read, where
BLAS has its speed for many rows only. The sidecar is optional, and float64 is numpy's: then numpy does the same, more
slowly (`backend_cpu_ref_products`).
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from alpha.backend_cpu_ref_attention import CachedCall
from alpha.backend_cpu_ref_primitives import NumpyArray, Part
from alpha.backend_cpu_ref_sidecar import address, function, structure

COLUMNS = 64
APART = 256
"""Elements between the sums of two threads: processors fetch the lines of a cache that come next, too."""
PART_WEIGHTS = 1 << 14
"""Elements of a weight in one part, which take longer to read than a thread to begin."""
PART_ROWS = 16
"""Most rows of attention in one part."""


# As in `native/rows.h`.
_Product = structure(
    "_Product",
    "x weight bias residual sums out",
    "x_stride weight_stride sums_stride out_stride transposed rows depth columns",
)
_Attended = structure(
    "_Attended", "query keys values sequences positions tables scores out",
    "query_stride pages rows heads key_heads width tokens", ("soft_cap", ctypes.c_float),
)  # fmt: skip


def linear_part(
    x: NumpyArray,
    weight: NumpyArray,
    bias: NumpyArray | None,
    residual: NumpyArray | None,
    out: NumpyArray,
    threads: int,
) -> Part:
    """out = x @ weight + bias + residual on so many threads; x [M, K], weight [K, N], bias [N], residual [M, N]; out
    [M, N] is contiguous."""
    (M, K), N, size = x.shape, weight.shape[1], 4
    x = np.ascontiguousarray(x)
    residual = None if residual is None else np.ascontiguousarray(residual)
    is_transposed = weight.strides[0] == size <= K * size <= weight.strides[1]
    if not is_transposed and not weight.strides[1] == size <= N * size <= weight.strides[0]:
        weight = np.ascontiguousarray(weight)
    stride = weight.strides[1 if is_transposed else 0] // size
    parts = _column_parts(K, N, threads)
    width = parts[0][1]
    sums = np.empty((len(parts), M * width + APART), np.float32) if len(parts) > 1 else out
    products = [
        _Product(
            address(x), address(weight[:, first:]), address(bias, first), address(residual, first),
            address(own), address(out, first), K, stride, width, N, is_transposed, M, K, last - first,
        ) for (first, last), own in zip(parts, sums if len(parts) > 1 else [out], strict=True)
    ]  # fmt: skip
    return _part("rows_linear_parts", _Product, products, threads, (x, weight, bias, residual, sums, out))


@functools.lru_cache(1024)
def _column_parts(K: int, N: int, threads: int) -> list[tuple[int, int]]:
    wanted = max(1, min(threads, K * N // PART_WEIGHTS))
    width = -(-N // (wanted * COLUMNS)) * COLUMNS
    return [(start, min(start + width, N)) for start in range(0, N, width)]


def norm_part(
    x: NumpyArray, weight: NumpyArray, bias: NumpyArray | None, epsilon: float, is_centered: bool, out: NumpyArray
) -> Part:
    """Layer norm, or unless `is_centered` RMS norm, of x [rows, C], to `out` like it, which is contiguous."""
    x = np.ascontiguousarray(x)
    arguments = (address(x), address(weight), address(bias), epsilon, is_centered, address(out), *x.shape)
    return _call, (function("rows_norm"), arguments, (x, weight, bias, out))


def attention_part(call: CachedCall, threads: int) -> Part:
    """`cached_attention` on so many threads."""
    (N, H, D), (_, tokens, G, _), pages = call.query.shape, call.keys.shape, call.tables.shape[1]
    query = call.query if call.query.strides[1:] == (4 * D, 4) else np.ascontiguousarray(call.query)
    sequences, positions, tables = (
        np.ascontiguousarray(each, np.int32) for each in (call.sequences, call.positions, call.tables)
    )
    count = min(PART_ROWS, -(-N // threads))
    starts = range(0, N, count)
    scores = np.empty((len(starts), pages * tokens), np.float32)
    parts = [
        _Attended(
            address(query, first), address(call.keys), address(call.values), address(sequences, first),
            address(positions, first), address(tables), address(each), address(call.out, first),
            query.strides[0] // 4, pages, min(count, N - first), H, G, D, tokens, call.soft_cap,
        ) for first, each in zip(starts, scores, strict=True)
    ]  # fmt: skip
    return _part("rows_attention_parts", _Attended, parts, threads, (call, query, sequences, positions, tables, scores))


def _part(name: str, kind: type[ctypes.Structure], parts: list[Any], threads: int, arrays: object) -> Part:
    """A call of a function that shares out parts of its own; `arrays` are those that they point to."""
    together = (kind * len(parts))(*parts)
    return _call, (function(name), (ctypes.addressof(together), len(parts), threads), (together, arrays))


def _call(call: tuple[Callable[..., None], tuple[Any, ...], object]) -> None:
    """Call a function of the sidecar; the last item holds the arrays whose addresses are among the arguments."""
    called, arguments, _ = call
    called(*arguments)
