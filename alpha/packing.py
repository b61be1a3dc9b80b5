"""Which documents share a window: whole ones, side by side, that know nothing of each other.

A document is read as a prompt is when a model is used: from its first token, at position 0. One that fits is never cut.
Longer text is divided into pieces of a window's length; a longer conversation is divided after an answer, and goes on
with the next turn. What cannot be learned in its context is left out: the end of an answer that does not fit with its
question, and an answer whose question alone is too long.

Pieces are put into windows by best-fit decreasing (Johnson 1974; for language models Ding et al., "Fewer Truncations
Improve Language Modeling", 2024): the longest first, each where it leaves the least room. Unlike packing in order, that
leaves next to nothing empty with no piece cut. Windows are the same in each pass and come in another random order, so a
batch is a function of its number, with no state to save.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError, percent
from alpha.loss_mask import LossMask
from alpha.sampler import numbers_of_windows, shuffled_windows
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer

Batch = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CutConversations:
    """What became of conversations longer than a window: how many there are, the pieces they are divided into, and how
    many tokens of answers are left out."""

    conversations: int
    pieces: int
    left_out: int


class PackedDocuments:
    """Windows of `block` tokens in which the documents of a token file stand side by side.

    A piece of n tokens and one more takes n places: each token predicts the next. What is left of a window is filled up
    with ends of text, and predicts nothing.
    """

    def __init__(
        self,
        file: TokenFile,
        block: int,
        tokenizer: Tokenizer,
        mask: LossMask | None = None,
    ) -> None:
        """`mask` says which targets count. Raises AlphaError when no document has two tokens."""
        self._file = file
        self._block = block
        self._filler = tokenizer.end_of_text
        self._mask = mask
        ends = {tokenizer.end_of_text, *tokenizer.ends_of_turn}
        turn_marks = np.array([each for each in tokenizer.special_tokens.values() if each not in ends])
        self._starts, self._lengths, self.cut = _pieces(file, block, turn_marks)
        self._order, self._windows = best_fit(self._lengths, block)
        if not len(self):
            raise AlphaError(
                f"No document has two tokens, or a question that leaves room for its answer in a window of {block}; "
                f"use a larger --block, or other data."
            )

    def __len__(self) -> int:
        """The number of windows."""
        return len(self._windows) - 1

    @property
    def pieces(self) -> int:
        return len(self._starts)

    @property
    def filled(self) -> float:
        """The share of the windows' places that are taken."""
        return float(self._lengths.sum()) / max(1, len(self) * self._block)

    def in_words(self) -> list[str]:
        """What becomes of the documents, a sentence each."""
        found = [
            f"Documents share windows, and none sees another: {self.pieces:,} in {len(self):,} windows, which they "
            f"fill to {percent(self.filled)}."
        ]
        if (cut := self.cut).conversations:
            left_out = f"; {cut.left_out:,} tokens of answers do not fit with their questions" if cut.left_out else ""
            found.append(
                f"Conversations longer than a window: {cut.conversations:,}, cut after answers into {cut.pieces:,} "
                f"parts{left_out}."
            )
        return found

    def windows(self, numbers: Places) -> tuple[Batch, Batch, Batch]:
        """Ids, targets and begins of these windows, [len(numbers), block] each; targets that do not count are -1.

        `begins` says of each token where in its window its document begins.
        """
        block = self._block
        counts = self._windows[numbers + 1] - self._windows[numbers]
        pieces = self._order[_ranges(self._windows[numbers], counts)]
        rows = np.repeat(np.arange(len(numbers)), counts)
        lengths = self._lengths[pieces]
        ends = np.cumsum(lengths)  # of the pieces, in all windows
        row_ends = np.concatenate([[0], ends])[np.cumsum(counts)]
        row_starts = np.concatenate([[0], row_ends[:-1]])
        places = ends - lengths - row_starts[rows]  # in their windows
        sources = _ranges(self._starts[pieces], lengths)
        targets_at = _ranges(rows * block + places, lengths)
        ids = np.full(len(numbers) * block, self._filler, np.int32)
        targets = np.full_like(ids, -1)
        begins = np.repeat((row_ends - row_starts).astype(np.int32), block)
        tokens = self._file.tokens
        ids[targets_at] = tokens[sources]
        wanted = tokens[sources + 1].astype(np.int32)
        targets[targets_at] = wanted if self._mask is None else self._mask.masked(wanted, sources + 1)
        begins[targets_at] = np.repeat(places, lengths)
        shape = (len(numbers), block)
        return ids.reshape(shape), targets.reshape(shape), begins.reshape(shape)

    def batches(self, batch: int, count: int = 0, spread: bool = False) -> Iterator[tuple[Batch, Batch, Batch]]:
        """`count` windows in order, `batch` at a time: the first, or with `spread` at equal distances; 0 for all."""
        for numbers in numbers_of_windows(len(self), batch, count, spread):
            yield self.windows(numbers)


class PackedSampler:
    """Batches of packed windows: each pass visits all once, in an order of its own."""

    def __init__(self, documents: PackedDocuments, batch: int, seed: int) -> None:
        self._documents = documents
        self._batch = batch
        self._seed = seed

    def batch_from(self, first: int, count: int | None = None) -> tuple[Batch, Batch, Batch]:
        """Ids, targets and begins, [batch, block] each: the batch, or so many rows, whose row r is window number
        first + r."""
        numbers, _ = shuffled_windows(first, self._batch if count is None else count, len(self._documents), self._seed)
        return self._documents.windows(numbers)


def best_fit(lengths: Places, room: int) -> tuple[Places, Places]:
    """Which of these lengths, each at most `room`, share a window of that room: best-fit decreasing.

    Returns their numbers window by window, in order, and where in them each window begins, and the last one ends.
    Windows are in the order of the first number in each. Works on all pieces of a length at once, so it takes time by
    the lengths and rooms that there are more than by the pieces.
    """
    window_of = np.zeros(len(lengths), np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    open_windows: dict[int, Places] = {}  # by the room that they have left
    rooms: list[int] = []
    count = 0

    def leave(left: int, windows: Places) -> None:
        if left and len(windows):
            if left not in open_windows:
                bisect.insort(rooms, left)
                open_windows[left] = windows
            else:
                open_windows[left] = np.concatenate([open_windows[left], windows])

    bounds = np.flatnonzero(np.diff(lengths[by_length])) + 1
    for alike in np.split(by_length, bounds) if len(lengths) else []:
        pieces = alike
        length = int(lengths[pieces[0]])
        while len(pieces):
            place = bisect.bisect_left(rooms, length)
            if place < len(rooms):
                left = rooms[place]
                there = open_windows.pop(left)
                del rooms[place]
            else:
                left = room
                there = np.arange(count, count - (-len(pieces) // (room // length)))
                count += len(there)
            each = left // length  # pieces that a window takes
            taken = min(len(there), -(-len(pieces) // each))
            put = min(len(pieces), taken * each)
            window_of[pieces[:put]] = np.repeat(there[:taken], each)[:put]
            pieces = pieces[put:]
            full = put // each
            leave(left - each * length, there[:full])
            leave(left - put % each * length, there[full:taken])
            leave(left, there[taken:])
    order = np.argsort(window_of, kind="stable")
    starts = np.flatnonzero(np.diff(window_of[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    by_first = np.argsort(order[starts], kind="stable")
    order = order[_ranges(starts[by_first], sizes[by_first])]
    return order, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[by_first])])


def _ranges(starts: Places, lengths: Places) -> Places:
    """The numbers starts[i] to starts[i] + lengths[i] - 1 of each i, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))


def _pieces(
    file: TokenFile, block: int, turn_marks: npt.NDArray[np.integer[Any]]
) -> tuple[Places, Places, CutConversations]:
    """Where pieces begin, and how many places each takes."""
    ends = file.ends if file.ends[-1:].tolist() == [len(file.tokens)] else np.append(file.ends, len(file.tokens))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    lengths = ends - starts - 1
    long = np.flatnonzero(lengths > block)
    kept = np.flatnonzero((lengths > 0) & (lengths <= block))
    more: list[tuple[int, int]] = []
    conversations = pieces = left_out = 0
    for number in long.tolist():
        start, end = int(starts[number]), int(ends[number])
        found = _turns(file, start, end, block, turn_marks)
        if found is None:
            more += [(place, min(block, end - 1 - place)) for place in range(start, end - 1, block)]
            continue
        more += found[0]
        conversations += 1
        pieces += len(found[0])
        left_out += found[1]
    added = np.array(more, np.int64).reshape(-1, 2)
    all_starts = np.concatenate([starts[kept], added[:, 0]])
    order = np.argsort(all_starts, kind="stable")
    all_lengths = np.concatenate([lengths[kept], added[:, 1]])
    return all_starts[order], all_lengths[order], CutConversations(conversations, pieces, left_out)


def _turns(
    file: TokenFile, start: int, end: int, block: int, turn_marks: npt.NDArray[np.integer[Any]]
) -> tuple[list[tuple[int, int]], int] | None:
    """The pieces of a conversation that is longer than a window, where each begins and how many places it takes; and
    how many tokens of answers are in none.

    None for a document without answers.
    """
    low, high = int(np.searchsorted(file.flips, start, "right")), int(np.searchsorted(file.flips, end))
    edges = file.flips[low + (low % 2 == 0) : high].tolist()  # where answers begin and end, in turn
    answers = list(zip(edges[0::2], [*edges[1::2], end], strict=False))
    if not answers:
        return None
    pieces, left_out = [], 0
    while answers:
        whole = [stop for _, stop in answers if stop - start <= block + 1]
        if whole:
            pieces.append((start, whole[-1] - start - 1))
        elif answers[0][0] - start <= block:
            pieces.append((start, block))
            left_out += answers[0][1] - (start + block + 1)
        else:
            left_out += answers[0][1] - answers[0][0]
        done = max(1, len(whole))
        start = answers[done - 1][1]
        answers = answers[done:]
        if answers:
            between = file.tokens[start : answers[0][0]]
            start += next(iter(np.flatnonzero(np.isin(between, turn_marks)).tolist()), 0)
    return pieces, left_out
