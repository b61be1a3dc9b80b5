"""Reverse-mode automatic differentiation on a tape.

Operations executed while a `Tape` is open are written down with the function that turns the gradient of their result
into the gradients of their operands; `Tape.backward` walks the list from the end. Outside a tape nothing is recorded.
Knows nothing about which operations there are (see `ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType

import numpy as np

from alpha.backend import Backend
from alpha.backend_primitives import Array

Gradients = Sequence[Array | None]
Backward = Callable[[Array], Gradients]

_open_tape: ContextVar[Tape | None] = ContextVar("open_tape", default=None)


class Tensor:
    """An array of a backend that may take part in differentiation.

    `gradient_buffer`, when there is one, is the array that the gradient is to be collected in; parameters have one, a
    part of one flat array.
    """

    __slots__ = ("backend", "data", "gradient", "gradient_buffer", "requires_gradient")

    def __init__(
        self,
        backend: Backend,
        data: Array,
        requires_gradient: bool = False,
        gradient_buffer: Array | None = None,
    ) -> None:
        self.backend = backend
        self.data = data
        self.requires_gradient = requires_gradient
        self.gradient: Array | None = None
        self.gradient_buffer = gradient_buffer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.data.dtype

    def unused_gradient_buffer(self) -> Array | None:
        """The gradient buffer while nothing is in it, for a backward function that can write its result there.

        The tensor must stand first among the operation's operands: were it another operand too, whose contribution is
        taken first, that would overwrite the result.
        """
        return self.gradient_buffer if self.gradient is None else None

    def accumulate(self, gradient: Array) -> None:
        """Add a contribution to the gradient."""
        if self.gradient_buffer is None:
            # Not in place: the first contribution may be an array that others hold too.
            self.gradient = gradient if self.gradient is None else self.backend.add(self.gradient, gradient)
            return
        if self.gradient is not None:
            self.backend.add_into(self.gradient_buffer, gradient)
        elif gradient is not self.gradient_buffer:
            self.backend.copy_into(self.gradient_buffer, gradient)
        self.gradient = self.gradient_buffer


class Tape:
    """Records the operations executed inside `with Tape() as tape:`."""

    def __init__(self) -> None:
        self._records: list[tuple[Tensor, Sequence[Tensor | None], Backward]] = []

    def __enter__(self) -> Tape:
        self._token = _open_tape.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _open_tape.reset(self._token)

    def write(self, result: Tensor, operands: Sequence[Tensor | None], backward: Backward) -> None:
        self._records.append((result, operands, backward))

    def backward(self, result: Tensor, gradient: Array | None = None) -> None:
        """Collect, in the tensors that require it, the gradient of `result` (weighted by `gradient`, default ones).

        The tape is used up: each record is dropped, and with it the arrays it holds, as soon as it has been walked.
        """
        if gradient is None:
            gradient = result.backend.empty(result.shape, result.dtype)
            result.backend.fill(gradient, 1.0)
        result.accumulate(gradient)
        while self._records:
            made, operands, backward = self._records.pop()
            gradient, made.gradient = made.gradient, None
            if gradient is None:
                continue
            for operand, contribution in zip(operands, backward(gradient), strict=True):
                if operand is not None and operand.requires_gradient and contribution is not None:
                    operand.accumulate(contribution)


def recording(*operands: Tensor | None) -> bool:
    """Whether an operation on these operands will be recorded, so that it has to save what its backward needs."""
    return _open_tape.get() is not None and any(each is not None and each.requires_gradient for each in operands)


def record(result: Array, operands: Sequence[Tensor | None], backward: Backward, backend: Backend) -> Tensor:
    """Wrap the result of an operation, and write it on the open tape if an operand requires a gradient.

    `backward` takes the gradient of the result and returns one for each operand.
    """
    tape = _open_tape.get()
    recorded = tape is not None and recording(*operands)
    tensor = Tensor(backend, result, recorded)
    if recorded and tape is not None:
        tape.write(tensor, operands, backward)
    return tensor


def checkpoint(function: Callable[[Tensor], Tensor], operand: Tensor) -> Tensor:
    """`function(operand)`, keeping only the operand: the backward pass computes the rest again (Chen et al. 2016).

    `function` must give the same bits when it is called again. Its parameters receive their gradients directly.
    """
    tape = _open_tape.get()
    if tape is None:
        return function(operand)
    with Tape():  # is forgotten; without one, operations may take other ways, to other bits
        result = function(operand)
    if not result.requires_gradient:
        return result

    def backward(gradient: Array) -> Gradients:
        again = Tensor(operand.backend, operand.data, operand.requires_gradient)
        with Tape() as tape:
            recomputed = function(again)
        tape.backward(recomputed, gradient)
        return [again.gradient]

    kept = Tensor(operand.backend, result.data, requires_gradient=True)
    tape.write(kept, [operand], backward)  # also where only the function's own parameters need a gradient
    return kept
