"""One token per frequent word or punctuation mark, each with the space before it.

Decoding the ids of a text whose words are all in the vocabulary gives back that text, whitespace included. A word that
the vocabulary lacks becomes `<|unk|>`, which decodes to U+FFFD.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from alpha.tokenizer import END_OF_TEXT, UNKNOWN, ClosedTokenizer, TokenArray, is_unicode, read_vocabulary
from alpha.tokenizer_pattern import WORDS, count_pieces

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
