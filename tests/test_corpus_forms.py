"""Conversations in the forms in which they are published, other fields, and bad lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from exchange_models import golden_folder
from hypothesis import given
from hypothesis import strategies as st
from small_training import MODEL, TRAINING, RecordingDisplay, begin, text_of

from alpha import corpus, corpus_encoding, corpus_files
from alpha.corpus_forms import Line, form_of, read_line
from alpha.errors import AlphaError
from alpha.settings import merge
from alpha.training_setup import new_run

ASKED, ANSWERED = ("<|user|>", "Hi"), ("<|assistant|>", "Hello.")
SYSTEM = ("<|system|>", "Be kind.")


pytestmark = pytest.mark.usefixtures("own_folders")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LINES: dict[str, tuple[Any, str, list[tuple[str, str]]]] = {
    "messages": (
        {"messages": [said("system", "Be kind."), said("user", "Hi"), said("assistant", "Hello.")]},
        "conversation", [SYSTEM, ASKED, ANSWERED],
    ),
    "messages as OpenAI's API has them": (
        {"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {**said("user", "Hi"), "name": "Ann"}, {**said("assistant", "Hello."), "weight": 1, "tool_calls": []},
        ]},
        "conversation", [SYSTEM, ASKED, ANSWERED],
    ),
    "ShareGPT": (
        {"id": "7", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        "ShareGPT conversation", [ASKED, ANSWERED],
    ),
    "ShareGPT with a system": (
        {"conversations": [
            {"from": "system", "value": "Be kind."}, {"from": "user", "value": "Hi"},
            {"from": "assistant", "value": "Hello."},
        ]},
        "ShareGPT conversation", [SYSTEM, ASKED, ANSWERED],
    ),
    "Alpaca": (
        {"instruction": "Hi", "input": "", "output": "Hello.", "text": "Below is an instruction"},
        "Alpaca instruction", [ASKED, ANSWERED],
    ),
    "Alpaca with an input": (
        {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be kind."},
        "Alpaca instruction", [SYSTEM, ("<|user|>", "Add.\n\n1, 2"), ("<|assistant|>", "3")],
    ),
    "prompt": ({"prompt": "Hi", "completion": "Hello."}, "prompt-completion pair", [ASKED, ANSWERED]),
    "prompt of messages": (
        {"prompt": [said("user", "Hi")], "completion": [said("assistant", "Hello.")]},
        "prompt-completion pair", [ASKED, ANSWERED],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "form", "turns"), LINES.values(), ids=LINES)
def test_each_form_is_the_same_conversation(value: Any, form: str, turns: list[tuple[str, str]]) -> None:
    assert read_line(value, "Line 1 of x") == Line(form, "", turns)


BAD = {
    "a list": ([1], "Line 3 of x is not an object with a string \"text\""),
    "no form": ({"body": "Hi"}, "--textField names another field"),
    "message": ({"messages": ["Hi"]}, "Message 1 in line 3 of x is not an object with a \"role\""),
    "role": ({"messages": [said("tool", "Hi")]}, "Message 1 in line 3 of x has the \"role\" 'tool'; known are user"),
    "no role": ({"messages": [{"content": "Hi"}]}, "Message 1 in line 3 of x has no \"role\""),
    "content": ({"messages": [{"role": "assistant", "content": None}]}, "has no text as its \"content\""),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "has a part of its \"content\" that is no text",
    ),
    "a call of a tool": (
        {"messages": [said("user", "Hi"), {**said("assistant", ""), "tool_calls": [{"id": "1"}]}]},
        "Message 2 in line 3 of x has \"tool_calls\", which is not known here",
    ),
    "an answer not to learn": ({"messages": [{**said("assistant", "Hi"), "weight": 0}]}, "has \"weight\""),
    "ShareGPT's role": (
        {"conversations": [{"from": "tool", "value": "Hi"}]}, "has the \"from\" 'tool'; known are human",
    ),
    "ShareGPT's value": ({"conversations": [{"from": "gpt", "value": 7}]}, "a string \"value\""),
    "ShareGPT's message": ({"conversations": ["Hi"]}, "Message 1 in line 3 of x"),
    "output": ({"instruction": "Hi", "output": 7}, "The \"output\" in line 3 of x is not a string"),
    "completion": ({"prompt": ["Hi"], "completion": "Hello"}, "The \"prompt\" in line 3 of x is not a string"),
    "surrogate": ({"prompt": "\ud800", "completion": "Hello"}, "half of a surrogate pair at character 0"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_line_is_said(value: Any, message: str) -> None:
    with pytest.raises(AlphaError, match=message):
        read_line(value, "Line 3 of x")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "conversations", "role", "content", "from", "value", "prompt", "completion", "text",
             "instruction", "output", "input", "system"]
        ),
        inner,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_any_line_is_read_or_refused(value: Any) -> None:
    try:
        line = read_line(value, "Line 1 of x")
    except AlphaError as error:
        assert "ine 1 of x" in str(error)
    else:
        assert line.form == form_of(value)
        assert all(isinstance(text, str) for turn in line.turns for text in turn)


def test_a_field_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"body": "One.", "text": "No."}\n{"body": "Two.", "messages": []}\n')
    files = corpus_files.find(str(path), "body").files
    assert [section.text for section in corpus.sections(files)] == ["One.", "Two."]
    with pytest.raises(AlphaError, match=r"Line 1 of .* 'title', which --textField asks for"):
        list(corpus.sections(corpus_files.find(str(path), "title").files))


def test_a_file_of_unknown_ending_is_known_by_the_keys_of_its_first_line(tmp_path: Path) -> None:
    for number, (value, *_) in enumerate(LINES.values()):
        path = tmp_path / f"chats-{number}"
        path.write_text(json.dumps(value) + "\n")
        assert corpus_files.find(str(path)).files[0].json_lines
    path.write_text('{"body": "One."}\n')
    assert not corpus_files.find(str(path)).files[0].json_lines
    assert corpus_files.find(str(path), "body").files[0].json_lines


def array_of(folder: Path, text: str) -> corpus_files.CorpusFile:
    path = folder / "chats.json"
    path.write_text(text)
    [file] = corpus_files.find(str(path)).files
    return file


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_has_the_documents_of_its_lines(
    tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form in which Alpaca and ShareGPT are published; read in chunks that end anywhere."""
    values = [value for value, *_ in LINES.values()]
    lines = tmp_path / "chats.jsonl"
    lines.write_text("".join(json.dumps(value) + "\n" for value in values))
    wanted = [section.text for section in corpus.sections(corpus_files.find(str(lines)).files)]
    for size in (1 << 20, 97, 1):
        monkeypatch.setattr(corpus_encoding, "CHUNK_BYTES", size)
        file = array_of(tmp_path, f"\ufeff \n{json.dumps(values, indent=indent)}\n")
        assert [section.text for section in corpus.sections([file])] == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[%s, {]", "Item 2 of .*chats.json is not valid JSON: Expecting property name .*: character 1 of it.$"),
        ('[%s, {"text": "a', "Item 2 of .*: Unterminated string starting at: character 9 of it.$"),
        ("[%s, 7]", "Item 2 of .*chats.json is not an object"),
        ("[%s", "Item 1 of .*chats.json is not valid JSON: neither a comma nor the end of the array follows it"),
        ("[%s,", "Item 2 of .*chats.json is not valid JSON"),
        ("[%s] x", "something after its array"),
        ("[%s %s]", "Item 1 of .*chats.json is not valid JSON: neither a comma nor the end of the array follows it"),
        ("[%s, " + "[" * 200_000, "Item 2 of .*chats.json is not valid JSON: maximum recursion"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, text: str, message: str) -> None:
    good = json.dumps(LINES["prompt"][0])
    file = array_of(tmp_path, text.replace("%s", good))
    with pytest.raises(AlphaError, match=message):
        list(corpus.sections([file]))


def test_a_long_item_of_an_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_LONGEST_JSON_LINE", 1000)
    monkeypatch.setattr(corpus_encoding, "CHUNK_BYTES", 100)
    good = json.dumps(LINES["prompt"][0])
    with pytest.raises(AlphaError, match=r"Item 2 of .* is longer than"):
        list(corpus.sections([array_of(tmp_path, f'[{good}, "{"a" * 5000}"]')]))
    with pytest.raises(AlphaError, match=r"Item 2 of .* not valid JSON: Expecting ',' delimiter: character 5 of it"):
        list(corpus.sections([array_of(tmp_path, f'[{good}, ["a" "{"a" * 5000}"]]')]))


def test_a_long_item_is_not_read_again_with_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_encoding, "CHUNK_BYTES", 100)
    tries = []
    raw_decode = json.JSONDecoder.raw_decode
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", lambda *arguments: tries.append(1) or raw_decode(*arguments))
    [section] = corpus.sections([array_of(tmp_path, json.dumps([{"text": "a" * 20_000}]))])
    assert len(section.text) == 20_000
    assert len(tries) < 12  # 200 chunks, and each time twice as many


def test_a_compressed_array_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "chats.data"
    path.write_bytes(gzip.compress(json.dumps([LINES["prompt"][0]]).encode()))
    assert corpus_files.find(str(path)).notes == (f"{path} is read as a compressed JSON array.",)


def mixed(folder: Path) -> Path:
    """Lines of every form, and two bad ones."""
    path = folder / "mixed.jsonl"
    lines = [json.dumps(value) for value, *_ in LINES.values()]
    lines += [json.dumps({"text": text_of(3000)})]
    path.write_text("\n".join([lines[0], "{", *lines[1:], '{"body": 7}']) + "\n")
    return path


def test_what_was_recognized_is_said_also_from_the_cache(tmp_path: Path) -> None:
    path = mixed(tmp_path)
    for number in range(2):
        display = RecordingDisplay()
        run, _ = begin(path, tmp_path / f"run-{number}", display, skip_bad_lines=True)
        run.close()
        assert (
            "Lines of the corpus: 2 Alpaca instructions, 2 ShareGPT conversations, 2 conversations, "
            "2 prompt-completion pairs, 1 text." in display.messages
        )
        assert display.warnings == [
            "Bad lines of the corpus that were skipped: 2; without --skipBadLines the first is named."
        ]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match=r"Line 2 of .*mixed.jsonl is not valid JSON"):
        begin(mixed(tmp_path), tmp_path / "run")


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "One."}\n{"text": "\xff"}\n{"text": "Two."}\n')
    files = corpus_files.find(str(path), skip_bad_lines=True).files
    assert [section.text for section in corpus.sections(files)] == ["One.", "Two."]
    path.write_bytes(b"{\n[\n")
    with pytest.raises(AlphaError, match="The corpus is empty"):
        list(corpus.sections(corpus_files.find(str(path), skip_bad_lines=True).files))


def test_conversations_are_written_with_the_chat_template_of_the_weights(tmp_path: Path) -> None:
    folder = golden_folder("llama", tmp_path / "theirs")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ 'ab' if m.role == 'user' else 'ba' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}ba{% endif %}"
    )
    chats = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    chats.write_text((json.dumps({"messages": messages}) + "\n") * 100)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": messages}) + '\n{"text": "abb"}\n')
    options = {name: value for name, value in TRAINING.items() if name != "tokenizer"}
    options |= {"data": str(chats), "init": str(folder), "block": MODEL.block, "pack_documents": True, "iters": 2}
    options |= {"sample_prompts": str(prompts), "sample_interval": 2}
    display = RecordingDisplay()
    run, trainer = new_run(*merge(options), display)
    with run:
        trainer.train(run)
    file = trainer.mixture.parts[0].data.train
    assert trainer.tokenizer.decode(file.tokens[: file.ends[0] - 1]) == "abbbac"
    assert [prompt for prompt, _ in display.samples] == ["abbba", "abb"]  # the answer is what is asked for


def test_a_conversation_of_many_turns_takes_no_more_time_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": role, "content": "Why?"} for _ in range(500) for role in ("user", "assistant")]
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    calls: list[object] = []
    cut = corpus._cut
    monkeypatch.setattr(corpus, "_cut", lambda *part: calls.append(part) or cut(*part))
    (section,) = corpus.sections(corpus_files.find(str(path)).files, 1 << 20)
    assert len(section.parts) > 2 * len(turns)
    assert len(calls) < 2 * len(section.parts)
