"""Inference: token ids in, token ids out, with a key-value cache."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError
from alpha.gpt import GPT, KeyValueCache
from alpha.sampling import Choices, Logits, SamplingOptions, choose, log_softmax
from alpha.thread_choice import ThreadChoice

Ends = Callable[[Sequence[int]], bool]
"""Whether a sequence is complete, given the ids that were added to it."""


def never(ids: Sequence[int]) -> bool:
    """The `Ends` of a sequence that only a number of ids ends."""
    return False


@dataclass
class Timing:
    """How long the parts of a generation took, in seconds, and the tokens they handled."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


@dataclass
class Engine:
    """Continues sequences with a model; with `threads`, each decoding step is a repetition for it to measure."""

    model: GPT
    timing: Timing = field(default_factory=Timing)
    threads: ThreadChoice | None = None

    def generate(
        self,
        prompt: Sequence[int],
        steps: int,
        sampling: SamplingOptions,
        sequences: int = 1,
        ends: Ends = never,
        first: Choices | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue `prompt` (at least one id) `sequences` times; yields, up to `steps` times, a token for each.

        The first token of each is one of `first`, if given. A sequence whose new ids `ends` accepts gets None from
        then on; when all have ended, the iterator ends. The last ids that fit the context count; where it is full,
        generation goes on from its newer half. Raises AlphaError when the model's outputs are not finite.
        """
        contexts = [list(prompt) for _ in range(sequences)]
        added: list[list[int]] = [[] for _ in range(sequences)]
        ended = [False] * sequences
        context = _Context(self.model, sequences, self.threads)
        for step in range(steps):
            start = time.perf_counter()
            logits, is_prefill, handled = context.next_logits(contexts)
            choices = first if step == 0 else None
            drawn = [
                _choose_among(choices, logits[row], sampling, row, step) if not ended[row] else None
                for row in range(sequences)
            ]
            # A sequence that has ended goes on being computed with its last token; its results are not used.
            self._count(is_prefill, handled * ended.count(False), time.perf_counter() - start)
            for row, token in enumerate(drawn):
                contexts[row].append(contexts[row][-1] if token is None else token)
                if token is not None:
                    added[row].append(token)
                    ended[row] = ends(added[row])
            yield drawn
            if all(ended):
                return

    def beam_search(
        self, prompt: Sequence[int], steps: int, beams: int, ends: Ends = never, first: Choices | None = None
    ) -> tuple[list[int], float]:
        """The continuation of `prompt` that a search with `beams` hypotheses finds likeliest per token.

        Returns its ids and its mean log-probability. Its first id is one of `first`, if given; it ends where `ends`
        accepts its ids, or after `steps` ids.
        """
        context = _Context(self.model, beams, self.threads)
        contexts = [list(prompt) for _ in range(beams)]
        scores = np.full(beams, -math.inf)
        scores[0] = 0.0  # the hypotheses are all the same at first
        finished: list[tuple[float, list[int]]] = []
        for step in range(steps):
            start = time.perf_counter()
            logits, is_prefill, handled = context.next_logits(contexts)
            totals = scores[:, None] + log_softmax(logits.astype(np.float64))
            if step == 0 and first is not None:
                totals[:, np.setdiff1d(np.arange(totals.shape[1]), first)] = -math.inf
            kept: list[tuple[int, list[int], float]] = []
            for rank, index in enumerate(np.argsort(-totals.reshape(-1), kind="stable")):
                # Hypotheses that end count where they are among the likeliest; `beams` others go on, wherever they are.
                if rank >= 2 * beams and len(kept) == beams:
                    break
                parent, token = divmod(int(index), totals.shape[1])
                hypothesis, total = [*contexts[parent], token], float(totals[parent, token])
                if ends(hypothesis[len(prompt) :]):
                    finished.append((total / (step + 1), hypothesis[len(prompt) :]))
                elif len(kept) < beams:
                    kept.append((parent, hypothesis, total))
            self._count(is_prefill, handled * beams, time.perf_counter() - start)
            if not kept:
                break
            # Where too few go on, the rest of the batch is filled up with what cannot win.
            kept += [(*kept[0][:2], -math.inf)] * (beams - len(kept))
            contexts = [hypothesis for _, hypothesis, _ in kept]
            scores = np.array([total for _, _, total in kept])
            context.reorder(np.array([parent for parent, _, _ in kept]))
        else:
            finished += [
                (float(score) / steps, ids[len(prompt) :]) for score, ids in zip(scores, contexts, strict=True)
            ]
        best = max(finished, key=lambda each: each[0])
        return best[1], float(best[0])

    def _count(self, is_prefill: bool, tokens: int, seconds: float) -> None:
        if is_prefill:
            self.timing.prefill_tokens += tokens
            self.timing.prefill_seconds += seconds
        else:
            self.timing.decode_tokens += tokens
            self.timing.decode_seconds += seconds


class _Context:
    """A cache that follows growing sequences of equal length."""

    def __init__(self, model: GPT, sequences: int, threads: ThreadChoice | None) -> None:
        self._model = model
        self._threads = threads
        self._cache = KeyValueCache(model.backend, model.config, sequences, model.parameters.values.dtype)

    def next_logits(self, contexts: Sequence[Sequence[int]]) -> tuple[Logits, bool, int]:
        """Logits [sequences, V] after the sequences, whether that took a prefill, and the ids handled of each."""
        model, block = self._model, self._model.config.block
        is_prefill = self._cache.length in (0, block)
        window = 1
        if is_prefill:
            window = min(len(contexts[0]), block) if self._cache.length == 0 else max(1, block // 2)
            self._cache.length = 0
        array = model.backend.from_numpy(np.array([context[-window:] for context in contexts], np.int32))
        measured = self._threads.measured() if self._threads and not is_prefill else contextlib.nullcontext()
        with measured, np.errstate(all="ignore"):  # where the backend is numpy: what overflows is found below
            logits = model.backend.to_numpy(model.logits(array, self._cache, last_only=True).data)
        if not np.isfinite(logits).all():
            raise AlphaError("The model's outputs are not finite: its training went wrong; use an earlier checkpoint.")
        return logits[:, 0], is_prefill, window

    def reorder(self, parents: npt.NDArray[np.integer]) -> None:
        """Let sequence i go on from what sequence parents[i] was."""
        self._cache.reorder(self._model.backend.from_numpy(parents.astype(np.int32)))


def _choose_among(choices: Choices | None, logits: Logits, sampling: SamplingOptions, row: int, step: int) -> int:
    if choices is None:
        return choose(logits, sampling, row, step)
    return int(choices[choose(logits[choices], sampling, row, step)])
