"""Which windows of a token array make up each batch: a pure function of the batch's index, with no state to save.

Knows nothing about files, text or models; token ids in, token ids out.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import rng
from alpha.errors import AlphaError
from alpha.loss_mask import LossMask

Tokens = npt.NDArray[np.integer[Any]]
Batch = npt.NDArray[np.int32]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8


class Sampler:
    """Batches of training windows; each window is `block` + 1 consecutive tokens.

    Not packed: windows begin at independent uniformly random places. Packed: the tokens are taken as a ring and rotated
    by a random phase for each pass, and a pass visits each of its len(tokens) // block windows, whose inputs do not
    overlap, once in random order; the window that crosses the ring's joint continues with the first token.
    """

    def __init__(
        self, tokens: Tokens, block: int, batch: int, seed: int, packed: bool, mask: LossMask | None = None
    ) -> None:
        """`mask` says which targets count; without one, all do. Raises AlphaError for fewer tokens than one window."""
        if len(tokens) <= block:
            raise AlphaError(
                f"The data has {len(tokens):,} tokens but one window needs {block + 1:,}; "
                f"use a smaller --block or more data."
            )
        self._tokens = tokens
        self._block = block
        self._batch = batch
        self._seed = seed
        self._packed = packed
        self._mask = mask
        self._windows = np.lib.stride_tricks.sliding_window_view(tokens, block + 1)

    def batch_at(self, index: int) -> Batch:
        """Batch number `index`, [batch, block + 1]; see `inputs_and_targets`.

        Row r is window number index * batch + r, so that the sequence of windows is the same for every batch size.
        """
        return self.windows_from(index * self._batch)

    def batch_from(self, first: int, count: int | None = None) -> tuple[Tokens, Tokens]:
        """Ids and targets of `windows_from`, [batch, block] both; targets that do not count are -1."""
        ids, targets = inputs_and_targets(self.windows_from(first, count))
        if self._mask is None:
            return ids, targets
        places = self._offsets(first, len(ids))[:, None] + np.arange(1, self._block + 1)
        return ids, self._mask.masked(targets, places % len(self._tokens))

    def windows_from(self, first: int, count: int | None = None) -> Batch:
        """The batch, or so many rows, whose row r is window number first + r."""
        offsets = self._offsets(first, self._batch if count is None else count)
        inside = offsets < len(self._windows)
        rows = self._windows[np.where(inside, offsets, 0)].astype(np.int32)
        for row in np.flatnonzero(~inside):
            end = self._tokens[offsets[row] :]
            rows[row, : len(end)] = end
            rows[row, len(end) :] = self._tokens[: rows.shape[1] - len(end)]
        return rows

    def _offsets(self, first: int, count: int) -> npt.NDArray[np.int64]:
        return self._packed_offsets(first, count) if self._packed else self._random_offsets(first, count)

    def _random_offsets(self, first: int, count: int) -> npt.NDArray[np.int64]:
        # The remainder of 64 random bits: below 2^48 tokens, no place is likelier than another by more than 2^-16.
        return (_random_words(count, first, self._seed, "random") % np.uint64(len(self._windows))).astype(np.int64)

    def _packed_offsets(self, first: int, count: int) -> npt.NDArray[np.int64]:
        shuffled, words = shuffled_windows(first, count, len(self._tokens) // self._block, self._seed)
        phases = (words % np.uint64(len(self._tokens))).astype(np.int64)
        return (phases + shuffled * self._block) % len(self._tokens)


def shuffled_windows(first: int, count: int, size: int, seed: int) -> tuple[npt.NDArray[np.int64], _Words]:
    """Which of `size` windows the `count` draws from number `first` on are, and a random word of each one's pass.

    Each pass visits all once, in a random order of its own.
    """
    first_pass, first_position = divmod(first, size)
    passes, positions = np.divmod(first_position + np.arange(count, dtype=np.int64), size)
    width = _ROUNDS + 1
    words = _random_words((int(passes[-1]) + 1) * width, first_pass * width, seed, "packed").reshape(-1, width)
    keys = words[passes]
    return permute(positions.astype(np.uint64), size, keys[:, 1:]).astype(np.int64), keys[:, 0]


def _random_words(count: int, start: int, seed: int, purpose: str) -> _Words:
    bits = rng.random_bits(2 * count, seed, rng.stream_of("sampler", purpose), start=2 * start)
    halves = bits.astype(np.uint64).reshape(count, 2)
    return halves[:, 0] << np.uint64(32) | halves[:, 1]


def inputs_and_targets(windows: Tokens) -> tuple[Tokens, Tokens]:
    """Of windows [..., T + 1], the ids and what they are to predict, [..., T] both: each token predicts the next."""
    return windows[..., :-1], windows[..., 1:]


def permute(positions: _Words, size: int, keys: _Words) -> _Words:
    """Where a keyed permutation of range(size) takes each position; `keys` is [len(positions), rounds].

    A Feistel network on pairs (high, low) of residues, with cycle walking from the few numbers beyond `size`: Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002. For size below 2^62.
    """
    rows = math.isqrt(size - 1) + 1 if size > 1 else 1
    columns = -(-size // rows)
    values = positions.copy()
    walking = np.arange(len(values))
    while len(walking):
        high, low = np.divmod(values[walking], np.uint64(columns))
        for step in range(keys.shape[1]):
            key = keys[walking, step]
            if step % 2:
                low = (low + _mix(high ^ key)) % np.uint64(columns)
            else:
                high = (high + _mix(low ^ key)) % np.uint64(rows)
        values[walking] = high * np.uint64(columns) + low
        walking = walking[values[walking] >= size]
    return values


def windows(
    tokens: Tokens, block: int, batch: int, count: int = 0, spread: bool = False, mask: LossMask | None = None
) -> Iterator[tuple[Batch, Batch]]:
    """Inputs and targets, both [B, T], of windows in order; they are the same windows whatever the batch.

    All windows together predict every token but the first exactly once. `count` takes that many of them, the first or
    with `spread` at equal distances, unless it is 0 or no fewer than there are. B is `batch` and T is `block` until
    the end: there one batch has the remaining full windows, and, where all are taken, one of a single shorter window
    the remaining tokens. With a `mask`, targets that do not count are -1.
    """
    full = (len(tokens) - 1) // block
    is_part = bool(count) and count * block < len(tokens) - 1

    def batch_at(starts: npt.NDArray[np.int64], length: int) -> tuple[Batch, Batch]:
        places = starts[:, None] + np.arange(length + 1)
        rows = tokens[places].astype(np.int32)
        ids, targets = rows[:, :-1], rows[:, 1:]
        targets = targets if mask is None else mask.masked(targets, places[:, 1:])
        return np.ascontiguousarray(ids), np.ascontiguousarray(targets)

    for numbers in numbers_of_windows(full, batch, count if is_part else 0, spread):
        yield batch_at(numbers * block, block)
    rest = len(tokens) - 1 - full * block
    if rest > 0 and not is_part:
        yield batch_at(np.array([full * block]), rest)


def numbers_of_windows(size: int, batch: int, count: int, spread: bool) -> Iterator[npt.NDArray[np.int64]]:
    """Which of `size` windows are taken, `batch` at a time: the first `count`, or with `spread` as many at equal
    distances; all for 0."""
    taken = min(count, size) if count else size
    for first in range(0, taken, batch):
        numbers = np.arange(first, min(first + batch, taken))
        yield numbers * size // taken if spread else numbers


def _mix(words: _Words) -> _Words:
    """63 well mixed bits of each word: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))) >> np.uint64(1)
