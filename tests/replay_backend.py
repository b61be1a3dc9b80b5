"""A backend that takes `record` at its word: it runs a program once, and from then on replays the primitives it saw.

Its arrays show nothing but shape and dtype, so a program that looks at a value fails, and one that lets Python decide
something anew in each step gives other results than a backend that runs it each time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_primitives import Primitives

_NUMPY = NumpyPrimitives()


class OpaqueArray:
    """An array whose values cannot be seen from outside its backend."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.hidden = values
        self.shape = values.shape
        self.dtype = values.dtype

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("a program looked at a value")

    __array__ = __bool__ = __eq__ = __float__ = __getitem__ = __int__ = __iter__ = __len__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def _reveal(argument: Any) -> Any:
    """An argument with its opaque arrays made plain."""
    if isinstance(argument, OpaqueArray):
        return argument.hidden
    if isinstance(argument, np.ndarray):
        raise AssertionError("an operation was given an array of another backend")
    if isinstance(argument, list | tuple):
        return [_reveal(each) for each in argument]
    if dataclasses.is_dataclass(argument) and not isinstance(argument, type):
        fields = dataclasses.fields(argument)
        return dataclasses.replace(argument, **{each.name: _reveal(getattr(argument, each.name)) for each in fields})
    return argument


class _ReplayMemory(Backend):
    """All but the primitives that only compute, which `_delegate` adds."""

    name = "replay"

    def __init__(self) -> None:
        self.recording: list[tuple[str, tuple[Any, ...], dict[str, Any], OpaqueArray | None]] | None = None

    def from_numpy(self, values: npt.NDArray[Any]) -> OpaqueArray:
        return OpaqueArray(np.array(values))

    def to_numpy(self, array: OpaqueArray) -> npt.NDArray[Any]:
        assert self.recording is None, "a program read a value back"
        return array.hidden.copy()

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> OpaqueArray:
        kind = np.dtype(dtype).kind
        return OpaqueArray(np.full(shape, np.nan if kind == "f" else 77, dtype))

    def record(self, program: Callable[..., OpaqueArray]) -> Callable[..., OpaqueArray]:
        log: list[Any] = []
        inputs: tuple[OpaqueArray, ...] = ()
        result: OpaqueArray | None = None

        def run(*arguments: OpaqueArray) -> OpaqueArray:
            nonlocal inputs, result
            if result is None:
                inputs, self.recording = arguments, log
                try:
                    result = program(*inputs)
                finally:
                    self.recording = None
            else:
                for place, argument in zip(inputs, arguments, strict=True):
                    np.copyto(place.hidden, argument.hidden)
                for operation, operands, options, out in log:
                    _replay(operation, operands, options, out)
            return OpaqueArray(result.hidden.copy())

        return run


def _replay(operation: str, operands: Any, options: Any, out: OpaqueArray | None) -> None:
    new = getattr(_NUMPY, operation)(*(_reveal(each) for each in operands), **options)
    if out is not None and not np.may_share_memory(out.hidden, new):  # a view shows the new values by itself
        np.copyto(out.hidden, new)


def _delegate(operation: str) -> Callable[..., OpaqueArray | None]:
    """The primitive of that name: computed by numpy, and written down while recording."""

    def primitive(self: _ReplayMemory, *operands: Any, **options: Any) -> OpaqueArray | None:
        values = getattr(_NUMPY, operation)(*(_reveal(each) for each in operands), **options)
        out = None if values is None else OpaqueArray(np.asarray(values))
        if self.recording is not None:
            self.recording.append((operation, operands, options, out))
        return out

    return primitive


_COMPUTING = Primitives.__abstractmethods__ - set(vars(_ReplayMemory))
ReplayBackend: type[_ReplayMemory] = type(
    "ReplayBackend", (_ReplayMemory,), {each: _delegate(each) for each in _COMPUTING}
)
