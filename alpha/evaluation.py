"""How well a model predicts a token file. Holds one batch at a time, however large the file is.

What is evaluated is stated here once, for `alpha train` and `alpha eval`: windows of `block` tokens that follow each
other from the beginning of the file, so that every token but the first is predicted once. A part is `WINDOWS` of them
for each of --evalIters, whatever the batch: the first ones, or for the part of a corpus that was held out as many at
equal distances, so that every file of the corpus has its share.

The loss is the mean over all predicted tokens, in nats. Bits per byte are of text: the loss of the predicted tokens but
ends of text, over the UTF-8 bytes of exactly these tokens. An end of text is predicted, but is no text; where the
vocabulary lacks a part of the text, its bytes are lost and there are no bits per byte.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpha import ops
from alpha.autograd import Tensor
from alpha.gpt import GPT
from alpha.sampler import windows
from alpha.thread_choice import ThreadChoice
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer

Batches = Iterable[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]

WINDOWS = 4
"""Windows for each of --evalIters."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats over `tokens` predictions, of which `unknown` stand for text that the vocabulary lacks.

    `bits` and `text_bytes` are those of the predicted tokens but ends of text.
    """

    loss: float
    tokens: int
    unknown: int
    bits: float
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that is too large for a float."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """None where some of the text is lost, or there is none."""
        return None if self.unknown or not self.text_bytes else self.bits / self.text_bytes


def evaluate(
    model: GPT,
    file: TokenFile,
    tokenizer: Tokenizer,
    batch: int,
    iters: int = 0,
    spread: bool = False,
    threads: ThreadChoice | None = None,
) -> Evaluation:
    """Predict a file, or `iters` times WINDOWS windows of it: the first, or with `spread` at equal distances.

    `batch` windows are computed at a time. With `threads`, each batch is a repetition for it to measure.
    """
    return _sum_up(model, tokenizer, windows(file.tokens, model.config.block, batch, WINDOWS * iters, spread), threads)


def _sum_up(model: GPT, tokenizer: Tokenizer, batches: Batches, threads: ThreadChoice | None) -> Evaluation:
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    lengths[tokenizer.end_of_text] = 0
    total, end_total, tokens, text_bytes, unknown = 0.0, 0.0, 0, 0, 0
    for ids, targets in batches:
        # Where the backend is numpy: a loss that is not finite is a result, a warning would add nothing.
        with threads.measured() if threads else contextlib.nullcontext(), np.errstate(all="ignore"):
            loss, end_loss = _losses(model, ids, targets, tokenizer.end_of_text)
        total += loss
        end_total += end_loss
        tokens += targets.size
        text_bytes += int(lengths[targets].sum())
        unknown += tokenizer.count_unknown(targets)
    mean = total / tokens if tokens else math.nan
    return Evaluation(mean, tokens, unknown, (total - end_total) / math.log(2.0), text_bytes)


def _losses(
    model: GPT, ids: npt.NDArray[np.int32], targets: npt.NDArray[np.int32], end_of_text: int
) -> tuple[float, float]:
    """The summed loss of all targets, and that of the ends of text among them; ids and targets are [B, T]."""
    backend, config = model.backend, model.config
    hidden = model.hidden(backend.from_numpy(ids))
    rows = ops.reshape(hidden, (ids.size, config.dim))
    mean = model.loss_of(rows, backend.from_numpy(targets.reshape(-1)))
    ends = np.flatnonzero(targets.reshape(-1) == end_of_text).astype(np.int32)
    end_mean = 0.0
    if len(ends):
        chosen = Tensor(backend, backend.gather_rows(rows.data, backend.from_numpy(ends)))
        end_mean = float(
            backend.to_numpy(model.loss_of(chosen, backend.from_numpy(np.full(len(ends), end_of_text, np.int32))).data)
        )
    return float(backend.to_numpy(mean.data)) * targets.size, end_mean * len(ends)
