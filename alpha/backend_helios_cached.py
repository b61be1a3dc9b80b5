"""What decoding needs on the Vulkan backend: keys and values in blocks, attention to them, and the choice of tokens.

The kernels are newest_ids, put_rows, attention_cached and attention_cached_rows, on matrix units
attention_cached_matrix, attention_cached_matrix_subgroup and attention_cached_matrix_rows, attention_combine and choose
in kernels/; see `Backend` for what they mean. Everything that differs from step to step is in arrays, so that a step
can be recorded once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import THREADS, groups_for, power_of_two, vector_of
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_helios_tiles import FEW_ROWS

CACHED_THREADS = 128
"""Positions that are worth a workgroup of their own have a thread each. The number must not depend on how many rows
there are."""

CACHED_WIDTH = 4 * CACHED_THREADS
"""Up to this width each quad of a result has a thread; wider heads are composed."""

MANY_ROWS = 128
"""So many rows, if they are more than there are sequences, are mostly those of prompts: neighbours of one sequence,
which read its keys together."""

_ROWS_TOGETHER, _WIDTH_TOGETHER, _LONE_TOGETHER = 16, 64, 8
"""How many rows share a tile for heads up to so wide, and how many that have no such neighbours a workgroup."""

ENOUGH_GROUPS = 1024
"""Workgroups that fill a large device; where there are fewer, the parts of a row's keys have some of their own."""

MATRIX_WIDTHS = (16, 32, 64)
"""Of heads whose attention is on matrix units, where there are any. Others are computed without."""

_MATRIX_COLUMNS = 16
"""There, of a row alone: columns of a subgroup."""

_MATRIX_SUBGROUPS = 4
"""Of more rows, each with a head of a row to itself: at most so many subgroups of a workgroup."""

_MATRIX_BLOCKS, _MATRIX_SHARES, _MATRIX_LONE = 2, 4, 2
"""Of rows that read their keys together: fragments of rows that share a tile, at most so many subgroups of each, and
how many rows that have no such neighbours share a workgroup."""

CHOOSING_THREADS = 1024


class Cached(HeliosPrimitives):
    """What decoding needs; see `Backend` for what it means."""

    def choose(self, logits: HeliosArray, options: HeliosArray, top_k: HeliosArray) -> HeliosArray:
        count, width = logits.shape
        ids = self.new((count,), "i32")
        self.dispatch(
            "choose",
            logits.element,
            (count, 1, 1),
            {"THREADS": min(CHOOSING_THREADS, self.device_info.max_workgroup_invocations)},
            logits=self.contiguous(logits),
            options=self.contiguous(options),
            top_k=self.contiguous(top_k),
            ids=ids,
            put_places=None,
            put_target=None,
            relay=None,
            width=width,
            put_rows=0,
        )
        return ids

    def newest_ids(self, newest: HeliosArray, slots: HeliosArray, given: HeliosArray) -> HeliosArray:
        ids = self.new(slots.shape, "i32")
        self.dispatch(
            "newest_ids",
            "i32",
            groups_for(ids.size),
            {},
            newest=self.contiguous(newest),
            slots=self.contiguous(slots),
            given=self.contiguous(given),
            y=ids,
            relay=None,
            count=ids.size,
            slot_count=newest.size,
        )
        return ids

    def put_rows(self, target: HeliosArray, ids: HeliosArray, rows: HeliosArray) -> None:
        count, width = ids.shape[0], math.prod(target.shape[1:])
        if not target.is_contiguous:
            super().put_rows(target, ids, rows)
            return
        rows = self.reshape(self.cast_element(rows, target.element), (count, width))
        if rows.strides[1] != 1 and width > 1:
            rows = self.contiguous(rows)
        stride = rows.strides[0]
        unit = 1 if width % 4 or stride % 4 or rows.offset % 4 or target.offset % 4 else 4
        self.dispatch(
            "put_rows",
            f"bits{8 * target.itemsize}" + ("" if unit == 1 else "x4"),
            groups_for(count * width // unit),
            {},
            target=target,
            ids=self.contiguous(ids),
            rows=rows,
            count=count,
            width=width // unit,
            stride=stride // unit,
            target_rows=target.shape[0],
        )

    def cached_attention(
        self,
        query: HeliosArray,
        keys: HeliosArray,
        values: HeliosArray,
        sequences: HeliosArray,
        positions: HeliosArray,
        tables: HeliosArray,
        soft_cap: float = 0.0,
    ) -> HeliosArray:
        (N, H, D), (_, tokens, G, _), pages = query.shape, keys.shape, tables.shape[1]
        stores_lie = keys.is_contiguous and values.is_contiguous and keys.element == values.element
        if D > CACHED_WIDTH or not stores_lie:
            return super().cached_attention(query, keys, values, sequences, positions, tables, soft_cap)
        element = query.element
        query = self.cast_element(query, keys.element)
        fragment = self._cached_fragment(keys, values)
        if query.strides[1:] != (D, 1) or (fragment and (query.strides[0] % 8 or query.offset % 8)):
            given, query = query, self.new(query.shape, query.element)  # `contiguous` would leave the offset
            self.copy_into(query, given)
        splits = max(1, -(-pages * tokens // CACHED_THREADS))
        kernel = self._cached_kernel((N, H, D), splits, tables.shape[0], fragment)
        in_parts = splits > 1 and kernel.leaves_parts
        out = self.new((N, H, D), query.element)
        partial = self.new((N, H, splits, D), "f32") if in_parts else None
        statistics = self.new((N, H, splits, 2), "f32") if in_parts else None
        positions = self.contiguous(positions)
        is_aligned = not (D % 4 or query.strides[0] % 4 or any(each.offset % 4 for each in (query, keys, values)))
        constants = {
            "THREADS": CACHED_THREADS,
            "WIDTH": D,
            "QUERY_HEADS": H,
            "KEY_HEADS": G,
            "TOKENS": tokens,
            "ALIGNED": int(is_aligned),
            "SCALE": 1.0 / math.sqrt(D),
            "SOFT_CAP": float(soft_cap),
            "SPLIT": int(in_parts),
            "SUBGROUP_SIZE": self._cached_subgroup,
        }
        self.dispatch(
            kernel.name,
            query.element,
            kernel.groups,
            {**constants, **kernel.constants},
            query=query,
            keys=keys,
            values=values,
            sequences=self.contiguous(sequences),
            positions=positions,
            tables=self.contiguous(tables),
            attended=out if partial is None else None,
            partial=partial,
            statistics=statistics,
            query_stride=query.strides[0],
            pages=pages,
            rows=N,
            **kernel.arguments,
        )
        if partial is not None and statistics is not None:
            self._put_together(partial, statistics, positions, out)
        return self.cast_element(out, element)

    @property
    def _cached_subgroup(self) -> int:
        """The size of subgroups, which is to be one for all kernels of attention to the cache, since they add up the
        sums of subgroups; 0 where it cannot be chosen."""
        info = self.device_info
        return info.subgroup_size if "subgroup_size_control" in info.features else 0

    def _cached_fragment(self, keys: HeliosArray, values: HeliosArray) -> tuple[int, int, int] | None:
        """The shape (M, N, K) of the matrix units' products for attention to these keys; None where it does without.
        It must not depend on the rows of a step."""
        info, width, size = self.device_info, keys.shape[3], self._cached_subgroup
        if keys.element != self.precision or width not in MATRIX_WIDTHS or keys.offset % 8 or values.offset % 8:
            return None
        shapes = info.matrix_shapes(self.precision) if size in (8, 16, 32) else []
        fits = [each for each in shapes if {*each} <= {8, 16} and each[0] <= size]
        fragment = max(fits, key=math.prod, default=None)
        if fragment is None or _matrix_rows_shared(fragment, width) > info.shared_memory:
            return None
        return fragment

    def _cached_kernel(
        self, shape: tuple[int, int, int], splits: int, sequences: int, fragment: tuple[int, int, int] | None
    ) -> "_Kernel":
        """The kernel for queries of a shape (N, H, D) to the parts of the keys of so many sequences."""
        N, subgroup = shape[0], self._cached_subgroup
        are_neighbours = N >= MANY_ROWS and sequences < N
        if fragment is not None:
            make = _matrix_rows if are_neighbours else _matrix_subgroup if N > FEW_ROWS else _matrix_row
            return make(shape, splits, sequences, fragment, subgroup)
        if are_neighbours and subgroup:
            return _rows(shape, splits, sequences, subgroup)
        return _Kernel("attention_cached", (splits, shape[1], N), {}, {"relay": None})

    def _put_together(
        self, partial: HeliosArray, statistics: HeliosArray, positions: HeliosArray, attended: HeliosArray
    ) -> None:
        """The result of attention from the parts [N, H, splits, D] that workgroups made of each row's keys."""
        _, H, splits, D = partial.shape
        vector = vector_of(multiples=(D,))
        count = attended.size // vector
        self.dispatch(
            "attention_combine",
            attended.element,
            groups_for(count),
            {"THREADS": THREADS, "WIDTH": D, "HEADS": H, "PART": CACHED_THREADS, "VECTOR": vector},
            partial=partial,
            statistics=statistics,
            positions=positions,
            attended=attended,
            relay=None,
            splits=splits,
            count=count,
        )


@dataclass(frozen=True)
class _Kernel:
    """A kernel of attention to the cache, its workgroups, and the constants and arguments that not all of them have."""

    name: str
    groups: tuple[int, int, int]
    constants: Mapping[str, int]
    arguments: Mapping[str, int | None] = field(default_factory=dict)
    leaves_parts: bool = True
    """Whether what it makes of the parts of a row's keys is still to be put together, where there are several."""


def _rows(shape: tuple[int, int, int], splits: int, lone_rows: int, subgroup: int) -> _Kernel:
    """Rows share a tile, as many as fit shared memory and leave a subgroup to each four of them, and lone ones a
    workgroup."""
    N, H, D = shape
    rows = _ROWS_TOGETHER // min(4, power_of_two(-(-D // _WIDTH_TOGETHER)))
    rows = min(rows, 4 * CACHED_THREADS // subgroup)
    lone = min(_LONE_TOGETHER, rows)
    tiles = -(-N // rows)
    groups = (min(splits, -(-ENOUGH_GROUPS // (H * tiles))), H, tiles + -(-lone_rows // lone))
    constants = {"ROWS": rows, "LONE_TOGETHER": lone}
    return _Kernel("attention_cached_rows", groups, constants, {"splits": splits, "lone_rows": lone_rows})


def _matrix_row(
    shape: tuple[int, int, int], splits: int, sequences: int, fragment: tuple[int, int, int], subgroup: int
) -> _Kernel:
    """A row, a head and a part to a workgroup, which can wait in a relay."""
    N, H, D = shape
    constants = _matrix_constants(fragment, D // _MATRIX_COLUMNS * subgroup)
    return _Kernel("attention_cached_matrix", (splits, H, N), constants, {"relay": None})


def _matrix_subgroup(
    shape: tuple[int, int, int], splits: int, sequences: int, fragment: tuple[int, int, int], subgroup: int
) -> _Kernel:
    """A row, a head and a part to a subgroup; a workgroup has several heads, as many as divide their number."""
    N, H, _ = shape
    heads = math.gcd(_MATRIX_SUBGROUPS, H)
    constants = _matrix_constants(fragment, heads * subgroup)
    return _Kernel("attention_cached_matrix_subgroup", (splits, H // heads, N), constants)


def _matrix_rows(
    shape: tuple[int, int, int], splits: int, lone_rows: int, fragment: tuple[int, int, int], subgroup: int
) -> _Kernel:
    """Rows share a tile and go through all parts of their keys."""
    N, H, D = shape
    rows, shares = _MATRIX_BLOCKS * fragment[0], min(_MATRIX_SHARES, D // fragment[1])
    constants = _matrix_constants(fragment, _MATRIX_BLOCKS * shares * subgroup)
    constants |= {"ROWS": rows, "LONE_TOGETHER": _MATRIX_LONE}
    groups = (1, H, -(-N // rows) + -(-lone_rows // _MATRIX_LONE))
    return _Kernel("attention_cached_matrix_rows", groups, constants, {"lone_rows": lone_rows}, leaves_parts=False)


def _matrix_constants(fragment: tuple[int, int, int], threads: int) -> dict[str, int]:
    sizes = dict(zip(("FRAGMENT_M", "FRAGMENT_N", "FRAGMENT_K"), fragment, strict=True))
    return {**sizes, "THREADS": threads, "PART": CACHED_THREADS}


def _matrix_rows_shared(fragment: tuple[int, int, int], width: int) -> int:
    """The shared memory, in bytes, of attention_cached_matrix_rows, which takes most: keys, in whose place come scores,
    and values; and four words for each row."""
    line, rows = width // 8 + 1, _MATRIX_BLOCKS * fragment[0]
    keys, scores = CACHED_THREADS * line, rows * (CACHED_THREADS // 4 + 1)
    return 16 * (max(keys, scores) + CACHED_THREADS * line + rows + 1)
