"""Golden file of the optimizers: parameters after each of five steps on given gradients, by PyTorch in float64.

An implementation independent of Alpha; it imports nothing of Alpha. AdamW and SGD are torch.optim's own. Lion,
Adafactor and Muon are written out below from their papers and compared, on every generation, with torch.optim
(Adafactor, Muon) or with the unrolled sum of the definition (Lion).

Common to all: p is a parameter, g its gradient, m, v and the like start at zero, t counts from 1, and the learning rate
lr_t changes from step to step and is never folded into a state. Weight decay is decoupled and applied to matrices only,
before the update: p -= lr_t * weight_decay * p.

- AdamW (Loshchilov and Hutter 2017, algorithm 2; Kingma and Ba 2014, algorithm 1): m = b1 m + (1 - b1) g;
  v = b2 v + (1 - b2) g^2; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
- SGD with momentum (Sutskever et al. 2013, without Nesterov, in torch's form): m = b1 m + g; p -= lr m. torch.optim.SGD
  adds its weight decay to the gradient, so it runs here with none and the decoupled decay is applied beforehand.
- Lion (Chen et al. 2023, algorithm 2): p -= lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g; sign(0) = 0. The
  second beta is the paper's 0.99.
- Adafactor (Shazeer and Stern 2018, algorithms 4 and 5): b2_t = 1 - t^-0.8. For a matrix
  r_i = b2_t r_i + (1 - b2_t) mean_j(g_ij^2 + eps1), c_j = b2_t c_j + (1 - b2_t) mean_i(g_ij^2 + eps1) and
  v_ij = r_i c_j / mean(r); for a vector v = b2_t v + (1 - b2_t) (g^2 + eps1). Then u = g / sqrt(v) and
  p -= lr u / max(1, RMS(u) / d) with d = 1. No momentum, no relative step size, no scaling by the parameter's size: lr
  is external. The paper sums where this takes means; the v that results is the same.
- Muon (Jordan 2024): m = 0.95 m + g; n = g + 0.95 m (Nesterov); o = NewtonSchulz(n);
  p -= lr 0.2 sqrt(max(rows, columns)) o. The scale is that of Liu et al. 2025, "Muon is scalable for LLM training",
  section 2.2, with which a learning rate for AdamW fits. Newton-Schulz: X = n / (|n|_F + 1e-7), transposed when
  rows > columns; five times A = X X^T, X = 3.4445 X + (-4.7750 A + 2.0315 A^2) X; transposed back. Everything in
  float64. Vectors are updated by AdamW as above.

What torch.optim does otherwise, and how the comparison deals with it:

- torch.optim.Muon averages the momentum, m = 0.95 m + 0.05 g, n = 0.05 g + 0.95 m: the same n but for the factor 0.05,
  which the division by |n|_F removes, except that eps weighs 20 times more (parameters then differ by 2e-10). It takes
  max(|n|_F, eps), not |n|_F + eps, and it rounds n to bfloat16. The comparison sets eps to 0 on both sides and takes
  the rounding away, and then agrees to 1e-13; with the rounding, parameters agree to 4.4e-4, one per cent of the way
  they go.
- torch.optim.Adafactor multiplies lr by max(eps2, RMS(p)), lowers it to 1/sqrt(t) where it is larger, and takes
  max(v, eps1^2) instead of adding eps1 to g^2. The comparison makes eps2 so large that it is the whole factor, divides
  lr by it and multiplies the weight decay by it, and then agrees to 1e-13.

The gradients include what goes wrong easily: an element that is always zero, a row of a matrix that is zero until the
third step (an embedding of a token not yet seen), and magnitudes that vary by a factor of a thousand and more.
"""

import math
from collections.abc import Callable
from unittest import mock

import torch
from golden_file import Golden, main
from torch import Tensor

SHAPES = {"tall": (6, 4), "wide": (4, 10), "vector": (5,)}
LEARNING_RATES = (1e-2, 2e-2, 3e-2, 2e-2, 1e-2)
STEPS = len(LEARNING_RATES)
WEIGHT_DECAY = 0.1
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
OPTIONS: dict[str, dict[str, object]] = {
    "adamw": {**ADAM},
    "sgd": {"beta1": 0.9},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adafactor": {"decayExponent": 0.8, "eps1": 1e-30, "clippingThreshold": 1.0},
    "muon": {"momentum": 0.95, "newtonSchulzSteps": 5, "normEps": 1e-7, "updateScale": 0.2, **ADAM},
}
"""Beside the learning rates and the weight decay; muon's betas and eps are those of AdamW for its vectors."""

Step = Callable[[Tensor, Tensor, float], None]
"""Updates a parameter in place from its gradient and the learning rate; keeps its own state."""


class Lion:
    """Chen et al. 2023, algorithm 2, without the decay."""

    def __init__(self, parameter: Tensor) -> None:
        self.momentum = torch.zeros_like(parameter)

    def __call__(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        parameter -= lr * torch.sign(0.9 * self.momentum + 0.1 * gradient)
        self.momentum = 0.99 * self.momentum + 0.01 * gradient


class Adafactor:
    """Shazeer and Stern 2018, algorithms 4 (matrices) and 5 (vectors), with an external learning rate."""

    def __init__(self, parameter: Tensor) -> None:
        self.steps = 0
        self.factored = parameter.ndim == 2
        self.row = torch.zeros(parameter.shape[0], dtype=parameter.dtype)
        self.column = torch.zeros(parameter.shape[-1], dtype=parameter.dtype)

    def __call__(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        self.steps += 1
        beta2 = 1 - self.steps**-0.8
        square = gradient**2 + 1e-30
        if self.factored:
            self.row = beta2 * self.row + (1 - beta2) * square.mean(dim=1)
            self.column = beta2 * self.column + (1 - beta2) * square.mean(dim=0)
            variance = torch.outer(self.row, self.column) / self.row.mean()
        else:
            variance = self.row = beta2 * self.row + (1 - beta2) * square
        update = gradient / variance.sqrt()
        parameter -= lr * update / max(1.0, float(update.square().mean().sqrt()))


class Muon:
    """Jordan 2024 with the scale of Liu et al. 2025; matrices only."""

    def __init__(self, parameter: Tensor, norm_eps: float = 1e-7) -> None:
        self.momentum = torch.zeros_like(parameter)
        self.norm_eps = norm_eps

    def __call__(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        self.momentum = 0.95 * self.momentum + gradient
        update = orthogonalize(gradient + 0.95 * self.momentum, self.norm_eps)
        parameter -= lr * 0.2 * math.sqrt(max(parameter.shape)) * update


def orthogonalize(matrix: Tensor, norm_eps: float) -> Tensor:
    """Five Newton-Schulz steps towards the nearest matrix with orthonormal rows or columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + norm_eps)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def torch_step(make: Callable[[list[Tensor]], torch.optim.Optimizer], parameter: Tensor) -> Step:
    """A step of an optimizer of torch.optim. `parameter` is the very tensor that is updated."""
    optimizer = make([parameter])
    (group,) = optimizer.param_groups

    def step(updated: Tensor, gradient: Tensor, lr: float) -> None:
        group["lr"] = lr
        updated.grad = gradient.clone()
        optimizer.step()

    return step


def adamw_step(parameter: Tensor) -> Step:
    """torch.optim.AdamW without its decay, which `run` applies."""
    betas, eps = (ADAM["beta1"], ADAM["beta2"]), ADAM["eps"]
    return torch_step(lambda p: torch.optim.AdamW(p, betas=betas, eps=eps, weight_decay=0.0, foreach=False), parameter)


def sgd_step(parameter: Tensor) -> Step:
    """torch.optim.SGD with momentum."""
    return torch_step(lambda p: torch.optim.SGD(p, momentum=0.9, foreach=False), parameter)


def muon_step(parameter: Tensor) -> Step:
    """Muon for matrices, AdamW for vectors."""
    return Muon(parameter) if parameter.ndim == 2 else adamw_step(parameter)


def run(start: Callable[[Tensor], Step], initial: Tensor, gradients: Tensor) -> Tensor:
    """The parameter after each step, [STEPS, ...]; the optimizer that `start` makes does not decay weights."""
    parameter = initial.clone()
    step = start(parameter)
    decay = WEIGHT_DECAY if initial.ndim == 2 else 0.0
    results = []
    for lr, gradient in zip(LEARNING_RATES, gradients, strict=True):
        parameter -= lr * decay * parameter
        step(parameter, gradient, lr)
        results.append(parameter.clone())
    return torch.stack(results)


def run_torch(optimizer: torch.optim.Optimizer, factor: float, gradients: Tensor) -> Tensor:
    """The parameter after each step of an optimizer that decays weights itself; its lr is ours times `factor`."""
    (group,) = optimizer.param_groups
    (parameter,) = group["params"]
    results = []
    for lr, gradient in zip(LEARNING_RATES, gradients, strict=True):
        group["lr"] = lr * factor
        parameter.grad = gradient.clone()
        optimizer.step()
        results.append(parameter.clone())
    return torch.stack(results)


def inputs(generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initial parameters, and gradients [STEPS, ...] with the difficulties named above; representable in float32."""
    initial, gradients = {}, {}
    for name, shape in SHAPES.items():
        initial[name] = torch.randn(shape, generator=generator, dtype=torch.float64).float().double()
        gradient = torch.randn(STEPS, *shape, generator=generator, dtype=torch.float64)
        gradient *= 10 ** torch.empty(shape, dtype=torch.float64).uniform_(-2, 1, generator=generator)
        gradient.view(STEPS, -1)[:, 0] = 0
        gradients[name] = gradient.float().double()
    gradients["tall"][:2, 2] = 0
    return initial, gradients


def generate() -> Golden:
    """Inputs and the results of each optimizer."""
    initial, gradients = inputs(torch.Generator().manual_seed(1))
    optimizers: dict[str, Callable[[Tensor], Step]] = {
        "adamw": adamw_step,
        "sgd": sgd_step,
        "lion": Lion,
        "adafactor": Adafactor,
        "muon": muon_step,
    }
    tensors = {"learning_rates": torch.tensor(LEARNING_RATES, dtype=torch.float64)}
    for name in SHAPES:
        tensors[f"initial.{name}"] = initial[name]
        tensors[f"gradients.{name}"] = gradients[name]
        for optimizer, start in optimizers.items():
            tensors[f"{optimizer}.{name}"] = run(start, initial[name], gradients[name])
        verify(tensors, name)
    return tensors, {"options": {"weightDecay": WEIGHT_DECAY, **OPTIONS}}


def verify(tensors: dict[str, Tensor], name: str) -> None:
    """Compare the results for one parameter with torch.optim, or with the definition written another way."""
    initial, gradients = tensors[f"initial.{name}"], tensors[f"gradients.{name}"]
    matrix = initial.ndim == 2
    decay = WEIGHT_DECAY if matrix else 0.0

    adamw = torch.optim.AdamW([initial.clone()], betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, foreach=False)
    agree(tensors[f"adamw.{name}"], run_torch(adamw, 1.0, gradients), 1e-14)

    huge = 1e6
    adafactor = torch.optim.Adafactor(
        [initial.clone()], eps=(1e-30, huge), weight_decay=decay * huge, d=1.0, beta2_decay=-0.8, foreach=False
    )
    agree(tensors[f"adafactor.{name}"], run_torch(adafactor, 1 / huge, gradients), 1e-13)

    verify_lion(tensors[f"lion.{name}"], initial, gradients, decay)
    if matrix:
        exact = run(lambda parameter: Muon(parameter, norm_eps=0.0), initial, gradients)
        agree(tensors[f"muon.{name}"], exact, 1e-7)
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            agree(exact, run_torch(torch_muon(initial), 1.0, gradients), 1e-13)
        agree(tensors[f"muon.{name}"], run_torch(torch_muon(initial), 1.0, gradients), 2e-3)


def torch_muon(initial: Tensor) -> torch.optim.Optimizer:
    """torch.optim.Muon as near to ours as its options allow."""
    return torch.optim.Muon(
        [initial.clone()], weight_decay=WEIGHT_DECAY, momentum=0.95, eps=0.0, adjust_lr_fn="match_rms_adamw"
    )


def verify_lion(results: Tensor, initial: Tensor, gradients: Tensor, decay: float) -> None:
    """The momentum as the sum over earlier gradients that its recurrence unrolls to."""
    parameter = initial
    for t, lr in enumerate(LEARNING_RATES):
        momentum = sum((0.01 * 0.99 ** (t - 1 - k) * gradients[k] for k in range(t)), torch.zeros_like(initial))
        direction = 0.9 * momentum + (1 - 0.9) * gradients[t]
        if direction[gradients[t] != 0].abs().min() < 1e-6:
            raise ValueError("A sign is too near to zero to be the same in another precision; change the seed.")
        parameter = parameter * (1 - lr * decay) - lr * direction.sign()
        agree(results[t], parameter, 1e-14)


def agree(first: Tensor, second: Tensor, tolerance: float) -> None:
    """Raise unless the largest difference is within the tolerance."""
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


if __name__ == "__main__":
    main("Golden file of the optimizers.", {"optimizer.safetensors": generate})
