"""What is decided about a list of dispatches before the device sees it: copies left out, places in memory, barriers.

A dispatch names its kernel and its arguments. In a list that is being recorded, arrays made by the program have no
address until `plan_arena` has found them a place. Knows nothing about what the kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from alpha.backend_helios_array import HeliosArray, Span, Storage
from alpha.backend_helios_kernels import Kernel
from alpha.backend_helios_memory import FreeRanges, aligned

Argument = HeliosArray | int | float | None

VECTOR_BYTES = 16
"""Kernels read and write so many bytes at a time where an array starts at a multiple of them, as every storage does."""

LOOK_AHEAD = 32
"""How many places earlier than it was written down a dispatch may run."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One run of a kernel."""

    kernel: Kernel
    pipeline: Future[int]
    groups: tuple[int, int, int]
    arguments: dict[str, Argument]
    is_copy: bool = False
    """Whether it does nothing but copy its one input to its one output, of the same shape and element."""
    operations: float = 0.0
    """Floating-point operations, where they are what takes the time; for people to read."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """The specialization constants that its pipeline was made with, but for those left at their defaults."""
    also: tuple[tuple[str, HeliosArray], ...] = ()
    """Arrays that no argument names, because the kernel finds their addresses in memory; as in `arrays`."""

    def __str__(self) -> str:
        arguments = " ".join(
            f"{name}={list(each.shape) if isinstance(each, HeliosArray) else each}"
            for name, each in self.arguments.items()
        )
        return f"{self.kernel.name}.{self.kernel.variant} {list(self.groups)} {arguments}"

    def arrays(self) -> Iterable[tuple[str, HeliosArray]]:
        """The arrays with how the kernel uses them: "in", "out" or "inout"."""
        for each in self.kernel.fields:
            array = self.arguments.get(each.name)
            if isinstance(array, HeliosArray):
                yield each.direction, array
        yield from self.also


def _overlap(ranges: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(each.meets(other) for each in ranges for other in others)


def needs_barrier(dispatches: Sequence[Dispatch]) -> list[bool]:
    """For each dispatch, whether it must wait for those before it, back to the last barrier.

    It must when it reads what one of them writes, or writes what one of them reads or writes.
    """
    barriers = []
    read: list[Span] = []
    written: list[Span] = []
    for dispatch in dispatches:
        reads, writes = [], []
        for kind, array in dispatch.arrays():
            if kind != "out":
                reads.append(array.byte_range)
            if kind != "in":
                writes.append(array.byte_range)
        conflict = _overlap(reads, written) or _overlap(writes, written) or _overlap(writes, read)
        barriers.append(conflict)
        if conflict:
            read, written = [], []
        read += reads
        written += writes
    return barriers


def dependencies(dispatches: Sequence[Dispatch]) -> list[set[int]]:
    """For each dispatch, the positions of earlier ones that it must wait for; not of those that these wait for."""
    needed: list[set[int]] = []
    uses: dict[int, dict[Span, tuple[list[int], list[int]]]] = {}  # by storage and range: who wrote, who read since
    for position, dispatch in enumerate(dispatches):
        earlier: set[int] = set()
        ranges = [(direction, *place_of(array)) for direction, array in dispatch.arrays()]
        for direction, key, span in ranges:
            for other, (writers, readers) in uses.get(key, {}).items():
                if span.meets(other):
                    earlier.update(writers, readers if direction != "in" else ())
        for direction, key, span in ranges:
            writers, readers = uses.setdefault(key, {}).setdefault(span, ([], []))
            if direction != "in":
                writers[:], readers[:] = [position], []
            if direction != "out":
                readers.append(position)
        needed.append(earlier)
    return needed


def arrange(
    dispatches: Sequence[Dispatch], is_chained: Callable[[Dispatch], bool] = lambda dispatch: False
) -> list[list[Dispatch]]:
    """The dispatches in rounds: those of a round need nothing of each other and may run side by side.

    Each goes into the earliest round that what it depends on allows, but not before the round of the one `LOOK_AHEAD`
    places before it, so that what is computed late to save memory still is. Those for which `is_chained` may share a
    round, in order, with others of their kind that they depend on. They go where they are in the fewest rounds, and
    delay no other.
    """
    needed = dependencies(dispatches)
    chained = [is_chained(each) for each in dispatches]
    levels: list[int] = []
    for position, earlier in enumerate(needed):
        level = levels[position - LOOK_AHEAD] if position >= LOOK_AHEAD else 0
        levels.append(max([level, *(levels[each] + _step(chained, each, position) for each in earlier)]))
    latest = [max(levels, default=0)] * len(levels)
    for position in reversed(range(len(levels))):
        bound = latest[position] if chained[position] else levels[position]
        for each in needed[position]:
            latest[each] = min(latest[each], bound - _step(chained, each, position))
    # The fewest points that stab all the intervals from the earliest to the latest round.
    left = [position for position, is_so in enumerate(chained) if is_so]
    while left:
        point = min(latest[position] for position in left)
        for position in [each for each in left if levels[each] <= point]:
            levels[position] = point
            left.remove(position)
    rounds: list[list[Dispatch]] = [[] for _ in range(max(levels, default=-1) + 1)]
    for level, dispatch in zip(levels, dispatches, strict=True):
        rounds[level].append(dispatch)
    return [each for each in rounds if each]


def _step(chained: Sequence[bool], first: int, second: int) -> int:
    """How many rounds the second of two dispatches must be behind the first, which it depends on."""
    return 0 if chained[first] and chained[second] else 1


def place_of(array: HeliosArray) -> tuple[int, Span]:
    """What can overlap with an array: all that has an address (key 0), or else its own storage; and its bytes there."""
    if array.storage.address is not None:
        return 0, array.byte_range
    return id(array.storage), array.span


def plan_arena(
    rounds: Sequence[Sequence[Dispatch]], planned: Sequence[Storage], result: Storage | None = None
) -> tuple[int, list[int]]:
    """Bytes of an arena, and an offset in it for each storage, so that those in use at the same time lie apart.

    A storage is in use from the first round that names it to the last, and `result` to the end.
    """
    place = {id(storage): index for index, storage in enumerate(planned)}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, dispatches in enumerate(rounds):
        for dispatch in dispatches:
            for _, array in dispatch.arrays():
                index = place.get(id(array.storage))
                if index is not None:
                    first.setdefault(index, number)
                    last[index] = number
    if id(result) in place:
        last[place[id(result)]] = len(rounds)
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for index, number in first.items():
        starting.setdefault(number, []).append(index)
        ending.setdefault(last[index] + 1, []).append(index)
    offsets = [0] * len(planned)
    ranges, size = FreeRanges(), 0
    for number in range(len(rounds)):
        for index in ending.get(number, ()):
            ranges.give_back(offsets[index], aligned(planned[index].nbytes))
        for index in sorted(starting.get(number, ()), key=lambda index: -planned[index].nbytes):
            needed = aligned(planned[index].nbytes)
            offset = ranges.take(needed)
            if offset is None:
                # Nothing fits: make the arena longer, starting in the free range at its end, if there is one.
                offset = ranges.take_last(size)
                if offset is None:
                    offset = size
                size = offset + needed
            offsets[index] = offset
    return size, offsets


def forward_copies(
    dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage
) -> tuple[list[Dispatch], list[Storage]]:
    """The dispatches without copies that only move what could have been written to its destination at once.

    A storage that is copied as a whole to where an array lies that existed before, and is not used afterwards, takes
    that array's place from the start, if nothing else uses the place in the meantime. Returns the storages that still
    need one.
    """
    planned_ids = {id(storage) for storage in planned}
    uses: dict[int, list[int]] = {}
    for position, dispatch in enumerate(dispatches):
        for _, array in dispatch.arrays():
            if id(array.storage) in planned_ids:
                uses.setdefault(id(array.storage), []).append(position)
    left_out: set[int] = set()
    moved: set[int] = set()
    for position, dispatch in enumerate(dispatches):
        if not dispatch.is_copy:
            continue
        by_direction = dict(dispatch.arrays())
        source, target = by_direction["in"], by_direction["out"]
        storage = source.storage
        if (
            id(storage) not in planned_ids - moved
            or storage is result
            or target.storage.address is None
            or target.address % VECTOR_BYTES
            or source.nbytes != storage.nbytes
            or not (source.is_contiguous and target.is_contiguous)
            or uses[id(storage)][-1] != position
        ):
            continue
        place = [target.byte_range]
        between = dispatches[uses[id(storage)][0] : position]
        if any(array.storage.address is not None and _overlap([array.byte_range], place)
               for each in between for _, array in each.arrays()):  # fmt: skip
            continue
        storage.address = target.address
        left_out.add(position)
        moved.add(id(storage))
    return (
        [dispatch for position, dispatch in enumerate(dispatches) if position not in left_out],
        [storage for storage in planned if id(storage) not in moved],
    )
