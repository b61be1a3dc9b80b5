"""Tokenizers in GGUF files: byte-level BPE by its merges, and BPE of characters by the scores of its tokens.

llama.cpp joins the neighbours whose token has the highest score, whatever pair makes it, so a tokenizer of characters
can be said so when its merges are all the pairs that make a token, in the order of the tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from alpha.errors import AlphaError
from alpha.gguf_file import Value
from alpha.tokenizer import ARTIFACT_VERSION, Tokenizer, malformed, shown
from alpha.tokenizer_bpe import BpeTokenizer, bpe_from_mapping
from alpha.tokenizer_sentencepiece import (
    BYTE_TOKEN,
    PATTERN,
    SentencePieceTokenizer,
    sentencepiece_from_mapping,
)

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_UNKNOWN_TOKEN = "<unk>"

_DIVISIONS = {
    ("gpt2", False, False): "gpt-2",
    ("llama3", True, False): "llama-bpe",
    ("llama3", False, False): "dbrx",
    ("qwen", False, True): "qwen2",
    ("gpt2_digits", False, False): "smollm",
}
"""llama.cpp's name for (pattern, whole_pieces, composes) of a byte-level tokenizer. It composes nothing itself, so text
that is not NFC has other ids there, as with Qwen's own GGUF files."""


def tokenizer_keys(tokenizer: Tokenizer) -> dict[str, Value]:
    """What a file says of a tokenizer. AlphaError when llama.cpp would give other ids."""
    if isinstance(tokenizer, BpeTokenizer):
        values = _byte_level_keys(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        values = _character_keys(tokenizer)
    else:
        raise AlphaError(
            f"llama.cpp has no tokenizer like this model's ({tokenizer.kind}); --format=hf can hold it, and BPE goes "
            "into GGUF."
        )
    values |= {f"{each}_token_id": tokenizer.end_of_text for each in ("bos", "eos")}
    if tokenizer.ends_of_turn:
        values["eot_token_id"] = tokenizer.ends_of_turn[0]
    values["add_bos_token"] = False
    return {_PREFIX + key: value for key, value in values.items()}


def read_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a file. AlphaError names `source` and what is malformed or not supported."""
    values = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    tokens, types = values.get("tokens"), values.get("token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(tokens) != len(types):
        raise malformed(source, "it has no list of tokens with a type for each")
    mapping = {
        "version": ARTIFACT_VERSION,
        "tokens": tokens,
        "special_tokens": _of_types(tokens, types, _CONTROL, _UNKNOWN),
    }
    added = list(_of_types(tokens, types, _USER_DEFINED))
    if values.get("model") == "gpt2":
        return _read_byte_level(values, {**mapping, "added_tokens": added}, source)
    if values.get("model") == "llama":
        if added:
            raise malformed(source, f"its added token {shown(added[0])} is not special")
        return _read_characters(values, mapping, source)
    raise malformed(source, f"its tokenizer {shown(values.get('model'))} is not supported, only gpt2 and llama are")


def _byte_level_keys(tokenizer: BpeTokenizer) -> dict[str, Value]:
    division = _DIVISIONS.get((tokenizer.pattern, tokenizer.whole_pieces, tokenizer.composes))
    if division is None or tokenizer.prefixes:
        raise AlphaError("llama.cpp divides text otherwise than this model's tokenizer; --format=hf can hold it.")
    types = [_NORMAL] * tokenizer.vocab_size
    for kind, ids in ((_CONTROL, tokenizer.special_tokens), (_USER_DEFINED, tokenizer.added_tokens)):
        for token_id in ids.values():
            types[token_id] = kind
    values: dict[str, Value] = {"model": "gpt2", "pre": division, "tokens": tokenizer.tokens, "token_type": types}
    if tokenizer.merges:
        values["merges"] = [" ".join(merge) for merge in tokenizer.merges]
    return values


def _read_byte_level(values: dict[str, Any], mapping: dict[str, Any], source: str) -> Tokenizer:
    division = values.get("pre")
    said = next((key for key, name in _DIVISIONS.items() if name == division), None)
    if said is None:
        known = ", ".join(_DIVISIONS.values())
        raise malformed(source, f"its pre-tokenizer {shown(division)} is not supported, only {known} are")
    pattern, whole_pieces, composes = said
    more = {"pattern": pattern, "whole_pieces": whole_pieces, "composes": composes}
    return bpe_from_mapping({**mapping, **more, "merges": values.get("merges", [])}, source)


def _character_keys(tokenizer: SentencePieceTokenizer) -> dict[str, Value]:
    products = dict.fromkeys(left + right for left, right in tokenizer.merges)
    scores = dict(zip(products, range(0, -len(products), -1), strict=True))
    lowest = -len(products)
    by_id = [float(scores.get(token, lowest)) for token in tokenizer.tokens]
    said = tokenizer.prefix in ("prepend", "never") and tokenizer.strips == (tokenizer.prefix == "prepend")
    ordinary = _ordinary(tokenizer.tokens, tokenizer.special_tokens)
    if not said or tokenizer.splits or tokenizer.merges != merges_by_score(tokenizer.tokens, by_id, ordinary):
        raise AlphaError("llama.cpp joins characters otherwise than this model's tokenizer; --format=hf can hold it.")
    types = [_BYTE if BYTE_TOKEN.fullmatch(token) else _NORMAL for token in tokenizer.tokens]
    for name, token_id in tokenizer.special_tokens.items():
        types[token_id] = _UNKNOWN if name == _UNKNOWN_TOKEN else _CONTROL
    values: dict[str, Value] = {"model": "llama", "pre": "default", "tokens": tokenizer.tokens}
    values |= {"scores": by_id, "token_type": types, "add_space_prefix": tokenizer.prefix == "prepend"}
    if _UNKNOWN_TOKEN in tokenizer.special_tokens:
        values["unknown_token_id"] = tokenizer.special_tokens[_UNKNOWN_TOKEN]
    return values


def _read_characters(values: dict[str, Any], mapping: dict[str, Any], source: str) -> Tokenizer:
    tokens, scores, special = mapping["tokens"], values.get("scores"), mapping["special_tokens"]
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(each, float) for each in scores)
    ):
        raise malformed(source, "it has no list of scores, one for each token")
    if not all(isinstance(token, str) for token in tokens):
        raise malformed(source, "a token is not a text")
    ordinary = {token for token in tokens if token not in special and not BYTE_TOKEN.fullmatch(token)}
    prefixes = values.get("add_space_prefix", True)
    more = {"pattern": PATTERN, "prefix": "prepend" if prefixes else "never", "splits": False, "strips": bool(prefixes)}
    merges = [list(merge) for merge in merges_by_score(tokens, scores, ordinary)]
    return sentencepiece_from_mapping({**mapping, **more, "merges": merges}, source)


def merges_by_score(tokens: Sequence[str], scores: Sequence[float], products: set[str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes one of `products`, the highest score first, then by the ids of the pair."""
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token in sorted(products, key=lambda token: (-scores[ids[token]], ids[token])):
        pairs = ((token[:place], token[place:]) for place in range(1, len(token)))
        merges += sorted((pair for pair in pairs if pair[0] in ids and pair[1] in ids),
                         key=lambda pair: (ids[pair[0]], ids[pair[1]]))  # fmt: skip
    return merges


def _ordinary(tokens: Sequence[str], special: Mapping[str, int]) -> set[str]:
    return {token for token in tokens if token not in special and not BYTE_TOKEN.fullmatch(token)}


def _of_types(tokens: list[Any], types: list[Any], *kinds: int) -> dict[Any, int]:
    return {token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in kinds}
