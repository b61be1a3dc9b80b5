from dataclasses import replace
from typing import Any

import pytest

from alpha.config import TrainingConfig
from alpha.errors import AlphaError, percent
from alpha.planning import planning_warnings

TRAINING = TrainingConfig(iters=1000)


def warnings(training: TrainingConfig = TRAINING, **changes: Any) -> list[str]:
    """Of a run of 1000 steps that is just within every limit: 1,000,000 tokens, 20 for each parameter, 8 passes."""
    numbers = {"train_tokens": 125_000, "has_validation": True, "window": 257}
    numbers |= {"parameters": 50_000, "tokens_per_step": 1000}
    return planning_warnings(training, **{**numbers, **changes})


def test_run_within_every_limit_has_no_warnings() -> None:
    assert warnings() == []
    assert warnings(replace(TRAINING, strict_planning=True, require_val_data=True)) == []


def test_too_few_tokens_for_the_parameters() -> None:
    assert warnings(parameters=50_001, train_tokens=10_000_000) == [
        "The run sees 1,000,000 tokens, 20 for each of 50,001 parameters and fewer than --minTokensPerParam=20; "
        "raise --iters to 1001 or use a smaller model."
    ]


def test_more_steps_are_not_advised_when_they_would_repeat_the_data_too_often() -> None:
    (warning,) = warnings(parameters=50_001)
    assert warning.endswith("use a smaller model or more data.")


def test_many_passes() -> None:
    assert warnings(train_tokens=100_000) == [
        "The run makes 10 passes over 100,000 training tokens, more than --warnDatasetPasses=8, so that the model may "
        "overfit; use more data or lower --iters to 800."
    ]


def test_far_too_many_passes_are_one_stronger_warning() -> None:
    assert warnings(train_tokens=40_000) == [
        "The run makes 25 passes over 40,000 training tokens, more than --maxDatasetPasses=20, so that the model will "
        "memorize them; use more data or lower --iters to 320."
    ]


def test_no_number_of_steps_is_advised_when_one_step_is_too_much() -> None:
    (warning,) = warnings(train_tokens=100)
    assert warning.endswith("; use more data.")


def test_advice_removes_the_warning_it_comes_with() -> None:
    assert warnings(replace(TRAINING, iters=1001), parameters=50_001, train_tokens=10_000_000) == []
    few_parameters = {"parameters": 10_000, "train_tokens": 100_000}
    assert warnings(replace(TRAINING, iters=800), **few_parameters) == []


def test_limits_are_the_configured_ones() -> None:
    (warning,) = warnings(replace(TRAINING, min_tokens_per_param=21.0), train_tokens=10_000_000)
    assert "--minTokensPerParam=21;" in warning
    (warning,) = warnings(replace(TRAINING, warn_dataset_passes=7.5))
    assert "--warnDatasetPasses=7.5," in warning
    (warning,) = warnings(replace(TRAINING, max_dataset_passes=7.9))
    assert "--maxDatasetPasses=7.9," in warning


@pytest.mark.parametrize("limit", [1e18, 1e30, 1e308, 1.7976931348623157e308])
def test_any_limit_that_the_options_accept_is_a_limit(limit: float) -> None:
    (warning,) = warnings(replace(TRAINING, min_tokens_per_param=limit))
    assert warning.endswith("use a smaller model or more data.")
    (warning,) = warnings(replace(TRAINING, min_tokens_per_param=limit, warn_dataset_passes=limit))
    assert len(warning) < 300
    assert warnings(replace(TRAINING, warn_dataset_passes=limit), train_tokens=7) != []
    assert warnings(replace(TRAINING, warn_dataset_passes=limit, max_dataset_passes=limit), train_tokens=7) == []


def test_missing_validation_data() -> None:
    (warning,) = warnings(has_validation=False)
    assert warning.startswith("There is no validation data") and "--valData" in warning
    with pytest.raises(AlphaError, match="no validation data, which --requireValData asks for"):
        warnings(replace(TRAINING, require_val_data=True), has_validation=False)


def test_strict_planning_refuses_the_run_with_every_warning() -> None:
    with pytest.raises(AlphaError) as caught:
        warnings(replace(TRAINING, strict_planning=True), train_tokens=100_000, parameters=1_000_000)
    message = str(caught.value)
    assert "--minTokensPerParam=20" in message and "--warnDatasetPasses=8" in message
    assert message.endswith("With --strictPlanning this run is refused.")


def test_percent() -> None:
    shares = (0, 1e-7, 0.00123, 0.05, 0.125, 0.994, 0.999, 1)
    assert [percent(share) for share in shares] == [
        "0%", "less than 0.01%", "0.12%", "5%", "12%", "99%", "more than 99%", "100%"
    ]  # fmt: skip
