"""Programs: lists of dispatches as commands of the device, and a traced program that is recorded once and replayed.

Knows nothing about what the kernels compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alpha.backend_helios_array import ELEMENTS, HeliosArray, Storage, contiguous_strides
from alpha.backend_helios_device import BARRIER, dispatch_command
from alpha.backend_helios_folding import (
    fold_additions,
    fold_conversions,
    fold_gradients,
    fold_scales,
    forward_copies,
    same_place,
)
from alpha.backend_helios_forward import ForwardParts, in_parts
from alpha.backend_helios_inference import fold_choices, fold_operands, fold_puts
from alpha.backend_helios_memory import aligned
from alpha.backend_helios_planner import (
    Dispatch,
    arrange,
    gather_scalars,
    is_scalar,
    longest_first,
    needs_barrier,
    plan_arena,
)
from alpha.backend_helios_relay import Relay, RelayMaker, await_rows, relayed
from alpha.backend_helios_stages import StageRun, Stages, gather_stages

MOST_DIRECT_BYTES = 4096
"""Larger results are copied to where the host reads them; smaller ones are written there."""

MOST_SLOTS_WAITING = 8
"""Replays that may be under way before another one waits for the first of them."""


def commands(dispatches: Sequence[Dispatch]) -> bytes:
    """The sidecar's commands: a barrier against all that was submitted before, then the dispatches with theirs.

    Waits for pipelines that are still being compiled.
    """
    parts = [BARRIER]
    for dispatch, waits in zip(dispatches, needs_barrier(dispatches), strict=True):
        if waits:
            parts.append(BARRIER)
        values = {
            name: each.address if isinstance(each, HeliosArray) else each for name, each in dispatch.arguments.items()
        }
        parts.append(dispatch_command(dispatch.pipeline.result(), dispatch.groups, dispatch.kernel.pack(values)))
    return b"".join(parts)


class Recorder(RelayMaker, Protocol):
    """What a recorded program needs of the backend that recorded it."""

    stages: Stages | None
    forward_parts: ForwardParts | None

    def trace(self, program: Callable[[], HeliosArray]) -> tuple[HeliosArray, list[Dispatch], list[Storage]]: ...

    def tune(self) -> bool: ...

    def make_program(self, dispatches: Sequence[Dispatch]) -> int: ...

    def submit(self, programs: Sequence[int]) -> int: ...


@dataclass(frozen=True)
class ProgramSize:
    """What a recorded program needs beside the arrays that existed before it; memory in bytes."""

    arena: int
    operands: int
    dispatches: int
    barriers: int


class _Slot:
    """What one replay needs for itself: space for its operands and for its result, and the program that also copies
    from and to there."""

    def __init__(
        self,
        backend: Recorder,
        inputs: HeliosArray,
        operands: Sequence[HeliosArray],
        dispatches: Sequence[Dispatch],
        result: HeliosArray,
        relay: Relay | None,
    ) -> None:
        self._backend = backend
        self._check = None if relay is None else relay.check
        self.operands = backend.memory.upload_space(inputs.nbytes)
        self._result = backend.memory.read_back_space(result.nbytes)
        self._like = result
        uploaded = HeliosArray(self.operands, inputs.shape, inputs.strides, inputs.element)
        self._upload = backend.copy_dispatch(inputs, uploaded)
        self.written = [_mapped(self.operands, each) for each in operands]
        """The operands as the host writes them."""
        place = self._array(self._result)
        written = _written_to(place, result, dispatches)
        self._others = [*dispatches, backend.copy_dispatch(place, result)] if written is None else written
        self._programs: dict[bool, int] = {}
        self.done = 0
        """The timeline's value after its last replay."""
        self.is_held = False
        """Whether somebody still has the result of its last replay."""

    def program(self, uploads: bool) -> int:
        """The program of a replay, with or without the copy of operands that the host has written to the slot."""
        if uploads not in self._programs:
            dispatches = [self._upload, *self._others] if uploads else self._others
            self._programs[uploads] = self._backend.make_program(dispatches)
        return self._programs[uploads]

    def hand_out(self, done: int) -> HeliosArray:
        """The result of a replay that will have ended at `done`; the slot is held until it is forgotten."""
        self.done, self.is_held = done, True
        storage = self._result
        return self._array(
            Storage(storage.nbytes, storage.address, self._let_go, mapped=storage.mapped, ready=done, check=self._check)
        )

    def _array(self, storage: Storage) -> HeliosArray:
        return HeliosArray(storage, self._like.shape, contiguous_strides(self._like.shape), self._like.element)

    def _let_go(self) -> None:
        self.is_held = False


class RecordedProgram:
    """A program of arrays that is traced once, before its first run, and replayed from then on.

    A replay is one submission of one program: the operands are copied from where the host put them, the recorded
    dispatches run, and the result is copied to where the host can read it, beside the last of them where it is there
    before. Nothing waits for anything. With `in_relays` results may be lost (RelayBroken); a further call has barriers.
    """

    def __init__(self, backend: Recorder, program: Callable[..., HeliosArray], in_relays: bool = False) -> None:
        self._backend = backend
        self._program = program
        self._in_relays = in_relays
        self._operands: list[HeliosArray] = []
        self._slots: list[_Slot] = []
        self._size: ProgramSize | None = None
        self._relay: Relay | None = None
        self._forms: list[tuple[tuple[int, ...], str]] = []  # shape and element of each operand

    def __call__(self, *operands: HeliosArray) -> HeliosArray:
        self.prepare(*operands)
        slot = self._free_slot()
        uploads = all(map(_is_fresh, operands))
        if uploads:
            for written, each in zip(slot.written, operands, strict=True):
                written[...] = each.storage.pending
        else:
            for target, source in zip(self._operands, operands, strict=True):
                self._backend.copy_into(target, source)
        self._backend.flush()
        return slot.hand_out(self._backend.submit([slot.program(uploads)]))

    def prepare(self, *operands: HeliosArray) -> ProgramSize:
        """Trace the program and take its memory, unless that has been done. Raises OutOfDeviceMemory."""
        if self._size is None or (self._relay is not None and not self._backend.relays.wanted):
            self._size = self._record(operands)
        if [(each.shape, each.element) for each in operands] != self._forms:
            raise ValueError("a recorded program takes operands of the same shapes and dtypes each time")
        return self._size

    def _record(self, operands: Sequence[HeliosArray]) -> ProgramSize:
        backend = self._backend
        self._operands.clear()  # of a recording for which there was too little memory
        end = sum(aligned(each.nbytes) for each in operands)
        inputs = backend.memory.allocate(end)
        self._inputs = HeliosArray(inputs, (end // 4,), (1,), "i32")
        start = 0
        for each in operands:
            offset = start // each.itemsize
            self._operands.append(HeliosArray(inputs, each.shape, contiguous_strides(each.shape), each.element, offset))
            start += aligned(each.nbytes)
        self._forms = [(each.shape, each.element) for each in operands]
        traced = backend.trace(lambda: self._program(*self._operands))
        if backend.tune():
            traced = backend.trace(lambda: self._program(*self._operands))
        self._result, dispatches, planned = traced
        dispatches, planned = forward_copies(dispatches, planned, self._result.storage)
        dispatches = fold_operands(backend, dispatches, planned, self._result.storage)
        dispatches = fold_puts(backend, dispatches, planned, self._result.storage)
        dispatches = fold_choices(dispatches)
        dispatches = fold_conversions(backend, dispatches, planned, self._result.storage)
        dispatches = fold_scales(dispatches, planned, self._result.storage)
        dispatches = fold_additions(dispatches, planned, self._result.storage)
        dispatches = fold_gradients(backend, dispatches, planned, self._result.storage)
        stage_runs: list[StageRun] = []
        # Where requests share products, bits must not depend on how many rows there are; so stages are for training.
        if backend.stages is not None and any(each.kernel.name == "norm_backward" for each in dispatches):
            dispatches, stage_runs = gather_stages(backend, dispatches, backend.stages)
        if backend.forward_parts is not None:
            dispatches = in_parts(dispatches, backend.forward_parts)
        rounds, scalar_runs = gather_scalars(backend, arrange(dispatches, is_scalar), planned, self._result.storage)
        rounds = [longest_first(each) for each in rounds]
        rows = None
        if self._in_relays:
            planned, rows = await_rows(backend, rounds, planned, self._result.storage)
        size, offsets = plan_arena(rounds, planned, self._result.storage)
        arena = backend.memory.allocate(size)
        assert arena.address is not None
        for storage, offset in zip(planned, offsets, strict=True):
            storage.address = arena.address + offset
        for scalar_run in scalar_runs:
            scalar_run.upload(backend)
        for stage_run in stage_runs:
            stage_run.upload(backend)
        if self._in_relays:
            rounds, self._relay = relayed(backend, rounds, rows)
        backend.flush()
        dispatches = [dispatch for each in rounds for dispatch in each]
        if self._relay is not None:
            dispatches[:0] = [self._relay.reset, *([] if rows is None else [rows.reset])]
        self._dispatches = dispatches
        self._slots = [self._slot()]
        self._slots[0].program(all(map(_is_fresh, operands)))
        # What the dispatches refer to stays alive, and in its place, as long as the program.
        self._kept = [arena, self._relay, rows, [array.storage for each in dispatches for _, array in each.arrays()]]
        return ProgramSize(size, end, len(dispatches), sum(needs_barrier(dispatches)))

    def _free_slot(self) -> _Slot:
        """A slot whose last replay has ended and whose result nobody holds any more, or a new one."""
        unheld = [slot for slot in self._slots if not slot.is_held]
        if unheld:
            oldest = min(unheld, key=lambda slot: slot.done)
            if len(unheld) >= MOST_SLOTS_WAITING:
                self._backend.device.wait(oldest.done)
            if self._backend.device.is_complete(oldest.done):
                return oldest
        self._slots.append(self._slot())
        return self._slots[-1]

    def _slot(self) -> _Slot:
        return _Slot(self._backend, self._inputs, self._operands, self._dispatches, self._result, self._relay)


def _written_to(place: HeliosArray, result: HeliosArray, dispatches: Sequence[Dispatch]) -> list[Dispatch] | None:
    """The dispatches with a small result written to `place` by the one that makes it; None where others use it, too."""
    users = [
        (number, field)
        for number, dispatch in enumerate(dispatches)
        for field in dispatch.kernel.fields
        if isinstance(array := dispatch.arguments.get(field.name), HeliosArray) and array.storage is result.storage
    ]
    others = [array for dispatch in dispatches for _, array in dispatch.also if array.storage is result.storage]
    if len(users) != 1 or others or result.nbytes > MOST_DIRECT_BYTES:
        return None
    ((number, field),) = users
    maker = dispatches[number]
    made = maker.arguments[field.name]
    if field.direction != "out" or not isinstance(made, HeliosArray) or not same_place(made, result):
        return None
    changed = dataclasses.replace(maker, arguments={**maker.arguments, field.name: place})
    return [*dispatches[:number], changed, *dispatches[number + 1 :]]


def _mapped(space: Storage, like: HeliosArray) -> npt.NDArray[Any]:
    """An array of the host in memory that it can write, at the place in it that another one has in its own."""
    assert space.mapped is not None
    flat = np.frombuffer(space.mapped, ELEMENTS[like.element].stored, like.size, like.offset * like.itemsize)
    return flat.reshape(like.shape)


def _is_fresh(array: HeliosArray) -> bool:
    """Whether all of an array's values are still where the host made them."""
    values = array.storage.pending
    return values is not None and array.is_contiguous and array.nbytes == array.storage.nbytes
