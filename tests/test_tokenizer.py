"""Character and word tokenizers, and what all tokenizers share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import tokenizer_simple
from alpha.tokenizer import END_OF_TEXT, UNKNOWN
from alpha.tokenizer_simple import build_char, build_word, char_from_mapping, word_from_mapping

CORPUS = ["The cat sat,\n\n  the cat's mat;\ttwo  spaces and 猫 é e\u0301 क्ष 😀.\r\n", "F#m7 | Bb/D snake_case"]


@pytest.mark.parametrize("build", [build_char, build_word])
def test_the_corpus_decodes_back(build):
    tokenizer = build(CORPUS)
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.count_unknown(ids) == 0
        assert tokenizer.encode_to_array(text).dtype == np.uint32
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@settings(max_examples=200, derandomize=True, deadline=None)
@given(text=st.text(st.sampled_from("Theca sto,\n\t;猫éक😀F#7|_"), max_size=50))
def test_characters_of_the_corpus_in_any_order_decode_back(text):
    tokenizer = build_char(CORPUS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("build", [build_char, build_word])
@settings(max_examples=200, derandomize=True, deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=40) | st.text(st.sampled_from("Tz \ud800é"), max_size=40))
def test_nothing_is_dropped_silently(build, text):
    """Replacing the decoded U+FFFD by what was lost gives the text back, so pieces stand where they stood."""
    tokenizer = build(CORPUS)
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert decoded.count("\ufffd") >= tokenizer.count_unknown(ids)
    if build is build_char:
        expected = "".join(each if each in "".join(CORPUS) else "\ufffd" for each in text)
        assert decoded == expected
        assert tokenizer.count_unknown(ids) == sum(each not in "".join(CORPUS) for each in text)


def test_unknown_words_are_counted_and_shown():
    tokenizer = build_word(["the cat sat"])
    ids = tokenizer.encode_to_array("the dog sat here")
    assert tokenizer.decode(ids) == "the\ufffd sat\ufffd"
    assert tokenizer.count_unknown(ids) == 2
    assert tokenizer.unknown == tokenizer.special_tokens[UNKNOWN]


def test_words_carry_the_space_before_them_and_other_whitespace_stands_alone():
    tokenizer = build_word(["a b  c\n\nd, e_f!? g's"])
    pieces = [tokenizer.token_bytes(each).decode() for each in tokenizer.encode("a b  c\n\nd, e_f!? g's")]
    assert pieces == ["a", " b", " ", " c", "\n", "\n", "d", ",", " e_f", "!", "?", " g", "'", "s"]


def test_word_ids_are_by_frequency_then_by_code_points():
    tokenizer = build_word(["b c b c a b a d"], vocab_size=6)
    assert tokenizer.tokens == [" a", " b", " c", " d", END_OF_TEXT, UNKNOWN]
    assert tokenizer.vocab_size == 6


def test_char_ids_are_by_code_points_and_surrogates_have_none():
    tokenizer = build_char(["ba\ud800é", "a😀"])
    assert tokenizer.tokens == ["a", "b", "é", "😀", END_OF_TEXT, UNKNOWN]
    assert tokenizer.end_of_text == 4
    assert tokenizer.encode("a\ud800b\U0010ffff") == [0, 5, 1, 5]


@pytest.mark.parametrize("build", [build_char, build_word])
def test_special_tokens_are_made_only_on_request(build):
    tokenizer = build(["a <|endoftext|> b <|unk|>", "a "])
    text = "a <|endoftext|> b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_of_text not in tokenizer.encode(text)
    assert tokenizer.end_of_text in tokenizer.encode(text, allow_special=True)
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text
    assert tokenizer.token_bytes(tokenizer.end_of_text) == b"<|endoftext|>"


def test_long_texts_are_encoded_in_segments(monkeypatch):
    tokenizer = build_char(CORPUS)
    expected = tokenizer.encode(CORPUS[0])
    monkeypatch.setattr(tokenizer_simple, "_SEGMENT", 7)
    assert tokenizer.encode(CORPUS[0]) == expected


@pytest.mark.parametrize(("build", "read"), [(build_char, char_from_mapping), (build_word, word_from_mapping)])
def test_the_artifact_gives_back_an_equal_tokenizer(build, read):
    tokenizer = build(CORPUS)
    again = read(tokenizer.to_mapping(), "copy")
    assert again.digest() == tokenizer.digest()
    assert again.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert build(["other text"]).digest() != tokenizer.digest()
