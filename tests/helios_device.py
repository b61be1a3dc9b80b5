"""The Vulkan device that tests run on; without one they are skipped, and say so."""

import functools

import pytest

from alpha.backend_helios import Helios, open_helios
from alpha.backend_helios_device import NoVulkan


@functools.cache
def _opened(precision: str) -> Helios | str:
    try:
        return open_helios(precision=precision)
    except NoVulkan as error:
        return str(error)


def helios(precision: str = "f32") -> Helios:
    """The backend, one for all tests of a process. Skips the test that asks when there is no Vulkan device."""
    backend = _opened(precision)
    if isinstance(backend, str):
        pytest.skip(f"THE VULKAN BACKEND IS NOT TESTED: {backend}")
    return backend
