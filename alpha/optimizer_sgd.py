"""Stochastic gradient descent with momentum, in PyTorch's form: the momentum is a decaying sum of gradients."""

from alpha.backend import UpdateControl
from alpha.backend_primitives import Array
from alpha.optimizer import Optimizer, parameter_groups
from alpha.parameters import Parameters


class SGD(Optimizer):
    """Gradient descent on all parameters; weight decay, which is decoupled, on matrices only."""

    def __init__(self, parameters: Parameters, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters)]

    def update(self, control: UpdateControl) -> None:
        for group, momentum in self._momenta:
            decay = group.weight_decay(self.weight_decay)
            self.backend.sgd_update(group.values, group.gradients, momentum, control, self.momentum, decay)

    def state(self) -> dict[str, Array]:
        return {name: view for group, flat in self._momenta for name, view in group.named("momentum", flat).items()}
