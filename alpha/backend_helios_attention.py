"""Causal attention on the Vulkan backend: which kernels, in which tiles, with which arguments.

No scores are ever stored: the forward half keeps its result and the logarithm of each row's sum of exponentials, from
which the backward half makes the probabilities again (FlashAttention-2, Dao 2023). In float32 that has, for a while, up
to QUERY_PARTS_BYTES of what tiles of keys add to the gradients of queries. The kernels are kernels/attention_*.comp;
see `Backend.attention` for the formula. Heads so wide that a tile of them does not fit the device's shared memory are
left to the composition of `Backend`, which does store the scores.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import groups_for
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_primitives import RandomKey

Arguments = dict[str, HeliosArray | int | float | None]
Constants = dict[str, int | float]
Dimensions = tuple[int, int, int, int, int, int]
"""B, Tq, Tk, H, G, D: see `Backend.attention`."""

FEW_WORKGROUPS = 512
"""With fewer workgroups than this, smaller tiles keep more of a large device busy."""

MATRIX_WIDTH = 128
"""Wider heads do not fit the registers with which the matrix units work."""

TWO_BLOCKS_WIDTH = 64
"""Up to this width a subgroup has registers for two blocks of queries."""


@dataclass(frozen=True)
class Division:
    """A kernel, and how it is divided: a workgroup has `rows` queries, or keys for the gradients of keys and values.

    `on_matrix_units`: operands may be of 16 bits, and are rounded to the precision.
    """

    kernel: str
    rows: int
    constants: Constants
    on_matrix_units: bool


SLICE, SLICE_ROWS = 4, 16
"""Quads of a slice of rows that are multiplied with rows, and rows of one that scores are; as in the kernels."""


@dataclass(frozen=True)
class Tiling:
    """How a workgroup's threads share a tile of scores: `threads` / `columns` rows of threads with `rows` queries each,
    and `columns` columns of threads with `fours` times four keys each."""

    threads: int
    columns: int
    rows: int
    fours: int = 1

    @property
    def queries(self) -> int:
        return self.threads // self.columns * self.rows

    @property
    def keys(self) -> int:
        return 4 * self.columns * self.fours

    def across(self, kernel: str) -> int:
        """The threads among which the numbers of a result's row are divided, four each."""
        return self.threads // self.columns if kernel == "key" else self.columns

    def shared_bytes(self, kernel: str, width: int) -> int:
        """Shared memory of one of the kernels.

        It has a slice of queries and one of keys, or a block of scores and a slice of rows, whichever is more. Rows are
        padded, those of results to whole steps of `across` threads.
        """
        across = self.across(kernel)
        pitch = -(-width // (4 * across)) * across + 1
        slices = (self.queries + self.keys) * (SLICE + 1)
        fours, many = (self.fours, self.queries) if kernel == "key" else (1, 4 * self.columns)
        rows = self.queries * (fours * self.columns + 1) + min(SLICE_ROWS, many) * pitch
        row_numbers = 8 * self.queries if kernel == "key" else 0
        return 16 * max(slices, rows) + row_numbers + 4 * (self.queries * (self.keys // 8 + 1) + 1)  # kept bits

    def division(self, kernel: str) -> Division:
        name = "attention_forward" if kernel == "forward" else f"attention_backward_{kernel}"
        constants: Constants = {"THREADS": self.threads, "COLUMN_THREADS": self.columns, "ROWS": self.rows}
        constants["FOURS"] = self.fours
        return Division(name, self.keys if kernel == "key" else self.queries, constants, on_matrix_units=False)


OWN_DELTA_OPERATIONS = 1e9
"""Operations of the kernel of keys up to which the kernels of gradients sum up delta themselves: a round less. Where
there is more to do, delta is needed too often."""

QUERY_PARTS_BYTES = 1 << 29
"""Of what tiles of keys add to the gradients of queries, at most."""

PRODUCTS = {"forward": 2, "query": 3, "key": 4}
"""Of a block of queries with a block of keys, in each kernel."""

_TILINGS = {
    "forward": ((256, 16, 4), (128, 8, 4, 2), (128, 8, 4), (128, 8, 2), (64, 4, 2), (64, 4, 1), (32, 4, 1)),
    "query": (
        (256, 16, 4), (128, 16, 4), (128, 8, 2), (64, 4, 2), (64, 4, 1), (32, 4, 1), (16, 4, 1), (8, 2, 1),
    ),
    "key": (
        (128, 8, 4, 2), (128, 8, 4), (64, 8, 4), (64, 8, 2), (64, 4, 1), (32, 4, 2), (32, 4, 1), (16, 2, 1), (8, 2, 1),
    ),
}  # fmt: skip
TILINGS = {kernel: tuple(Tiling(*each) for each in tilings) for kernel, tilings in _TILINGS.items()}
"""The first is taken that fits the device's workgroups and shared memory, and has work in each row of results for all
threads."""


@dataclass(frozen=True)
class AttentionCall:
    """The operands of one attention, its kernels, and what its forward half keeps: `out` and `logsumexp` [B, H, Tq], in
    base 2. `divisions` are by the names "forward", "key" and "query"; for a few queries there are none."""

    query: HeliosArray
    key: HeliosArray
    value: HeliosArray
    soft_cap: float
    dropout: float
    random: RandomKey | None
    first_keys: HeliosArray | None
    out: HeliosArray
    logsumexp: HeliosArray | None
    divisions: Mapping[str, Division]

    @property
    def dimensions(self) -> Dimensions:
        return dimensions_of(self.query, self.key)

    def operations(self, kernel: str) -> float:
        """Floating-point operations of one of the kernels."""
        B, Tq, Tk, H, _, D = self.dimensions
        pairs = B * H * Tq * (Tk - Tq / 2)  # of a query with a key that it sees
        return (PRODUCTS[kernel] + (kernel == "key" and self.keeps_query_parts)) * 2 * pairs * D

    @property
    def owns_delta(self) -> bool:
        """Whether the kernels of the gradients sum up delta themselves."""
        in_registers = all(self.divisions[each].kernel == f"attention_matrix2_{each}" for each in ("key", "query"))
        return in_registers and self.out.itemsize == 2 and self.operations("key") <= OWN_DELTA_OPERATIONS

    @property
    def keeps_query_parts(self) -> bool:
        """Whether the kernel of keys keeps what its tiles add to the gradients of queries, for another to add it up.
        Otherwise one computes scores and gradients of probabilities again."""
        division = self.divisions["key"]
        size = -(-self.key.shape[1] // division.rows) * self.query.size * 4
        return not division.on_matrix_units and size <= QUERY_PARTS_BYTES

    def is_aligned(self, *others: HeliosArray) -> bool:
        """Whether every row of every operand can be read in quads of numbers, and in octets of 16-bit ones."""
        D = self.query.shape[3]
        unit = 8 if self.query.itemsize == 2 and D % 8 == 0 else 4
        arrays = (self.query, self.key, self.value, *others)
        return D % 4 == 0 and all(
            each.offset % unit == 0 and all(stride % unit == 0 for stride in each.strides[:3]) for each in arrays
        )

    def constants(self, *others: HeliosArray) -> Constants:
        """The specialization constants that all kernels but that of delta have in common."""
        _, _, _, H, G, D = self.dimensions
        return {
            "WIDTH": D,
            "QUERY_HEADS": H,
            "KEY_HEADS": G,
            "QUERY_HEAD_STRIDE": self.query.strides[2],
            "KEY_HEAD_STRIDE": self.key.strides[2],
            "VALUE_HEAD_STRIDE": self.value.strides[2],
            "ALIGNED": int(self.is_aligned(*others)),
            "SCALE": 1.0 / math.sqrt(D),
            "SOFT_CAP": float(self.soft_cap),
        }

    def left_out(self) -> Constants:
        """The specialization constants of what is left out: by dropout, or as another segment."""
        kept = 1.0 / (1.0 - self.dropout)
        return {
            "DROPOUT": int(self.random is not None),
            "KEEP_SCALE": kept,
            "SEGMENTS": int(self.first_keys is not None),
        }

    def arguments(self) -> Arguments:
        """The push-constant fields that all kernels but that of delta have in common."""
        _, Tq, Tk, *_ = self.dimensions
        found: Arguments = {"query_length": Tq, "key_length": Tk, "first_keys": self.first_keys}
        for name in ("query", "key", "value"):
            array: HeliosArray = getattr(self, name)
            found |= {name: array, f"{name}_batch_stride": array.strides[0], f"{name}_token_stride": array.strides[1]}
        return found

    def random_arguments(self) -> Arguments:
        """The push-constant fields of dropout."""
        seed = self.random.seed if self.random else 0
        return {
            "random_step": self.random.step if self.random else None,
            "seed_low": seed & 0xFFFFFFFF,
            "seed_high": (seed >> 32) & 0xFFFFFFFF,
            "stream": self.random.stream if self.random else 0,
            "threshold": round(self.dropout * 2**16),
        }


def dimensions_of(query: HeliosArray, key: HeliosArray) -> Dimensions:
    B, Tq, H, D = query.shape
    return B, Tq, key.shape[1], H, key.shape[2], D


@dataclass(frozen=True)
class MatrixUnits:
    """The matrix units of a device for one attention (attention_matrix_*): the shape (M, N, K) of their fragments.

    `independent` says whether the subgroups of a workgroup may meet different numbers of barriers of their own.

    A workgroup has `subgroups` subgroups that own M rows of scores each and work on `columns` scores of a row at once.
    """

    fragment: tuple[int, int, int]
    subgroup_size: int
    available: int
    independent: bool
    subgroups: int = 4
    columns: int = 32

    @property
    def rows(self) -> int:
        return self.subgroups * self.fragment[0]

    def shared_bytes(self, width: int, blocks: int = 1) -> int:
        """Shared memory of the kernel that needs most of it, that of the gradients of keys and values."""
        pitch = 16 * (-(-width // 16) * 2 + 1)
        staged = max(2 * self.columns, self.rows) * pitch
        scratch = self.rows * (4 * self.columns + 16 + 2 * (2 * self.columns + 16))
        kept_bits = 4 * (max(blocks * self.rows, self.columns) * (max(self.rows, self.columns) // 8 + 1) + 1)
        return staged + scratch + 8 * self.columns + kept_bits

    def fit(self, width: int) -> bool:
        """Whether heads and tiles can be divided into fragments, rows into whole octets, and memory is enough."""
        M, N, K = self.fragment
        lanes = self.subgroup_size // M
        return (
            self.subgroup_size % M == 0
            and 16 % N == 16 % K == 0
            and self.columns % max(N, K, 8 * lanes) == 0
            and self.rows <= 2 * self.columns
            and self.shared_bytes(width) <= self.available
        )

    def division(self, kernel: str, dimensions: Dimensions) -> Division:
        B, Tq, _, H, _, D = dimensions
        M, N, K = self.fragment
        constants: Constants = {"THREADS": self.subgroups * self.subgroup_size, "SUBGROUP_SIZE": self.subgroup_size}
        constants |= {"FRAGMENT_M": M, "FRAGMENT_N": N, "FRAGMENT_K": K, "INDEPENDENT": int(self.independent)}
        constants["TILE_QUERIES" if kernel == "key" else "TILE_KEYS"] = self.columns
        blocks = 1
        if kernel == "forward":
            many = B * H * -(-Tq // (2 * self.rows)) >= FEW_WORKGROUPS
            blocks = 2 if many and D <= TWO_BLOCKS_WIDTH and self.shared_bytes(D, 2) <= self.available else 1
            constants["ROW_BLOCKS"] = blocks
        return Division(f"attention_matrix_{kernel}", blocks * self.rows, constants, on_matrix_units=True)


@dataclass(frozen=True)
class RegisterTiles:
    """How a workgroup of a kernel that keeps scores in registers (attention_matrix2_*) is divided: `subgroups` own
    `blocks` times `fragment` rows of scores each, and `tile` tokens are worked on at once, `stages` tiles in memory."""

    subgroups: int
    blocks: int
    tile: int
    stages: int
    fragment: int = 16
    subgroup_size: int = 32

    @property
    def rows(self) -> int:
        return self.subgroups * self.blocks * self.fragment

    def shared_bytes(self, width: int, dropout: bool) -> int:
        """Shared memory of the kernel that needs most of it."""
        pitch = -(-width // 16) * 2 + 1
        results = self.subgroups * self.fragment * (self.fragment // 4 + 1)
        staged = 16 * max(2 * self.stages * self.tile * pitch, self.rows * pitch, results)
        kept_bits = 4 * (max(self.rows, self.tile) * (max(self.rows, self.tile) // 8 + 1) if dropout else 1)
        return staged + kept_bits + 8 * max(self.stages * self.tile, self.rows) + 4

    def division(self, kernel: str) -> Division:
        constants: Constants = {"THREADS": self.subgroups * self.subgroup_size, "SUBGROUP_SIZE": self.subgroup_size}
        constants |= {"FRAGMENT": self.fragment, "STAGES": self.stages}
        constants |= (
            {"TILE_QUERIES": self.tile} if kernel == "key" else {"TILE_KEYS": self.tile, "ROW_BLOCKS": self.blocks}
        )
        return Division(f"attention_matrix2_{kernel}", self.rows, constants, on_matrix_units=True)


REGISTER_TILES = {
    "forward": (RegisterTiles(4, 1, 64, 1), RegisterTiles(2, 1, 32, 1)),
    "key": (RegisterTiles(4, 1, 32, 2), RegisterTiles(4, 1, 32, 1), RegisterTiles(2, 1, 16, 1)),
    "query": (RegisterTiles(8, 1, 32, 2), RegisterTiles(4, 1, 64, 1), RegisterTiles(2, 1, 32, 1)),
}
"""The first that fits shared memory and makes workgroups enough is taken, else the last that fits. What leaves room for
two workgroups on a multiprocessor is faster than larger tiles."""

ENOUGH_REGISTER_WORKGROUPS = 128
"""About one for each multiprocessor of a large device; these tiles lose more by being small than those which
FEW_WORKGROUPS is for."""


class Attention(HeliosPrimitives):
    """Causal attention; see `Backend` for what it means."""

    def attention(
        self,
        query: HeliosArray,
        key: HeliosArray,
        value: HeliosArray,
        soft_cap: float = 0.0,
        dropout: float = 0.0,
        random: RandomKey | None = None,
        training: bool = False,
        first_keys: HeliosArray | None = None,
    ) -> tuple[HeliosArray, Saved]:
        if not dropout or random is None:
            dropout, random = 0.0, None
        B, Tq, H, _ = query.shape
        divisions = self.attention_divisions(dimensions_of(query, key), random is not None, training)
        if divisions is None:
            return super().attention(query, key, value, soft_cap, dropout, random, training, first_keys)
        first_keys = None if first_keys is None else self.contiguous(first_keys)
        query, key, value = (self._whole_rows(each) for each in (query, key, value))
        on_matrix_units = divisions["forward"].on_matrix_units
        if not on_matrix_units or not query.element == key.element == value.element:
            query, key, value = (self.cast_element(each, "f32") for each in (query, key, value))
        in_registers = divisions["forward"].kernel == "attention_matrix2_forward"
        out = self.new(query.shape, query.element if in_registers else "f32")
        logsumexp = self.new((B, H, Tq), "f32") if training else None
        call = AttentionCall(query, key, value, soft_cap, dropout, random, first_keys, out, logsumexp, divisions)
        arguments = call.arguments() | call.random_arguments() | {"attended": out, "logsumexp": logsumexp}
        constants = call.constants() | call.left_out() | {"SAVE": int(training)}
        self._divide(call, "forward", constants, arguments)
        return out, (call if training else None)

    def _whole_rows(self, x: HeliosArray) -> HeliosArray:
        """The array itself when the numbers of each row lie side by side, otherwise a copy."""
        return x if x.strides[3] == 1 or x.shape[3] == 1 else self.contiguous(x)

    def _divide(self, call: AttentionCall, kernel: str, constants: Constants, arguments: Arguments) -> None:
        """Run one of the call's kernels, for all tiles of queries, or of keys."""
        B, Tq, Tk, H, G, _ = call.dimensions
        division = call.divisions[kernel]
        tokens, heads = (Tk, G) if kernel == "key" else (Tq, H)
        variant = f"{self.precision}_{call.query.element}" if division.on_matrix_units else "f32"
        grid = (-(-tokens // division.rows), heads, B)
        operations = call.operations(kernel)
        self.dispatch(division.kernel, variant, grid, constants | division.constants, operations, **arguments)

    def attention_backward(self, dy: HeliosArray, saved: Saved) -> tuple[HeliosArray, HeliosArray, HeliosArray]:
        """dquery, dkey and dvalue.

        They lie side by side in one array when there are as many queries as keys, as the projection that made the
        operands wants them back.
        """
        if not isinstance(saved, AttentionCall):
            return super().attention_backward(dy, saved)
        call = saved
        B, Tq, Tk, H, G, D = call.dimensions
        element = call.out.element
        gradient = self.contiguous(self.cast_element(dy, element))
        if Tq == Tk:
            packed = self.new((B, Tq, H + 2 * G, D), element)
            dquery, both = self.narrow(packed, 2, 0, H), self.narrow(packed, 2, H, 2 * G)
        else:
            dquery, both = self.new(call.query.shape, element), self.new((B, Tk, 2 * G, D), element)
        dkey, dvalue = self.narrow(both, 2, 0, G), self.narrow(both, 2, G, G)
        aligned = int(call.is_aligned(gradient, dquery, dkey, dvalue))

        constants = call.constants(gradient, dquery, dkey, dvalue) | call.left_out()
        if call.owns_delta:
            constants, delta = constants | {"OWN_DELTA": 1}, call.out
        else:
            delta = self._attention_delta(call, gradient, aligned)
        arguments = call.arguments() | call.random_arguments()
        arguments |= {"gradient": gradient, "logsumexp": call.logsumexp, "delta": delta}
        of_keys, parts = constants | {"GRADIENT_STRIDE": dkey.strides[1]}, None
        for_keys: Arguments = {"key_gradient": dkey, "value_gradient": dvalue}
        if not call.divisions["key"].on_matrix_units:
            shape = -(-Tk // call.divisions["key"].rows), *call.query.shape
            parts = self.new(shape, "f32") if call.keeps_query_parts else None
            for_keys = {"key_value_gradient": both, "query_parts": parts}
            of_keys |= {"QUERY_PARTS": int(parts is not None)}
        self._divide(call, "key", of_keys, arguments | for_keys)
        if parts is not None:
            self._add_query_parts(call, parts, dquery)
        else:
            for_queries: Arguments = {"query_gradient": dquery}
            self._divide(call, "query", constants | {"GRADIENT_STRIDE": dquery.strides[1]}, arguments | for_queries)
        return dquery, dkey, dvalue

    def _add_query_parts(self, call: AttentionCall, parts: HeliosArray, dquery: HeliosArray) -> None:
        """dquery, from what each tile of keys adds to it."""
        B, Tq, Tk, H, _, D = call.dimensions
        constants: Constants = {
            "THREADS": 256, "WIDTH": D, "QUERY_HEADS": H, "GRADIENT_STRIDE": dquery.strides[1],
            "TILE_KEYS": call.divisions["key"].rows, "ALIGNED": int(call.is_aligned(dquery)),
            "SCALE": 1.0 / math.sqrt(D), "SEGMENTS": int(call.first_keys is not None),
        }  # fmt: skip
        self.dispatch(
            "attention_query_sums", "f32", groups_for(B * Tq * H * -(-D // 4), 256), constants,
            parts=parts, first_keys=call.first_keys, query_gradient=dquery, batch=B, query_length=Tq, key_length=Tk,
        )  # fmt: skip

    def _attention_delta(self, call: AttentionCall, gradient: HeliosArray, aligned: int) -> HeliosArray:
        """The sums that the gradient of softmax needs, [B, H, Tq]: each row's gradient times its result."""
        B, Tq, _, H, _, D = call.dimensions
        delta = self.new((B, H, Tq), "f32")
        rows = B * Tq * H
        row_threads = 8 if D >= 32 else 4
        self.dispatch(
            "attention_delta", gradient.element, groups_for(rows * row_threads, 128),
            {"THREADS": 128, "WIDTH": D, "QUERY_HEADS": H, "ALIGNED": aligned, "ROW_THREADS": row_threads},
            gradient=gradient, attended=call.out, delta=delta, batch=B, query_length=Tq,
        )  # fmt: skip
        return delta

    # --- which kernels, in which tiles --------------------------------------------------------------------------------

    def attention_divisions(
        self, dimensions: Dimensions, dropping: bool, training: bool
    ) -> Mapping[str, Division] | None:
        """The kernels for an attention, of the first family that has all that are needed; None when no family has.

        Which one that is depends on the device, and on whether tiles of heads so wide fit its shared memory.
        """
        kernels = ("forward", "key", "query") if training else ("forward",)
        for divide in (self._in_registers, self._on_matrix_units, self._in_tiles):
            found = {kernel: divide(kernel, dimensions, dropping) for kernel in kernels}
            whole = {kernel: division for kernel, division in found.items() if division is not None}
            if len(whole) == len(kernels):
                return whole
        return None

    def _in_registers(self, kernel: str, dimensions: Dimensions, dropping: bool) -> Division | None:
        """Scores that stay in registers, where sums of matrix units can become operands."""
        info = self.device_info
        B, Tq, Tk, H, G, D = dimensions
        shapes = info.matrix_shapes(self.precision) if "cooperative_matrix_2" in info.features else ()
        fragment = max((M for M, N, K in shapes if M == N == K and 16 % M == 0), default=0)
        if not fragment or D > MATRIX_WIDTH:
            return None
        found = None
        for tiles in REGISTER_TILES[kernel]:
            sized = dataclasses.replace(tiles, fragment=fragment, subgroup_size=info.subgroup_size)
            if sized.shared_bytes(D, dropping) > info.shared_memory:
                continue
            found = sized
            workgroups = B * (G * -(-Tk // sized.rows) if kernel == "key" else H * -(-Tq // sized.rows))
            if workgroups >= ENOUGH_REGISTER_WORKGROUPS:
                break
        return None if found is None else found.division(kernel)

    def _on_matrix_units(self, kernel: str, dimensions: Dimensions, dropping: bool) -> Division | None:
        """Matrix units, with scores that pass through shared memory."""
        info, D = self.device_info, dimensions[-1]
        if D > MATRIX_WIDTH:
            return None
        for shape in sorted(info.matrix_shapes(self.precision), key=math.prod, reverse=True):
            units = MatrixUnits(shape, info.subgroup_size, info.shared_memory, info.kind != "cpu")
            if units.fit(D):
                return units.division(kernel, dimensions)
        return None

    def _in_tiles(self, kernel: str, dimensions: Dimensions, dropping: bool) -> Division | None:
        """Float32 without matrix units."""
        B, Tq, _, H, _, D = dimensions
        tilings = self.tilings_for(TILINGS[kernel])
        if kernel == "forward" and B * H * -(-Tq // tilings[0].queries) < FEW_WORKGROUPS:
            tilings = [each for each in tilings if each.queries < tilings[0].queries] or tilings
        info = self.device_info
        fitting = [
            each
            for each in tilings
            if each.threads <= info.max_workgroup_invocations and each.shared_bytes(kernel, D) <= info.shared_memory
        ]
        busy = [each for each in fitting if 4 * each.across(kernel) <= D]
        return (busy or fitting)[0].division(kernel) if fitting else None

    def tilings_for(self, tilings: Sequence[Tiling]) -> Sequence[Tiling]:
        """Those to choose from; a processor gains nothing by large ones, which take it long to compile."""
        is_processor = self.device_info.kind == "cpu"
        return [each for each in tilings if each.threads <= 32 and each.rows == 1] if is_processor else tilings
