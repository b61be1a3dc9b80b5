"""Dividing a text into pieces before the vocabulary is applied: words, numbers, punctuation, whitespace.

Concatenated in order, the pieces are the text. A piece never holds a space after its first character unless it is all
whitespace, so a text can be cut before any space that follows something else, and long texts are divided in segments
of bounded size. Knows nothing about tokens.

Letters, marks and numbers are those of the Unicode version that the `regex` package carries. Characters that were
assigned after the Unicode version of another implementation are the only ones that the two may divide differently.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

SEGMENT = 1 << 19
"""Characters after which a text is cut at the next safe place."""

MAX_PIECES = 1 << 20
MAX_CHARACTERS = 1 << 23
_PENDING_PIECES = 1 << 18

_SAFE_CUT = re.compile(r"\S(?= )")
_UNICODE_CLASSES = {"LETTER": r"\p{L}", "MARK": r"\p{M}", "NUMBER": r"\p{N}", "SPACE": r"\s"}
_ASCII_CLASSES = {"LETTER": "A-Za-z", "MARK": "", "NUMBER": "0-9", "SPACE": r"\t-\r "}


class Pattern:
    """A regular expression whose matches are the pieces of a text.

    `template` names character classes in capitals, only inside brackets. From it come two equal expressions: one for
    all of Unicode, and one for ASCII texts that the standard library's `re` runs twice as fast. `published` is the
    same expression as tokenizer.json files of the ecosystem spell it.
    """

    def __init__(self, template: str, published: str) -> None:
        self.published = published
        self._template = template

    def segments(self, text: str) -> Iterator[list[str]]:
        """The pieces in order, a list for each segment of the text."""
        start = 0
        while len(text) - start > SEGMENT:
            cut = _SAFE_CUT.search(text, start + SEGMENT - 1)
            if cut is None:
                break
            yield self._divide(text[start : cut.end()])
            start = cut.end()
        if start < len(text):
            yield self._divide(text[start:])

    def open_ending(self, text: str) -> str:
        """The last character of a text when a longer text has it at the beginning of a piece, and this text or its
        continuation divides otherwise: a space before a word, the last of several line breaks. Else nothing.
        """
        last = len(text) - 1
        if last < 0 or text[last].isalnum():
            return ""
        boundaries = self._boundaries(text)
        for following in ("a", "  a"):
            longer = self._boundaries(text + following)
            if last in longer and not (last in boundaries and len(text) in longer):
                return text[last]
        return ""

    def _boundaries(self, text: str) -> set[int]:
        lengths = (len(piece) for pieces in self.segments(text) for piece in pieces)
        return {0, *itertools.accumulate(lengths)}

    def _divide(self, segment: str) -> list[str]:
        return self._find_ascii(segment) if segment.isascii() else self._find_unicode(segment)

    @cached_property
    def _find_ascii(self) -> Callable[[str], list[str]]:
        return re.compile(_with_classes(self._template, _ASCII_CLASSES)).findall

    @cached_property
    def _find_unicode(self) -> Callable[[str], list[str]]:
        import regex

        find: Callable[[str], list[str]] = regex.compile(_with_classes(self._template, _UNICODE_CLASSES)).findall
        return find


def count_pieces(texts: Iterable[str], pattern: Pattern) -> Counter[str]:
    """How often each piece occurs in all texts together, without holding the texts.

    Memory is bounded: when there are more than MAX_PIECES distinct pieces, or their characters are more than
    MAX_CHARACTERS, the rarest are dropped until half of that is left, so that of a very large corpus the counts of rare
    pieces are too low. The same texts in the same order give the same counts.
    """
    counts: Counter[str] = Counter()
    pending: list[str] = []
    for text in texts:
        for pieces in pattern.segments(text):
            pending += pieces
            if len(pending) >= _PENDING_PIECES:
                counts.update(pending)
                pending = []
                _drop_rarest(counts)
    counts.update(pending)
    _drop_rarest(counts)
    return counts


def _drop_rarest(counts: Counter[str]) -> None:
    largest_rare_count = 1
    shrinking = False
    while True:
        share = max(len(counts) / MAX_PIECES, sum(map(len, counts)) / MAX_CHARACTERS)
        if share <= (0.5 if shrinking else 1.0):
            return
        shrinking = True
        for piece in [piece for piece, count in counts.items() if count <= largest_rare_count]:
            del counts[piece]
        largest_rare_count *= 2


def _with_classes(template: str, classes: dict[str, str]) -> str:
    for name, members in classes.items():
        template = template.replace(name, members)
    return template


GPT2 = Pattern(
    r"'(?:[sdmt]|ll|ve|re)| ?[LETTER]+| ?[NUMBER]+| ?[^SPACELETTERNUMBER]+|[SPACE]+(?![^SPACE])|[SPACE]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
"""Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (encoder.py of the release)."""

LLAMA3 = Pattern(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\nLETTERNUMBER]?[LETTER]+|[NUMBER]{1,3}| ?[^SPACELETTERNUMBER]+[\r\n]*"
    r"|[SPACE]*[\r\n]+|[SPACE]+(?![^SPACE])|[SPACE]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""The expression in the tokenizer.json of Llama 3 (2024); contractions in capitals, digits in threes, line ends."""

WORDS = Pattern(
    r" ?[LETTERMARKNUMBER_]+| ?[^SPACELETTERMARKNUMBER_]|[SPACE]",
    r" ?[\p{L}\p{M}\p{N}_]+| ?[^\s\p{L}\p{M}\p{N}_]|\s",
)
"""A word or one punctuation mark, each with the space before it; any other whitespace one character at a time."""

CHARACTERS = r"[\s\S]"
"""Any one character, as tokenizer.json files spell it."""

BYTE_LEVEL_PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3}
"""Those that byte-level BPE may use, by the name in its artifact."""
