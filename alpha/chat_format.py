"""How messages become the ids that a model continues or learns: by chat templates of the ecosystem.

Messages are text of anybody's: one that spells a marker, such as `<|user|>`, is given the ids of that text, never the
marker's. What renders a template is loaded with the first one, as it needs a package that not everybody has.

A model that came with a template uses it; one whose tokenizer has Alpha's markers, or that was trained for a domain of
conversations, gets Alpha's own; any other one gets PLAIN, which a base model may take for a written dialogue.
"""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from alpha import domain
from alpha.corpus import Piece
from alpha.corpus_forms import Turns
from alpha.errors import AlphaError
from alpha.exchange_folder import CHAT_TEMPLATE
from alpha.installation import missing_package
from alpha.text_stream import Continuation
from alpha.tokenizer import CHAT_TOKENS, Tokenizer
from alpha.tokenizer_simple import build_char

PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nSystem:")

_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


@dataclass(frozen=True)
class ChatFormat:
    """A template, and the texts that end an answer where no token does."""

    template: str
    stops: tuple[str, ...] = ()


def chat_format(tokenizer: Tokenizer, domain_id: str, template: str | None) -> ChatFormat:
    """How to talk to a model; `template` came with it, if one did."""
    if template:
        return ChatFormat(template)
    if tokenizer.special_tokens.keys() >= set(CHAT_TOKENS):
        return ChatFormat(CHAT_TEMPLATE)
    if domain.is_chat(domain_id):
        return ChatFormat(CHAT_TEMPLATE, (domain.END,))
    return ChatFormat(PLAIN, PLAIN_STOPS)


def encode_chat(
    tokenizer: Tokenizer, template: str, messages: Sequence[Mapping[str, str]], continues: bool = False
) -> list[int]:
    """The ids of messages ("role", "content") and of the beginning of an answer; or with `continues`, up to the end of
    what the last message says, which is to be continued.

    Raises AlphaError when the template does not take them, or takes too long.
    """
    break_mark, end_mark, broken = _without_markers(tokenizer, template, messages)
    if continues:
        broken[-1]["content"] += end_mark
        text, found, _ = render(template, broken, tokenizer, begins_answer=False).rpartition(end_mark)
        if not found:
            raise AlphaError("The model's chat template does not end with what the last message says.")
    else:
        text = render(template, broken, tokenizer)
    ids: list[int] = []
    for part, is_special in tokenizer.split_special(text):
        ids += tokenizer.encode(part if is_special else part.replace(break_mark, ""), allow_special=is_special)
    return ids


def answer(tokenizer: Tokenizer, form: ChatFormat, ids: Sequence[int], stop: Iterable[str] = ()) -> Continuation:
    """The answer after the ids of a conversation: up to the end of the turn, or before one of the texts in `stop`."""
    stop_ids = frozenset([tokenizer.end_of_text, *tokenizer.ends_of_turn])
    stops = tuple(text.encode("utf-8", "surrogatepass") for text in (*stop, *form.stops))
    return Continuation(tokenizer, list(ids) or [tokenizer.end_of_text], None, 0, stop_ids, stops)


@dataclass(frozen=True)
class TemplateWriter:
    """Writes conversations for training as a chat template does, and says which text is an assistant's answer.

    That is what stands in the template's {% generation %} blocks, as transformers has it. In a template without such,
    it is what follows the beginning of an answer that a prompt ends with, up to the last special token of the turn.
    """

    tokenizer: Tokenizer
    template: str

    def __call__(self, turns: Turns) -> Iterator[str]:
        """Raises AlphaError when the template does not take the conversation, or does not tell its answers."""
        messages = [{"role": role.strip("<|>"), "content": content} for role, content in turns]
        break_mark, answer_mark, broken = _without_markers(self.tokenizer, self.template, messages)
        text, answers = self._answers(broken, answer_mark)
        edges = [0, *(place for answer in answers for place in answer), len(text)]
        for number, (start, end) in enumerate(itertools.pairwise(edges)):
            for part, is_special in self.tokenizer.split_special(text[start:end]):
                yield Piece.of(part if is_special else part.replace(break_mark, ""), is_special, number % 2 == 1)

    def _answers(self, messages: Sequence[Mapping[str, str]], mark: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where in it answers begin and end."""
        render_more = functools.partial(render, self.template, tokenizer=self.tokenizer)
        if _GENERATION.search(self.template):
            parts = render_more(messages, begins_answer=False, answer_mark=mark).split(mark)
            ends = list(itertools.accumulate(map(len, parts)))
            return "".join(parts), list(zip(ends[0::2], ends[1::2], strict=False))
        text = render_more(messages, begins_answer=False)
        answers = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            ended = render_more(messages[: number + 1], begins_answer=False)
            if number:
                begun = render_more(messages[:number])
            else:  # not every template takes no messages
                beginning = render_more(messages[:1]).removeprefix(ended)
                begun = ended[: ended.find(beginning) + len(beginning)] if beginning in ended else ""
            if not text.startswith(ended) or not ended.startswith(begun):
                raise AlphaError(
                    "the model's chat template writes an answer otherwise when more follows, so what is to be learned "
                    "is not known; mark it in the template with {% generation %}."
                )
            end = place = len(begun)
            for part, is_special in self.tokenizer.split_special(ended[place:]):
                place += len(part)
                end = place if is_special else end
            answers.append((len(begun), end if end > len(begun) else place))
        return text, answers


def writer(tokenizer: Tokenizer, domain_id: str, template: str | None) -> TemplateWriter | None:
    """What writes conversations as the model is talked to; None for Alpha's own format, which `corpus` writes."""
    chosen = chat_format(tokenizer, domain_id, template).template
    return None if chosen == CHAT_TEMPLATE else TemplateWriter(tokenizer, chosen)


def writer_before(special_names: Collection[str], domain_id: str = "") -> TemplateWriter | None:
    """The same for a tokenizer that is yet to be built, with these special tokens, from the very conversations."""
    return None if set(special_names) >= set(CHAT_TOKENS) else writer(build_char(["."]), domain_id, None)


def _without_markers(
    tokenizer: Tokenizer, template: str, messages: Sequence[Mapping[str, str]]
) -> tuple[str, str, list[dict[str, str]]]:
    """Two marks that nobody uses, and the messages with the first in all that could become a special token."""
    break_mark, end_mark = _unused_characters([template, *(message["content"] for message in messages)])
    special = [name for name in tokenizer.special_tokens if name]
    return (
        break_mark,
        end_mark,
        [
            {"role": message["role"], "content": _broken(message["content"], special, break_mark)}
            for message in messages
        ],
    )


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    begins_answer: bool = True,
    answer_mark: str = "",
) -> str:
    """See `chat_template.render`. Raises AlphaError, too, where the package that it needs is missing: all templates but
    Alpha's own need it."""
    if template == CHAT_TEMPLATE:
        turns = [(f"<|{message['role']}|>", message["content"]) for message in messages]
        return domain.dialogue(turns, begins_answer)
    try:
        from alpha import chat_template
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise missing_package("A chat template", "jinja2", "serve") from error
    return chat_template.render(template, messages, tokenizer, begins_answer, answer_mark)


def _unused_characters(texts: Iterable[str]) -> tuple[str, str]:
    """Two private characters that none of the texts has."""
    used = set().union(*texts)
    unused = (chr(code) for code in range(0x10FFFD, 0xF0000, -1) if chr(code) not in used)
    return next(unused), next(unused)


def _broken(text: str, special: Sequence[str], mark: str) -> str:
    """The text with a mark in all that is, or with what surrounds it could become, a special token."""
    for first in {name[0] for name in special}:
        text = text.replace(first, first + mark)
    is_end = any(text.startswith(name[place:]) for name in special for place in range(1, len(name)))
    return mark + text if is_end else text
