"""Matrices made orthogonal by Newton-Schulz iteration (Jordan 2024), composed of a backend's primitives."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from alpha.backend_primitives import Array, Primitives

STACK = 1 << 22
"""Elements of the matrices that are made orthogonal together, at most, unless a single one has more."""

AnyArray = TypeVar("AnyArray", bound=Array)

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


def orthogonalize(backend: Primitives, matrices: Sequence[Array], size: float) -> None:
    """See `Backend.orthogonalize`."""
    lying = [backend.transpose(each, (1, 0)) if each.shape[0] > each.shape[1] else each for each in matrices]
    for stack in stacks(lying, STACK):  # of small ones together, which costs fewer operations
        rows, columns = stack[0].shape
        together = backend.concatenate([backend.reshape(each, (1, rows, columns)) for each in stack], 0)
        orthogonal = backend.multiply(newton_schulz(backend, together), size * math.sqrt(columns))
        for index, each in enumerate(stack):
            backend.copy_into(each, backend.reshape(backend.narrow(orthogonal, 0, index, 1), (rows, columns)))


def stacks(matrices: Iterable[AnyArray], most: int) -> list[list[AnyArray]]:
    """Arrays of matrices [..., R, C] in lists of one R and C, each of at most `most` elements or one array."""
    found: list[list[AnyArray]] = []
    newest: dict[tuple[int, ...], list[AnyArray]] = {}
    for each in matrices:
        stack = newest.get(each.shape[-2:], [])
        if not stack or sum(math.prod(other.shape) for other in (*stack, each)) > most:
            stack = newest[each.shape[-2:]] = []
            found.append(stack)
        stack.append(each)
    return found


def newton_schulz(backend: Primitives, matrices: Array) -> Array:
    """About U V^T of each one's singular value decomposition U S V^T: singular values come out near 1.

    matrices [N, R, C], R <= C: the Gram matrix is of the shorter side.
    """
    a, b, c = COEFFICIENTS
    norm = backend.sqrt(backend.sum(backend.multiply(matrices, matrices), (1, 2), keep=True))
    x = backend.divide(matrices, backend.add(norm, EPSILON))
    one = backend.from_numpy(np.eye(x.shape[1], dtype=x.dtype))
    for _ in range(STEPS):
        gram = backend.matmul(x, backend.transpose(x, (0, 2, 1)))
        square = backend.matmul(gram, backend.transpose(gram, (0, 2, 1)))  # which libraries know to be symmetric, too
        polynomial = backend.add(backend.multiply(gram, b), backend.multiply(square, c))
        x = backend.matmul(backend.add(polynomial, backend.multiply(one, a)), x)
    return x
