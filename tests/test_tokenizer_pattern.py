"""Dividing a text into pieces: equal to the published expressions, in segments, in ASCII and beyond."""

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import tokenizer_pattern
from alpha.errors import percent
from alpha.tokenizer_pattern import GPT2, LLAMA3, WORDS, count_pieces

PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3, "words": WORDS}
ASCII = st.text(st.sampled_from("abS' \n\r\t\v\x1c\x1f019.,'stmdlvre_LVE\x00\x7f"), max_size=40)
MIXED = st.text(st.sampled_from("ab\u017f' \n\r\t\u00a0\u0085\u2028é\u0301²½Ⅷ猫😀\u200d'sT_.१क\udc80"), max_size=40)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, derandomize=True, deadline=None)
@given(text=ASCII | MIXED | st.text(max_size=40))
def test_pieces_are_the_matches_of_the_published_expression(name, text):
    pattern = PATTERNS[name]
    pieces = [piece for segment in pattern.segments(text) for piece in segment]
    assert pieces == regex.findall(pattern.published, text)
    assert "".join(pieces) == text


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, derandomize=True, deadline=None)
@given(text=ASCII | MIXED, segment=st.integers(1, 5))
def test_segments_do_not_change_the_pieces(name, text, segment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_pattern, "SEGMENT", segment)
        segments = list(PATTERNS[name].segments(text))
    assert [piece for pieces in segments for piece in pieces] == regex.findall(PATTERNS[name].published, text)


def test_a_long_text_has_several_segments_of_bounded_size():
    text = "some words " * 200_000
    sizes = [sum(map(len, pieces)) for pieces in GPT2.segments(text)]
    assert len(sizes) > 3
    assert max(sizes) < tokenizer_pattern.SEGMENT + 20


def test_counts_add_up_over_texts():
    assert count_pieces(["a b a", " b", ""], GPT2) == {"a": 1, " b": 2, " a": 1}


@pytest.mark.parametrize("times", [1, 2, 7])
def test_of_equally_rare_pieces_a_fair_sample_is_kept_and_the_rest_is_said(monkeypatch, times):
    monkeypatch.setattr(tokenizer_pattern, "_PENDING_PIECES", 50)
    monkeypatch.setattr(tokenizer_pattern, "MAX_CHARACTERS", 3000)
    texts = [f"<{index * 377 % 1000:03}" for index in range(1000) for _ in range(times)]
    warnings = []
    counts = count_pieces(texts, tokenizer_pattern.Pattern("<[NUMBER]+", r"<\p{N}+"), warnings.append)
    assert 300 < len(counts) <= 750
    assert set(counts.values()) <= {times, times - 1}, "a piece that was dropped may come again"
    kept = [int(piece[1:]) for piece in counts]
    places = [number * 313 % 1000 for number in kept]  # 377 * 313 is 1 modulo 1000
    assert all(430 < sum(values) / len(kept) < 570 for values in (kept, places)), "of every part of the text"
    assert len(warnings) == 1
    assert f"without {percent(1 - sum(counts.values()) / len(texts))} of the text" in warnings[0]


def test_nothing_is_said_when_everything_is_counted():
    count_pieces(["a b"], GPT2, pytest.fail)


@pytest.mark.parametrize("limit", ["MAX_PIECES", "MAX_CHARACTERS"])
def test_rare_pieces_are_dropped_when_there_are_too_many(monkeypatch, limit):
    monkeypatch.setattr(tokenizer_pattern, "_PENDING_PIECES", 50)
    monkeypatch.setattr(tokenizer_pattern, limit, 200)
    texts = [" often" + f" x{index // 3}" for index in range(6000)]
    counts = count_pieces(texts, WORDS)
    assert counts[" often"] == 6000
    assert max(len(counts), sum(map(len, counts)) if limit == "MAX_CHARACTERS" else 0) <= 200
    assert counts == count_pieces(texts, WORDS)
