"""The matrices of a prompt's products are read into the device's cache before these need them.

A step's matrices are larger together than a cache, so each comes from memory again in each step, and a product waits
for its own longer than it computes with them. Beside the product before attention memory has little to do, and none in
attention itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import THREADS, groups_for
from alpha.backend_helios_planner import Argument, Dispatch, DispatchMaker
from alpha.backend_helios_tiles import Hardware

ATTENTION = "attention_cached_rows"
"""That of many rows."""

MOST_BYTES = 16 << 20
"""So much is still there when it is needed: with what a step computes it fills half of a large GPU's cache."""

ENOUGH_UNITS = 100
"""GPUs of so many multiprocessors have a cache of 40 MB or more. Drivers do not say how large it is."""

_NAMES = ("first", "second", "third", "fourth")
_EACH, _SECTOR_BYTES = 8, 32
"""What a thread asks for, EACH and SECTOR in kernels/prefetch.comp."""


def prefetched(backend: DispatchMaker, rounds: Sequence[Sequence[Dispatch]], device: Hardware) -> list[list[Dispatch]]:
    """The rounds, with a dispatch more in those before attention to the cache: it reads the matrices of the products
    from there to the next attention, as far as the device has room for them."""
    found = [list(dispatches) for dispatches in rounds]
    if device.units < ENOUGH_UNITS:
        return found
    attends = [any(each.kernel.name == ATTENTION for each in dispatches) for dispatches in rounds]
    places = [place for place, is_so in enumerate(attends) if is_so and place]
    for place, end in itertools.pairwise([*places, len(rounds)]):
        if matrices := _matrices(each for dispatches in rounds[place:end] for each in dispatches):
            found[place - 1].append(_prefetching(backend, matrices))
    return found


def _matrices(dispatches: Iterable[Dispatch]) -> list[HeliosArray]:
    """The right operands of products, in order, that there is room for."""
    found: list[HeliosArray] = []
    room = MOST_BYTES
    for each in dispatches:
        matrix = each.arguments.get("b") if each.kernel.name.startswith("matmul_") else None
        if not isinstance(matrix, HeliosArray):
            continue
        room -= matrix.nbytes
        # What the program makes has no address yet, and is in the cache when it is needed.
        is_kept = matrix.storage.address is not None and matrix.is_contiguous and matrix.address % 4 == 0
        if not is_kept or room < 0 or len(found) == len(_NAMES):
            break
        found.append(matrix)
    return found


def _prefetching(backend: DispatchMaker, matrices: Sequence[HeliosArray]) -> Dispatch:
    """The dispatch that reads these."""
    arguments: dict[str, Argument] = {"never": None}
    for name, matrix in itertools.zip_longest(_NAMES, matrices):
        arguments |= {name: matrix, f"{name}_words": 0 if matrix is None else math.ceil(matrix.nbytes / 4)}
    sectors = math.ceil(max(each.nbytes for each in matrices) / _SECTOR_BYTES)
    groups = groups_for(sectors, THREADS * _EACH), len(matrices), 1
    return backend.make_dispatch("prefetch", "u32", groups, {"THREADS": THREADS}, **arguments)
