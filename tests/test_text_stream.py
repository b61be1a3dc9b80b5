"""What a prompt becomes, and where its continuation ends: against the ids of whole texts, and against plain strings."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import domain, tokenizer_registry
from alpha.text_stream import continuation, known_prompts
from alpha.tokenizer import Tokenizer
from alpha.tokenizer_bpe import BpeTokenizer

TEXT = 'The cat  sees\nthe dog.\n\n    if the cat: "The"\r\n\tthe\u00a0dog (the) don\'t 12 ' * 20
quick = settings(max_examples=150, derandomize=True, deadline=None)


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    if name != "llama3":
        return tokenizer_registry.build(name, [TEXT], 0 if name in ("char", "bpe-chat-4k") else 300)
    bpe = tokenizer("bpe")
    assert isinstance(bpe, BpeTokenizer)
    return BpeTokenizer(bpe.tokens, bpe.merges, bpe.special_tokens, pattern="llama3")


@pytest.mark.parametrize("name", ["bpe", "llama3", "word", "char"])
def test_ids_of_a_prompt_are_those_of_a_text_that_goes_on(name: str) -> None:
    each = tokenizer(name)
    whole = each.encode(TEXT)
    held = set()
    for end in range(1, 200):
        prompt, following = TEXT[:end], TEXT[end]
        if not prompt[-1].isspace() or following.isspace():
            continue
        asked = continuation(each, prompt)
        assert asked.ids == whole[: len(asked.ids)]
        if asked.first is not None:
            assert whole[len(asked.ids)] in asked.first
            assert asked.held_back == len(prompt[-1].encode())
            held.add(prompt[-1])
        written = asked.text(whole[len(asked.ids) :][:40])
        assert (prompt + written) == TEXT[: len(prompt + written)]
    assert held >= {"bpe": {" ", "\n"}, "llama3": {" "}, "word": {" "}, "char": set()}[name]
    assert (
        held
        <= {"bpe": {" ", "\n", "\t", "\u00a0"}, "llama3": {" ", "\t", "\u00a0"}, "word": {" "}, "char": set()}[name]
    )


@pytest.mark.parametrize(
    ("name", "prompt", "held"),
    [
        ("bpe", "The ", " "), ("bpe", "The  ", " "), ("bpe", "The", ""), ("bpe", "", ""), ("bpe", " ", " "),
        ("bpe", "dog.\n", "\n"), ("bpe", "dog.\n\n", "\n"), ("bpe", "the\t", "\t"), ("bpe", "the (", ""),
        ("bpe", "The <|endoftext|>", ""), ("bpe", "The<|endoftext|> ", " "),
        ("llama3", "dog.\n", ""), ("llama3", "The ", " "), ("word", "The ", " "), ("word", "The\n", ""),
        ("char", "The ", ""), ("bpe-chat-4k", "<|user|>The<|end|>\n<|assistant|>", ""),
    ],
)  # fmt: skip
def test_what_is_held_back(name: str, prompt: str, held: str) -> None:
    each = tokenizer(name)
    asked = continuation(each, prompt)
    kept = prompt.removesuffix(held) if held else prompt
    assert asked.ids == (each.encode(kept, allow_special=True) or [each.end_of_text])
    assert (asked.first is None) == (held == "")
    if asked.first is not None:
        expected = [token for token in range(each.vocab_size) if each.token_bytes(token).startswith(held.encode())]
        assert asked.first.tolist() == expected


def test_what_no_token_begins_with_is_not_held_back() -> None:
    # The vocabulary has spaces only inside words: nothing could begin with a line break and go on.
    each = tokenizer_registry.build("word", ["cat dog"], 0)
    assert continuation(each, "cat ").first is not None
    each = tokenizer_registry.build("word", ["cat\ndog"], 0)
    assert continuation(each, "cat ").first is None
    assert known_prompts(each, ["cat ", "cat", "The "]) == ("cat",)
    assert known_prompts(each, ["The "]) == ("",)


@quick
@given(
    st.text("ab🙂é \n", max_size=30),
    st.lists(st.text("ab🙂 \n", min_size=1, max_size=4), max_size=3),
    st.sampled_from(["x", "x ", "x\n"]),
)
def test_a_text_ends_before_the_first_stop(written: str, stops: list[str], prompt: str) -> None:
    each = tokenizer("bpe")
    asked = continuation(each, prompt, stop=stops)
    ids = each.encode((prompt[-1] if asked.first is not None else "") + written)
    if not ids or len(each.token_bytes(ids[0])) < asked.held_back:
        return
    places = [place for stop in stops if (place := written.find(stop)) >= 0]
    # The first stop that is complete ends the text; one that begins before it and is longer comes too late.
    parts = list(asked.parts([*ids, each.end_of_text, *ids]))
    assert all(parts)
    assert "\ufffd" not in "".join(parts)
    assert written.startswith("".join(parts))
    assert not any(stop in "".join(parts) for stop in stops)
    if not places:
        assert "".join(parts) == written
    # The engine is told at the very token at which the reader stops.
    ends = [asked.ends(ids[: count + 1]) for count in range(len(ids))]
    assert any(ends) == bool(places)
    if places:
        assert asked.text(ids[: ends.index(True) + 1]) == "".join(parts) == asked.text(ids)


def test_a_chat_ends_with_the_turn() -> None:
    question = domain.dialogue([(domain.USER, "Hi")], reply=True)
    answer = f"the cat{domain.END}\n{domain.USER}the dog"
    special = tokenizer("bpe-chat-4k")
    ids = special.encode(answer, allow_special=True)
    assert continuation(special, question).text(ids) == "the cat"
    assert continuation(special, question).ends(ids[: ids.index(special.special_tokens[domain.END]) + 1])
    assert continuation(special, question, stop_at_end=False).text(ids) == answer
    for name in ("bpe", "char"):
        plain = tokenizer_registry.build(name, [TEXT + question + answer], 0 if name == "char" else 300)
        ids = plain.encode(answer)
        assert continuation(plain, question).text(ids) == "the cat"
        assert continuation(plain, "The", "chat").text(ids) == "the cat"
        assert continuation(plain, "The", "novels").text(ids) == answer
        assert continuation(plain, question, "chat", stop_at_end=False).text(ids) == answer


def test_every_presets_prompts_are_continued_naturally() -> None:
    for preset in domain.PRESETS.values():
        each = tokenizer({"bpe-chat-4k": "bpe-chat-4k", "char": "char", "word": "word"}.get(preset.tokenizer, "bpe"))
        for prompt in preset.prompts:
            asked = continuation(each, prompt, preset.id)
            assert (asked.first is not None) == (prompt[-1] in " \n" and preset.tokenizer not in ("char", "word"))
            assert domain.is_chat(preset.id) == ("chat" in preset.id)
