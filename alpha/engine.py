"""Requests in, tokens out: what a server, a sampler or an evaluation needs of a model. Knows ids, not text or HTTP.

    engine = Engine(model)
    generation = engine.submit(Request(prompt_ids, max_tokens=100, stop_ids=frozenset({end_of_text})))
    while engine.is_busy:
        for event in engine.step():
            ...  # event.generation, event.token, and in the end event.generation.reason

A step gives the backend its work, and tells which tokens an earlier one has drawn: a device may have several steps
under way, each taking its ids from the one before. Requests that want probabilities, or whose logits are changed before
tokens are drawn, are waited for.

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
import functools
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
from alpha.sampling import Choices, Logits, LogProbs, SamplingOptions, adjusted, choose, log_probs, random_number
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


@dataclass(frozen=True)
class _Step:
    """A step that the backend was given: its pieces, for each the positions whose outputs say how likely the prompt is,
    and what will be there: the tokens chosen for each output, after the logits if those are wanted."""

    pieces: Sequence[Piece]
    scored: Sequence[range]
    outputs: int
    has_logits: bool
    result: Array


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
        self.failure = ""
        """Why nothing is computed any more."""
        self._lock = threading.Lock()
        self._submitted: deque[tuple[Generation, Stream]] = deque()
        self._cancelled: deque[tuple[Generation, Reason]] = deque()
        self._streams: dict[Generation, Stream] = {}
        self._generations: dict[Stream, Generation] = {}
        # Steps that the backend was given and whose tokens are not known yet, and where in `_newest` those will stand.
        self._under_way: deque[_Step] = deque()
        self._seats: dict[Stream, int] = {}
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
        """Let a request wait for its turn. Raises RequestError when it can never be fulfilled, AlphaError after a
        failure."""
        if self.failure:
            raise AlphaError(self.failure)
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
        try:
            if pieces := self._scheduler.plan():
                self._start(pieces)
            while self._under_way and (
                not pieces
                or len(self._under_way) >= self._model.backend.steps_in_flight
                or self._under_way[-1].has_logits
            ):
                events += self._end_step(self._under_way.popleft())
                if not pieces:
                    break
        except (AlphaError, MemoryError) as error:
            events += self._failed(error)
        return events

    # --- a step -------------------------------------------------------------------------------------------------------

    def _start(self, pieces: Sequence[Piece]) -> None:
        """Give the backend what was planned."""
        is_decode = all(piece.count == 1 for piece in pieces)
        measured = self._threads.measured() if self._threads and is_decode else contextlib.nullcontext()
        scored = [self._scored(piece) for piece in pieces]
        # Where the backend is numpy, it warns of what overflows; `choose` finds it.
        with measured, np.errstate(all="ignore"):
            self._under_way.append(self._given(pieces, scored))
        for piece in pieces:
            if piece.start < len(self._generations[piece.stream].request.prompt):
                self.read_tokens += piece.count
            else:
                self.continued_tokens += piece.count

    def _end_step(self, step: _Step) -> list[Event]:
        """Wait for a step, note its tokens, and end what has ended."""
        values = self._model.backend.to_numpy(step.result)[: step.outputs]
        tokens = iter((values[:, -1] if step.has_logits else values).astype(int).tolist())
        logits = iter(values[:, :-1] if step.has_logits else [None] * step.outputs)
        events: list[Event] = []
        for piece, places in zip(step.pieces, step.scored, strict=True):
            prompt = [(next(logits), next(tokens)) for _ in places]
            last = (next(logits), next(tokens)) if piece.draws else None
            if piece.stream not in self._generations:  # it has ended since then
                continue
            if any(token < 0 for _, token in (*prompt, *([] if last is None else [last]))):
                events.append(self._spoiled(piece.stream))
                continue
            generation = self._generations[piece.stream]
            ids, count = generation.request.prompt, generation.request.prompt_logprobs
            if count is not None:
                known = generation.prompt_logprobs
                known.extend([None] * (not known))
                known += [log_probs(row, ids[place + 1], count) for place, (row, _) in zip(places, prompt, strict=True)]
            if last is not None:
                events.append(self._draw(piece.stream, *last))
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

    def _given(self, pieces: Sequence[Piece], scored: Sequence[range]) -> _Step:
        """The step of these pieces, given to the backend.

        All numbers of rows are filled up to powers of two, so that few programs do for all steps; what fills them up
        belongs to no sequence, and stands in the block that nobody reads.
        """
        counts = [piece.count for piece in pieces]
        total = sum(counts)
        ids, positions, slots, sequences, seats = np.zeros((5, _power_of_two(total)), np.int32)
        known = [piece.stream.ids[piece.start : piece.start + piece.count] for piece in pieces]
        self._take_seats(pieces)
        nobody = self._tables.shape[0] - 1
        ends = np.cumsum(counts)
        seats[:] = -1
        for piece, each, end in zip(pieces, known, ends, strict=True):
            ids[end - piece.count : end - piece.count + len(each)] = each
            if len(each) < piece.count:  # its last id is that of a step under way
                seats[end - 1] = self._seats[piece.stream]
        positions[:total] = np.concatenate([np.arange(piece.start, piece.start + piece.count) for piece in pieces])
        sequences[:total] = np.repeat(np.arange(len(pieces)), counts)
        sequences[total:] = nobody
        tables = np.full_like(self._tables, SCRATCH_BLOCK)
        for table, piece in zip(tables, pieces, strict=False):
            table[: len(piece.stream.blocks)] = piece.stream.blocks
        slots[:] = tables[sequences, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        # What others may be reading is there already, with the same bits.
        shared = np.concatenate([np.arange(piece.count) < piece.shared for piece in pieces])
        slots[:total][shared] = SCRATCH_BLOCK * BLOCK_TOKENS

        wanted: list[int] = []
        chosen: list[tuple[int, Piece]] = []
        for piece, places, start in zip(pieces, scored, ends - counts, strict=True):
            wanted += [start + place - piece.start for place in places]
            if piece.draws:
                chosen.append((len(wanted), piece))
                wanted.append(start + piece.count - 1)
        size = _power_of_two(max(1, len(wanted)))
        rows, top_k = np.zeros((2, size), np.int32)
        targets = np.full(size, nobody, np.int32)
        options = np.zeros((size, 4), np.float32)
        rows[: len(wanted)] = wanted
        for place, piece in chosen:
            if not self._is_adjusted(piece):
                targets[place] = self._seats[piece.stream]
                options[place], top_k[place] = self._options(piece)
        has_logits = any(scored) or any(
            self._is_adjusted(piece) or self._generations[piece.stream].request.logprobs is not None
            for _, piece in chosen
        )
        form = len(ids), size, has_logits
        backend = self._model.backend
        if form not in self._programs:
            self._programs[form] = backend.record(functools.partial(self._program, has_logits))
        operands = ids, seats, positions, slots, sequences, tables, rows, options, top_k, targets
        result = self._programs[form](*map(backend.from_numpy, operands))
        return _Step(pieces, scored, len(wanted), has_logits, result)

    def _take_seats(self, pieces: Sequence[Piece]) -> None:
        """Let each stream of these pieces have a place in `_newest`; those that do not run any more lose theirs."""
        running = set(self._scheduler.running)
        self._seats = {stream: seat for stream, seat in self._seats.items() if stream in running}
        free = iter(sorted(set(range(self._tables.shape[0] - 1)) - set(self._seats.values())))
        for piece in pieces:
            if piece.stream not in self._seats:
                self._seats[piece.stream] = next(free)

    def _is_adjusted(self, piece: Piece) -> bool:
        """Whether the token after this piece is chosen here, because something changes its logits before."""
        request = self._generations[piece.stream].request
        is_first = piece.start + piece.count == len(request.prompt)
        return request.sampling.changes_logits or (request.first is not None and is_first)

    def _options(self, piece: Piece) -> tuple[tuple[float, float, float, float], int]:
        """What `Backend.choose` has to know to draw the token after this piece: options, and top_k."""
        request = self._generations[piece.stream].request
        sampling = request.sampling
        step = request.first_step + piece.start + piece.count - len(request.prompt)
        number = random_number(sampling, request.row, step)
        # Beyond these temperatures nothing changes any more.
        temperature = 0.0 if sampling.temperature < 1e-30 else min(sampling.temperature, 1e30)
        return (temperature, sampling.top_p, sampling.min_p, number), min(sampling.top_k, self._model.vocab_size)

    def _program(
        self, has_logits: bool, ids: Array, seats: Array, positions: Array, slots: Array, sequences: Array,
        tables: Array, wanted: Array, options: Array, top_k: Array, targets: Array,
    ) -> Array:  # fmt: skip
        """A step of the model: the tokens [M] chosen after rows wanted [M] of ids [N]; see `CachedRows`.

        Where seats [N] are not negative, the id is the newest one of that seat. Tokens go to the seats in targets [M].
        With `has_logits` the logits stand before them: [M, V + 1].
        """
        backend = self._model.backend
        newest = backend.reshape(backend.gather_rows(self._newest, backend.maximum(seats, 0)), seats.shape)
        ids = backend.where(backend.greater(seats, -1), newest, ids)
        rows = CachedRows(backend, self._cache, positions, slots, sequences, tables)
        hidden = self._model.hidden_of_rows(ids, rows)
        logits = self._model.logits_of_rows(backend.gather_rows(hidden, wanted))
        tokens = backend.reshape(backend.choose(logits, options, top_k), (wanted.shape[0], 1))
        backend.put_rows(self._newest, targets, tokens)
        if has_logits:
            exact = np.float64 if logits.dtype == np.float64 else np.float32  # 16 bits cannot hold every id
            return backend.concatenate([backend.cast(each, exact) for each in (logits, tokens)], 1)
        return backend.reshape(tokens, wanted.shape)

    def _draw(self, stream: Stream, logits: Logits | None, token: int) -> Event:
        """The next token of a stream; it is chosen here from logits [V] if the request changes them."""
        generation = self._generations[stream]
        request, sampling = generation.request, generation.request.sampling
        step, is_first = request.first_step + len(generation.ids), not generation.ids
        if logits is not None and (sampling.changes_logits or (request.first is not None and is_first)):
            scores = adjusted(logits, sampling, request.prompt, generation.ids) if sampling.changes_logits else logits
            if request.first is not None and is_first:
                token = int(request.first[choose(scores[request.first], sampling, request.row, step)])
            else:
                token = choose(scores, sampling, request.row, step)
        self._scheduler.append(stream, token)
        generation.ids.append(token)
        generation.reused = stream.reused or 0
        noted = None if request.logprobs is None or logits is None else log_probs(logits, token, request.logprobs)
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
        self._scheduler.pool = BlockPool(self._blocks)
        return events

    def _use(self, model: GPT) -> None:
        self._model = model
        dtype = model.parameters.values.dtype
        self._cache = BlockCache(model.backend, model.config, self._blocks + 1, BLOCK_TOKENS, dtype)
        self._newest = model.backend.zeros((self._tables.shape[0], 1), np.int32)
        self._seats.clear()
        self._programs: dict[tuple[int, int, bool], Callable[..., Array]] = {}

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
    numbers = 2 * config.layers * config.kv_heads * config.head_width
    return numbers * int(model.parameters.values.dtype.itemsize)


def _cache_tokens(model: GPT, requests: int, tokens: int) -> int:
    """Tokens of so many requests of a size, in whole blocks; fewer where they would take half of the free memory."""
    in_use = model.backend.memory_in_use()
    free = machine.memory()[1] if in_use is None else max(0, in_use[1] - in_use[0])
    affordable = free // 2 // (token_bytes(model) * BLOCK_TOKENS)
    each = scheduler.blocks_of(tokens)
    return max(each, min(requests * each, affordable)) * BLOCK_TOKENS
