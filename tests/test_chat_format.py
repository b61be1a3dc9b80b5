"""Chat templates: what Alpha trains on, what others wrote, and what hostile ones try."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha import chat_template, domain
from alpha.chat_format import PLAIN, TemplateWriter, chat_format, encode_chat, render
from alpha.corpus import sections
from alpha.corpus_files import find
from alpha.dataset import encode_whole
from alpha.errors import AlphaError
from alpha.exchange_folder import CHAT_TEMPLATE
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe
from alpha.tokenizer_json import from_tokenizer_json
from alpha.tokenizer_simple import build_char

TOKENIZER = build_bpe(["The cat sees the dog. Hello!" * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
CHATML = (
    "{{ bos_token }}{%- for message in messages %}\n{{ '<|' + message.role + '|>' ~ message['content'] | trim }}"
    "<|end|>{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello!"}]


def test_a_conversation_has_the_ids_that_training_gives_it() -> None:
    parts = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "The cat."), ("user", "Why?")]
    text = domain.dialogue([(f"<|{role}|>", content) for role, content in parts], reply=True)
    messages = [{"role": role, "content": content} for role, content in parts]
    assert encode_chat(TOKENIZER, CHAT_TEMPLATE, messages) == TOKENIZER.encode(text, allow_special=True)


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("begins_answer", [False, True])
def test_alphas_own_form_needs_no_template_engine(count: int, begins_answer: bool) -> None:
    roles = ("system", "user", "assistant", "user")[:count]
    messages = [{"role": role, "content": f"{role} <|user|>\n{{{{ 1 }}}}"} for role in roles]
    written = chat_template.render(CHAT_TEMPLATE, messages, TOKENIZER, begins_answer)
    assert render(CHAT_TEMPLATE, messages, TOKENIZER, begins_answer) == written


MARKS = st.sampled_from([*TOKENIZER.special_tokens, "<", "<|", "|>", "<|user", "user|>", "|", ">", " ", "\n", "cat"])
TEXTS = st.lists(st.one_of(MARKS, st.text(max_size=3)), max_size=6).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_text_that_spells_a_marker_is_text(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    ids = encode_chat(TOKENIZER, CHAT_TEMPLATE, messages)
    special = set(TOKENIZER.special_tokens.values())
    user, end, assistant = (TOKENIZER.special_tokens[name] for name in ("<|user|>", "<|end|>", "<|assistant|>"))
    assert [each for each in ids if each in special] == [user, end] * len(texts) + [assistant]
    written = "\n".join(f"<|user|>{text}<|end|>" for text in texts) + "\n<|assistant|>"
    assert TOKENIZER.decode(ids, "surrogatepass") == written


def test_what_surrounds_a_text_makes_no_marker_of_it() -> None:
    for template, text in (("<|{{ messages[0].content }}", "user|>"), ("{{ messages[0].content }}|>", "<|user")):
        ids = encode_chat(TOKENIZER, template, [{"role": "user", "content": text}])
        assert TOKENIZER.decode(ids) == "<|user|>"
        assert not set(ids) & set(TOKENIZER.special_tokens.values())


def test_a_template_that_came_with_a_model_wins() -> None:
    assert chat_format(TOKENIZER, "chat", CHATML).template == CHATML
    assert chat_format(TOKENIZER, "", None).template == CHAT_TEMPLATE
    plain = chat_format(build_char(["abc"]), "", None)
    assert plain.template == PLAIN
    assert render(PLAIN, [*HELLO, {"role": "assistant", "content": "Hi."}], TOKENIZER) == (
        "User: Hello!\n\nAssistant: Hi.\n\nAssistant:"
    )
    ids = encode_chat(TOKENIZER, CHATML, [{"role": "user", "content": "  Hello! "}])
    assert TOKENIZER.decode(ids) == "<|endoftext|><|user|>Hello!<|end|><|assistant|>"
    assert ids[0] == TOKENIZER.end_of_text


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 2 ** (2 ** 60) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s | replace('a', n.s) %}{% endfor %}",
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = range(9) | join(n.s) %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ lipsum(1000) }}",
        "{% include 'x' %}",
        "{{ messages[0].content.missing.more }}",
        "{{ raise_exception('Roles must alternate') }}",
        "{% if %}",
        "{{ " + "(" * 10000 + " }}",
        "a" * (1 << 19),
    ],
)
def test_a_hostile_template_is_refused_in_time(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(AlphaError, match="chat template"):
        render(template, HELLO, TOKENIZER)
    assert time.monotonic() - start < 30


# --- conversations to train on ----------------------------------------------------------------------------------------

MASKS: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "chat_masks.json").read_text())
"""What transformers answers: see golden/generate_chat_masks.py."""

PUBLISHED = from_tokenizer_json(MASKS["tokenizer"], "the golden file")


def written(folder: Path, template: str, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """The ids of a conversation in a token file, but the end of the document, and whether each is an answer's."""
    path = folder / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    file = encode_whole(find(str(path)), PUBLISHED, folder / "cache", write=TemplateWriter(PUBLISHED, template))
    places = range(len(file.tokens) - 1)
    return file.tokens[:-1].tolist(), [int(sum(flip <= place for flip in file.flips) % 2 == 0) for place in places]


@pytest.mark.parametrize("name", MASKS["templates"])
def test_ids_and_masks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    marked = MASKS["templates"][name]
    plain = re.sub(r"\{% (end)?generation %\}", "", marked)
    cases = [case for case in MASKS["cases"] if case["template"] == name]
    assert len(cases) == 4
    for case in cases:
        for template in (marked, plain):
            assert written(tmp_path, template, case["messages"]) == (case["ids"], case["mask"])
        # A prompt is what training saw before an answer.
        number = next(place for place, each in enumerate(case["messages"]) if each["role"] == "assistant")
        if number:
            prompt = encode_chat(PUBLISHED, marked, case["messages"][:number])
            assert case["ids"][: len(prompt)] == prompt
            assert case["mask"].index(1) == len(prompt)


@given(TEXTS, TEXTS)
def test_what_somebody_says_is_never_an_answer_of_the_assistant(asked: str, said: str) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    pieces = list(TemplateWriter(TOKENIZER, template)([("<|user|>", asked), ("<|assistant|>", said)]))
    assert "".join(each for each in pieces if each.is_answer) == f"{said}<|end|>"
    assert [each for each in pieces if each.is_marker] == ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert "".join(pieces) == f"<|user|>{asked}<|end|><|assistant|>{said}<|end|>"


def test_a_template_that_forgets_earlier_answers_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))
    template = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(
        AlphaError, match=r"Line 1 of .*chat\.jsonl: the model's chat template writes an answer otherwise"
    ):
        list(sections(find(str(path)).files, write=TemplateWriter(TOKENIZER, template)))
