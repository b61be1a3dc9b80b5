"""What a line of JSON says: a text, or a conversation in one of the forms in which such are published.

`messages` is the form of chat APIs; ShareGPT, Alpaca, and prompt with completion (as TRL's) are the same conversations
under other names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alpha.errors import AlphaError
from alpha.tokenizer import CHAT_TOKENS, shown

ROLE_MARKERS = CHAT_TOKENS[:-1]
TEXT = "text"
BAD_LINE = "bad line"

_USER, _ASSISTANT, _SYSTEM = ROLE_MARKERS
_ROLES = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM, "developer": _SYSTEM}
_SHAREGPT_ROLES = {
    "human": _USER, "user": _USER, "gpt": _ASSISTANT, "assistant": _ASSISTANT, "chatgpt": _ASSISTANT, "system": _SYSTEM,
}  # fmt: skip

_WITHOUT: dict[str, tuple[Any, ...]] = {"tool_calls": (None, []), "function_call": (None,), "weight": (None, 1)}
"""Keys of a message that change what is to be learned, and the values that do not."""

Turns = list[tuple[str, str]]
"""The marker of a role, and what is said; in order."""


@dataclass(frozen=True)
class Line:
    """What a line says: a text, or the turns of a conversation; `form` is what one like it is called."""

    form: str
    text: str
    turns: Turns


def form_of(value: Any) -> str | None:
    """The form of a parsed line, by its keys alone; None when it is of no form."""
    if not isinstance(value, dict):
        return None
    return next((name for name, (is_of, _) in _FORMS.items() if is_of(value)), TEXT if "text" in value else None)


def read_line(value: Any, where: str, text_field: str = "") -> Line:
    """What a parsed line says; with `text_field`, the text under that key and nothing else.

    Raises AlphaError that names `where`, such as "Line 3 of chats.jsonl".
    """
    if text_field:
        text = value.get(text_field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise AlphaError(f"{where} is not an object with a string {text_field!r}, which --textField asks for.")
        return Line(TEXT, _unicode(text, text_field, where), [])
    form = form_of(value)
    if form in _FORMS:
        return Line(form, "", _FORMS[form][1](value, f"{where[0].lower()}{where[1:]}"))
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise AlphaError(
            f'{where} is not an object with a string "text", such as {{"text": "Once upon a time"}}, or a list '
            f'"messages", such as {{"messages": [{{"role": "user", "content": "Hello"}}]}}; '
            f"--textField names another field."
        )
    return Line(TEXT, _unicode(text, "text", where), [])


def in_words(forms: Mapping[str, int]) -> str:
    """What was recognized, with counts: "1,200 ShareGPT conversations, 30 texts"."""
    return ", ".join(
        f"{count:,} {form}{'s' * (count != 1)}" for form, count in sorted(forms.items()) if form != BAD_LINE
    )


def _messages(value: Mapping[str, Any], where: str, key: str = "messages") -> Turns:
    return [_message(each, f"Message {number + 1} in {where}") for number, each in enumerate(value[key])]


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise AlphaError(f'{where} is not an object with a "role" and a "content".')
    for key, harmless in _WITHOUT.items():
        if message.get(key) not in harmless:
            raise AlphaError(f'{where} has "{key}", which is not known here; leave such lines out with --skipBadLines.')
    role = _role(message.get("role"), "role", _ROLES, where)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise AlphaError(f'{where} has no text as its "content".')
    return role, _unicode(content, "content", where)


def _role(role: Any, key: str, known: Mapping[str, str], where: str) -> str:
    if not isinstance(role, str) or role not in known:
        said = f'the "{key}" {shown(role)}' if isinstance(role, str) else f'no "{key}"'
        raise AlphaError(f"{where} has {said}; known are {', '.join(known)}.")
    return known[role]


def _part(part: Any, where: str) -> str:
    """The text of a part of a content that is a list."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise AlphaError(f'{where} has a part of its "content" that is no text.')
    return text


def _sharegpt(value: Mapping[str, Any], where: str) -> Turns:
    turns = []
    for number, each in enumerate(value["conversations"]):
        here = f"Message {number + 1} in {where}"
        if not isinstance(each, dict) or not isinstance(each.get("value"), str):
            raise AlphaError(f'{here} is not an object with a "from" and a string "value".')
        role = _role(each.get("from"), "from", _SHAREGPT_ROLES, here)
        turns.append((role, _unicode(each["value"], "value", here)))
    return turns


def _alpaca(value: Mapping[str, Any], where: str) -> Turns:
    instruction, given, output = (_string(value, key, where) for key in ("instruction", "input", "output"))
    system = _string(value, "system", where)
    asked = f"{instruction}\n\n{given}" if given else instruction
    return [*([(_SYSTEM, system)] if system else []), (_USER, asked), (_ASSISTANT, output)]


def _completion(value: Mapping[str, Any], where: str) -> Turns:
    if isinstance(value["prompt"], list) and isinstance(value["completion"], list):
        return _messages(value, where, "prompt") + _messages(value, where, "completion")
    return [(_USER, _string(value, "prompt", where)), (_ASSISTANT, _string(value, "completion", where))]


def _string(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise AlphaError(f'The "{key}" in {where} is not a string.')
    return _unicode(text or "", key, where)


def _unicode(text: str, key: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AlphaError(f'{where} has half of a surrogate pair at character {error.start} of its "{key}".') from error
    return text


_FORMS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], str], Turns]]] = {
    "conversation": (lambda value: isinstance(value.get("messages"), list), _messages),
    "ShareGPT conversation": (lambda value: isinstance(value.get("conversations"), list), _sharegpt),
    "Alpaca instruction": (lambda value: {"instruction", "output"} <= value.keys(), _alpaca),
    "prompt-completion pair": (lambda value: {"prompt", "completion"} <= value.keys(), _completion),
}
