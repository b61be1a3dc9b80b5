"""What every tokenizer does: text to token ids and back, and the JSON artifact that stores its vocabulary.

A vocabulary is a list of tokens whose index is the id. Some of them are special: they mark structure, such as the end
of a document, and text that merely contains their spelling never becomes one unless the caller asks for it. How a
text is divided is what the subclasses say.
"""

import hashlib
import json
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError
from alpha.tokenizer_pattern import CUTS, Cuts

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
END_OF_TEXT_SPELLINGS = (END_OF_TEXT, "<|end_of_text|>", "</s>")
"""What vocabularies of the ecosystem call the end of a document; the first that exists is meant."""

END_OF_TURN_SPELLINGS = (CHAT_TOKENS[-1], "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")
"""What they call the end of a turn of a chat."""

ARTIFACT_FORMAT = "alpha-tokenizer"
ARTIFACT_VERSION = 1
MAX_VOCABULARY = 1 << 21
_DECODED_SEGMENT = 1 << 16
_MOST_COMPOSED = 4
"""How many characters the normal form NFC makes one of, at most."""

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
TokenArray = npt.NDArray[np.uint32]


class Tokenizer(ABC):
    """A vocabulary, and the way in which it divides a text. Immutable, and safe to use from several threads."""

    kind: ClassVar[str]
    cuts: Cuts = CUTS
    """Where a text may be cut so that the ids of its parts, in a row, are the ids of the whole."""

    def __init__(self, token_bytes: list[bytes], special_tokens: Mapping[str, int]) -> None:
        self.special_tokens = dict(special_tokens)
        self.end_of_text = next(self.special_tokens[each] for each in END_OF_TEXT_SPELLINGS if each in special_tokens)
        self.ends_of_turn = [special_tokens[each] for each in END_OF_TURN_SPELLINGS if each in special_tokens]
        self.unknown = self.special_tokens.get(UNKNOWN)
        self._token_bytes = token_bytes

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included; ids are 0 to vocab_size - 1."""
        return len(self._token_bytes)

    @abstractmethod
    def _encode_ordinary(self, text: str) -> TokenArray:
        """The ids of a text in which nothing is special."""

    @abstractmethod
    def to_mapping(self) -> dict[str, Any]:
        """The artifact: a JSON object from which an equal tokenizer can be made."""

    def encode_to_array(self, text: str, allow_special: bool = False) -> TokenArray:
        """The ids of a text, uint32 [tokens]. With `allow_special`, spelled special tokens become their ids."""
        if not allow_special:
            return self._encode_ordinary(text)
        arrays = [
            np.array([self.special_tokens[part]], np.uint32) if is_special else self._encode_ordinary(part)
            for part, is_special in self.split_special(text)
        ]
        return np.concatenate(arrays)

    def split_special(self, text: str) -> list[tuple[str, bool]]:
        """The text in parts, ordinary ones and spelled special tokens in turn."""
        return [(part, bool(index % 2)) for index, part in enumerate(self._special_pattern.split(text))]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text as a list; see `encode_to_array`."""
        ids: list[int] = self.encode_to_array(text, allow_special).tolist()
        return ids

    def fewest_tokens(self, text: str) -> int:
        """So many tokens a text has at least, which takes no time to know; 0 where a token may be of any length."""
        return len(text) // (_MOST_COMPOSED * self._longest)

    def open_ending(self, text: str) -> str:
        """The last character of a text where, in a longer text, it may be in one token with what follows; else nothing.

        Spelled special tokens count as such. Letters and digits are left to be the ends of words.
        """
        return self._open_ending(self._special_pattern.split(text)[-1])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for: not always whole characters. AlphaError for an id out of range."""
        self._check_range(token, token)
        return self._token_bytes[token]

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that a sequence of tokens stands for. AlphaError for an id out of range."""
        return b"".join(
            self._decode_segment(ids[start : start + _DECODED_SEGMENT])
            for start in range(0, len(ids), _DECODED_SEGMENT)
        )

    def decode(self, ids: Ids, errors: str = "replace") -> str:
        """The text of a sequence of tokens; bytes that are not UTF-8 become U+FFFD.

        A str of Python can hold lone surrogates, which UTF-8 cannot. Byte-level tokenizers keep them as three bytes
        each; `errors="surrogatepass"` decodes them back.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def count_unknown(self, ids: Ids) -> int:
        """How many of the ids stand for text that the vocabulary lacks; their text is lost."""
        return 0 if self.unknown is None else int(np.count_nonzero(np.asarray(ids) == self.unknown))

    def digest(self) -> str:
        """SHA-256 of the artifact's canonical JSON: equal digests mean equal encodings."""
        return self._digest

    def _open_ending(self, text: str) -> str:
        """The same for a text in which nothing is special."""
        return ""

    def _decode_segment(self, ids: Ids) -> bytes:
        tokens = ids.tolist() if isinstance(ids, np.ndarray) else ids
        self._check_range(min(tokens), max(tokens))
        return b"".join(map(self._token_bytes.__getitem__, tokens))

    def _check_range(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.vocab_size:
            raise AlphaError(
                f"Token id {lowest if lowest < 0 else highest} is outside this tokenizer's vocabulary of "
                f"{self.vocab_size:,}; the ids come from another tokenizer."
            )

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token, or of its spelling where it is special; at least as many as its characters."""
        return max(map(len, (*self._token_bytes, *self.special_tokens)))

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Every special token; made when it is needed, which takes seconds where there are tens of thousands."""
        longest_first = sorted(self.special_tokens, key=lambda name: (-len(name), name))
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _digest(self) -> str:
        canonical = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


class ClosedTokenizer(Tokenizer):
    """A vocabulary of whole texts that may lack some: what it lacks becomes `<|unk|>`, which decodes to U+FFFD."""

    def __init__(self, tokens: list[str], special_tokens: dict[str, int], source: str) -> None:
        """AlphaError names `source` when there is no `<|unk|>`."""
        unknown = special_tokens.get(UNKNOWN)
        if unknown is None:
            raise malformed(source, f"it has no special token {UNKNOWN}")
        token_bytes = [token.encode() for token in tokens]
        token_bytes[unknown] = "\ufffd".encode()
        super().__init__(token_bytes, special_tokens)
        self.tokens = tokens
        self.ordinary = {token: index for index, token in enumerate(tokens) if token not in special_tokens}

    def to_mapping(self) -> dict[str, Any]:
        return artifact(self.kind, self.tokens, self.special_tokens)


def artifact(kind: str, tokens: Iterable[str], special_tokens: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """The JSON object of a tokenizer: `tokens` spells every id in order, special tokens verbatim."""
    head = {"format": ARTIFACT_FORMAT, "version": ARTIFACT_VERSION, "kind": kind}
    return {**head, **more, "special_tokens": dict(special_tokens), "tokens": list(tokens)}


def malformed(source: str, problem: str) -> AlphaError:
    """The error for a tokenizer file that cannot be used; `source` names the file."""
    return AlphaError(f"The tokenizer {source} cannot be used: {problem}. Build it again or give another file.")


def read_vocabulary(mapping: Mapping[str, Any], source: str) -> tuple[list[str], dict[str, int]]:
    """The tokens in order of their ids and the special tokens of an artifact. AlphaError names what is wrong."""
    if mapping.get("version") != ARTIFACT_VERSION:
        raise malformed(
            source, f"its version is {shown(mapping.get('version'))} and this Alpha reads {ARTIFACT_VERSION}"
        )
    return check_vocabulary(mapping.get("tokens"), mapping.get("special_tokens"), source)


def check_vocabulary(tokens: Any, special_tokens: Any, source: str) -> tuple[list[str], dict[str, int]]:
    """Both arguments with their types proven: unique, not empty, valid Unicode, special ids in place."""
    if not isinstance(tokens, list) or not isinstance(special_tokens, dict):
        raise malformed(source, "it has no list of tokens with an object of special tokens")
    if len(tokens) > MAX_VOCABULARY:
        raise malformed(source, f"it has {len(tokens):,} tokens, more than the {MAX_VOCABULARY:,} that are accepted")
    for index, token in enumerate(tokens):
        if not isinstance(token, str) or not token or not is_unicode(token):
            raise malformed(source, f"token {index} is not a text of at least one character")
    if len(set(tokens)) != len(tokens):
        raise malformed(source, "two of its tokens are the same")
    for name, token_id in special_tokens.items():
        if type(token_id) is not int or not 0 <= token_id < len(tokens) or tokens[token_id] != name:
            raise malformed(source, f"special token {shown(name)} is not at the id that it claims")
    if not any(spelling in special_tokens for spelling in END_OF_TEXT_SPELLINGS):
        raise malformed(source, f"it has no special token {' or '.join(END_OF_TEXT_SPELLINGS)} to end a document")
    return tokens, special_tokens


def shown(value: Any) -> str:
    """An outside value for an error message: short, however long or deep it is."""
    return reprlib.repr(value)


def is_unicode(text: str) -> bool:
    """Whether a str can be written as UTF-8: lone surrogates cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
