"""Choosing a token from its logits with a random number: what drawing a text means, for all backends."""

from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating[Any]]


def choose(logits: Logits, temperature: float, top_k: int, top_p: float, min_p: float, number: float) -> int:
    """A token from logits [V], a pure function of its arguments; see `Backend.choose`. The number is in [0, 1)."""
    if temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # a tiny temperature leaves the likeliest token, at 0, and the rest at -infinity
        scaled = (logits.astype(np.float64) - np.max(logits)) / temperature
    kept = np.arange(len(scaled))
    if 0 < top_k < len(scaled):
        kept = likeliest(scaled, top_k)
    weights = np.exp(scaled[kept])
    if top_p < 1.0:
        # The smallest set of likeliest tokens that reaches top_p; always at least one.
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        kept, weights = _at(np.sort(order[:count]), kept, weights)
    if min_p:
        kept, weights = _at(np.flatnonzero(weights >= min_p), kept, weights)  # the likeliest one's weight is 1
    cumulative = np.cumsum(weights)
    draw = number * cumulative[-1]
    return int(kept[min(int(np.searchsorted(cumulative, draw, side="right")), len(kept) - 1)])


def likeliest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """The places of the `count` largest values, rising; of equal ones the first."""
    if count <= 0 or count >= len(values):
        return np.arange(len(values) if count else 0)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.sort(np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]]))


def _at(
    places: npt.NDArray[np.intp], kept: npt.NDArray[np.intp], weights: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    return kept[places], weights[places]
