"""Texts of any length from a prompt, drawn or searched for, on an engine: how samples are made. Knows ids, not text.

The engine ends a text where the model's context is full. Here it goes on from the newer half of it: a window that
slides over the text.
"""

import collections.abc
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from alpha.config import DrawingOptions
from alpha.engine import Engine, Event, Generation, Request
from alpha.errors import AlphaError
from alpha.gpt import GPT
from alpha.sampling import Choices, SamplingOptions
from alpha.thread_choice import ThreadChoice

Ends = Callable[[Sequence[int]], bool]
"""Whether a sequence is complete, given the ids that were added to it."""

SIDE_BY_SIDE = 256
"""Texts that are made at a time, where there is memory for them."""


def sampling_of(options: DrawingOptions) -> SamplingOptions:
    """How tokens are chosen where texts are drawn with these options."""
    return SamplingOptions(
        options.temp,
        options.topk,
        options.topp,
        min_p=options.minp,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )


def never(ids: Sequence[int]) -> bool:
    """The `Ends` of a sequence that only a number of ids ends."""
    return False


@dataclass
class Timing:
    """How long prompts were read and texts continued, and how many tokens of both went through the model.

    A step that does both counts for both, by their tokens.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    _waited: float = 0.0

    def add(self, seconds: float, read: int, continued: int) -> None:
        """So many tokens came after so many seconds; those of steps that are still under way come later."""
        self._waited += seconds
        if tokens := read + continued:
            self.prefill_tokens += read
            self.prefill_seconds += self._waited * read / tokens
            self.decode_tokens += continued
            self.decode_seconds += self._waited * continued / tokens
            self._waited = 0.0


@dataclass
class Generator:
    """Continues sequences with a model; with `threads`, each decoding step is a repetition for it to measure.

    Each time it makes an engine, unless one is given: that finds computed what it has read before.
    """

    model: GPT
    timing: Timing = field(default_factory=Timing)
    threads: ThreadChoice | None = None
    engine: Engine | None = None

    def generate(
        self,
        prompt: Sequence[int],
        steps: int,
        sampling: SamplingOptions,
        sequences: int = 1,
        ends: Ends = never,
        first: Choices | None = None,
    ) -> collections.abc.Generator[list[int | None], None, None]:
        """Continue `prompt` (at least one id) `sequences` times; yields, up to `steps` times, a token for each.

        The first token of each is one of `first`, if given. A sequence whose new ids `ends` accepts gets None from
        then on; when all have ended, the iterator ends. The last ids that fit the context count; where it is full,
        generation goes on from its newer half. Raises AlphaError when the model's outputs are not finite.
        """
        engine = self._engine(min(sequences, SIDE_BY_SIDE), len(prompt) + steps)
        block = self.model.config.block if self.engine is None else self.engine.longest
        added: list[list[int]] = [[] for _ in range(sequences)]
        drawn: list[deque[int]] = [deque() for _ in range(sequences)]
        running: dict[Generation, int] = {}

        def go_on(row: int) -> None:
            count = len(added[row])
            window = [*prompt, *added[row]][-(max(1, block // 2) if count else block) :]
            request = Request(
                window, steps - count, sampling, first=None if count else first, row=row, first_step=count
            )
            running[engine.submit(request)] = row

        for row in range(sequences):
            go_on(row)
        alive = [True] * sequences
        try:
            for _ in range(steps):
                # A row is missing while it is read, or while there is no room for it.
                while any(alive[row] and not drawn[row] for row in range(sequences)) and engine.is_busy:
                    for event in self._step(engine):
                        generation = event.generation
                        if generation not in running or event.token is None:  # it was complete, and has been cancelled
                            continue
                        row = running[generation]
                        added[row].append(event.token)
                        drawn[row].append(event.token)
                        is_complete = ends(added[row]) or len(added[row]) == steps
                        if is_complete or event.reason is not None:
                            del running[generation]
                            engine.cancel(generation, "stop")
                            alive[row] = not is_complete
                        if alive[row] and generation not in running:
                            go_on(row)
                if not any(drawn):
                    return
                yield [tokens.popleft() if tokens else None for tokens in drawn]
        finally:  # also of what nobody wants to the end
            for generation in running:
                engine.cancel(generation)

    def beam_search(
        self, prompt: Sequence[int], steps: int, beams: int, ends: Ends = never, first: Choices | None = None
    ) -> tuple[list[int], float]:
        """The continuation of `prompt` that a search with `beams` hypotheses finds likeliest per token.

        Returns its ids and its mean log-probability. Its first id is one of `first`, if given; it ends where `ends`
        accepts its ids, or after `steps` ids. The engine finds computed what a hypothesis shares with an earlier one.
        """
        block, vocabulary = self.model.config.block, self.model.vocab_size
        engine = Engine(self.model, beams, request_tokens=min(block, len(prompt) + steps), threads=self.threads)
        hypotheses, scores = [list(prompt)], np.zeros(1)
        start = max(0, len(prompt) - block)
        finished: list[tuple[float, list[int]]] = []
        for step in range(steps):
            began, read = time.perf_counter(), engine.read_tokens
            if len(prompt) + step - start > block:
                start = len(prompt) + step - max(1, block // 2)
            asked = [
                engine.submit(Request(ids[start:], 1, SamplingOptions(temperature=0.0), logprobs=vocabulary))
                for ids in hypotheses
            ]
            while engine.is_busy:
                _events(engine)
            totals = np.empty((len(asked), vocabulary))
            for row, score, generation in zip(totals, scores, asked, strict=True):
                [noted] = generation.logprobs
                row[noted.ids] = score + np.array(noted.values)
            if step == 0 and first is not None:
                totals[:, np.setdiff1d(np.arange(vocabulary), first)] = -math.inf
            kept: list[tuple[list[int], float]] = []
            for rank, index in enumerate(np.argsort(-totals.reshape(-1), kind="stable")):
                # Hypotheses that end count where they are among the likeliest; `beams` others go on, wherever they are.
                if rank >= 2 * beams and len(kept) == beams:
                    break
                parent, token = divmod(int(index), vocabulary)
                hypothesis, total = [*hypotheses[parent], token], float(totals[parent, token])
                if total == -math.inf:
                    break
                if ends(hypothesis[len(prompt) :]):
                    finished.append((total / (step + 1), hypothesis[len(prompt) :]))
                elif len(kept) < beams:
                    kept.append((hypothesis, total))
            # What a hypothesis has in its last block is read each time, and counts as the one token that it is for.
            tokens = (engine.read_tokens - read, 0) if step == 0 else (0, len(asked))
            self.timing.add(time.perf_counter() - began, *tokens)
            if not kept:
                break
            hypotheses = [hypothesis for hypothesis, _ in kept]
            scores = np.array([total for _, total in kept])
        else:
            finished += [
                (float(score) / steps, ids[len(prompt) :]) for score, ids in zip(scores, hypotheses, strict=True)
            ]
        best = max(finished, key=lambda each: each[0])
        return best[1], float(best[0])

    def _engine(self, sequences: int, tokens: int) -> Engine:
        """The one that was given, else one for so many sequences of so many tokens."""
        if self.engine is not None:
            return self.engine
        return Engine(self.model, sequences, request_tokens=min(self.model.config.block, tokens), threads=self.threads)

    def _step(self, engine: Engine) -> list[Event]:
        """A step of the engine, noted in `timing`. Raises AlphaError."""
        read, continued, start = engine.read_tokens, engine.continued_tokens, time.perf_counter()
        events = _events(engine)
        seconds = time.perf_counter() - start
        self.timing.add(seconds, engine.read_tokens - read, engine.continued_tokens - continued)
        return events


def _events(engine: Engine) -> list[Event]:
    """What happens in a step. Raises AlphaError for a request that ended with an error."""
    events = engine.step()
    for event in events:
        if event.reason == "error":
            raise AlphaError(event.generation.message)
    return events
