"""The Vulkan backend: training and inference on any GPU with a Vulkan driver.

Each fused operation goes to the module that knows its kernels; its meaning is that of the method of `Backend` with the
same name. Nothing here falls back to the CPU: what has no kernel of its own is composed of primitives, which run on the
device as well.
"""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

from alpha import backend_helios_attention as attentions
from alpha import backend_helios_elementwise as elementwise
from alpha import backend_helios_loss as losses
from alpha import backend_helios_matmul as products
from alpha import backend_helios_norm as norms
from alpha import backend_helios_update as updates
from alpha import environment, files
from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_device import Device, DeviceInfo, choose_device
from alpha.backend_helios_kernels import read_bundle
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_helios_smoke import SmokeTestFailed, smoke_test
from alpha.backend_primitives import RandomKey
from alpha.errors import AlphaError, UsageError


class Helios(HeliosPrimitives):
    """The fused operations. `precision` is what matrix products round their operands to: "f32", "f16" or "bf16"."""

    def __init__(self, device: Device, precision: str = "f32") -> None:
        super().__init__(device, precision)
        self.steps_in_flight = environment.read("ALPHA_STEPS_IN_FLIGHT")
        self.steps_together = environment.read("ALPHA_ADAPTIVE_SYNC_MIN_INTERVAL")

    # --- products -----------------------------------------------------------------------------------------------------

    def matmul(self, a: HeliosArray, b: HeliosArray) -> HeliosArray:
        return products.matmul(self, a, b)

    def linear(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        bias: HeliosArray | None = None,
        activation: str = "",
        residual: HeliosArray | None = None,
        training: bool = False,
    ) -> tuple[HeliosArray, Saved]:
        return products.linear(self, x, weight, bias, activation, residual, training)

    def linear_backward(
        self, dy: HeliosArray, saved: Saved, weight_gradient: HeliosArray | None = None, need_input: bool = True
    ) -> tuple[HeliosArray | None, HeliosArray, HeliosArray | None]:
        return products.linear_backward(self, dy, saved, weight_gradient, need_input)

    # --- activations and normalization --------------------------------------------------------------------------------

    def activation(self, x: HeliosArray, kind: str, training: bool = False) -> tuple[HeliosArray, Saved]:
        return elementwise.activation(self, x, kind, training)

    def activation_backward(self, dy: HeliosArray, saved: Saved) -> HeliosArray:
        return elementwise.activation_backward(self, dy, saved)

    def layer_norm(
        self, x: HeliosArray, weight: HeliosArray, bias: HeliosArray | None, epsilon: float, training: bool = False
    ) -> tuple[HeliosArray, Saved]:
        return norms.layer_norm(self, x, weight, bias, epsilon, training)

    def layer_norm_backward(self, dy: HeliosArray, saved: Saved) -> tuple[HeliosArray, HeliosArray, HeliosArray | None]:
        return norms.layer_norm_backward(self, dy, saved)

    def rms_norm(
        self, x: HeliosArray, weight: HeliosArray, epsilon: float, training: bool = False
    ) -> tuple[HeliosArray, Saved]:
        return norms.rms_norm(self, x, weight, epsilon, training)

    def rms_norm_backward(self, dy: HeliosArray, saved: Saved) -> tuple[HeliosArray, HeliosArray]:
        return norms.rms_norm_backward(self, dy, saved)

    # --- attention ----------------------------------------------------------------------------------------------------

    def rotary(self, x: HeliosArray, cosine: HeliosArray, sine: HeliosArray) -> HeliosArray:
        return elementwise.rotary(self, x, cosine, sine)

    def attention(
        self,
        query: HeliosArray,
        key: HeliosArray,
        value: HeliosArray,
        soft_cap: float = 0.0,
        dropout: float = 0.0,
        random: RandomKey | None = None,
        training: bool = False,
    ) -> tuple[HeliosArray, Saved]:
        return attentions.attention(self, query, key, value, soft_cap, dropout, random, training)

    def attention_backward(self, dy: HeliosArray, saved: Saved) -> tuple[HeliosArray, HeliosArray, HeliosArray]:
        return attentions.attention_backward(self, dy, saved)

    def softmax(self, x: HeliosArray) -> HeliosArray:
        return elementwise.softmax(self, x)

    def softmax_backward(self, dy: HeliosArray, y: HeliosArray) -> HeliosArray:
        return elementwise.softmax_backward(self, dy, y)

    def dropout(self, x: HeliosArray, probability: float, key: RandomKey | None) -> HeliosArray:
        return elementwise.dropout(self, x, probability, key)

    # --- loss ---------------------------------------------------------------------------------------------------------

    def cross_entropy(
        self, x: HeliosArray, weight: HeliosArray, targets: HeliosArray, soft_cap: float = 0.0, training: bool = False
    ) -> tuple[HeliosArray, Saved]:
        return losses.cross_entropy(self, x, weight, targets, soft_cap, training)

    def cross_entropy_backward(
        self, dloss: HeliosArray, saved: Saved, weight_gradient: HeliosArray | None = None
    ) -> tuple[HeliosArray, HeliosArray]:
        return losses.cross_entropy_backward(self, dloss, saved, weight_gradient)

    # --- optimizers ---------------------------------------------------------------------------------------------------

    def sum_of_squares(self, x: HeliosArray) -> HeliosArray:
        return updates.sum_of_squares(self, x)

    def copy_into_if(self, condition: HeliosArray, target: HeliosArray, source: HeliosArray) -> None:
        updates.copy_into_if(self, condition, target, source)


for _name in updates.UPDATES:
    setattr(Helios, _name, updates.update_method(_name))


def open_helios(device: int = -1, precision: str = "f32") -> Helios:
    """The backend on a Vulkan device, by its number, or on the first GPU with -1.

    Raises AlphaError when there is no such device, UsageError when it cannot compute in the precision, SmokeTestFailed
    when it computes wrongly.
    """
    info = choose_device(device)
    lacking = read_bundle().needed(precision) - info.features
    if lacking:
        lacks = ", ".join(sorted(lacking))
        raise UsageError(f"{info.name} has no {lacks}; leave out --dtype={precision}, or choose another --device.")
    opened = Device(info, pipeline_cache=_pipeline_cache(info))
    atexit.register(_close, opened)
    backend = Helios(opened, precision)
    _test(backend)
    return backend


def _test(backend: Helios) -> None:
    """Raises SmokeTestFailed when the device computes wrongly; where ALPHA_FAIL_ON_SMOKE_TEST is 0, only says so."""
    wrong = smoke_test(backend, backend.precision)
    if not wrong:
        return
    found = f"{backend.device_info.name} computes wrongly: {wrong}."
    if environment.read("ALPHA_FAIL_ON_SMOKE_TEST"):
        raise SmokeTestFailed(
            f"{found} A newer driver may help, as may --backend=cpu_ref or another --device; "
            "ALPHA_FAIL_ON_SMOKE_TEST=0 goes on regardless."
        )
    backend.smoke_test_failed = True
    print(f"helios: {found} Going on, because ALPHA_FAIL_ON_SMOKE_TEST is 0.", file=sys.stderr)


def _close(device: Device) -> None:
    """Close a device at the end of the process, whose work is done: what is wrong then can only be said."""
    try:
        device.close()
    except AlphaError as error:
        print(f"helios: {error}", file=sys.stderr)


def _pipeline_cache(info: DeviceInfo) -> Path | None:
    """The file that keeps compiled pipelines from run to run; None where there is no place for one."""
    try:
        folder = files.cache_folder() / "pipelines"
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
    except (AlphaError, OSError) as error:
        print(
            f"helios: pipelines are compiled anew in each run, there is no folder to keep them in: {error}",
            file=sys.stderr,
        )
        return None
    return folder / f"{info.vendor_id:x}-{info.device_id:x}-{info.pipeline_cache_uuid}.bin"
