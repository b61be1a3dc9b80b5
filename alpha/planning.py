"""Whether a run makes sense: enough data, enough tokens per parameter, not too many passes."""

import math

from alpha.config import TrainingConfig
from alpha.errors import AlphaError, percent
from alpha.option import LARGEST_INTEGER

LEAST_SHARE = 0.01
"""Less of the validation data in the training data passes unremarked: texts of one kind have common phrases."""


def planning_warnings(
    training: TrainingConfig,
    *,
    train_tokens: int,
    has_validation: bool,
    window: int,
    parameters: int,
    tokens_per_step: int,
    shared_validation: float = 0.0,
) -> list[str]:
    """Warnings about a run, each a sentence with the numbers and what to do; empty when all is well.

    `tokens_per_step` is batch * accumSteps * block, `window` is block + 1, and `shared_validation` the share of the
    validation text that is in the training text, too. Raises AlphaError when there is no validation data and
    `require_val_data` is set, and for any warning at all when `strict_planning` is set.
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
            _sharing_warning(shared_validation),
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


def _sharing_warning(share: float) -> str:
    if share < LEAST_SHARE:
        return ""
    return (
        f"{percent(share)} of the sections of the validation data are equal to sections of the training data, so the "
        "validation loss does not say how well other text is predicted; give other text with --valData, or leave it "
        "out."
    )


def _tokens_warning(
    training: TrainingConfig, seen: int, train_tokens: int, parameters: int, tokens_per_step: int
) -> str:
    wanted = training.min_tokens_per_param * parameters
    if seen >= wanted or training.init:  # most of what the weights are to learn, they know
        return ""
    # More steps are no remedy when they would only repeat the data more often than is good, or are beyond all numbers.
    most = min(training.warn_dataset_passes * train_tokens, LARGEST_INTEGER * tokens_per_step)
    remedy = "use a smaller model or more data"
    if wanted <= most and (iters := math.ceil(wanted / tokens_per_step)) * tokens_per_step <= most:
        remedy = f"raise --iters to {iters} or use a smaller model"
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
    # The limits may be in any order, and the one that is not reached may be beyond all numbers.
    most = min(training.warn_dataset_passes, training.max_dataset_passes)
    iters = math.floor(most * train_tokens / tokens_per_step)
    remedy = f"use more data or lower --iters to {iters}" if iters else "use more data"
    return (
        f"The run makes {passes:.3g} passes over {train_tokens:,} training tokens, more than --{flag}={limit:g}, so "
        f"that {risk}; {remedy}."
    )
