"""Backends by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpha import environment
from alpha.errors import AlphaError, UsageError

if TYPE_CHECKING:
    from alpha.backend import Backend


def resolve(name: str, dtype: str = "f32", device: int = -1) -> str:
    """The backend that a choice stands for: "auto" is "helios" where there is a GPU, or a device is named, and
    "cpu_ref" elsewhere; a driver that computes on the CPU is no GPU.

    Raises UsageError when that backend cannot compute with `dtype`.
    """
    if name == "auto":
        from alpha.backend_helios_device import has_gpu

        is_named = max(device, environment.read("ALPHA_DEVICE")) >= 0
        name = "helios" if is_named or has_gpu() else "cpu_ref"
    if name == "cpu_ref" and dtype != "f32":
        raise UsageError(f"The backend cpu_ref computes in f32 only; for --dtype={dtype} use --backend=helios.")
    return name


def create(name: str, device: int = -1, dtype: str = "f32") -> Backend:
    """A new backend; imports only the one that is named. Raises UsageError or AlphaError when it cannot be had.

    `device` is the number of a Vulkan device, or -1 for that of ALPHA_DEVICE, or the first GPU; `dtype` is what
    matrix products round their operands to.
    """
    name = resolve(name, dtype, device)
    if name == "cpu_ref":
        from alpha.backend_cpu_ref import CpuRef

        if device >= 0:
            raise UsageError(f"--device={device} chooses a Vulkan device; add --backend=helios, or leave it out.")
        return CpuRef()
    if name == "helios":
        from alpha.backend_helios import open_helios

        opened = open_helios(device, dtype)
        if not environment.read("ALPHA_CHECK"):
            return opened
        from alpha.backend_checked import CheckedBackend
        from alpha.backend_cpu_ref import CpuRef

        return CheckedBackend(opened, CpuRef(), dtype)
    raise ValueError(f"no backend is named {name!r}")


def choice(name: str) -> str:
    """What "auto" has chosen, in words; `name` is the backend's."""
    return f"Backend: {name}, since there is {'a' if name == 'helios' else 'no'} GPU that Alpha can use."


def availability() -> dict[str, str]:
    """For each backend "available", where it computes when there is a choice, or why it cannot be used here."""
    from alpha.backend_helios_device import choose_device

    try:
        helios = f"available, {choose_device().name}"
    except AlphaError as error:
        helios = f"not available: {error}"
    return {"cpu_ref": "available", "helios": helios}
