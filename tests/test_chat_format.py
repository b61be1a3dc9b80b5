"""Chat templates: what Alpha trains on, what others wrote, and what hostile ones try."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha import domain
from alpha.chat_format import PLAIN, chat_format, encode_chat, render
from alpha.errors import AlphaError
from alpha.exchange_folder import CHAT_TEMPLATE
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe
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
