"""Chat templates of the ecosystem, rendered in a sandbox.

A template is a program that came with somebody's model, so it can reach nothing but the messages, in limited time and
memory. Needs the package jinja2, which not every use of Alpha does; import it through `chat_format`.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alpha.errors import AlphaError
from alpha.tokenizer import END_OF_TEXT_SPELLINGS, Tokenizer

SECONDS = 1.0
LONGEST_TEMPLATE = 1 << 18
LONGEST_TEXT = 1 << 23
MOST_ITEMS = 10_000

_MARK = "answer_mark"

_FILTERS = (
    "capitalize count default d dictsort first float int items last length list lower map max min reject rejectattr "
    "reverse round safe select selectattr sort string title tojson trim unique upper"
)
_METHODS = (
    "strip lstrip rstrip split rsplit partition rpartition splitlines startswith endswith upper lower title capitalize "
    "removeprefix removesuffix find rfind index count isdigit items keys values get"
)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    begins_answer: bool = True,
    answer_mark: str = "",
) -> str:
    """The text that a template makes of messages, with the beginning of an answer if it `begins_answer`.

    `answer_mark` is put before and after what a {% generation %} block writes. Raises AlphaError when the template
    cannot be rendered, or takes too long.
    """
    end = next(name for name in END_OF_TEXT_SPELLINGS if name in tokenizer.special_tokens)
    try:
        compiled = _compiled(template)
        with _Deadline(SECONDS):
            text: str = compiled.render(
                messages=messages,
                add_generation_prompt=begins_answer,
                bos_token=end,
                eos_token=end,
                tools=None,
                **{_MARK: answer_mark},
            )
            return text
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


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: what an assistant says, with the context's mark on both sides."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def marked(self, context: Context, caller: Callable[[], str]) -> str:
        mark = context.get(_MARK, "")
        return _joined([mark, caller(), mark])


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
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
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
