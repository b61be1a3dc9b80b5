"""Byte-level byte-pair encoding: every text and every sequence of bytes has an encoding that decodes back exactly, but
where the vocabulary of others lacks bytes.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, on bytes as
in Radford et al., 2019. A text is divided into pieces; each piece starts as single bytes; while two neighbours have a
merge, the pair whose merge was learned first is joined, the leftmost when it occurs twice.

Bytes that are not UTF-8 are divided as if each were a punctuation mark of its own kind (a lone surrogate, as PEP 383
writes it), so valid parts of a byte string are divided as the same text would be.

Merges are learned by Algorithm 1 of the paper: again and again the most frequent pair of neighbouring tokens becomes
one token. Equally frequent pairs are taken in order of (left id, right id), so the same texts in the same order give
the same vocabulary everywhere; byte ids are in GPT-2's order, which makes the result that of the ecosystem's trainer.
All distinct pieces lie in one array of symbols, linked to their neighbours. Each pair knows the positions where it once
occurred, so a merge touches only those, in a handful of numpy calls, and not the corpus.
"""

import heapq
import itertools
import re
import unicodedata
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.tokenizer import END_OF_TEXT, TokenArray, Tokenizer, artifact, is_unicode, malformed, read_vocabulary, shown
from alpha.tokenizer_pattern import BYTE_LEVEL_PATTERNS, count_pieces

CACHED_PIECES = 1 << 18
CACHED_PIECE_LENGTH = 64
_LONG_PIECE = 64
_NO_MERGE = 1 << 62
_BEFORE_SPACE = (re.compile(r" (?<=\S )"),)

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(_PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE])
"""The bytes in the order of GPT-2's first 256 ids: printable ones, then the others."""

_PLAIN = (*b"\n", *range(0x20, 0x7F))

_CHARACTERS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + index) for index in range(256 - len(_PRINTABLE))]
_TO_CHARACTER = dict(zip(BYTE_ORDER, _CHARACTERS, strict=True))
_FROM_CHARACTER = {ord(character): byte for byte, character in _TO_CHARACTER.items()}


def spell(token: bytes) -> str:
    """Bytes as visible characters, one each: the code of GPT-2's vocabulary, in which a space is 'Ġ'."""
    return token.decode("latin-1").translate(_TO_CHARACTER)


def unspell(text: str) -> bytes | None:
    """The bytes that `spell` wrote so, or None when it writes nothing so."""
    codes = [_FROM_CHARACTER.get(ord(character)) for character in text]
    return None if None in codes else bytes(code for code in codes if code is not None)


class BpeTokenizer(Tokenizer):
    """Merges by rank, with a bounded memory of pieces that were merged before."""

    kind = "bpe"

    def __init__(
        self,
        tokens: list[str],
        merges: list[tuple[str, str]],
        special_tokens: dict[str, int],
        *,
        pattern: str = "gpt2",
        whole_pieces: bool = False,
        composes: bool = False,
        prefixes: bool = False,
        added_tokens: Collection[str] = (),
        source: str = "in memory",
    ) -> None:
        """A vocabulary as `spell` writes it (special tokens verbatim) and merges in the order of their ranks.

        With `whole_pieces`, a piece that is a token is that token whatever the merges say (`ignore_merges` of the
        ecosystem). `composes`: text is brought to Unicode's form NFC first. `prefixes`: a text that does not begin with
        a space gets one. `added_tokens` are verbatim, too, and found in every text before it is divided. Bytes that
        have no token, rare ones in vocabularies of others, are left out, as the `tokenizers` package does. AlphaError
        names `source` when a token or merge is impossible, or a byte of plain text has no token.
        """
        added = frozenset(added_tokens)
        verbatim = {*special_tokens, *added}
        token_bytes = _token_bytes(tokens, verbatim, source)
        super().__init__(token_bytes, special_tokens)
        self.tokens = tokens
        self.merges = merges
        self.pattern = pattern
        self.whole_pieces = whole_pieces
        self.composes = composes
        self.prefixes = prefixes
        self.added_tokens = {token: index for index, token in enumerate(tokens) if token in added}
        ids = {token: index for index, token in enumerate(tokens) if token not in verbatim}
        self._byte_ids = _byte_ids(ids, source)
        self._lacks_bytes = min(self._byte_ids) < 0
        self._ranks, self._products = rank_merges(merges, ids, source)
        self._whole = {token_bytes[index]: index for index in ids.values()} if whole_pieces else {}
        self.cuts = _BEFORE_SPACE if prefixes else BYTE_LEVEL_PATTERNS[pattern].cuts
        for token in self.added_tokens:
            if any(cut.search(token, 1) for cut in self.cuts):
                raise malformed(source, f"its added token {shown(token)} is not special and has a place to cut a text")
        longest_first = sorted(self.added_tokens, key=lambda name: (-len(name), name))
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._segments = BYTE_LEVEL_PATTERNS[pattern].segments
        self._merged = PieceCache(self._merge_piece)

    def encode_bytes(self, content: bytes) -> list[int]:
        """The ids of any bytes; those of UTF-8 are the ids of the text. `decode_bytes` gives the bytes back, unless
        text is changed before it is divided."""
        ids: list[int] = self._encode_escaped(content.decode("utf-8", "surrogateescape")).tolist()
        return ids

    def to_mapping(self) -> dict[str, Any]:
        merges = [" ".join(merge) for merge in self.merges]
        changes = {"composes": self.composes, "prefixes": self.prefixes, "added_tokens": list(self.added_tokens)}
        return artifact(
            self.kind,
            self.tokens,
            self.special_tokens,
            pattern=self.pattern,
            whole_pieces=self.whole_pieces,
            **{name: value for name, value in changes.items() if value},
            merges=merges,
        )

    def _encode_ordinary(self, text: str) -> TokenArray:
        return self._encode_escaped(escape_surrogates(text))

    def _open_ending(self, text: str) -> str:
        return BYTE_LEVEL_PATTERNS[self.pattern].open_ending(text)

    def _encode_escaped(self, text: str) -> TokenArray:
        if not self.added_tokens:
            return self._encode_part(text)
        parts = self._added_pattern.split(text)
        arrays = [
            np.array([self.added_tokens[part]], np.uint32) if index % 2 else self._encode_part(part)
            for index, part in enumerate(parts)
        ]
        return np.concatenate(arrays)

    def _encode_part(self, text: str) -> TokenArray:
        """The ids of a text without added tokens."""
        if self.composes:
            text = unicodedata.normalize("NFC", text)
        if self.prefixes and text and not text.startswith(" "):
            text = " " + text
        find = self._merged.__getitem__
        packed = bytearray().join(b"".join(map(find, pieces)) for pieces in self._segments(text))
        return np.frombuffer(packed, np.uint32)

    def _merge_piece(self, piece: str) -> bytes:
        """The ids of one piece as packed 32-bit integers."""
        content = piece.encode("utf-8", "surrogateescape")
        whole = self._whole.get(content)
        if whole is not None:
            return array("I", [whole]).tobytes()
        ids = list(map(self._byte_ids.__getitem__, content))
        if self._lacks_bytes:
            ids = [token for token in ids if token >= 0]
        merge = merge_by_scanning if len(ids) < _LONG_PIECE else merge_by_heap
        return array("I", merge(ids, self._ranks, self._products)).tobytes()


class PieceCache(dict[str, bytes]):
    """The merged ids of short pieces, forgotten all at once when there are too many."""

    def __init__(self, merge: Callable[[str], bytes]) -> None:
        super().__init__()
        self._merge = merge

    def __missing__(self, piece: str) -> bytes:
        packed = self._merge(piece)
        if len(piece) <= CACHED_PIECE_LENGTH:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = packed
        return packed


def escape_surrogates(text: str) -> str:
    """A text whose lone surrogates are written as the three bytes that UTF-8 would give them, escaped by PEP 383."""
    if is_unicode(text):
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def merge_by_scanning(ids: list[int], ranks: dict[tuple[int, int], int], products: list[int]) -> list[int]:
    """`ids` after all merges; the best pair is found by scanning, which is fastest for short pieces."""
    rank_of = ranks.get
    pair_ranks = [rank_of(pair, _NO_MERGE) for pair in itertools.pairwise(ids)]
    while pair_ranks:
        best = min(pair_ranks)
        if best == _NO_MERGE:
            break
        index = pair_ranks.index(best)
        product = products[best]
        ids[index : index + 2] = [product]
        del pair_ranks[index]
        if index:
            pair_ranks[index - 1] = rank_of((ids[index - 1], product), _NO_MERGE)
        if index < len(pair_ranks):
            pair_ranks[index] = rank_of((product, ids[index + 1]), _NO_MERGE)
    return ids


def merge_by_heap(ids: list[int], ranks: dict[tuple[int, int], int], products: list[int]) -> list[int]:
    """The same result in time that grows as n log n: neighbours are linked, candidate pairs wait in a heap.

    A candidate is rank * length + position. It is stale, and skipped, when the pair at its position has changed.
    """
    length = len(ids)
    following = list(range(1, length + 1))
    preceding = list(range(-1, length - 1))
    alive = bytearray(b"\1") * length
    pairs = enumerate(itertools.pairwise(ids))
    heap = [ranks[pair] * length + position for position, pair in pairs if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, position = divmod(heapq.heappop(heap), length)
        right = following[position]
        if not alive[position] or right == length or ranks.get((ids[position], ids[right])) != rank:
            continue
        ids[position] = product = products[rank]
        alive[right] = 0
        after = following[position] = following[right]
        before = preceding[position]
        if after < length:
            preceding[after] = position
            right_rank = ranks.get((product, ids[after]))
            if right_rank is not None:
                heapq.heappush(heap, right_rank * length + position)
        if before >= 0:
            left_rank = ranks.get((ids[before], product))
            if left_rank is not None:
                heapq.heappush(heap, left_rank * length + before)
    return [token for token, living in zip(ids, alive, strict=True) if living]


def bpe_from_mapping(mapping: Mapping[str, Any], source: str) -> BpeTokenizer:
    """The tokenizer of an artifact. AlphaError names `source` when it is malformed."""
    tokens, special_tokens = read_vocabulary(mapping, source)
    pattern = mapping.get("pattern")
    if not isinstance(pattern, str) or pattern not in BYTE_LEVEL_PATTERNS:
        raise malformed(source, f"its pattern is {shown(pattern)}, not {' or '.join(BYTE_LEVEL_PATTERNS)}")
    whole_pieces = mapping.get("whole_pieces")
    if not isinstance(whole_pieces, bool):
        raise malformed(source, "whole_pieces is not true or false")
    composes, prefixes = mapping.get("composes", False), mapping.get("prefixes", False)
    if not isinstance(composes, bool) or not isinstance(prefixes, bool):
        raise malformed(source, "composes or prefixes is not true or false")
    added, ordinary = mapping.get("added_tokens", []), set(tokens) - set(special_tokens)
    if not isinstance(added, list) or not all(isinstance(token, str) and token in ordinary for token in added):
        raise malformed(source, "its added tokens are not a list of tokens that are not special")
    return BpeTokenizer(
        tokens,
        read_merges(mapping.get("merges"), source),
        special_tokens,
        pattern=pattern,
        whole_pieces=whole_pieces,
        composes=composes,
        prefixes=prefixes,
        added_tokens=added,
        source=source,
    )


def read_merges(merges: Any, source: str) -> list[tuple[str, str]]:
    """Merges written as "left right" or as ["left", "right"]."""
    if not isinstance(merges, list):
        raise malformed(source, "it has no list of merges")
    result = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise malformed(source, f"{shown(merge)} is not a merge of two tokens")
        result.append((pair[0], pair[1]))
    return result


def _token_bytes(tokens: list[str], verbatim: Collection[str], source: str) -> list[bytes]:
    result = []
    for token in tokens:
        content = token.encode() if token in verbatim else unspell(token)
        if content is None:
            raise malformed(source, f"token {shown(token)} is not written in byte-level characters")
        result.append(content)
    return result


def _byte_ids(ids: dict[str, int], source: str) -> list[int]:
    """The token of each byte, or -1."""
    found = [ids.get(spell(bytes([byte])), -1) for byte in range(256)]
    missing = [byte for byte in _PLAIN if found[byte] < 0]
    if missing:
        raise malformed(source, f"it has no token for byte {missing[0]}, so it cannot write plain text")
    return found


def rank_merges(
    merges: list[tuple[str, str]], ids: dict[str, int], source: str
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """The rank of each pair of ids, and the id that the merge of each rank makes."""
    ranks = {}
    products = []
    for rank, (left, right) in enumerate(merges):
        if left not in ids or right not in ids or left + right not in ids:
            raise malformed(source, f"merge {rank} of {shown(left)} and {shown(right)} is not of known tokens")
        ranks[ids[left], ids[right]] = rank
        products.append(ids[left + right])
    if len(ranks) != len(merges):
        raise malformed(source, "two of its merges are the same")
    return ranks, products


# --- learning the merges from a corpus --------------------------------------------------------------------------------


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
