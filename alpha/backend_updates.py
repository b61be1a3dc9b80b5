"""What optimizers need of a backend, composed of primitives: steps in place, steered by arrays that live there, too."""

from collections.abc import Sequence
from dataclasses import dataclass

from alpha.backend_primitives import Array, Primitives
from alpha.orthogonal import orthogonalize


@dataclass(frozen=True)
class UpdateControl:
    """The numbers that steer an optimizer step; arrays of shape [1], because they live where the step runs.

    `accept` is boolean: when false, the update leaves parameters and state as they are, whatever the gradients hold.
    """

    learning_rate: Array
    gradient_scale: Array
    accept: Array


@dataclass(frozen=True)
class AdamControl(UpdateControl):
    """With the bias corrections 1 - beta1^t and 1 - beta2^t for the t-th accepted step."""

    correction1: Array
    correction2: Array


class Updates(Primitives):
    """Fused operations, as those of `Backend`."""

    def sum_of_squares(self, x: Array) -> Array:
        """The sum of the squares of all elements, shape [1]."""
        return self.reshape(self.sum(self.multiply(x, x), tuple(range(len(x.shape)))), (1,))

    def copy_into_if(self, condition: Array, target: Array, source: Array) -> None:
        """Overwrite `target`, in place, with `source` where the boolean array `condition` is true."""
        self.copy_into(target, self.where(condition, source, target))

    def adamw_update(
        self,
        parameter: Array,
        gradient: Array,
        first: Array,
        second: Array,
        control: AdamControl,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
    ) -> None:
        """One AdamW step (Loshchilov and Hutter 2019), in place on `parameter` and on its moments.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
        p = p - lr weight_decay p - lr (m / correction1) / (sqrt(v / correction2) + epsilon).
        """
        g = self.multiply(gradient, control.gradient_scale)
        m = self.add(self.multiply(first, beta1), self.multiply(g, 1.0 - beta1))
        v = self.add(self.multiply(second, beta2), self.multiply(self.multiply(g, g), 1.0 - beta2))
        denominator = self.add(self.sqrt(self.divide(v, control.correction2)), epsilon)
        step = self.divide(self.divide(m, control.correction1), denominator)
        self.copy_into_if(control.accept, first, m)
        self.copy_into_if(control.accept, second, v)
        self.decayed_step(parameter, step, control, weight_decay)

    def lion_update(
        self,
        parameter: Array,
        gradient: Array,
        momentum: Array,
        control: UpdateControl,
        beta1: float,
        beta2: float,
        weight_decay: float,
    ) -> None:
        """One Lion step (Chen et al. 2023, algorithm 2), in place on `parameter` and on its momentum.

        p = p - lr weight_decay p - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g.
        """
        g = self.multiply(gradient, control.gradient_scale)
        step = self.sign(self.add(self.multiply(momentum, beta1), self.multiply(g, 1.0 - beta1)))
        m = self.add(self.multiply(momentum, beta2), self.multiply(g, 1.0 - beta2))
        self.copy_into_if(control.accept, momentum, m)
        self.decayed_step(parameter, step, control, weight_decay)

    def sgd_update(
        self,
        parameter: Array,
        gradient: Array,
        momentum: Array,
        control: UpdateControl,
        beta: float,
        weight_decay: float,
    ) -> None:
        """One step of gradient descent with momentum, in place on `parameter` and on its momentum.

        m = beta m + g;  p = p - lr weight_decay p - lr m.
        """
        m = self.add(self.multiply(momentum, beta), self.multiply(gradient, control.gradient_scale))
        self.copy_into_if(control.accept, momentum, m)
        self.decayed_step(parameter, m, control, weight_decay)

    def momentum_update(
        self, momentum: Array, gradient: Array, step: Array, control: UpdateControl, beta: float
    ) -> None:
        """Nesterov's momentum (as in Sutskever et al. 2013), in place on `momentum` and on the step that it gives.

        m = beta m + g;  step = g + beta m.
        """
        g = self.multiply(gradient, control.gradient_scale)
        m = self.add(self.multiply(momentum, beta), g)
        self.copy_into_if(control.accept, momentum, m)
        self.copy_into_if(control.accept, step, self.add(g, self.multiply(m, beta)))

    def orthogonalize(self, matrices: Sequence[Array], size: float) -> None:
        """Replace each matrix [R, C], in place, by about U V^T of its singular value decomposition U S V^T, times
        size sqrt(max(R, C)), so that the root mean square of its elements is about `size`."""
        orthogonalize(self, matrices, size)

    def decayed_step(self, parameter: Array, step: Array, control: UpdateControl, weight_decay: float) -> None:
        """p = p (1 - lr weight_decay) - lr step, in place, when the control accepts it (Loshchilov and Hutter 2019)."""
        kept = self.subtract(1.0, self.multiply(control.learning_rate, weight_decay))
        updated = self.subtract(self.multiply(parameter, kept), self.multiply(step, control.learning_rate))
        self.copy_into_if(control.accept, parameter, updated)
