"""Runs beside each other: the options in which they differ, and their losses after equal steps and equal tokens."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpha.config import ARCHITECTURES, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.errors import AlphaError, UsageError
from alpha.option import options_of, to_mapping
from alpha.run import RunConfig, read_config
from alpha.run_notes import read_notes
from alpha.run_reader import FollowedRun, id_of
from alpha.series import Curve, smooth

SMOOTHING = 0.95
"""The memory of the mean that stands for the training loss; see `series.smooth`."""

_PLACES = ("resume", "config", "runDir", "log")


@dataclass(frozen=True)
class Losses:
    """The losses of several runs at the points of one axis: training, smoothed, and the nearest earlier validation.

    `train[i][j]` and `validation[i][j]` are those of run i at `points[j]`; NaN before the first and after the last.
    """

    points: Curve
    train: tuple[Curve, ...]
    validation: tuple[Curve, ...]


class ComparedRun:
    """A run whose metrics are read as a whole. Raises AlphaError when its configuration or metrics cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.title = read_notes(folder).name or id_of(folder)
        self.config = read_config(folder)
        self._followed = FollowedRun(folder)
        while not self._followed.update():
            pass
        if not self._followed.has_metrics:
            raise AlphaError(self._followed.problem)
        self.metrics = self._followed.metrics

    def axis(self, name: str) -> Curve:
        """One of `run_metrics.AXES` for each row."""
        return self._followed.axis(name)

    def losses(self, axis: str, points: Curve) -> tuple[Curve, Curve]:
        """The smoothed training loss at some points, and the validation loss that was the last one then."""
        x = self.axis(axis)
        at, loss = self.metrics.curve("loss", x)
        train = (
            np.interp(points, at, smooth(loss, SMOOTHING), left=np.nan, right=np.nan) if len(at) else points * np.nan
        )
        validated_at, validation_loss = self.metrics.curve("valLoss", x)
        place = np.searchsorted(validated_at, points, side="right")
        known = np.append(np.nan, validation_loss)[place]
        return train, np.where(points <= (x[-1] if len(x) else -1), known, np.nan)


def compare(runs: Sequence[ComparedRun], axis: str, count: int) -> Losses:
    """The losses at `count` points of an axis that all runs have reached, equally spaced, in whole steps or tokens."""
    ends = [np.nanmax(x, initial=0.0) for x in (run.axis(axis) for run in runs)]
    points = np.unique(np.ceil(np.linspace(0, min(ends, default=0.0), count + 1)[1:]))
    points = points[points > 0]
    pairs = [run.losses(axis, points) for run in runs]
    return Losses(points, tuple(train for train, _ in pairs), tuple(validation for _, validation in pairs))


def differing_options(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """The values of each run, by flag, where they are not all the same; without where a run or its settings lie."""
    mappings = [to_mapping(config.model) | to_mapping(config.training) for config in configs]
    rows = {flag: [mapping[flag] for mapping in mappings] for flag in (mappings[0] if mappings else {})}
    return {flag: row for flag, row in rows.items() if flag not in _PLACES and any(each != row[0] for each in row)}


def changed_options(config: RunConfig) -> dict[str, Any]:
    """The options of a run that are not what they would be had nobody set them, by flag."""
    model, training = config.model, config.training
    changed = {}
    for option in options_of(ModelConfig):
        default = ARCHITECTURES[model.arch].get(option.name, option.default)
        unset = _resolved(resolve_model, model, option.name, default)
        if getattr(model, option.name) != unset:
            changed[option.flag] = getattr(model, option.name)
    for option in options_of(TrainingConfig):
        unset = _resolved(resolve_training, training, option.name, option.default)
        if option.flag not in _PLACES and getattr(training, option.name) != unset:
            changed[option.flag] = getattr(training, option.name)
    return changed


def _resolved(resolve: Callable[[Any], Any], values: ModelConfig | TrainingConfig, name: str, default: Any) -> Any:
    """What an option would be with the others as they are; a zero may mean "chosen from the rest"."""
    try:
        return getattr(resolve(dataclasses.replace(values, **{name: default})), name)
    except UsageError:  # the default does not go together with the rest
        return default
