"""Tokenizers by name, their files, and files that are hostile."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import tokenizer_registry
from alpha.errors import AlphaError, UsageError
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT, Tokenizer
from alpha.tokenizer_json import to_tokenizer_json
from alpha.tokenizer_registry import RECIPES, build, from_mapping, load, save, save_tokenizer_json

CORPUS = ["the cat sat on the mat and the cats sat on the mats\n" * 4, "猫 é 😀 don't"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_name_builds_and_its_files_load(tmp_path, name):
    tokenizer = build(name, iter(CORPUS))
    assert isinstance(tokenizer, Tokenizer)
    assert END_OF_TEXT in tokenizer.special_tokens
    assert tokenizer.kind == name.split("-")[0]
    save(tmp_path / "alpha.json", tokenizer)
    save_tokenizer_json(tmp_path / "tokenizer.json", tokenizer)
    for path in tmp_path.iterdir():
        again = load(path)
        assert again.digest() == tokenizer.digest()
        assert again.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


def test_sizes_of_the_names():
    sizes = {name: recipe.vocab_size for name, recipe in RECIPES.items()}
    assert sizes["bpe"] == 2000
    assert (sizes["bpe-4k"], sizes["bpe-64k"], sizes["bpe-chat-4k"]) == (4096, 65536, 4096)
    assert set(CHAT_TOKENS) < set(build("bpe-chat-4k", CORPUS).special_tokens)


def test_a_size_can_be_chosen_for_words_and_bpe():
    assert build("bpe", CORPUS, 270).vocab_size == 270
    assert build("bpe-chat-4k", CORPUS, 270).vocab_size == 270
    assert build("word", CORPUS, 5).vocab_size == 5
    assert build("word", CORPUS, 5).count_unknown(build("word", CORPUS, 5).encode(CORPUS[0])) > 0


def test_a_corpus_that_supports_fewer_tokens_gives_fewer():
    assert 257 < build("bpe-64k", CORPUS).vocab_size < 400
    assert build("word", CORPUS, 1_000_000).vocab_size < 100


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("bpe4k", 0, "Did you mean 'bpe-4k'"),
        ("nonsense", 0, "Valid: bpe"),
        ("char", 100, "leave out --vocabSize=100"),
        ("bpe", 256, "257"),
        ("bpe-chat-4k", 260, "261"),
        ("word", 2, "3 to"),
        ("bpe", 1 << 40, "does not suit"),
        ("bpe", -5, "does not suit"),
    ],
)
def test_wrong_names_and_sizes_are_usage_errors(name, size, message):
    with pytest.raises(UsageError, match=message):
        build(name, CORPUS, size)


@pytest.mark.parametrize("name", ["char", "word", "bpe"])
@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_corpus_is_an_error(name, texts):
    with pytest.raises(AlphaError, match="no text to build"):
        build(name, texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "neither"),
        (b'"text"', "neither"),
        (b"{}", "neither"),
        (b'{"format": "alpha-tokenizer"}', "kind"),
        (b'{"format": "alpha-tokenizer", "kind": "char"}', "version"),
        (b'{"format": "alpha-tokenizer", "kind": "char", "version": 1}', "list of tokens"),
        (b'{"format": "alpha-tokenizer", "kind": ["char"], "version": 1}', "kind"),
        (b'{"format": "alpha-tokenizer", "kind": "char", "version": ' + b"[" * 900 + b"]" * 900 + b"}", "version"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(AlphaError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 300


def test_a_missing_or_huge_file_is_refused(tmp_path, monkeypatch):
    with pytest.raises(AlphaError, match="Cannot read the tokenizer"):
        load(tmp_path / "none.json")
    save(tmp_path / "huge.json", build("bpe", CORPUS))
    monkeypatch.setattr(tokenizer_registry, "FILE_LIMIT", 1000)
    with pytest.raises(AlphaError, match="more than the 1,000"):
        load(tmp_path / "huge.json")


ARTIFACTS = {name: build(name, CORPUS).to_mapping() for name in ("char", "word", "bpe")}
ECOSYSTEM = {name: to_tokenizer_json(build(name, CORPUS)) for name in ("char", "word", "bpe")}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("char", {"tokens": ["a", "a", "<|endoftext|>", "<|unk|>"]}, "are the same"),
        ("char", {"tokens": ["ab", "<|endoftext|>", "<|unk|>"]}, "not one character"),
        ("char", {"tokens": ["\ud800", "<|endoftext|>", "<|unk|>"]}, "token 0"),
        ("char", {"tokens": ["", "<|endoftext|>", "<|unk|>"]}, "token 0"),
        ("char", {"tokens": [None, "<|endoftext|>", "<|unk|>"]}, "token 0"),
        ("char", {"special_tokens": {"<|endoftext|>": 10_000}}, "not at the id"),
        ("char", {"special_tokens": {"<|endoftext|>": -2}}, "not at the id"),
        ("char", {"special_tokens": {"<|endoftext|>": "5"}}, "not at the id"),
        ("char", {"special_tokens": {"<|endoftext|>": 0}}, "not at the id"),
        ("char", {"special_tokens": {}}, "to end a document"),
        (
            "word",
            {"tokens": ["a", "<|endoftext|>"], "special_tokens": {"<|endoftext|>": 1}},
            "no special token <.unk.>",
        ),
        ("bpe", {"version": 2}, "version is 2"),
        ("bpe", {"pattern": "(a+)+"}, "pattern"),
        ("bpe", {"pattern": ["gpt2"]}, "pattern"),
        ("bpe", {"whole_pieces": 1}, "whole_pieces"),
        ("bpe", {"merges": None}, "no list of merges"),
        ("bpe", {"merges": ["a b c"]}, "not a merge"),
        ("bpe", {"merges": [["a", 5]]}, "not a merge"),
        ("bpe", {"merges": [5]}, "not a merge"),
        ("bpe", {"merges": [{"a": 1, "b": 2}]}, "not a merge"),
        ("bpe", {"merges": ["q q"]}, "merge 0"),
        ("bpe", {"merges": ["a t", "a t"]}, "merges are the same"),
        ("bpe", {"tokens": ["a", "<|endoftext|>"], "special_tokens": {"<|endoftext|>": 1}}, "no token for byte 10"),
        ("bpe", {"tokens": ["猫", "<|endoftext|>"], "special_tokens": {"<|endoftext|>": 1}}, "byte-level"),
    ],
)
def test_impossible_artifacts_are_refused(kind, change, message):
    mapping = {**ARTIFACTS[kind], **change}
    if "tokens" in change and "special_tokens" not in change:
        tokens = change["tokens"]
        mapping["special_tokens"] = {name: tokens.index(name) for name in tokens[-2:]}
    with pytest.raises(AlphaError, match=message) as error:
        from_mapping(mapping, "some/file.json")
    assert "some/file.json" in str(error.value)


def test_too_many_tokens_are_refused(monkeypatch):
    monkeypatch.setattr("alpha.tokenizer.MAX_VOCABULARY", 100)
    with pytest.raises(AlphaError, match="more than the 100"):
        from_mapping(ARTIFACTS["bpe"], "file")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["ByteLevel", "Sequence", "Split", "gpt2", "Ġ t", "a b", "<|endoftext|>", "", " ", 0, 256, 1 << 70]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "id", "content", "vocab", "a", ""]), inner, max_size=4)
    ),
    max_leaves=6,
)


def mutated(draw, value):
    """A copy of a JSON value with one place in it replaced, removed, or doubled."""
    if not isinstance(value, dict | list) or not value or not draw(st.integers(0, 5)):
        return draw(VALUES)
    changed = copy.copy(value)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    action = draw(st.integers(0, 9))
    if action == 0:
        del changed[place]
    elif action == 1 and isinstance(value, dict):
        changed[draw(st.text(max_size=3))] = draw(VALUES)
    elif action == 1:
        changed.insert(place, value[place])
    else:
        changed[place] = mutated(draw, value[place])
    return changed


@settings(max_examples=600, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_mutated_file_loads_or_is_refused_and_never_crashes(data):
    original = data.draw(st.sampled_from([*ARTIFACTS.values(), *ECOSYSTEM.values()]))
    mapping = original
    for _ in range(data.draw(st.integers(1, 3))):
        mapping = mutated(data.draw, mapping)
    try:
        tokenizer = from_mapping(mapping, "some/file.json")
    except AlphaError as error:
        assert "some/file.json" in str(error)
        str(error).encode()
        return
    ids = tokenizer.encode("the cat 猫 <|endoftext|>\udc80", allow_special=True)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)
    json.dumps(tokenizer.to_mapping(), ensure_ascii=False).encode()
    assert from_mapping(tokenizer.to_mapping(), "copy").digest() == tokenizer.digest()
