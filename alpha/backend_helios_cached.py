"""What decoding needs on the Vulkan backend: keys and values in blocks, attention to them, and the choice of tokens.

The kernels are newest_ids, put_rows, attention_cached*, attention_combine and choose in kernels/;
see `Backend` for what they mean. Everything that differs from step to step is in arrays, so that a step can be recorded
once.
"""

import math

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

MATRIX_WIDTHS = (16, 32, 64, 128)
"""Of heads whose attention is on matrix units, where there are any. Others are computed without."""

MATRIX_PART = 128
"""Positions of a part of a row's keys there."""

SHARE = 32
DIRECT = 0
BUSY = 0
WIDE_SHARE = 16
"""Positions of a subgroup there, and of one with heads of 128."""

TILE = 16
"""Positions that stand in one block, in attention_cached_matrix."""

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
            query = self.contiguous(query)
        part = CACHED_THREADS if fragment is None else MATRIX_PART
        splits = max(1, -(-pages * tokens // part))
        out = self.new((N, H, D), query.element)
        partial = self.new((N, H, splits, D), "f32") if splits > 1 else None
        statistics = self.new((N, H, splits, 2), "f32") if splits > 1 else None
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
            "SPLIT": int(splits > 1),
        }
        arguments = {
            "query": query,
            "keys": keys,
            "values": values,
            "sequences": self.contiguous(sequences),
            "positions": positions,
            "tables": self.contiguous(tables),
            "attended": out if partial is None else None,
            "partial": partial,
            "statistics": statistics,
            "query_stride": query.strides[0],
            "pages": pages,
            "rows": N,
        }
        info, sequence_count = self.device_info, tables.shape[0]
        # Two kernels add up the sums of subgroups, which are to be of one size.
        can_choose = "subgroup_size_control" in info.features
        constants["SUBGROUP_SIZE"] = info.subgroup_size if can_choose else 0
        are_neighbours = N >= MANY_ROWS and sequence_count < N
        if fragment is not None:
            constants |= dict(zip(("FRAGMENT_M", "FRAGMENT_N", "FRAGMENT_K"), fragment, strict=True))
            constants |= {
                "THREADS": MATRIX_PART // (SHARE if D < 128 else WIDE_SHARE) * info.subgroup_size,
                "PART": MATRIX_PART,
                "DIRECT": DIRECT,
                "BUSY": BUSY,
            }
            rows = fragment[0] if are_neighbours else 1
            groups = _groups(N, H, splits, rows, sequence_count)
            constants |= {"ROWS": rows, "LONE_TOGETHER": min(_LONE_TOGETHER, rows)}
            arguments |= {"splits": splits, "lone_rows": sequence_count}
            self.dispatch("attention_cached_matrix", self.precision, groups, constants, relay=None, **arguments)
        elif are_neighbours and can_choose:
            rows = _rows_together(D, info.subgroup_size)
            groups = _groups(N, H, splits, rows, sequence_count)
            constants |= {"ROWS": rows, "LONE_TOGETHER": min(_LONE_TOGETHER, rows)}
            arguments |= {"splits": splits, "lone_rows": sequence_count}
            self.dispatch("attention_cached_rows", query.element, groups, constants, **arguments)
        else:
            self.dispatch("attention_cached", query.element, (splits, H, N), constants, relay=None, **arguments)
        if partial is not None and statistics is not None:
            self._put_together(partial, statistics, positions, out, part)
        return self.cast_element(out, element)

    def _cached_fragment(self, keys: HeliosArray, values: HeliosArray) -> tuple[int, int, int] | None:
        """The shape (M, N, K) of the matrix units' products for attention to these keys; None where it does without.
        It must not depend on the rows of a step."""
        info, tokens, D = self.device_info, keys.shape[1], keys.shape[3]
        are_whole = not (tokens % TILE or keys.offset % 8 or values.offset % 8)
        if keys.element != self.precision or D not in MATRIX_WIDTHS or not are_whole:
            return None
        size = info.subgroup_size if "subgroup_size_control" in info.features else 0
        shapes = info.matrix_shapes(self.precision) if size in (8, 16, 32) else []
        return max((each for each in shapes if {*each} <= {8, 16} and each[0] <= size), key=math.prod, default=None)

    def _put_together(
        self, partial: HeliosArray, statistics: HeliosArray, positions: HeliosArray, attended: HeliosArray, part: int
    ) -> None:
        """The result of attention from what is made [N, H, splits, D] of each `part` of a row's keys."""
        _, H, splits, D = partial.shape
        vector = vector_of(multiples=(D,))
        count = attended.size // vector
        self.dispatch(
            "attention_combine",
            attended.element,
            groups_for(count),
            {"THREADS": THREADS, "WIDTH": D, "HEADS": H, "PART": part, "VECTOR": vector},
            partial=partial,
            statistics=statistics,
            positions=positions,
            attended=attended,
            relay=None,
            splits=splits,
            count=count,
        )


def _rows_together(D: int, subgroup: int) -> int:
    """How many rows share a tile of attention_cached_rows: as many as fit shared memory and leave a subgroup to each
    four of them."""
    rows = _ROWS_TOGETHER // min(4, power_of_two(-(-D // _WIDTH_TOGETHER)))
    return min(rows, 4 * CACHED_THREADS // subgroup)


def _groups(N: int, H: int, splits: int, rows: int, lone_rows: int) -> tuple[int, int, int]:
    """The workgroups of tiles of so many rows, and of lone ones; of single rows where `rows` is 1."""
    tiles = -(-N // rows)
    parts = splits if N <= FEW_ROWS else min(splits, -(-ENOUGH_GROUPS // (H * tiles)))
    return parts, H, tiles if rows == 1 else tiles + -(-lone_rows // min(_LONE_TOGETHER, rows))
