"""What somebody and a model write in turn: a chat, or with a model that knows no chats, one text that both go on with.

Both say what is to be continued next, and take what the model made of it. Knows nothing about terminals.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from alpha.chat_format import PLAIN, answer, chat_format, encode_chat
from alpha.errors import AlphaError
from alpha.model_loading import LoadedModel
from alpha.text_stream import Continuation, continuation


class Conversation(ABC):
    """Add what was `said`, continue what is `asked`, add what was `answered`.

    `content` is all that there is, as a value: whoever keeps it can go back to it.
    """

    form: str
    """What it is, in words."""

    content: Any

    forgotten = 0
    """How many messages went for want of room when something was last asked."""

    @abstractmethod
    def said(self, text: str) -> None: ...

    @abstractmethod
    def asked(self) -> Continuation:
        """What the model is to continue now. Raises AlphaError when there is no room for an answer."""

    @abstractmethod
    def room(self, asked: Continuation) -> int | None:
        """The most tokens that it may add to that; None where there is no end to it."""

    @abstractmethod
    def answered(self, text: str) -> None: ...

    @abstractmethod
    def reset(self) -> None:
        """Begin anew."""


class Chat(Conversation):
    """A chat in the model's own format, of which the oldest turns go where the context is full.

    An answer has a quarter of the context at least; where that is short, turns go until half of it is free, so that not
    every turn moves what is left, which would have to be computed again.
    """

    form = "a chat in the model's own format"

    def __init__(self, loaded: LoadedModel, context: int, stop: Sequence[str] = ()) -> None:
        self._tokenizer = loaded.tokenizer
        self._format = chat_format(loaded.tokenizer, loaded.training.domain, loaded.chat_template)
        self._context = context
        self._stop = stop
        self.system = ""
        """What the model is told before everything else."""
        self.content: tuple[dict[str, str], ...] = ()

    def said(self, text: str) -> None:
        self.content = (*self.content, {"role": "user", "content": text})

    def asked(self) -> Continuation:
        ids, before = self._ids(), len(self.content)
        if len(ids) > self._context - self._context // 4:
            while len(ids) > self._context // 2 and len(self.content) > 1:
                self.content = self.content[2:]  # a message of the user, and the answer to it
                ids = self._ids()
        self.forgotten = before - len(self.content)
        if len(ids) >= self._context:
            raise AlphaError(
                f"With what belongs to it, that is {len(ids):,} tokens, and the context holds {self._context:,}; "
                "say less."
            )
        return answer(self._tokenizer, self._format, ids, self._stop)

    def room(self, asked: Continuation) -> int | None:
        return self._context + 1 - len(asked.ids)  # the last token is not read

    def answered(self, text: str) -> None:
        self.content = (*self.content, {"role": "assistant", "content": text})

    def reset(self) -> None:
        self.content = ()

    def _ids(self) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return encode_chat(self._tokenizer, self._format.template, [*system, *self.content])


class Text(Conversation):
    """A text that goes on: what is said is added as it is, and so is what the model writes. Special tokens may be
    spelled in it. The model sees as much of its end as the context holds."""

    form = "a text that goes on"

    def __init__(self, loaded: LoadedModel, stop_at_end: bool = True, stop: Sequence[str] = ()) -> None:
        self._loaded = loaded
        self._stop_at_end = stop_at_end
        self._stop = stop
        self.content: str = ""

    def said(self, text: str) -> None:
        self.content += text

    def asked(self) -> Continuation:
        domain = self._loaded.training.domain
        return continuation(self._loaded.tokenizer, self.content, domain, self._stop_at_end, self._stop)

    def room(self, asked: Continuation) -> int | None:
        return None

    def answered(self, text: str) -> None:
        self.content += text

    def reset(self) -> None:
        self.content = ""


def conversation(loaded: LoadedModel, context: int, stop_at_end: bool = True, stop: Sequence[str] = ()) -> Chat | Text:
    """What can be had with a model whose engine holds `context` tokens."""
    form = chat_format(loaded.tokenizer, loaded.training.domain, loaded.chat_template)
    return Text(loaded, stop_at_end, stop) if form.template == PLAIN else Chat(loaded, context, stop)
