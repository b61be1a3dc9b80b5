"""Named parameters laid out in one flat array, with the gradients of those that are trained in another.

An elementwise optimizer then needs one operation for all weights, and the gradient norm is one reduction. Trained
parameters come first, and of them those that weight decay applies to, so each kind is one contiguous part.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.autograd import Tensor
from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.errors import AlphaError
from alpha.rng import NORMAL_PART
from alpha.workers import task_threads


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter before it exists. `decay`: weight decay applies (matrices).

    `initial(out, start)` writes its initial values, in the order of a flat array, from element `start` on into `out`:
    at most rng.NORMAL_PART of them, on any thread.

    One that is not `trained` has no gradient, no state of an optimizer, and no share in the gradient norm.
    `parts`: the widths of the matrices that stand side by side along its last axis, such as those of queries, keys and
    values; empty when it is one.
    """

    name: str
    shape: tuple[int, ...]
    initial: Callable[[npt.NDArray[np.floating], int], None]
    parts: tuple[int, ...] = ()
    trained: bool = True

    @property
    def decay(self) -> bool:
        return len(self.shape) >= 2

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Parameters:
    """The parameters of a model on a backend: `parameters["wte.weight"]` is a Tensor, and if trained has a gradient.

    `values` [size] and `gradients` [trained_size] are the flat arrays, in the order of `specs`; matrices stored in a
    type of their own are no part of `values`.
    """

    def __init__(
        self,
        backend: Backend,
        specs: Sequence[ParameterSpec],
        dtype: npt.DTypeLike = np.float32,
        values: Array | None = None,
        base: "Parameters | None" = None,
        matrix_dtype: npt.DTypeLike | None = None,
    ) -> None:
        """Allocates everything but given `values`; they are zero until `initialize` or `load`. Matrices that are not
        trained are stored as `matrix_dtype` if that is given.

        With a `base`, whose parameters are not trained, these are an addition to it: its tensors are found here by
        their names, too, but all else is of these alone.
        """
        self.backend = backend
        self.base = base
        self.specs = sorted(specs, key=lambda spec: (not spec.trained, not spec.decay))
        self.trained = [spec for spec in self.specs if spec.trained]
        self.size = sum(spec.size for spec in self.specs)
        self.trained_size = sum(spec.size for spec in self.trained)
        self._apart: dict[str, Tensor] = {}
        if matrix_dtype is not None and np.dtype(matrix_dtype) != np.dtype(dtype):
            matrices = [spec for spec in self.specs if spec.decay and not spec.trained]
            self._apart = {spec.name: Tensor(backend, backend.zeros(spec.shape, matrix_dtype)) for spec in matrices}
        size = sum(spec.size for spec in self.specs if spec.name not in self._apart)
        if values is None:  # only those that change are shared among processes
            values = backend.shared_zeros((size,), dtype) if self.trained else backend.zeros((size,), dtype)
        self.values = values
        self.gradients = backend.shared_zeros((self.trained_size,), dtype)
        self._tensors: dict[str, Tensor] = ({} if base is None else dict(base._tensors)) | self._apart
        for spec, part in self.views(self.values):
            self._tensors[spec.name] = Tensor(backend, part, requires_gradient=spec.trained)
        for spec, part in self.views(self.gradients):
            self._tensors[spec.name].gradient_buffer = part

    def with_own_gradients(self) -> "Parameters":
        """The same parameters, values shared, with another array for their gradients."""
        return Parameters(self.backend, self.specs, self.values.dtype, self.values, self.base)

    @property
    def size_in_all(self) -> int:
        """The elements of these parameters and those of the base."""
        return self.size + (self.base.size_in_all if self.base else 0)

    @property
    def bytes_in_all(self) -> int:
        """The memory that these parameters and those of the base take."""
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self._tensors.values())

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def views(self, flat: Array) -> Iterator[tuple[ParameterSpec, Array]]:
        """Each parameter's part, in its shape, of a flat array: of `values`, or of the trained ones."""
        start = 0
        stored = [spec for spec in self.specs if spec.name not in self._apart]
        for spec in self.trained if flat.shape[0] == self.trained_size else stored:
            part = self.backend.narrow(flat, 0, start, spec.size)
            yield spec, self.backend.reshape(part, spec.shape)
            start += spec.size

    def initialize(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Set every parameter to its initial values; tells `progress` the share that has been done.

        Parts of all parameters are drawn on all processors, while this thread hands what is drawn to the backend.
        """
        done = 0
        drawn = []
        pool = task_threads("alpha-draw")
        try:
            for spec in self.specs:
                values = np.empty(spec.size, self.values.dtype)
                parts = [(start, values[start : start + NORMAL_PART]) for start in range(0, spec.size, NORMAL_PART)]
                drawn.append((values, [(len(part), pool.submit(spec.initial, part, start)) for start, part in parts]))
            drawn.reverse()
            for spec in self.specs:
                values, futures = drawn.pop()  # each array goes when it has been handed on
                for size, future in futures:
                    future.result()
                    done += size
                    progress(done / self.size)
                data = self._tensors[spec.name].data
                self.backend.copy_into(data, self.backend.from_numpy(values.reshape(spec.shape)))
        finally:
            pool.shutdown(cancel_futures=True)

    def clear_gradients(self) -> None:
        """Forget the gradients, so that the next contribution overwrites the buffer."""
        for spec in self.trained:
            self._tensors[spec.name].gradient = None

    def to_numpy(self) -> dict[str, npt.NDArray[np.floating]]:
        """A copy of every parameter by name."""
        return {spec.name: self.backend.to_numpy(self._tensors[spec.name].data) for spec in self.specs}

    def load(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the values from arrays by name. Raises AlphaError, and changes nothing, as `check_weights` does."""
        for _ in self.load_in_turn(values):
            pass

    def load_in_turn(self, values: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        """As `load`, but another parameter each time that the iterator is asked."""
        check_weights(self.specs, values)
        for spec in self.specs:
            given = values[spec.name].astype(self.values.dtype)
            self.backend.copy_into(self._tensors[spec.name].data, self.backend.from_numpy(given))
            yield


def check_weights(specs: Sequence[ParameterSpec], values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raises AlphaError unless there is exactly one array for each parameter, of its shape and of floating point."""
    unknown = sorted(set(values) - {spec.name for spec in specs})
    if unknown:
        raise AlphaError(f"The weights hold {unknown[0]!r}, which this model does not have.")
    for spec in specs:
        if spec.name not in values:
            raise AlphaError(f"The weights lack {spec.name!r}, which this model needs.")
        given = values[spec.name]
        if given.shape != spec.shape or given.dtype.kind != "f":
            raise AlphaError(
                f"The weight {spec.name!r} is {given.dtype.name} {list(given.shape)}, "
                f"but this model needs floating-point numbers {list(spec.shape)}."
            )
