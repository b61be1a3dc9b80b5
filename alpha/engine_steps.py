"""The steps of an engine as programs of a backend: from pieces of sequences to the tokens that are drawn after them.

Each is recorded once for each size, a power of two, for whether logits are wanted, and for whether any are changed
before tokens are chosen; all else is in its operands. The
newest token of each sequence stays on the device, where the next step finds it. What a step needs of a sequence is in
arrays with a place for each that runs, so that a step takes Python as long for many as for few. Knows nothing of
requests.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.gpt import GPT, BlockCache, CachedRows
from alpha.sampling import Choices, SamplingOptions, random_numbers, random_stream
from alpha.scheduler import BLOCK_TOKENS, SCRATCH_BLOCK, Piece, Stream

DRAWN_AHEAD = 32
"""Random numbers of a sequence that are drawn at a time."""

MOST = 1e30
"""Beyond this, temperatures, biases and penalties change nothing any more."""
NEVER = -3e38
"""What is added to the logits of tokens that must not be drawn."""


class Draw(NamedTuple):
    """How the tokens of a sequence are drawn; see `SamplingOptions`, and `Backend.choose`.

    Its first `prompt` ids are no text. The token at position `prompt + n` is drawn with the random number of the seed,
    `row` and `first_step + n`; that at `prompt` is one of `first`, if given.
    """

    sampling: SamplingOptions
    prompt: int
    row: int = 0
    first_step: int = 0
    first: Choices | None = None


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
        self._changes = _Changes(model, sequences)
        self._blocks: list[Sequence[int]] = [()] * sequences
        self._lengths = [0] * sequences
        self._layout: _Layout | None = None
        """Of the last step, if it did nothing but continue texts."""
        self._programs: dict[tuple[int, int, bool, bool], Callable[..., Array]] = {}

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
            layout.penalties = self._changes.of(layout)
            self._layout = layout if is_decode and not layout.shared else None
        _, _, positions, places, sequences = layout.rows
        np.multiply(self._tables[sequences, positions // BLOCK_TOKENS], BLOCK_TOKENS, out=places)
        places += positions % BLOCK_TOKENS
        if layout.shared:  # what others may be reading is there already, with the same bits
            places[layout.shared] = SCRATCH_BLOCK * BLOCK_TOKENS
        layout.options[: layout.drawn, 3] = self._numbers.of(layout.slots, layout.next_positions)

        operands = [layout.rows, self._tables, layout.outputs, layout.options]
        if layout.penalties is not None:
            operands.append(layout.penalties)
        form = layout.rows.shape[1], layout.outputs.shape[1], has_logits, layout.penalties is not None
        backend = self.model.backend
        if form not in self._programs:
            # Not a method of this object, which would keep the model until cycles are looked for.
            changes = self._changes.state if layout.penalties is not None else None
            program = functools.partial(_program, self.model, self._cache, self._newest, changes, has_logits)
            self._programs[form] = backend.record_inference(program)
        result = self._programs[form](*map(backend.from_numpy, operands))
        if self._changes.after(layout.slots):
            self._layout = None
        return Step(pieces, scored, layout.drawn, layout.wanted, has_logits, result)

    def _note(self, stream: Stream, draw: Draw) -> None:
        """Put where it belongs what a step needs of a stream: its blocks, of which it has got more, or other ones."""
        slot, blocks = stream.slot, stream.blocks
        if blocks is not self._blocks[slot]:  # it has just begun to run
            self._blocks[slot], self._lengths[slot], self._layout = blocks, 0, None
            sampling = draw.sampling
            temperature = 0.0 if sampling.temperature < 1 / MOST else min(sampling.temperature, MOST)
            self._options[slot] = temperature, sampling.top_p, sampling.min_p
            self._top_k[slot] = min(sampling.top_k, self.model.vocab_size)
            self._numbers.begin(slot, draw)
            self._changes.begin(slot, draw, stream.ids)
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
        # Of each output: the row that it is of, top_k, the slot that its token goes to, and the one of `_Changes`.
        self.outputs = np.zeros((4, _power_of_two(max(1, self.wanted))), np.int32)
        self.outputs[0, : self.wanted] = wanted
        self.outputs[2:] = nobody
        self.outputs[2, : self.drawn] = self.slots
        self.options = np.zeros((self.outputs.shape[1], 4), np.float32)
        self.penalties: npt.NDArray[np.float32] | None = None

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
        self._seeds[slot], self._streams[slot] = draw.sampling.seed, random_stream(draw.row)
        self._steps[slot] = draw.first_step - draw.prompt
        self._first[slot] = np.iinfo(np.int64).max  # nothing is drawn yet

    def of(self, slots: npt.NDArray[np.integer], positions: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """The numbers in [0, 1) for the tokens at these positions."""
        steps = self._steps[slots] + positions
        places = steps - self._first[slots]
        if not ((places >= 0) & (places < DRAWN_AHEAD)).all():  # then for all, so that all are used up together
            self._first[slots], places[:] = steps, 0
            ahead = (steps[:, None] + np.arange(DRAWN_AHEAD)).astype(np.uint64)
            seeds, streams = (np.broadcast_to(each[slots, None], ahead.shape) for each in (self._seeds, self._streams))
            self._ahead[slots] = random_numbers(seeds, streams, ahead)
        return self._ahead[slots, places]


class _Changes:
    """What changes the logits of sequences before their tokens are chosen: biases and penalties.

    A sequence that needs it has a row on the device, which is written when it begins to run; which tokens its text has
    is counted there.
    """

    def __init__(self, model: GPT, sequences: int) -> None:
        self._backend, self._vocabulary, self._nobody = model.backend, model.vocab_size, sequences
        self._dtype = np.dtype(np.float64 if model.parameters.values.dtype == np.float64 else np.float32)
        self._penalties = np.ones((sequences, 4), np.float32)
        self._is_changed = np.zeros(sequences, np.bool_)
        self._restricted: dict[int, SamplingOptions] = {}
        """Slots whose next token is one of a few."""
        self.state = self._backend.zeros((sequences + 1, 3 * self._vocabulary), self._dtype)
        """What is added, what the prompt has, how often the text has it; nobody's row, the last one, stays zero."""

    def begin(self, slot: int, draw: Draw, ids: Sequence[int]) -> None:
        """A sequence with these ids has the slot now."""
        sampling = draw.sampling
        first = draw.first if len(ids) == draw.prompt else None
        self._restricted.pop(slot, None)
        self._is_changed[slot] = sampling.changes_logits or first is not None
        if not self._is_changed[slot]:
            return
        repetition = min(max(sampling.repetition_penalty, 1 / MOST), MOST)
        others = np.clip([sampling.frequency_penalty, sampling.presence_penalty], -MOST, MOST)
        self._penalties[slot] = repetition, 1 / repetition, *others
        added, prompt, counts = row = np.zeros((3, self._vocabulary), self._dtype)
        if first is not None:
            added[:] = NEVER
            added[first] = 0
            self._restricted[slot] = sampling
        self._bias(added, sampling)
        prompt[ids[: draw.prompt]] = 1
        np.add.at(counts, ids[draw.prompt :], 1)
        target = self._backend.narrow(self.state, 0, slot, 1)
        self._backend.copy_into(target, self._backend.from_numpy(row.reshape(1, -1)))

    def of(self, layout: _Layout) -> npt.NDArray[np.float32] | None:
        """Repetition penalty, its inverse, frequency and presence penalty of each output [M, 4], of which the layout is
        told the slots; None where no logits are changed."""
        is_changed = self._is_changed[layout.slots]
        if not is_changed.any():
            return None
        layout.outputs[3, : layout.drawn] = np.where(is_changed, layout.slots, self._nobody)
        penalties = np.tile(np.array([1, 1, 0, 0], np.float32), (layout.outputs.shape[1], 1))
        penalties[: layout.drawn][is_changed] = self._penalties[layout.slots[is_changed]]
        return penalties

    def after(self, slots: npt.NDArray[np.integer]) -> bool:
        """The device has been given a step that draws a token for each of these; whether it changes anything."""
        drawn = self._restricted.keys() & slots.tolist() if self._restricted else ()
        for slot in drawn:
            sampling = self._restricted.pop(slot)
            self._is_changed[slot] = sampling.changes_logits
            added = np.zeros((1, self._vocabulary), self._dtype)
            self._bias(added[0], sampling)
            target = self._backend.narrow(self._backend.narrow(self.state, 0, slot, 1), 1, 0, self._vocabulary)
            self._backend.copy_into(target, self._backend.from_numpy(added))
        return bool(drawn)

    def _bias(self, added: npt.NDArray[np.floating[Any]], sampling: SamplingOptions) -> None:
        for token, bias in sampling.logit_bias.items():
            if added[token] != NEVER:
                added[token] = min(max(bias, -MOST), MOST)


def changed_logits(backend: Backend, logits: Array, state: Array, slots: Array, penalties: Array) -> Array:
    """Logits [M, V] after what `SamplingOptions` says of biases and penalties; state, slots [M] and penalties [M, 4] as
    in `_Changes`."""
    width = logits.shape[1]
    rows = backend.gather_rows(state, slots)
    added, prompt, counts = (backend.narrow(rows, 1, start, width) for start in (0, width, 2 * width))
    repetition, inverse, frequency, presence = (backend.narrow(penalties, 1, index, 1) for index in range(4))
    logits = backend.add(logits, added)
    factors = backend.where(backend.greater(logits, 0.0), inverse, repetition)
    is_there = backend.greater(backend.add(prompt, counts), 0.0)
    logits = backend.where(is_there, backend.multiply(logits, factors), logits)
    logits = backend.subtract(logits, backend.multiply(counts, frequency))
    return backend.subtract(logits, backend.multiply(backend.minimum(counts, 1.0), presence))


def count_tokens(backend: Backend, state: Array, slots: Array, tokens: Array) -> None:
    """Note in the state that the text of each of slots [M] goes on with one of tokens [M]; nobody's stays as it is."""
    sequences, width = state.shape
    vocabulary = width // 3
    places = backend.add(backend.multiply(slots, width), backend.add(backend.maximum(tokens, 0), 2 * vocabulary))
    flat = backend.reshape(state, (sequences * width, 1))
    counts = backend.add(backend.gather_rows(flat, places), 1.0)
    is_nobody = backend.reshape(backend.greater(slots, sequences - 2), counts.shape)
    backend.put_rows(flat, places, backend.where(is_nobody, 0.0, counts))


def _program(
    model: GPT, cache: BlockCache, newest: Array, changes: Array | None, has_logits: bool, rows: Array, tables: Array,
    outputs: Array, options: Array, penalties: Array | None = None,
) -> Array:  # fmt: skip
    """A step of the model: the tokens [M] chosen after M of N rows; see `CachedRows`.

    rows [5, N]: ids; slots, where that is not negative the id is the newest one of a slot; and positions, slots and
    sequences of `CachedRows`. outputs [4, M] as in `_Layout`, options [M, 4] as in `Backend.choose`; with penalties
    [M, 4], logits are changed before. With `has_logits` they stand before the tokens as they were: [M, V + 1].
    """
    backend = model.backend
    ids, slots, positions, places, sequences = _rows_of(backend, rows)
    wanted, top_k, targets, changed = _rows_of(backend, outputs)
    of_slots = backend.reshape(backend.gather_rows(newest, backend.maximum(slots, 0)), slots.shape)
    ids = backend.where(backend.greater(slots, -1), of_slots, ids)
    hidden = model.hidden_of_rows(ids, CachedRows(backend, cache, positions, places, sequences, tables))
    logits = model.logits_of_rows(backend.gather_rows(hidden, wanted))
    exact = np.float64 if logits.dtype == np.float64 else np.float32  # 16 bits cannot hold every id
    if changes is None or penalties is None:
        tokens = backend.choose(logits, options, top_k)
    else:
        shifted = changed_logits(backend, backend.cast(logits, exact), changes, changed, penalties)
        tokens = backend.choose(shifted, options, top_k)
        count_tokens(backend, changes, changed, tokens)
    column = backend.reshape(tokens, (wanted.shape[0], 1))
    backend.put_rows(newest, targets, column)
    if has_logits:
        return backend.concatenate([backend.cast(each, exact) for each in (logits, column)], 1)
    return tokens


def _rows_of(backend: Backend, array: Array) -> list[Array]:
    count, width = array.shape
    return [backend.reshape(backend.narrow(array, 0, index, 1), (width,)) for index in range(count)]


def _power_of_two(count: int) -> int:
    """The smallest one that is not below."""
    return 1 << (count - 1).bit_length()
