"""Byte-level BPE: exactness on every text and every byte string, merging and training against plain definitions."""

import os
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import tokenizer_bpe
from alpha.errors import AlphaError
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import (
    BYTE_ORDER,
    BpeTokenizer,
    bpe_from_mapping,
    build_bpe,
    learn_merges,
    merge_by_heap,
    merge_by_scanning,
    spell,
)
from alpha.tokenizer_bpe import unspell as from_spelling

CORPUS = [
    "the cat sat on the mat; the cats sat on the mats. " * 3,
    "naïve café 猫猫猫 😀😀 don't don't\n\n\tx = x + 1\n" * 2,
]
FRAGMENTS = [b"the ", "é猫".encode(), b"\xff", b"\xe7\x8c", b"\xed\xa0\x80", b"\xc0\x80", b"\0"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_bpe(CORPUS, 290, (END_OF_TEXT, *CHAT_TOKENS))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(text=st.text(max_size=60) | st.text(st.sampled_from("the cats\n'é猫😀"), max_size=60))
def test_every_text_decodes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_bytes(text.encode()) == ids
    array = tokenizer.encode_to_array(text)
    assert array.dtype == np.uint32
    assert array.tolist() == ids
    assert tokenizer.decode(array) == text
    assert tokenizer.count_unknown(array) == 0


@settings(max_examples=200, derandomize=True, deadline=None)
@given(text=st.text(st.sampled_from("a \ud800\udbff\udc00\udc80\udcff\udfff😀é"), max_size=30))
def test_lone_surrogates_decode_back_when_asked(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, errors="surrogatepass") == text
    tokenizer.decode(ids).encode()  # the default is always valid Unicode


@settings(max_examples=300, derandomize=True, deadline=None)
@given(content=st.binary(max_size=80) | st.lists(st.sampled_from(FRAGMENTS)).map(b"".join))
def test_every_byte_string_decodes_back(tokenizer, content):
    ids = tokenizer.encode_bytes(content)
    assert tokenizer.decode_bytes(ids) == content
    assert tokenizer.decode(ids) == content.decode("utf-8", "replace")
    assert b"".join(map(tokenizer.token_bytes, ids)) == content


def test_invalid_bytes_do_not_disturb_the_text_around_them(tokenizer):
    ids = tokenizer.encode_bytes(b"the cat\xff\xfe the cat")
    assert ids[: len(tokenizer.encode("the cat"))] == tokenizer.encode("the cat")
    assert ids[-len(tokenizer.encode(" the cat")) :] == tokenizer.encode(" the cat")


def test_special_tokens_are_made_only_on_request(tokenizer):
    text = "the<|endoftext|><|user|> cat<|en"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())
    special = [tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|user|>"]]
    expected = [*tokenizer.encode("the"), *special, *tokenizer.encode(" cat<|en")]
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text
    assert tokenizer.end_of_text == special[0]
    assert tokenizer.vocab_size == 290
    assert sorted(tokenizer.special_tokens.values()) == list(range(285, 290))


def test_the_longest_special_token_wins():
    base = build_bpe(["x"], 257)
    names = ["<e>", "<e><e>", END_OF_TEXT]
    specials = {name: 256 + index for index, name in enumerate(names)}
    tokenizer = BpeTokenizer([*base.tokens[:256], *names], [], specials)
    assert tokenizer.encode("<e><e><e>", allow_special=True) == [257, 256]


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for ids in ([0, 290], [-1], np.array([70_000], np.uint32)):
        with pytest.raises(AlphaError, match="outside this tokenizer's vocabulary of 290"):
            tokenizer.decode(ids)
        with pytest.raises(AlphaError, match="outside"):
            tokenizer.token_bytes(int(ids[-1]))


def test_spelling_is_gpt2s_and_can_be_undone():
    assert spell(b" \n\0a\xff") == "ĠĊĀaÿ"
    assert spell(bytes(range(256))).isprintable()
    assert from_spelling(spell(bytes(range(256)))) == bytes(range(256))
    assert from_spelling("a b") is None
    assert BYTE_ORDER[:3] == b'!"#' and sorted(BYTE_ORDER) == list(range(256))


def merged_by_definition(ids, ranks, products):
    """Join the pair of the lowest rank, the leftmost of them, until no pair has a rank."""
    ids = list(ids)
    while True:
        ranked = [(ranks[pair], index) for index, pair in enumerate(pairwise(ids)) if pair in ranks]
        if not ranked:
            return ids
        rank, index = min(ranked)
        ids[index : index + 2] = [products[rank]]


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    ids=st.lists(st.integers(0, 3), max_size=40),
    merges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), unique=True, max_size=12),
    data=st.data(),
)
def test_merging_follows_its_definition_for_any_order_of_merges(ids, merges, data):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    products = [data.draw(st.integers(4, 7)) for _ in merges]
    expected = merged_by_definition(ids, ranks, products)
    assert merge_by_scanning(list(ids), ranks, products) == expected
    assert merge_by_heap(list(ids), ranks, products) == expected


def learned_by_definition(counts, token_limit):
    """Sennrich et al., Algorithm 1, counting everything anew each time."""
    tokens = [spell(bytes([byte])) for byte in BYTE_ORDER]
    words = {tuple(spell(bytes([byte])) for byte in piece.encode()): count for piece, count in counts.items()}
    merges = []
    while len(tokens) < token_limit:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], tokens.index(pair[0]), tokens.index(pair[1])))
        merges.append(best)
        assert "".join(best) not in tokens
        tokens.append("".join(best))
        replaced = Counter()
        for word, count in words.items():
            joined, index = [], 0
            while index < len(word):
                step = 2 if word[index : index + 2] == best else 1
                joined.append("".join(word[index : index + step]))
                index += step
            replaced[tuple(joined)] += count
        words = replaced
    return tokens, merges


@settings(max_examples=60, derandomize=True, deadline=None)
@given(counts=st.dictionaries(st.text("abc", min_size=1, max_size=12), st.integers(1, 9), min_size=1, max_size=12))
def test_training_follows_its_definition(counts):
    assert learn_merges(counts, 285) == learned_by_definition(counts, 285)


def test_training_stops_when_nothing_occurs_twice():
    assert build_bpe(["abcdef"], 5000).vocab_size == 257
    small = build_bpe(["abab"], 5000)
    assert small.tokens[256:] == ["ab", END_OF_TEXT]


def test_training_does_not_depend_on_the_hash_seed():
    code = (
        "from alpha.tokenizer_bpe import build_bpe\n"
        "from alpha.tokenizer_simple import build_word\n"
        "texts = ['one two two three three three aa bb cc dd ee ff gg hh ' * 2]\n"
        "print(build_bpe(texts, 290).digest(), build_word(texts).digest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("unit", ["a", " ", "ab", "\n", "'", " \n", "é", "a.", "1", "\udcff"])
def test_time_grows_with_the_length_and_not_its_square(tokenizer, unit):
    def seconds(length):
        start = time.process_time()
        tokenizer.encode_to_array(unit * (length // len(unit)))
        return time.process_time() - start

    seconds(1000)
    assert seconds(160_000) < 60 * max(seconds(10_000), 0.01)


def test_the_memory_of_merged_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer_bpe, "CACHED_PIECES", 10)
    tokenizer = build_bpe(CORPUS, 300)
    text = " ".join(f"word{index}" for index in "abcdefghijklmnopqrstuvwxyz") + "x" * 100
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer._merged) <= 10
    assert max(map(len, tokenizer._merged)) <= tokenizer_bpe.CACHED_PIECE_LENGTH


def test_the_artifact_gives_back_an_equal_tokenizer(tokenizer):
    again = bpe_from_mapping(tokenizer.to_mapping(), "copy")
    assert again.digest() == tokenizer.digest()
    assert again.encode("".join(CORPUS)) == tokenizer.encode("".join(CORPUS))
    assert build_bpe(CORPUS, 289).digest() != tokenizer.digest()
