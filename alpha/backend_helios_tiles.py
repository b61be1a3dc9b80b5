"""How a matrix product is divided for a GPU: the kernel, the tile of a workgroup, and the parts of the sum over k.

The choice is an estimate of the time from a few measured numbers; `perf/helios_matmul.py` times every candidate, to
hold the estimate against. Knows nothing about arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from alpha.backend_helios_device import MOST_GROUPS, DeviceInfo
from alpha.errors import AlphaError


@dataclass(frozen=True)
class Cost:
    """What a tile takes, in microseconds. `resident` workgroups share a multiprocessor; a step of k takes `alone` where
    there is one, and `shared` for each where there are many, both for operands of 32 and of 16 bits; `ends` is what a
    workgroup takes besides its steps."""

    resident: int = 4
    alone: tuple[float, float] = (0.5, 0.5)
    shared: tuple[float, float] = (0.25, 0.25)
    ends: float = 1.0


@dataclass(frozen=True)
class Tile:
    """What one workgroup computes: m x n results, k steps of the sum at a time.

    For matmul_matrix, `across` and `down` say how many subgroups share the tile; for matmul_tiled, how many groups of
    four rows and of four columns a thread has.
    """

    kernel: str
    m: int
    n: int
    k: int
    down: int
    across: int
    cost: Cost = Cost()

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k}/{self.down}x{self.across}"


@dataclass(frozen=True)
class Hardware:
    """What the choice depends on. `fragment` is the shape (M, N, K) of the matrix units, None to do without them;
    `units` is the number of multiprocessors. `is_processor`: the driver computes on the CPU."""

    subgroup: int
    shared_memory: int
    invocations: int
    fragment: tuple[int, int, int] | None
    units: int
    is_processor: bool = False


@dataclass(frozen=True)
class Problem:
    """A batch of products [rows, depth] x [depth, columns], with the bits of a stored element of each operand, and
    whether it can be read 16 bytes at a time; and of how many pieces numbers are, see kernels/pieces.glsl."""

    batches: int
    rows: int
    columns: int
    depth: int
    a_bits: int = 32
    b_bits: int = 32
    a_vectors: bool = True
    b_vectors: bool = True
    pieces: int = 1

    @property
    def operations(self) -> float:
        """Floating-point operations, an addition and a multiplication counted as two."""
        return 2.0 * self.batches * self.rows * self.columns * self.depth

    def __str__(self) -> str:
        batches = f"{self.batches} x " if self.batches != 1 else ""
        shapes = f"{batches}[{self.rows}, {self.depth}] by [{self.depth}, {self.columns}]"
        pieces = f" in {self.pieces} pieces" if self.pieces > 1 else ""
        return f"{shapes} of {self.a_bits} and {self.b_bits} bits{pieces}"


@dataclass(frozen=True)
class Division:
    """A tile, the number of workgroups that share the sum over k, and how long the part of each is. Where `part` is not
    0, a workgroup adds its sum up in parts so long, whose sums are added up in order."""

    tile: Tile
    splits: int
    split_depth: int
    part: int = 0

    def __str__(self) -> str:
        split = f" split {self.splits}" if self.splits > 1 else ""
        return self.tile.name + split + (f" in parts of {self.part}" if self.part else "")


FEW_ROWS = 16
"""Up to so many rows, a product takes as long as reading its right operand does."""

MOST_FEW_ROWS = 64
"""Up to so many on matrix units, where a workgroup that has several blocks of rows reads its weights once for all."""

_BLOCKS_WORKGROUPS = 3
"""For each multiprocessor: with more of them, one takes several blocks of rows in turn."""

_CPU_FEW_ROWS = 1
"""The same on a driver that computes on the processor, which takes long to compile a kernel for each size."""

_FEW_COLUMNS = 16
_FEW_PART = 64
_MOST_FEW_TEAMS = 12
_MOST_LOADED = 256
_ALONE_COLUMNS, _ALONE_TEAMS = 8192, 8
"""So many columns are divided among teams that are alone; how many of those a workgroup has. One part of the sum is on
its way to each: with two of them it takes longer."""

_MOST_PARTS_SUMS = 64
"""Sums that a thread of a matrix product has, where there have to be as many of the parts before."""

_FEW_TEAM = 16
_COMMON_SHARED = 4096
"""Bytes of shared memory that kernels/common.glsl has."""

_TILED, _MATRIX = "matmul_tiled", "matmul_matrix"

_SPLITS = {_TILED: range(1, 33), _MATRIX: (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
"""Parts of a sum. Workgroups of matmul_tiled take so long that it pays to fill their last wave exactly."""

_WORKGROUPS = {_TILED: 8, _MATRIX: 4}
_PIECES_WORKGROUPS = 6
"""For each multiprocessor: with more of them a sum is not split further. Those of pieces have one to themselves."""

ACCOMPANIED_WORKGROUPS = 1.05
"""For each multiprocessor, of a long sum beside which another product runs, whose workgroups take what places are left:
it is split no further, since fewer parts are less to add up."""

ACCOMPANIED_DEPTH = 8192
"""Shorter sums are split as if they were alone."""

TILED = (
    Tile(_TILED, 96, 128, 16, 3, 2, cost=Cost(2, (2.04, 2.04), (1.02, 1.02), 0.229)),
    Tile(_TILED, 64, 128, 16, 2, 2, cost=Cost(3, (1.3, 1.3), (0.773, 0.773), 0.158)),
    Tile(_TILED, 64, 64, 16, 2, 2, cost=Cost(7, (1.67, 1.67), (0.398, 0.398), 0.107)),
    Tile(_TILED, 64, 64, 16, 1, 1, cost=Cost(6, (0.55, 0.55), (0.449, 0.449), 0.444)),
    Tile(_TILED, 32, 64, 16, 1, 1, cost=Cost(8, (0.303, 0.303), (0.259, 0.259), 1.02)),
    Tile(_TILED, 32, 32, 32, 1, 1, cost=Cost(6, (0.355, 0.355), (0.253, 0.253), 2.03)),
    Tile(_TILED, 32, 32, 16, 1, 1, cost=Cost(6, (0.255, 0.255), (0.138, 0.138), 1.48)),
)
MATRIX = (
    Tile(_MATRIX, 128, 128, 32, 2, 2, cost=Cost(2, (1.15, 0.586), (0.063, 0.291), 2.02)),
    Tile(_MATRIX, 96, 128, 32, 2, 2, cost=Cost(2, (0.943, 0.445), (0.0493, 0.331), 0.907)),
    Tile(_MATRIX, 64, 128, 32, 1, 2, cost=Cost(3, (1.01, 0.6), (0.0187, 0.267), 1.62)),
    Tile(_MATRIX, 64, 64, 64, 2, 2, cost=Cost(5, (9.0, 0.042), (9.0, 0.414), 0.604)),
    Tile(_MATRIX, 64, 64, 32, 1, 2, cost=Cost(5, (0.661, 0.445), (0.163, 0.147), 5.44)),
    Tile(_MATRIX, 32, 64, 128, 2, 2, cost=Cost(4, (9.0, 0.032), (9.0, 0.792), 0.026)),
    Tile(_MATRIX, 32, 64, 64, 1, 2, cost=Cost(2, (0.6, 0.02), (0.22, 0.23), 1.056)),
    Tile(_MATRIX, 64, 32, 64, 2, 1, cost=Cost(6, (2.09, 1.208), (0.0593, 0.112), 0.02)),
    Tile(_MATRIX, 32, 32, 64, 1, 1, cost=Cost(6, (0.0572, 1.04), (0.372, 0.0267), 0.766)),
    # For results as narrow as those of an adapter's products; not fitted, but such that no others take it.
    Tile(_MATRIX, 64, 16, 128, 4, 1, cost=Cost(4, (1.0, 0.5), (0.5, 0.25), 2.0)),
)
PROMPT_ROWS = 256
PROMPT = (
    Tile(_MATRIX, 128, 128, 64, 2, 4, cost=Cost(1, (0.75, 0.75), (0.75, 0.75), 1.5)),
    Tile(_MATRIX, 128, 96, 64, 4, 2, cost=Cost(1, (0.68, 0.68), (0.68, 0.68), 1.3)),
    Tile(_MATRIX, 64, 64, 64, 2, 2, cost=Cost(2, (0.42, 0.42), (0.35, 0.35), 0.5)),
    Tile(_MATRIX, 64, 64, 128, 2, 2, cost=Cost(2, (0.8, 0.8), (0.65, 0.65), 0.8)),
)
"""For sums in parts of so many rows or more, from products of 512 rows on an H200."""
HEAD_ROWS = 33
HEAD = (Tile(_MATRIX, 64, 128, 64, 2, 4, cost=Cost(2, (0.42, 0.42), (0.42, 0.42), 0.6)),)
"""For sums in parts of so many rows, and fewer than those of PROMPT, that have as many columns as a vocabulary."""
PIECES = (
    Tile(_MATRIX, 128, 128, 32, 2, 4, cost=Cost(1, (1.37, 1.37), (1.37, 1.37), 0.0)),
    Tile(_MATRIX, 128, 64, 32, 2, 2, cost=Cost(2, (1.33, 1.33), (0.93, 0.93), 0.0)),
    Tile(_MATRIX, 64, 64, 32, 2, 2, cost=Cost(3, (0.9, 0.9), (0.46, 0.46), 0.0)),
)
"""For operands in two pieces, from an H200. Threads have no more than 64 sums, since they have as many totals."""

_CPU_TILES = {_TILED: (Tile(_TILED, 32, 32, 16, 1, 1),), _MATRIX: (Tile(_MATRIX, 32, 32, 16, 2, 2),)}
"""On a driver that computes on the processor one size is enough, and small ones are compiled sooner."""

# Microseconds, measured on an H100 with perf/helios_matmul.py, as are the tiles' costs; those of the first three tiles
# of either kernel were fitted to products of an H200, those for matrix units too.
_DISPATCH = 3.4
_REDUCTION = 2.3
_WRITTEN_RESULT = 2.2e-6
_REDUCED_RESULT = 9.3e-7
_SINGLE_READ = 3.2e-6
_EDGES = 1.08  # as often on matrix units, with tiles that are not all whole
_CPU_UNITS = 2
DEFAULT_UNITS = 32
"""Multiprocessors of a GPU whose driver does not say; a GPU for games has 16 to 128. With too many, products are split
in vain; with too few, a part of the GPU is idle."""


def hardware(info: DeviceInfo, precision: str) -> Hardware:
    """What a device has for products in a precision."""
    shapes = [shape for shape in info.matrix_shapes(precision) if shape[0] % 8 == shape[1] % 8 == shape[2] % 8 == 0]
    fragment = (16, 16, 16) if (16, 16, 16) in shapes else max(shapes, key=math.prod, default=None)
    sizes = (info.subgroup_size, info.shared_memory, info.max_workgroup_invocations)
    return Hardware(*sizes, fragment, units_of(info), info.kind == "cpu")


def units_of(info: DeviceInfo) -> int:
    """The multiprocessors that products are divided for."""
    return _CPU_UNITS if info.kind == "cpu" else info.multiprocessors or DEFAULT_UNITS


def threads(tile: Tile, device: Hardware) -> int:
    """The invocations of a workgroup."""
    if tile.kernel == _MATRIX:
        return tile.down * tile.across * device.subgroup
    return tile.m * tile.n // (16 * tile.down * tile.across)


def workgroups(division: Division, problem: Problem, device: Hardware) -> tuple[int, int, int]:
    """The grid of a division. Workgroups of matmul_matrix take tiles in turn where there are more of them."""
    tile, planes = division.tile, problem.batches * division.splits
    columns, rows = math.ceil(problem.columns / tile.n), math.ceil(problem.rows / tile.m)
    if tile.kernel == _TILED:
        return columns, rows, planes
    return min(columns * rows, MOST_GROUPS), 1, planes


def shared_bytes(tile: Tile, device: Hardware, pieces: int = 1) -> int:
    """Shared memory of a workgroup, for whichever way the operands lie, with sums of columns, and ways of storing."""
    column_sums = 16 * threads(tile, device)
    if tile.kernel == _TILED:
        return 4 * tile.k * (tile.m + 4 + tile.n + 4) + column_sums
    assert device.fragment is not None
    a_bytes, b_bytes = (2 * pieces * max(each * (tile.k + 8), tile.k * (each + 8)) for each in (tile.m, tile.n))
    columns = tile.n // (tile.across * device.fragment[1])
    line = (2 if columns % 2 == 0 else 1) * device.fragment[1] + 4
    results = 4 * tile.down * tile.across * device.fragment[0] * line
    return max(a_bytes, results) + b_bytes + column_sums


@dataclass(frozen=True)
class Few:
    """How matmul_few divides a product: into workgroups of `columns` columns and blocks of `rows` rows, with `teams` of
    `team` threads, one for each of `parts` of the sum, `part` long, of which `loaded` is read at a time. `k` of the
    left operand, and a `slice` of the right one, pass through shared memory at a time. Teams that are `alone` have
    `columns` and all parts each; more rows than FEW_ROWS are `in_blocks`."""

    team: int
    teams: int
    part: int
    rows: int
    columns: int
    loaded: int
    k: int
    slice: int
    parts: int
    alone: bool = False
    in_blocks: bool = False

    @property
    def threads(self) -> int:
        return self.team * self.teams

    @property
    def workgroup_columns(self) -> int:
        return self.columns * (self.teams if self.alone else 1)

    def workgroups(self, problem: Problem, device: Hardware) -> tuple[int, int, int]:
        """The grid; along its last axis, workgroups take blocks of rows in turn."""
        across, blocks = math.ceil(problem.columns / self.workgroup_columns), math.ceil(problem.rows / self.rows)
        turns = math.ceil(blocks / max(1, _BLOCKS_WORKGROUPS * device.units // across))
        return across, 1, math.ceil(blocks / turns)


def few_part(depth: int, device: Hardware) -> int:
    """How long the parts are in which a sum of few rows is added up: those of one workgroup, which may not have too
    many. It must depend on nothing else, so that a row has the same bits among however many."""
    teams = max(1, min(_MOST_FEW_TEAMS, device.invocations // max(device.subgroup, _FEW_TEAM)))
    return _FEW_PART * math.ceil(depth / (_FEW_PART * teams))


def few_of(problem: Problem, device: Hardware, part: int) -> Few | None:
    """How matmul_few computes a product in parts so long; None of too many rows, or where a workgroup cannot."""
    is_matrix = device.fragment is not None
    teams = max(1, math.ceil(problem.depth / part))
    team = device.subgroup if is_matrix else _FEW_TEAM
    whole = max(1, device.subgroup // team)
    teams = -(-teams // whole) * whole  # whole subgroups; some may have nothing to do
    is_alone = is_matrix and problem.columns >= _ALONE_COLUMNS and _ALONE_TEAMS * team <= device.invocations
    most = MOST_FEW_ROWS if is_matrix and not is_alone else FEW_ROWS
    if problem.batches != 1 or teams * team > device.invocations:
        return None
    if problem.rows > (min(most, _CPU_FEW_ROWS) if device.is_processor else most):
        return None
    if device.fragment is not None and any(16 % each for each in device.fragment):
        return None
    rows = min(FEW_ROWS, 1 << (problem.rows - 1).bit_length())
    parts = max(1, math.ceil(problem.depth / part))
    if is_alone:
        few = Few(team, _ALONE_TEAMS, part, rows, _FEW_COLUMNS, part, part, 32, parts, alone=True)
        if _few_shared(few, parts) <= device.shared_memory:
            return few
    columns = _FEW_COLUMNS if is_matrix else 4 * team
    loaded = max(each for each in range(32, _MOST_LOADED + 1, 32) if part % each == 0)
    for k, slice_ in ((loaded, 32), (loaded, 16), (loaded // 2, 16), (32, 16), (16, 16)):
        few = Few(team, teams, part, rows, columns, loaded, k, slice_, parts, in_blocks=problem.rows > FEW_ROWS)
        if few.in_blocks and k < part:  # with several visits to memory for each block, they take longer than tiles
            break
        if (_few_shared(few, teams) if is_matrix else _few_shared_plain(few)) <= device.shared_memory:
            return few
    return None


def _few_shared(few: Few, parts: int) -> int:
    """Bytes of shared memory of a workgroup with matrix units that has so many parts of the left operand."""
    least = 64 if few.alone or few.in_blocks else 0
    b_units = max(few.slice * (few.columns // 8 + 1), few.columns * (few.slice // 8 + 1), least)
    a_units = few.k // 8 + 1
    units = max(parts * few.rows * a_units + max(few.teams * b_units, 16 * a_units), few.teams * 64)
    return 16 * units + 8 * (few.threads + few.rows) + _COMMON_SHARED


def _few_shared_plain(few: Few) -> int:
    return 16 * few.teams * (few.rows * few.k // 4 + few.team) + 8 * (few.threads + few.rows) + _COMMON_SHARED


def fits(tile: Tile, problem: Problem, device: Hardware) -> bool:
    """Whether a device can run a tile, and its workgroups can be numbered."""
    count = threads(tile, device)
    units = [(tile.m, problem.a_bits), (tile.n, problem.b_bits)]
    if tile.kernel == _MATRIX:
        if device.fragment is None or tile.m % (tile.down * device.fragment[0]):
            return False
        if tile.k % (problem.pieces * device.fragment[2]):
            return False
        if tile.n % (tile.across * device.fragment[1]):
            return False
        moved = [length * tile.k * bits // 128 for length, bits in units]
    else:
        if tile.m % (16 * tile.down) or tile.n % (32 * tile.across):
            return False
        moved = [length * tile.k // 4 for length, _ in units]
    return (
        all(each >= count and each % count == 0 for each in moved)
        and count <= device.invocations
        and shared_bytes(tile, device, problem.pieces) <= device.shared_memory
        and math.ceil(problem.rows / tile.m) <= MOST_GROUPS
        and math.ceil(problem.columns / tile.n) <= MOST_GROUPS
    )


def division_of(tile: Tile, splits: int, problem: Problem) -> Division:
    """A division whose parts are whole steps of the tile; it may have fewer parts than asked for."""
    steps = max(1, math.ceil(problem.depth / tile.k))
    part = math.ceil(steps / splits)
    return Division(tile, math.ceil(steps / part), part * tile.k)


def estimate(division: Division, problem: Problem, device: Hardware) -> float:
    """Seconds that a product should take: those of the waves of workgroups, one after the other, and of memory.

    A wave takes as long as the steps of its workgroups together, and those no less than one workgroup's steps alone.
    """
    tile, cost = division.tile, division.tile.cost
    grid_rows, grid_columns = math.ceil(problem.rows / tile.m), math.ceil(problem.columns / tile.n)
    halves = ((problem.a_bits == 16) + (problem.b_bits == 16)) / 2
    edged = tile.kernel == _MATRIX and (problem.rows % tile.m or problem.columns % tile.n)
    edges = _EDGES if edged else 1.0
    alone, shared = (whole + (half - whole) * halves for whole, half in (cost.alone, cost.shared))

    def wave(workgroups: int) -> float:
        return edges * division.split_depth / tile.k * max(alone, workgroups * shared) + cost.ends

    groups = grid_rows * grid_columns * problem.batches * division.splits
    full, rest = divmod(math.ceil(groups / device.units), cost.resident)
    microseconds = _DISPATCH + full * wave(cost.resident) + (wave(rest) if rest else 0.0)
    results = problem.batches * problem.rows * problem.columns
    microseconds += _WRITTEN_RESULT * results * division.splits
    if not problem.a_vectors:
        microseconds += _SINGLE_READ * problem.batches * problem.depth * problem.rows * grid_columns
    if not problem.b_vectors:
        microseconds += _SINGLE_READ * problem.batches * problem.depth * problem.columns * grid_rows
    if division.splits > 1:
        microseconds += _REDUCTION + _REDUCED_RESULT * results * (division.splits + 1)
    return microseconds * 1e-6


def tiles_for(problem: Problem, device: Hardware) -> list[Tile]:
    """The tiles that a device can take for a product."""
    kernel = _MATRIX if device.fragment else _TILED
    tiles: tuple[Tile, ...] = _CPU_TILES[kernel] if device.is_processor else MATRIX if device.fragment else TILED
    if problem.pieces > 1 and not device.is_processor:
        tiles = PIECES
    return [tile for tile in tiles if fits(tile, problem, device)]


def candidates(problem: Problem, device: Hardware) -> Iterator[Division]:
    """Every division worth trying on a device."""
    seen = set()
    for tile in tiles_for(problem, device):
        most = device.units * (_PIECES_WORKGROUPS if problem.pieces > 1 else _WORKGROUPS[tile.kernel])
        for splits in _SPLITS[tile.kernel]:
            division = division_of(tile, splits, problem)
            whole = problem.batches * math.ceil(problem.rows / tile.m) * math.ceil(problem.columns / tile.n)
            if division in seen or problem.batches * division.splits > MOST_GROUPS:
                continue
            if division.splits > 1 and whole * (division.splits - 1) > most:
                continue
            seen.add(division)
            yield division


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, device: Hardware, part: int = 0, accompanied: bool = False) -> Division:
    """The division with the lowest estimate. Raises AlphaError when a product is too large for any.

    With `part` the sum is added up in parts so long, by as many workgroups or by one. An `accompanied` product shares
    its round with another one; of pieces it is divided as if alone, since none share a multiprocessor.
    """
    divisions = in_parts(problem, device, part) if part else candidates(problem, device)
    best = min(divisions, key=lambda division: estimate(division, problem, device), default=None)
    if best is None:
        raise AlphaError(
            f"A matrix product of [{problem.rows}, {problem.depth}] by [{problem.depth}, {problem.columns}] is too "
            "large for one dispatch of this GPU; use a smaller batch."
        )
    shares = problem.pieces == 1 and best.tile.kernel == _MATRIX
    if accompanied and shares and problem.depth >= ACCOMPANIED_DEPTH:
        whole = math.prod(workgroups(best, problem, device)) // best.splits
        fewer = max(1, int(ACCOMPANIED_WORKGROUPS * device.units) // whole)
        best = division_of(best.tile, min(best.splits, fewer), problem)
    return best


def in_parts(problem: Problem, device: Hardware, part: int) -> Iterator[Division]:
    """The divisions that give the bits of a sum in parts so long."""
    parts = math.ceil(problem.depth / part)
    tiles = tiles_for(problem, device)
    if device.fragment and not device.is_processor:
        is_head = problem.rows >= HEAD_ROWS and problem.columns >= _ALONE_COLUMNS
        special = PROMPT if problem.rows >= PROMPT_ROWS else HEAD if is_head else ()
        tiles = [tile for tile in special if fits(tile, problem, device)] or tiles
    for tile in (each for each in tiles if part % each.k == 0):
        if parts <= 1:
            yield division_of(tile, 1, problem)
            continue
        if problem.batches * parts <= MOST_GROUPS:
            yield Division(tile, parts, part)
        if tile.m * tile.n <= _MOST_PARTS_SUMS * threads(tile, device):
            yield dataclasses.replace(division_of(tile, 1, problem), part=part)
