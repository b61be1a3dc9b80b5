"""alpha serve as its clients see it: the official one, lm-evaluation-harness's requests, and hostile ones."""

import errno
import http.client
import json
import math
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving import FailingBackend, Serving, SlowBackend, serving
from waiting import eventually

from alpha import server as server_module
from alpha import server_completions, server_connection
from alpha.sampling import log_softmax
from alpha.server import LONGEST_TEXT, Access, application
from alpha.server_connection import BODY_LIMIT, LONG_WORK
from alpha.server_models import Limits

COMPLETIONS = "/v1/completions"
PROMPT = "The cat sees the dog."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("run") / "toy") as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def model_of(server: Serving) -> Any:
    return server.models.loaded[0].loaded


def expected_logprobs(server: Serving, ids: list[int]) -> Any:
    """Of all tokens [T, V] after each of the ids, by the model's own forward pass."""
    model = model_of(server).model
    logits = model.backend.to_numpy(model.logits(model.backend.from_numpy(np.array([ids], np.int32))).data)
    return log_softmax(logits[0].astype(np.float64))


# --- the official client ----------------------------------------------------------------------------------------------


def test_the_official_client_lists_models_and_completes(client: openai.OpenAI, server: Serving) -> None:
    [model] = client.models.list().data
    assert model.id == "toy@10"
    assert client.models.retrieve("toy@10").id == model.id
    answer = client.completions.create(model=model.id, prompt=PROMPT, max_tokens=8, seed=3, temperature=0.9)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.completions.create(model=model.id, prompt=PROMPT, max_tokens=8, seed=3, temperature=0.9)
    assert again.choices[0].text == answer.choices[0].text


def test_a_stream_says_the_same_as_one_answer(client: openai.OpenAI, server: Serving) -> None:
    options: dict[str, Any] = {"model": "toy@10", "prompt": PROMPT, "max_tokens": 12, "seed": 5, "n": 3}
    whole = client.completions.create(**options)
    texts, reasons = [""] * 3, [None] * 3
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            assert choice.text == ""
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) == 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_an_error_is_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'other'"):
        client.completions.create(model="other", prompt="")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="toy@10", prompt="", temperature=-1, stream=True)
    assert caught.value.param == "temperature"


# --- lm-evaluation-harness --------------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_the_model(server: Serving) -> None:
    tokenizer = model_of(server).tokenizer
    prompts = [tokenizer.encode(text) for text in (PROMPT, "Grüße 日本", "The dog", PROMPT)]
    body = {"model": "toy@10", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    status, _, content = server.ask(COMPLETIONS, body | {"prompt": prompts}, {"authorization": "Bearer "})
    assert status == 200
    choices = json.loads(content)["choices"]
    for ids, choice in zip(prompts, choices, strict=True):
        noted = choice["logprobs"]
        assert [len(values) for values in noted.values()] == [len(ids) + 1] * 4
        assert noted["token_logprobs"][0] is None
        expected = expected_logprobs(server, ids)
        for place, (token, actual, top) in enumerate(
            zip(ids[1:], noted["token_logprobs"][1:-1], noted["top_logprobs"][1:-1], strict=True)
        ):
            assert actual == pytest.approx(expected[place, token], abs=1e-4)
            assert (actual == max(top.values())) == (token == int(np.argmax(expected[place])))
        assert choice["text"].startswith(tokenizer.decode(ids))
    assert choices[0]["logprobs"] == choices[3]["logprobs"]


def test_a_scored_text_has_an_entry_for_the_token_that_ends_it(server: Serving) -> None:
    tokenizer = model_of(server).tokenizer
    ids = tokenizer.encode(PROMPT)
    bias = {str(tokenizer.end_of_text): 100}
    answer = server.post(COMPLETIONS, prompt=[ids], echo=True, max_tokens=1, logprobs=1, temperature=0, logit_bias=bias)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert [len(values) for values in choice["logprobs"].values()] == [len(ids) + 1] * 4


def test_bytes_that_are_no_characters_have_names_of_their_own(server: Serving) -> None:
    ids = [*model_of(server).tokenizer.encode("日")]
    answer = server.post(COMPLETIONS, prompt=[ids], max_tokens=1, logprobs=20, echo=True)
    noted = answer["choices"][0]["logprobs"]
    assert noted["tokens"][:3] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"]
    assert all(len(top) >= 20 for top in noted["top_logprobs"][1:])
    assert noted["text_offset"][:4] == [0, 0, 0, 1]


def test_a_prompt_alone_can_be_scored(server: Serving) -> None:
    answer = server.post(COMPLETIONS, prompt=PROMPT, max_tokens=0, logprobs=0, echo=True)
    [choice] = answer["choices"]
    assert choice["text"] == PROMPT == "".join(choice["logprobs"]["tokens"])
    assert answer["usage"]["completion_tokens"] == 0
    offsets = choice["logprobs"]["text_offset"]
    assert [PROMPT[a:b] for a, b in zip(offsets, [*offsets[1:], None], strict=True)] == choice["logprobs"]["tokens"]


def test_text_and_log_probabilities_come_together(server: Serving) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 14, "logprobs": 2, "seed": 8, "temperature": 1.5}
    whole = server.post(COMPLETIONS, **options)["choices"][0]["logprobs"]
    chunks = [chunk["choices"][0] for chunk in server.stream(COMPLETIONS, **options)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for chunk in chunks if chunk["logprobs"] for each in chunk["logprobs"][name]] == whole[name]


# --- what a request may ask for ---------------------------------------------------------------------------------------


def test_prompts_are_text_lists_and_ids(server: Serving) -> None:
    ids = model_of(server).tokenizer.encode(PROMPT)
    forms = (PROMPT, [PROMPT], ids, [ids])
    texts = {server.post(COMPLETIONS, prompt=form, temperature=0)["choices"][0]["text"] for form in forms}
    assert len(texts) == 1
    answer = server.post(COMPLETIONS, prompt=[PROMPT, ids, "The"], temperature=0, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert {choice["text"] for choice in answer["choices"][:4]} == texts
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids) + len(model_of(server).tokenizer.encode("The"))


def test_an_answer_is_its_own_whatever_else_is_asked(server: Serving) -> None:
    def ask(seed: int) -> str:
        return server.post(COMPLETIONS, prompt=f"{PROMPT} {seed}", seed=seed, max_tokens=9)["choices"][0]["text"]

    alone = [ask(seed) for seed in range(12)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda seed=seed: together.__setitem__(seed, ask(seed))) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(12)] == alone
    assert len(set(alone)) > 6


def test_a_stop_text_ends_the_text_before_it(server: Serving) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 18, "seed": 2, "ignore_eos": True}
    text = server.post(COMPLETIONS, **options)["choices"][0]["text"]
    stop = text[5:8]
    for form in (stop, [stop], ["never ever", stop]):
        answer = server.post(COMPLETIONS, **options, stop=form, logprobs=1)
        [choice] = answer["choices"]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 18
        assert "".join(server.post(COMPLETIONS, **options, stop=form)["choices"][0]["text"]) == choice["text"]
    assert server.post(COMPLETIONS, **options, stop=[])["choices"][0]["text"] == text


def test_a_space_at_the_end_of_a_prompt_is_the_beginning_of_the_next_word(server: Serving) -> None:
    with_space = server.post(COMPLETIONS, prompt="The cat ", temperature=0, max_tokens=3, logprobs=0)["choices"][0]
    assert with_space["logprobs"]["tokens"][0] == f" {with_space['text']}"[: len(with_space["logprobs"]["tokens"][0])]
    echoed = server.post(COMPLETIONS, prompt="The cat ", max_tokens=1, logprobs=0, echo=True)["choices"][0]
    assert "".join(echoed["logprobs"]["tokens"][:-1]) == "The cat "


def test_a_bias_and_both_names_of_the_limit(server: Serving) -> None:
    token = model_of(server).tokenizer.encode("x")[0]
    answer = server.post(COMPLETIONS, prompt=PROMPT, logit_bias={str(token): 100}, temperature=0, max_tokens=4)
    assert answer["choices"][0]["text"] == "xxxx"
    answer = server.post(COMPLETIONS, prompt=PROMPT, max_completion_tokens=2, max_tokens=9, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 2
    assert server.refused(COMPLETIONS, prompt=PROMPT, max_completion_tokens=2, max_tokens=-1)["param"] == "max_tokens"
    assert server.post(COMPLETIONS, prompt="", max_tokens=1)["usage"]["prompt_tokens"] == 1


def test_what_asks_for_nothing_passes(server: Serving) -> None:
    harmless = {
        "tools": [], "response_format": {"type": "text"}, "suffix": "", "best_of": 1, "logit_bias": None, "n": None,
        "user": "me", "metadata": {"a": 1}, "stop": None, "stream_options": None, "logprobs": None, "until": ["x"],
    }  # fmt: skip
    server.post(COMPLETIONS, prompt=PROMPT, **harmless)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("suffix", "end"),
        ("best_of", 3),
        ("response_format", {"type": "json_object"}),
        ("n", 0),
        ("n", 10**9),
        ("n", True),
        ("max_tokens", "5"),
        ("max_tokens", -1),
        ("max_completion_tokens", 1.5),
        ("temperature", -1),
        ("temperature", 1e300),
        ("temperature", "hot"),
        ("top_p", 2),
        ("top_k", -7),
        ("seed", 1 << 70),
        ("stop", 5),
        ("stop", {}),
        ("stop", False),
        ("stop", [["a"]]),
        ("stop", ["a"] * 17),
        ("logprobs", 21),
        ("logprobs", True),
        ("echo", "yes"),
        ("stream", 1),
        ("stream_options", []),
        ("logit_bias", {"cat": 1}),
        ("logit_bias", {"999999": 1}),
        ("prompt", 5),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [-1]),
        ("prompt", [10**30]),
        ("prompt", {"text": "a"}),
        ("prompt", "cat " * 100),
        ("prompt", ["a"] * 1000),
        ("model", 7),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name(server: Serving, field: str, value: Any) -> None:
    for stream in ({}, {"stream": True} if field != "stream" else {}):
        error = server.refused(COMPLETIONS, **({"prompt": PROMPT} | stream | {field: value}))
        assert error["param"] == field
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"n": NaN}', b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'"text"']
)
def test_what_is_no_json_object_is_refused(server: Serving, body: bytes) -> None:
    status, headers, content = server.ask(COMPLETIONS, body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_half_a_character_in_json_is_text_too(server: Serving) -> None:
    assert server.post(COMPLETIONS, prompt="\ud83d", echo=True, max_tokens=1)["choices"][0]["text"][0] == "\ud83d"


def test_paths_and_methods_that_there_are_not(server: Serving) -> None:
    for path, method, status in (("/v2", "GET", 404), (COMPLETIONS, "GET", 405), ("/v1/models/none", "GET", 404)):
        actual, _, content = server.ask(path, method=method)
        assert actual == status
        assert "error" in json.loads(content)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused(server: Serving) -> None:
    status, _, content = server.ask(COMPLETIONS, b" " * (BODY_LIMIT + 1))
    assert (status, json.loads(content)["error"]["type"]) == (413, "invalid_request_error")


def test_what_is_too_long_for_the_context_is_refused_before_it_is_divided(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_of(server).tokenizer, "encode_to_array", None)
    text = "a" * 100_000
    for path, body in (
        (COMPLETIONS, {"prompt": text}),
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        ("/v1/responses", {"input": text}),
    ):
        error = server.refused(path, **body)
        assert error["code"] == "context_length_exceeded"
        assert "the model's context holds 24" in error["message"]


def test_long_work_holds_nobody_up(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()

    def encode(text: str, allow_special: bool) -> list[int]:
        begun.set()
        assert answered.wait(20)
        return [len(text)]

    monkeypatch.setattr(model_of(server).tokenizer, "encode", encode)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(server.post("/tokenize", prompt="a" * LONG_WORK)))
    asking.start()
    try:
        assert begun.wait(20)
        assert server.ask("/health")[0] == 200
    finally:
        answered.set()
        asking.join()
    assert found[0]["tokens"] == [LONG_WORK]


def test_log_probabilities_of_many_texts_have_a_limit(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_completions, "MOST_ENTRIES", 6 * 2 * 8)
    body: dict[str, Any] = {"max_tokens": 8, "logprobs": 5, "n": 2}
    assert server.post(COMPLETIONS, prompt="a", **body)
    assert server.refused(COMPLETIONS, prompt="a", **body, echo=True)["param"] == "logprobs"
    chat = {"messages": HELLO, "logprobs": True, "top_logprobs": 5}
    assert server.refused(CHAT, **chat, n=2)["param"] == "top_logprobs"
    assert server.post(CHAT, **chat)


def test_pages_of_others_do_not_ask(server: Serving) -> None:
    own = f"http://127.0.0.1:{server.port}"
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    for origin, site, status in (
        (own, "same-origin", 200),
        (own, None, 200),
        (None, "none", 200),
        ("http://proxied.example", "same-origin", 200),
        ("http://evil.example", "cross-site", 403),
        ("http://localhost:3000", "same-site", 403),
        ("http://evil.example", None, 403),
        ("null", None, 403),
    ):
        headers = {"origin": origin, "sec-fetch-site": site, "content-type": "text/plain"}
        sent = {name: value for name, value in headers.items() if value is not None}
        assert server.ask(COMPLETIONS, body, sent)[0] == status, (origin, site)


def test_pages_of_named_origins_ask_without_a_key(tmp_path: Path) -> None:
    origin = "http://localhost:3000"
    with serving(tmp_path / "toy", Access(origins=(origin,), hosts=None)) as server:
        headers = {"origin": origin, "sec-fetch-site": "same-site", "host": "proxied.example"}
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        status, answered, _ = server.ask(COMPLETIONS, body, headers)
        assert (status, answered["access-control-allow-origin"]) == (200, origin)
        assert server.ask(COMPLETIONS, body, headers | {"origin": "http://localhost:4000"})[0] == 403


def test_only_its_own_names_are_answered(server: Serving) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", f"LOCALHOST:{server.port}"):
        assert server.ask("/v1/models", headers={"host": host})[0] == 200
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80", "a b"):
        assert server.ask("/v1/models", headers={"host": host})[0] == 403


def test_a_key_and_origins(tmp_path: Path) -> None:
    origin = "http://page.example"
    with serving(tmp_path / "toy", Access("sésame", (origin,))) as server:
        for header in ("", "Bearer", "Bearer ", "Bearer wrong", "Basic sésame", "sésame"):
            headers = {"authorization": header.encode().decode("latin-1")}
            status, answered, _ = server.ask("/v1/models", headers=headers)
            assert (status, answered["www-authenticate"]) == (401, "Bearer")
        right = {"authorization": "Bearer sésame".encode().decode("latin-1"), "host": "any.example", "origin": origin}
        status, headers, _ = server.ask("/v1/models", headers=right)
        assert (status, headers["access-control-allow-origin"]) == (200, origin)
        assert server.ask("/health")[0] == 200
        asked = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        }
        status, headers, _ = server.ask(COMPLETIONS, headers=asked, method="OPTIONS")
        assert status == 200
        assert "x-stainless-lang" in headers["access-control-allow-headers"]
        refused = server.ask(COMPLETIONS, headers=asked | {"origin": "http://evil.example"}, method="OPTIONS")
        assert refused[0] == 400


def test_a_client_that_goes_away_frees_what_it_held(tmp_path: Path) -> None:
    with serving(tmp_path / "toy", backend=SlowBackend()) as server:
        engine = server.models.loaded[0].engine
        for stream in (True, False):
            body = json.dumps({"prompt": PROMPT, "max_tokens": 20, "n": 4, "stream": stream, "ignore_eos": True})
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", COMPLETIONS, body)
            eventually(lambda: engine.running == 4)
            if stream:
                connection.getresponse().read(10)
            assert connection.sock is not None or stream
            connection.close()
            before = engine.read_tokens + engine.continued_tokens
            eventually(lambda: engine.running == 0)
            assert (engine.read_tokens + engine.continued_tokens) - before < 4 * 15
        assert server.post(COMPLETIONS, prompt=PROMPT, max_tokens=1)["choices"]


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path / "toy", limits=Limits(1, 2, threads=1), backend=SlowBackend()) as server:
        engine = server.models.loaded[0].engine
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 15, "ignore_eos": True}
        threads = [threading.Thread(target=server.post, args=(COMPLETIONS,), kwargs=body) for _ in range(3)]
        for thread in threads:
            thread.start()
            eventually(lambda: engine.running == 1)
        eventually(lambda: engine.waiting == 2)
        status, headers, content = server.ask(COMPLETIONS, body)
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(content)["error"]["code"] == "queue_full"
        for thread in threads:
            thread.join()


def test_a_device_that_fails_is_an_error_and_not_an_empty_stream(tmp_path: Path) -> None:
    backend = FailingBackend()
    with serving(tmp_path / "toy", backend=backend) as server:
        backend.reads_left = 0
        for stream in (True, False, True, False):  # also after the model was loaded again, in vain
            error = server.refused(COMPLETIONS, 503, prompt=PROMPT, stream=stream)
            assert "the device is gone" in error["message"]
        backend.reads_left = math.inf
        assert server.post(COMPLETIONS, prompt=PROMPT, max_tokens=1)["choices"]


def test_an_error_in_a_stream_raises_and_does_not_look_like_an_end(tmp_path: Path) -> None:
    backend = FailingBackend()
    with (
        serving(tmp_path / "toy", backend=backend, block=128) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        for ask in (
            lambda: client.completions.create(model="toy@10", prompt=PROMPT, stream=True, max_tokens=50),
            lambda: client.chat.completions.create(model="toy@10", messages=HELLO, stream=True),
        ):
            backend.reads_left = 2
            with pytest.raises(openai.APIError, match="the device is gone"):
                list(ask())
            backend.reads_left = math.inf
        assert server.ask("/health")[0] == 200


def test_who_does_not_read_counts_as_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_connection, "SEND_SECONDS", 0.2)
    with serving(tmp_path / "toy", limits=Limits(max_batch=64, threads=1)) as server:
        [model] = server.models.loaded
        body = {
            "prompt": ["The cat sees"] * 64,
            "n": 4,
            "max_tokens": 15,
            "logprobs": 20,
            "echo": True,
            "ignore_eos": True,
        }
        content = json.dumps(body | {"stream": True}).encode()
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", server.port))
            silent.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content)
            )
            silent.sendall(content)
            eventually(lambda: model.is_busy)
            eventually(lambda: not model.is_busy)
            eventually(lambda: model.engine.cache_use == 0)
            silent.settimeout(20)
            got = b""
            while part := silent.recv(1 << 16):
                got += part
            assert b"[DONE]" not in got


def test_a_body_that_does_not_come_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_connection, "BODY_SECONDS", 0.2)
    with (
        serving(tmp_path / "toy") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent,
    ):
        silent.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert silent.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: lo"])
def test_a_head_that_does_not_come_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server_connection, "HEAD_SECONDS", 0.3)
    with (
        serving(tmp_path / "toy", backend=SlowBackend()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent,
    ):
        silent.sendall(sent)
        # What takes longer to answer than a head may take is answered.
        assert server.post(COMPLETIONS, prompt=PROMPT, max_tokens=10, ignore_eos=True)["choices"]
        assert silent.recv(1000) == b""


def test_too_many_connections_are_told_once(
    server: Serving, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: int) -> None:
        context = {"message": "socket.accept() out of system resource", "exception": OSError(number, "no more")}
        server.loop.call_soon_threadsafe(server.loop.call_exception_handler, context)
        assert server.ask("/health")[0] == 200

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1 << 16)
    for _ in range(3):
        fail(errno.EMFILE)
    told = capfd.readouterr().err
    assert told.startswith("alpha: warning: There are too many connections;")
    assert told.count("\n") == 1
    assert caplog.text == ""
    fail(errno.EIO)
    assert "no more" in caplog.text


def test_who_leaves_while_sending_is_no_fault(
    server: Serving, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    before = server.models.loaded[0].engine.read_tokens
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    for _ in range(3):
        assert server.ask("/health")[0] == 200
    assert (caplog.text, capfd.readouterr().err) == ("", "")
    assert server.models.loaded[0].engine.read_tokens == before


@pytest.mark.parametrize("ends", [True, False])
def test_answers_under_way_end_with_the_server_or_are_told_that_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    monkeypatch.setattr(server_module, "SHUTDOWN_SECONDS", 20 if ends else 0.3)
    body = {"prompt": PROMPT, "max_tokens": 15 if ends else 190, "ignore_eos": True}
    whole: list[tuple[int, dict[str, str], bytes]] = []
    with serving(tmp_path / "toy", backend=SlowBackend(), block=200) as server:
        engine = server.models.loaded[0].engine
        asking = threading.Thread(target=lambda: whole.append(server.ask(COMPLETIONS, body)))
        asking.start()
        eventually(lambda: engine.running == 1)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", COMPLETIONS, json.dumps(body | {"stream": True}))
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        start = time.monotonic()
    assert time.monotonic() - start < 5
    asking.join()
    events = answer.read().strip().split(b"\n\n")
    connection.close()
    assert (events[-1] == b"data: [DONE]") == ends
    assert whole[0][0] == (200 if ends else 503)
    if not ends:
        for told in (events[-1].removeprefix(b"data: "), whole[0][2]):
            assert json.loads(told)["error"]["message"] == "The server is stopping."
    assert caplog.text == ""
    with pytest.raises(ConnectionRefusedError):
        server.ask("/health")


def test_sending_nothing_holds_nobody_up(server: Serving) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert server.post(COMPLETIONS, prompt=PROMPT, max_tokens=1)["choices"]


def test_every_number_of_an_answer_is_json(server: Serving) -> None:
    answer = server.post(COMPLETIONS, prompt=PROMPT, max_tokens=6, logprobs=20, temperature=0)
    noted = answer["choices"][0]["logprobs"]
    assert all(math.isfinite(value) for top in noted["top_logprobs"] for value in top.values())


# --- chat -------------------------------------------------------------------------------------------------------------

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]


def test_the_official_client_chats(client: openai.OpenAI, server: Serving) -> None:
    options: dict[str, Any] = {
        "model": "toy@10", "max_completion_tokens": 7, "seed": 4, "n": 2, "logprobs": True, "top_logprobs": 3,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]},
        ],
    }  # fmt: skip
    whole = client.chat.completions.create(**options)
    texts, entries = ["", ""], [[], []]
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        entries[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
        assert not (choice.finish_reason and choice.delta.content)
    assert texts == [choice.message.content for choice in whole.choices]
    assert entries == [choice.logprobs.content for choice in whole.choices]
    assert all(len(entry.top_logprobs) == 3 and bytes(entry.bytes) for row in entries for entry in row)
    assert chunks[-1].usage == whole.usage
    assert {choice.finish_reason for choice in whole.choices} <= {"stop", "length"}


def test_a_chat_is_the_completion_of_its_ids(server: Serving) -> None:
    tokenizer = model_of(server).tokenizer
    ids = tokenizer.encode("<|user|>Hello!<|end|>\n<|assistant|>", allow_special=True)
    chat = server.post(CHAT, messages=HELLO, temperature=0, max_tokens=5)
    completion = server.post(COMPLETIONS, prompt=ids, temperature=0, max_tokens=5)
    assert chat["choices"][0]["message"]["content"] == completion["choices"][0]["text"]
    assert chat["usage"] == completion["usage"]
    marked = server.post(CHAT, messages=[{"role": "user", "content": "<|end|>"}], max_tokens=1)
    assert marked["usage"]["prompt_tokens"] > 5


def test_the_last_message_can_be_continued(server: Serving) -> None:
    tokenizer = model_of(server).tokenizer
    begun = [*HELLO, {"role": "assistant", "content": "a <|end|> "}]
    prefix = tokenizer.encode("<|user|>Hello!<|end|>\n<|assistant|>", allow_special=True)
    ids = [*prefix, *tokenizer.encode("a <|end|> ", allow_special=False)]
    chat = server.post(CHAT, messages=begun, continue_final_message=True, temperature=0, max_tokens=3)
    completion = server.post(COMPLETIONS, prompt=ids, temperature=0, max_tokens=3)
    assert chat["choices"][0]["message"]["content"] == completion["choices"][0]["text"]
    assert chat["usage"] == completion["usage"]
    assert server.refused(CHAT, messages=HELLO, continue_final_message=True)["param"] == "continue_final_message"


def test_a_whole_number_may_have_a_point(server: Serving) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 2, "ignore_eos": True}).replace(": 2", ": 2.0").encode()
    status, _, content = server.ask(COMPLETIONS, body)
    assert (status, json.loads(content)["usage"]["completion_tokens"]) == (200, 2)


def test_the_description_has_every_route_and_all_that_it_names(server: Serving) -> None:
    _, _, content = server.ask("/openapi.json")
    described = json.loads(content)
    for name in re.findall(r'"#/components/schemas/(\w+)"', content.decode()):
        assert name in described["components"]["schemas"]
    routes = {route.path.replace("{name:path}", "{name}") for route in application(server.models, Access()).routes}
    pages = {path for path in routes if path == "/" or path.startswith(("/web/", "/metrics", "/openapi.json"))}
    assert set(described["paths"]) == routes - pages
    assert described["components"]["schemas"]["CompletionRequest"]["properties"]["temperature"]["maximum"] == 100


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("messages[0].type", {"messages": [{"role": "user", "content": "a", "type": "image"}]}),
        ("messages", {}),
        ("messages", {"messages": []}),
        ("messages[0]", {"messages": ["Hello"]}),
        ("messages[0].role", {"messages": [{"role": "tool", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
        ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("messages", {"messages": [{"role": "user", "content": "cat " * 90}]}),
        ("top_logprobs", {"messages": HELLO, "top_logprobs": 2}),
        ("tools", {"messages": HELLO, "tools": [{}]}),
        ("response_format", {"messages": HELLO, "response_format": {"type": "json_schema"}}),
    ],
)
def test_what_is_wrong_with_a_chat_is_refused_by_its_name(server: Serving, field: str, body: Any) -> None:
    assert server.refused(CHAT, **body)["param"] == field


# --- tokens and measures ----------------------------------------------------------------------------------------------


def test_text_and_ids_as_the_harness_asks_for_them(server: Serving) -> None:
    text = "The cat — 日本"
    ids = server.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert ids == model_of(server).tokenizer.encode(text)
    assert server.post("/detokenize", tokens=ids) == {"prompt": text}
    status, _, content = server.ask("/tokenizer_info")
    assert (status, json.loads(content)["eos_token"]) == (200, "<|endoftext|>")
    assert server.refused("/tokenize")["param"] == "prompt"
    assert server.refused("/tokenize", prompt="a" * (LONGEST_TEXT + 1))["param"] == "prompt"
    for wrong in (None, "a", [-1], [10**9], [True]):
        assert server.refused("/detokenize", tokens=wrong)["param"] == "tokens"


def test_measures_count_what_was_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "toy") as server:
        usage = server.post(COMPLETIONS, prompt=PROMPT, max_tokens=4, n=2, ignore_eos=True)["usage"]
        server.refused(COMPLETIONS, n=0)
        status, headers, content = server.ask("/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    lines = content.decode().splitlines()
    for line in (
        'alpha_requests_total{path="/v1/completions",status="200"} 1.0',
        'alpha_requests_total{path="/v1/completions",status="400"} 1.0',
        f'alpha_prompt_tokens_total{{model="toy@10"}} {usage["prompt_tokens"]}.0',
        'alpha_completion_tokens_total{model="toy@10"} 8.0',
        'alpha_time_to_first_token_seconds_count{model="toy@10"} 1.0',
        'alpha_running{model="toy@10"} 0.0',
        'alpha_cache_use_ratio{model="toy@10"} 0.0',
    ):
        assert line in lines
