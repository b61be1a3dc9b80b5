"""Tiles of matrix products that were measured on the device at hand, and the table of them, kept from run to run.

`backend_helios_tiles` estimates times from numbers of one kind of GPU. Here the best of its candidates are timed on the
one at hand, for a few seconds before a program is recorded whose products are not in the table. Candidates give the
same bits, so results depend neither on the table nor on times: an element's sum is added up in the order of k, whatever
the tile, and how many workgroups share it, and in parts of which length, is as estimated. Products on matrix units keep
their estimated tiles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alpha import environment, files, rng
from alpha.backend_helios_array import HeliosArray, Storage, expanded
from alpha.backend_helios_device import Device, DeviceInfo, Memory, OutOfDeviceMemory
from alpha.backend_helios_kernels import Bundle, Pipelines, pipelines_folder
from alpha.backend_helios_memory import aligned
from alpha.backend_helios_planner import Dispatch
from alpha.backend_helios_program import commands
from alpha.backend_helios_tiles import Division, Hardware, Problem, division_of, estimate, tiles_for
from alpha.errors import AlphaError

LEAST_OPERATIONS = 2e8
"""Smaller products take a few microseconds, of which the tile decides little."""
MOST_CANDIDATES = 4
MOST_SECONDS = 10.0
"""That a process measures in all; what it did not come to, the next one measures."""

_FITTED = ("H100", "H200")
"""In the names of devices that the estimate was fitted to: there it is within 3 % of the best."""
_KERNELS = ("matmul_tiled", "matmul_reduce")
_LARGEST_TABLE = 1 << 20
_MEMORY_SHARE = 8
"""Operands and result of a measured product take at most this part of the free memory."""
_WARM_UP_SECONDS = 0.2
_CHAIN_SECONDS = 1e-3
_LONGEST_CHAIN = 32
_ROUNDS = 5
_GAIN = 0.98
"""A tile is taken instead of the estimate's when it needs at most this part of its time; less is noise."""


class Product(Protocol):
    """A product as it will run."""

    @property
    def problem(self) -> Problem: ...

    @property
    def key(self) -> str:
        """What a tile's time depends on, in words."""
        ...

    def alone(self, division: Division) -> HeliosArray:
        """The same on new operands that lie as its own do; their values are undefined."""
        ...


class Tunable(Protocol):
    """What is needed of a backend."""

    device: Device
    pipelines: Pipelines

    def trace(self, program: Callable[[], HeliosArray]) -> tuple[HeliosArray, list[Dispatch], list[Storage]]: ...

    def copy_into(self, target: HeliosArray, source: HeliosArray) -> None: ...

    def from_numpy(self, values: np.ndarray) -> HeliosArray: ...

    def synchronize(self) -> None: ...


@functools.lru_cache(maxsize=4096)
def rivals(estimated: Division, problem: Problem, device: Hardware) -> tuple[Division, ...]:
    """The divisions that give the bits of the estimated one, it first, then those with the lowest estimates."""
    if estimated.tile.kernel != "matmul_tiled":  # whether tiles for matrix units agree to the bit is not proven
        return (estimated,)
    splits, depth = estimated.splits, estimated.split_depth
    tiles = [tile for tile in tiles_for(problem, device) if tile != estimated.tile]
    if splits == 1:
        others = [division_of(tile, 1, problem) for tile in tiles]
    else:
        others = [Division(tile, splits, depth) for tile in tiles if depth % tile.k == 0]
    others.sort(key=lambda each: estimate(each, problem, device))
    return estimated, *others[: MOST_CANDIDATES - 1]


class Table:
    """The names of measured tiles by product, in a file beside the compiled pipelines: one for each device, driver and
    build of the kernels. A file that is damaged, or says that it is for another, counts as none."""

    def __init__(self, info: DeviceInfo, bundle: Bundle) -> None:
        kernels = [bundle[key].spirv for key in sorted(bundle.kernels) if key[0] in _KERNELS]
        digest = hashlib.sha256(b"".join(kernels)).hexdigest()
        numbers = f"{info.vendor_id:x}-{info.device_id:x}"
        self._made_for = [info.name, numbers, info.driver_name, info.driver_info, digest]
        name = hashlib.sha256(json.dumps(self._made_for).encode()).hexdigest()[:16]
        self._path = pipelines_folder() / f"{numbers}-{name}.tiles.json"

    def read(self) -> dict[str, str]:
        """What was measured."""
        try:
            content = files.read_json(self._path, "table of tiles", _LARGEST_TABLE)
        except AlphaError:
            return {}
        if not isinstance(content, dict) or content.get("madeFor") != self._made_for:
            return {}
        products = content.get("products")
        return dict(products) if isinstance(products, dict) else {}

    def write(self, products: dict[str, str]) -> None:
        """Keep these, and what others have written since. Raises AlphaError where that is not possible."""
        files.write_json(self._path, {"madeFor": self._made_for, "products": self.read() | products})


@dataclass
class _Wanted:
    product: Product
    divisions: tuple[Division, ...]
    count: int = 0


@dataclass(frozen=True)
class _Trial:
    """A division's dispatches, and the storages that are to be given a place for them."""

    division: Division
    dispatches: list[Dispatch]
    storages: list[Storage]

    @property
    def nbytes(self) -> int:
        return sum(aligned(each.nbytes) for each in self.storages)

    def place(self, address: int) -> None:
        for each in self.storages:
            each.address = address
            address += aligned(each.nbytes)

    def is_ready(self) -> bool:
        """Whether all pipelines are compiled; a driver may refuse one."""
        return all(each.pipeline.done() and not each.pipeline.exception() for each in self.dispatches)


class Tuning:
    """The choice among tiles on one device."""

    def __init__(self, table: Table, anew: bool = False) -> None:
        self._table = table
        self._products = {} if anew else table.read()
        self._wanted: dict[str, _Wanted] = {}
        self._tried: set[str] = set()
        self._seconds_left = MOST_SECONDS

    def division(self, product: Product, device: Hardware, estimated: Division, is_recorded: bool) -> Division:
        """The measured division of a product, else the estimated one. One that will be recorded is then `measure`d."""
        if product.problem.operations < LEAST_OPERATIONS:
            return estimated
        divisions = rivals(estimated, product.problem, device)
        key = product.key
        name = self._products.get(key)
        if name is None and is_recorded and len(divisions) > 1 and key not in self._tried:
            self._wanted.setdefault(key, _Wanted(product, divisions)).count += 1
        return next((each for each in divisions if each.tile.name == name), estimated)

    def measure(self, backend: Tunable) -> bool:
        """Measure the products that were asked for, those with the most work first. Says whether there were any: then
        what was traced before has to be traced again."""
        wanted, self._wanted = self._wanted, {}
        self._tried |= wanted.keys()
        if not wanted or self._seconds_left <= 0:
            return False
        print(
            f"helios: timing tiles of {len(wanted)} matrix products, once on this GPU and for at most "
            f"{self._seconds_left:.0f} seconds; ALPHA_TUNE=off leaves it out.", file=sys.stderr,
        )  # fmt: skip
        start = time.perf_counter()
        found = self._measured(backend, wanted, start + self._seconds_left)
        self._seconds_left -= time.perf_counter() - start
        self._products |= found
        if found:
            try:
                self._table.write(found)
            except AlphaError as error:
                print(f"helios: measured tiles are not kept: {error}", file=sys.stderr)
        return True

    def _measured(self, backend: Tunable, wanted: dict[str, _Wanted], deadline: float) -> dict[str, str]:
        """The names of the best tiles, by product, of as many products as there is time and memory for."""
        budget, usage = backend.device.memory()
        trials = {}
        for key, each in sorted(wanted.items(), key=lambda item: -item[1].count * item[1].product.problem.operations):
            made = [_trial(backend, each.product, division) for division in each.divisions]
            if made[0].nbytes <= (budget - usage) // _MEMORY_SHARE:
                trials[key] = made
        found: dict[str, str] = {}
        try:
            memory = backend.device.allocate(max((made[0].nbytes for made in trials.values()), default=1))
        except OutOfDeviceMemory:
            return found
        try:
            for key, made in trials.items():
                wait(
                    [each.pipeline for trial in made for each in trial.dispatches],
                    max(0.0, deadline - time.perf_counter()),
                )
                ready = [trial for trial in made if trial.is_ready()]
                if not made[0].is_ready():
                    break
                _fill(backend, memory, made[0].nbytes)
                for trial in ready:
                    trial.place(memory.address)
                times = _times(backend.device, [each.dispatches for each in ready], deadline, warm=bool(found))
                if times is None:
                    break
                best = min(range(len(ready)), key=times.__getitem__)
                found[key] = ready[best if times[best] <= _GAIN * times[0] else 0].division.tile.name
        finally:
            backend.device.free(memory)
            if len(found) < len(trials):
                backend.pipelines.give_up()
        return found


def _trial(backend: Tunable, product: Product, division: Division) -> _Trial:
    _, dispatches, storages = backend.trace(lambda: product.alone(division))
    return _Trial(division, dispatches, storages)


def _fill(backend: Tunable, memory: Memory, nbytes: int) -> None:
    """Write normal numbers of 16 bits everywhere: zeros are multiplied faster than others. Read as float32 they are
    finite, too."""
    line = rng.normal(1 << 16, 0, 0).astype(np.float16).view(np.int32)
    whole, rest = divmod(nbytes // 4, line.size)
    storage = Storage(nbytes, memory.address)
    source = backend.from_numpy(line)
    for lines, length, start in ((whole, line.size, 0), (1, rest, whole * line.size)):
        if lines * length:
            target = HeliosArray(storage, (lines, length), (length, 1), "i32", start)
            backend.copy_into(target, expanded(source.view((1, length), (length, 1)), (lines, length)))
    backend.synchronize()


def _times(device: Device, rivals: Sequence[list[Dispatch]], deadline: float, warm: bool) -> list[float] | None:
    """Seconds of each, the median of several times in turn; None when the deadline comes before."""
    end = time.perf_counter() + (0.0 if warm else _WARM_UP_SECONDS)
    once = chain_seconds(device, rivals[0], 1)
    repeats = max(1, min(_LONGEST_CHAIN, round(_CHAIN_SECONDS / max(once, 1e-9))))
    while time.perf_counter() < min(end, deadline):
        chain_seconds(device, rivals[0], repeats)
    rounds = []
    for _ in range(_ROUNDS):
        if time.perf_counter() > deadline:
            return None
        rounds.append([chain_seconds(device, each, repeats) for each in rivals])
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def chain_seconds(device: Device, dispatches: list[Dispatch], repeats: int) -> float:
    """Seconds that dispatches take on the device, one of so many times one after the other."""
    program = device.create_program(commands(dispatches * repeats), timestamps=True)
    try:
        device.wait(device.submit(program))
        times = device.timestamps(program, len(dispatches) * repeats)
    finally:
        device.free_program(program)
    return (times[-1][1] - times[0][0]) * 1e-9 / repeats


def tuning_for(info: DeviceInfo, bundle: Bundle) -> Tuning | None:
    """What ALPHA_TUNE asks for on a device; None where the estimate decides, as on a driver that computes on the
    processor, which every tile would take long to compile for."""
    how = environment.word("ALPHA_TUNE")
    is_fitted = any(each in info.name for each in _FITTED)
    if info.kind == "cpu" or "timestamps" not in info.features or how == "off" or (how == "auto" and is_fitted):
        return None
    return Tuning(Table(info, bundle), anew=how == "again")
