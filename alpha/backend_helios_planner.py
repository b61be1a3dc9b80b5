"""What is decided about a recorded list of dispatches before the device sees it.

In this order: what one dispatch does for another is left to that one (`backend_helios_folding`, and for an engine's
steps `backend_helios_inference`), forward passes come in parts (`backend_helios_forward`), what needs nothing of each
other shares a round (`arrange`), operations on single numbers become one dispatch a round (`gather_scalars`), arrays
get places in one arena (`plan_arena`), and barriers stand where data demands them (`needs_barrier`). None of it changes
a bit of the results, but that a gradient which is multiplied where it is made, or where it is read, is rounded once,
not twice. Arrays made by the program have no address until `plan_arena` has found them a place. Knows nothing about
what a program is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alpha.backend_helios_array import HeliosArray, Span, Storage
from alpha.backend_helios_kernels import Kernel
from alpha.backend_helios_layout import THREADS, power_of_two
from alpha.backend_helios_memory import FreeRanges, aligned

Argument = HeliosArray | int | float | None

LOOK_AHEAD = 32
"""How many places earlier than it was written down a dispatch may run."""

RECOMPUTING = ("activation", "norm", "pieces")
"""The kernels that make again what was not kept, to save memory: they run no earlier than the dispatch before them."""

MOST_INSTRUCTIONS = 512
"""In one dispatch of scalars; with at most four slots each they fit the shared memory that every device has."""

WHERE = 255
"""The instruction that is no operation of kernels/operations.glsl."""

_GROUP_WORDS = 4


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
    leg: int = 0
    """The how manieth round of a relay it is of, from 1, if it is of one; see `backend_helios_relay`."""
    part: int = 0
    """The how manieth part of a forward pass it is of, from 1, if that has parts; see `backend_helios_forward`."""

    def __str__(self) -> str:
        arguments = " ".join(
            f"{name}={list(each.shape) if isinstance(each, HeliosArray) else each}"
            for name, each in self.arguments.items()
        )
        return f"{self.kernel.name}.{self.kernel.variant} {list(self.groups)} {arguments}"

    @property
    def waits(self) -> bool:
        """Whether it waits by itself for the dispatches of its relay before it."""
        return self.leg > 1

    def arrays(self) -> Iterable[tuple[str, HeliosArray]]:
        """The arrays with how the kernel uses them: "in", "out" or "inout"."""
        for each in self.kernel.fields:
            array = self.arguments.get(each.name)
            if isinstance(array, HeliosArray):
                yield each.direction, array
        yield from self.also


# --- hazards ----------------------------------------------------------------------------------------------------------


def overlap(ranges: Sequence[Span], others: Sequence[Span]) -> bool:
    """Whether one of the ranges may have a byte in common with one of the others."""
    return any(each.meets(other) for each in ranges for other in others)


def needs_barrier(dispatches: Sequence[Dispatch]) -> list[bool]:
    """For each dispatch, whether there must be a barrier between it and those before it, back to the last barrier.

    There must when it reads what one of them writes, or writes what one of them reads or writes, unless that is one of
    its relay, for which it waits by itself, or which is of the same round and needs nothing of it but the counter.
    """
    barriers = []
    read: list[Span] = []
    written: list[Span] = []
    own = 0, 0  # where those of the relay begin in these
    leg = 0
    for dispatch in dispatches:
        reads, writes = [], []
        for kind, array in dispatch.arrays():
            if kind != "out":
                reads.append(array.byte_range)
            if kind != "in":
                writes.append(array.byte_range)
        goes_on = dispatch.waits or dispatch.leg == leg == 1
        others = (read[: own[0]], written[: own[1]]) if goes_on else (read, written)
        conflict = overlap(reads, others[1]) or overlap(writes, others[1]) or overlap(writes, others[0])
        barriers.append(conflict)
        if conflict:
            read, written = [], []
            own = 0, 0
        if dispatch.leg == 1 and leg != 1:
            own = len(read), len(written)
        leg = dispatch.leg
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


def place_of(array: HeliosArray) -> tuple[int, Span]:
    """What can overlap with an array: all that has an address (key 0), or else its own storage; and its bytes there."""
    if array.storage.address is not None:
        return 0, array.byte_range
    return id(array.storage), array.span


# --- rounds -----------------------------------------------------------------------------------------------------------


def arrange(
    dispatches: Sequence[Dispatch], is_chained: Callable[[Dispatch], bool] = lambda dispatch: False
) -> list[list[Dispatch]]:
    """The dispatches in rounds: those of a round need nothing of each other and may run side by side.

    Each goes into the earliest round that what it depends on allows, but not before the round of the one `LOOK_AHEAD`
    places before it (the one before it, if it is one of `RECOMPUTING` and no part of a forward pass), so that what is
    computed late to save memory still is. Those for which `is_chained` may share a round, in order, with others of
    their kind that they depend on. They go where they are in the fewest rounds, and delay no other.
    """
    needed = dependencies(dispatches)
    chained = [is_chained(each) for each in dispatches]
    levels: list[int] = []
    for position, earlier in enumerate(needed):
        dispatch = dispatches[position]
        ahead = 1 if dispatch.kernel.name in RECOMPUTING and not dispatch.part else LOOK_AHEAD
        level = levels[position - ahead] if position >= ahead else 0
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


def longest_first(dispatches: Sequence[Dispatch]) -> list[Dispatch]:
    """A round with its matrix products before all else, those whose workgroups take longest first: a device begins
    dispatches in their order, so that what is short fills the places that are left at the end."""

    def work(dispatch: Dispatch) -> float:
        if dispatch.kernel.name not in ("matmul_matrix", "matmul_tiled"):
            return 0.0
        return dispatch.operations / math.prod(dispatch.groups)

    return sorted(dispatches, key=work, reverse=True)


def _step(chained: Sequence[bool], first: int, second: int) -> int:
    """How many rounds the second of two dispatches must be behind the first, which it depends on."""
    return 0 if chained[first] and chained[second] else 1


# --- scalars ----------------------------------------------------------------------------------------------------------
# A training step computes with a few dozen numbers that live on the device: gradient norm, clip factor, counters. As
# dispatches of their own they take longer to start than to run, and each waits for the one before it. Here they become
# the instructions of kernels/scalars.comp, which runs them in rounds of its own.


class DispatchMaker(Protocol):
    """What is needed of a backend to make a dispatch."""

    def new(self, shape: Sequence[int], element: str) -> HeliosArray: ...

    def from_numpy(self, values: npt.NDArray[Any]) -> HeliosArray: ...

    def copy_into(self, target: HeliosArray, source: HeliosArray) -> None: ...

    def make_dispatch(
        self,
        kernel: str,
        variant: str,
        groups: int | tuple[int, int, int],
        constants: Mapping[str, int | float],
        operations: float = 0.0,
        /,
        **arguments: Argument,
    ) -> Dispatch: ...


def is_scalar(dispatch: Dispatch) -> bool:
    """Whether a dispatch does nothing but compute one element of 32 bits, from others or as the sum of an array."""
    return _is_sum(dispatch) or (
        dispatch.kernel.name in _INSTRUCTIONS
        and dispatch.kernel.variant == "bits32"
        and dispatch.arguments["count"] == dispatch.constants.get("WIDTH", 1) == 1
    )


def _is_sum(dispatch: Dispatch) -> bool:
    """Whether it adds up a few partial sums."""
    return dispatch.kernel.name == "sum_of_squares" and not dispatch.constants["SQUARED"]


def gather_scalars(
    backend: DispatchMaker, rounds: Sequence[Sequence[Dispatch]], planned: Sequence[Storage], result: Storage
) -> tuple[list[list[Dispatch]], list[ScalarRun]]:
    """The rounds of `arrange(..., is_scalar)` with one dispatch for the scalar operations of each.

    Results in `planned` storages are stored only if something else reads them. The runs are to be uploaded once all
    arrays have their addresses.
    """
    parts = [part for dispatches in rounds for part in _scalar_parts(dispatches)]
    readers: dict[int, set[int]] = {}  # which parts read a storage; others than scalar operations count as no part
    for number, (others, scalars) in enumerate(parts):
        for place, dispatches in ((-1, others), (number, scalars)):
            for dispatch in dispatches:
                for direction, array in dispatch.arrays():
                    if direction != "out":
                        readers.setdefault(id(array.storage), set()).add(place)
    unneeded = {id(each) for each in planned} - {id(result)}
    gathered, runs = [], []
    for number, (others, scalars) in enumerate(parts):
        if len(scalars) < 2:
            gathered.append([*others, *scalars])
            continue
        private = {each for each in unneeded if not readers.get(each, set()) - {number}}
        run = ScalarRun(backend, scalars, private)
        gathered.append([*others, run.dispatch])
        runs.append(run)
    return gathered, runs


def _scalar_parts(dispatches: Sequence[Dispatch]) -> Iterable[tuple[list[Dispatch], list[Dispatch]]]:
    """A round's other dispatches and its scalar operations; rounds of their own for those beyond what one run takes."""
    others = [each for each in dispatches if not is_scalar(each)]
    scalars = [each for each in dispatches if is_scalar(each)]
    yield others, scalars[:MOST_INSTRUCTIONS]
    for start in range(MOST_INSTRUCTIONS, len(scalars), MOST_INSTRUCTIONS):
        yield [], scalars[start : start + MOST_INSTRUCTIONS]


class ScalarRun:
    """Scalar operations, in order, as one dispatch; results in `private` storages, by id, are not stored."""

    def __init__(self, backend: DispatchMaker, dispatches: Sequence[Dispatch], private: set[int]) -> None:
        self._slots: dict[tuple[int, int] | int, int] = {}  # by place, or by the bits of a number
        self._sources: dict[int, HeliosArray | int] = {}  # by slot: what is there before the first instruction
        self._results: dict[int, HeliosArray] = {}
        self._instructions: list[tuple[int, int, int, int]] = []
        self._sums = [(each.arguments["x"], self._result(each, "parts")) for each in dispatches if _is_sum(each)]
        for independent in arrange([each for each in dispatches if not _is_sum(each)]):
            instructions = [_INSTRUCTIONS[each.kernel.name](self, each) for each in independent]
            codes, a, b, y = instructions[0]
            self._instructions += [(codes, a, b | len(instructions) << 16, y), *instructions[1:]]
        self._targets = {slot: each for slot, each in self._results.items() if id(each.storage) not in private}
        groups = len(self._slots) + len(self._instructions) + len(self._sums)
        self._table = backend.new((_GROUP_WORDS * groups + len(self._sources),), "i32")
        made = backend.make_dispatch(
            "scalars",
            "bits32",
            1,
            {
                "THREADS": THREADS,
                "SLOTS": power_of_two(len(self._slots)),
                "INSTRUCTIONS": power_of_two(len(self._instructions)),
            },
            table=self._table,
            slots=len(self._slots),
            instructions=len(self._instructions),
            sums=len(self._sums),
        )
        sources = (*self._sources.values(), *(each for each, _ in self._sums))
        reads = [("in", each) for each in sources if isinstance(each, HeliosArray)]
        writes = [("out", each) for each in self._targets.values()]
        self.dispatch = Dispatch(
            made.kernel, made.pipeline, made.groups, made.arguments, constants=made.constants, also=(*reads, *writes)
        )

    def upload(self, backend: DispatchMaker) -> None:
        """Write the kernel's table, now that all arrays have addresses."""
        addresses = np.zeros((len(self._slots), 2), np.uint64)
        instructions = np.array(self._instructions, np.uint32)
        sums = np.zeros(len(self._sums), [("address", np.uint64), ("count", np.uint32), ("slot", np.uint32)])
        for place, (x, slot) in enumerate(self._sums):
            assert isinstance(x, HeliosArray)
            sums[place] = x.address, x.size, slot
        numbers: list[int] = []
        after = self._table.address + 4 * _GROUP_WORDS * (len(addresses) + len(instructions) + len(sums))
        for slot, source in self._sources.items():
            if isinstance(source, HeliosArray):
                addresses[slot, 0] = source.address
            else:
                addresses[slot, 0] = after + 4 * len(numbers)
                numbers.append(source)
        for slot, target in self._targets.items():
            addresses[slot, 1] = target.address
        words = np.concatenate([each.reshape(-1).view(np.uint32) for each in (addresses, instructions, sums)])
        numbers += [0] * (self._table.size - len(words) - len(numbers))
        values = np.concatenate([words, np.array(numbers, np.uint32)]).view(np.int32)
        backend.copy_into(self._table, backend.from_numpy(values))

    # --- instructions -------------------------------------------------------------------------------------------------

    def elementwise(self, dispatch: Dispatch) -> tuple[int, int, int, int]:
        constants = {name: int(value) for name, value in dispatch.constants.items()}
        codes = (
            constants["OPERATION"] | constants["INTEGER"] << 8
            | constants["A_ELEMENT"] << 12 | constants["B_ELEMENT"] << 16 | constants["Y_ELEMENT"] << 20
        )  # fmt: skip
        a, b = (self._operand(dispatch, name) for name in ("a", "b"))
        return codes, a, b, self._result(dispatch, "y")

    def where(self, dispatch: Dispatch) -> tuple[int, int, int, int]:
        condition, a, b = (self._operand(dispatch, name) for name in ("condition", "a", "b"))
        return WHERE, a, b, self._result(dispatch, "y") | condition << 16

    def copy_into_if(self, dispatch: Dispatch) -> tuple[int, int, int, int]:
        condition, a, b = (self._operand(dispatch, name) for name in ("condition", "source", "target"))
        return WHERE, a, b, self._result(dispatch, "target") | condition << 16

    def _operand(self, dispatch: Dispatch, name: str) -> int:
        """The slot of an array, or of the number that stands for it."""
        operand = dispatch.arguments[name]
        if isinstance(operand, HeliosArray):
            return self._slot(_element_key(operand), operand)
        number = dispatch.arguments[f"{name}_number"]
        assert isinstance(number, int)
        return self._slot(number, number)

    def _slot(self, key: tuple[int, int] | int, source: HeliosArray | int) -> int:
        if key not in self._slots:
            self._slots[key] = len(self._slots)
            self._sources[self._slots[key]] = source
        return self._slots[key]

    def _result(self, dispatch: Dispatch, name: str) -> int:
        array = dispatch.arguments[name]
        assert isinstance(array, HeliosArray)
        slot = self._slots.setdefault(_element_key(array), len(self._slots))
        self._results[slot] = array
        return slot


_INSTRUCTIONS = {
    "elementwise": ScalarRun.elementwise,
    "where": ScalarRun.where,
    "copy_into_if": ScalarRun.copy_into_if,
}
"""How each kernel's dispatch becomes an instruction."""


def _element_key(array: HeliosArray) -> tuple[int, int]:
    """Where an element lies: the same for all arrays that hold the same element."""
    key, span = place_of(array)
    return key, span.start


# --- memory -----------------------------------------------------------------------------------------------------------


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
