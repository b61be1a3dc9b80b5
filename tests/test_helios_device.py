"""The native sidecar, used for real on whatever Vulkan devices there are (lavapipe in continuous integration)."""

from collections.abc import Iterator

import numpy
import pytest
from spirv_kernel import PUSH, assemble

from alpha.backend_helios_device import Device, MemoryKind, NoVulkan, dispatch_command, list_devices


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """The first device, validated where the layers are installed."""
    try:
        info = next(each for each in list_devices() if not each.missing)
    except NoVulkan as error:
        pytest.skip(str(error))
    with Device(info) as opened:
        yield opened


def test_a_kernel_computes(device: Device) -> None:
    pipeline = device.pipeline(assemble(), {0: 32, 1: 0.5}, PUSH.size)
    x = device.allocate(4000, MemoryKind.UPLOAD)
    y = device.allocate(4000, MemoryKind.READ_BACK)
    assert x.view is not None
    assert y.view is not None
    numpy.frombuffer(x.view, numpy.float32)[:] = numpy.arange(1000)
    push = PUSH.pack(x.address, y.address, 1000, 2.0)
    program = device.create_program(dispatch_command(pipeline, (32, 1, 1), push))
    assert device.wait(device.submit(program), seconds=60)
    numpy.testing.assert_array_equal(numpy.frombuffer(y.view, numpy.float32), numpy.arange(1000) * 2 + 0.5)
