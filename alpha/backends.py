"""Backends by name."""

from alpha.backend import Backend


def create(name: str) -> Backend:
    """A new backend; imports only the one that is named."""
    if name == "cpu_ref":
        from alpha.backend_cpu_ref import CpuRef

        return CpuRef()
    raise ValueError(f"no backend is named {name!r}")
