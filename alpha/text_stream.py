"""Between text and the ids that are drawn: what a prompt asks for, where its continuation ends, text while it arrives.

A tokenizer joins a space to the word after it, so the ids of "The " are none that a text with a word after it ever
has, and a model can only guess what follows them. The last character of such a prompt is held back: the first token is
drawn among those that begin with it (token healing, for one character).
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alpha import domain
from alpha.sampling import Choices
from alpha.tokenizer import Tokenizer

BEGINNING = "The "
"""What is continued where nothing else is said."""


@dataclass(frozen=True)
class Continuation:
    """A text to be continued: its ids (at least one), and what the engine and the reader need to know of the rest.

    The first new token is one of `first`, unless that is None, and `held_back` bytes of it are in the prompt already.
    A continuation ends with an id of `stop_ids` or before one of `stop_texts`; neither belongs to its text. Bytes that
    are not UTF-8 become U+FFFD.
    """

    tokenizer: Tokenizer
    ids: list[int]
    first: Choices | None
    held_back: int
    stop_ids: frozenset[int]
    stop_texts: tuple[bytes, ...]

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether the newest of the added `ids` completes the text; what the engine asks."""
        if ids[-1] in self.stop_ids:
            return True
        if not self.stop_texts:
            return False
        # A token has at least one byte, so this many hold whatever ends in the newest.
        last = ids[-max(map(len, self.stop_texts)) - self.held_back :]
        content = self.tokenizer.decode_bytes(last)
        content = content[self.held_back :] if len(last) == len(ids) else content
        return any(text in content for text in self.stop_texts)

    def parts(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of the tokens, in parts that are never empty and never end inside a character."""
        reader = TextReader(self)
        for token in tokens:
            if part := reader.read(token):
                yield part
            if reader.ended:
                break
        if rest := reader.rest():
            yield rest

    def text(self, tokens: Iterable[int]) -> str:
        """The whole text of the tokens."""
        return "".join(self.parts(tokens))


class TextReader:
    """The text of a continuation whose tokens come one after another.

    `ended` is None until a token completes the text; then it says whether a stop id ("id") or a stop text ("text") did.
    `released` is how many bytes of the continuation stand in the text that was given out.
    """

    def __init__(self, asked: Continuation) -> None:
        self._asked = asked
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = b""
        self._held_back = asked.held_back
        self.ended: Literal["id", "text"] | None = None
        self.released = 0

    def read(self, token: int) -> str:
        """What is known of the text with this token; never ends inside a character."""
        if token in self._asked.stop_ids:
            self.ended = "id"
            return ""
        self._pending += self._asked.tokenizer.token_bytes(token)[self._held_back :]
        self._held_back = 0
        places = [place for text in self._asked.stop_texts if (place := self._pending.find(text)) >= 0]
        if places:
            self._pending = self._pending[: min(places)]
            self.ended = "text"
            return ""
        return self._release(len(self._pending) - self._undecided())

    def rest(self) -> str:
        """What is left when no more tokens come."""
        return self._release(len(self._pending)) + self._decoder.decode(b"", final=True)

    def _release(self, count: int) -> str:
        ready, self._pending = self._pending[:count], self._pending[count:]
        self.released += count
        return self._decoder.decode(ready)

    def _undecided(self) -> int:
        """How many bytes at the end may be the beginning of a stop text."""
        texts, content = self._asked.stop_texts, self._pending
        longest = max(map(len, texts), default=1) - 1
        lengths = range(min(longest, len(content)), 0, -1)
        return next((n for n in lengths if any(text.startswith(content[-n:]) for text in texts)), 0)


def continuation(
    tokenizer: Tokenizer, prompt: str, domain_id: str = "", stop_at_end: bool = True, stop: Iterable[str] = ()
) -> Continuation:
    """How a model of this tokenizer, trained for a domain or none, is to continue `prompt`.

    Special tokens may be spelled in the prompt. With nothing to continue, a text begins where another ended. With
    `stop_at_end` the text ends at the end of text, and of a chat model's turn: a special token where the vocabulary has
    one, otherwise its spelling where the model or the prompt is of the chat format.
    """
    ending = tokenizer.open_ending(prompt).encode("utf-8", "surrogatepass")
    first = _beginning_with(tokenizer, ending) if ending else None
    if first is None:
        ending = b""
    ids = tokenizer.encode(prompt[:-1] if ending else prompt, allow_special=True) or [tokenizer.end_of_text]
    stop_ids: set[int] = set()
    stop_texts = [text.encode("utf-8", "surrogatepass") for text in stop]
    if stop_at_end:
        stop_ids = {tokenizer.end_of_text, *tokenizer.ends_of_turn}
        if not tokenizer.ends_of_turn and (domain.is_chat(domain_id) or domain.ASSISTANT in prompt):
            stop_texts.append(domain.END.encode())
    return Continuation(tokenizer, ids, first, len(ending), frozenset(stop_ids), tuple(stop_texts))


def known_prompts(tokenizer: Tokenizer, prompts: Iterable[str]) -> tuple[str, ...]:
    """The prompts that the tokenizer knows whole; if there is none, nothing, so that a text begins."""
    known = [each for each in prompts if not tokenizer.count_unknown(continuation(tokenizer, each).ids)]
    return tuple(known) or ("",)


def _beginning_with(tokenizer: Tokenizer, content: bytes) -> Choices | None:
    """The ordinary tokens whose bytes begin so; None when there are none."""
    special = set(tokenizer.special_tokens.values())
    ids = [
        token
        for token in range(tokenizer.vocab_size)
        if token not in special and tokenizer.token_bytes(token).startswith(content)
    ]
    return np.array(ids) if ids else None
