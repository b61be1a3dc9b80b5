"""The Vulkan backend under what looks over its shoulder: the validation layers, and the reference backend."""

from typing import Any

import pytest
from helios_device import helios
from spirv_kernel import PUSH, assemble
from test_helios_device import GEOMETRY
from test_helios_training import step_of
from test_training_step import batch_of, run_step

from alpha import backend_helios, backends
from alpha.backend_checked import CheckedBackend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios
from alpha.backend_helios_device import VulkanError
from alpha.errors import AlphaError
from alpha.generation import Generator
from alpha.sampling import SamplingOptions


@pytest.fixture
def validated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Helios:
    """A backend of its own on a device with validation layers, which is closed in the test."""
    if request.param == "f16" and "float16" not in helios().device_info.features:
        pytest.skip(f"FLOAT16 IS NOT VALIDATED: {helios().device_info.name} has none")
    monkeypatch.setenv("ALPHA_VK_VALIDATE", "1")
    monkeypatch.setattr(backend_helios, "smoke_test", lambda *_: "")  # its kernels are compiled once, elsewhere
    try:
        backend: Any = backends.create("helios", dtype=request.param)
    except VulkanError as error:
        assert "VK_LAYER_KHRONOS_validation" in str(error)
        pytest.skip(f"NO TRAINING IS VALIDATED: {error}")
    assert backend.device.validate
    return backend


@pytest.mark.parametrize("validated", ["f32", "f16"], indirect=True)
def test_training_and_sampling_give_the_validation_layers_nothing_to_say(validated: Helios) -> None:
    step = step_of("adamw", backend=validated, recompute=True, fp16=validated.precision == "f16")
    results = [run_step(step, batch_of(index, 2), 0.01) for index in range(3)]
    assert all(each.read()["accepted"] for each in results)
    if validated.precision == "f32":
        assert len(list(Generator(step.model).generate([1, 2, 3, 4], 2, SamplingOptions(seed=1)))) == 2
    validated.device.close()  # an error when there are messages


@pytest.mark.parametrize("validated", ["f32"], indirect=True)
def test_a_message_of_the_validation_layers_is_an_error(validated: Helios) -> None:
    validated.device.pipeline(assemble(GEOMETRY), push_bytes=PUSH.size)
    values = validated.zeros((3,))
    with pytest.raises(VulkanError, match=r"The Vulkan validation layers report: .*Geometry"):
        validated.to_numpy(values)
    validated.device.close()


# --- the reference backend --------------------------------------------------------------------------------------------


def test_every_operation_of_a_step_is_that_of_the_reference_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = helios()
    monkeypatch.setattr(backend_helios, "open_helios", lambda *_: backend)
    monkeypatch.setenv("ALPHA_CHECK", "1")
    checked = backends.create("helios")
    assert isinstance(checked, CheckedBackend)
    step, plain = step_of("adamw", backend=checked), step_of("adamw", backend=CpuRef())
    got, wanted = (run_step(each, batch_of(0, 2), 0.01).read() for each in (step, plain))
    assert got == pytest.approx(wanted, rel=1e-5)


def test_a_wrong_operation_of_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = Helios.attention_backward

    def wrong(self: Helios, dy: Any, saved: Any) -> Any:
        query, key, value = attention(self, dy, saved)
        return query, key, self.multiply(value, 1.01)

    monkeypatch.setattr(Helios, "attention_backward", wrong)
    step = step_of("adamw", backend=CheckedBackend(helios(), CpuRef()))
    with pytest.raises(AlphaError, match=r"result of self_attention_backward .*, part 0, differs"):
        run_step(step, batch_of(0, 2), 0.01)
