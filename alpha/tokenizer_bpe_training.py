"""Learning the merges of byte-level BPE from a corpus.

Source: Sennrich, Haddow and Birch, 2016, Algorithm 1: again and again the most frequent pair of neighbouring tokens
becomes one token. Equally frequent pairs are taken in order of (left id, right id), so the same texts in the same order
give the same vocabulary everywhere; byte ids are in GPT-2's order, which makes the result that of the ecosystem's
trainer.

All distinct pieces lie in one array of symbols, linked to their neighbours. Each pair knows the positions where it once
occurred, so a merge touches only those, in a handful of numpy calls, and not the corpus.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from alpha.tokenizer import END_OF_TEXT
from alpha.tokenizer_bpe import BYTE_ORDER, BpeTokenizer, escape_surrogates, spell
from alpha.tokenizer_pattern import BYTE_LEVEL_PATTERNS, count_pieces

MIN_PAIR_COUNT = 2
"""A pair that occurs once is not worth a token: nothing could be learned about it."""

_REPORT_EVERY = 16  # tokens
_DEAD = -1
_LEFT = np.int64(1 << 32)
_RIGHT_MASK = (1 << 32) - 1

Integers = npt.NDArray[np.int64]


OnToken = Callable[[int, int], None]
"""Called now and then with the number of tokens so far and the number wanted."""


def build_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_names: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    *,
    warn: Callable[[str], None] = lambda sentence: None,
    on_token: OnToken = lambda done, wanted: None,
) -> BpeTokenizer:
    """A vocabulary of bytes, merges and special tokens, in this order.

    It has at most `vocab_size` tokens, and fewer when the corpus runs out of pairs that occur twice. `vocab_size` must
    have room for 256 bytes and the special tokens.
    """
    names = tuple(special_names)
    counts = count_pieces(map(escape_surrogates, texts), BYTE_LEVEL_PATTERNS[pattern], warn)
    tokens, merges = learn_merges(counts, vocab_size - len(names), on_token)
    special_tokens = {name: len(tokens) + index for index, name in enumerate(names)}
    return BpeTokenizer([*tokens, *names], merges, special_tokens, pattern=pattern)


def learn_merges(
    counts: Mapping[str, int], token_limit: int, on_token: OnToken = lambda done, wanted: None
) -> tuple[list[str], list[tuple[str, str]]]:
    """At most `token_limit` tokens, the 256 bytes first, and the merges that make the others, as `spell` writes them.

    `counts` says how often each piece occurs; lone surrogates in it stand for bytes (PEP 383). No two merges make the
    same token: within the span of a token, earlier merges acted alike wherever it occurs.
    """
    tokens = [spell(bytes([byte])) for byte in BYTE_ORDER]
    merges = []
    symbols = _Symbols(counts)
    while len(tokens) < token_limit:
        pair = symbols.most_frequent_pair()
        if pair is None:
            break
        left, right = tokens[pair[0]], tokens[pair[1]]
        symbols.merge(pair, product=len(tokens))
        tokens.append(left + right)
        merges.append((left, right))
        if len(merges) % _REPORT_EVERY == 0:
            on_token(len(tokens), token_limit)
    on_token(token_limit, token_limit)
    return tokens, merges


class _Symbols:
    """The pieces as linked symbols, and how often each pair of neighbours occurs.

    A pair is the integer left * 2^32 + right. Position `end`, one past the last, is the neighbour of every piece's
    first and last symbol.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        pieces = [piece.encode("utf-8", "surrogateescape") for piece in counts]
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        id_of_byte = np.empty(256, np.int64)
        id_of_byte[np.frombuffer(BYTE_ORDER, np.uint8)] = np.arange(256)
        self._end = end = int(lengths.sum())
        self._symbol = np.full(end + 1, _DEAD, np.int64)
        self._symbol[:end] = id_of_byte[np.frombuffer(b"".join(pieces), np.uint8)]
        self._weight = np.repeat(np.fromiter(counts.values(), np.int64, len(pieces)), lengths)
        self._following = np.arange(1, end + 2)
        self._preceding = np.arange(-1, end)
        last = np.cumsum(lengths)
        self._following[last - 1] = end
        self._preceding[last - lengths] = end
        self._pair_counts: dict[int, int] = {}
        self._positions: dict[int, Integers] = {}
        self._heap: list[tuple[int, int]] = []
        starts = np.flatnonzero(self._following[:end] != end)
        self._add(self._symbol[starts] * _LEFT + self._symbol[starts + 1], starts)

    def most_frequent_pair(self) -> tuple[int, int] | None:
        """The pair to merge next, or None when no pair occurs MIN_PAIR_COUNT times."""
        while self._heap:
            negative_count, pair = self._heap[0]
            count = self._pair_counts.get(pair, 0)
            if count == -negative_count:
                return pair >> 32, pair & _RIGHT_MASK
            # Counts that fell since the entry was made are corrected here, where they matter.
            heapq.heappop(self._heap)
            if count >= MIN_PAIR_COUNT:
                heapq.heappush(self._heap, (-count, pair))
        return None

    def merge(self, pair: tuple[int, int], product: int) -> None:
        """Replace every occurrence of a pair by a new symbol, from left to right where occurrences overlap."""
        key = (pair[0] << 32) + pair[1]
        symbol, following, preceding, end = self._symbol, self._following, self._preceding, self._end
        positions = self._positions[key]
        positions = positions[(symbol[positions] == pair[0]) & (symbol[following[positions]] == pair[1])]
        if pair[0] == pair[1]:
            positions = positions[_every_other_of_runs(positions, following)]
        rights = following[positions]
        before = preceding[positions]
        after = following[rights]
        # Positions rise, so occurrences that touch follow each other here. The pair between them is counted once, as
        # the right neighbour of the first.
        touching = np.zeros(len(positions), bool)
        touching[1:] = after[:-1] == positions[1:]
        with_left = (before != end) & ~touching
        with_right = after != end
        left_of, right_of = before[with_left], positions[with_right]
        self._subtract(
            np.concatenate([symbol[left_of] * _LEFT + pair[0], pair[1] * _LEFT + symbol[after[with_right]]]),
            np.concatenate([left_of, right_of]),
        )
        symbol[positions] = product
        symbol[rights] = _DEAD
        following[positions] = after
        preceding[after] = positions
        if key in self._pair_counts:
            del self._pair_counts[key], self._positions[key]
        self._add(
            np.concatenate([symbol[left_of] * _LEFT + product, product * _LEFT + symbol[after[with_right]]]),
            np.concatenate([left_of, right_of]),
        )

    def _add(self, pairs: Integers, positions: Integers) -> None:
        for pair, where in _grouped(pairs, positions):
            self._pair_counts[pair] = count = int(self._weight[where].sum())
            self._positions[pair] = where
            if count >= MIN_PAIR_COUNT:
                heapq.heappush(self._heap, (-count, pair))

    def _subtract(self, pairs: Integers, positions: Integers) -> None:
        for pair, where in _grouped(pairs, positions):
            self._pair_counts[pair] -= int(self._weight[where].sum())
            if not self._pair_counts[pair]:
                del self._pair_counts[pair], self._positions[pair]


def _grouped(pairs: Integers, positions: Integers) -> Iterator[tuple[int, Integers]]:
    """Each distinct pair with its positions, in rising order if those of the pair were."""
    order = np.argsort(pairs, kind="stable")
    pairs, positions = pairs[order], positions[order]
    bounds = [0, *(np.flatnonzero(pairs[1:] != pairs[:-1]) + 1).tolist(), len(pairs)]
    for start, stop in itertools.pairwise(bounds):
        if start < stop:
            yield int(pairs[start]), positions[start:stop]


def _every_other_of_runs(positions: Integers, following: Integers) -> npt.NDArray[np.bool_]:
    """Of the occurrences of a pair of equal symbols, those that merge: the first, third, ... of each unbroken run."""
    index = np.arange(len(positions))
    starts_run = np.ones(len(positions), bool)
    starts_run[1:] = following[positions[:-1]] != positions[1:]
    run_start = np.maximum.accumulate(np.where(starts_run, index, 0))
    merges: npt.NDArray[np.bool_] = (index - run_start) % 2 == 0
    return merges
