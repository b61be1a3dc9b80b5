"""Causal attention of the reference backend, a tile of queries of a few heads at a time.

A tile's scores stay in the processor's cache while they are masked, exponentiated and multiplied with the values, and
keys that no query of the tile may see are never touched. Probabilities are kept unnormalized, E = exp(scores - max);
1/sum is applied to the much smaller results. See `Backend.attention` for the formula.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alpha.backend_cpu_ref_kernels import softmax_unnormalized
from alpha.backend_cpu_ref_primitives import NumpyArray

TILE_QUERIES = 128
PART_BYTES = 1 << 18


@dataclass(frozen=True)
class Tile:
    """What the forward half keeps of a tile; rows are the queries of each query head of a key head in turn."""

    exponentials: NumpyArray
    """[key heads, rows, keys]"""
    inverse_sums: NumpyArray
    """[key heads, rows, 1]"""
    capped: NumpyArray | None
    """tanh(scores / soft_cap), like the exponentials."""


@dataclass
class AttentionCall:
    """The operands and result of one attention, and what its forward half keeps for the backward half.

    query, out [B, Tq, H, D]; key, value [B, Tk, G, D]; kept [B, H, Tq, Tk] holds the dropout factors, 0 or 1 / (1 - p).
    `tiles_kept` is None outside training.
    """

    query: NumpyArray
    key: NumpyArray
    value: NumpyArray
    out: NumpyArray
    soft_cap: float
    kept: NumpyArray | None
    tiles_kept: dict[tuple[int, int, int], Tile] | None

    def parts(self) -> list[tuple[int, slice]]:
        """Independent parts of the work: a sequence and some of its key heads each."""
        B, Tq, H, _ = self.query.shape
        Tk, G = self.key.shape[1], self.key.shape[2]
        head_bytes = min(Tq, TILE_QUERIES) * Tk * (H // G) * self.query.itemsize
        step = max(1, min(G, PART_BYTES // head_bytes))
        return [(b, slice(g, min(g + step, G))) for b in range(B) for g in range(0, G, step)]

    def tiles(self) -> Iterator[tuple[slice, int]]:
        """Ranges of queries with the number of keys that they may see, the last range first."""
        Tq, Tk = self.query.shape[1], self.key.shape[1]
        for start in reversed(range(0, Tq, TILE_QUERIES)):
            stop = min(start + TILE_QUERIES, Tq)
            yield slice(start, stop), Tk - Tq + stop

    def heads(self, groups: slice) -> slice:
        """The query heads of a range of key heads."""
        group = self.query.shape[2] // self.key.shape[2]
        return slice(groups.start * group, groups.stop * group)

    def rows(self, x: NumpyArray, b: int, tile: slice, groups: slice) -> NumpyArray:
        """The part of x [B, Tq, H, D] as a new array [key heads, rows, D], see `Tile`."""
        by_head = x[b, tile, self.heads(groups)].transpose(1, 0, 2)
        return by_head.copy().reshape(groups.stop - groups.start, -1, x.shape[-1])

    def write_rows(self, target: NumpyArray, rows: NumpyArray, b: int, tile: slice, groups: slice) -> None:
        """The inverse of `rows`."""
        queries, D = tile.stop - tile.start, rows.shape[-1]
        by_head = rows.reshape(-1, queries, D)
        target[b, tile, self.heads(groups)] = by_head.transpose(1, 0, 2)

    def dropout_factors(self, b: int, tile: slice, groups: slice, shape: tuple[int, ...]) -> NumpyArray | None:
        """The dropout factors of a tile, laid out like its scores."""
        if self.kept is None:
            return None
        return self.kept[b, self.heads(groups), tile, : shape[-1]].reshape(shape)


def forward(call: AttentionCall, part: tuple[int, slice]) -> None:
    """Writes the part of `out`, and keeps its tiles."""
    b, groups = part
    scale = 1.0 / math.sqrt(call.query.shape[-1])
    for tile, keys in call.tiles():
        q = call.rows(call.query, b, tile, groups)
        q *= scale
        k = call.key[b, :keys, groups].transpose(1, 2, 0)
        v = call.value[b, :keys, groups].transpose(1, 0, 2)
        scores = np.matmul(q, k)
        capped = None
        if call.soft_cap:
            scores *= 1.0 / call.soft_cap
            capped = np.tanh(scores)
            np.multiply(capped, call.soft_cap, out=scores)
        # Only the last `queries` keys can be in the future of a query of this tile.
        queries = tile.stop - tile.start
        by_head = scores.reshape(-1, queries, keys)
        by_head[:, :, keys - queries :] += future_mask(queries, scores.dtype)
        sums = softmax_unnormalized(scores)
        np.divide(1.0, sums, out=sums)
        if call.tiles_kept is not None:
            call.tiles_kept[b, groups.start, tile.start] = Tile(scores, sums, capped)
        factors = call.dropout_factors(b, tile, groups, scores.shape)
        out = np.matmul(scores if factors is None else scores * factors, v)
        out *= sums
        call.write_rows(call.out, out, b, tile, groups)


def backward(
    call: AttentionCall,
    part: tuple[int, slice],
    dout: NumpyArray,
    dquery: NumpyArray,
    dkey: NumpyArray,
    dvalue: NumpyArray,
) -> None:
    """Writes the part of dquery, dkey and dvalue.

    With r = 1/sum and do' = r do: dV = E^T do', dS = E (do' V^T - <do', o>), dQ = dS K, dK = dS^T Q.
    """
    b, groups = part
    scale = 1.0 / math.sqrt(call.query.shape[-1])
    assert call.tiles_kept is not None
    for index, (tile, keys) in enumerate(call.tiles()):
        kept = call.tiles_kept[b, groups.start, tile.start]
        do = call.rows(dout, b, tile, groups)
        do *= kept.inverse_sums
        delta = np.vecdot(do, call.rows(call.out, b, tile, groups))[..., None]
        k = call.key[b, :keys, groups].transpose(1, 0, 2)
        v = call.value[b, :keys, groups].transpose(1, 2, 0)
        ds = np.matmul(do, v)
        exponentials = kept.exponentials
        factors = call.dropout_factors(b, tile, groups, ds.shape)
        if factors is not None:
            ds *= factors
            exponentials = exponentials * factors
        dv = np.matmul(exponentials.swapaxes(1, 2), do)
        ds -= delta
        ds *= kept.exponentials
        if kept.capped is not None:
            ds *= 1.0 - kept.capped * kept.capped
        dq = np.matmul(ds, k)
        dq *= scale
        call.write_rows(dquery, dq, b, tile, groups)
        q = call.rows(call.query, b, tile, groups)
        q *= scale
        dk = np.matmul(ds.swapaxes(1, 2), q)
        for target, contribution in ((dkey, dk), (dvalue, dv)):
            view = target[b, :keys, groups].transpose(1, 0, 2)
            if index == 0:  # the last queries see every key
                view[...] = contribution
            else:
                view += contribution


def future_mask(queries: int, dtype: np.dtype[np.floating]) -> NumpyArray:
    """[queries, queries]: -infinity where the key is after the query, else 0."""
    return np.triu(np.full((queries, queries), -np.inf, dtype), 1)
