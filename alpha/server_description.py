"""The server's description of itself in the words of OpenAPI 3.1, for tools that make clients, forms or tests of it."""

from collections.abc import Mapping
from typing import Any, get_args

from alpha import __version__
from alpha.run_api import MOST_NAMES, MOST_PIXELS
from alpha.run_metrics import AXES
from alpha.run_reader import Status
from alpha.server_chat import MOST_MESSAGES, ROLES
from alpha.server_completions import (
    LONGEST_STOP,
    MOST_CHOICES,
    MOST_LOGPROBS,
    MOST_STOPS,
    MOST_TOKENS,
    NOT_THERE,
    NUMBERS,
)
from alpha.server_fields import LARGEST_SEED
from alpha.server_responses import LOGPROBS, NOT_IN_RESPONSES

Schema = dict[str, Any]

_FLAG: Schema = {"type": ["boolean", "null"]}
_TEXT: Schema = {"type": ["string", "null"]}
_NAME: Schema = {"type": "string"}


def _whole(least: int, most: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def _object(required: str, /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _absent(names: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """Fields that there are not, with what they may hold all the same."""
    return {name: {"enum": [None, *harmless]} for name, harmless in names.items()}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STOP = {"type": "string", "maxLength": LONGEST_STOP}
_COMMON: dict[str, Schema] = {
    "model": _TEXT,
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "stop": {"anyOf": [{"type": "null"}, _STOP, _list(_STOP, 0, MOST_STOPS)]},
    "seed": _whole(-(1 << 63), LARGEST_SEED),
    "top_k": _whole(-1, MOST_TOKENS),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": ["number", "null"], "minimum": -100, "maximum": 100},
    },
    "response_format": {"type": ["object", "null"], "properties": {"type": {"enum": ["text", None]}}},
    **{
        name: {"type": ["number", "null"], "minimum": least, "maximum": most}
        for name, (_, least, most) in NUMBERS.items()
    },
    **_absent(NOT_THERE),
}
_LIMITS = {"max_tokens": _whole(1, MOST_TOKENS), "max_completion_tokens": _whole(1, MOST_TOKENS)}
_IDS = _list({"type": "integer", "minimum": 0}, 1)
_TEXTS = _list({"type": "string"}, 1)


def _message(part_types: list[str]) -> Schema:
    part = _object("type text", type={"enum": part_types}, text={"type": "string"})
    content = {"anyOf": [{"type": "string"}, _list(part)]}
    absent = _absent(dict.fromkeys(("tool_calls", "function_call", "audio"), ([],)))
    return _object(
        "role content", role={"enum": list(ROLES)}, content=content, type={"enum": [None, "message"]}, **absent
    )


_SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        "error", error=_object("message type param code", message={"type": "string"}, type={"type": "string"},
                               param=_TEXT, code=_TEXT),
    ),
    "Model": _object("id object created owned_by", id={"type": "string"}, object={"const": "model"},
                     created={"type": "integer"}, owned_by={"type": "string"}),
    "Usage": _object(
        "prompt_tokens completion_tokens total_tokens",
        **{name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    ),
    "CompletionRequest": _object(
        "",
        **_COMMON,
        prompt={"anyOf": [{"type": ["string", "null"]}, _TEXTS, _IDS, _list({"anyOf": [{"type": "string"}, _IDS]}, 1)]},
        n=_whole(1, MOST_CHOICES),
        best_of=_whole(1, 1),
        max_tokens=_whole(0, MOST_TOKENS),
        max_completion_tokens=_whole(0, MOST_TOKENS),
        logprobs=_whole(0, MOST_LOGPROBS),
        echo=_FLAG,
        ignore_eos=_FLAG,
    ),
    "Completion": _object(
        "id object created model choices usage",
        object={"const": "text_completion"},
        choices=_list(_object("index text logprobs finish_reason", index={"type": "integer"}, text={"type": "string"},
                              logprobs={"type": ["object", "null"]}, finish_reason={"enum": ["stop", "length"]}), 1),
        usage=_named("Usage"),
    ),
    "ChatRequest": _object(
        "messages",
        **_COMMON,
        **_LIMITS,
        continue_final_message=_FLAG,
        messages=_list(_message(["text"]), 1, MOST_MESSAGES),
        n=_whole(1, MOST_CHOICES),
        logprobs=_FLAG,
        top_logprobs=_whole(0, MOST_LOGPROBS),
    ),
    "Chat": _object(
        "id object created model choices usage",
        object={"const": "chat.completion"},
        choices=_list(_object("index message logprobs finish_reason", index={"type": "integer"},
                              message=_object("role content", role={"const": "assistant"}, content={"type": "string"}),
                              logprobs={"type": ["object", "null"]}, finish_reason={"enum": ["stop", "length"]}), 1),
        usage=_named("Usage"),
    ),
    "ResponseRequest": _object(
        "input",
        **_COMMON,
        **_absent(NOT_IN_RESPONSES),
        input={"anyOf": [{"type": "string"}, _list(_message(["input_text", "output_text"]), 1, MOST_MESSAGES)]},
        instructions=_TEXT,
        continue_final_message=_FLAG,
        max_output_tokens=_whole(1, MOST_TOKENS),
        top_logprobs=_whole(0, MOST_LOGPROBS),
        include={"enum": [None, [], [LOGPROBS]]},
        metadata={"type": ["object", "null"]},
        text={"type": ["object", "null"],
              "properties": {"format": {"type": ["object", "null"], "properties": {"type": {"enum": ["text", None]}}}}},
    ),
    "Response": _object(
        "id object created_at status model output usage",
        object={"const": "response"},
        status={"enum": ["completed", "incomplete"]},
        output=_list({"type": "object"}, 1, 1),
        usage={"type": "object"},
    ),
    "TokenizeRequest": _object("prompt", prompt={"type": "string"}, model=_TEXT),
    "Tokens": _object("tokens count max_model_len", tokens=_list({"type": "integer"}), count={"type": "integer"},
                      max_model_len={"type": "integer"}),
    "DetokenizeRequest": _object("tokens", tokens=_list({"type": "integer", "minimum": 0}), model=_TEXT),
    "Text": _object("prompt", prompt={"type": "string"}),
    "Tokenizer": _object("tokenizer_class eos_token", tokenizer_class={"type": "string"}, eos_token={"type": "string"}),
    "Models": _object("object data", object={"const": "list"}, data=_list(_named("Model"))),
    "Health": _object("status", status={"const": "ok"}),
    "Run": _object("runId name group notes status phase step iters loss valLoss", runId=_NAME, name=_NAME, group=_NAME,
                   notes=_NAME, status={"enum": list(get_args(Status))}, phase=_NAME),
    "RunChanges": {"type": "object", "properties": {name: {"type": "string"} for name in ("name", "group", "notes")},
                   "minProperties": 1, "additionalProperties": False},
    "Runs": _object("runs allowEdit", runs=_list(_named("Run")), allowEdit={"type": "boolean"}),
    "Left": _object("left", left=_list(_NAME)),
    "Curves": _object("axis version share extent columns marks", axis={"enum": list(AXES)}, columns={
        "type": "object",
        "additionalProperties": _object("x y count", x=_list({"type": "number"}), y=_list({"type": "number"}),
                                        count={"type": "integer"}),
    }),
    "Samples": _object("samples", samples=_list(_object("step prompt text", step={"type": "integer"}, prompt=_NAME,
                                                        text=_NAME))),
    "Lines": _object("count lines", count={"type": "integer"}, lines=_list(_NAME)),
    "Checkpoints": _object("checkpoints", checkpoints=_list(_object("name step", name=_NAME))),
    "AllCheckpoints": _object("models", models=_list(_object("runId name step", runId=_NAME, name=_NAME))),
    "News": _object("id events", id=_NAME, events=_list({"type": "object"})),
    "Sparklines": _object("losses", losses={"type": "object", "additionalProperties": _list({"type": "number"})}),
    "Comparison": _object("runs options", runs=_list(_NAME), options={"type": "object"}),
    "Domains": _object("domains", domains=_list(_object("id description tokenizer model training prompts specimen"))),
}  # fmt: skip


def _operation(
    what: str,
    answer: str,
    request: str = "",
    streams: bool = False,
    parameters: tuple[Schema, ...] = (),
    method: str = "",
) -> Schema:
    answers: dict[str, Any] = {"application/json": {"schema": _named(answer)}}
    if streams:
        answers["text/event-stream"] = {}
    operation: Schema = {
        "summary": what,
        "operationId": "".join(word.capitalize() for word in what.rstrip(".").split()),
        "responses": {
            "200": {"description": "The answer.", "content": answers},
            "default": {
                "description": "Why there is none.",
                "content": {"application/json": {"schema": _named("Error")}},
            },
        },
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if request:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _named(request)}}}
    return {method or ("post" if request else "get"): operation}


def _parameter(name: str, schema: Schema, place: str = "query") -> Schema:
    return {"name": name, "in": place, "schema": schema} | ({"required": True} if place == "path" else {})


def _of_runs() -> Schema:
    """The paths of runs."""
    run = (_parameter("run_id", {"type": "string", "minLength": 1}, "path"),)
    several = (_parameter("run", {"type": "array", "items": {"type": "string"}}),)
    after = (_parameter("after", {"type": "string"}),)
    number: Schema = {"type": "number"}
    part = (
        _parameter("column", {"type": "array", "items": {"type": "string"}, "maxItems": MOST_NAMES}),
        _parameter("axis", {"enum": list(AXES)}),
        _parameter("from", number),
        _parameter("to", number),
    )
    view = (
        *part,
        _parameter("pixels", {"type": "integer", "minimum": 1, "maximum": MOST_PIXELS}),
        _parameter("smoothing", {"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
        _parameter("log", {"type": "boolean"}),
    )
    file = {"200": {"description": "The file.", "content": {"application/octet-stream": {}}}}
    checkpoint = _operation("Download a checkpoint.", "Error", parameters=(*run, _parameter("name", _NAME, "path")))
    checkpoint["get"]["responses"] |= file
    table = _operation("Export columns.", "Error", parameters=(*several, *part))
    table["get"]["responses"] |= {"200": {"description": "Every row, as CSV.", "content": {"text/csv": {}}}}
    return {
        "/api/runs": _operation("List runs.", "Runs"),
        "/api/runs/{run_id}": _operation("Describe a run.", "Run", parameters=run)
        | _operation("Write on a run.", "Run", "RunChanges", parameters=run, method="patch")
        | _operation("Delete a run.", "Left", parameters=run, method="delete"),
        "/api/runs/{run_id}/metrics": _operation("Thin the curves of a run.", "Curves", parameters=(*run, *view)),
        "/api/runs/{run_id}/samples": _operation(
            "List samples.", "Samples", parameters=(*run, _parameter("after", {"type": "integer"}))
        ),
        "/api/runs/{run_id}/log": _operation("Read the log of a run.", "Lines", parameters=run),
        "/api/runs/{run_id}/checkpoints": _operation("List checkpoints.", "Checkpoints", parameters=run),
        "/api/runs/{run_id}/checkpoints/{name}": checkpoint,
        "/api/runs/{run_id}/events": _operation("Follow a run.", "News", streams=True, parameters=(*run, *after)),
        "/api/events": _operation("Follow runs.", "News", streams=True, parameters=(*several, *after)),
        "/api/sparklines": _operation("Sketch losses.", "Sparklines", parameters=several),
        "/api/compare": _operation("Compare options.", "Comparison", parameters=several),
        "/api/csv": table,
        "/api/models": _operation("List all checkpoints.", "AllCheckpoints"),
        "/api/domains": _operation("List domains.", "Domains"),
    }


def description(has_runs: bool) -> Schema:
    """The whole document, of a server that shows runs or does not."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    model = {"name": "model", "in": "query", "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Alpha", "version": __version__, "description": "Models that were trained here."},
        "paths": {
            "/v1/models": _operation("List models.", "Models"),
            "/v1/models/{name}": _operation("Describe a model.", "Model", parameters=(name,)),
            "/v1/completions": _operation("Continue texts.", "Completion", "CompletionRequest", streams=True),
            "/v1/chat/completions": _operation("Answer a chat.", "Chat", "ChatRequest", streams=True),
            "/v1/responses": _operation("Respond.", "Response", "ResponseRequest", streams=True),
            "/tokenize": _operation("Tokenize a text.", "Tokens", "TokenizeRequest"),
            "/detokenize": _operation("Make text of tokens.", "Text", "DetokenizeRequest"),
            "/tokenizer_info": _operation("Describe a tokenizer.", "Tokenizer", parameters=(model,)),
            "/health": _operation("Say whether all is well.", "Health"),
            **(_of_runs() if has_runs else {}),
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
