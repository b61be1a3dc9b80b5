"""Times matrix products on a Vulkan device: every tile and number of parts that the backend could choose.

    python perf/helios_matmul.py [--precision f16] [--bits 32,16] [--results 32] [--sums] [--device N] [--json FILE]
                                 [--quick] [SET ...]

A SET is quickstart, chars10m, gpt2-124m or square, or a product as ROWSxCOLUMNSxDEPTH followed by nn, nt or tn: whether
the left and the right operand are transposed (nn forward, nt the gradient of the input, tn that of the weight). Without
any, all sets. --bits is how operands are stored, --results how results are. With --sums products that can (nn, tn) also
add up the columns of the right operand. --quick times only the division that the backend chooses.

A time is that of one product in a chain of them with barriers between, the reduction of split sums included: wall time
of a long chain less that of a short one, of each the lowest of several. Every candidate's result is compared with
numpy's at some places. Prints the fastest candidates and the chosen one with their TFLOP/s; --json writes all of them.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt
from helios_operations import chain_seconds, link_seconds

from alpha.backend_helios_array import ELEMENTS, HeliosArray, Storage, contiguous_strides
from alpha.backend_helios_cached import Cached
from alpha.backend_helios_device import Device, MemoryKind, choose_device
from alpha.backend_helios_kernels import Pipelines, read_bundle
from alpha.backend_helios_matmul import Products
from alpha.backend_helios_planner import Argument, Dispatch
from alpha.backend_helios_tiles import Division, Problem, candidates, choose, estimate

Values = npt.NDArray[Any]
SHOWN = 6
CHECKED = 64
CHAIN_SECONDS = 1.5e-3
LONGEST_PAUSE = 0.05
"""Seconds without work after which a device is warmed up again before it is measured."""


def linears(rows: int, pairs: list[tuple[int, int]]) -> list[tuple[int, int, int, str]]:
    """The three products of linear layers with so many inputs and outputs."""
    return [
        each
        for inputs, outputs in pairs
        for each in (
            (rows, outputs, inputs, "nn"),
            (rows, inputs, outputs, "nt"),
            (inputs, outputs, rows, "tn"),
        )
    ]


SETS = {
    "quickstart": [
        *linears(2048, [(128, 384), (128, 128), (128, 512), (512, 128)]),
        *((2048, 96, 128, "nt"), (2048, 128, 96, "nn"), (96, 128, 2048, "tn")),
    ],
    "chars10m": [
        *linears(16384, [(384, 1152), (384, 384), (384, 1536), (1536, 384)]),
        *((16384, 65, 384, "nt"), (16384, 384, 65, "nn"), (65, 384, 16384, "tn")),
    ],
    "gpt2-124m": [
        *linears(32768, [(768, 2304), (768, 768), (768, 3072), (3072, 768)]),
        *((8192, 50304, 768, "nt"), (8192, 768, 50304, "nn"), (50304, 768, 8192, "tn")),
    ],
    "square": [(size, size, size, "nn") for size in (1024, 2048, 4096, 8192)],
}


class Laboratory(Cached, Products):
    """As much of a backend as products need; dispatches are collected to be run again and again."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.pipelines = Pipelines(device, device.info.features, read_bundle())
        self.dispatches: list[Dispatch] = []
        self._spaces: dict[int, list[Any]] = {}
        self._taken: list[Any] = []
        self._busy_until = 0.0

    def new(self, shape: tuple[int, ...], element: str) -> HeliosArray:
        """An array in memory that the host sees, too."""
        size = max(256, int(np.prod(shape)) * ELEMENTS[element].itemsize)
        free = self._spaces.setdefault(size, [])
        memory = free.pop() if free else self.device.allocate(size, MemoryKind.UPLOAD)
        self._taken.append(memory)
        return HeliosArray(Storage(size, memory.address, mapped=memory.view), shape, contiguous_strides(shape), element)

    def contiguous(self, x: HeliosArray) -> HeliosArray:
        assert x.is_contiguous
        return x

    def dispatch(
        self,
        kernel: str,
        variant: str,
        groups: Any,
        constants: dict[str, int],
        operations: float = 0.0,
        /,
        **arguments: Argument,
    ) -> None:
        extent = (groups, 1, 1) if isinstance(groups, int) else groups
        made, pipeline = self.pipelines.get(kernel, variant, constants)
        self.dispatches.append(Dispatch(made, pipeline, extent, arguments, operations=operations))

    def say_choice(self, text: str) -> None:
        """The divisions are in the table."""

    def forget(self) -> list[Dispatch]:
        """The dispatches so far; and the arrays made for them may be used for others, after these have run."""
        for memory in self._taken:
            self._spaces.setdefault(memory.bytes, []).append(memory)
        self._taken = []
        made, self.dispatches = self.dispatches, []
        return made

    def release(self) -> None:
        """Give all memory back."""
        for memories in self._spaces.values():
            for memory in memories:
                self.device.free(memory)
        self._spaces = {}

    def seconds(self, dispatches: list[Dispatch], expected: float, tries: int) -> float:
        """Seconds of one link of a chain."""
        short = max(1, min(200, round(CHAIN_SECONDS / expected / 4)))
        is_warm = time.perf_counter() - self._busy_until <= LONGEST_PAUSE
        seconds = link_seconds(self.device, dispatches, short, tries, is_warm)
        self._busy_until = time.perf_counter()
        return seconds


def values_of(array: HeliosArray) -> Values:
    """The host's view of a contiguous array as it is stored."""
    flat = np.frombuffer(array.storage.mapped, ELEMENTS[array.element].stored)
    return flat[array.offset : array.offset + array.size].reshape(array.shape)


def stored(values: Values, element: str) -> Values:
    """float32 values as an element stores them."""
    if element == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype(ELEMENTS[element].stored)


def as_float(values: Values, element: str) -> Values:
    """The inverse of `stored`."""
    return (values.astype(np.uint32) << 16).view(np.float32) if element == "bf16" else values.astype(np.float32)


@dataclass
class Measurement:
    """One product: its shape, the way its operands lie, and the times of the candidates."""

    rows: int
    columns: int
    depth: int
    layout: str
    bits: int
    chosen: str
    candidates: list[dict[str, Any]]


def problem_of(rows: int, columns: int, depth: int, layout: str, bits: int) -> Problem:
    """The problem of a product whose operands lie so, without gaps."""
    a_line, b_line = rows if layout[0] == "t" else depth, depth if layout[1] == "t" else columns
    vectors = [each % (128 // bits) == 0 for each in (a_line, b_line)]
    return Problem(1, rows, columns, depth, bits, bits, *vectors)


class Bench:
    """One product on one device."""

    def __init__(
        self, laboratory: Laboratory, shape: tuple[int, int, int, str], bits: int, tries: int, sums: bool, results: int
    ) -> None:
        self.laboratory = laboratory
        self.shape = shape
        self.bits = bits
        self.tries = tries
        rows, columns, depth, layout = shape
        element = "f32" if bits == 32 or laboratory.precision == "f32" else laboratory.precision
        pool = np.random.default_rng(1).standard_normal(1_000_003).astype(np.float32)
        self.a, a_values = self._operand(pool, (rows, depth), layout[0] == "t", element)
        self.b, b_values = self._operand(pool[::-1].copy(), (depth, columns), layout[1] == "t", element)
        self.c = laboratory.new((rows, columns), "f32" if results == 32 else laboratory.precision)
        self.sums = laboratory.new((columns,), "f32") if sums and layout[1] == "n" else None
        random = np.random.default_rng(2)
        self.at = random.integers(rows, size=CHECKED), random.integers(columns, size=CHECKED)
        left, right = a_values[self.at[0]], b_values[:, self.at[1]]
        if laboratory.precision != "f32":
            left, right = (as_float(stored(each, laboratory.precision), laboratory.precision) for each in (left, right))
        self.expected = np.einsum("ik,ki->i", left.astype(np.float64), right.astype(np.float64))
        # Matrix units may cut a sum off, not round it, whenever they have added 16 products: the errors of as many
        # steps add up, each at most the last place of a sum that grows with the root of the depth.
        self.tolerance = 2.0**-23 * (depth / 16 + 64) * np.sqrt(depth)
        if results == 16:
            self.tolerance += np.abs(self.expected).max() * (2.0**-8 if laboratory.precision == "bf16" else 2.0**-11)

    def _operand(self, pool: Values, shape: tuple[int, int], swapped: bool, element: str) -> tuple[HeliosArray, Values]:
        lying = shape[::-1] if swapped else shape
        array = self.laboratory.new(lying, element)
        values = np.resize(pool, lying)
        values_of(array)[...] = stored(values, element)
        if not swapped:
            return array, values
        return array.view(shape, array.strides[::-1]), values.T

    def problem(self) -> Problem:
        return problem_of(*self.shape, 8 * self.a.itemsize)

    def dispatches(self, division: Division) -> list[Dispatch]:
        """The dispatches of the product; its sums are kept apart from those of others."""
        self.laboratory.product(self.a, self.b, self.c, forced=division, column_sums=self.sums)
        made, self.laboratory.dispatches = self.laboratory.dispatches, []
        return made

    def error(self) -> float:
        """The largest difference at the checked places."""
        found = as_float(values_of(self.c)[self.at], self.c.element)
        return float(np.abs(found - self.expected).max())

    def measure(self, divisions: list[Division]) -> Measurement:
        device = self.laboratory.hardware
        problem = self.problem()
        chosen = choose(problem, device)
        with ThreadPoolExecutor(8) as pool:
            made = list(zip(divisions, pool.map(self.compiled, divisions), strict=True))
        results = []
        for division, _ in made:
            dispatches = self.dispatches(division)
            values_of(self.c)[self.at] = stored(np.full(1, np.nan, np.float32), self.c.element)
            expected = estimate(division, problem, device)
            chain_seconds(self.laboratory.device, dispatches, 1)
            error = self.error()
            seconds = self.laboratory.seconds(dispatches, expected, self.tries)
            results.append(
                {
                    "plan": str(division), "us": round(seconds * 1e6, 2), "tflops": problem.operations / seconds / 1e12,
                    "estimate_us": round(expected * 1e6, 2), "error": error, "wrong": not error < self.tolerance,
                }
            )  # fmt: skip
        results.sort(key=lambda each: each["us"])
        return Measurement(*self.shape, self.bits, str(chosen), results)

    def compiled(self, division: Division) -> None:
        """Make the pipelines of a division, in this thread."""
        laboratory = Laboratory.__new__(Laboratory)
        laboratory.__dict__.update(self.laboratory.__dict__, dispatches=[])
        laboratory.new = lambda shape, element: HeliosArray(Storage(1, 0), shape, contiguous_strides(shape), element)  # type: ignore[method-assign]
        laboratory.product(self.a, self.b, self.c, forced=division, column_sums=self.sums)


def lines(measurement: Measurement) -> Iterator[str]:
    """What is printed of a measurement."""
    each = measurement
    name = f"{each.rows}x{each.columns}x{each.depth} {each.layout} {each.bits}"
    for place, found in enumerate(each.candidates):
        if place < SHOWN or found["plan"] == each.chosen or found["wrong"]:
            mark = "WRONG" if found["wrong"] else "chosen" if found["plan"] == each.chosen else ""
            yield (
                f"{name if not place else '':<30}{place + 1:>4} {found['plan']:<30}{found['us']:>11.2f} us"
                f"{found['tflops']:>9.2f} TFLOP/s  estimate {found['estimate_us']:>9.2f}  {mark}"
            )


def shapes_of(names: list[str]) -> list[tuple[int, int, int, str]]:
    """The products that the command line names."""
    found = []
    for name in names or list(SETS):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)(nn|nt|tn|tt)?", name)
        if match:
            found.append((int(match[1]), int(match[2]), int(match[3]), match[4] or "nn"))
        else:
            found += SETS[name]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--precision", default="f16", choices=["f32", "f16", "bf16"])
    parser.add_argument("--bits", default="32,16")
    parser.add_argument("--results", type=int, choices=[32, 16], default=32)
    parser.add_argument("--sums", action="store_true")
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tries", type=int, default=3)
    arguments = parser.parse_args()
    info = choose_device(arguments.device)
    laboratory = Laboratory(Device(info), arguments.precision)
    device = laboratory.hardware
    print(f"{info.name}, precision {arguments.precision}, {device}", flush=True)
    bits = [32] if arguments.precision == "f32" else [int(each) for each in arguments.bits.split(",")]
    measurements = []
    for shape in shapes_of(arguments.sets):
        for each in bits:
            bench = Bench(laboratory, shape, each, arguments.tries, arguments.sums, arguments.results)
            problem = bench.problem()
            divisions = [choose(problem, device)] if arguments.quick else list(candidates(problem, device))
            measurements.append(bench.measure(divisions))
            print("\n".join(lines(measurements[-1])), flush=True)
            laboratory.forget()
        laboratory.release()
    if arguments.json:
        everything = {"device": info.name, "driver": info.driver_info, "precision": arguments.precision}
        arguments.json.write_text(
            json.dumps(everything | {"products": [vars(each) for each in measurements]}, indent=1)
        )


if __name__ == "__main__":
    main()
