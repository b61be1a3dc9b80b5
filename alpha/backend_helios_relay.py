"""Rounds of a recorded program that follow each other without a barrier: each waits by itself for the one before.

The rounds of a decode step are short, and a barrier between two of them takes as long as their work; a prompt has as
many, some ten times as long. In a relay, the workgroups of a round start while the round before still runs, ask for
what does not depend on it, and wait until all of its workgroups have counted themselves (kernels/relay.glsl), or until
all numbers of a row are there (`AwaitedRows`). So a round has seen the end of all rounds before it, and memory may be
used again as behind a barrier. The results have the same bits.

However many workgroups a round has, none of them waits for one that has not started: a device starts dispatches in
order, so all of the round before have started before the first of this one, and by induction they end.

Vulkan promises no progress to workgroups that wait for others. It works where a device starts dispatches in order and
takes none away that runs, which is tried before the first relay on it. Waits end in any case: one that was in vain
tells the host, which raises RelayBroken and has barriers from then on; an engine computes again what was under way.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alpha import environment
from alpha.backend_helios_array import HeliosArray, Span, Storage
from alpha.backend_helios_device import Device, DeviceInfo, VulkanError
from alpha.backend_helios_folding import same_place
from alpha.backend_helios_memory import DeviceMemory, aligned
from alpha.backend_helios_planner import Dispatch, DispatchMaker, overlap
from alpha.backend_helios_tiles import FEW_ROWS
from alpha.errors import ResultsLost

FRESH = {
    "attention_cached": ("query", "keys", "values"),
    "attention_cached_matrix": ("query", "keys", "values"),
    "attention_combine": ("partial", "statistics"),
    "choose": ("logits",),
    "gather_rows": ("table", "ids", "addend"),
    "matmul_few": ("a", "residual", "statistics"),
    "matmul_matrix": ("a", "residual"),
    "matmul_reduce": ("sums", "residual", "column_sums"),
    "newest_ids": (),
    "norm": ("x",),
}
"""The kernels that can wait, and what they read only afterwards; nothing else that they read may be of their relay."""

_CACHED = ("attention_cached", "attention_cached_matrix")

STRIDE = 32
"""Words from one counter to the next, RELAY_STRIDE in kernels/relay.glsl: as far as caches keep things apart."""

_AWAITING = 3
"""RELAY of kernels that wait for numbers instead of a counter, where they can."""

_TRIED_ROUNDS, _TRIED_GROUPS, _TRIED_THREADS = 64, 16, 256
"""Of the relay that is tried: more workgroups on each multiprocessor than there is room for."""
_TRIED_SECONDS = 10.0
_DRIVER = "NVIDIA"
"""That with which relays have been seen to hold: the manufacturer's own."""
_DEFAULT_UNITS = 32
"""Multiprocessors where the driver does not say."""


class RelayBroken(VulkanError, ResultsLost):  # noqa: N818  (a condition)
    """A round has waited in vain for the one before; from now on there are barriers."""


class RelayMaker(DispatchMaker, Protocol):
    """What is needed of a backend."""

    device: Device
    memory: DeviceMemory
    relays: Relays

    def copy_dispatch(self, target: HeliosArray, source: HeliosArray) -> Dispatch: ...

    def flush(self) -> None: ...

    def make_program(self, dispatches: Sequence[Dispatch]) -> int: ...

    def submit(self, programs: Sequence[int]) -> int: ...

    def to_numpy(self, array: HeliosArray) -> npt.NDArray[Any]: ...


class Relays:
    """Whether a device has relays: if they are `wanted`, and the first one, which is tried for that, holds. If it does
    not, that is said."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._tried = False

    def work(self, backend: RelayMaker) -> bool:
        if self.wanted and not self._tried:
            self._tried = True
            self.wanted = _holds(backend)
            if not self.wanted:
                print(
                    f"helios: A trial shows that {backend.device.info.name} does not run a dispatch while the next one "
                    "waits for it, so there are barriers between them, which take longer. ALPHA_RELAY=off leaves out "
                    "the trial.",
                    file=sys.stderr,
                )
        return self.wanted


def asked_relays(info: DeviceInfo) -> Relays:
    """What ALPHA_RELAY asks for on a device."""
    word = environment.word("ALPHA_RELAY")
    return Relays(wanted=word == "on" or (word == "auto" and info.driver_name == _DRIVER))


class Relay:
    """The counters of a program's rounds: one in each line, which says how many workgroups of its round have not ended,
    and after it where a wait that was in vain tells so."""

    def __init__(self, backend: RelayMaker, counts: Sequence[int]) -> None:
        self._relays = backend.relays
        self._told = backend.memory.read_back_space(4)
        assert self._told.mapped is not None and self._told.address is not None
        self._told.mapped[:4] = bytes(4)
        lines = np.zeros((len(counts), STRIDE), np.uint32)
        lines[:, 0] = counts
        lines[:, 2], lines[:, 3] = self._told.address & 0xFFFFFFFF, self._told.address >> 32
        words = lines.reshape(-1).view(np.int32)
        self._counters, self._first = backend.new((words.size,), "i32"), backend.new((words.size,), "i32")
        backend.copy_into(self._first, backend.from_numpy(words))
        backend.flush()
        self.reset = backend.copy_dispatch(self._counters, self._first)
        """The dispatch that goes before the rounds."""

    def line(self, number: int) -> HeliosArray:
        """The counter that a round waits for, and behind it its own."""
        return self._counters.view((2 * STRIDE,), (1,), number * STRIDE)

    @property
    def is_broken(self) -> bool:
        """Whether a wait was in vain, as far as the device has come."""
        assert self._told.mapped is not None
        return any(self._told.mapped[:4])

    def check(self) -> None:
        """Raises RelayBroken when a wait was in vain."""
        if self.is_broken:
            self._relays.wanted = False
            raise RelayBroken(
                "The GPU did not run a dispatch while the next one waited for it. From now on there are barriers "
                "between them; ALPHA_RELAY=off has them from the start."
            )


class AwaitedRows:
    """Rows of which products see by their numbers that they are there, which takes less than a counter: before each
    replay all their bits are 1, as of no number that a product in a relay writes."""

    def __init__(self, backend: RelayMaker, storages: Sequence[Storage], readers: Sequence[Dispatch]) -> None:
        self.readers = {id(each) for each in readers}
        ends = list(itertools.accumulate(aligned(each.nbytes) for each in storages))
        rows, ones = (backend.new((ends[-1] // 4,), "i32") for _ in range(2))
        backend.copy_into(ones, backend.from_numpy(np.full(ends[-1] // 4, -1, np.int32)))
        backend.flush()
        for storage, end in zip(storages, ends, strict=True):
            storage.address = rows.address + end - aligned(storage.nbytes)
        self.reset = backend.copy_dispatch(rows, ones)
        """The dispatch that goes before the rounds."""


def await_rows(
    backend: RelayMaker, rounds: Sequence[Sequence[Dispatch]], planned: Sequence[Storage], result: Storage
) -> tuple[list[Storage], AwaitedRows | None]:
    """The storages that still need a place, and the rows that have got one; None where there are none.

    Such a row is all that a round writes, and nothing else writes it: who has all of it has seen the end of that
    round's work.
    """
    if not backend.relays.work(backend):
        return list(planned), None
    new = {id(each): each for each in planned if each is not result}
    writers = Counter(
        id(array.storage)
        for dispatches in rounds for each in dispatches for use, array in each.arrays() if use != "in"
    )  # fmt: skip
    readers: dict[int, list[Dispatch]] = {}
    for before, after in itertools.pairwise(rounds):
        row = _row_of(before[0]) if len(before) == 1 else None
        if row is None or id(row.storage) not in new or writers[id(row.storage)] != 1:
            continue
        if found := [each for each in after if _can_await(each, row)]:
            readers[id(row.storage)] = found
    if not readers:
        return list(planned), None
    rows = AwaitedRows(backend, [new[each] for each in readers], list(itertools.chain(*readers.values())))
    return [each for each in planned if id(each) not in readers], rows


def _row_of(dispatch: Dispatch) -> HeliosArray | None:
    """The one row of float32 that a product writes, and nothing else."""
    row, constants = dispatch.arguments.get("c"), dispatch.constants
    if dispatch.kernel.name != "matmul_few" or not isinstance(row, HeliosArray) or row.nbytes != row.storage.nbytes:
        return None
    is_plain = constants["C_VECTOR"] and not constants["C_HALF"] and not constants.get("PUTS", 0)
    return row if is_plain and dispatch.arguments["rows"] == 1 else None


def _can_await(dispatch: Dispatch, row: HeliosArray) -> bool:
    """Whether a dispatch is a product with matrix units of the row's norm."""
    left = dispatch.arguments.get("a")
    is_product = dispatch.kernel.name == "matmul_few" and dispatch.kernel.variant.startswith("matrix_")
    is_norm = is_product and dispatch.arguments["rows"] == 1 and dispatch.constants.get("SOURCE") == 1
    return is_norm and isinstance(left, HeliosArray) and same_place(left, row)


def relayed(
    backend: RelayMaker, rounds: Sequence[Sequence[Dispatch]], rows: AwaitedRows | None = None
) -> tuple[list[list[Dispatch]], Relay | None]:
    """The rounds with those in relays that can be, and what these need; None where there is no relay.

    All arrays have their addresses. Readers of `rows` wait for these.
    """
    legs = _legs(rounds) if backend.relays.work(backend) else [0] * len(rounds)
    counts, places = [], []
    for leg, dispatches in zip(legs, rounds, strict=True):
        if leg == 1:
            counts.append(0)  # the first of a relay waits for none
        places.append(len(counts) - 1)
        if leg:
            counts.append(sum(math.prod(each.groups) for each in dispatches))
    if not counts:
        return [list(each) for each in rounds], None
    relay = Relay(backend, counts)
    readers = set() if rows is None else rows.readers
    return [
        [_running(backend, each, relay.line(place), leg, id(each) in readers) for each in dispatches]
        if leg else list(dispatches)
        for leg, place, dispatches in zip(legs, places, rounds, strict=True)
    ], relay  # fmt: skip


def _legs(rounds: Sequence[Sequence[Dispatch]]) -> list[int]:
    """For each round, the how manieth of its relay it is, from 1; 0 where it is in none."""
    legs: list[int] = []
    relay: list[Dispatch] = []
    for dispatches in rounds:
        runs = all(map(_can_wait, dispatches))
        goes_on = runs and bool(legs) and legs[-1] > 0 and not any(_reads_too_early(each, relay) for each in dispatches)
        if not goes_on:
            relay = []
        relay += dispatches
        legs.append(legs[-1] + 1 if goes_on else int(runs))
    alone = [leg == 1 and after != 2 for leg, after in zip(legs, [*legs[1:], 0], strict=True)]
    return [0 if is_alone else leg for leg, is_alone in zip(legs, alone, strict=True)]


def _can_wait(dispatch: Dispatch) -> bool:
    """Whether a dispatch can wait by itself: attention where there are few rows, a product where it reads nothing that
    may only now have been written number by number, which is read through all caches."""
    constants = dispatch.constants
    has_plain_residual = constants.get("HAS_RESIDUAL", 0) and constants.get("C_VECTOR") == 0
    has_plain_operand = dispatch.kernel.name == "matmul_matrix" and constants.get("A_VECTOR") == 0
    # What it holds while it waits takes registers, so that fewer of its many workgroups share a multiprocessor.
    is_crowded = dispatch.kernel.name in _CACHED and dispatch.groups[2] > FEW_ROWS
    return dispatch.kernel.name in FRESH and not (has_plain_residual or has_plain_operand or is_crowded)


def _reads_too_early(dispatch: Dispatch, relay: Sequence[Dispatch]) -> bool:
    """Whether a dispatch reads before it has waited what the relay before it writes.

    Attention reads again only keys and values from the first on that one of its rows writes. Those are written in the
    relay by what makes its queries, of the same rows; where only some rows of a prompt ask, others that these see are
    written, too.
    """

    def written(dispatches: Sequence[Dispatch]) -> list[Span]:
        return [array.byte_range for each in dispatches for use, array in each.arrays() if use != "in"]

    early = [each.byte_range for each in _early(dispatch)]
    if overlap(early, written(relay)):
        return True
    if dispatch.kernel.name not in _CACHED:
        return False
    query, *kept = (dispatch.arguments[name] for name in ("query", "keys", "values"))
    assert isinstance(query, HeliosArray)
    others = [
        each
        for each in relay
        if each.arguments.get("rows") != dispatch.arguments["rows"]
        or all(array.storage is not query.storage for use, array in each.arrays() if use != "in")
    ]
    return overlap([each.byte_range for each in kept if isinstance(each, HeliosArray)], written(others))


def _early(dispatch: Dispatch) -> list[HeliosArray]:
    """What a dispatch reads before it has waited."""
    fresh = FRESH[dispatch.kernel.name]
    return [
        array
        for field in dispatch.kernel.fields
        if field.direction == "in" and field.name not in fresh
        for array in [dispatch.arguments.get(field.name)]
        if isinstance(array, HeliosArray)
    ]


def _running(backend: RelayMaker, dispatch: Dispatch, line: HeliosArray, leg: int, is_awaiting: bool) -> Dispatch:
    """A dispatch as one of a relay; one that `is_awaiting` waits for its row, if that is of the relay."""
    relay = _AWAITING if is_awaiting and leg > 1 else 1
    made = backend.make_dispatch(
        dispatch.kernel.name, dispatch.kernel.variant, dispatch.groups, {**dispatch.constants, "RELAY": relay},
        dispatch.operations, **(dispatch.arguments | {"relay": line}),
    )  # fmt: skip
    return dataclasses.replace(made, leg=leg)


def _holds(backend: RelayMaker) -> bool:
    """Run a relay of small dispatches that each read what others have just written; whether all is as it should be."""
    groups = _TRIED_GROUPS * (backend.device.info.multiprocessors or _DEFAULT_UNITS)
    count = groups * _TRIED_THREADS
    first, second = backend.new((count,), "i32"), backend.new((count,), "i32")
    backend.copy_into(first, backend.from_numpy(np.zeros(count, np.int32)))
    relay = Relay(backend, [0, *[groups] * _TRIED_ROUNDS])
    dispatches = [relay.reset]
    for number in range(_TRIED_ROUNDS):
        made = backend.make_dispatch(
            "relay_trial", "u32", groups, {"THREADS": _TRIED_THREADS},
            x=first, y=second, relay=relay.line(number), count=count,
        )  # fmt: skip
        dispatches.append(dataclasses.replace(made, leg=number + 1))
        first, second = second, first
    program = backend.make_program(dispatches)
    has_ended = backend.device.wait(backend.submit([program]), _TRIED_SECONDS)
    backend.device.free_program(program)
    return has_ended and not relay.is_broken and bool((backend.to_numpy(first) == _TRIED_ROUNDS).all())
