"""AdamW: Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019)."""

from collections.abc import Callable

from alpha.backend import AdamControl, UpdateControl
from alpha.backend_primitives import Array
from alpha.optimizer import Optimizer, parameter_groups
from alpha.parameters import Parameters, ParameterSpec


class AdamW(Optimizer):
    """AdamW on the chosen parameters; weight decay on matrices only."""

    def __init__(
        self,
        parameters: Parameters,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        chosen: Callable[[ParameterSpec], bool] = lambda spec: True,
    ) -> None:
        super().__init__(parameters)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self._moments = [(group, group.zeros(), group.zeros()) for group in parameter_groups(parameters, chosen)]
        self._correction1 = self.backend.zeros((1,), self.dtype)
        self._correction2 = self.backend.zeros((1,), self.dtype)

    def update(self, control: UpdateControl) -> None:
        correction1 = self._next_correction(self._correction1, self.beta1)
        correction2 = self._next_correction(self._correction2, self.beta2)
        adam_control = AdamControl(
            control.learning_rate, control.gradient_scale, control.accept, correction1, correction2
        )
        for group, first, second in self._moments:
            self.backend.adamw_update(
                group.values,
                group.gradients,
                first,
                second,
                adam_control,
                self.beta1,
                self.beta2,
                self.epsilon,
                group.weight_decay(self.weight_decay),
            )
        self.backend.copy_into_if(control.accept, self._correction1, correction1)
        self.backend.copy_into_if(control.accept, self._correction2, correction2)

    def state(self) -> dict[str, Array]:
        arrays = {"correction1": self._correction1, "correction2": self._correction2}
        for group, first, second in self._moments:
            arrays |= group.named("first_moment", first) | group.named("second_moment", second)
        return arrays

    def _next_correction(self, correction: Array, beta: float) -> Array:
        """1 - beta^(t+1) from 1 - beta^t; as a recurrence it neither cancels nor needs a power."""
        return self.backend.add(self.backend.multiply(correction, beta), 1.0 - beta)
