"""Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

from alpha.backend import UpdateControl
from alpha.backend_primitives import Array
from alpha.optimizer import Optimizer, parameter_groups
from alpha.parameters import Parameters


class Lion(Optimizer):
    """Lion on all parameters; weight decay, which is decoupled, on matrices only."""

    def __init__(self, parameters: Parameters, beta1: float, beta2: float, weight_decay: float) -> None:
        super().__init__(parameters)
        self.beta1 = beta1
        self.beta2 = beta2
        self.weight_decay = weight_decay
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters)]

    def update(self, control: UpdateControl) -> None:
        for group, momentum in self._momenta:
            decay = group.weight_decay(self.weight_decay)
            self.backend.lion_update(group.values, group.gradients, momentum, control, self.beta1, self.beta2, decay)

    def state(self) -> dict[str, Array]:
        return {name: view for group, flat in self._momenta for name, view in group.named("momentum", flat).items()}
