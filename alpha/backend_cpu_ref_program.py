"""Steps of inference on the reference backend that are recorded once: their operations again, on the same arrays.

A step of few tokens is a hundred operations of some microseconds each, of which Python takes more than half to find out
what is to be done. So the first run is watched. What it computed is computed again in each later one, into the arrays
that are there already: views cost nothing then, and native functions are called with the arguments of the first time.
Steps whose results take much memory are computed anew each time; there Python's share is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from alpha import backend_cpu_ref_sidecar as sidecar
from alpha.backend_cpu_ref_primitives import NumpyArray, Part

MOST_BYTES = 4 << 20
"""Of the results of all operations of a recorded step; each keeps its own."""

VIEWS = ("reshape", "transpose", "narrow", "expand")
CHANGES = ("fill", "copy_into", "add_into", "put_rows")
"""Operations that change their first operand and give nothing back."""
IN_PARTS = ("activation", "cached_attention", "layer_norm", "linear", "rms_norm", "rotary")
"""Operations that, where their operands lie in order, do nothing but the parts that they hand to `run_parts`."""
OTHERS = (
    *("absolute", "add", "cast", "choose", "concatenate", "divide", "equal", "erf", "exp", "gather_rows", "greater"),
    *("isfinite", "log", "logical_and", "matmul", "max", "maximum", "minimum", "multiply", "newest_ids", "pick"),
    *("scatter_add_rows", "sign", "softmax", "sqrt", "subtract", "sum", "tanh", "where", "zeros"),
)

Call = Callable[[], object]


class Recordable(Protocol):
    """What is needed of the backend: attributes of an instance hide its methods, and `run_parts` runs all parts."""

    threads: int

    def run_parts(self, parts: Sequence[Part]) -> None: ...


class RecordedStep:
    """A program of a backend that is recorded in its first run, and in the first with another number of threads."""

    def __init__(self, backend: Recordable, program: Callable[..., NumpyArray]) -> None:
        self._backend, self._program = backend, program
        self._is_large = False
        self._recordings: dict[int, tuple[list[NumpyArray], list[Call], NumpyArray]] = {}  # by the number of threads

    def __call__(self, *operands: NumpyArray) -> NumpyArray:
        if self._is_large:
            return self._program(*operands)
        if self._backend.threads not in self._recordings:
            return self._record(operands)
        own, calls, result = self._recordings[self._backend.threads]
        for target, source in zip(own, operands, strict=True):
            np.copyto(target, source)
        for call in calls:
            call()
        return result.copy()

    def _record(self, operands: Sequence[NumpyArray]) -> NumpyArray:
        own = [each.copy() for each in operands]
        with _Watch(self._backend) as watch:
            result = self._program(*own)
        self._is_large = watch.nbytes > MOST_BYTES
        if not self._is_large:
            self._recordings[self._backend.threads] = own, watch.calls, result
        return result.copy()


class _Watch:
    """While it is entered, notes how to repeat each of a backend's operations; `nbytes` is what their results take."""

    def __init__(self, backend: Recordable) -> None:
        self.calls: list[Call] = []
        self.nbytes = 0
        self._backend = backend
        self._parts: list[Call] | None = None

    def __enter__(self) -> _Watch:
        for name in (*VIEWS, *CHANGES, *IN_PARTS, *OTHERS):
            setattr(self._backend, name, functools.partial(self._note, name, getattr(self._backend, name)))
        self._run_parts = self._backend.run_parts
        setattr(self._backend, "run_parts", self._note_parts)  # noqa: B010  (it hides a method)
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*VIEWS, *CHANGES, *IN_PARTS, *OTHERS, "run_parts"):
            delattr(self._backend, name)

    def _note(self, name: str, operation: Callable[..., Any], *operands: Any, **options: Any) -> Any:
        if self._parts is not None:  # a part of another operation
            return operation(*operands, **options)
        self._parts = []
        try:
            result = operation(*operands, **options)
        finally:
            parts, self._parts = self._parts, None
        again = functools.partial(operation, *operands, **options)
        if name in CHANGES:
            self.calls.append(again)
            return result
        array = result[0] if isinstance(result, tuple) else result
        if not any(np.may_share_memory(array, each) for each in _arrays(operands)):
            self.nbytes += array.nbytes
            if name in IN_PARTS and _is_all_parts(name, [*_arrays((*operands, *options.values()))]):
                self.calls += parts
            elif isinstance(result, tuple):
                self.calls.append(lambda: np.copyto(array, again()[0]))
            else:
                self.calls.append(lambda: np.copyto(array, again()))
        return result

    def _note_parts(self, parts: Sequence[Part]) -> None:
        assert self._parts is not None
        if len(parts) == 1:
            function, argument = parts[0]
            self._parts.append(functools.partial(function, argument))
        else:
            self._parts.append(functools.partial(self._run_parts, parts))
        self._run_parts(parts)


def _arrays(values: Sequence[Any]) -> Iterator[NumpyArray]:
    """The arrays among values and in the lists that are among them."""
    for each in values:
        if isinstance(each, np.ndarray):
            yield each
        elif isinstance(each, list | tuple):
            yield from _arrays(each)


def _is_all_parts(name: str, operands: Sequence[NumpyArray]) -> bool:
    """Whether an operation did nothing but its parts: then it read its operands as they lie, and copied none.

    Only the sidecar's parts are the same for other numbers; numpy's follow from positions, and have copies of rows.
    """
    if sidecar.library() is None or not all(each.dtype.char in "fi" for each in operands):
        return False
    if name == "cached_attention":  # takes rows of queries that lie apart
        query, *others = operands
        return bool(query[:1].flags.c_contiguous and all(each.flags.c_contiguous for each in others))
    if name == "linear":  # takes the transpose of a weight
        operands = [*operands[:1], *operands[2:], operands[1].T if operands[1].T.flags.c_contiguous else operands[1]]
    return name == "rotary" or all(each.flags.c_contiguous for each in operands)
