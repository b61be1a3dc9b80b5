"""Matrix products whose rows do not depend on how many there are.

BLAS may add up the terms of a row in another order when there are more rows, because it takes another kernel. That
would let one request's output depend on what else is in the batch. So products are cut into parts of a few fixed
shapes: at most `TILE` rows, and columns by the weight alone. A smaller number of rows is filled up with zeros to one at
which the BLAS at hand gives each row the bits that it has among `TILE`; which numbers these are is found by trying,
once for each shape.
"""

import functools

import numpy as np

from alpha.backend_cpu_ref_primitives import NumpyArray, Part

TILE = 256
PART_SIZE = 1 << 18
"""Elements of a weight in one part: enough of them for several threads, each large enough for BLAS."""
COLUMNS = 64


def product_parts(x: NumpyArray, weight: NumpyArray, out: NumpyArray) -> list[Part]:
    """out = x @ weight, in parts that can be done side by side; x [M, K], weight [K, N]."""
    (M, K), N = x.shape, weight.shape[1]

    def part(place: tuple[NumpyArray, slice, slice]) -> None:
        tile, rows, columns = place
        count = rows.stop - rows.start
        if len(tile) == count:
            np.matmul(tile, weight[:, columns], out=out[rows, columns])
        else:
            out[rows, columns] = np.matmul(tile, weight[:, columns])[:count]

    parts: list[Part] = []
    tiles: dict[tuple[int, ...], list[tuple[NumpyArray, slice]]] = {}
    for columns, counts in _columns(K, N, weight.strides[0] < weight.strides[1], x.dtype.char):
        if counts not in tiles:
            ranges = [slice(first, min(first + counts[-1], M)) for first in range(0, M, counts[-1])]
            tiles[counts] = [(_filled(x[rows], counts), rows) for rows in ranges]
        parts += [(part, (tile, rows, columns)) for tile, rows in tiles[counts]]
    return parts


@functools.lru_cache(1024)
def _columns(K: int, N: int, transposed: bool, dtype: str) -> list[tuple[slice, tuple[int, ...]]]:
    """The parts of a weight's columns, each with its `row_counts`."""
    width = min(N, -(-PART_SIZE // max(1, K * COLUMNS)) * COLUMNS)
    parts = [slice(start, min(start + width, N)) for start in range(0, N, width)]
    return [(columns, row_counts(K, columns.stop - columns.start, transposed, dtype)) for columns in parts]


def _filled(rows: NumpyArray, counts: tuple[int, ...]) -> NumpyArray:
    count = next(each for each in counts if each >= len(rows))
    if count == len(rows):
        return rows
    tile = np.zeros((count, rows.shape[1]), rows.dtype)
    tile[: len(rows)] = rows
    return tile


@functools.lru_cache(4096)
def row_counts(K: int, N: int, transposed: bool, dtype: str) -> tuple[int, ...]:
    """Numbers of rows, rising, at which a product with a weight [K, N] gives a row the same bits wherever it stands."""
    # Any numbers would do that are unlike each other: what is looked for is another order of summation.
    numbers = np.random.default_rng(0).standard_normal(65_537).astype(dtype)
    weight = np.resize(numbers, (N, K)).T if transposed else np.resize(numbers, (K, N))
    x = np.resize(numbers[::-1], (TILE, K))
    expected = np.matmul(x, weight)
    counts = [TILE >> power for power in range(TILE.bit_length() - 1)]  # 256 to 2; one row is another operation

    def is_equal(count: int) -> bool:
        # Each row comes to stand at several places of the smaller product.
        starts = {0, 1, count // 2 + 1, TILE - count}
        moved = np.concatenate([x, x[: count // 2 + 1]])
        both = np.concatenate([expected, expected[: count // 2 + 1]])
        return all(
            np.array_equal(np.matmul(moved[start : start + count], weight), both[start : start + count])
            for start in sorted(starts)
        )

    equal = tuple(sorted(count for count in counts if is_equal(count)))
    return equal if equal and equal[-1] == TILE else (1,)
