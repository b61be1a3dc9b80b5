"""Causal attention of the reference backend, a tile of queries of a few heads at a time.

A tile's scores stay in the processor's cache while they are masked, exponentiated and multiplied with the values, and
keys that no query of the tile may see are never touched. Probabilities are kept unnormalized, E = exp(scores - max);
1/sum is applied to the much smaller results. See `Backend.attention` for the formula.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alpha import backend_cpu_ref_sidecar as sidecar
from alpha import backend_cpu_ref_training as training
from alpha.backend_cpu_ref_kernels import softmax_unnormalized
from alpha.backend_cpu_ref_primitives import NumpyArray

TILE_QUERIES = 64
PART_BYTES = 1 << 20


class AttentionPart(NamedTuple):
    """An independent part of the work: some sequences and some key heads, with the query heads that use them."""

    sequences: slice
    key_heads: slice
    query_heads: slice

    def tile_key(self, tile: slice) -> tuple[int, int, int]:
        """Names a tile of this part."""
        return self.sequences.start, self.key_heads.start, tile.start


@dataclass(frozen=True)
class Tile:
    """What the forward half keeps of a tile of queries of a part.

    exponentials and capped (tanh(scores / soft_cap)) are [sequences, key heads, rows, keys], inverse_sums [sequences,
    key heads, rows, 1]; the rows are the tile's queries for each query head that uses the key head, in turn.
    """

    exponentials: NumpyArray
    inverse_sums: NumpyArray
    capped: NumpyArray | None


@dataclass(frozen=True)
class AttentionCall:
    """The operands and result of one attention, and what its forward half keeps for the backward half.

    query, out [B, Tq, H, D]; key, value [B, Tk, G, D]; kept [B, H, Tq, Tk] holds the dropout factors, 0 or 1 / (1 - p).
    `tiles_kept`, by `tile_key`, is None outside training. first_keys [B, Tq] as in `Backend.attention`.
    """

    query: NumpyArray
    key: NumpyArray
    value: NumpyArray
    out: NumpyArray
    soft_cap: float
    kept: NumpyArray | None
    tiles_kept: dict[tuple[int, int, int], Tile] | None
    first_keys: NumpyArray | None

    def parts(self) -> list[AttentionPart]:
        """The whole work, in parts whose scores fit the cache where a single head's do."""
        B, Tq, H, _ = self.query.shape
        Tk, G = self.key.shape[1], self.key.shape[2]
        group = H // G
        head_bytes = max(1, min(Tq, TILE_QUERIES) * Tk * group * self.query.itemsize)
        heads = max(1, min(G, PART_BYTES // head_bytes))
        sequences = max(1, PART_BYTES // (head_bytes * G))
        return [
            AttentionPart(slice(b, min(b + sequences, B)), slice(g, g_end), slice(g * group, g_end * group))
            for b in range(0, B, sequences)
            for g in range(0, G, heads)
            for g_end in [min(g + heads, G)]
        ]

    def tiles(self, part: AttentionPart) -> list[tuple[slice, slice]]:
        """Ranges of queries with those of the keys that any of them may see, the last range first."""
        Tq, Tk = self.query.shape[1], self.key.shape[1]
        starts = reversed(range(0, Tq, TILE_QUERIES))
        ranges = [slice(start, min(start + TILE_QUERIES, Tq)) for start in starts]
        first = [
            0 if self.first_keys is None else int(self.first_keys[part.sequences, each.start].min()) for each in ranges
        ]
        return [(each, slice(start, Tk - Tq + each.stop)) for each, start in zip(ranges, first, strict=True)]

    def hide_other_documents(self, scores: NumpyArray, part: AttentionPart, tile: slice, keys: slice) -> None:
        """Makes the scores -infinity of keys that stand before a query's document."""
        if self.first_keys is None:
            return
        first = self.first_keys[part.sequences, tile]
        earlier = max(0, int(first[:, -1].max()) - keys.start)  # keys that some query may not see
        hidden = np.arange(keys.start, keys.start + earlier) < first[:, :, None]
        by_query = scores.reshape(len(first), -1, tile.stop - tile.start, keys.stop - keys.start)
        np.copyto(by_query[..., :earlier], -np.inf, where=hidden[:, None])

    def rows(self, x: NumpyArray, part: AttentionPart, tile: slice, factor: float | NumpyArray = 1.0) -> NumpyArray:
        """A part of x [B, Tq, H, D] times a factor, as a new array [sequences, key heads, rows, D]."""
        by_head = x[part.sequences, tile, part.query_heads].transpose(0, 2, 1, 3)
        rows = np.empty(by_head.shape, x.dtype)
        np.multiply(by_head, factor, out=rows)
        return rows.reshape(len(rows), part.key_heads.stop - part.key_heads.start, -1, x.shape[-1])

    def write_rows(self, target: NumpyArray, rows: NumpyArray, part: AttentionPart, tile: slice) -> None:
        """The inverse of `rows`."""
        by_head = rows.reshape(rows.shape[0], -1, tile.stop - tile.start, rows.shape[-1])
        target[part.sequences, tile, part.query_heads] = by_head.transpose(0, 2, 1, 3)

    def dropout_factors(
        self, part: AttentionPart, tile: slice, keys: slice, shape: tuple[int, ...]
    ) -> NumpyArray | None:
        """The dropout factors of a tile, laid out like its scores."""
        if self.kept is None:
            return None
        return self.kept[part.sequences, part.query_heads, tile, keys].reshape(shape)


def forward(call: AttentionCall, part: AttentionPart) -> None:
    """Writes the part of `out`, and keeps its tiles."""
    scale = 1.0 / math.sqrt(call.query.shape[-1])
    for tile, keys in call.tiles(part):
        q = call.rows(call.query, part, tile, scale)
        k = _transposed(call.key[part.sequences, keys, part.key_heads])
        v = call.value[part.sequences, keys, part.key_heads].transpose(0, 2, 1, 3)
        scores = np.matmul(q, k)
        capped = None
        if call.soft_cap:
            scores *= 1.0 / call.soft_cap
            capped = np.tanh(scores)
            np.multiply(capped, call.soft_cap, out=scores)
        call.hide_other_documents(scores, part, tile, keys)
        sums = _causal_softmax(scores, tile.stop - tile.start)
        np.divide(1.0, sums, out=sums)
        if call.tiles_kept is not None:
            call.tiles_kept[part.tile_key(tile)] = Tile(scores, sums, capped)
        factors = call.dropout_factors(part, tile, keys, scores.shape)
        out = np.matmul(scores if factors is None else scores * factors, v)
        out *= sums
        call.write_rows(call.out, out, part, tile)


def _causal_softmax(scores: NumpyArray, queries: int) -> NumpyArray:
    """See `backend_cpu_ref_training.softmax`."""
    if sidecar.can_do(scores):
        return training.softmax(scores, queries)
    count = scores.shape[-1]
    recent = max(0, count - queries)
    by_head = scores.reshape(-1, queries, count)
    by_head[:, :, recent:] += future_mask(queries, scores.dtype)[:, queries - (count - recent) :]
    return softmax_unnormalized(scores)


def backward(
    call: AttentionCall,
    dout: NumpyArray,
    dquery: NumpyArray,
    dkey: NumpyArray,
    dvalue: NumpyArray,
    part: AttentionPart,
) -> None:
    """Writes the part of dquery, dkey and dvalue.

    With r = 1/sum and do' = r do: dV = E^T do', dS = E (do' V^T - <do', o>), dQ = dS K, dK = dS^T Q.
    """
    scale = 1.0 / math.sqrt(call.query.shape[-1])
    assert call.tiles_kept is not None
    for tile, keys in call.tiles(part):
        kept = call.tiles_kept[part.tile_key(tile)]
        do = call.rows(dout, part, tile)
        do *= kept.inverse_sums
        delta = np.vecdot(do, call.rows(call.out, part, tile))[..., None]
        k = call.key[part.sequences, keys, part.key_heads].transpose(0, 2, 1, 3)
        v = _transposed(call.value[part.sequences, keys, part.key_heads])
        ds = np.matmul(do, v)
        exponentials = kept.exponentials
        factors = call.dropout_factors(part, tile, keys, ds.shape)
        if factors is not None:
            ds *= factors
            exponentials = exponentials * factors
        dv = np.matmul(exponentials.swapaxes(2, 3), do)
        if sidecar.can_do(ds):
            training.softmax_backward(ds, kept.exponentials, delta)
        else:
            ds -= delta
            ds *= kept.exponentials
        if kept.capped is not None:
            ds *= 1.0 - kept.capped * kept.capped
        dq = np.matmul(ds, k)
        dq *= scale
        call.write_rows(dquery, dq, part, tile)
        dk = np.matmul(ds.swapaxes(2, 3), call.rows(call.query, part, tile, scale))
        for target, contribution in ((dkey, dk), (dvalue, dv)):
            view = target[part.sequences, keys, part.key_heads].transpose(0, 2, 1, 3)
            if keys.stop == target.shape[1]:  # the first tile to be worked on: what it does not see, others add to
                target[part.sequences, : keys.start, part.key_heads] = 0.0
                view[...] = contribution
            else:
                view += contribution


@dataclass(frozen=True)
class CachedCall:
    """The operands of `Backend.cached_attention` and its result, out [N, H, D]."""

    query: NumpyArray
    keys: NumpyArray
    values: NumpyArray
    sequences: NumpyArray
    positions: NumpyArray
    tables: NumpyArray
    out: NumpyArray
    soft_cap: float

    def parts(self) -> list[slice]:
        """Neighbouring rows of one sequence whose positions are in one block: they see the same number of blocks."""
        places = self.sequences.astype(np.int64) << 32 | self.positions // self.keys.shape[1]
        ends = [*(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
        return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def cached(call: CachedCall, rows: slice) -> None:
    """Writes some rows of `out`. Each row is multiplied alone, with whole blocks, so that its bits are its own."""
    (_, H, D), (_, tokens, G, _) = call.query.shape, call.keys.shape
    positions = call.positions[rows]
    blocks = call.tables[call.sequences[rows.start], : positions[0] // tokens + 1]
    k, v = (_in_order(store, blocks).transpose(1, 0, 2) for store in (call.keys, call.values))  # [G, places, D]
    q = np.multiply(call.query[rows], 1.0 / math.sqrt(D)).reshape(-1, G, H // G, D)
    scores = np.matmul(q, k.transpose(0, 2, 1))
    if call.soft_cap:
        scores *= 1.0 / call.soft_cap
        np.tanh(scores, out=scores)
        scores *= call.soft_cap
    future = np.arange(tokens) > (positions % tokens)[:, None]
    np.copyto(scores[..., -tokens:], -np.inf, where=future[:, None, None])
    scores -= np.max(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    sums = np.add.reduce(scores, axis=-1, keepdims=True)
    if np.isfinite(v[:, -tokens:]).all():
        out = np.matmul(scores, v)
    else:  # what stands behind a row's position has weight 0, but 0 times infinity is none
        out = np.stack(
            [np.matmul(row, _known(v, position + 1)) for row, position in zip(scores, positions, strict=True)]
        )
    np.divide(out, sums, out=call.out[rows].reshape(out.shape))


def _in_order(store: NumpyArray, blocks: NumpyArray) -> NumpyArray:
    """The content [places, G, D] of some blocks; without a copy where they are neighbours."""
    first, count = int(blocks[0]), len(blocks)
    part = store[first : first + count] if (np.diff(blocks) == 1).all() else store[blocks]
    return part.reshape(-1, *store.shape[2:])


def _known(v: NumpyArray, count: int) -> NumpyArray:
    """v [G, places, D] with zeros behind the first `count` places, laid out like it."""
    known = np.zeros((v.shape[1], v.shape[0], v.shape[2]), v.dtype).transpose(1, 0, 2)
    known[:, :count] = v[:, :count]
    return known


def _transposed(x: NumpyArray) -> NumpyArray:
    """[sequences, keys, heads, D] as [sequences, heads, D, keys], copied: products with it are half as fast again."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@functools.lru_cache(16)
def future_mask(queries: int, dtype: np.dtype[np.floating]) -> NumpyArray:
    """[queries, queries]: -infinity where the key is after the query, else 0."""
    return np.triu(np.full((queries, queries), -np.inf, dtype), 1)
