"""Operations on single numbers in a recorded program: those of one round become one dispatch.

A training step computes with a few dozen numbers that live on the device: gradient norm, clip factor, counters. As
dispatches of their own they take longer to start than to run, and each waits for the one before it. Here they become
the instructions of kernels/scalars.comp, which runs them in rounds of their own. Knows nothing about what they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alpha.backend_helios_array import HeliosArray, Storage
from alpha.backend_helios_plan import Argument, Dispatch, arrange, place_of

MOST_INSTRUCTIONS = 512
"""In one dispatch; with at most four slots each they fit the shared memory that every device has."""

THREADS = 256
WHERE = 255
"""The instruction that is no operation of kernels/operations.glsl."""

_GROUP_WORDS = 4


class Host(Protocol):
    """What is needed of the backend that records a program."""

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
    """Whether a dispatch does nothing but compute one element of 32 bits from others."""
    return (
        dispatch.kernel.name in _INSTRUCTIONS
        and dispatch.kernel.variant == "bits32"
        and dispatch.arguments["count"] == dispatch.constants.get("WIDTH", 1) == 1
    )


def gather_scalars(
    host: Host, rounds: Sequence[Sequence[Dispatch]], planned: Sequence[Storage], result: Storage
) -> tuple[list[list[Dispatch]], list[ScalarRun]]:
    """The rounds of `arrange(..., is_scalar)` with one dispatch for the scalar operations of each.

    Results in `planned` storages are stored only if something else reads them. The runs are to be uploaded once all
    arrays have their addresses.
    """
    parts = [part for dispatches in rounds for part in _parts(dispatches)]
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
        run = ScalarRun(host, scalars, private)
        gathered.append([*others, run.dispatch])
        runs.append(run)
    return gathered, runs


def _parts(dispatches: Sequence[Dispatch]) -> Iterable[tuple[list[Dispatch], list[Dispatch]]]:
    """A round's other dispatches and its scalar operations; rounds of their own for those beyond what one run takes."""
    others = [each for each in dispatches if not is_scalar(each)]
    scalars = [each for each in dispatches if is_scalar(each)]
    yield others, scalars[:MOST_INSTRUCTIONS]
    for start in range(MOST_INSTRUCTIONS, len(scalars), MOST_INSTRUCTIONS):
        yield [], scalars[start : start + MOST_INSTRUCTIONS]


class ScalarRun:
    """Scalar operations, in order, as one dispatch; results in `private` storages, by id, are not stored."""

    def __init__(self, host: Host, dispatches: Sequence[Dispatch], private: set[int]) -> None:
        self._slots: dict[tuple[int, int] | int, int] = {}  # by place, or by the bits of a number
        self._sources: dict[int, HeliosArray | int] = {}  # by slot: what is there before the first instruction
        self._results: dict[int, HeliosArray] = {}
        self._instructions: list[tuple[int, int, int, int]] = []
        for independent in arrange(dispatches):
            instructions = [_INSTRUCTIONS[each.kernel.name](self, each) for each in independent]
            codes, a, b, y = instructions[0]
            self._instructions += [(codes, a, b | len(instructions) << 16, y), *instructions[1:]]
        self._targets = {slot: each for slot, each in self._results.items() if id(each.storage) not in private}
        groups = len(self._slots) + len(self._instructions)
        self._table = host.new((_GROUP_WORDS * groups + len(self._sources),), "i32")
        made = host.make_dispatch(
            "scalars",
            "bits32",
            1,
            {
                "THREADS": THREADS,
                "SLOTS": _power_of_two(len(self._slots)),
                "INSTRUCTIONS": _power_of_two(len(self._instructions)),
            },
            table=self._table,
            slots=len(self._slots),
            instructions=len(self._instructions),
        )
        reads = [("in", each) for each in self._sources.values() if isinstance(each, HeliosArray)]
        writes = [("out", each) for each in self._targets.values()]
        self.dispatch = Dispatch(
            made.kernel, made.pipeline, made.groups, made.arguments, constants=made.constants, also=(*reads, *writes)
        )

    def upload(self, host: Host) -> None:
        """Write the kernel's table, now that all arrays have addresses."""
        addresses = np.zeros((len(self._slots), 2), np.uint64)
        instructions = np.array(self._instructions, np.uint32)
        numbers: list[int] = []
        after = self._table.address + 4 * _GROUP_WORDS * (len(addresses) + len(instructions))
        for slot, source in self._sources.items():
            if isinstance(source, HeliosArray):
                addresses[slot, 0] = source.address
            else:
                addresses[slot, 0] = after + 4 * len(numbers)
                numbers.append(source)
        for slot, target in self._targets.items():
            addresses[slot, 1] = target.address
        words = np.concatenate([addresses.view(np.uint32).reshape(-1), instructions.reshape(-1)])
        numbers += [0] * (self._table.size - len(words) - len(numbers))
        values = np.concatenate([words, np.array(numbers, np.uint32)]).view(np.int32)
        host.copy_into(self._table, host.from_numpy(values))

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
            return self._slot(_key(operand), operand)
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
        slot = self._slots.setdefault(_key(array), len(self._slots))
        self._results[slot] = array
        return slot


_INSTRUCTIONS = {
    "elementwise": ScalarRun.elementwise,
    "where": ScalarRun.where,
    "copy_into_if": ScalarRun.copy_into_if,
}
"""How each kernel's dispatch becomes an instruction."""


def _key(array: HeliosArray) -> tuple[int, int]:
    """Where an element lies: the same for all arrays that hold the same element."""
    key, span = place_of(array)
    return key, span.start


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`: few pipelines serve all programs."""
    return 1 << max(0, number - 1).bit_length()
