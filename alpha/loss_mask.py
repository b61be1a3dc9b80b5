"""Which tokens of conversations a model learns to say: the assistant's text and the marker that ends it.

Where they are follows from the special tokens among the ids, so nothing is stored beside them: text that merely spells
a marker is never one (see corpus), and a conversation is divided only before a role's marker. Kept are the places of
the special tokens, of which there are few.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.errors import UsageError
from alpha.tokenizer import CHAT_TOKENS, Tokenizer

_USER, _ASSISTANT, _SYSTEM, _END = CHAT_TOKENS
_CHUNK = 1 << 20

Tokens = npt.NDArray[np.integer[Any]]


class LossMask:
    """Says of places in a token array whether the loss of predicting the token there counts.

    That of a document which is no conversation does, its end included. In a conversation, only the text of an assistant
    and the marker at its end do, not the markers of roles, what is between turns, or the end of the document.
    """

    def __init__(self, tokens: Tokens, tokenizer: Tokenizer) -> None:
        """Raises UsageError for a tokenizer without the markers."""
        special = tokenizer.special_tokens
        if not special.keys() >= set(CHAT_TOKENS):
            raise UsageError(
                "--lossOn=assistant needs a tokenizer with the markers of a conversation as special tokens, such as "
                "--tokenizer=bpe-chat-4k."
            )
        self._tokens = tokens
        self._roles = [special[each] for each in (_USER, _ASSISTANT, _SYSTEM)]
        marks = np.array([*self._roles, special[_END], tokenizer.end_of_text])
        found = [
            start + np.flatnonzero(np.isin(tokens[start : start + _CHUNK], marks))
            for start in range(0, len(tokens), _CHUNK)
        ]
        self._places = np.concatenate([np.array([-1]), *found])
        kinds = tokens[self._places[1:]].astype(np.int64)
        learns = (kinds == special[_ASSISTANT]) | (kinds == tokenizer.end_of_text)
        # What is before the first is text, or the rest of a turn whose beginning is elsewhere.
        self._learns = np.concatenate([kinds[:1] == tokenizer.end_of_text if len(kinds) else [True], learns])

    def counts(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the tokens at these places count, of the same shape."""
        before = np.searchsorted(self._places, places) - 1
        counted: npt.NDArray[np.bool_] = self._learns[before] & ~np.isin(self._tokens[places], self._roles)
        return counted

    def total(self) -> int:
        """How many tokens count."""
        starts = range(0, len(self._tokens), _CHUNK)
        places = (np.arange(start, min(start + _CHUNK, len(self._tokens))) for start in starts)
        return sum(int(np.count_nonzero(self.counts(each))) for each in places)

    def masked(self, targets: Tokens, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Targets that stand at these places, with -1 where they do not count; of the same shape."""
        return np.where(self.counts(places), targets.astype(np.int32), np.int32(-1))
