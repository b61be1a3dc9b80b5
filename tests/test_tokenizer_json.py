"""The ecosystem's tokenizer.json, against stored answers of the `tokenizers` package (golden/generate_tokenizer.py)."""

import copy
import hashlib
import json
from pathlib import Path

import pytest

from alpha.errors import AlphaError
from alpha.tokenizer_bpe import build_bpe
from alpha.tokenizer_json import from_tokenizer_json, to_tokenizer_json
from alpha.tokenizer_registry import from_mapping
from alpha.tokenizer_simple import build_char, build_word

GOLDEN = Path(__file__).parent / "golden"
INPUTS = json.loads((GOLDEN / "tokenizer_texts.json").read_text())
RESULTS = json.loads((GOLDEN / "tokenizer_results.json").read_text())
STORED = json.loads((GOLDEN / "tokenizer_published.json").read_text())
PUBLISHED_TEXTS, PUBLISHED = STORED["texts"], STORED["tokenizers"]
CORPUS = INPUTS["corpus"]
TEXTS = [*CORPUS, *INPUTS["texts"], *RESULTS["random_texts"]]
SPECIAL_NAMES = ("<|endoftext|>", "<|user|>", "<|end|>")


def stored(name):
    return json.loads((GOLDEN / f"tokenizer_{name}.json").read_text())


def built(name):
    if name == "char":
        return build_char(CORPUS)
    if name == "word":
        return build_word(CORPUS, 200)
    pattern = "llama3" if name == "bpe_llama3" else "gpt2"
    return build_bpe(CORPUS, RESULTS["vocab_size"], SPECIAL_NAMES, pattern=pattern)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_tokenizer_json_gives_the_ids_of_the_package(name):
    tokenizer = from_tokenizer_json(stored(name), "golden")
    expected = RESULTS["trained"][name]
    assert [tokenizer.encode(text) for text in TEXTS] == expected["ids"]
    assert [tokenizer.encode(text, allow_special=True) for text in INPUTS["special_texts"]] == expected["special_ids"]
    assert [tokenizer.decode(ids) for ids in RESULTS["id_sequences"]] == expected["decoded"]


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_training_learns_what_the_package_learns(name):
    tokenizer = build_bpe(CORPUS, RESULTS["vocab_size"], pattern=name)
    expected = stored(name)
    assert [list(merge) for merge in tokenizer.merges] == expected["model"]["merges"]
    vocabulary = {**expected["model"]["vocab"], "<|endoftext|>": RESULTS["vocab_size"] - 1}
    assert {token: index for index, token in enumerate(tokenizer.tokens)} == vocabulary


@pytest.mark.parametrize("name", ["char", "word", "bpe", "bpe_llama3"])
def test_the_package_gives_our_ids_for_what_we_write(name):
    tokenizer = built(name)
    expected = RESULTS["written"][name]
    written = json.dumps(to_tokenizer_json(tokenizer), sort_keys=True)
    assert hashlib.sha256(written.encode()).hexdigest() == expected["digest"], "run golden/generate_tokenizer.py"
    assert [tokenizer.encode(text) for text in TEXTS] == expected["ids"]
    assert [tokenizer.encode(text, allow_special=True) for text in INPUTS["special_texts"]] == expected["special_ids"]


@pytest.mark.parametrize("name", ["char", "word", "bpe", "bpe_llama3"])
def test_what_we_write_we_read_back(name):
    tokenizer = built(name)
    again = from_tokenizer_json(json.loads(json.dumps(to_tokenizer_json(tokenizer))), "copy")
    assert again.digest() == tokenizer.digest()
    assert type(again) is type(tokenizer)


@pytest.mark.parametrize("name", ["char", "word", "bpe_llama3"])
def test_other_ways_to_say_that_the_matches_are_the_pieces(name):
    tokenizer = built(name)
    for behavior, invert, is_read in [
        ("Isolated", True, True), ("Removed", True, True), ("Removed", False, False), ("MergedWithNext", True, False),
    ]:  # fmt: skip
        mapping = to_tokenizer_json(tokenizer)
        split = mapping["pre_tokenizer"]
        split = split["pretokenizers"][0] if split["type"] == "Sequence" else split
        split |= {"behavior": behavior, "invert": invert}
        if is_read:
            assert from_tokenizer_json(mapping, "copy").digest() == tokenizer.digest()
        else:
            with pytest.raises(AlphaError):
                from_tokenizer_json(mapping, "copy")


def test_merges_may_be_text_or_pairs():
    pairs = stored("gpt2")
    texts = copy.deepcopy(pairs)
    texts["model"]["merges"] = [" ".join(merge) for merge in pairs["model"]["merges"]]
    del texts["model"]["type"]  # as the file of GPT-2 itself
    assert from_tokenizer_json(texts, "texts").digest() == from_tokenizer_json(pairs, "pairs").digest()


def test_whole_pieces_win_over_merges_when_merges_are_to_be_ignored():
    mapping = stored("gpt2")
    vocabulary = mapping["model"]["vocab"]
    vocabulary["zq"] = max(token["id"] for token in mapping["added_tokens"])
    mapping["added_tokens"][0]["id"] += 1
    assert len(from_tokenizer_json(mapping, "golden").encode("zq zq")) == 5
    mapping["model"]["ignore_merges"] = True
    tokenizer = from_tokenizer_json(mapping, "golden")
    assert tokenizer.encode("zq") == [vocabulary["zq"]]
    assert len(tokenizer.encode("zq zq")) == 4


def changed(path, value):
    mapping = stored("gpt2")
    target = mapping
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return mapping


LLAMA_SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}
PREFIXING = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["normalizer"], {"type": "NFKC"}, "normalizer NFKC"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "pre-tokenizer Whitespace"),
        (["pre_tokenizer"], None, "pre-tokenizer None"),
        (["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [LLAMA_SPLIT, BYTE_LEVEL]}, "an expression"),
        (["pre_tokenizer"], BYTE_LEVEL, "an expression"),
        (["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [DIGITS, PREFIXING]}, "add_prefix_space"),
        (["decoder"], {"type": "WordPiece"}, "decoder WordPiece"),
        (["model", "type"], "Unigram", "'Unigram'"),
        (["model", "dropout"], 0.1, "dropout"),
        (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
        (["model", "continuing_subword_prefix"], "##", "continuing_subword_prefix"),
        (["model", "vocab", "Ġt"], 7, "id 7 of token"),
        (["model", "vocab", "Ġt"], 700, "id 700 of token"),
        (["model", "vocab", '"'], True, "id True of token"),  # that is 1, which is its id
        (["model", "vocab"], {"a": 0}, "added token '<|endoftext|>'|not the next one"),
        (["model", "merges", 3], ["zz", "a"], "merge 3"),
        (["model", "merges", 3], ["a", "b", "c"], "not a merge"),
        (["model", "merges", 3], "a  b", "not a merge"),
        (["model", "merges", 3], ["Ġ", "t"], "merges are the same|is not of known"),
        (["added_tokens", 0, "special"], False, "to end a document"),
        (["added_tokens", 0, "lstrip"], True, "lstrip"),
        (["added_tokens", 0, "content"], "<pad>", "to end a document"),
        (["added_tokens", 0, "id"], 3, "not the next one or not unique"),
        (["added_tokens", 0, "content"], "Ġt", "two ids"),
        (["added_tokens"], {}, "list of added tokens"),
    ],
)
def test_what_is_not_supported_is_named(path, value, message):
    with pytest.raises(AlphaError, match=message) as error:
        from_tokenizer_json(changed(path, value), "some/tokenizer.json")
    assert "some/tokenizer.json" in str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_publish_gives_the_ids_of_the_package(name):
    expected = PUBLISHED[name]
    tokenizer = from_tokenizer_json(expected["tokenizer"], name)
    for text, ids, special_ids, decoded in zip(
        PUBLISHED_TEXTS, expected["ids"], expected["special_ids"], expected["decoded"], strict=True
    ):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, allow_special=True) == special_ids, text
        assert tokenizer.decode(ids) == decoded, text


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_publish_is_stored_and_written_again(name):
    tokenizer = from_tokenizer_json(PUBLISHED[name]["tokenizer"], name)
    stored_again = from_mapping(json.loads(json.dumps(tokenizer.to_mapping())), "stored")
    written_again = from_tokenizer_json(json.loads(json.dumps(to_tokenizer_json(tokenizer))), "written")
    for text, ids in zip(PUBLISHED_TEXTS, PUBLISHED[name]["ids"], strict=True):
        assert stored_again.encode(text) == ids
        assert written_again.encode(text) == ids
    assert stored_again.digest() == written_again.digest() == tokenizer.digest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_text_may_be_cut_where_the_tokenizer_says(name):
    tokenizer = from_tokenizer_json(PUBLISHED[name]["tokenizer"], name)
    for text in PUBLISHED_TEXTS:
        ids = tokenizer.encode(text)
        for cut in {match.start() for each in tokenizer.cuts for match in each.finditer(text, 1)}:
            assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == ids, (text, cut)


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("qwen", ["normalizer"], {"type": "NFD"}, "normalizer NFD"),
        ("qwen", ["added_tokens", 1, "normalized"], True, "in normalized text"),
        ("qwen", ["added_tokens", 1, "content"], "a b", "a place to cut"),
        ("llama2", ["decoder"], {"type": "ByteLevel"}, "its decoder"),
        ("llama2", ["normalizer"], {"type": "NFC"}, "normalizer NFC"),
        ("llama2", ["model", "ignore_merges"], True, "ignore_merges"),
        ("llama2", ["added_tokens", 0, "special"], False, "is not special"),
        ("llama2_always", ["pre_tokenizer", "prepend_scheme"], "often", "'often'"),
        ("llama2_always", ["pre_tokenizer", "replacement"], "_", "pre-tokenizer Metaspace"),
    ],
)
def test_what_others_publish_and_is_not_supported_is_named(name, path, value, message):
    mapping = copy.deepcopy(PUBLISHED[name]["tokenizer"])
    target = mapping
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(AlphaError, match=message):
        from_tokenizer_json(mapping, "some/tokenizer.json")


def test_a_vocabulary_that_lacks_plain_text_is_refused():
    mapping = stored("gpt2")
    vocabulary = mapping["model"]["vocab"]
    vocabulary["zq"] = vocabulary.pop("~")
    with pytest.raises(AlphaError, match="no token for byte 126"):
        from_tokenizer_json(mapping, "golden")
