"""Whether a training run makes sense before it starts: enough data, enough tokens per parameter, not too many passes.

Knows only numbers; nothing about files or models.
"""

import math

from alpha.config import TrainingConfig
from alpha.errors import AlphaError


def plan(
    training: TrainingConfig,
    *,
    train_tokens: int,
    has_validation: bool,
    window: int,
    parameters: int,
    tokens_per_step: int,
) -> list[str]:
    """Warnings about a run, each a sentence with the numbers and what to do; empty when all is well.

    `tokens_per_step` is batch * accumSteps * block, and `window` is block + 1. Raises AlphaError when there is no
    validation data and `require_val_data` is set, and for any warning at all when `strict_planning` is set.
    """
    if training.require_val_data and not has_validation:
        raise AlphaError(
            "There is no validation data, which --requireValData asks for, because "
            f"{_no_validation(train_tokens, window)}."
        )
    seen = training.iters * tokens_per_step
    warnings = [
        warning
        for warning in (
            _validation_warning(has_validation, train_tokens, window),
            _tokens_warning(training, seen, train_tokens, parameters, tokens_per_step),
            _passes_warning(training, seen, train_tokens, tokens_per_step),
        )
        if warning
    ]
    if warnings and training.strict_planning:
        raise AlphaError(" ".join([*warnings, "With --strictPlanning this run is refused."]))
    return warnings


def _validation_warning(has_validation: bool, train_tokens: int, window: int) -> str:
    if has_validation:
        return ""
    return f"There is no validation data, so overfitting will not show, because {_no_validation(train_tokens, window)}."


def _no_validation(train_tokens: int, window: int) -> str:
    return (
        f"a tenth of the corpus's {train_tokens:,} tokens is less than one window of {window:,}; "
        f"give --valData, more data or a smaller --block"
    )


def _tokens_warning(
    training: TrainingConfig, seen: int, train_tokens: int, parameters: int, tokens_per_step: int
) -> str:
    wanted = training.min_tokens_per_param * parameters
    if seen >= wanted:
        return ""
    iters = math.ceil(wanted / tokens_per_step)
    # More steps are no remedy when they would only repeat the data more often than is good.
    too_many_passes = iters * tokens_per_step > training.warn_dataset_passes * train_tokens
    remedy = (
        "use a smaller model or more data" if too_many_passes else f"raise --iters to {iters} or use a smaller model"
    )
    return (
        f"The run sees {seen:,} tokens, {seen / parameters:.3g} for each of {parameters:,} parameters and fewer than "
        f"--minTokensPerParam={training.min_tokens_per_param:g}; {remedy}."
    )


def _passes_warning(training: TrainingConfig, seen: int, train_tokens: int, tokens_per_step: int) -> str:
    passes = seen / train_tokens
    if passes > training.max_dataset_passes:
        limit, flag, risk = training.max_dataset_passes, "maxDatasetPasses", "the model will memorize them"
    elif passes > training.warn_dataset_passes:
        limit, flag, risk = training.warn_dataset_passes, "warnDatasetPasses", "the model may overfit"
    else:
        return ""
    iters = math.floor(training.warn_dataset_passes * train_tokens / tokens_per_step)
    remedy = f"use more data or lower --iters to {iters}" if iters else "use more data"
    return (
        f"The run makes {passes:.3g} passes over {train_tokens:,} training tokens, more than --{flag}={limit:g}, so "
        f"that {risk}; {remedy}."
    )
