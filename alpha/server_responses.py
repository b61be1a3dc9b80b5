"""Responses as OpenAI's API has them, each for itself: nothing is stored, so none follows another.

Items in, one message out; as a stream, events with names and numbers. Pure, as `server_completions`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alpha.chat_format import ChatFormat
from alpha.server_chat import asked_of_messages, logprob_entries, read_messages
from alpha.server_completions import (
    MOST_LOGPROBS,
    MOST_TOKENS,
    Asked,
    Choice,
    CompletionShape,
    Part,
    check_absent,
    check_length,
    usage_of,
)
from alpha.server_fields import Fields, RefusedError
from alpha.tokenizer import Tokenizer

LOGPROBS = "message.output_text.logprobs"
NOT_IN_RESPONSES: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "n": (1,),
    "reasoning": ({}, {"effort": "none"}),
    "truncation": ("disabled",),
}
"""What there is not in responses, with the values that ask for nothing."""


def read_response(fields: Fields, tokenizer: Tokenizer, form: ChatFormat, context: int) -> Asked:
    """What a request for /v1/responses asks for, of a model with this context. Raises RefusedError, which names the
    field that is wrong."""
    check_absent(fields)
    for name, harmless in NOT_IN_RESPONSES.items():
        fields.refuse(name, *harmless)
    if (wanted := fields.part("text").part("format").text("type", "text")) != "text":
        raise RefusedError(f"This server has no text.format {wanted!r}; only text.", "text.format")
    include = fields.get("include")
    if include not in (None, [], [LOGPROBS]):
        raise RefusedError(f"include may have {LOGPROBS}, and nothing else.", "include")
    count = fields.whole("top_logprobs", 0, 0, MOST_LOGPROBS) or 0
    messages = _read_input(fields)
    check_length([each["content"] for each in messages], tokenizer, context, "input")
    max_tokens = fields.whole("max_output_tokens", None, 1, MOST_TOKENS)
    logprobs = count if count or include else None
    return asked_of_messages(fields, tokenizer, form, "input", messages, 1, max_tokens, logprobs)


def _read_input(fields: Fields) -> list[dict[str, str]]:
    """The messages of `input`, a text or items, after what `instructions` says."""
    given = fields.get("input")
    if isinstance(given, str):
        messages = [{"role": "user", "content": given}]
    else:
        messages = read_messages(fields, "input", ("input_text", "output_text"))
    instructions = fields.text("instructions")
    return [{"role": "system", "content": instructions}, *messages] if instructions else messages


def echoed_fields(fields: Fields) -> dict[str, Any]:
    """What an answer repeats of the request."""
    names = ("instructions", "max_output_tokens", "metadata", "top_logprobs")
    return {name: fields.get(name) for name in names} | {"metadata": fields.part("metadata").values}


@dataclass(frozen=True)
class ResponseShape(CompletionShape):
    """The answers of /v1/responses, which have one choice. Of a stream, it keeps what was told already."""

    events_have_names: ClassVar[bool] = True

    echoed: dict[str, Any]
    _told: Part = field(default_factory=lambda: Part("", []))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def answer(self, choices: Sequence[Choice], parts: Sequence[Part]) -> dict[str, Any]:
        return self._response(choices[0], parts[0])

    def opening(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        [choice] = choices
        return [
            self._event("created", response=self._response(choice, None)),
            self._event("in_progress", response=self._response(choice, None)),
            self._event("output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._event("content_part.added", **self._place, part=self._content(choice, Part("", []))),
        ]

    def chunks(self, choice: Choice, part: Part) -> list[dict[str, Any]]:
        self._told.text += part.text
        self._told.entries += part.entries
        entries = logprob_entries(choice, part.entries, self.tokenizer)
        events = []
        if part.text or entries:
            events.append(self._event("output_text.delta", **self._place, delta=part.text, logprobs=entries))
        if part.finish:
            content = self._content(choice, self._told)
            done = {"text": content["text"], "logprobs": content["logprobs"]}
            events += [
                self._event("output_text.done", **self._place, **done),
                self._event("content_part.done", **self._place, part=content),
                self._event("output_item.done", output_index=0, item=self._item(_status(choice), [content])),
            ]
        return events

    def closing(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        [choice] = choices
        return [self._event(_status(choice), response=self._response(choice, self._told))]

    def failure(self, refusal: RefusedError) -> dict[str, Any]:
        # As documented, and as OpenAI's client reads errors, which raises them then.
        error = refusal.body()["error"]
        told = {name: error[name] for name in ("code", "message", "param")}
        return {"type": "error", "sequence_number": next(self._numbers), **told, "error": error}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    @property
    def _item_id(self) -> str:
        return self.id.replace("resp_", "msg_", 1)

    def _event(self, name: str, **values: Any) -> dict[str, Any]:
        return {"type": f"response.{name}", "sequence_number": next(self._numbers), **values}

    def _content(self, choice: Choice, part: Part) -> dict[str, Any]:
        entries = logprob_entries(choice, part.entries, self.tokenizer)
        return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": entries}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "message", "id": self._item_id, "status": status, "role": "assistant", "content": content}

    def _response(self, choice: Choice, part: Part | None) -> dict[str, Any]:
        """The response as a whole; without a part, one that has just begun."""
        status = _status(choice) if part else "in_progress"
        sampling = choice.asked.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": [self._item(status, [self._content(choice, part)])] if part else [],
            "usage": _usage(choice) if part else None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **self.echoed,
        }


def _status(choice: Choice) -> str:
    return "incomplete" if choice.finish == "length" else "completed"


def _usage(choice: Choice) -> dict[str, Any]:
    used = usage_of([choice])
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": choice.reused,
            "cache_write_tokens": used["prompt_tokens"] - choice.reused,
        },
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }
