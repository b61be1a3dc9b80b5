"""What this computer offers to the CPU backend: processor, usable cores, memory, numpy and its BLAS.

Reads only what the operating system says; measures nothing.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMORY_USED = Path("/sys/fs/cgroup/memory.current")
_MEMORY_KINDS = Path("/sys/fs/cgroup/memory.stat")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Blas:
    """The linear algebra library that numpy calls; `core_type` is the CPU family whose kernels it chose."""

    name: str
    version: str
    core_type: str
    threads: int


def processor() -> str:
    """The CPU's model name."""
    for line in _lines(_CPU_INFO):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> float:
    """Cores this process may use: its CPU affinity, or less where a control group grants it less time."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for line in _lines(_CPU_LIMIT):
        quota, period = line.split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def memory() -> tuple[int, int]:
    """Bytes of memory, all and free for new work, within the limit of the control group where there is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    for line in _lines(_MEMORY_INFO):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit = next((int(line) for line in _lines(_MEMORY_LIMIT) if line != "max"), total)
    if limit >= total:
        return total, available
    used = sum(int(line) for line in _lines(_MEMORY_USED))
    # The kernel drops cached file pages when memory is asked for.
    cached = sum(int(line.split()[1]) for line in _lines(_MEMORY_KINDS) if line.startswith("inactive_file "))
    return limit, min(available, limit - used + cached)


def blas_libraries() -> list[Blas]:
    """The BLAS libraries loaded with numpy; usually one."""
    import numpy  # noqa: F401  (loads the library that is asked about)
    from threadpoolctl import threadpool_info

    return [
        Blas(
            name=info["internal_api"],
            version=info["version"] or "unknown",
            core_type=info.get("architecture") or "unknown",
            threads=info["num_threads"],
        )
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]


def _lines(path: Path) -> list[str]:
    """The lines of a file of the Linux kernel; none on systems without it."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
