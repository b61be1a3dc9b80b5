"""The steps of an engine as programs of a backend: from pieces of sequences to the tokens that are drawn after them.

Each is recorded once for each size, a power of two, and for whether logits are wanted; all else is in its operands. The
newest token of each sequence stays on the device, where the next step finds it. What a step needs of a sequence is in
arrays with a place for each that runs, so that a step takes Python as long for many as for few. Knows nothing of
requests.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alpha import sampling
from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.gpt import GPT, BlockCache, CachedRows
from alpha.scheduler import BLOCK_TOKENS, SCRATCH_BLOCK, Piece, Stream

DRAWN_AHEAD = 32
"""Random numbers of a sequence that are drawn at a time."""


class Draw(NamedTuple):
    """How the tokens of a sequence are drawn; see `Backend.choose`.

    The one at position p is drawn with the random number of (seed, stream, step + p).
    """

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    seed: int
    stream: int
    step: int


@dataclass(frozen=True)
class Step:
    """A step that the backend was given: its pieces, for each the positions whose outputs say how likely the prompt is,
    and what will be there: the tokens chosen after each of the pieces that draw, `drawn` in all, then those after these
    positions, `outputs` with them; the logits stand before them, if they are wanted."""

    pieces: Sequence[Piece]
    scored: Sequence[range]
    drawn: int
    outputs: int
    has_logits: bool
    result: Array


class Steps:
    """The steps of a model for at most `sequences` sequences of at most `pages` blocks of keys and values each, out of
    `blocks` and `SCRATCH_BLOCK`. Raises MemoryError where there is too little memory for those."""

    def __init__(self, model: GPT, sequences: int, pages: int, blocks: int) -> None:
        self.model = model
        dtype = model.parameters.values.dtype
        self._cache = BlockCache(model.backend, model.config, blocks + 1, BLOCK_TOKENS, dtype)
        # Each has a place for each sequence; the last one is nobody's.
        self._newest = model.backend.zeros((sequences + 1, 1), np.int32)
        self._tables = np.full((sequences + 1, pages), SCRATCH_BLOCK, np.int32)
        self._options = np.zeros((sequences + 1, 3), np.float32)
        self._top_k = np.zeros(sequences + 1, np.int32)
        self._numbers = _Numbers(sequences)
        self._blocks: list[Sequence[int]] = [()] * sequences
        self._lengths = [0] * sequences
        self._layout: _Layout | None = None
        """Of the last step, if it did nothing but continue texts."""
        self._programs: dict[tuple[int, int, bool], Callable[..., Array]] = {}

    def give(
        self, pieces: Sequence[Piece], draws: Mapping[Stream, Draw], scored: Sequence[range], has_logits: bool
    ) -> Step:
        """Give the backend the step of these pieces. Of each, `scored` says after which positions there are to be
        outputs besides that after its end, if it draws; it is empty where there are none at all.

        All numbers of rows are filled up to powers of two, so that few programs do for all steps; what fills them up
        belongs to no sequence, and stands in the block that nobody reads.
        """
        streams = [piece.stream for piece in pieces]
        for stream in streams:
            if stream.blocks is not self._blocks[stream.slot] or len(stream.blocks) != self._lengths[stream.slot]:
                self._note(stream, draws[stream])
        layout = self._layout
        is_decode = not has_logits and all(piece.draws and piece.count == 1 for piece in pieces)
        if is_decode and layout is not None and layout.streams == streams:
            layout.go_on()  # all that is new are positions and random numbers
        else:
            layout = _Layout(streams, pieces, scored, len(self._tables) - 1)
            layout.outputs[1, : layout.drawn] = self._top_k[layout.slots]
            layout.options[: layout.drawn, :3] = self._options[layout.slots]
            self._layout = layout if is_decode else None
        _, _, positions, places, sequences = layout.rows
        np.multiply(self._tables[sequences, positions // BLOCK_TOKENS], BLOCK_TOKENS, out=places)
        places += positions % BLOCK_TOKENS
        if layout.shared:  # what others may be reading is there already, with the same bits
            places[layout.shared] = SCRATCH_BLOCK * BLOCK_TOKENS
        layout.options[: layout.drawn, 3] = self._numbers.of(layout.slots, layout.next_positions)

        form = layout.rows.shape[1], layout.outputs.shape[1], has_logits
        backend = self.model.backend
        if form not in self._programs:
            # Not a method of this object, which would keep the model until cycles are looked for.
            program = functools.partial(_program, self.model, self._cache, self._newest, has_logits)
            self._programs[form] = backend.record_inference(program)
        operands = layout.rows, self._tables, layout.outputs, layout.options
        result = self._programs[form](*map(backend.from_numpy, operands))
        return Step(pieces, scored, layout.drawn, layout.wanted, has_logits, result)

    def _note(self, stream: Stream, draw: Draw) -> None:
        """Put where it belongs what a step needs of a stream: its blocks, of which it has got more, or other ones."""
        slot, blocks = stream.slot, stream.blocks
        if blocks is not self._blocks[slot]:  # it has just begun to run
            self._blocks[slot], self._lengths[slot], self._layout = blocks, 0, None
            self._options[slot] = draw.temperature, draw.top_p, draw.min_p
            self._top_k[slot] = draw.top_k
            self._numbers.begin(slot, draw)
        self._tables[slot, self._lengths[slot] : len(blocks)] = blocks[self._lengths[slot] :]
        self._lengths[slot] = len(blocks)


class _Layout:
    """Where everything stands in the operands of `_program` for a step of these pieces; `nobody` has the slot of rows
    that fill up the numbers of rows to powers of two."""

    def __init__(
        self, streams: Sequence[Stream], pieces: Sequence[Piece], scored: Sequence[range], nobody: int
    ) -> None:
        self.streams = streams
        slots = np.array([stream.slot for stream in streams])
        starts = np.array([piece.start for piece in pieces])
        counts = np.array([piece.count for piece in pieces])
        ends = np.cumsum(counts)
        self._total = total = int(ends[-1])
        self.rows = np.zeros((5, _power_of_two(total)), np.int32)
        ids, self._newest, self._positions, _, sequences = self.rows
        owners = np.repeat(np.arange(len(pieces)), counts)
        self._positions[:total] = np.arange(total) - (ends - counts - starts)[owners]
        sequences[:total], sequences[total:] = slots[owners], nobody
        self._newest[:] = -1
        self.shared: list[int] = []
        for piece, end in zip(pieces, ends.tolist(), strict=True):
            known = piece.stream.ids[piece.start : piece.start + piece.count]
            first = end - piece.count
            ids[first : first + len(known)] = known
            if len(known) < piece.count:  # its last id is that of a step under way
                self._newest[end - 1] = piece.stream.slot
            self.shared += range(first, first + min(piece.count, piece.shared))

        drawing = np.flatnonzero([piece.draws for piece in pieces])
        self.slots, self.next_positions, self.drawn = slots[drawing], (starts + counts)[drawing], len(drawing)
        wanted = [*(ends[drawing] - 1).tolist()]
        for piece, places, end in zip(pieces, scored, ends.tolist(), strict=bool(scored)):
            wanted += [place - piece.start + end - piece.count for place in places]
        self.wanted = len(wanted)
        self.outputs = np.zeros((3, _power_of_two(max(1, self.wanted))), np.int32)
        self.outputs[0, : self.wanted] = wanted
        self.outputs[2, : self.drawn], self.outputs[2, self.drawn :] = self.slots, nobody
        self.options = np.zeros((self.outputs.shape[1], 4), np.float32)

    def go_on(self) -> None:
        """The same for the next step, if it and this one do nothing but draw a token of each stream."""
        self._newest[: self._total] = self.slots
        self._positions[: self._total] += 1
        self.next_positions += 1


class _Numbers:
    """The random numbers with which the sequences draw their tokens, of some steps ahead."""

    def __init__(self, sequences: int) -> None:
        self._seeds, self._streams = np.zeros((2, sequences), np.uint64)
        self._steps, self._first = np.zeros((2, sequences), np.int64)
        self._ahead = np.zeros((sequences, DRAWN_AHEAD))

    def begin(self, slot: int, draw: Draw) -> None:
        """Another sequence has this slot now."""
        self._seeds[slot], self._streams[slot], self._steps[slot] = draw.seed, draw.stream, draw.step
        self._first[slot] = np.iinfo(np.int64).max  # nothing is drawn yet

    def of(self, slots: npt.NDArray[np.integer], positions: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """The numbers in [0, 1) for the tokens at these positions."""
        steps = self._steps[slots] + positions
        places = steps - self._first[slots]
        if not ((places >= 0) & (places < DRAWN_AHEAD)).all():  # then for all, so that all are used up together
            self._first[slots], places[:] = steps, 0
            ahead = (steps[:, None] + np.arange(DRAWN_AHEAD)).astype(np.uint64)
            seeds, streams = (np.broadcast_to(each[slots, None], ahead.shape) for each in (self._seeds, self._streams))
            self._ahead[slots] = sampling.random_numbers(seeds, streams, ahead)
        return self._ahead[slots, places]


def _program(
    model: GPT, cache: BlockCache, newest: Array, has_logits: bool, rows: Array, tables: Array, outputs: Array,
    options: Array,
) -> Array:  # fmt: skip
    """A step of the model: the tokens [M] chosen after M of N rows; see `CachedRows`.

    rows [5, N]: ids; slots, where that is not negative the id is the newest one of a slot; and positions, slots and
    sequences of `CachedRows`. outputs [3, M]: a row's number, top_k, the slot that the token goes to. options [M, 4] as
    in `Backend.choose`. With `has_logits` the logits stand before the tokens: [M, V + 1].
    """
    backend = model.backend
    ids, slots, positions, places, sequences = _rows_of(backend, rows)
    wanted, top_k, targets = _rows_of(backend, outputs)
    of_slots = backend.reshape(backend.gather_rows(newest, backend.maximum(slots, 0)), slots.shape)
    ids = backend.where(backend.greater(slots, -1), of_slots, ids)
    hidden = model.hidden_of_rows(ids, CachedRows(backend, cache, positions, places, sequences, tables))
    logits = model.logits_of_rows(backend.gather_rows(hidden, wanted))
    tokens = backend.reshape(backend.choose(logits, options, top_k), (wanted.shape[0], 1))
    backend.put_rows(newest, targets, tokens)
    if has_logits:
        exact = np.float64 if logits.dtype == np.float64 else np.float32  # 16 bits cannot hold every id
        return backend.concatenate([backend.cast(each, exact) for each in (logits, tokens)], 1)
    return backend.reshape(tokens, wanted.shape)


def _rows_of(backend: Backend, array: Array) -> list[Array]:
    count, width = array.shape
    return [backend.reshape(backend.narrow(array, 0, index, 1), (width,)) for index in range(count)]


def _power_of_two(count: int) -> int:
    """The smallest one that is not below."""
    return 1 << (count - 1).bit_length()
