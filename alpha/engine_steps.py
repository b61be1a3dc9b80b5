"""The steps of an engine as programs of a backend: from pieces of sequences to the tokens that are drawn after them.

Each is recorded once for each size, a power of two, and for whether logits are wanted; all else is in its operands. The
newest token of each sequence stays on the device, where the next step finds it. Knows nothing of requests.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from alpha.backend_primitives import Array
from alpha.gpt import GPT, BlockCache, CachedRows
from alpha.scheduler import BLOCK_TOKENS, SCRATCH_BLOCK, Piece, Stream


@dataclass(frozen=True)
class Draw:
    """How the token after a piece is drawn on the device; see `Backend.choose`."""

    temperature: float
    top_p: float
    min_p: float
    number: float
    top_k: int


@dataclass(frozen=True)
class Step:
    """A step that the backend was given: its pieces, for each the positions whose outputs say how likely the prompt is,
    and what will be there: the tokens chosen for each output, after the logits if those are wanted."""

    pieces: Sequence[Piece]
    scored: Sequence[range]
    outputs: int
    has_logits: bool
    result: Array


class Steps:
    """The steps of a model for at most `sequences` sequences of at most `pages` blocks of keys and values each, out of
    `blocks` and `SCRATCH_BLOCK`. Raises MemoryError where there is too little memory for those."""

    def __init__(self, model: GPT, sequences: int, pages: int, blocks: int) -> None:
        self.model = model
        self._sequences, self._pages = sequences, pages
        dtype = model.parameters.values.dtype
        self._cache = BlockCache(model.backend, model.config, blocks + 1, BLOCK_TOKENS, dtype)
        self._newest = model.backend.zeros((sequences + 1, 1), np.int32)
        self._seats: dict[Stream, int] = {}
        """Where in `_newest` the token of a stream stands; the last place is nobody's."""
        self._programs: dict[tuple[int, int, bool], Callable[..., Array]] = {}

    def give(
        self,
        pieces: Sequence[Piece],
        scored: Sequence[range],
        draws: Sequence[Draw | None],
        has_logits: bool,
        running: Collection[Stream],
    ) -> Step:
        """Give the backend the step of these pieces. Of each, `scored` says after which positions there are to be
        outputs besides that after its end, if it draws, and `draws` how; without, the caller draws from the logits.
        Streams that are not `running` will not draw again before a piece of theirs is computed from its ids.

        All numbers of rows are filled up to powers of two, so that few programs do for all steps; what fills them up
        belongs to no sequence, and stands in the block that nobody reads.
        """
        counts = [piece.count for piece in pieces]
        total = sum(counts)
        ids, positions, slots, sequences, seats = np.zeros((5, _power_of_two(total)), np.int32)
        known = [piece.stream.ids[piece.start : piece.start + piece.count] for piece in pieces]
        self._take_seats(pieces, running)
        nobody = self._sequences
        ends = np.cumsum(counts)
        seats[:] = -1
        for piece, each, end in zip(pieces, known, ends, strict=True):
            ids[end - piece.count : end - piece.count + len(each)] = each
            if len(each) < piece.count:  # its last id is that of a step under way
                seats[end - 1] = self._seats[piece.stream]
        positions[:total] = np.concatenate([np.arange(piece.start, piece.start + piece.count) for piece in pieces])
        sequences[:total] = np.repeat(np.arange(len(pieces)), counts)
        sequences[total:] = nobody
        tables = np.full((self._sequences + 1, self._pages), SCRATCH_BLOCK, np.int32)
        for table, piece in zip(tables, pieces, strict=False):
            table[: len(piece.stream.blocks)] = piece.stream.blocks
        slots[:] = tables[sequences, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        # What others may be reading is there already, with the same bits.
        shared = np.concatenate([np.arange(piece.count) < piece.shared for piece in pieces])
        slots[:total][shared] = SCRATCH_BLOCK * BLOCK_TOKENS

        wanted: list[int] = []
        drawn: list[tuple[int, Draw, int]] = []
        for piece, places, draw, start in zip(pieces, scored, draws, ends - counts, strict=True):
            wanted += [start + place - piece.start for place in places]
            if draw is not None:
                drawn.append((len(wanted), draw, self._seats[piece.stream]))
            if piece.draws:
                wanted.append(start + piece.count - 1)
        size = _power_of_two(max(1, len(wanted)))
        rows, top_k = np.zeros((2, size), np.int32)
        targets = np.full(size, nobody, np.int32)
        options = np.zeros((size, 4), np.float32)
        rows[: len(wanted)] = wanted
        for place, draw, seat in drawn:
            targets[place], top_k[place] = seat, draw.top_k
            options[place] = draw.temperature, draw.top_p, draw.min_p, draw.number
        form = len(ids), size, has_logits
        backend = self.model.backend
        if form not in self._programs:
            # Not a method of this object, which would keep the model until cycles are looked for.
            program = functools.partial(_program, self.model, self._cache, self._newest, has_logits)
            self._programs[form] = backend.record_inference(program)
        operands = ids, seats, positions, slots, sequences, tables, rows, options, top_k, targets
        result = self._programs[form](*map(backend.from_numpy, operands))
        return Step(pieces, scored, len(wanted), has_logits, result)

    def _take_seats(self, pieces: Sequence[Piece], running: Collection[Stream]) -> None:
        """Let each stream of these pieces have a place in `_newest`; those that do not run any more lose theirs."""
        still = set(running)
        self._seats = {stream: seat for stream, seat in self._seats.items() if stream in still}
        free = iter(sorted(set(range(self._sequences)) - set(self._seats.values())))
        for piece in pieces:
            if piece.stream not in self._seats:
                self._seats[piece.stream] = next(free)


def _program(
    model: GPT, cache: BlockCache, newest: Array, has_logits: bool, ids: Array, seats: Array, positions: Array,
    slots: Array, sequences: Array, tables: Array, wanted: Array, options: Array, top_k: Array, targets: Array,
) -> Array:  # fmt: skip
    """A step of the model: the tokens [M] chosen after rows wanted [M] of ids [N]; see `CachedRows`.

    Where seats [N] are not negative, the id is the newest one of that seat. Tokens go to the seats in targets [M].
    With `has_logits` the logits stand before them: [M, V + 1].
    """
    backend = model.backend
    of_seats = backend.reshape(backend.gather_rows(newest, backend.maximum(seats, 0)), seats.shape)
    ids = backend.where(backend.greater(seats, -1), of_seats, ids)
    rows = CachedRows(backend, cache, positions, slots, sequences, tables)
    hidden = model.hidden_of_rows(ids, rows)
    logits = model.logits_of_rows(backend.gather_rows(hidden, wanted))
    tokens = backend.reshape(backend.choose(logits, options, top_k), (wanted.shape[0], 1))
    backend.put_rows(newest, targets, tokens)
    if has_logits:
        exact = np.float64 if logits.dtype == np.float64 else np.float32  # 16 bits cannot hold every id
        return backend.concatenate([backend.cast(each, exact) for each in (logits, tokens)], 1)
    return backend.reshape(tokens, wanted.shape)


def _power_of_two(count: int) -> int:
    """The smallest one that is not below."""
    return 1 << (count - 1).bit_length()
