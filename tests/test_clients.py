"""Clients of others, unmodified, talk to alpha serve. Run by build_scripts/clients, in an environment that has them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Serving, serving

from alpha.sampling import log_softmax

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]  # theirs are not ours to mend
MODEL = "toy@10"
PROMPT = "The cat sees the dog."
BLOCK = 128


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("run") / "toy", block=BLOCK) as running:
        yield running


def chat_of(server: Serving, **options: Any) -> dict[str, Any]:
    answer = server.post("/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}], **options)
    return answer["choices"][0]["message"] | {"usage": answer["usage"]}


def environment(tmp_path: Path) -> dict[str, str]:
    """That of a program which finds nothing of whoever runs the tests."""
    return os.environ | {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


def test_langchain(server: Serving) -> None:
    openai = pytest.importorskip("langchain_openai")
    options: dict[str, Any] = {"base_url": server.url, "api_key": "none", "model": MODEL, "max_retries": 0, "seed": 7}
    chat = openai.ChatOpenAI(**options, temperature=0.7, max_tokens=9, stream_usage=True, logprobs=True, top_logprobs=2)
    expected = chat_of(server, seed=7, temperature=0.7, max_tokens=9)
    answer = chat.invoke(PROMPT)
    assert answer.content == expected["content"]
    assert answer.usage_metadata["output_tokens"] == expected["usage"]["completion_tokens"]
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    parts = list(chat.stream([("developer", "Be brief."), ("user", PROMPT)]))
    assert len(parts) > 2
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == 9
    [first, second] = chat.batch([PROMPT, PROMPT])
    assert first.content == second.content == expected["content"]
    stop = next(character for character in expected["content"][1:] if character != "\ufffd")  # not a part of one
    stopped = chat.invoke(PROMPT, stop=[stop])
    assert stopped.content == expected["content"][: expected["content"].index(stop)]
    text = openai.OpenAI(**options, temperature=0.7, max_tokens=9)
    completed = server.post("/v1/completions", prompt=PROMPT, seed=7, temperature=0.7, max_tokens=9)
    assert text.invoke(PROMPT) == "".join(text.stream(PROMPT)) == completed["choices"][0]["text"]
    responses = openai.ChatOpenAI(
        base_url=server.url,
        api_key="none",
        model=MODEL,
        max_retries=0,
        use_responses_api=True,
        temperature=0,
        max_tokens=9,
    )
    greedy = chat_of(server, temperature=0, max_tokens=9)["content"]
    assert responses.invoke(PROMPT).text == greedy
    assert "".join(part.text for part in responses.stream(PROMPT)) == greedy
    import openai as official

    with pytest.raises(official.BadRequestError, match="tools"):
        chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]).invoke(
            PROMPT
        )


def test_litellm(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks another host
    litellm = pytest.importorskip("litellm")
    options: dict[str, Any] = {
        "model": f"openai/{MODEL}", "api_base": server.url, "api_key": "none", "num_retries": 0, "seed": 7,
        "temperature": 0.7, "max_tokens": 9,
    }  # fmt: skip
    messages = [{"role": "user", "content": PROMPT}]
    expected = chat_of(server, seed=7, temperature=0.7, max_tokens=9)
    answer = litellm.completion(**options, messages=messages)
    assert answer.choices[0].message.content == expected["content"]
    assert answer.usage.completion_tokens == expected["usage"]["completion_tokens"]
    chunks = list(litellm.completion(**options, messages=messages, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected["content"]
    assert chunks[-1].usage.completion_tokens == expected["usage"]["completion_tokens"]
    text = litellm.text_completion(**(options | {"model": f"text-completion-openai/{MODEL}"}), prompt=PROMPT)
    completed = server.post("/v1/completions", prompt=PROMPT, seed=7, temperature=0.7, max_tokens=9)
    assert text.choices[0].text == completed["choices"][0]["text"]
    responses = litellm.responses(
        input=PROMPT,
        max_output_tokens=16,
        temperature=0,
        **{name: options[name] for name in ("model", "api_base", "api_key")},
    )
    assert responses.output[0].content[0].text == chat_of(server, temperature=0, max_tokens=16)["content"]
    with pytest.raises(litellm.exceptions.BadRequestError, match="n must be"):
        litellm.completion(**options, messages=messages, n=1000)
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(**(options | {"model": "openai/none"}), messages=messages)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_llm(server: Serving, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llm")
    described = {"model_id": "toy", "model_name": MODEL, "api_base": server.url, "completion": kind == "completion"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([described]))
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "toy",
        "-o",
        "max_tokens",
        "9",
        "-o",
        "temperature",
        "0",
        "-o",
        "seed",
        "7",
    ]
    variables = environment(tmp_path) | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    if kind == "chat":
        expected = chat_of(server, seed=7, temperature=0, max_tokens=9)["content"]
    else:
        expected = server.post("/v1/completions", prompt=PROMPT, temperature=0, max_tokens=9)["choices"][0]["text"]
    for more in ([], ["--no-stream"]):
        done = subprocess.run(
            [*command, *more, PROMPT], env=variables, capture_output=True, text=True, timeout=200, check=False
        )
        assert (done.returncode, done.stdout.rstrip("\n")) == (0, expected.rstrip("\n")), done.stderr
    log = [sys.executable, "-m", "llm", "logs", "--json", "-n", "1"]
    [entry] = json.loads(subprocess.run(log, env=variables, capture_output=True, timeout=200, check=True).stdout)
    assert entry["output_tokens"] == (9 if kind == "chat" else None)  # it does not read them of completions


# --- lm-evaluation-harness --------------------------------------------------------------------------------------------

QUESTIONS = [
    {"question": f"The {animal} is", "choices": [" big.", " small.", " a cat — Grüße!", " 日本"], "answer": index % 4}
    for index, animal in enumerate(("cat", "dog", "horse", "bird", "fish", "cow", "mouse", "fox", "hen", "bee"))
]
TASK = """
task: alpha_animals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WORDS = """
task: alpha_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}{{{{choices[0]}}}} {{{{question}}}}{{{{choices[2]}}}}"
metric_list:
  - metric: byte_perplexity
"""
CONTINUED = """
task: alpha_continued
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
"""


def logprob_of(server: Serving, before: list[int], after: list[int]) -> tuple[float, bool]:
    """How likely ids are after others, and whether they are the likeliest, by the model's own forward pass."""
    model = server.models.loaded[0].loaded.model
    ids = np.array([[*before, *after]], np.int32)
    table = log_softmax(model.backend.to_numpy(model.logits(model.backend.from_numpy(ids)).data)[0].astype(np.float64))
    places = range(len(before) - 1, len(before) + len(after) - 1)
    chosen = [table[place, token] for place, token in zip(places, after, strict=True)]
    return float(np.sum(chosen)), all(
        np.argmax(table[place]) == token for place, token in zip(places, after, strict=True)
    )


def test_lm_evaluation_harness(server: Serving, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = tmp_path / "animals.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("animals", TASK), ("words", WORDS), ("continued", CONTINUED)):
        (tasks / f"{name}.yaml").write_text(text.format(path=data))
    arguments = (
        f"base_url={server.url}/completions,model={MODEL},tokenizer_backend=remote,max_length={BLOCK},num_concurrent=4"
    )
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
        "--tasks", "alpha_animals,alpha_words,alpha_continued", "--include_path", str(tasks),
        "--output_path", str(tmp_path / "out"), "--log_samples", "--batch_size", "3",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [written] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    samples = {
        path.name.split("_")[2]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "out").rglob("samples_*.jsonl")
    }
    tokenizer = server.models.loaded[0].loaded.tokenizer
    right, right_norm = 0, 0
    by_question = {sample["doc"]["question"]: sample for sample in samples["animals"]}
    for each in QUESTIONS:
        before = tokenizer.encode(each["question"])
        expected = []
        for choice in each["choices"]:
            whole = tokenizer.encode(each["question"] + choice)
            assert whole[: len(before)] == before
            expected.append(logprob_of(server, before, whole[len(before) :]))
        actual = by_question[each["question"]]["filtered_resps"]
        for (value, is_greedy), (logprob, greedy) in zip(expected, actual, strict=True):
            assert float(logprob) == pytest.approx(value, abs=1e-3)
            assert str(greedy) == str(is_greedy)
        values = [value for value, _ in expected]
        right += int(np.argmax(values)) == each["answer"]
        lengths = [len(choice) for choice in each["choices"]]
        right_norm += int(np.argmax(np.divide(values, lengths))) == each["answer"]
    assert results["alpha_animals"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert results["alpha_animals"]["acc_norm,none"] == pytest.approx(right_norm / len(QUESTIONS))
    assert 0 < right < len(QUESTIONS)
    texts = [f"{e['question']}{e['choices'][0]} {e['question']}{e['choices'][2]}" for e in QUESTIONS]
    total = sum(logprob_of(server, [tokenizer.end_of_text], tokenizer.encode(text))[0] for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert results["alpha_words"]["byte_perplexity,none"] == pytest.approx(np.exp(-total / size), rel=1e-4)
    for sample in samples["continued"]:
        body = {"prompt": sample["doc"]["question"], "temperature": 0, "max_tokens": 12, "stop": ["e"]}
        assert sample["filtered_resps"][0] == server.post("/v1/completions", **body)["choices"][0]["text"]


# --- schemathesis -----------------------------------------------------------------------------------------------------


def test_schemathesis(server: Serving, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "--max-examples=20", "--seed=1", "--generation-database=none", "--request-timeout=30",
        # How long a prompt may be and which ids there are depends on the model.
        "--exclude-checks=positive_data_acceptance",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
