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
from alpha.backend_cpu_ref_primitives import NumpyArray
from alpha.errors import AlphaError
from alpha.installation import library_files

COLUMNS = 64
PART_WEIGHTS = 1 << 17
"""Elements of a weight in one part, which take longer to read than a thread to wake."""
PART_ROWS = 16
"""Most rows of attention in one part."""

Part = tuple[Callable[[Any], None], Any]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The sidecar with the functions of `native/rows.h` declared; None where it was not built, or not for this
    machine. Raises AlphaError when it is of another version."""
    path = next((each for each in library_files() if each.exists()), None)
    if path is None:
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    array, number, real, flag = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
    signatures = {
        "rows_linear": (array, number, array, number, flag, array, array, array, number, number, number, number),
        "rows_norm": (array, array, array, real, flag, array, number, number),
        "rows_attention": (array, number, *[array] * 5, number, real, array, array, *[number] * 5),
    }
    for name, arguments in signatures.items():
        if not hasattr(found, name):
            raise AlphaError(f"{path} is of another version of Alpha; build it again, or install Alpha again.")
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


def can_do(*arrays: NumpyArray) -> bool:
    """Whether the sidecar is there for these arrays."""
    return library() is not None and all(each.dtype.char == "f" for each in arrays)


def linear_parts(
    x: NumpyArray,
    weight: NumpyArray,
    bias: NumpyArray | None,
    residual: NumpyArray | None,
    out: NumpyArray,
    threads: int,
) -> list[Part]:
    """out = x @ weight + bias + residual, in parts that can be done side by side; x [M, K], weight [K, N], bias [N],
    residual and out [M, N], out contiguous."""
    (M, K), N, size = x.shape, weight.shape[1], 4
    x = np.ascontiguousarray(x)
    residual = None if residual is None else np.ascontiguousarray(residual)
    is_transposed = weight.strides[0] == size <= K * size <= weight.strides[1]
    if not is_transposed and not weight.strides[1] == size <= N * size <= weight.strides[0]:
        weight = np.ascontiguousarray(weight)
    stride = weight.strides[1 if is_transposed else 0] // size
    function = _function("rows_linear")
    parts: list[Part] = []
    for columns in _column_parts(K, N, threads):
        first, count = columns.start, columns.stop - columns.start
        arguments = (
            _address(x), K, _address(weight) + first * weight.strides[1], stride, is_transposed,
            _address(bias, first), _address(residual, first), _address(out, first), N, M, K, count,
        )  # fmt: skip
        parts.append((_call, (function, arguments, (x, weight, bias, residual, out))))
    return parts


@functools.lru_cache(1024)
def _column_parts(K: int, N: int, threads: int) -> list[slice]:
    wanted = max(1, min(threads, K * N // PART_WEIGHTS))
    width = -(-N // (wanted * COLUMNS)) * COLUMNS
    return [slice(start, min(start + width, N)) for start in range(0, N, width)]


def norm_part(
    x: NumpyArray, weight: NumpyArray, bias: NumpyArray | None, epsilon: float, is_centered: bool, out: NumpyArray
) -> Part:
    """Layer norm, or unless `is_centered` RMS norm, of x [rows, C], to `out` like it, which is contiguous."""
    x = np.ascontiguousarray(x)
    arguments = (_address(x), _address(weight), _address(bias), epsilon, is_centered, _address(out), *x.shape)
    return _call, (_function("rows_norm"), arguments, (x, weight, bias, out))


def attention_parts(call: CachedCall, threads: int) -> list[Part]:
    """`cached_attention`, in parts that can be done side by side."""
    (N, H, D), (_, tokens, G, _), pages = call.query.shape, call.keys.shape, call.tables.shape[1]
    query = call.query if call.query.strides[1:] == (4 * D, 4) else np.ascontiguousarray(call.query)
    sequences, positions, tables = (
        np.ascontiguousarray(each, np.int32) for each in (call.sequences, call.positions, call.tables)
    )
    function = _function("rows_attention")
    count = min(PART_ROWS, -(-N // threads))
    parts: list[Part] = []
    for first in range(0, N, count):
        scores = np.empty(pages * tokens, np.float32)
        arguments = (
            _address(query, first), query.strides[0] // 4, _address(call.keys), _address(call.values),
            _address(sequences, first), _address(positions, first), _address(tables), pages, call.soft_cap,
            _address(scores), _address(call.out, first), min(count, N - first), H, G, D, tokens,
        )  # fmt: skip
        parts.append((_call, (function, arguments, (call, query, sequences, positions, tables, scores))))
    return parts


def _call(call: tuple[Callable[..., None], tuple[Any, ...], object]) -> None:
    """Call a function of the sidecar; the last item holds the arrays whose addresses are among the arguments."""
    function, arguments, _ = call
    function(*arguments)


def _function(name: str) -> Callable[..., None]:
    found = library()
    assert found is not None
    function: Callable[..., None] = getattr(found, name)
    return function


def _address(array: NumpyArray | None, first: int = 0) -> int | None:
    """Where the element or row `first` of an array is."""
    if array is None:
        return None
    start: int = array.__array_interface__["data"][0]
    return start + first * array.strides[-1 if array.ndim < 3 else 0] if first else start
