"""The optimizer that a training configuration names (`--optim`)."""

from alpha.config import TrainingConfig
from alpha.optimizer import Optimizer
from alpha.optimizer_adafactor import Adafactor
from alpha.optimizer_adamw import AdamW
from alpha.optimizer_lion import Lion
from alpha.optimizer_muon import Muon
from alpha.optimizer_sgd import SGD
from alpha.parameters import Parameters


def make_optimizer(parameters: Parameters, training: TrainingConfig) -> Optimizer:
    """A new optimizer of the parameters; all its state is zero."""
    betas = (training.beta1, training.beta2)
    if training.optim == "adamw":
        return AdamW(parameters, *betas, training.eps, training.weight_decay)
    if training.optim == "lion":
        return Lion(parameters, *betas, training.weight_decay)
    if training.optim == "adafactor":
        return Adafactor(parameters, training.weight_decay)
    if training.optim == "sgd":
        return SGD(parameters, training.beta1, training.weight_decay)
    if training.optim == "muon":
        return Muon(parameters, *betas, training.eps, training.weight_decay)
    raise ValueError(f"no optimizer is called {training.optim!r}")
