"""The steps of an engine as programs of a backend: from pieces of sequences to the tokens that are drawn after them.

Each is recorded once for each size, a power of two, for how many of the likeliest tokens are wanted, and for whether
logits are changed before tokens are chosen; all else is in its operands. The newest token of each sequence stays on the
device, where the next step finds it. What a step needs of a sequence is in arrays with a place for each that runs, so
that a step takes Python hardly longer for many than for few. Knows nothing of requests.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.gpt import GPT, BlockCache, CachedRows
from alpha.sampling import LogProbs, log_probs
from alpha.sampling_device import (
    MOST,
    MOST_LIKELIEST,
    Changes,
    Draw,
    Numbers,
    changed_logits,
    count_tokens,
    log_probabilities,
)
from alpha.scheduler import BLOCK_TOKENS, SCRATCH_BLOCK, Piece, Stream


@dataclass(frozen=True)
class Step:
    """A step that the backend was given: its pieces, for each the positions whose outputs say how likely the prompt is,
    and what will be there: the tokens chosen after each of the pieces that draw, `drawn` in all, then those after these
    positions, `outputs` with them. Before each stand `log_probabilities` of `likeliest` tokens, or where those are more
    than `MOST_LIKELIEST`, the logits; nothing where it is None."""

    pieces: Sequence[Piece]
    scored: Sequence[range]
    drawn: int
    outputs: int
    likeliest: int | None
    result: Array

    def log_probs(self, values: npt.NDArray[np.floating[Any]], token: int, count: int) -> LogProbs:
        """Those of a token and of the `count` likeliest ones, from what stands before one."""
        most = self.likeliest or 0
        if most > MOST_LIKELIEST:
            return log_probs(values, token, count)
        ids = values[1 : 1 + min(count, most)].astype(int).tolist()
        return LogProbs(float(values[0]), ids, values[1 + most :][: len(ids)].tolist())


class Steps:
    """The steps of a model for at most `sequences` sequences of at most `pages` blocks of keys and values each, out of
    `blocks` and `SCRATCH_BLOCK`. Raises MemoryError where there is too little memory for those."""

    def __init__(self, model: GPT, sequences: int, pages: int, blocks: int) -> None:
        self.model = model
        self._cache = BlockCache(model.backend, model.config, blocks + 1, BLOCK_TOKENS, model.cache_dtype)
        # Each has a place for each sequence; the last one is nobody's.
        self._newest = model.backend.zeros((sequences + 1, 1), np.int32)
        self._tables = np.full((sequences + 1, pages), SCRATCH_BLOCK, np.int32)
        self._options = np.zeros((sequences + 1, 3), np.float32)
        self._top_k = np.zeros(sequences + 1, np.int32)
        self._numbers = Numbers(sequences)
        self._exact = np.float64 if model.parameters.values.dtype == np.float64 else np.float32
        self._changes = Changes(model.backend, model.vocab_size, sequences, self._exact)
        self._blocks: list[Sequence[int]] = [()] * sequences
        self._lengths = [0] * sequences
        self._layout: _Layout | None = None
        """Of the last step, if it did nothing but continue texts."""
        self._programs: dict[tuple[int, int, int | None, bool, bool], Callable[..., Array]] = {}

    def give(
        self, pieces: Sequence[Piece], draws: Mapping[Stream, Draw], scored: Sequence[range], likeliest: int | None
    ) -> Step:
        """Give the backend the step of these pieces. Of each, `scored` says after which positions there are to be
        outputs besides that after its end, if it draws; it is empty where there are none at all. With `likeliest`, log-
        probabilities of so many tokens at least are wanted.

        All numbers of rows are filled up to powers of two, so that few programs do for all steps; what fills them up
        belongs to no sequence, and stands in the block that nobody reads.
        """
        streams = [piece.stream for piece in pieces]
        for stream in streams:
            if stream.blocks is not self._blocks[stream.slot] or len(stream.blocks) != self._lengths[stream.slot]:
                self._note(stream, draws[stream])
        layout = self._layout
        is_decode = not scored and all(piece.draws and piece.count == 1 for piece in pieces)
        if is_decode and layout is not None and layout.streams == streams:
            layout.go_on()  # all that is new are positions and random numbers
        else:
            layout = _Layout(streams, pieces, scored, self._tables.shape)
            layout.outputs[1, : layout.drawn] = self._top_k[layout.slots]
            layout.options[: layout.drawn, :3] = self._options[layout.slots]
            if changes := self._changes.of(layout.slots, layout.outputs.shape[1]):
                layout.outputs[3], layout.penalties = changes
            self._layout = layout if is_decode and not layout.shared else None
        _, _, positions, places, _ = layout.rows
        pages = positions // BLOCK_TOKENS
        places[:] = (self._tables.take(layout.first_pages + pages) - pages) * BLOCK_TOKENS + positions
        if layout.shared:  # what others may be reading is there already, with the same bits
            places[layout.shared] = SCRATCH_BLOCK * BLOCK_TOKENS
        layout.options[: layout.drawn, 3] = self._numbers.of(layout.slots, layout.next_positions)

        operands = [layout.rows, self._tables, layout.outputs, layout.options]
        if layout.penalties is not None:
            operands.append(layout.penalties)
        if likeliest is not None:  # of few sizes, too
            likeliest = min(likeliest if likeliest <= 2 else -(-likeliest // 4) * 4, self.model.vocab_size)
        form = layout.rows.shape[1], layout.outputs.shape[1], likeliest, layout.penalties is not None, is_decode
        backend = self.model.backend
        if form not in self._programs:
            # Not a method of this object, which would keep the model until cycles are looked for.
            changes = self._changes.state if layout.penalties is not None else None
            program = functools.partial(
                _program, self.model, self._cache, self._newest, changes, likeliest, self._exact, is_decode
            )
            self._programs[form] = backend.record_inference(program)
        result = self._programs[form](*map(backend.from_numpy, operands))
        if self._changes.after(layout.slots):
            self._layout = None
        return Step(pieces, scored, layout.drawn, layout.wanted, likeliest, result)

    def _note(self, stream: Stream, draw: Draw) -> None:
        """Put where it belongs what a step needs of a stream: its blocks, of which it has got more, or other ones."""
        slot, blocks = stream.slot, stream.blocks
        if blocks is not self._blocks[slot]:  # it has just begun to run
            self._blocks[slot], self._lengths[slot], self._layout = blocks, 0, None
            sampling = draw.sampling
            temperature = 0.0 if sampling.temperature < 1 / MOST else min(sampling.temperature, MOST)
            self._options[slot] = temperature, sampling.top_p, sampling.min_p
            self._top_k[slot] = min(sampling.top_k, self.model.vocab_size)
            self._numbers.begin(slot, draw, len(stream.ids))
            self._changes.begin(slot, draw, stream.ids)
        self._tables[slot, self._lengths[slot] : len(blocks)] = blocks[self._lengths[slot] :]
        self._lengths[slot] = len(blocks)


class _Layout:
    """Where everything stands in the operands of `_program` for a step of these pieces; the last of the tables, whose
    shape is given, is that of rows which fill up the numbers of rows to powers of two."""

    def __init__(
        self,
        streams: Sequence[Stream],
        pieces: Sequence[Piece],
        scored: Sequence[range],
        tables: tuple[int, int],
    ) -> None:
        nobody = tables[0] - 1
        self.streams = streams
        self._total = total = sum(piece.count for piece in pieces)
        self.rows = np.zeros((5, _power_of_two(total)), np.int32)
        ids, self._newest, self._positions, _, sequences = self.rows
        sequences[total:] = self._newest[:] = nobody
        self.shared: list[int] = []
        firsts = list(itertools.accumulate((piece.count for piece in pieces), initial=0))
        for piece, first in zip(pieces, firsts, strict=False):
            stream, start, count = piece.stream, piece.start, piece.count
            known = stream.ids[start : start + count]
            ids[first : first + len(known)] = known
            if len(known) < count:  # its last id is that of a step under way
                self._newest[first + count - 1] = stream.slot
            self._positions[first : first + count] = np.arange(start, start + count) if count > 1 else start
            sequences[first : first + count] = stream.slot
            if piece.shared:
                self.shared += range(first, first + min(count, piece.shared))
        self.first_pages = sequences * tables[1]
        """Where the table of each row's sequence begins if all stand in one."""

        drawing = [(piece, first) for piece, first in zip(pieces, firsts, strict=False) if piece.draws]
        self.slots = np.array([piece.stream.slot for piece, _ in drawing], np.int64)
        self.next_positions = np.array([piece.start + piece.count for piece, _ in drawing], np.int64)
        self.drawn = len(drawing)
        wanted, asked = [first + piece.count - 1 for piece, first in drawing], [-1] * len(drawing)
        for piece, places, first in zip(pieces, scored, firsts, strict=False):
            wanted += [place - piece.start + first for place in places]
            asked += [piece.stream.ids[place + 1] for place in places]
        self.wanted = len(wanted)
        # Of each output: the row that it is of, top_k, the slot that its token goes to, that of its `Changes`, and the
        # id whose probability is asked for if it is not the one that is chosen.
        self.outputs = np.zeros((5, _power_of_two(self.wanted) if self.wanted else 0), np.int32)
        self.outputs[0, : self.wanted] = wanted
        self.outputs[2:4] = nobody
        self.outputs[2, : self.drawn] = self.slots
        self.outputs[4, : self.wanted] = asked
        self.options = np.zeros((self.outputs.shape[1], 4), np.float32)
        self.penalties: npt.NDArray[np.float32] | None = None

    def go_on(self) -> None:
        """The same for the next step, if it and this one do nothing but draw a token of each stream."""
        self._newest[: self._total] = self.slots
        self._positions[: self._total] += 1
        self.next_positions += 1


def _program(
    model: GPT, cache: BlockCache, newest: Array, changes: Array | None, likeliest: int | None, exact: npt.DTypeLike,
    is_decode: bool, rows: Array, tables: Array, outputs: Array, options: Array, penalties: Array | None = None,
) -> Array:  # fmt: skip
    """A step of the model: the tokens [M] chosen after M of N rows; see `CachedRows`.

    rows [5, N] and outputs [5, M] are as in `_Layout`, options [M, 4] as in `Backend.choose`; with penalties [M, 4],
    logits are changed before. With `is_decode`, outputs are those of the rows, in order. With `likeliest`, what `Step`
    says stands before the tokens, of the model's own logits, in a type that holds every id.
    """
    backend = model.backend
    ids, slots, positions, places, sequences = _rows_of(backend, rows)
    wanted, top_k, targets, changed, asked = _rows_of(backend, outputs)
    ids = backend.newest_ids(backend.reshape(newest, (newest.shape[0],)), slots, ids)
    read = CachedRows(backend, cache, positions, places, sequences, tables, None if is_decode else wanted)
    logits = model.logits_of_rows(model.hidden_of_rows(ids, read))
    if changes is None or penalties is None:
        tokens = backend.choose(logits, options, top_k)
    else:
        shifted = changed_logits(backend, backend.cast(logits, exact), changes, changed, penalties)
        tokens = backend.choose(shifted, options, top_k)
        count_tokens(backend, changes, changed, tokens)
    column = backend.reshape(tokens, (wanted.shape[0], 1))
    backend.put_rows(newest, targets, column)
    if likeliest is None:
        return tokens
    before = backend.cast(logits, exact)
    if likeliest <= MOST_LIKELIEST:
        chosen = backend.where(backend.greater(asked, -1), asked, backend.maximum(tokens, 0))
        before = log_probabilities(backend, before, chosen, likeliest)
    return backend.concatenate([before, backend.cast(column, exact)], 1)


def _rows_of(backend: Backend, array: Array) -> list[Array]:
    count, width = array.shape
    return [backend.reshape(backend.narrow(array, 0, index, 1), (width,)) for index in range(count)]


def _power_of_two(count: int) -> int:
    """The smallest one that is not below."""
    return 1 << (count - 1).bit_length()
