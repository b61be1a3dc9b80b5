"""Muon: momentum whose matrices are made orthogonal by Newton-Schulz iteration (Jordan 2024).

Embeddings, the output head and vectors go to AdamW, as the author advises. The update is scaled so that its elements
are about as large as those of AdamW's, and one learning rate serves both (Liu et al. 2025, section 2.2).
"""

import math

from alpha.backend import Backend, UpdateControl
from alpha.backend_primitives import Array
from alpha.optimizer import Optimizer, parameter_groups
from alpha.optimizer_adamw import AdamW
from alpha.parameters import Parameters, ParameterSpec

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_EPSILON = 1e-7
UPDATE_SCALE = 0.2
EMBEDDINGS = ("wte", "wpe", "lm_head")


class Muon(Optimizer):
    """Muon on the matrices between embedding and head, AdamW on the rest; weight decay on matrices only."""

    def __init__(self, parameters: Parameters, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
        """The betas and epsilon are those of AdamW."""
        super().__init__(parameters)
        self.weight_decay = weight_decay
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters, orthogonalized)]
        self._adamw = AdamW(
            parameters, beta1, beta2, epsilon, weight_decay, chosen=lambda spec: not orthogonalized(spec)
        )

    def update(self, control: UpdateControl) -> None:
        for group, momentum in self._momenta:
            parts = zip(group.views(group.values), group.views(group.gradients), group.views(momentum), strict=True)
            for (_, values), (_, gradient), (_, matrix_momentum) in parts:
                self._update(values, gradient, matrix_momentum, control)
        self._adamw.update(control)

    def state(self) -> dict[str, Array]:
        arrays = self._adamw.state()
        for group, momentum in self._momenta:
            arrays |= group.named("momentum", momentum)
        return arrays

    def _update(self, values: Array, gradient: Array, momentum: Array, control: UpdateControl) -> None:
        """m = 0.95 m + g;  p = p - lr weight_decay p - lr scale orthogonalize(g + 0.95 m)."""
        backend = self.backend
        g = backend.multiply(gradient, control.gradient_scale)
        m = backend.add(backend.multiply(momentum, MOMENTUM), g)
        backend.copy_into_if(control.accept, momentum, m)
        direction = orthogonalize(backend, backend.add(g, backend.multiply(m, MOMENTUM)))
        step = backend.multiply(direction, UPDATE_SCALE * math.sqrt(max(values.shape)))
        backend.decayed_step(values, step, control, self.weight_decay)


def orthogonalized(spec: ParameterSpec) -> bool:
    """Whether Muon itself updates a parameter: a matrix that is neither an embedding nor the output head."""
    return len(spec.shape) == 2 and spec.name.partition(".")[0] not in EMBEDDINGS


def orthogonalize(backend: Backend, matrix: Array) -> Array:
    """About U V^T of a matrix's singular value decomposition U S V^T: singular values come out near 1."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else backend.transpose(matrix, (1, 0))  # the Gram matrix is of the shorter side
    norm = backend.sqrt(backend.sum_of_squares(matrix))
    x = backend.divide(x, backend.add(norm, NORM_EPSILON))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = backend.matmul(x, backend.transpose(x, (1, 0)))
        polynomial = backend.add(backend.multiply(gram, b), backend.multiply(backend.matmul(gram, gram), c))
        x = backend.add(backend.multiply(x, a), backend.matmul(polynomial, x))
    return x if wide else backend.transpose(x, (1, 0))
