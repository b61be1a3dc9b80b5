"""Requests in, tokens out: what a server, a sampler or an evaluation needs of a model. Knows ids, not text or HTTP.

    engine = Engine(model)
    generation = engine.submit(Request(prompt_ids, max_tokens=100, stop_ids=frozenset({end_of_text})))
    while engine.is_busy:
        for event in engine.step():
            ...  # event.generation, event.token, and in the end event.generation.reason

One thread calls `step`; `submit` and `cancel` may be called by any, at any time, and return at once. `submit` raises
RequestError for what can never be done, in a sentence for whoever asked. Requests run side by side, joining and leaving
between steps (see `scheduler`). A generation ends with one of these reasons:

- `stop`: one of its `stop_ids` was drawn, which is its last token, or `cancel(generation, "stop")` said so;
- `length`: it has `max_tokens`, or the model's context is full;
- `cancelled`;
- `error`: what the model computed for it is not finite, or the device failed; `message` says so.

On one backend, a request's tokens and log-probabilities have the same bits whatever else is asked, in whatever pieces
its prompt is computed, and whether it was interrupted or found a beginning computed by others.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from alpha import machine, scheduler
from alpha.backend import INDEPENDENT_ROWS
from alpha.backend_primitives import Array
from alpha.errors import AlphaError
from alpha.gpt import GPT, BlockCache, CachedRows
from alpha.sampling import Choices, Logits, LogProbs, SamplingOptions, adjusted, choose, log_probs
from alpha.scheduler import BLOCK_TOKENS, SCRATCH_BLOCK, BlockPool, Piece, Scheduler, Stream
from alpha.thread_choice import ThreadChoice

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


@dataclass(frozen=True)
class Event:
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
        longest = min(self._blocks, scheduler.blocks_of(model.config.block))
        # The blocks of each sequence of a step, and of what belongs to none.
        self._tables = np.full((max_sequences + 1, longest), SCRATCH_BLOCK, np.int32)
        self._threads = threads
        self._reload = reload
        self._failure = ""
        self._lock = threading.Lock()
        self._submitted: deque[tuple[Generation, Stream]] = deque()
        self._cancelled: deque[tuple[Generation, Reason]] = deque()
        self._streams: dict[Generation, Stream] = {}
        self._generations: dict[Stream, Generation] = {}
        self.read_tokens = self.continued_tokens = 0
        """Tokens of prompts and of texts that went through the model."""
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
    def cache_use(self) -> float:
        """The share of the cache that requests hold."""
        return 1 - self._scheduler.pool.free / self._blocks

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts that did not have to be computed."""
        return self._scheduler.reused

    def submit(self, request: Request) -> Generation:
        """Let a request wait for its turn. Raises RequestError when it can never be fulfilled."""
        if self._failure:
            raise RequestError(self._failure)
        total = self._check(request)
        generation = Generation(request)
        stream = Stream([int(token) for token in request.prompt], total, reuse=request.prompt_logprobs is None)
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
            self._streams[generation], self._generations[stream] = stream, generation
            self._scheduler.add(stream)
        for generation, reason in cancelled:
            if generation in self._streams:
                events.append(self._end(generation, reason))
        pieces = self._scheduler.plan()
        if pieces:
            try:
                events += self._computed(pieces)
            except (AlphaError, MemoryError) as error:
                events += self._failed(error)
        return events

    # --- a step -------------------------------------------------------------------------------------------------------

    def _computed(self, pieces: Sequence[Piece]) -> list[Event]:
        """Compute what was planned, draw tokens, and end what has ended."""
        is_decode = all(piece.count == 1 for piece in pieces)
        measured = self._threads.measured() if self._threads and is_decode else contextlib.nullcontext()
        ends = np.cumsum([piece.count for piece in pieces])
        starts = ends - [piece.count for piece in pieces]
        scored = [self._scored(piece) for piece in pieces]
        outputs = [
            start + place - piece.start
            for piece, start, places in zip(pieces, starts, scored, strict=True)
            for place in (*places, *([piece.start + piece.count - 1] if piece.draws else []))
        ]
        # Where the backend is numpy, it warns of what overflows; `_draw` finds it.
        with measured, np.errstate(all="ignore"):
            logits = iter(self._logits(pieces, outputs))
        for piece in pieces:
            if piece.start < len(self._generations[piece.stream].request.prompt):
                self.read_tokens += piece.count
            else:
                self.continued_tokens += piece.count
        events: list[Event] = []
        for piece, places in zip(pieces, scored, strict=True):
            prompt = [next(logits) for _ in places]
            last = next(logits) if piece.draws else None
            if not all(np.isfinite(row).all() for row in (*prompt, *([] if last is None else [last]))):
                events.append(self._spoiled(piece.stream))
                continue
            generation = self._generations[piece.stream]
            ids, count = generation.request.prompt, generation.request.prompt_logprobs
            if count is not None:
                known = generation.prompt_logprobs
                known.extend([None] * (not known))
                known += [log_probs(row, ids[place + 1], count) for place, row in zip(places, prompt, strict=True)]
            if last is not None:
                events.append(self._draw(piece.stream, last))
            elif not piece.stream.remaining:  # nothing was to be drawn
                events.append(self._end(generation, "length"))
        return events

    def _scored(self, piece: Piece) -> range:
        """The positions of a piece whose outputs say how likely the prompt's next token was, if that was asked for."""
        generation = self._generations[piece.stream]
        if generation.request.prompt_logprobs is None:
            return range(0)
        known = max(0, len(generation.prompt_logprobs) - 1)  # after an interruption, some are
        last = min(piece.start + piece.count, len(generation.request.prompt) - 1)
        return range(max(piece.start, known), last)

    def _logits(self, pieces: Sequence[Piece], outputs: Sequence[int]) -> Logits:
        """The logits [outputs, V] at some of the ids of all pieces, which are counted in order.

        All numbers of rows are filled up to powers of two, so that few programs do for all steps; what fills them up
        belongs to no sequence, and stands in the block that nobody reads.
        """
        counts = [piece.count for piece in pieces]
        total = sum(counts)
        ids, positions, slots, sequences = np.zeros((4, _power_of_two(total)), np.int32)
        ids[:total] = [token for piece in pieces for token in piece.stream.ids[piece.start : piece.start + piece.count]]
        positions[:total] = np.concatenate([np.arange(piece.start, piece.start + piece.count) for piece in pieces])
        sequences[:total] = np.repeat(np.arange(len(pieces)), counts)
        sequences[total:] = self._tables.shape[0] - 1
        tables = np.full_like(self._tables, SCRATCH_BLOCK)
        for table, piece in zip(tables, pieces, strict=False):
            table[: len(piece.stream.blocks)] = piece.stream.blocks
        slots[:] = tables[sequences, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        # What others may be reading is there already, with the same bits.
        shared = np.concatenate([np.arange(piece.count) < piece.shared for piece in pieces])
        slots[:total][shared] = SCRATCH_BLOCK * BLOCK_TOKENS
        wanted = np.zeros(_power_of_two(max(1, len(outputs))), np.int32)
        wanted[: len(outputs)] = outputs
        backend = self._model.backend
        size = len(ids), len(wanted)
        if size not in self._programs:
            self._programs[size] = backend.record(self._program)
        operands = (ids, positions, slots, sequences, tables, wanted)
        values: Logits = backend.to_numpy(self._programs[size](*map(backend.from_numpy, operands)))
        return values[: len(outputs)]

    def _program(
        self, ids: Array, positions: Array, slots: Array, sequences: Array, tables: Array, wanted: Array
    ) -> Array:
        """A step of the model: the logits [M, V] of rows wanted [M] of ids [N]; see `CachedRows`."""
        backend = self._model.backend
        rows = CachedRows(backend, self._cache, positions, slots, sequences, tables)
        hidden = self._model.hidden_of_rows(ids, rows)
        return self._model.logits_of_rows(backend.gather_rows(hidden, wanted))

    def _draw(self, stream: Stream, logits: Logits) -> Event:
        """The next token of a stream, given logits [V]."""
        generation = self._generations[stream]
        request, sampling = generation.request, generation.request.sampling
        scores = logits
        if sampling.changes_logits:
            scores = adjusted(logits, sampling, request.prompt, generation.ids)
        step = request.first_step + len(generation.ids)
        if request.first is not None and not generation.ids:
            token = int(request.first[choose(scores[request.first], sampling, request.row, step)])
        else:
            token = choose(scores, sampling, request.row, step)
        self._scheduler.append(stream, token)
        generation.ids.append(token)
        generation.reused = stream.reused or 0
        noted = None if request.logprobs is None else log_probs(logits, token, request.logprobs)
        if noted:
            generation.logprobs.append(noted)
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
        del self._generations[stream]
        self._scheduler.remove(stream)
        generation.reason = reason
        return Event(generation, token, noted, reason)

    def _spoiled(self, stream: Stream) -> Event:
        generation = self._generations[stream]
        generation.message = "The model's outputs are not finite: its training went wrong; use an earlier checkpoint."
        return self._end(generation, "error")

    def _failed(self, error: Exception) -> list[Event]:
        """End what was under way after the backend gave up; the rest, too, if the model cannot be loaded again."""
        ended = list(self._scheduler.running)
        reload, self._reload = self._reload, None
        if reload is not None:
            try:
                self._use(reload())
            except (AlphaError, MemoryError) as again:
                reload, error = None, again
        if reload is None:
            self._failure = f"The model cannot be used any more: {error}"
            ended += self._scheduler.waiting
        events = []
        for stream in ended:
            generation = self._generations[stream]
            generation.message = f"The device failed while this was computed: {error}"
            events.append(self._end(generation, "error"))
        self._scheduler.pool = BlockPool(self._blocks)
        return events

    def _use(self, model: GPT) -> None:
        self._model = model
        dtype = model.parameters.values.dtype
        self._cache = BlockCache(model.backend, model.config, self._blocks + 1, BLOCK_TOKENS, dtype)
        self._programs: dict[tuple[int, int], Callable[..., Array]] = {}

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
        for name, tokens in (("prompt", request.prompt), ("sampling", request.sampling.logit_bias)):
            if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
                raise RequestError(
                    f"There is no token {wrong[0]}: the model's vocabulary has {vocabulary:,} tokens.", name
                )
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


def _power_of_two(count: int) -> int:
    """The smallest one that is not below."""
    return 1 << (count - 1).bit_length()


def token_bytes(model: GPT) -> int:
    """What the keys and values of a token take."""
    config = model.config
    numbers = 2 * config.layers * config.kv_heads * (config.dim // config.heads)
    return numbers * int(model.parameters.values.dtype.itemsize)


def _cache_tokens(model: GPT, requests: int, tokens: int) -> int:
    """Tokens of so many requests of a size, in whole blocks; fewer where they would take half of the free memory."""
    in_use = model.backend.memory_in_use()
    free = machine.memory()[1] if in_use is None else max(0, in_use[1] - in_use[0])
    affordable = free // 2 // (token_bytes(model) * BLOCK_TOKENS)
    each = scheduler.blocks_of(tokens)
    return max(each, min(requests * each, affordable)) * BLOCK_TOKENS
