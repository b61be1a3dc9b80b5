"""Times attention on a Vulkan device, forward and backward, by the device's own clock.

    python perf/helios_attention.py [--precision=f32] [--bits=32] [--device=N]
                                    [--shape=B,T,H,D[,G[,Tk]]]... [--sweep] [--check]

Without --shape, those of quickstart, chars10m and gpt2-124m. Prints a JSON object a line: for each kernel the lowest of
several runs in microseconds, and TFLOP/s of the products that the formula needs, of which a causal half is counted: 2
products forward, 5 backward. --sweep times the ways to divide the work among invocations as well. --check says how far
results are from those of the reference backend, over the largest magnitude; keep the shapes small. --bits=16 has the
operands stored in the precision's 16 bits.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helios_operations import Timed, kernel_seconds  # noqa: E402  (in this folder)

from alpha import backend_helios_attention as attentions  # noqa: E402  (the package lies beside this folder)
from alpha.backend_cpu_ref import CpuRef  # noqa: E402
from alpha.backend_helios_device import Device, VulkanError, choose_device  # noqa: E402
from alpha.bench import DEVICE_WARM_UP_SECONDS, keep_busy  # noqa: E402
from alpha.errors import AlphaError  # noqa: E402

SHAPES = ((16, 128, 4, 32), (64, 256, 6, 64), (32, 1024, 12, 64))
RUNS = 5


def operands(B: int, T: int, H: int, D: int, G: int, Tk: int) -> list[np.ndarray]:
    """Query, key, value and the gradient of the result, of normal numbers."""
    rng = np.random.default_rng(0)
    shapes = ((B, T, H, D), (B, Tk, G, D), (B, Tk, G, D), (B, T, H, D))
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def measure(backend: Timed, shape: tuple[int, ...], bits: int = 32) -> dict[str, Any]:
    """Times of both halves at (B, T, H, D, G, Tk)."""
    B, T, H, D, _, Tk = shape
    element = backend.precision if bits == 16 else "f32"
    arrays = [backend.cast_element(backend.from_numpy(each), element) for each in operands(*shape)]
    product = 2.0 * B * H * D * (T * Tk - T * (T - 1) / 2)
    saved: list[Any] = []

    def forward() -> None:
        saved[:] = [backend.attention(*arrays[:3], training=True)[1]]

    row: dict[str, Any] = {}
    for name, call, products in (
        ("forward", forward, 2),
        ("backward", lambda: backend.attention_backward(arrays[3], saved[0]), 5),
    ):
        backend.dispatches_of(call)  # makes the pipelines
        dispatches = backend.dispatches_of(call)
        keep_busy(lambda made=dispatches: kernel_seconds(backend.device, made), DEVICE_WARM_UP_SECONDS)
        for _ in range(RUNS):
            kernels = kernel_seconds(backend.device, dispatches)
        seconds = sum(each for _, each in kernels)
        row[name] = {
            "us": round(seconds * 1e6, 2),
            "tflops": round(products * product / seconds / 1e12, 2),
            "kernels": {kernel: round(each * 1e6, 2) for kernel, each in kernels},
        }
    return row


def deviation(backend: Timed, shape: tuple[int, ...]) -> list[float]:
    """Largest difference from the reference over the largest magnitude, for out, dquery, dkey and dvalue."""

    def results(on: Any) -> list[np.ndarray]:
        arrays = [on.from_numpy(each) for each in operands(*shape)]
        out, saved = on.attention(*arrays[:3], training=True)
        return [on.to_numpy(each) for each in (out, *on.attention_backward(arrays[3], saved))]

    pairs = zip(results(backend), results(CpuRef()), strict=True)
    return [float(f"{np.abs(got - wanted).max() / np.abs(wanted).max():.2g}") for got, wanted in pairs]


@contextmanager
def replaced(**values: Any) -> Iterator[None]:
    """The module's names with other values."""
    kept = {name: getattr(attentions, name) for name in values}
    for name, value in values.items():
        setattr(attentions, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(attentions, name, value)


def divisions(precision: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to divide the work: a name, and what to replace in the module."""
    if precision == "f32":
        for kernel, tilings in attentions.TILINGS.items():
            for tiling in tilings:
                yield f"{kernel} {tiling}", {"TILINGS": attentions.TILINGS | {kernel: (tiling,)}}
        return
    for subgroups, blocks, tile, stages in itertools.product((2, 4, 8), (1, 2), (32, 64), (1, 2)):
        tiles = (attentions.RegisterTiles(subgroups, blocks, tile, stages),)
        keys = (attentions.RegisterTiles(subgroups, 1, tile, stages),)
        yield str(tiles[0]), {"REGISTER_TILES": {"forward": tiles, "key": keys, "query": tiles}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="f32", choices=["f32", "f16", "bf16"])
    parser.add_argument("--bits", type=int, default=32, choices=[32, 16])
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    info = choose_device(arguments.device)
    backend = Timed(Device(info), arguments.precision)
    given = [tuple(int(each) for each in shape.split(",")) for shape in arguments.shape]
    ways: list[tuple[str, dict[str, Any]]] = [("chosen", {})]
    for shape in given or SHAPES:
        B, T, H, D, *rest = shape
        whole = (B, T, H, D, *rest, *(H, T)[len(rest) :])
        for name, values in [*ways, *(divisions(arguments.precision) if arguments.sweep else ())]:
            row: dict[str, Any] = {"device": info.name, "precision": arguments.precision, "shape": whole, "way": name}
            with replaced(**values):
                try:
                    row |= measure(backend, whole, arguments.bits)
                    if arguments.check:
                        row["deviation"] = deviation(backend, whole)
                except (VulkanError, ValueError) as error:
                    row["error"] = str(error)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    try:
        main()
    except AlphaError as error:
        sys.exit(f"helios_attention: error: {error}")
