"""The two tokenizers that look pieces of text up in a table: one token per character, or one per frequent word.

Decoding the ids of a text whose pieces are all in the vocabulary gives back that text, whitespace included. A piece
that the vocabulary lacks becomes `<|unk|>`, which decodes to U+FFFD. Lone surrogates are not characters and are never
in the vocabulary.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from alpha.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    ClosedTokenizer,
    TokenArray,
    is_unicode,
    malformed,
    read_vocabulary,
    shown,
)
from alpha.tokenizer_pattern import CUTS, WORDS, count_pieces

# --- one token per character that occurs in the corpus ----------------------------------------------------------------


_SEGMENT = 1 << 20


class CharTokenizer(ClosedTokenizer):
    """Looks each code point up in a table."""

    kind = "char"
    cuts = (*CUTS, re.compile(r"[\s\S]"))

    def __init__(self, tokens: list[str], special_tokens: dict[str, int], source: str = "in memory") -> None:
        """AlphaError names `source` when an ordinary token is not one character."""
        super().__init__(tokens, special_tokens, source)
        for token in self.ordinary:
            if len(token) != 1:
                raise malformed(source, f"{shown(token)} is not one character")
        code_points = [ord(token) for token in self.ordinary]
        self._beyond = max(code_points, default=0) + 1
        self._table = np.full(self._beyond + 1, special_tokens[UNKNOWN], np.uint32)
        self._table[code_points] = list(self.ordinary.values())

    def _encode_ordinary(self, text: str) -> TokenArray:
        ids = np.empty(len(text), np.uint32)
        for start in range(0, len(text), _SEGMENT):
            segment = text[start : start + _SEGMENT].encode("utf-32-le", "surrogatepass")
            code_points = np.frombuffer(segment, "<u4")
            ids[start : start + _SEGMENT] = self._table[np.minimum(code_points, self._beyond)]
        return ids


def build_char(texts: Iterable[str]) -> CharTokenizer:
    """Every character that occurs, in order of code points, then the special tokens."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    tokens = sorted(filter(is_unicode, seen))
    special_tokens = {END_OF_TEXT: len(tokens), UNKNOWN: len(tokens) + 1}
    return CharTokenizer([*tokens, *special_tokens], special_tokens)


def char_from_mapping(mapping: Mapping[str, Any], source: str) -> CharTokenizer:
    """The tokenizer of an artifact. AlphaError names `source` when it is malformed."""
    return CharTokenizer(*read_vocabulary(mapping, source), source)


# --- one token per frequent word or punctuation mark, each with the space before it -----------------------------------


DEFAULT_VOCABULARY = 1 << 16


class _WordIds(dict[str, int]):
    def __init__(self, ids: Mapping[str, int], unknown: int) -> None:
        super().__init__(ids)
        self._unknown = unknown

    def __missing__(self, word: str) -> int:
        return self._unknown


class WordTokenizer(ClosedTokenizer):
    """Looks each piece of `tokenizer_pattern.WORDS` up."""

    kind = "word"

    def __init__(self, tokens: list[str], special_tokens: dict[str, int], source: str = "in memory") -> None:
        super().__init__(tokens, special_tokens, source)
        self._ids = _WordIds(self.ordinary, special_tokens[UNKNOWN])

    def _encode_ordinary(self, text: str) -> TokenArray:
        find = self._ids.__getitem__
        arrays = [np.fromiter(map(find, pieces), np.uint32, len(pieces)) for pieces in WORDS.segments(text)]
        return np.concatenate(arrays) if arrays else np.empty(0, np.uint32)

    def fewest_tokens(self, text: str) -> int:
        return 0

    def _open_ending(self, text: str) -> str:
        return WORDS.open_ending(text)


def build_word(
    texts: Iterable[str], vocab_size: int = DEFAULT_VOCABULARY, warn: Callable[[str], None] = lambda sentence: None
) -> WordTokenizer:
    """The most frequent words, at most `vocab_size` tokens with the special ones, which stand last.

    Ids are in order of falling frequency; equally frequent words are in order of code points.
    """
    counts = count_pieces(texts, WORDS, warn)
    ranked = sorted(filter(is_unicode, counts), key=lambda word: (-counts[word], word))
    tokens = ranked[: vocab_size - 2]
    special_tokens = {END_OF_TEXT: len(tokens), UNKNOWN: len(tokens) + 1}
    return WordTokenizer([*tokens, *special_tokens], special_tokens)


def word_from_mapping(mapping: Mapping[str, Any], source: str) -> WordTokenizer:
    """The tokenizer of an artifact. AlphaError names `source` when it is malformed."""
    return WordTokenizer(*read_vocabulary(mapping, source), source)
