"""How well a model predicts a token file. Holds one batch at a time, however large the file is.

What is evaluated is stated here once, for `alpha train` and `alpha eval`: windows of `block` tokens that follow each
other from the beginning of the file, so that every token but the first is predicted once; or, for a model that was
trained so, windows that whole documents share (see packing). A part is `WINDOWS` of them
for each of --evalIters, whatever the batch: the first ones, or for the part of a corpus that was held out as many at
equal distances, so that every file of the corpus has its share.

The loss is the mean over all predicted tokens, in nats; targets that are negative do not count. Bits per byte are of
text: the loss of the predicted tokens but ends of text, over the UTF-8 bytes of exactly these tokens. An end of text is
predicted, but is no text; where the vocabulary lacks a part of the text, its bytes are lost and there are no bits per
byte.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend_primitives import Array
from alpha.config import TrainingConfig
from alpha.gpt import GPT
from alpha.loss_mask import LossMask
from alpha.mixture import Mixture
from alpha.packing import PackedDocuments
from alpha.sampler import windows
from alpha.thread_choice import ThreadChoice
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]
Batches = Iterable[tuple[Ids, ...]]
"""Ids, targets and, where documents share windows, begins (see `GPT.hidden`)."""

WINDOWS = 4
"""Windows for each of --evalIters."""

STEP_TOKENS = 2048
"""Tokens that are computed at a time, in whole windows."""

SECTION_BYTES = 256
MOST_SECTIONS = 4096
_CHUNK = 1 << 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_BASE = np.uint64(0xD1342543DE82EF95)


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


class Evaluator:
    """Evaluates a model, whose weights may change in between.

    The batches of a text are computed in steps of one size, so that its figures have the same bits whatever the batch.
    A step is recorded once for each shape, and several may be under way. With `threads`, each step is a repetition for
    it to measure.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, threads: ThreadChoice | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._threads = threads
        self._windows = max(1, STEP_TOKENS // model.config.block)
        self._lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
        self._lengths[tokenizer.end_of_text] = 0
        self._programs: dict[tuple[tuple[int, ...], int], Callable[..., Array]] = {}

    def file(
        self,
        file: TokenFile,
        batch: int,
        iters: int = 0,
        spread: bool = False,
        mask: LossMask | None = None,
        documents: PackedDocuments | None = None,
    ) -> Evaluation:
        """Predict a file, or `iters` times WINDOWS windows of it: the first, or with `spread` at equal distances.

        `batch` windows are read at a time, or somewhat more. With a `mask` of the file, tokens that do not count in it
        are not predicted; with `documents`, these are the file's windows.
        """
        count = WINDOWS * iters
        batch = -(-batch // self._windows) * self._windows
        every: Batches = windows(file.tokens, self._model.config.block, batch, count, spread, mask)
        if documents is not None:
            every = documents.batches(batch, count, spread)
        return self.batches(_while_whole(file, every))

    def batches(self, batches: Batches) -> Evaluation:
        """Predict the targets of batches, arrays [B, T]; negative targets do not count.

        The loss is NaN when none counts.
        """
        total, end_total, tokens, text_bytes, unknown = 0.0, 0.0, 0, 0, 0
        for targets, losses in self._under_way(batches):
            values = self._model.backend.to_numpy(losses).astype(np.float64)
            total += float(values.sum())
            end_total += float(values[targets == self._tokenizer.end_of_text].sum())
            counted = targets[targets >= 0]
            tokens += counted.size
            text_bytes += int(self._lengths[counted].sum())
            unknown += self._tokenizer.count_unknown(counted)
        mean = total / tokens if tokens else math.nan
        return Evaluation(mean, tokens, unknown, (total - end_total) / math.log(2.0), text_bytes)

    def _under_way(self, batches: Batches) -> Iterator[tuple[Ids, Array]]:
        """The targets of each step and their losses [B, T], while the backend works on the next ones."""
        started: deque[tuple[Ids, Array]] = deque()
        for batch in batches:
            for first in range(0, len(batch[0]), self._windows):
                step = [each[first : first + self._windows] for each in batch]
                started.append((step[1], self._start(*step)))
                if len(started) >= self._model.backend.steps_in_flight:
                    yield started.popleft()
        yield from started

    def _start(self, *step: Ids) -> Array:
        """The losses of a step, [B, T], of ids, targets and maybe begins."""
        backend, form = self._model.backend, (step[0].shape, len(step))
        if form not in self._programs:
            self._programs[form] = backend.record(self._model.losses)
        # Where the backend is numpy: a loss that is not finite is a result, a warning would add nothing.
        with self._threads.measured() if self._threads else contextlib.nullcontext(), np.errstate(all="ignore"):
            return self._programs[form](*(backend.from_numpy(np.ascontiguousarray(each)) for each in step))


class Validation:
    """The validation data of a run, whose loss is measured on the way."""

    def __init__(
        self,
        model: GPT,
        mixture: Mixture,
        masks: Sequence[LossMask | None],
        tokenizer: Tokenizer,
        training: TrainingConfig,
    ) -> None:
        """`masks` are those of the parts' validation data, None where all of it counts."""
        self._evaluator = Evaluator(model, tokenizer)
        self._mixture = mixture
        self._masks = masks
        self._training = training
        self._documents = [
            PackedDocuments(part.data.validation, model.config.block, tokenizer, mask)
            if training.pack_documents and part.data.validation is not None
            else None
            for part, mask in zip(mixture.parts, masks, strict=True)
        ]

    def losses(self) -> dict[str, float]:
        """The validation loss as `valLoss`, and where no text is lost `valBitsPerByte`; of a mixture the means by the
        shares, and the loss of each part."""
        training, losses, total = self._training, {"valLoss": 0.0}, 0
        bits: list[float | None] = []
        # A text that is given is read from its beginning, as `alpha eval` does; what was held out has many beginnings.
        held_out = not training.val_data
        for index in self._mixture.evaluated:
            part, mask, documents = self._mixture.parts[index], self._masks[index], self._documents[index]
            assert part.data.validation is not None
            file, iters = part.data.validation, training.eval_iters
            found = self._evaluator.file(file, training.batch, iters, held_out, mask, documents)
            losses["valLoss"] += part.share * found.loss
            bits.append(None if found.bits_per_byte is None else part.share * found.bits_per_byte)
            total += part.share
            if part.name and held_out:
                losses[f"valLoss/{part.name}"] = found.loss
        losses["valLoss"] /= total
        if None not in bits:
            losses["valBitsPerByte"] = sum(filter(None, bits)) / total
        return losses


def losses_in_words(losses: Mapping[str, float]) -> str:
    """What `Validation.losses` gives, as the end of a sentence; nothing where there is nothing."""
    if not losses:
        return ""
    parts = [f"{name.partition('/')[2]} {loss:.4f}" for name, loss in losses.items() if "/" in name]
    words = f", validation loss {losses['valLoss']:.4f}" + (f" ({', '.join(parts)})" if parts else "")
    bits = losses.get("valBitsPerByte")
    return words if bits is None else f"{words}, {bits:.4f} bits per byte"


def shared_share(train: TokenFile, validation: TokenFile) -> float:
    """The share of the validation text that stands in the training text, too, in sections of SECTION_BYTES bytes or so.

    Sections are sought at every place of the training text; of a long validation text, MOST_SECTIONS at equal distances
    are. A text that repeats itself shares its sections with itself.
    """
    bytes_per_token = max(1.0, validation.text_bytes / len(validation.tokens))
    length = min(max(1, round(SECTION_BYTES / bytes_per_token)), len(validation.tokens), len(train.tokens))
    count = len(validation.tokens) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_SECTIONS)).astype(np.int64)) * length
    wanted = np.concatenate([_section_hashes(validation.tokens[start : start + length], length) for start in chosen])
    short = np.zeros(1 << 20, bool)
    short[wanted >> np.uint64(44)] = True  # most places of the training text are told apart by 20 bits
    found: set[int] = set()
    for start in range(0, len(train.tokens) - length + 1, _CHUNK):
        hashes = _section_hashes(train.tokens[start : start + _CHUNK + length - 1], length)
        candidates = hashes[short[hashes >> np.uint64(44)]]
        found.update(candidates[np.isin(candidates, wanted)].tolist())
    return float(np.mean([each in found for each in wanted.tolist()]))


def _while_whole(file: TokenFile, batches: Batches) -> Batches:
    remaining = iter(batches)
    while True:
        file.require_whole()
        batch = next(remaining, None)
        if batch is None:
            return
        yield batch


def _section_hashes(tokens: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.uint64]:
    """A hash of the `length` tokens from each place on: Karp and Rabin 1987, modulo 2^64, by running sums."""
    words = (tokens.astype(np.uint64) + np.uint64(1)) * _SPREAD
    words ^= words >> np.uint64(29)
    powers = np.multiply.accumulate(np.full(len(words) + 1, _BASE, np.uint64))
    inverses = np.multiply.accumulate(np.full(len(words) + 1, pow(int(_BASE), -1, 1 << 64), np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[:-1], dtype=np.uint64)])
    hashes: npt.NDArray[np.uint64] = (sums[length:] - sums[:-length]) * inverses[: len(sums) - length]
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _SPREAD
    return hashes ^ (hashes >> np.uint64(29))
