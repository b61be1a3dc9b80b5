"""How the next token is to be chosen from logits, and with which random number; and log-probabilities.

Pure functions of their arguments, in numpy. A random number depends on (seed, row, step) alone, so that what a
sequence draws depends on nothing that is done beside it.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import choice, rng

Logits = npt.NDArray[np.floating[Any]]
Choices = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; what is said first is done first.

    `logit_bias` is added to the logits of its ids. A repetition penalty r divides positive logits of ids that the
    prompt or the text has by r, and multiplies negative ones (Keskar et al. 2019); presence and frequency penalties are
    subtracted from logits of ids that the text after the prompt has, once and for each occurrence. Temperature 0 takes
    the likeliest token; top_k 0 and top_p 1 leave all tokens in (top-k: Fan et al. 2018; nucleus sampling: Holtzman et
    al. 2020); min_p leaves out tokens less likely than that share of the likeliest one's (Nguyen et al. 2024).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    seed: int = 42
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def problem(self) -> str | None:
        """What is wrong with a value, in a sentence; None when nothing is."""
        finite = (self.temperature, self.presence_penalty, self.frequency_penalty, *self.logit_bias.values())
        if not all(map(math.isfinite, finite)):
            return "A temperature, penalty or bias is not a finite number."
        for name, value, least, most in (
            ("temperature", self.temperature, 0, math.inf),
            ("top_k", self.top_k, 0, math.inf),
            ("top_p", self.top_p, 0, 1),
            ("min_p", self.min_p, 0, 1),
            ("seed", self.seed, 0, (1 << 64) - 1),
        ):
            if not least <= value <= most:
                return f"{name} is {value}, but must be from {least} to {most}."
        if not 0 < self.repetition_penalty < math.inf:
            return f"repetition_penalty is {self.repetition_penalty}, but must be above 0."
        return None

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are drawn from other logits than the model's."""
        return bool(
            self.logit_bias or self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )


@dataclass(frozen=True)
class LogProbs:
    """Natural logarithms of the model's probabilities at one position, before any sampling option.

    `chosen` is that of the token that stands there; `ids` are the likeliest tokens, `values` theirs, falling.
    """

    chosen: float
    ids: list[int]
    values: list[float]


def random_numbers(
    seeds: npt.NDArray[np.uint64], streams: npt.NDArray[np.uint64], steps: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """The numbers in [0, 1), of 24 bits, with which these steps of sequences are drawn; streams are those of
    `random_stream`, and the arrays have one shape."""
    return (rng.first_random_bits(seeds, streams, steps) >> np.uint32(8)) / 2.0**24


def random_number(seed: int, stream: int, step: int) -> float:
    """One of `random_numbers`."""
    return (int(rng.random_bits(1, seed, stream, step)[0]) >> 8) / 2.0**24


@functools.lru_cache(1024)
def random_stream(row: int) -> int:
    """The stream of random numbers that sequence `row` draws with."""
    return rng.stream_of("sample", row)


def log_probs(logits: Logits, token: int, count: int) -> LogProbs:
    """Of `token` and of the `count` likeliest ones, from logits [V]."""
    values = log_softmax(logits.astype(np.float64))
    likeliest = choice.likeliest(values, min(count, len(values)))
    likeliest = likeliest[np.argsort(-values[likeliest], kind="stable")]
    return LogProbs(float(values[token]), likeliest.tolist(), values[likeliest].tolist())


def log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x - logsumexp(x) over the last axis."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
