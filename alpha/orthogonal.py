"""Matrices made orthogonal by Newton-Schulz iteration (Jordan 2024), composed of a backend's primitives."""

import math
from collections.abc import Sequence

import numpy as np

from alpha.backend_primitives import Array, Primitives

STACK = 1 << 22
"""Elements of the matrices that are made orthogonal together, at most, unless a single one has more."""

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


def orthogonalize(backend: Primitives, matrices: Sequence[Array], size: float) -> None:
    """See `Backend.orthogonalize`."""
    for stack in _stacks(backend, matrices):
        rows, columns = stack[0].shape
        together = backend.concatenate([backend.reshape(each, (1, rows, columns)) for each in stack], 0)
        orthogonal = backend.multiply(newton_schulz(backend, together), size * math.sqrt(columns))
        for index, each in enumerate(stack):
            backend.copy_into(each, backend.reshape(backend.narrow(orthogonal, 0, index, 1), (rows, columns)))


def _stacks(backend: Primitives, matrices: Sequence[Array]) -> list[list[Array]]:
    """Matrices, shorter side first: those of one shape together, as many as STACK holds.

    Small ones are made orthogonal together, which costs fewer operations.
    """
    stacks: list[list[Array]] = []
    newest: dict[tuple[int, ...], list[Array]] = {}
    for each in matrices:
        matrix = backend.transpose(each, (1, 0)) if each.shape[0] > each.shape[1] else each
        stack = newest.get(matrix.shape, [])
        if not stack or (len(stack) + 1) * math.prod(matrix.shape) > STACK:
            stack = newest[matrix.shape] = []
            stacks.append(stack)
        stack.append(matrix)
    return stacks


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
