"""Turning tokens into text while they arrive, although a character's bytes may be spread over several tokens."""

import codecs
from collections.abc import Iterable, Iterator

from alpha.tokenizer import Tokenizer


class TextStream:
    """An incremental decoder; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def parts(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of the tokens, in parts that are never empty and never end inside a character."""
        for token in tokens:
            if text := self._decoder.decode(self._tokenizer.token_bytes(token)):
                yield text
        if rest := self._decoder.decode(b"", final=True):
            yield rest
