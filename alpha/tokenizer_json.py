"""The ecosystem's tokenizer.json: reading byte-level BPE from it, and writing all three kinds to it.

The format is that of the `tokenizers` package (Hugging Face). What it can say and Alpha cannot do is refused by name,
so that a tokenizer that loads gives the same ids as in that package. Two parts are not read because they concern
batches and not text: truncation and padding. Nor is the post-processor, which puts special tokens around a text; here
that is the business of the caller.
"""

from collections.abc import Mapping
from typing import Any

from alpha.tokenizer import UNKNOWN, Tokenizer, check_vocabulary, malformed, shown
from alpha.tokenizer_bpe import BpeTokenizer, read_merges
from alpha.tokenizer_pattern import BYTE_LEVEL_PATTERNS, CHARACTERS, WORDS
from alpha.tokenizer_simple import CharTokenizer, WordTokenizer

_CLOSED_PATTERNS = {"char": CHARACTERS, "word": WORDS.published}
_MERGE_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_ADDED_TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip")


def is_tokenizer_json(mapping: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a tokenizer.json."""
    return "model" in mapping and "added_tokens" in mapping


def from_tokenizer_json(mapping: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json. AlphaError names `source` and what in it is malformed or unsupported."""
    if mapping.get("normalizer") is not None:
        raise malformed(source, f"its normalizer {_type_of(mapping['normalizer'])} is not supported, only null is")
    model = mapping.get("model")
    if not isinstance(model, dict):
        raise malformed(source, "its model is not an object")
    tokens, special_tokens = _read_vocabulary(model.get("vocab"), mapping.get("added_tokens"), source)
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "BPE":
        return _read_bpe(mapping, model, tokens, special_tokens, source)
    if kind == "WordLevel":
        return _read_closed(mapping, model, tokens, special_tokens, source)
    raise malformed(source, f"its model {shown(kind)} is not supported, only byte-level BPE is")


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json that gives the same ids in the `tokenizers` package.

    That package finds special tokens in every text unless its `encode_special_tokens` is set.
    """
    if isinstance(tokenizer, BpeTokenizer):
        parts = _write_bpe(tokenizer)
    elif isinstance(tokenizer, CharTokenizer | WordTokenizer):
        parts = _write_closed(tokenizer)
    else:
        raise TypeError(f"No tokenizer.json is defined for {type(tokenizer).__name__}.")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted((token_id, name) for name, token_id in tokenizer.special_tokens.items())
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": name, **plain} for token_id, name in added],
        "normalizer": None,
        "post_processor": None,
        **parts,
    }


def _write_bpe(tokenizer: BpeTokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pre_tokenizer: dict[str, Any] = byte_level
    if tokenizer.pattern != "gpt2":
        split = _split(BYTE_LEVEL_PATTERNS[tokenizer.pattern].published)
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": tokenizer.whole_pieces,
        "vocab": {token: index for index, token in enumerate(tokenizer.tokens)},
        "merges": [" ".join(merge) for merge in tokenizer.merges],
    }
    return {"pre_tokenizer": pre_tokenizer, "decoder": byte_level, "model": model}


def _write_closed(tokenizer: CharTokenizer | WordTokenizer) -> dict[str, Any]:
    vocabulary = {token: index for index, token in enumerate(tokenizer.tokens)}
    return {
        "pre_tokenizer": _split(_CLOSED_PATTERNS[tokenizer.kind]),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _is_split(part: Any, pattern: str) -> bool:
    """Whether a pre-tokenizer divides a text into the matches of an expression that leaves nothing between them.

    Then isolating the matches is the same as removing what is no match, which is what `invert` makes of "Removed".
    """
    if not isinstance(part, dict) or part.get("type") != "Split" or part.get("pattern") != {"Regex": pattern}:
        return False
    way = (part.get("behavior"), part.get("invert", False))
    return way in (("Isolated", False), ("Isolated", True), ("Removed", True))


def _read_vocabulary(vocabulary: Any, added: Any, source: str) -> tuple[list[str], dict[str, int]]:
    """The tokens in order of their ids, and the special ones."""
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise malformed(source, "it has no vocabulary with a list of added tokens")
    ids = dict(vocabulary)
    special_tokens = {}
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise malformed(source, f"its added token {shown(token)} has no content")
        content, token_id = token["content"], token.get("id")
        if token.get("special") is not True:
            raise malformed(source, f"its added token {shown(content)} is not special, which is not supported")
        for option in _ADDED_TOKEN_OPTIONS:
            if token.get(option, False) is not False:
                raise malformed(source, f"{option} of its added token {shown(content)} is not supported")
        if ids.setdefault(content, token_id) != token_id:
            raise malformed(source, f"its added token {shown(content)} has two ids")
        special_tokens[content] = token_id
    tokens: list[Any] = [None] * len(ids)
    for token, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < len(tokens) or tokens[token_id] is not None:
            raise malformed(source, f"id {shown(token_id)} of token {shown(token)} is not the next one or not unique")
        tokens[token_id] = token
    return check_vocabulary(tokens, special_tokens, source)


def _read_bpe(
    mapping: Mapping[str, Any],
    model: dict[str, Any],
    tokens: list[str],
    special_tokens: dict[str, int],
    source: str,
) -> BpeTokenizer:
    for option in _MERGE_OPTIONS:
        if model.get(option) not in (None, "", 0):
            raise malformed(source, f"{option} of its model is not supported")
    if _type_of(mapping.get("decoder")) != "ByteLevel":
        raise malformed(source, f"its decoder {_type_of(mapping.get('decoder'))} is not supported, only ByteLevel is")
    pattern = _read_pattern(mapping.get("pre_tokenizer"), source)
    merges = read_merges(model.get("merges"), source)
    whole_pieces = model.get("ignore_merges", False) is True
    return BpeTokenizer(tokens, merges, special_tokens, pattern=pattern, whole_pieces=whole_pieces, source=source)


def _read_pattern(pre_tokenizer: Any, source: str) -> str:
    """The name of the pattern by which the text is divided before bytes are merged."""
    steps = pre_tokenizer.get("pretokenizers") if _type_of(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    if not isinstance(steps, list) or not steps or _type_of(steps[-1]) != "ByteLevel":
        raise malformed(source, f"its pre-tokenizer {_type_of(pre_tokenizer)} is not supported, only ByteLevel is")
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space", True) is not False:
        raise malformed(source, "add_prefix_space of its pre-tokenizer is not supported")
    uses_regex = byte_level.get("use_regex", True) is True
    if len(steps) == 1 and uses_regex:
        return "gpt2"
    for name, pattern in BYTE_LEVEL_PATTERNS.items():
        if len(steps) == 2 and _is_split(steps[0], pattern.published) and not uses_regex:
            return name
    raise malformed(source, "its pre-tokenizer divides text by an expression that is not supported")


def _read_closed(
    mapping: Mapping[str, Any],
    model: dict[str, Any],
    tokens: list[str],
    special_tokens: dict[str, int],
    source: str,
) -> Tokenizer:
    if model.get("unk_token") == UNKNOWN:
        if _is_split(mapping.get("pre_tokenizer"), _CLOSED_PATTERNS["char"]):
            return CharTokenizer(tokens, special_tokens, source)
        if _is_split(mapping.get("pre_tokenizer"), _CLOSED_PATTERNS["word"]):
            return WordTokenizer(tokens, special_tokens, source)
    raise malformed(source, "its WordLevel model is not one of a char or word tokenizer of Alpha")


def _type_of(part: Any) -> str:
    return shown(part.get("type")).strip("'") if isinstance(part, dict) else shown(part)
