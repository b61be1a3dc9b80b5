"""/v1/responses of alpha serve, as OpenAI's own client reads it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from serving import FailingBackend, Serving, serving

RESPONSES = "/v1/responses"
CHAT = "/v1/chat/completions"
QUESTION = "Hello!"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("run") / "toy", block=64) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_response_is_the_answer_of_a_chat(client: openai.OpenAI, server: Serving) -> None:
    chat = server.post(
        CHAT, temperature=0, max_tokens=5, messages=[{"role": "system", "content": "Be brief."},
                                                     {"role": "user", "content": QUESTION}],
    )  # fmt: skip
    options: dict[str, Any] = {"model": "toy@10", "temperature": 0, "max_output_tokens": 5}
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ]
    answers = [
        client.responses.create(**options, input=QUESTION, instructions="Be brief."),
        client.responses.create(**options, input=items),
    ]
    for answer in answers:
        Response.model_validate(answer.model_dump())  # the client itself takes anything
        assert answer.output_text == chat["choices"][0]["message"]["content"]
        assert answer.usage is not None
        assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]
        assert answer.usage.output_tokens == chat["usage"]["completion_tokens"]
        assert answer.usage.total_tokens == chat["usage"]["total_tokens"]
        assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert answers[1].usage is not None
    assert answers[1].usage.input_tokens_details.cached_tokens == 16 * ((chat["usage"]["prompt_tokens"] - 1) // 16)
    assert answers[0].instructions == "Be brief."


def test_a_stream_has_the_clients_events(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "toy@10", "input": QUESTION, "max_output_tokens": 9, "top_logprobs": 2, "extra_body": {"seed": 3},
        "include": ["message.output_text.logprobs"], "metadata": {"a": "b"},
    }  # fmt: skip
    whole = client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    for event in events:
        type(event).model_validate(event.model_dump())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type.removeprefix("response.") for event in events]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(types[4:-4]) == {"output_text.delta"}
    assert types[-4:-1] == ["output_text.done", "content_part.done", "output_item.done"]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    text = "".join(event.delta for event in deltas)
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert text == whole.output_text == last.response.output_text == events[-4].text
    assert last.response.status == whole.status == last.type.removeprefix("response.")
    assert (whole.incomplete_details is None) == (whole.status == "completed")
    [content] = whole.output[0].content
    assert [entry.token for event in deltas for entry in event.logprobs] == [each.token for each in content.logprobs]
    assert all(len(each.top_logprobs) == 2 for each in content.logprobs)
    assert whole.metadata == {"a": "b"}
    with client.responses.stream(model="toy@10", input=QUESTION, max_output_tokens=9, extra_body={"seed": 3}) as stream:
        assert stream.get_final_response().output_text == text if last.type == "response.completed" else True


def test_an_answer_that_was_cut_short_says_so(client: openai.OpenAI, server: Serving) -> None:
    token = server.models.loaded[0].loaded.tokenizer.encode("x")[0]
    answer = client.responses.create(
        model="toy@10", input=QUESTION, max_output_tokens=3, extra_body={"logit_bias": {str(token): 100}}
    )
    assert (answer.status, answer.output_text) == ("incomplete", "xxx")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None),
        ("input", []),
        ("input[0].type", [{"type": "function_call_output", "output": "1"}]),
        ("input[0].content[0].type", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("reasoning", {"effort": "high"}),
        ("truncation", "auto"),
        ("text.format", {"format": {"type": "json_schema"}}),
        ("include", ["file_search_call.results"]),
        ("max_output_tokens", 0),
        ("metadata", 5),
        ("instructions", 5),
    ],
)
def test_what_there_is_not_is_refused_by_its_name(server: Serving, field: str, value: Any) -> None:
    name = re.split(r"[\[.]", field)[0]
    assert server.refused(RESPONSES, **({"input": QUESTION} | {name: value}))["param"] == field


def test_what_asks_for_nothing_passes(server: Serving) -> None:
    server.post(
        RESPONSES, input=QUESTION, max_output_tokens=1, tools=[], tool_choice="auto", store=True, background=False,
        truncation="disabled", text={"format": {"type": "text"}}, reasoning=None, parallel_tool_calls=True, include=[],
    )  # fmt: skip


def test_an_error_in_a_stream_raises(tmp_path: Path) -> None:
    backend = FailingBackend()
    with (
        serving(tmp_path / "toy", backend=backend, block=128) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        backend.reads_left = 1
        stream = client.responses.create(model="toy@10", input=QUESTION, stream=True)
        assert next(stream).type == "response.created"
        with pytest.raises(openai.APIError, match="the device is gone"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the device is gone"):
            client.responses.create(model="toy@10", input=QUESTION, stream=True)


def test_events_carry_their_names(server: Serving) -> None:
    status, _, content = server.ask(RESPONSES, {"input": QUESTION, "max_output_tokens": 2, "stream": True})
    assert status == 200
    *events, rest = content.decode().split("\n\n")
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
