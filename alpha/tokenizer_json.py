"""The ecosystem's tokenizer.json: reading BPE of bytes or characters from it, and writing every kind to it.

The format is that of the `tokenizers` package (Hugging Face). What it can say and Alpha cannot do is refused by name,
so that a tokenizer that loads gives the same ids as in that package. Two parts are not read because they concern
batches and not text: truncation and padding. Nor is the post-processor, which puts special tokens around a text; here
that is the business of the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpha.tokenizer import UNKNOWN, Tokenizer, check_vocabulary, malformed, shown
from alpha.tokenizer_bpe import BpeTokenizer, read_merges
from alpha.tokenizer_pattern import BYTE_LEVEL_PATTERNS, CHARACTERS, WORDS
from alpha.tokenizer_sentencepiece import SPACE, SentencePieceTokenizer
from alpha.tokenizer_simple import CharTokenizer, WordTokenizer

_CLOSED_PATTERNS = {"char": CHARACTERS, "word": WORDS.published}
_MERGE_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_ADDED_TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip")
_DIGITS_PATTERN = "gpt2_digits"
_DIGITS = {"type": "Digits", "individual_digits": True}
_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDING = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, _REPLACE_SPACES]}
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_DECODERS = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
]  # fmt: skip
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def is_tokenizer_json(mapping: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a tokenizer.json."""
    return "model" in mapping and "added_tokens" in mapping


def from_tokenizer_json(mapping: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json. AlphaError names `source` and what in it is malformed or unsupported."""
    model = mapping.get("model")
    if not isinstance(model, dict):
        raise malformed(source, "its model is not an object")
    vocabulary = _read_vocabulary(model.get("vocab"), mapping.get("added_tokens"), source)
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "BPE":
        for option in _MERGE_OPTIONS:
            if model.get(option) not in (None, "", 0):
                raise malformed(source, f"{option} of its model is not supported")
        is_of_characters = model.get("byte_fallback", False) is True
        return (_read_sentencepiece if is_of_characters else _read_bpe)(mapping, model, vocabulary, source)
    if kind == "WordLevel":
        return _read_closed(mapping, model, vocabulary, source)
    raise malformed(source, f"its model {shown(kind)} is not supported, only BPE of bytes or with byte_fallback is")


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json that gives the same ids in the `tokenizers` package.

    That package finds special tokens in every text unless its `encode_special_tokens` is set.
    """
    added = dict(tokenizer.special_tokens)
    if isinstance(tokenizer, BpeTokenizer):
        parts = _write_bpe(tokenizer)
        added |= tokenizer.added_tokens
    elif isinstance(tokenizer, SentencePieceTokenizer):
        parts = _write_sentencepiece(tokenizer)
    elif isinstance(tokenizer, CharTokenizer | WordTokenizer):
        parts = _write_closed(tokenizer)
    else:
        raise TypeError(f"No tokenizer.json is defined for {type(tokenizer).__name__}.")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": name, **plain, "special": name in tokenizer.special_tokens}
            for name, token_id in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "post_processor": None,
        **parts,
    }


def _write_bpe(tokenizer: BpeTokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": tokenizer.prefixes, "trim_offsets": True, "use_regex": True}
    pre_tokenizer: dict[str, Any] = byte_level
    if tokenizer.pattern == _DIGITS_PATTERN:
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [_DIGITS, byte_level]}
    elif tokenizer.pattern != "gpt2":
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
    parts = {"pre_tokenizer": pre_tokenizer, "decoder": byte_level, "model": model}
    return {"normalizer": {"type": "NFC"}, **parts} if tokenizer.composes else parts


def _write_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    prepends = tokenizer.prefix == "prepend"
    scheme = {"prepend_scheme": tokenizer.prefix, "split": tokenizer.splits}
    decoders = [*_DECODERS, *([_STRIP] if tokenizer.strips else [])]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokenizer.tokens)},
        "merges": [list(merge) for merge in tokenizer.merges],
    }
    return {
        "normalizer": _PREPENDING if prepends else None,
        "pre_tokenizer": None if prepends else {"type": "Metaspace", "replacement": SPACE, **scheme},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


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


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens in the order of their ids, the special ones, and those that are added but not special."""

    tokens: list[str]
    special_tokens: dict[str, int]
    added_tokens: list[str]
    normalized: str
    """An added token that is looked for after the normalizer, or nothing."""


def _read_vocabulary(vocabulary: Any, added: Any, source: str) -> _Vocabulary:
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise malformed(source, "it has no vocabulary with a list of added tokens")
    ids = dict(vocabulary)
    special_tokens: dict[str, int] = {}
    added_tokens, normalized = [], ""
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise malformed(source, f"its added token {shown(token)} has no content")
        content: str = token["content"]
        token_id: Any = token.get("id")
        for option in _ADDED_TOKEN_OPTIONS:
            if token.get(option, False) is not False:
                raise malformed(source, f"{option} of its added token {shown(content)} is not supported")
        if ids.setdefault(content, token_id) != token_id:
            raise malformed(source, f"its added token {shown(content)} has two ids")
        is_special = token.get("special") is True
        if token.get("normalized", not is_special) is not False:
            normalized = content
        if is_special:
            special_tokens[content] = token_id
        else:
            added_tokens.append(content)
    tokens: list[Any] = [None] * len(ids)
    for token, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < len(tokens) or tokens[token_id] is not None:
            raise malformed(source, f"id {shown(token_id)} of token {shown(token)} is not the next one or not unique")
        tokens[token_id] = token
    return _Vocabulary(*check_vocabulary(tokens, special_tokens, source), added_tokens, normalized)


def _read_bpe(mapping: Mapping[str, Any], model: dict[str, Any], vocabulary: _Vocabulary, source: str) -> BpeTokenizer:
    if _type_of(mapping.get("decoder")) != "ByteLevel":
        raise malformed(source, f"its decoder {_type_of(mapping.get('decoder'))} is not supported, only ByteLevel is")
    normalizer = mapping.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise malformed(source, f"its normalizer {_type_of(normalizer)} is not supported, only NFC is")
    _refuse_normalized(normalizer, vocabulary, source)
    pattern, prefixes = _read_pattern(mapping.get("pre_tokenizer"), source)
    return BpeTokenizer(
        vocabulary.tokens,
        read_merges(model.get("merges"), source),
        vocabulary.special_tokens,
        pattern=pattern,
        whole_pieces=model.get("ignore_merges", False) is True,
        composes=normalizer is not None,
        prefixes=prefixes,
        added_tokens=vocabulary.added_tokens,
        source=source,
    )


def _refuse_normalized(normalizer: Any, vocabulary: _Vocabulary, source: str) -> None:
    if normalizer is not None and vocabulary.normalized:
        raise malformed(
            source,
            f"its added token {shown(vocabulary.normalized)} is looked for in normalized text, which is not supported",
        )


def _read_pattern(pre_tokenizer: Any, source: str) -> tuple[str, bool]:
    """The name of the pattern by which the text is divided before bytes are merged; whether a space comes before it."""
    steps = pre_tokenizer.get("pretokenizers") if _type_of(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    if not isinstance(steps, list) or not steps or _type_of(steps[-1]) != "ByteLevel":
        raise malformed(source, f"its pre-tokenizer {_type_of(pre_tokenizer)} is not supported, only ByteLevel is")
    byte_level = steps[-1]
    prefixes = byte_level.get("add_prefix_space", True) is not False
    uses_regex = byte_level.get("use_regex", True) is True
    if len(steps) == 1 and uses_regex:
        return "gpt2", prefixes
    if prefixes:
        raise malformed(source, "add_prefix_space of its pre-tokenizer is not supported after another step")
    if len(steps) == 2 and steps[0] == _DIGITS and uses_regex:
        return _DIGITS_PATTERN, False
    for name, pattern in BYTE_LEVEL_PATTERNS.items():
        if len(steps) == 2 and _is_split(steps[0], pattern.published) and not uses_regex:
            return name, False
    raise malformed(source, "its pre-tokenizer divides text by an expression that is not supported")


def _read_sentencepiece(
    mapping: Mapping[str, Any], model: dict[str, Any], vocabulary: _Vocabulary, source: str
) -> SentencePieceTokenizer:
    if vocabulary.added_tokens:
        raise malformed(source, f"its added token {shown(vocabulary.added_tokens[0])} is not special")
    if model.get("ignore_merges", False) is not False:
        raise malformed(source, "ignore_merges of its model is not supported together with byte_fallback")
    normalizer = mapping.get("normalizer")
    _refuse_normalized(normalizer, vocabulary, source)
    prefix, splits = _read_spaces(normalizer, mapping.get("pre_tokenizer"), source)
    decoder = mapping.get("decoder")
    steps = decoder.get("decoders") if isinstance(decoder, dict) else None
    if steps not in (_DECODERS, [*_DECODERS, _STRIP]):
        raise malformed(source, "its decoder is not Replace, ByteFallback, Fuse and at most Strip, the only supported")
    return SentencePieceTokenizer(
        vocabulary.tokens,
        read_merges(model.get("merges"), source),
        vocabulary.special_tokens,
        prefix=prefix,
        splits=splits,
        strips=len(steps) > len(_DECODERS),
        source=source,
    )


def _read_spaces(normalizer: Any, pre_tokenizer: Any, source: str) -> tuple[str, bool]:
    """Where a space comes before a text, and whether each space begins a piece."""
    if normalizer == _PREPENDING and pre_tokenizer is None:
        return "prepend", False
    if normalizer == _REPLACE_SPACES and pre_tokenizer in (None, _NO_SPLIT):
        return "never", False
    if normalizer is not None:
        raise malformed(source, f"its normalizer {_type_of(normalizer)} is not supported with this pre-tokenizer")
    if _type_of(pre_tokenizer) != "Metaspace" or pre_tokenizer.get("replacement") != SPACE:
        raise malformed(source, f"its pre-tokenizer {_type_of(pre_tokenizer)} is not supported, only Metaspace is")
    older = "always" if pre_tokenizer.get("add_prefix_space", True) else "never"
    scheme, splits = pre_tokenizer.get("prepend_scheme", older), pre_tokenizer.get("split", True)
    if scheme not in ("always", "first", "never") or not isinstance(splits, bool):
        raise malformed(source, f"prepend_scheme {shown(scheme)} of its pre-tokenizer is not supported")
    return scheme, splits


def _read_closed(mapping: Mapping[str, Any], model: dict[str, Any], vocabulary: _Vocabulary, source: str) -> Tokenizer:
    tokens, special_tokens = vocabulary.tokens, vocabulary.special_tokens
    if vocabulary.added_tokens or mapping.get("normalizer") is not None:
        raise malformed(source, "its WordLevel model has a normalizer, or an added token that is not special")
    if model.get("unk_token") == UNKNOWN:
        if _is_split(mapping.get("pre_tokenizer"), _CLOSED_PATTERNS["char"]):
            return CharTokenizer(tokens, special_tokens, source)
        if _is_split(mapping.get("pre_tokenizer"), _CLOSED_PATTERNS["word"]):
            return WordTokenizer(tokens, special_tokens, source)
    raise malformed(source, "its WordLevel model is not one of a char or word tokenizer of Alpha")


def _type_of(part: Any) -> str:
    return shown(part.get("type")).strip("'") if isinstance(part, dict) else shown(part)
