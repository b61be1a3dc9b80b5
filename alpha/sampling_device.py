"""How the tokens of an engine's sequences are drawn on a device, and how likely they were.

Random numbers, biases and penalties are in arrays with a place for each sequence that runs, its slot; the rest are
functions of a backend's arrays, which become part of a step. Knows nothing of models and requests.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.sampling import Choices, SamplingOptions, random_number, random_numbers, random_stream

Places = npt.NDArray[np.integer[Any]]

DRAWN_AHEAD = 32
"""Random numbers of a sequence that are drawn at a time."""

MOST = 1e30
"""Beyond this, temperatures, biases and penalties change nothing any more."""
NEVER = -3e38
"""What is added to the logits of tokens that must not be drawn."""

MOST_LIKELIEST = 32
"""So many of the likeliest tokens are found on a device, one after the other; for more, logits are read back."""


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


class Numbers:
    """The random numbers with which the sequences draw their tokens, of some steps ahead."""

    def __init__(self, sequences: int) -> None:
        self._seeds, self._streams = np.zeros((2, sequences), np.uint64)
        self._steps, self._first = np.zeros((2, sequences), np.int64)
        self._ahead = np.zeros((sequences, DRAWN_AHEAD))

    def begin(self, slot: int, draw: Draw, position: int) -> None:
        """Another sequence has this slot now, whose first token to be drawn is at this position."""
        seed, stream, step = draw.sampling.seed, random_stream(draw.row), draw.first_step - draw.prompt
        self._seeds[slot], self._streams[slot], self._steps[slot] = seed, stream, step
        # One by itself takes a fraction of the time, and the end of a prompt waits for it: it is the last one ahead.
        self._first[slot] = step + position - DRAWN_AHEAD + 1
        self._ahead[slot, -1] = random_number(seed, stream, step + position)

    def of(self, slots: Places, positions: Places) -> npt.NDArray[np.float64]:
        """The numbers in [0, 1) for the tokens at these positions."""
        steps = self._steps[slots] + positions
        places = steps - self._first[slots]
        if (places >= DRAWN_AHEAD).any():  # one is lacking: then for all, so that all are used up together
            self._first[slots], places[:] = steps, 0
            ahead = (steps[:, None] + np.arange(DRAWN_AHEAD)).astype(np.uint64)
            seeds, streams = (np.broadcast_to(each[slots, None], ahead.shape) for each in (self._seeds, self._streams))
            self._ahead[slots] = random_numbers(seeds, streams, ahead)
        return self._ahead[slots, places]


class Changes:
    """What changes the logits of sequences before their tokens are chosen: biases and penalties.

    A sequence that needs it has a row on the device, which is written when it begins to run; which tokens its text has
    is counted there.
    """

    def __init__(self, backend: Backend, vocabulary: int, sequences: int, dtype: npt.DTypeLike) -> None:
        self._backend, self._vocabulary, self._nobody, self._dtype = backend, vocabulary, sequences, np.dtype(dtype)
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

    def of(self, slots: Places, outputs: int) -> tuple[Places, npt.NDArray[np.float32]] | None:
        """For so many outputs, of which the first are of these slots: the slots whose rows are meant [outputs], and
        repetition penalty, its inverse, frequency and presence penalty [outputs, 4]. None where nothing is changed."""
        is_changed = self._is_changed[slots]
        if not is_changed.any():
            return None
        rows = np.full(outputs, self._nobody)
        rows[: len(slots)][is_changed] = slots[is_changed]
        penalties = np.tile(np.array([1, 1, 0, 0], np.float32), (outputs, 1))
        penalties[: len(slots)][is_changed] = self._penalties[slots[is_changed]]
        return rows, penalties

    def after(self, slots: Places) -> bool:
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
    in `Changes`."""
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


def log_probabilities(backend: Backend, logits: Array, ids: Array, count: int) -> Array:
    """[M, 1 + 2 count] of logits [M, V]: natural logarithms of the probability of one of ids [M], then the `count`
    likeliest ids, and theirs."""
    M, V = logits.shape
    begins = backend.from_numpy(np.arange(0, M * V, V, dtype=np.int32))

    def likeliest(left: Array) -> Array:
        return backend.maximum(backend.choose(left, greedy, all_of_them), 0)

    greedy, all_of_them = backend.zeros((M, 4), logits.dtype), backend.zeros((M,), np.int32)
    best = likeliest(logits)
    # The likeliest one's probability is 1 / sum(exp(logit - largest)), of which nothing is lost.
    largest = backend.log(backend.pick(backend.softmax(logits), best))
    base = backend.subtract(largest, backend.pick(logits, best))
    found, values = [], [backend.add(backend.pick(logits, ids), base)]
    left = backend.add(logits, 0.0)
    never = backend.empty((M, 1), logits.dtype)
    backend.fill(never, NEVER)
    for index in range(count):
        if index:
            backend.put_rows(backend.reshape(left, (M * V, 1)), backend.add(best, begins), never)
            best = likeliest(left)
        found.append(backend.cast(best, logits.dtype))
        values.append(backend.add(backend.pick(logits, best), base))
    columns = [values[0], *found, *values[1:]]
    return backend.concatenate([backend.reshape(each, (M, 1)) for each in columns], 1)
