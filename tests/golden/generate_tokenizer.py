"""Writes the golden results of the tokenizers with the `tokenizers` package, an independent implementation.

Run from the repository's root: `python -m tests.golden.generate_tokenizer`. It trains byte-level BPE on a small corpus,
lets the package load what Alpha writes, and stores what the package answers; the tests compare with these files only.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from alpha.rng import random_bits, stream_of
from alpha.tokenizer_bpe import build_bpe
from alpha.tokenizer_json import to_tokenizer_json
from alpha.tokenizer_pattern import LLAMA3
from alpha.tokenizer_simple import build_char, build_word

FOLDER = Path(__file__).parent
VOCAB_SIZE = 500

INPUTS = json.loads((FOLDER / "tokenizer_texts.json").read_text())


def random_texts(count: int) -> list[str]:
    """Texts of up to 40 characters of an alphabet in which every class and every contraction is near another."""
    alphabet = INPUTS["alphabet"]
    texts = []
    for index in range(count):
        bits = random_bits(41, seed=1, stream=stream_of("tokenizer", index)).tolist()
        texts.append("".join(alphabet[each % len(alphabet)] for each in bits[1 : 1 + bits[0] % 41]))
    return texts


def train(pre_tokenizer: Any) -> tokenizers.Tokenizer:
    """Byte-level BPE of the package, special tokens last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
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
