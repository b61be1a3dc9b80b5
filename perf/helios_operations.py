"""Times each operation of a training step on a Vulkan device, at the shapes of three models.

    python perf/helios_operations.py [--precision=f32] [--device=N] [--match=TEXT]... [--json=FILE] [--seconds=0.1]

The models are quickstart, chars10m and gpt2-124m; --match keeps the operations whose name contains one of the texts, as
gpt2-124m/layer_norm does. The time is that of one call in a chain of calls, with the barriers that they need: a long
chain less a short one, of each the lowest of several. Rates count what the operation needs at least: the bytes of its
operands and results once each, or its multiplications and additions. Below each operation stand its kernels with the
time that each takes when nothing else runs, from the device's timestamps. The last column is the time in a training
step.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpha.backend_helios import Helios  # noqa: E402  (the package lies beside this folder)
from alpha.backend_helios_device import Device, choose_device  # noqa: E402
from alpha.backend_helios_planner import Dispatch  # noqa: E402
from alpha.backend_helios_program import commands  # noqa: E402
from alpha.bench import DEVICE_WARM_UP_SECONDS, UNITS, Case, keep_busy  # noqa: E402
from alpha.bench_cases import GPU_SUBJECTS, SUBJECTS, operation_cases, other_operation_cases  # noqa: E402
from alpha.installation import commit  # noqa: E402

MODELS = {"quickstart": SUBJECTS["quickstart"], **GPU_SUBJECTS}
TRIES = 3
MOST_IN_CHAIN = 4000


class Timed(Helios):
    """Notes the dispatches that operations make."""

    def __init__(self, device: Device, precision: str) -> None:
        super().__init__(device, precision)
        self.dispatches: list[Dispatch] = []

    def make_program(self, dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        self.dispatches += dispatches
        return super().make_program(dispatches, repeated)

    def dispatches_of(self, call: Any) -> list[Dispatch]:
        """What a call dispatches; it has run when this returns."""
        self.synchronize()
        self.dispatches = []
        call()
        self.synchronize()
        return self.dispatches


@dataclass
class Measurement:
    """One operation: seconds of a call in a chain, and of each of its kernels alone."""

    case: Case
    seconds: float
    kernels: list[tuple[str, float]]

    def row(self) -> dict[str, Any]:
        work = self.case.work
        return {
            "case": self.case.name,
            "shape": work.shape,
            "us": round(self.seconds * 1e6, 3),
            "rate": round(work.amount / UNITS[work.unit] / self.seconds, 2),
            "unit": work.unit,
            "callsPerStep": self.case.calls_per_step,
            "kernels": [{"kernel": name, "us": round(seconds * 1e6, 3)} for name, seconds in self.kernels],
        }

    def text(self) -> str:
        row = self.row()
        step = f"{self.seconds * self.case.calls_per_step * 1e3:9.3f} ms" if self.case.calls_per_step else ""
        name = f"{row['case'].removeprefix('ops/')}  {row['shape']}"
        first = f"{name:<66}{row['us']:>11.2f} us{row['rate']:>12,.1f} {row['unit']:<8}{step}"
        return "\n".join([first, *(f"    {name:<62}{seconds * 1e6:>11.2f} us" for name, seconds in self.kernels)])


def chain_seconds(device: Device, dispatches: Sequence[Dispatch], repeats: int) -> float:
    """Wall time of a chain of calls."""
    program = device.create_program(commands(list(dispatches) * repeats))
    start = time.perf_counter()
    device.wait(device.submit(program))
    seconds = time.perf_counter() - start
    device.free_program(program)
    return seconds


def link_seconds(
    device: Device, dispatches: Sequence[Dispatch], repeats: int, tries: int = TRIES, is_warm: bool = False
) -> float:
    """Seconds of one call among others: a long chain less a short one of `repeats`, of each the lowest of `tries`."""
    warm_up = 0.0 if is_warm else DEVICE_WARM_UP_SECONDS
    keep_busy(lambda: chain_seconds(device, dispatches, repeats), warm_up)
    long, short = (min(chain_seconds(device, dispatches, n * repeats) for _ in range(tries)) for n in (4, 1))
    return max(1e-9, long - short) / (3 * repeats)


def kernel_seconds(device: Device, dispatches: Sequence[Dispatch]) -> list[tuple[str, float]]:
    """The lowest time of each dispatch in several runs, summed up over dispatches of the same kernel."""
    program = device.create_program(commands(dispatches), repeated=True, timestamps=True)
    runs = []
    for _ in range(TRIES + 2):
        device.wait(device.submit(program))
        runs.append([end - begin for begin, end in device.timestamps(program, len(dispatches))])
    device.free_program(program)
    sums: dict[str, float] = {}
    for dispatch, *times in zip(dispatches, *runs, strict=True):
        name = f"{dispatch.kernel.name}.{dispatch.kernel.variant}"
        sums[name] = sums.get(name, 0.0) + min(times) * 1e-9
    counts = {name: sum(f"{each.kernel.name}.{each.kernel.variant}" == name for each in dispatches) for name in sums}
    return [(f"{name} x {counts[name]}", seconds) for name, seconds in sums.items()]


def measure(backend: Timed, case: Case, seconds: float) -> Measurement:
    """Time one case; a chain takes about `seconds`."""
    call = case.work.prepare(backend)
    backend.dispatches_of(call)  # makes the pipelines
    dispatches = backend.dispatches_of(call)
    once = max(1e-6, chain_seconds(backend.device, dispatches, 1))
    repeats = max(1, min(round(seconds / once), MOST_IN_CHAIN // len(dispatches)))
    each = link_seconds(backend.device, dispatches, repeats)
    return Measurement(case, each, kernel_seconds(backend.device, dispatches))


def cases(matches: Sequence[str]) -> list[Case]:
    """The cases whose names contain one of the texts; the bare products are measured by perf/helios_matmul.py."""
    every = [
        case
        for name, subject in MODELS.items()
        for case in (*operation_cases(name, subject), *other_operation_cases(name, subject))
        if "/products/" not in case.name
    ]
    return [case for case in every if not matches or any(match in case.name for match in matches)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="f32", choices=["f32", "f16", "bf16"])
    parser.add_argument("--device", type=int, default=-1)
    parser.add_argument("--match", action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=0.1)
    arguments = parser.parse_args()
    info = choose_device(arguments.device)
    backend = Timed(Device(info), arguments.precision)
    print(f"{info.name}, precision {arguments.precision}, {commit()}", flush=True)
    rows = []
    for case in cases(arguments.match):
        measurement = measure(backend, case, arguments.seconds)
        print(measurement.text(), flush=True)
        rows.append(measurement.row())
    if arguments.json:
        found = {"device": info.name, "driver": info.driver_info, "precision": arguments.precision, "cases": rows}
        arguments.json.write_text(json.dumps(found | {"commit": commit()}, indent=1))


if __name__ == "__main__":
    main()
