"""What decoding needs on the Vulkan backend: keys and values in blocks, attention to them, and the choice of tokens.

The kernels are newest_ids, put_rows, attention_cached*, attention_combine and choose in kernels/;
see `Backend` for what they mean. Everything that differs from step to step is in arrays, so that a step can be recorded
once.
"""

import math
import os

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
"""Those of heads whose attention is on matrix units, where there are any: a subgroup has so many columns and positions."""

_TILE, _COLUMNS = 16, 16
"""Positions that stand side by side in a block, and columns of a subgroup, in attention_cached_matrix."""

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
        if query.strides[1:] != (D, 1):
            query = self.contiguous(query)
        splits = max(1, -(-pages * tokens // CACHED_THREADS))
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
        fragment = self._cached_fragment(query, keys, values)
        if fragment is not None and os.environ.get("TRIAL_ATTENTION", "matrix") == "matrix":
            self._attend_on_matrix_units(fragment, constants, arguments, splits, tables.shape[0])
            if partial is not None and statistics is not None:
                self._put_together(partial, statistics, positions, out)
            return self.cast_element(out, element)
        info, sequence_count = self.device_info, tables.shape[0]
        # Both kernels add up the sums of subgroups, which are to be of one size.
        can_choose = "subgroup_size_control" in info.features
        constants["SUBGROUP_SIZE"] = info.subgroup_size if can_choose else 0
        if N < MANY_ROWS or sequence_count >= N or not can_choose:
            self.dispatch("attention_cached", query.element, (splits, H, N), constants, relay=None, **arguments)
        else:
            tile, groups = _tiles_of_rows(N, H, D, splits, sequence_count, info.subgroup_size)
            self.dispatch(
                "attention_cached_rows",
                query.element,
                groups,
                constants | tile,
                splits=splits,
                lone_rows=sequence_count,
                **arguments,
            )
        if partial is not None and statistics is not None:
            self._put_together(partial, statistics, positions, out)
        return self.cast_element(out, element)

    def _cached_fragment(
        self, query: HeliosArray, keys: HeliosArray, values: HeliosArray
    ) -> tuple[int, int, int] | None:
        """The shape (M, N, K) of the matrix units' products for such attention; None where it does without. It depends
        on nothing that differs from step to step."""
        info, tokens, D = self.device_info, keys.shape[1], query.shape[2]
        if keys.element != self.precision or D not in MATRIX_WIDTHS or tokens % _TILE:
            return None
        if query.strides[0] % 8 or any(each.offset % 8 for each in (query, keys, values)):
            return None
        size, subgroups = info.subgroup_size, D // _COLUMNS
        for M, N, K in sorted(info.matrix_shapes(self.precision), key=math.prod, reverse=True):
            fits = M in (8, 16) and N in (8, 16) and K in (8, 16) and size % 8 == 0 and 4 <= M <= subgroups * size <= M * size
            if fits and size <= 32 and "subgroup_size_control" in info.features:
                return M, N, K
        return None

    def _attend_on_matrix_units(
        self,
        fragment: tuple[int, int, int],
        constants: dict[str, int | float],
        arguments: dict[str, HeliosArray | int | float | None],
        splits: int,
        sequence_count: int,
    ) -> None:
        """The parts of rows' attention, or the whole where there is one part, by attention_cached_matrix."""
        N, H, D = arguments["rows"], constants["QUERY_HEADS"], constants["WIDTH"]
        assert isinstance(N, int) and isinstance(H, int) and isinstance(D, int)
        size, (rows, _, _) = self.device_info.subgroup_size, fragment
        are_together = N >= MANY_ROWS and sequence_count < N
        lone = min(_LONE_TOGETHER, rows)
        tiles = -(-N // rows) if are_together else N
        depth = tiles + -(-sequence_count // lone) if are_together else N
        enough = int(os.environ.get("TRIAL_ENOUGH", ENOUGH_GROUPS))
        parts = splits if N <= FEW_ROWS else min(splits, -(-enough // (H * tiles)))
        constants = constants | {
            "THREADS": D // _COLUMNS * size, "SUBGROUP_SIZE": size, "PART": CACHED_THREADS,
            "ROWS": rows if are_together else 1, "LONE_TOGETHER": lone,
        } | dict(zip(("FRAGMENT_M", "FRAGMENT_N", "FRAGMENT_K"), fragment, strict=True))  # fmt: skip
        self.dispatch(
            "attention_cached_matrix", self.precision, (parts, H, depth), constants, relay=None, splits=splits,
            lone_rows=sequence_count, **arguments,
        )  # fmt: skip

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


def _tiles_of_rows(
    N: int, H: int, D: int, splits: int, lone_rows: int, subgroup: int
) -> tuple[dict[str, int], tuple[int, int, int]]:
    """How many rows share a tile, as many as fit shared memory and leave a subgroup to each four of them, and how many
    lone ones a workgroup; and the workgroups of `attention_cached_rows`."""
    rows = _ROWS_TOGETHER // min(4, power_of_two(-(-D // _WIDTH_TOGETHER)))
    rows = min(rows, 4 * CACHED_THREADS // subgroup)
    lone = min(_LONE_TOGETHER, rows)
    tiles = -(-N // rows)
    groups = (min(splits, -(-ENOUGH_GROUPS // (H * tiles))), H, tiles + -(-lone_rows // lone))
    return {"ROWS": rows, "LONE_TOGETHER": lone}, groups
