"""Writes the golden results of the tokenizers with the `tokenizers` package, an independent implementation.

Run from the repository's root: `python -m tests.golden.generate_tokenizer`. It trains byte-level BPE on a small corpus,
lets the package load what Alpha writes, and stores what the package answers; the tests compare with these files only.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from alpha.rng import random_bits, stream_of
from alpha.tokenizer_bpe import build_bpe, spell
from alpha.tokenizer_json import to_tokenizer_json
from alpha.tokenizer_pattern import LLAMA3, QWEN
from alpha.tokenizer_sentencepiece import SPACE
from alpha.tokenizer_simple import build_char, build_word

FOLDER = Path(__file__).parent
VOCAB_SIZE = 500
SMALL = 340
PUBLISHED_TEXTS = [
    "", " ", "   ", "two  spaces   three    four", " begins with one", "ends with one ", "12 345 6789, 1st x2",
    "a 1\n 2\t3", "<think>so</think><think>>", "</s> a</s>b <s>", "<s>", "\u2581x \u2581", "don't DON'T we'll",
    "e\u0301 A\u030a \u1100\u1161 >\u0338 <think>\u0338", "a\r\nb\n\n\n c", "<0x41> <0xE4>", "x" * 300,
    "\u4f60\u597d, \U0001f642\u200d \u00e9\u00df \x00\x7f", "\u00b2\u00bd \u0663\u2167 1\u00b2",
]  # fmt: skip

INPUTS = json.loads((FOLDER / "tokenizer_texts.json").read_text())


def random_texts(count: int) -> list[str]:
    """Texts of up to 40 characters of an alphabet in which every class and every contraction is near another."""
    alphabet = INPUTS["alphabet"]
    texts = []
    for index in range(count):
        bits = random_bits(41, seed=1, stream=stream_of("tokenizer", index)).tolist()
        texts.append("".join(alphabet[each % len(alphabet)] for each in bits[1 : 1 + bits[0] % 41]))
    return texts


def train(pre_tokenizer: Any, vocab_size: int = VOCAB_SIZE) -> tokenizers.Tokenizer:
    """Byte-level BPE of the package, special tokens last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(INPUTS["corpus"], trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer


def encodings(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> dict[str, list[list[int]]]:
    """Ids of texts in which special tokens are not looked for, and of some in which they are."""
    result = {}
    for name, these, found in (("ids", texts, False), ("special_ids", INPUTS["special_texts"], True)):
        tokenizer.encode_special_tokens = not found
        result[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in these]
    return result


def digest(mapping: dict[str, Any]) -> str:
    """SHA-256 of a tokenizer.json, for the tests to see that Alpha still writes what the package loaded."""
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def published() -> dict[str, tokenizers.Tokenizer]:
    """Small tokenizers that are put together as those that others publish."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt4 = pre_tokenizers.Split(Regex(LLAMA3.published), "removed", invert=True)
    qwen = pre_tokenizers.Split(Regex(QWEN.published), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    result = {
        "prefix": train(pre_tokenizers.ByteLevel(add_prefix_space=True), SMALL),
        "gpt4": train(pre_tokenizers.Sequence([gpt4, byte_level]), SMALL),
        "qwen": train(pre_tokenizers.Sequence([qwen, byte_level]), SMALL),
        "smollm": train(pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]), SMALL),
    }
    result["qwen"].normalizer = normalizers.NFC()
    result["qwen"].add_tokens([AddedToken(each, special=False, normalized=False) for each in ("<think>", "<think>>")])
    result["smollm"].add_tokens([AddedToken("<think>", special=False)])
    result["lacking"] = without_bytes(result["smollm"], {*range(9), *range(11, 32), 0x7F, *range(0xF5, 0x100)})
    older = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    result["llama2"] = of_characters(older, None)
    for scheme, split in (("always", False), ("first", False), ("never", True), ("always", True)):
        name = f"llama2_{scheme}" + ("_split" if split else "")
        result[name] = of_characters(None, pre_tokenizers.Metaspace(SPACE, scheme, split))
    result["gemma"] = of_characters(normalizers.Replace(" ", SPACE), pre_tokenizers.Split(" ", "merged_with_previous"))
    return result


def without_bytes(whole: tokenizers.Tokenizer, lacking: set[int]) -> tokenizers.Tokenizer:
    """The same without tokens for some bytes, as where a vocabulary was learned without an alphabet to begin with."""
    model = json.loads(whole.to_str())["model"]
    dropped = {spell(bytes([byte])) for byte in lacking}
    tokens = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in dropped]
    merges = [tuple(merge) for merge in model["merges"] if not dropped & {*merge}]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = whole.pre_tokenizer, whole.decoder
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer


def of_characters(normalizer: Any, pre_tokenizer: Any) -> tokenizers.Tokenizer:
    """BPE of characters with tokens for bytes, as converters from SentencePiece write it."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always", True)
    learner.train_from_iterator(
        [*INPUTS["corpus"], "a   b    c     d" * 9],
        trainers.BpeTrainer(vocab_size=SMALL - 260, min_frequency=2, limit_alphabet=40, show_progress=False),
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(learned["vocab"], key=learned["vocab"].get)
    tokens += [SPACE * 2, SPACE * 3, SPACE * 4]
    merges = [tuple(merge) for merge in learned["merges"]]
    merges += [(SPACE, SPACE), (SPACE * 2, SPACE), (SPACE * 2, SPACE * 2)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    strip = [] if normalizer is not None and pre_tokenizer is not None else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in tokens[:3]])
    return tokenizer


def write_published() -> None:
    """What the package answers for them: ids without and with special tokens, and the text of the former."""
    texts = [INPUTS["corpus"][0][:1500], *INPUTS["special_texts"], *random_texts(40), *PUBLISHED_TEXTS]
    results = {}
    for name, tokenizer in published().items():
        mapping = json.loads(tokenizer.to_str())
        answers: dict[str, Any] = {"tokenizer": mapping}
        for key, found in (("ids", False), ("special_ids", True)):
            tokenizer.encode_special_tokens = not found
            answers[key] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        answers["decoded"] = [tokenizer.decode(ids, skip_special_tokens=False) for ids in answers["ids"]]
        results[name] = answers
    stored = {"package": f"tokenizers {tokenizers.__version__}", "texts": texts, "tokenizers": results}
    (FOLDER / "tokenizer_published.json").write_text(json.dumps(stored, separators=(",", ":")) + "\n")


def main() -> None:
    """Train, encode, decode and store."""
    corpus = INPUTS["corpus"]
    texts = [*corpus, *INPUTS["texts"], *random_texts(100)]
    id_sequences = [
        [each % VOCAB_SIZE for each in random_bits(30, seed=2, stream=stream_of("ids", index)).tolist()]
        for index in range(40)
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(LLAMA3.published), "isolated")
    without_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = {"gpt2": train(byte_level), "llama3": train(pre_tokenizers.Sequence([split, without_regex]))}
    results: dict[str, Any] = {
        "package": f"tokenizers {tokenizers.__version__}",
        "vocab_size": VOCAB_SIZE,
        "random_texts": texts[-100:],
        "id_sequences": id_sequences,
        "trained": {},
        "written": {},
    }
    for name, tokenizer in trained.items():
        (FOLDER / f"tokenizer_{name}.json").write_text(tokenizer.to_str(pretty=False) + "\n")
        results["trained"][name] = {
            **encodings(tokenizer, texts),
            "decoded": [tokenizer.decode(ids, skip_special_tokens=False) for ids in id_sequences],
        }
    special_names = ("<|endoftext|>", "<|user|>", "<|end|>")
    for name, built in {
        "char": build_char(corpus),
        "word": build_word(corpus, 200),
        "bpe": build_bpe(corpus, VOCAB_SIZE, special_names),
        "bpe_llama3": build_bpe(corpus, VOCAB_SIZE, special_names, pattern="llama3"),
    }.items():
        mapping = to_tokenizer_json(built)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(mapping))
        results["written"][name] = {
            "digest": digest(mapping),
            **encodings(tokenizer, texts),
        }
    (FOLDER / "tokenizer_results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
    write_published()
