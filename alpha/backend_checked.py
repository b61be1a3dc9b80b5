"""A backend that does everything twice: on a device, and from the same operands on the reference backend.

The first operation whose results differ is named in an error; see `ALPHA_CHECK`. Slow, because every operand is read
back, and programs are run anew each time instead of being recorded.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_helios_array import BFLOAT16
from alpha.backend_primitives import Array
from alpha.errors import AlphaError

TOLERANCES = {"f32": 1e-4, "f16": 2e-2, "bf16": 1e-1}
"""The largest difference allowed, relative to the largest magnitude, for each precision of matrix products."""

_MEMORY = (
    "from_numpy",
    "to_numpy",
    "empty",
    "record",
    "record_inference",
    "plan",
    "shared_zeros",
    "memory_in_use",
    "replacement",
)
_DIVISION = ("thread_choices", "batch_parts", "side_by_side")


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What the forward half of a fused operation saved on each side."""

    device: Any
    reference: Any


class _CheckedMemory(Backend):
    """What is the device's alone: the arrays are its arrays."""

    def __init__(self, device: Backend, reference: Backend, precision: str = "f32") -> None:
        self.device = device
        self.reference = reference
        self.name = device.name
        self.smoke_test_failed = device.smoke_test_failed
        self.precision = precision
        self.tolerance = TOLERANCES[precision]

    def from_numpy(self, values: npt.NDArray[Any]) -> Array:
        return self.device.from_numpy(values)

    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        return self.device.to_numpy(array)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        return self.device.empty(shape, dtype)

    def record(self, program: Callable[..., Any]) -> Callable[..., Any]:
        return program

    def memory_in_use(self) -> tuple[int, int] | None:
        return self.device.memory_in_use()

    def replacement(self) -> Backend:
        device = self.device.replacement()
        return self if device is self.device else type(self)(device, self.reference, self.precision)

    def operation(self, name: str, takes_training: bool, operands: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run an operation on both sides and compare. Raises AlphaError when they differ."""
        copies = [self._to_reference(each) for each in operands], {k: self._to_reference(v) for k, v in options.items()}
        result = getattr(self.device, name)(
            *map(_of_device, operands), **{key: _of_device(value) for key, value in options.items()}
        )
        expected = getattr(self.reference, name)(*copies[0], **copies[1])
        saved = None
        if takes_training:
            (result, saved_there), (expected, saved_here) = result, expected
            saved = None if saved_there is None else _Saved(saved_there, saved_here)
        shapes = [list(each.shape) for each in operands if _is_array(each)]
        self._compare(f"The result of {name} on {shapes}", result, expected)
        for index, (operand, copy) in enumerate(zip(operands, copies[0], strict=True)):
            if _is_array(operand):
                self._compare(f"Operand {index} after {name} on {shapes}", operand, copy)
        return (result, saved) if takes_training else result

    def _to_reference(self, value: Any) -> Any:
        if isinstance(value, _Saved):
            return value.reference
        if isinstance(value, np.dtype):
            return np.dtype(np.float32) if value == BFLOAT16 else value
        if _is_array(value):
            return self.reference.from_numpy(self.device.to_numpy(value))
        if isinstance(value, list | tuple):
            return [self._to_reference(each) for each in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed = {each.name: self._to_reference(getattr(value, each.name)) for each in dataclasses.fields(value)}
            return dataclasses.replace(value, **changed)
        return value

    def _compare(self, what: str, result: Any, expected: Any) -> None:
        if isinstance(expected, tuple | list):
            for index, (each, wanted) in enumerate(zip(result, expected, strict=True)):
                self._compare(f"{what}, part {index},", each, wanted)
        elif expected is not None:
            difference = self._difference(self.device.to_numpy(result), self.reference.to_numpy(expected))
            if not difference <= self.tolerance:
                raise AlphaError(
                    f"{what} differs from the reference backend's: by {difference:.3g} of the largest magnitude, "
                    f"where {self.tolerance:.3g} is allowed."
                )

    def _difference(self, got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
        """The largest difference over the largest magnitude; infinite where the forms differ."""
        if got.shape != wanted.shape or got.dtype.kind != wanted.dtype.kind:
            return np.inf
        if got.dtype.kind != "f":
            return 0.0 if np.array_equal(got, wanted) else np.inf
        finite = np.isfinite(wanted)
        if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
            return np.inf
        scale = float(np.abs(wanted[finite]).max(initial=0.0))
        error = float(np.abs(got[finite] - wanted[finite]).max(initial=0.0))
        return error / scale if scale else (0.0 if error < np.finfo(np.float32).tiny else np.inf)


def _is_array(value: Any) -> bool:
    return isinstance(getattr(value, "shape", None), tuple) and not isinstance(value, np.dtype | np.generic)


def _of_device(value: Any) -> Any:
    return value.device if isinstance(value, _Saved) else value


def _checked(name: str) -> Callable[..., Any]:
    takes_training = "training" in inspect.signature(getattr(Backend, name)).parameters

    def operation(self: _CheckedMemory, *operands: Any, **options: Any) -> Any:
        return self.operation(name, takes_training, operands, options)

    return operation


_OPERATIONS = [
    name
    for name, _ in inspect.getmembers(Backend, inspect.isfunction)
    if not name.startswith("_") and name not in (*_MEMORY, *_DIVISION)
]
CheckedBackend: type[_CheckedMemory] = type(
    "CheckedBackend", (_CheckedMemory,), {name: _checked(name) for name in _OPERATIONS}
)
