"""Tokenizers by name: building one from texts, reading and writing its file.

Names are char, word, bpe (2,000 tokens), bpe-4k to bpe-64k and bpe-chat-4k, which reserves the markers of a
conversation. A file is Alpha's artifact or the ecosystem's tokenizer.json; which of them is seen from its content.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha import files
from alpha.errors import AlphaError, UsageError
from alpha.files import Progress
from alpha.option import nearest
from alpha.tokenizer import ARTIFACT_FORMAT, CHAT_TOKENS, END_OF_TEXT, MAX_VOCABULARY, Tokenizer, malformed, shown
from alpha.tokenizer_bpe import bpe_from_mapping, build_bpe
from alpha.tokenizer_json import from_tokenizer_json, is_tokenizer_json, to_tokenizer_json
from alpha.tokenizer_sentencepiece import PATTERN, sentencepiece_from_mapping
from alpha.tokenizer_simple import DEFAULT_VOCABULARY, build_char, build_word, char_from_mapping, word_from_mapping

FILE_LIMIT = 1 << 27


@dataclass(frozen=True)
class Recipe:
    """What a tokenizer's name means; a vocabulary size of 0 cannot be chosen."""

    kind: str
    vocab_size: int
    smallest: int
    special_names: tuple[str, ...] = (END_OF_TEXT,)


def _read_bpe(mapping: Mapping[str, Any], source: str) -> Tokenizer:
    is_of_characters = mapping.get("pattern") == PATTERN
    return (sentencepiece_from_mapping if is_of_characters else bpe_from_mapping)(mapping, source)


_BYTES = 256
_CHAT_NAMES = (END_OF_TEXT, *CHAT_TOKENS)
RECIPES = {
    "char": Recipe("char", 0, 0),
    "word": Recipe("word", DEFAULT_VOCABULARY, 3),
    "bpe": Recipe("bpe", 2000, _BYTES + 1),
    **{f"bpe-{size}k": Recipe("bpe", size << 10, _BYTES + 1) for size in (4, 8, 16, 32, 64)},
    "bpe-chat-4k": Recipe("bpe", 4 << 10, _BYTES + len(_CHAT_NAMES), _CHAT_NAMES),
}
_READERS = {"char": char_from_mapping, "word": word_from_mapping, "bpe": _read_bpe}


def check_name(name: str, vocab_size: int = 0) -> Recipe:
    """What `name` means. UsageError for an unknown name or a vocabulary size that it cannot have."""
    if name not in RECIPES:
        raise UsageError(f"Unknown tokenizer {name!r}. {nearest(name, RECIPES)}")
    recipe = RECIPES[name]
    if vocab_size and not recipe.vocab_size:
        raise UsageError(f"The tokenizer {name} has one token per character; leave out --vocabSize={vocab_size}.")
    if vocab_size and not recipe.smallest <= vocab_size <= MAX_VOCABULARY:
        raise UsageError(
            f"--vocabSize={vocab_size} does not suit the tokenizer {name}: "
            f"give {recipe.smallest:,} to {MAX_VOCABULARY:,}, or 0 for its own."
        )
    return recipe


def build(
    name: str,
    texts: Iterable[str],
    vocab_size: int = 0,
    *,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Tokenizer:
    """A tokenizer for a corpus, given as its documents; `vocab_size` 0 is that of the name.

    The result may be smaller than asked when the corpus has no more to learn; its `vocab_size` says so. `warn` is told
    when the corpus is too large for all of it to be counted. UsageError as `check_name`; AlphaError when there is no
    text at all.
    """
    recipe = check_name(name, vocab_size)
    documents = _not_empty(texts)
    if recipe.kind == "char":
        return build_char(documents)
    if recipe.kind == "word":
        return build_word(documents, vocab_size or recipe.vocab_size, warn=warn)

    def on_token(done: int, wanted: int) -> None:
        if progress is not None:
            progress("learning tokens", done, wanted)

    return build_bpe(documents, vocab_size or recipe.vocab_size, recipe.special_names, warn=warn, on_token=on_token)


def name_of(tokenizer: Tokenizer) -> str:
    """The name of a tokenizer that came from a file: its kind, or that which reserves the markers of a conversation."""
    is_chat = tokenizer.kind == "bpe" and tokenizer.special_tokens.keys() >= set(CHAT_TOKENS)
    return "bpe-chat-4k" if is_chat else tokenizer.kind


def check_agreement(tokenizer: Tokenizer, flag: str, name: str, vocab_size: int) -> str:
    """Hold a tokenizer that came by `flag` (--init=RUN) against the name ("" for any) and vocabulary size (0 for
    any) asked for.

    UsageError when they contradict each other. A vocabulary that is smaller than asked may be all that its corpus had,
    so that is a sentence to warn with; otherwise the result is empty.
    """
    recipe = check_name(name or name_of(tokenizer), vocab_size)
    has = f"{flag}, which has a {tokenizer.kind} tokenizer of {tokenizer.vocab_size:,} tokens"
    other = ", or name another file to have one built" if flag.startswith("--tokenizerArtifacts") else ""
    advice = f"leave it out{other}"
    lacking = [each for each in recipe.special_names if each != END_OF_TEXT and each not in tokenizer.special_tokens]
    if recipe.kind != tokenizer.kind or lacking:
        without = f" without {lacking[0]}" if lacking else ""
        raise UsageError(f"--tokenizer={name} contradicts {has}{without}; {advice}.")
    wanted = vocab_size or (recipe.vocab_size if name and name != recipe.kind else 0)
    asked = f"--vocabSize={vocab_size}" if vocab_size else f"--tokenizer={name}"
    if wanted and tokenizer.vocab_size > wanted:
        raise UsageError(f"{asked} contradicts {has}; {advice}.")
    if tokenizer.vocab_size < wanted:
        return f"{asked} allows more tokens than {has}; it is used as it is."
    return ""


def from_mapping(mapping: Any, source: str) -> Tokenizer:
    """The tokenizer of Alpha's artifact or of a tokenizer.json. AlphaError names `source` if it is neither."""
    if isinstance(mapping, Mapping):
        if mapping.get("format") == ARTIFACT_FORMAT:
            kind = mapping.get("kind")
            if not isinstance(kind, str) or kind not in _READERS:
                raise malformed(source, f"its kind {shown(kind)} is not {', '.join(_READERS)}")
            return _READERS[kind](mapping, source)
        if is_tokenizer_json(mapping):
            return from_tokenizer_json(mapping, source)
    raise malformed(source, "it is neither Alpha's tokenizer artifact nor a tokenizer.json")


def load(path: Path) -> Tokenizer:
    """The tokenizer of a file. AlphaError names the file when it cannot be used."""
    return from_mapping(files.read_json(path, "tokenizer", FILE_LIMIT), str(path))


def save(path: Path, tokenizer: Tokenizer) -> None:
    """Write Alpha's artifact atomically."""
    files.write_json(path, tokenizer.to_mapping())


def save_tokenizer_json(path: Path, tokenizer: Tokenizer) -> None:
    """Write the ecosystem's tokenizer.json atomically."""
    files.write_json(path, to_tokenizer_json(tokenizer))


def with_unused(tokenizer: Tokenizer, vocab_size: int, source: str) -> Tokenizer:
    """The tokenizer with an id for each of `vocab_size` rows of an embedding: those it lacks are special and unused.

    Models are published with more rows than tokens, so that their number is round. AlphaError for fewer rows.
    """
    if vocab_size < tokenizer.vocab_size:
        raise malformed(
            source, f"it has {tokenizer.vocab_size:,} tokens, and the model only {vocab_size:,} rows for them"
        )
    if vocab_size == tokenizer.vocab_size:
        return tokenizer
    unused = {f"<|unused_{index}|>": index for index in range(tokenizer.vocab_size, vocab_size)}
    mapping = tokenizer.to_mapping()
    mapping["tokens"] = [*mapping["tokens"], *unused]
    mapping["special_tokens"] = {**mapping["special_tokens"], **unused}
    return from_mapping(mapping, source)


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise AlphaError("There is no text to build a tokenizer from; give a corpus that is not empty.")
