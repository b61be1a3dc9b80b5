"""Byte-pair encoding of characters, as SentencePiece does it and Llama 2, Mistral and Gemma use it.

A space is written as U+2581 and belongs to the word after it; a character that is no token becomes the tokens of its
UTF-8 bytes, `<0x00>` to `<0xFF>`, so every text has an encoding. Source: Kudo and Richardson, "SentencePiece", EMNLP
2018; the order of merges is that of the `tokenizers` package. Alpha reads such tokenizers and builds none.
"""

import re
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from alpha.tokenizer import Ids, TokenArray, Tokenizer, artifact, malformed, read_vocabulary, shown
from alpha.tokenizer_bpe import PieceCache, merge_by_heap, merge_by_scanning, rank_merges, read_merges

SPACE = "\u2581"
PATTERN = "sentencepiece"
"""What the artifact has in the place of a byte-level pattern."""

PREFIXES = ("prepend", "always", "first", "never")
"""Where a space is put before a text: everywhere; where it does not begin with one; the same, but not after a special
token; nowhere. The first is the older normalizer's, the others are the pre-tokenizer Metaspace's."""

_LONG_PIECE = 64
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BEFORE_SPACE = re.compile(r" (?<=[^ ] )")
_WORDS = re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
_SINGLE_SPACES = re.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")
_TEXT = re.compile(r"[\s\S]+")


class SentencePieceTokenizer(Tokenizer):
    """Merges of characters by rank. With `splits`, every space begins a piece, even one after a space."""

    kind = "bpe"

    def __init__(
        self,
        tokens: list[str],
        merges: list[tuple[str, str]],
        special_tokens: dict[str, int],
        *,
        prefix: str,
        splits: bool,
        strips: bool,
        source: str = "in memory",
    ) -> None:
        """`strips`: a decoded text loses the space that it begins with. AlphaError names `source` when a byte has no
        token or a merge is impossible."""
        super().__init__([_bytes_of(token) for token in tokens], special_tokens)
        self.tokens, self.merges = tokens, merges
        self.prefix, self.splits, self.strips = prefix, splits, strips
        self._ids = {token: index for index, token in enumerate(tokens) if token not in special_tokens}
        missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in self._ids]
        if missing:
            raise malformed(source, f"it has no token for byte {missing[0]}, so it cannot write every text")
        self._byte_ids = [self._ids[f"<0x{byte:02X}>"] for byte in range(256)]
        self._ranks, self._products = rank_merges(merges, self._ids, source)
        # A merge that joins the end of a word to a space would reach across pieces; then the whole text is one.
        crosses = any(left[-1] != SPACE and right[0] == SPACE for left, right in merges)
        self._piece = _SINGLE_SPACES if splits else _TEXT if crosses else _WORDS
        self.cuts = () if prefix == "prepend" or crosses else (_BEFORE_SPACE,)
        self._merged = PieceCache(self._merge_piece)

    def to_mapping(self) -> dict[str, Any]:
        merges = [list(merge) for merge in self.merges]
        more = {"prefix": self.prefix, "splits": self.splits, "strips": self.strips}
        return artifact(self.kind, self.tokens, self.special_tokens, pattern=PATTERN, **more, merges=merges)

    def encode_to_array(self, text: str, allow_special: bool = False) -> TokenArray:
        parts = self._special_pattern.split(text) if allow_special else [text]
        arrays = [
            np.array([self.special_tokens[part]], np.uint32) if index % 2 else self._encode_part(part, index == 0)
            for index, part in enumerate(parts)
        ]
        return np.concatenate(arrays)

    def decode(self, ids: Ids, errors: str = "replace") -> str:
        text = super().decode(ids, errors)
        return text[1:] if self.strips and text.startswith(" ") else text

    def _encode_ordinary(self, text: str) -> TokenArray:
        return self._encode_part(text, True)

    def _encode_part(self, text: str, is_first: bool) -> TokenArray:
        text = text.replace(" ", SPACE)
        has_space = self.prefix != "prepend" and text.startswith(SPACE)
        if text and not has_space and self.prefix != "never" and (is_first or self.prefix != "first"):
            text = SPACE + text
        packed = b"".join(map(self._merged.__getitem__, self._piece.findall(text)))
        return np.frombuffer(packed, np.uint32)

    def _open_ending(self, text: str) -> str:
        return " " if text.endswith(" ") else ""

    def _merge_piece(self, piece: str) -> bytes:
        ids = []
        for character in piece:
            token = self._ids.get(character)
            if token is not None:
                ids.append(token)
            else:
                ids += [self._byte_ids[byte] for byte in character.encode("utf-8", "surrogatepass")]
        merge = merge_by_scanning if len(ids) < _LONG_PIECE else merge_by_heap
        return array("I", merge(ids, self._ranks, self._products)).tobytes()


def sentencepiece_from_mapping(mapping: Mapping[str, Any], source: str) -> SentencePieceTokenizer:
    """The tokenizer of an artifact. AlphaError names `source` when it is malformed."""
    tokens, special_tokens = read_vocabulary(mapping, source)
    prefix, splits, strips = mapping.get("prefix"), mapping.get("splits"), mapping.get("strips")
    if not isinstance(prefix, str) or prefix not in PREFIXES:
        raise malformed(source, f"its prefix is {shown(prefix)}, not {' or '.join(PREFIXES)}")
    if not isinstance(splits, bool) or not isinstance(strips, bool):
        raise malformed(source, "splits or strips is not true or false")
    merges = read_merges(mapping.get("merges"), source)
    return SentencePieceTokenizer(
        tokens, merges, special_tokens, prefix=prefix, splits=splits, strips=strips, source=source
    )


def _bytes_of(token: str) -> bytes:
    match = BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(SPACE, " ").encode()
