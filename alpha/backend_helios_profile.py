"""Where the device's time goes: for each kernel how often it ran, for how long, and how fast that was.

Knows nothing about what the kernels compute; see `ALPHA_DEBUG`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpha.backend_helios_plan import Dispatch


@dataclass
class KernelTime:
    """Sums over the runs of one kernel."""

    runs: int = 0
    nanoseconds: int = 0
    nbytes: int = 0
    operations: float = 0.0


class Profile:
    """Adds up the times of dispatches."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelTime] = {}

    def add(self, dispatches: Sequence[Dispatch], times: Sequence[tuple[int, int]]) -> None:
        """Take note of one run of a program, given the begin and end of each dispatch in nanoseconds."""
        for dispatch, (begin, end) in zip(dispatches, times, strict=True):
            kernel = self.kernels.setdefault(f"{dispatch.kernel.name}.{dispatch.kernel.variant}", KernelTime())
            kernel.runs += 1
            kernel.nanoseconds += end - begin
            kernel.nbytes += sum(array.nbytes for _, array in dispatch.arrays())
            kernel.operations += dispatch.operations

    def text(self) -> str:
        """A line for each kernel, the one with the most time first, in aligned columns."""
        total = sum(each.nanoseconds for each in self.kernels.values()) or 1
        lines = [f"{'kernel':<36}{'runs':>9}{'ms':>11}{'share':>8}{'us each':>10}{'GB/s':>9}{'TFLOP/s':>9}"]
        for name, each in sorted(self.kernels.items(), key=lambda item: -item[1].nanoseconds):
            nanoseconds = max(1, each.nanoseconds)
            rate = f"{each.operations / nanoseconds / 1e3:9.2f}" if each.operations else ""
            lines.append(
                f"{name:<36}{each.runs:>9,}{each.nanoseconds / 1e6:>11,.2f}{100 * each.nanoseconds / total:>7.1f}%"
                f"{nanoseconds / each.runs / 1e3:>10,.1f}{each.nbytes / nanoseconds:>9,.0f}{rate}"
            )
        return "\n".join(lines)
