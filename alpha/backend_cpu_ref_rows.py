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
APART = 256
"""Elements between the sums of two threads: processors fetch the lines of a cache that come next, too."""
PART_WEIGHTS = 1 << 14
"""Elements of a weight in one part, which take longer to read than a thread to begin."""
PART_ROWS = 16
"""Most rows of attention in one part."""

Part = tuple[Callable[[Any], None], Any]


def _structure(name: str, pointers: str, numbers: str, *others: tuple[str, Any]) -> type[ctypes.Structure]:
    fields = [(each, ctypes.c_void_p) for each in pointers.split()] + [
        (each, ctypes.c_ssize_t) for each in numbers.split()
    ]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *others]})


# As in `native/rows.h`.
_Product = _structure(
    "_Product",
    "x weight bias residual sums out",
    "x_stride weight_stride sums_stride out_stride transposed rows depth columns",
)
_Attended = _structure(
    "_Attended", "query keys values sequences positions tables scores out",
    "query_stride pages rows heads key_heads width tokens", ("soft_cap", ctypes.c_float),
)  # fmt: skip


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
        "rows_linear_parts": (array, number, number),
        "rows_norm": (array, array, array, real, flag, array, number, number),
        "rows_attention_parts": (array, number, number),
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
            _address(x), _address(weight[:, first:]), _address(bias, first), _address(residual, first),
            _address(own), _address(out, first), K, stride, width, N, is_transposed, M, K, last - first,
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
    arguments = (_address(x), _address(weight), _address(bias), epsilon, is_centered, _address(out), *x.shape)
    return _call, (_function("rows_norm"), arguments, (x, weight, bias, out))


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
            _address(query, first), _address(call.keys), _address(call.values), _address(sequences, first),
            _address(positions, first), _address(tables), _address(each), _address(call.out, first),
            query.strides[0] // 4, pages, min(count, N - first), H, G, D, tokens, call.soft_cap,
        ) for first, each in zip(starts, scores, strict=True)
    ]  # fmt: skip
    return _part("rows_attention_parts", _Attended, parts, threads, (call, query, sequences, positions, tables, scores))


def _part(name: str, kind: type[ctypes.Structure], parts: list[Any], threads: int, arrays: object) -> Part:
    """A call of a function that shares out parts of its own; `arrays` are those that they point to."""
    together = (kind * len(parts))(*parts)
    return _call, (_function(name), (ctypes.addressof(together), len(parts), threads), (together, arrays))


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
