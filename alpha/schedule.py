"""The learning rate of each step: linear warm-up, then cosine decay or stable and linear decay."""

import math

from alpha.config import TrainingConfig


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The learning rate of step 0, 1, ... of a resolved configuration.

    Warm-up ends in step W - 1 with `lr` and begins in step 0 with lr / W, where W is `warmup_iters`, or 1 for none.
    `cosine` decays from there (Loshchilov and Hutter 2017, without restarts); `wsd` stays at `lr` and decays linearly
    over the last `decay_fraction` of all steps (Hu et al. 2024). Either reaches `lr_min` in the last step and stays
    there, except when no step is left to decay in: the warm-up takes the whole run, or `decay_fraction` is 0.
    """
    warmup = max(training.warmup_iters, 1)
    if step < warmup:
        return training.lr * ((step + 1) / warmup)
    decay_start = warmup
    if training.schedule == "wsd":
        decay_start = max(warmup, training.iters - round(training.decay_fraction * training.iters))
    if step < decay_start or decay_start >= training.iters:
        return training.lr
    progress = min((step + 1 - decay_start) / (training.iters - decay_start), 1.0)
    share = 1.0 - progress if training.schedule == "wsd" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.lr * share + training.lr_min * (1.0 - share)
