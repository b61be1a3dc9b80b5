"""The Vulkan device that tests run on; without one they are skipped, and say so."""

import functools

import pytest

from alpha.backend_helios import Helios, open_helios
from alpha.backend_helios_device import NoVulkan
from alpha.backend_helios_tiles import Hardware, hardware
from alpha.errors import UsageError


@functools.cache
def _opened(precision: str) -> Helios | str:
    try:
        return open_helios(precision=precision)
    except (NoVulkan, UsageError) as error:
        return str(error)


def helios(precision: str = "f32") -> Helios:
    """The backend, one for all tests of a process.

    Skips the test that asks when there is no Vulkan device, or none that computes in the precision.
    """
    backend = _opened(precision)
    if isinstance(backend, str):
        pytest.skip(f"THE VULKAN BACKEND IS NOT TESTED IN {precision}: {backend}")
    return backend


def helios_in_pieces(monkeypatch: pytest.MonkeyPatch) -> Helios:
    """The same in float32, with the device's matrix units for large products; skips the test where there are none."""
    backend = helios()
    monkeypatch.setattr(backend, "units", matrix_units(backend))
    return backend


def matrix_units(backend: Helios) -> Hardware:
    """The device with its matrix units for float16; skips the test where there are none."""
    units = hardware(backend.device_info, "f16")
    if units.fragment is None:
        pytest.skip("MATRIX UNITS ARE NOT TESTED: this device has none")
    return units
