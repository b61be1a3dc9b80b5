"""How well a model predicts a token file. Holds one batch at a time, however large the file is."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpha.gpt import GPT
from alpha.sampler import Sampler, windows
from alpha.thread_choice import ThreadChoice
from alpha.token_file import TokenFile

Batches = Iterable[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats over `tokens` predictions; bits per byte of the UTF-8 text, by the file's bytes per token."""

    loss: float
    tokens: int
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that is too large for a float."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2.0) / self.bytes_per_token


def evaluate(
    model: GPT, file: TokenFile, batch: int, batches: int = 0, threads: ThreadChoice | None = None
) -> Evaluation:
    """Predict every token of a file but the first once, in windows of the model's block; or only `batches` batches.

    With `threads`, each batch is a repetition for it to measure.
    """
    every = windows(file.tokens, model.config.block, batch)
    return _mean_loss(model, file, itertools.islice(every, batches) if batches else every, threads)


def evaluate_part(model: GPT, file: TokenFile, batch: int, batches: int, seed: int) -> Evaluation:
    """Evaluate on `batches` batches of windows spread over the file, the same ones for the same arguments."""
    block = model.config.block
    if len(file.tokens) // (block + 1) <= batch * batches:
        return evaluate(model, file, batch)
    sampler = Sampler(file.tokens, block, batch, seed, packed=True)
    return _mean_loss(model, file, _split(sampler.batch_at(index) for index in range(batches)))


def _while_whole(file: TokenFile, batches: Batches) -> Batches:
    remaining = iter(batches)
    while True:
        file.require_whole()
        batch = next(remaining, None)
        if batch is None:
            return
        yield batch


def _split(batches: Iterable[npt.NDArray[np.int32]]) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    for batch in batches:
        yield batch[:, :-1], batch[:, 1:]


def _mean_loss(model: GPT, file: TokenFile, batches: Batches, threads: ThreadChoice | None = None) -> Evaluation:
    total, tokens = 0.0, 0
    backend = model.backend
    for ids, targets in _while_whole(file, batches):
        # Where the backend is numpy: a loss that is not finite is a result, a warning would add nothing.
        with threads.measured() if threads else contextlib.nullcontext(), np.errstate(all="ignore"):
            loss = float(backend.to_numpy(model.loss(backend.from_numpy(ids), backend.from_numpy(targets)).data))
        total += loss * targets.size
        tokens += targets.size
    return Evaluation(total / tokens if tokens else math.nan, tokens, file.text_bytes / max(1, len(file.tokens)))
