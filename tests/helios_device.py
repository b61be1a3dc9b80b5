"""The Vulkan device that tests run on; without one they are skipped, and say so."""

import functools

import pytest

from alpha.backend_helios import Helios, open_helios
from alpha.backend_helios_device import NoVulkan
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
