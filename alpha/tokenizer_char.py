"""One token per character that occurs in the corpus.

A character that the vocabulary lacks becomes `<|unk|>`, which decodes to U+FFFD. Lone surrogates are not characters and
are never in the vocabulary.
"""

import re
from collections.abc import Iterable, Mapping
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
from alpha.tokenizer_pattern import CUTS

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
