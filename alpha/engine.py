"""Requests in, tokens out: what a server, a sampler or an evaluation needs of a model. Knows ids, not text or HTTP.

    engine = Engine(model)
    generation = engine.submit(Request(prompt_ids, max_tokens=100, stop_ids=frozenset({end_of_text})))
    while engine.is_busy:
        for event in engine.step():
            ...  # event.generation, event.token, and in the end event.generation.reason

A step gives the backend its work, and tells which tokens an earlier one has drawn: a device may have several steps
under way, each taking its ids from the one before.

One thread calls `step`; `submit` and `cancel` may be called by any, at any time, and return at once. `submit` raises
RequestError for what can never be done, in a sentence for whoever asked. Requests run side by side, joining and leaving
between steps (see `scheduler`). A generation ends with one of these reasons:

- `stop`: one of its `stop_ids` was drawn, which is its last token, or `cancel(generation, "stop")` said so;
- `length`: it has `max_tokens`, or the model's context is full;
- `cancelled`;
- `error`: what the model computed for it is not finite, or the device failed; `message` says so.

On one backend, a request's tokens and log-probabilities have the same bits whatever else is asked, in whatever pieces
its prompt is computed, and whether it was interrupted, found a beginning computed by others, or had to be computed
again because the backend lost what was under way.
"""

import contextlib
import itertools
import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from alpha import machine, scheduler
from alpha.backend import INDEPENDENT_ROWS
from alpha.engine_steps import Step, Steps
from alpha.errors import AlphaError, ResultsLost
from alpha.gpt import GPT
from alpha.sampling import Choices, Logits, LogProbs, SamplingOptions
from alpha.sampling_device import Draw
from alpha.scheduler import BLOCK_TOKENS, BlockPool, Piece, Scheduler, Stream
from alpha.thread_choice import ThreadChoice

_logger = logging.getLogger(__name__)

Reason = Literal["stop", "length", "cancelled", "error"]


class RequestError(AlphaError):
    """A request that can never be fulfilled: what is wrong with it, or too large; `field` of `Request` is to blame."""

    def __init__(self, message: str, field: str = "prompt", is_too_long: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.is_too_long = is_too_long


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    prompt: at least one id. max_tokens: tokens to draw at most; None as many as the context holds; 0 is allowed where
    the prompt's log-probabilities are asked for. first: the first token is one of these. row, first_step: which random
    numbers of the seed are used, those of sequence `row` from that step on. logprobs, prompt_logprobs: ask for log-
    probabilities of each drawn token, or of each of the prompt, and of so many of the likeliest; None does not.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    first: Choices | None = None
    row: int = 0
    first_step: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(eq=False)
class Generation:
    """A request under way. `ids` are the tokens drawn so far; `reason` is None until it has ended.

    `logprobs` has an entry for each of `ids`, and `prompt_logprobs` one for each id of the prompt, None for the first,
    if they were asked for. `reused` ids of the prompt did not have to be computed. Written by the thread that calls
    `Engine.step` only.
    """

    request: Request
    ids: list[int] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    prompt_logprobs: list[LogProbs | None] = field(default_factory=list)
    reason: Reason | None = None
    message: str = ""
    reused: int = 0


class Event(NamedTuple):
    """A generation has a new token, or has ended, or both; `token` is None where it ended without one."""

    generation: Generation
    token: int | None
    logprobs: LogProbs | None
    reason: Reason | None


class Engine:
    """Runs requests on a model."""

    def __init__(
        self,
        model: GPT,
        max_sequences: int = 16,
        step_tokens: int = 512,
        cache_tokens: int | None = None,
        request_tokens: int | None = None,
        threads: ThreadChoice | None = None,
        reload: Callable[[], GPT] | None = None,
    ) -> None:
        """Takes the memory for keys and values: of `cache_tokens` tokens, by default of `max_sequences` requests with
        at most `request_tokens` each (by default the model's context), but not more than half of what is free.

        At most `max_sequences` run at a time, and a step computes at most `step_tokens` tokens; both are at most
        `INDEPENDENT_ROWS`. With `threads`, each
        step that only continues texts is a repetition for it to measure. `reload` loads the model again, once, when the
        device that it was on has failed. Raises MemoryError when there is too little memory.
        """
        if cache_tokens is None:
            cache_tokens = _cache_tokens(model, max_sequences, request_tokens or model.config.block)
        self._blocks = cache_tokens // BLOCK_TOKENS
        max_sequences = min(max_sequences, INDEPENDENT_ROWS)
        budget = min(max(step_tokens, max_sequences), INDEPENDENT_ROWS)
        self._scheduler = Scheduler(BlockPool(self._blocks), max_sequences, budget)
        self._max_sequences = max_sequences
        self._threads = threads
        self._reload = reload
        self.failure = ""
        """Why nothing is computed any more."""
        self._lock = threading.Lock()
        self._submitted: deque[tuple[Generation, Stream]] = deque()
        self._cancelled: deque[tuple[Generation, Reason]] = deque()
        self._streams: dict[Generation, Stream] = {}
        self._generations: dict[Stream, Generation] = {}
        self._draws: dict[Stream, Draw] = {}
        self._watched: set[Stream] = set()
        """Those of requests that want log-probabilities."""
        # Steps that the backend was given and whose tokens are not known yet.
        self._under_way: deque[Step] = deque()
        self.read_tokens = self.continued_tokens = 0
        """Tokens of prompts and of texts that went through the model, for requests that still wanted them."""
        self._use(model)

    @property
    def model(self) -> GPT:
        return self._model

    @property
    def is_busy(self) -> bool:
        """Whether a step would do anything."""
        with self._lock:
            return bool(self._submitted or self._streams)

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._scheduler.waiting) + len(self._submitted)

    @property
    def longest(self) -> int:
        """Tokens that a request may have: what the model's context holds, and the cache."""
        return min(self._model.config.block, self._blocks * BLOCK_TOKENS)

    @property
    def cache_use(self) -> float:
        """The share of the cache that requests hold."""
        return 1 - self._scheduler.pool.free / self._blocks

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts that did not have to be computed."""
        return self._scheduler.reused

    def submit(self, request: Request) -> Generation:
        """Let a request wait for its turn. Raises RequestError when it can never be fulfilled, AlphaError after a
        failure."""
        if self.failure:
            raise AlphaError(self.failure)
        total = self._check(request)
        ids = self._ids_of(request)
        generation = Generation(request, prompt_logprobs=[] if request.prompt_logprobs is None else [None])
        stream = Stream(ids, total, reuse=request.prompt_logprobs is None)
        needed = scheduler.blocks_of(stream.end)
        if needed > self._blocks:
            raise RequestError(
                f"The request needs the keys and values of {stream.end:,} tokens, and the cache holds "
                f"{self._blocks * BLOCK_TOKENS:,}; ask for fewer tokens, or start with a larger cache.",
                "max_tokens" if scheduler.blocks_of(len(request.prompt)) <= self._blocks else "prompt",
            )
        with self._lock:
            self._submitted.append((generation, stream))
        return generation

    def cancel(self, generation: Generation, reason: Literal["cancelled", "stop"] = "cancelled") -> None:
        """End a generation before the next step, unless it has ended; tells so in an event."""
        with self._lock:
            self._cancelled.append((generation, reason))

    def forget(self) -> None:
        """Find nothing again that was computed so far, because the weights have changed. Nothing may be under way but
        what has been cancelled."""
        self.step()
        if self.is_busy:
            raise RuntimeError("the weights changed while requests were under way")
        self._scheduler.forget()

    def step(self) -> list[Event]:
        """Compute the next token of each running request, and pieces of prompts; what happened, in the order of
        requests.

        Does nothing when nothing is to be done.
        """
        events: list[Event] = []
        with self._lock:
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for generation, stream in submitted:
            self._begin(generation, stream)
        for generation, reason in cancelled:
            if generation in self._streams:
                events.append(self._end(generation, reason))
        try:
            if pieces := self._scheduler.plan():
                self._start(pieces)
            while self._under_way and (not pieces or len(self._under_way) >= self._model.backend.steps_in_flight):
                events += self._end_step(self._under_way.popleft())
                if not pieces:
                    break
        except ResultsLost as error:
            _logger.warning("%s What was under way is computed again.", error)
            self._under_way.clear()
            self._scheduler.forget()
        except (AlphaError, MemoryError) as error:
            events += self._failed(error)
        return events

    # --- a step -------------------------------------------------------------------------------------------------------

    def _begin(self, generation: Generation, stream: Stream) -> None:
        self._streams[generation], self._generations[stream] = stream, generation
        request = generation.request
        self._draws[stream] = Draw(
            request.sampling, len(request.prompt), request.row, request.first_step, request.first
        )
        if request.logprobs is not None or request.prompt_logprobs is not None:
            self._watched.add(stream)
        self._scheduler.add(stream)

    def _start(self, pieces: Sequence[Piece]) -> None:
        """Give the backend what was planned."""
        scored: list[range] = []
        likeliest: int | None = None
        if self._watched:
            scored = [self._scored(piece) for piece in pieces]
            likeliest = max(itertools.chain.from_iterable(map(self._likeliest, pieces, scored)), default=None)
        is_measured = self._threads is not None and all(piece.count == 1 for piece in pieces)
        measured = self._threads.measured() if self._threads and is_measured else contextlib.nullcontext()
        # Where the backend is numpy, it warns of what overflows; `choose` finds it.
        with measured, np.errstate(all="ignore"):
            self._under_way.append(self._steps.give(pieces, self._draws, scored if any(scored) else (), likeliest))

    def _end_step(self, step: Step) -> list[Event]:
        """Wait for a step, note its tokens, and end what has ended."""
        values = self._model.backend.to_numpy(step.result)[: step.outputs]
        tokens = (values if step.likeliest is None else values[:, -1].astype(int)).tolist()
        before = [None] * step.outputs if step.likeliest is None else values[:, :-1]
        last = zip(before, tokens, strict=True)
        others = zip(before[step.drawn :], tokens[step.drawn :], strict=True)
        events: list[Event] = []
        generations = self._generations
        for index, piece in enumerate(step.pieces):
            stream = piece.stream
            generation = generations.get(stream)
            row, token = next(last) if piece.draws else (None, 0)
            noted = [next(others) for _ in step.scored[index]] if step.scored else []
            if generation is None:  # it has ended since then
                continue
            if piece.start < len(generation.request.prompt):
                self.read_tokens += piece.count
                generation.reused = stream.reused or 0
            else:
                self.continued_tokens += piece.count
            if token < 0 or (noted and min(token for _, token in noted) < 0):
                events.append(self._spoiled(generation))
                continue
            if noted:
                self._note_prompt(step, generation, step.scored[index], noted)
            if piece.draws:
                count = generation.request.logprobs
                likely = None if row is None or count is None else step.log_probs(row, token, count)
                events.append(self._draw(generation, stream, token, likely))
            elif piece.start + piece.count == stream.end:  # nothing was to be drawn
                events.append(self._end(generation, "length"))
        return events

    def _note_prompt(
        self, step: Step, generation: Generation, places: range, noted: Sequence[tuple[Logits, int]]
    ) -> None:
        ids, count, known = (
            generation.request.prompt,
            generation.request.prompt_logprobs or 0,
            generation.prompt_logprobs,
        )
        for place, (values, _) in zip(places, noted, strict=True):
            if place == len(known) - 1:  # after an interruption, some may come twice
                known.append(step.log_probs(values, ids[place + 1], count))

    def _likeliest(self, piece: Piece, scored: range) -> Iterator[int]:
        """Of how many of the likeliest tokens log-probabilities are wanted after a piece, and in it."""
        request = self._generations[piece.stream].request
        if piece.draws and request.logprobs is not None:
            yield request.logprobs
        if scored and request.prompt_logprobs is not None:
            yield request.prompt_logprobs

    def _scored(self, piece: Piece) -> range:
        """The positions of a piece whose outputs say how likely the prompt's next token was, if that was asked for."""
        generation = self._generations[piece.stream]
        if generation.request.prompt_logprobs is None:
            return range(0)
        known = len(generation.prompt_logprobs) - 1  # after an interruption, some are
        last = min(piece.start + piece.count, len(generation.request.prompt) - 1)
        return range(max(piece.start, known), last)

    def _draw(self, generation: Generation, stream: Stream, token: int, noted: LogProbs | None) -> Event:
        """The next token of a stream, with its log-probabilities if they were asked for."""
        request = generation.request
        if noted:
            generation.logprobs.append(noted)
        self._scheduler.append(stream, token)
        generation.ids.append(token)
        if token in request.stop_ids:
            return self._end(generation, "stop", token, noted)
        if len(stream.ids) == stream.total:
            return self._end(generation, "length", token, noted)
        return Event(generation, token, noted, None)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end(
        self, generation: Generation, reason: Reason, token: int | None = None, noted: LogProbs | None = None
    ) -> Event:
        stream = self._streams.pop(generation)
        del self._generations[stream], self._draws[stream]
        self._watched.discard(stream)
        self._scheduler.remove(stream)
        generation.reason = reason
        return Event(generation, token, noted, reason)

    def _spoiled(self, generation: Generation) -> Event:
        generation.message = "The model's outputs are not finite: its training went wrong; use an earlier checkpoint."
        return self._end(generation, "error")

    def _failed(self, error: Exception) -> list[Event]:
        """End what was under way after the backend gave up; the rest, too, if the model cannot be loaded again."""
        self._under_way.clear()
        # Also one that was interrupted, if the device has not said which its newest tokens are.
        ended = [*self._scheduler.running, *(stream for stream in self._scheduler.waiting if stream.pending)]
        reload, self._reload = self._reload, None
        if reload is not None:
            try:
                self._use(reload())
            except (AlphaError, MemoryError) as again:
                reload, error = None, again
        if reload is None:
            self.failure = f"The model cannot be used any more: {error}"
            ended += [stream for stream in self._scheduler.waiting if not stream.pending]
        events = []
        for stream in ended:
            generation = self._generations[stream]
            generation.message = f"The device failed while this was computed: {error}"
            events.append(self._end(generation, "error"))
        self._scheduler.forget()
        return events

    def _use(self, model: GPT) -> None:
        self._model = model
        pages = min(self._blocks, scheduler.blocks_of(model.config.block))
        self._steps = Steps(model, self._max_sequences, pages, self._blocks)

    def _check(self, request: Request) -> int:
        """How many ids there are in the end, at most. Raises RequestError when the request makes no sense."""
        block, vocabulary, count = self._model.config.block, self._model.vocab_size, len(request.prompt)
        if not count:
            raise RequestError("The prompt is empty; it needs at least one token.")
        if count > block:
            raise RequestError(
                f"The prompt has {count:,} tokens, but the model's context holds {block:,}; shorten the prompt.",
                is_too_long=True,
            )
        if any(not 0 <= token < vocabulary for token in request.sampling.logit_bias):
            raise self._unknown(request.sampling.logit_bias, "sampling")
        if problem := request.sampling.problem():
            raise RequestError(problem, "sampling")
        for name, number in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
            if number is not None and number < 0:
                raise RequestError(f"{name} is {number}, but must be at least 0.", name)
        least = 1 if request.prompt_logprobs is None else 0
        if request.max_tokens is not None and request.max_tokens < least:
            raise RequestError(f"max_tokens is {request.max_tokens}, but must be at least {least}.", "max_tokens")
        room = block + 1 - count  # the last token is not read
        return count + (room if request.max_tokens is None else min(room, request.max_tokens))

    def _ids_of(self, request: Request) -> "array[int]":
        """The prompt. Raises RequestError when it has an id that is no token."""
        with contextlib.suppress(OverflowError):
            ids = array("i", request.prompt)
            if np.frombuffer(ids, np.uint32).max() < self._model.vocab_size:  # negative ones are large ones
                return ids
        raise self._unknown(request.prompt, "prompt")

    def _unknown(self, tokens: Iterable[int], field: str) -> RequestError:
        """The error that says which of these is no token."""
        vocabulary = self._model.vocab_size
        wrong = next(token for token in tokens if not 0 <= token < vocabulary)
        return RequestError(f"There is no token {wrong}: the model's vocabulary has {vocabulary:,} tokens.", field)


def token_bytes(model: GPT) -> int:
    """What the keys and values of a token take."""
    config = model.config
    numbers = 2 * config.layers * config.kv_heads * config.head_width
    return numbers * np.dtype(model.cache_dtype).itemsize


def affordable_tokens(model: GPT) -> int:
    """Tokens whose keys and values take half of the free memory."""
    in_use = model.backend.memory_in_use()
    free = machine.memory()[1] if in_use is None else max(0, in_use[1] - in_use[0])
    return free // 2 // (token_bytes(model) * BLOCK_TOKENS) * BLOCK_TOKENS


def _cache_tokens(model: GPT, requests: int, tokens: int) -> int:
    """Tokens of so many requests of a size, in whole blocks; fewer where they would take half of the free memory."""
    each = scheduler.blocks_of(tokens) * BLOCK_TOKENS
    return max(each, min(requests * each, affordable_tokens(model)))
