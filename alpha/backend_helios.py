"""The Vulkan backend: training and inference on any GPU with a Vulkan driver.

`Helios` is the families of fused operations put together; each method means what that of `Backend` with the same name
does. Nothing here falls back to the CPU: what has no kernel of its own is composed of primitives, which run on the
device as well.

A device is tested when it is opened: a few operations on small fixed operands are held against numpy. It takes a
moment, and finds drivers and devices that compile a kernel wrongly before a long run does.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import environment, files, rng
from alpha.backend import Backend
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_helios_attention import Attention
from alpha.backend_helios_cached import Cached
from alpha.backend_helios_device import Device, DeviceInfo, DeviceLost, choose_device
from alpha.backend_helios_heads import HeadSplitting
from alpha.backend_helios_kernels import pipelines_folder, read_bundle
from alpha.backend_helios_linear import Linear
from alpha.backend_helios_loss import Loss
from alpha.backend_helios_orthogonal import Orthogonal
from alpha.backend_helios_pieces import PieceProducts
from alpha.backend_helios_relay import asked_relays
from alpha.backend_helios_tuning import tuning_for
from alpha.backend_helios_update import Update
from alpha.backend_primitives import Array
from alpha.errors import AlphaError, UsageError

TOLERANCES = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-2}
"""The largest difference allowed, relative to the largest magnitude, where products round to a precision."""

Program = Callable[..., Sequence[Array]]


class SmokeTestFailed(AlphaError):  # noqa: N818  (a condition)
    """The device computes wrongly; the process ends with exit code 3."""

    exit_code = 3


class Helios(Attention, Cached, HeadSplitting, Linear, Loss, Orthogonal, Update):
    """All operations. `precision` is what matrix products round their operands to: "f32", "f16" or "bf16"."""

    def __init__(self, device: Device, precision: str = "f32") -> None:
        super().__init__(device, precision)
        self.steps_in_flight = environment.read("ALPHA_STEPS_IN_FLIGHT")
        self.steps_together = environment.read("ALPHA_ADAPTIVE_SYNC_MIN_INTERVAL")
        self._replacement: Helios | None = None

    def replacement(self) -> Helios:
        try:
            self.device.completed()
        except DeviceLost:
            if self._replacement is None:
                self._replacement = open_helios(self.device_info.index, self.precision)
            return self._replacement.replacement()
        return self


def open_helios(device: int = -1, precision: str = "f32") -> Helios:
    """The backend on a Vulkan device, by its number, or with -1 on that of ALPHA_DEVICE, or the first GPU.

    Raises AlphaError when there is no such device, UsageError when it cannot compute in the precision, SmokeTestFailed
    when it computes wrongly.
    """
    info = choose_device(device)
    bundle = read_bundle()
    lacking = bundle.needed(precision) - info.features
    if lacking:
        lacks = ", ".join(sorted(lacking))
        raise UsageError(f"{info.name} has no {lacks}; leave out --dtype={precision}, or choose another --device.")
    opened = Device(info, pipeline_cache=_pipeline_cache(info))
    atexit.register(_close, opened)
    backend = Helios(opened, precision)
    backend.tuning, backend.relays = tuning_for(info, bundle), asked_relays(info)
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
        folder = pipelines_folder()
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
    except (AlphaError, OSError) as error:
        print(
            f"helios: pipelines are compiled anew in each run, there is no folder to keep them in: {error}",
            file=sys.stderr,
        )
        return None
    return folder / f"{info.vendor_id:x}-{info.device_id:x}-{info.pipeline_cache_uuid}.bin"


# --- the test at the start --------------------------------------------------------------------------------------------


def smoke_test(backend: Backend, precision: str) -> str:
    """What of the device's results is wrong, one clause; empty when nothing is."""
    in_pieces = _IN_PIECES if isinstance(backend, PieceProducts) and backend.units is not None else {}
    for name, (program, *shapes) in (_PROGRAMS | in_pieces).items():
        values = [rng.normal(int(np.prod(shape)), 1, index).reshape(shape) for index, shape in enumerate(shapes)]
        wanted = _results(program, NumpyPrimitives(), values)
        got = _results(program, backend, [each.astype(np.float32) for each in values])
        error = np.max([_difference(*pair) for pair in zip(got, wanted, strict=True)])  # NaN when one of them is
        tolerance = TOLERANCES[precision if name in _IN_SIXTEEN_BITS else "f32"]
        if not error <= tolerance:
            return f"{name} differs from the CPU by {error:.3g} of the largest value, where {tolerance:g} is allowed"
    return ""


def _results(program: Program, backend: Backend, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return [backend.to_numpy(each) for each in program(backend, *map(backend.from_numpy, values))]


def _difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The largest difference over the largest magnitude; NaN where a result is not a number."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _elementwise(backend: Backend, x: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.activation(x, "gelu", training=True)
    return [y, backend.activation_backward(dy, saved)]


def _product(backend: Backend, x: Array, weight: Array, bias: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.linear(x, weight, bias, "gelu", training=True)
    return [y, *backend.linear_backward(dy, saved)]


def _attention(backend: Backend, query: Array, key: Array, value: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.attention(query, key, value, training=True)
    return [y, *backend.attention_backward(dy, saved)]


def _norm(backend: Backend, x: Array, weight: Array, bias: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.layer_norm(x, weight, bias, 1e-5, training=True)
    return [y, *backend.layer_norm_backward(dy, saved)]


def _sums(backend: Backend, x: Array) -> Sequence[Array]:
    return [backend.sum(x, (0,)), backend.sum(x, (1,)), backend.sum_of_squares(x)]


def _product_in_pieces(backend: Backend, x: Array, weight: Array) -> Sequence[Array]:
    if not isinstance(backend, PieceProducts):
        return [backend.matmul(x, weight)]
    left, right = backend.divided(x, weight)
    return [backend.product(left, right)]


_HEADS = (2, 35, 2, 16)
_PROGRAMS: dict[str, tuple[Any, ...]] = {
    "an activation": (_elementwise, (1003,), (1003,)),
    "a matrix product": (_product, (70, 48), (48, 40), (40,), (70, 40)),
    "attention": (_attention, _HEADS, _HEADS, _HEADS, _HEADS),
    "layer norm": (_norm, (35, 48), (48,), (48,), (35, 48)),
    "a sum": (_sums, (35, 48)),
}
"""By name, a program and the shapes of its operands; not all are multiples of what kernels divide their work by."""

_IN_PIECES: dict[str, tuple[Any, ...]] = {
    "a matrix product on matrix units": (_product_in_pieces, (72, 96), (96, 40)),
}
"""Of devices that compute large products so."""

_IN_SIXTEEN_BITS = ("a matrix product", "attention", "layer norm")
"""Those whose operands or results have the precision's bits."""
