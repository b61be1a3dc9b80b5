"""Lists of dispatches and what becomes of them: addresses, barriers, commands, and the replay of a recorded list.

A dispatch names its kernel and its arguments; whether the arguments have addresses yet does not matter until the list
is turned into commands. Knows nothing about what the kernels compute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from alpha.backend_helios_array import HeliosArray, Storage, contiguous_strides
from alpha.backend_helios_device import Device
from alpha.backend_helios_kernels import Kernel
from alpha.backend_helios_memory import DeviceMemory, FreeRanges, aligned

Argument = HeliosArray | int | float | None

_DISPATCH, _BARRIER = 0, 1
_COMMAND = struct.Struct("<I3IQII128s")

REUSE_DISTANCE = 4
"""A range of the arena is used again only this many dispatches after its last use, so that neighbours may overlap."""

MOST_SLOTS_WAITING = 8
"""Replays that may be under way before another one waits for the first of them."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One run of a kernel."""

    kernel: Kernel
    pipeline: int
    groups: tuple[int, int, int]
    arguments: dict[str, Argument]

    def arrays(self) -> Iterable[tuple[str, HeliosArray]]:
        """The arrays with how the kernel uses them: "in", "out" or "inout"."""
        for field in self.kernel.fields:
            array = self.arguments.get(field.name)
            if isinstance(array, HeliosArray):
                yield field.direction, array


Range = tuple[int, int]


def _overlap(ranges: Sequence[Range], others: Sequence[Range]) -> bool:
    return any(start < other_end and other_start < end for start, end in ranges for other_start, other_end in others)


def needs_barrier(dispatches: Sequence[Dispatch]) -> list[bool]:
    """For each dispatch, whether it must wait for those before it, back to the last barrier.

    It must when it reads what one of them writes, or writes what one of them reads or writes.
    """
    barriers = []
    read: list[Range] = []
    written: list[Range] = []
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


def commands(dispatches: Sequence[Dispatch]) -> bytes:
    """The sidecar's commands: a barrier against all that was submitted before, then the dispatches with theirs."""
    barrier = _COMMAND.pack(_BARRIER, 0, 0, 0, 0, 0, 0, b"")
    parts = [barrier]
    for dispatch, waits in zip(dispatches, needs_barrier(dispatches), strict=True):
        if waits:
            parts.append(barrier)
        push = dispatch.kernel.pack(
            {name: each.address if isinstance(each, HeliosArray) else each or 0
             for name, each in dispatch.arguments.items()}
        )  # fmt: skip
        parts.append(_COMMAND.pack(_DISPATCH, *dispatch.groups, dispatch.pipeline, len(push), 0, push))
    return b"".join(parts)


def plan_arena(
    dispatches: Sequence[Dispatch], planned: Sequence[Storage], result: Storage | None = None
) -> tuple[int, list[int]]:
    """Bytes of an arena, and an offset in it for each storage, so that those in use at the same time lie apart.

    A storage is in use from the first dispatch that names it to the last, and `result` to the end.
    """
    place = {id(storage): index for index, storage in enumerate(planned)}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, dispatch in enumerate(dispatches):
        for _, array in dispatch.arrays():
            index = place.get(id(array.storage))
            if index is not None:
                first.setdefault(index, position)
                last[index] = position
    if id(result) in place:
        last[place[id(result)]] = len(dispatches)
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for index, position in first.items():
        starting.setdefault(position, []).append(index)
        ending.setdefault(last[index] + REUSE_DISTANCE, []).append(index)
    offsets = [0] * len(planned)
    ranges, size = FreeRanges(), 0
    for position in range(len(dispatches)):
        for index in ending.get(position, ()):
            ranges.give_back(offsets[index], aligned(planned[index].nbytes))
        for index in sorted(starting.get(position, ()), key=lambda index: -planned[index].nbytes):
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


class Host(Protocol):
    """What a recorded program needs of the backend that recorded it."""

    device: Device
    memory: DeviceMemory

    def trace(self, program: Callable[[], HeliosArray]) -> tuple[HeliosArray, list[Dispatch], list[Storage]]: ...

    def copy_dispatch(self, target: HeliosArray, source: HeliosArray) -> Dispatch: ...

    def copy_into(self, target: HeliosArray, source: HeliosArray) -> None: ...

    def flush(self) -> None: ...

    def make_program(self, dispatches: Sequence[Dispatch]) -> int: ...

    def submit(self, programs: Sequence[int]) -> int: ...


@dataclass(frozen=True)
class MemoryPlan:
    """What a recorded program needs beside the arrays that existed before it; memory in bytes."""

    arena: int
    operands: int
    dispatches: int
    barriers: int


class _Slot:
    """What one replay needs for itself: space for its operands and for its result, and the copies to and from there."""

    def __init__(self, host: Host, operands: HeliosArray, result: HeliosArray) -> None:
        self.operands = host.memory.upload_space(operands.nbytes)
        self._result = host.memory.read_back_space(result.nbytes)
        self._like = result
        uploaded = HeliosArray(self.operands, operands.shape, operands.strides, operands.element)
        self.upload = host.make_program([host.copy_dispatch(operands, uploaded)])
        self.read_back = host.make_program([host.copy_dispatch(self._array(self._result), result)])
        self.done = 0
        """The timeline's value after its last replay."""
        self.is_held = False
        """Whether somebody still has the result of its last replay."""

    def hand_out(self, done: int) -> HeliosArray:
        """The result of a replay that will have ended at `done`; the slot is held until it is forgotten."""
        self.done, self.is_held = done, True
        storage = self._result
        return self._array(Storage(storage.nbytes, storage.address, self._let_go, mapped=storage.mapped, ready=done))

    def _array(self, storage: Storage) -> HeliosArray:
        return HeliosArray(storage, self._like.shape, contiguous_strides(self._like.shape), self._like.element)

    def _let_go(self) -> None:
        self.is_held = False


class RecordedProgram:
    """A program of arrays that is traced once, before its first run, and replayed from then on.

    A replay is one submission: the operands are copied from where the host put them, the recorded dispatches run, and
    the result is copied to where the host can read it. Nothing waits for anything.
    """

    def __init__(self, host: Host, program: Callable[..., HeliosArray]) -> None:
        self._host = host
        self._program = program
        self._operands: list[HeliosArray] = []
        self._slots: list[_Slot] = []
        self._plan: MemoryPlan | None = None

    def __call__(self, *operands: HeliosArray) -> HeliosArray:
        self.prepare(*operands)
        slot = self._free_slot()
        programs = [self._main, slot.read_back]
        if all(_is_fresh(each) for each in operands):
            self._write(slot, operands)
            programs.insert(0, slot.upload)
        else:
            for target, source in zip(self._operands, operands, strict=True):
                self._host.copy_into(target, source)
        self._host.flush()
        return slot.hand_out(self._host.submit(programs))

    def prepare(self, *operands: HeliosArray) -> MemoryPlan:
        """Trace the program and take its memory, unless that has been done. Raises OutOfDeviceMemory."""
        if self._plan is None:
            self._plan = self._record(operands)
        if [(each.shape, each.element) for each in operands] != [(each.shape, each.element) for each in self._operands]:
            raise ValueError("a recorded program takes operands of the same shapes and dtypes each time")
        return self._plan

    def _record(self, operands: Sequence[HeliosArray]) -> MemoryPlan:
        host = self._host
        end = sum(aligned(each.nbytes) for each in operands)
        inputs = host.memory.allocate(end)
        self._inputs = HeliosArray(inputs, (end // 4,), (1,), "i32")
        start = 0
        for each in operands:
            offset = start // each.itemsize
            self._operands.append(HeliosArray(inputs, each.shape, contiguous_strides(each.shape), each.element, offset))
            start += aligned(each.nbytes)
        self._result, dispatches, planned = host.trace(lambda: self._program(*self._operands))
        size, offsets = plan_arena(dispatches, planned, self._result.storage)
        arena = host.memory.allocate(size)
        assert arena.address is not None
        for storage, offset in zip(planned, offsets, strict=True):
            storage.address = arena.address + offset
        host.flush()
        self._main = host.make_program(dispatches)
        # What the dispatches refer to stays alive, and in its place, as long as the program.
        self._kept = [arena, [array.storage for each in dispatches for _, array in each.arrays()]]
        return MemoryPlan(size, end, len(dispatches), sum(needs_barrier(dispatches)))

    def _write(self, slot: _Slot, operands: Sequence[HeliosArray]) -> None:
        """Put operands that the host has just made where the slot's upload reads them."""
        assert slot.operands.mapped is not None
        for target, source in zip(self._operands, operands, strict=True):
            values = source.storage.pending
            assert values is not None
            start = target.offset * target.itemsize
            slot.operands.mapped[start : start + target.nbytes] = memoryview(values).cast("B")

    def _free_slot(self) -> _Slot:
        """A slot whose last replay has ended and whose result nobody holds any more, or a new one."""
        completed = self._host.device.completed()
        unheld = [slot for slot in self._slots if not slot.is_held]
        for slot in unheld:
            if slot.done <= completed:
                return slot
        if len(unheld) >= MOST_SLOTS_WAITING:
            self._host.device.wait(unheld[0].done)
            return unheld[0]
        self._slots.append(_Slot(self._host, self._inputs, self._result))
        return self._slots[-1]


def _is_fresh(array: HeliosArray) -> bool:
    """Whether all of an array's values are still where the host made them."""
    values = array.storage.pending
    return values is not None and array.is_contiguous and array.nbytes == array.storage.nbytes > 0
