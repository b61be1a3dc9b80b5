"""Chat completions as OpenAI's API has them: messages in, the shape of answers out. Pure, as `server_completions`."""

from collections.abc import Mapping, Sequence
from typing import Any

from alpha.chat_format import ChatFormat, answer, encode_chat
from alpha.errors import AlphaError
from alpha.server_completions import (
    MOST_CHOICES,
    MOST_LOGPROBS,
    Asked,
    Choice,
    CompletionShape,
    Part,
    TokenEntry,
    check_absent,
    check_length,
    read_max_tokens,
    read_sampling,
    read_stop,
    read_stream,
    token_name,
    usage_of,
    written,
)
from alpha.server_fields import Fields, RefusedError
from alpha.tokenizer import Tokenizer

MOST_MESSAGES = 4096
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""What roles are called in templates."""


def read_chat(fields: Fields, tokenizer: Tokenizer, form: ChatFormat, context: int) -> Asked:
    """What a request for /v1/chat/completions asks for, of a model with this context. Raises RefusedError, which names
    the field that is wrong."""
    check_absent(fields)
    choices = fields.whole("n", 1, 1, MOST_CHOICES) or 1
    wants_logprobs = fields.flag("logprobs")
    count = fields.whole("top_logprobs", 0, 0, MOST_LOGPROBS) or 0
    if count and not wants_logprobs:
        raise RefusedError("top_logprobs needs logprobs: true.", "top_logprobs")
    max_tokens = read_max_tokens(fields, None, 1)
    messages = read_messages(fields, "messages")
    check_length([each["content"] for each in messages], tokenizer, context, "messages")
    logprobs = count if wants_logprobs else None
    return asked_of_messages(fields, tokenizer, form, "messages", messages, choices, max_tokens, logprobs)


def asked_of_messages(
    fields: Fields,
    tokenizer: Tokenizer,
    form: ChatFormat,
    name: str,
    messages: Sequence[Mapping[str, str]],
    choices: int,
    max_tokens: int | None,
    logprobs: int | None,
) -> Asked:
    """What a request asks for whose field `name` has these messages."""
    continues = fields.flag("continue_final_message")
    if continues and messages[-1]["role"] != "assistant":
        raise RefusedError("continue_final_message needs a last message of the assistant.", "continue_final_message")
    try:
        ids = encode_chat(tokenizer, form.template, messages, continues)
    except AlphaError as error:
        raise RefusedError(str(error), name) from error
    prompt = answer(tokenizer, form, ids, read_stop(fields))
    sampling = read_sampling(fields, tokenizer)
    return Asked([prompt], [""], choices, max_tokens, sampling, logprobs, False, *read_stream(fields), name)


def read_messages(fields: Fields, name: str, part_types: Sequence[str] = ("text",)) -> list[dict[str, str]]:
    """The roles and texts of a field's messages, whose contents are text or parts of these types."""
    value = fields.get(name)
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MESSAGES:
        raise fields.wrong(name, f"a list of 1 to {MOST_MESSAGES:,} messages")
    messages = []
    for index, each in enumerate(value):
        path = f"{name}[{index}]"
        if not isinstance(each, dict):
            raise RefusedError(f"{path} must be an object.", path)
        message = Fields(each, path)
        if message.get("type") not in (None, "message"):
            raise message.wrong("type", "message: this server takes nothing else")
        role = message.text("role")
        if role not in ROLES:
            raise message.wrong("role", "system, developer, user or assistant")
        for absent in ("tool_calls", "function_call", "audio"):
            message.refuse(absent, [])
        messages.append({"role": ROLES[role], "content": _read_content(message, role, path, part_types)})
    return messages


def _read_content(message: Fields, role: str, path: str, part_types: Sequence[str]) -> str:
    """The text of a message: as such, or in parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise message.wrong("content", "text or a list of parts")
    texts = []
    for index, each in enumerate(content):
        place = f"{path}.content[{index}]"
        part = Fields(each if isinstance(each, dict) else {}, place)
        if part.get("type") not in part_types:
            types = " or ".join(part_types)
            raise RefusedError(f"{place}.type must be {types}: this server takes nothing else.", f"{place}.type")
        if part.get("text") is None:
            raise part.wrong("text", "text")
        texts.append(part.text("text"))
    return "".join(texts)


class ChatShape(CompletionShape):
    """The answers of /v1/chat/completions."""

    chunk_kind = "chat.completion.chunk"

    def answer(self, choices: Sequence[Choice], parts: Sequence[Part]) -> dict[str, Any]:
        written_choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": part.text, "refusal": None},
                "logprobs": self._logprobs(choice, part.entries),
                "finish_reason": choice.finish,
            }
            for choice, part in zip(choices, parts, strict=True)
        ]
        return self._head(written_choices, "chat.completion") | {"usage": usage_of(choices)}

    def opening(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        return [self._chunk(choice, {"role": "assistant", "content": ""}, [], None) for choice in choices]

    def chunks(self, choice: Choice, part: Part) -> list[dict[str, Any]]:
        chunks = []
        if part.text or part.entries:
            chunks.append(self._chunk(choice, {"content": part.text}, part.entries, None))
        if part.finish:
            chunks.append(self._chunk(choice, {}, [], part.finish))
        return chunks

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], entries: Sequence[TokenEntry], finish: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(choice, entries) if entries else None
        chosen = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head([chosen])

    def _logprobs(self, choice: Choice, entries: Sequence[TokenEntry]) -> dict[str, Any] | None:
        if choice.asked.logprobs is None:
            return None
        return {"content": logprob_entries(choice, entries, self.tokenizer), "refusal": None}


def logprob_entries(choice: Choice, entries: Sequence[TokenEntry], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities in the shape of a chat: of each token that is part of the answer, and of the likeliest."""
    result = []
    for entry in entries:
        if entry.token in choice.prompt.stop_ids:
            continue
        noted = entry.logprobs
        assert noted is not None, "each drawn token has them where they were asked for"
        likeliest = [
            _named(tokenizer.token_bytes(token), value) for token, value in zip(noted.ids, noted.values, strict=True)
        ]
        result.append({**_named(entry.content, noted.chosen), "top_logprobs": likeliest})
    return result


def _named(content: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_name(content), "logprob": written(logprob), "bytes": list(content)}
