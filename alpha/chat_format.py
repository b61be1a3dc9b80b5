"""How messages become the ids that a model continues: chat templates of the ecosystem, rendered in a sandbox.

A template is a program that came with somebody's model, and messages are text of anybody's. So the template can reach
nothing but the messages, in limited time and memory; and a message that spells a marker, such as `<|user|>`, is given
the ids of that text, never the marker's.

A model that came with a template uses it; one whose tokenizer has Alpha's markers, or that was trained for a domain of
conversations, gets Alpha's own; any other one gets PLAIN, which a base model may take for a written dialogue.
"""

import functools
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alpha import domain
from alpha.errors import AlphaError
from alpha.exchange_folder import CHAT_TEMPLATE
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT_SPELLINGS, Tokenizer

PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nSystem:")

SECONDS = 1.0
LONGEST_TEMPLATE = 1 << 18
LONGEST_TEXT = 1 << 23
MOST_ITEMS = 10_000

_FILTERS = (
    "capitalize count default d dictsort first float int items last length list lower map max min reject rejectattr "
    "reverse round safe select selectattr sort string title tojson trim unique upper"
)
_METHODS = (
    "strip lstrip rstrip split rsplit partition rpartition splitlines startswith endswith upper lower title capitalize "
    "removeprefix removesuffix find rfind index count isdigit items keys values get"
)


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
    break_mark, end_mark = _unused_characters([template, *(message["content"] for message in messages)])
    special = [name for name in tokenizer.special_tokens if name]
    broken = [
        {"role": message["role"], "content": _broken(message["content"], special, break_mark)} for message in messages
    ]
    if continues:
        broken[-1]["content"] += end_mark
        text, found, _ = render(template, broken, tokenizer, continues=True).rpartition(end_mark)
        if not found:
            raise AlphaError("The model's chat template does not end with what the last message says.")
    else:
        text = render(template, broken, tokenizer)
    ids: list[int] = []
    for part, is_special in tokenizer.split_special(text):
        ids += tokenizer.encode(part if is_special else part.replace(break_mark, ""), allow_special=is_special)
    return ids


def render(template: str, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, continues: bool = False) -> str:
    """The text that a template makes of messages, with the beginning of an answer unless it `continues`.

    Raises AlphaError when it cannot, or takes too long.
    """
    end = next(name for name in END_OF_TEXT_SPELLINGS if name in tokenizer.special_tokens)
    try:
        compiled = _compiled(template)
        with _Deadline(SECONDS):
            return compiled.render(
                messages=messages, add_generation_prompt=not continues, bos_token=end, eos_token=end, tools=None
            )
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise AlphaError(f"The model's chat template does not take these messages: {error}") from error


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


class _Deadline:
    """Ends what this thread does in Python, in calls from here, after so many seconds: AlphaError."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self._check)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._previous)

    def _check(self, frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > self._end:
            raise AlphaError("The model's chat template takes too long.")
        return self._check


class _BoundedCode(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (Jinja's name)
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without what could make much of little."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and (not callable(value) or attr in _METHODS.split())

    def wrap_str_format(self, value: Any) -> None:
        """Nothing may be formatted: widths can be anything."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+":
            return _bounded(super().call_binop(context, operator, left, right))
        if not numbers or operator == "**" or abs(left) > LONGEST_TEXT or abs(right) > LONGEST_TEXT:
            raise TemplateError(f"{operator} is for numbers that are not too large")
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: Iterable[Any]) -> str:
        return _joined(parts)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > LONGEST_TEXT:
        raise TemplateError("a text becomes too long")
    return value


def _joined(parts: Iterable[Any], between: str = "", attribute: None = None) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) + len(between) * len(texts) > LONGEST_TEXT:
        raise TemplateError("a text becomes too long")
    return between.join(texts)


def _replaced(text: Any, old: str, new: str) -> str:
    text = str(text)
    if (text.count(old) + 1) * len(new) + len(text) > LONGEST_TEXT:
        raise TemplateError("a text becomes too long")
    return text.replace(old, new)


def _range(*limits: int) -> range:
    result = range(*limits)
    if len(result) > MOST_ITEMS:
        raise TemplateError(f"a range has more than {MOST_ITEMS:,} numbers")
    return result


def _raise(message: str) -> None:
    raise TemplateError(str(message)[:300])


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    if len(template) > LONGEST_TEMPLATE:
        raise TemplateError(f"it has {len(template):,} characters")
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters = {name: environment.filters[name] for name in _FILTERS.split()}
    environment.filters |= {"join": _joined, "replace": _replaced}
    namespace = environment.globals["namespace"]
    environment.globals = {
        "namespace": namespace,
        "range": _range,
        "raise_exception": _raise,
        "strftime_now": lambda form: time.strftime(str(form)[:100]),
    }
    return environment.from_string(template)
