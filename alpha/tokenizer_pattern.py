"""Dividing a text into pieces before the vocabulary is applied: words, numbers, punctuation, whitespace.

Concatenated in order, the pieces are the text. A piece never holds a space after its first character unless it is all
whitespace, so a text can be cut before any space that follows something else, and long texts are divided in segments
of bounded size.

Letters, marks and numbers are those of the Unicode version that the `regex` package carries. Characters that were
assigned after the Unicode version of another implementation are the only ones that the two may divide differently.
"""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from alpha.errors import percent

SEGMENT = 1 << 19
"""Characters after which a text is cut at the next safe place."""

MAX_PIECES = 1 << 20
MAX_CHARACTERS = 1 << 23
_PENDING_PIECES = 1 << 18
_PENDING_CHARACTERS = 1 << 22

_SAFE_CUT = re.compile(r"\S(?= )")

Cuts = tuple[re.Pattern[str], ...]
"""Where a text may be cut without changing its tokens: before each match, by preference the earlier expression's.

A match is one character that depends on no character after it.
"""

LINE_CUT = re.compile(r"[\r\n](?<=\S.)", re.DOTALL)
"""Before a line break after something visible: for expressions whose pieces never go on from that into whitespace."""

INNER_CUT = re.compile(r"[ ,.;:!?\u3001\u3002\uff0c\uff01\uff1a\uff1b\uff1f](?:(?<=\S )|(?<=[^\W_][^ ]))")
"""Before a space after something visible, and before punctuation after a letter or digit: for every expression here."""

CUTS: Cuts = (LINE_CUT, INNER_CUT)
_UNICODE_CLASSES = {"LETTER": r"\p{L}", "MARK": r"\p{M}", "NUMBER": r"\p{N}", "SPACE": r"\s"}
_ASCII_CLASSES = {"LETTER": "A-Za-z", "MARK": "", "NUMBER": "0-9", "SPACE": r"\t-\r "}


class Pattern:
    """A regular expression whose matches are the pieces of a text.

    `template` names character classes in capitals, only inside brackets. From it come two equal expressions: one for
    all of Unicode, and one for ASCII texts that the standard library's `re` runs twice as fast. `published` is the
    same expression as tokenizer.json files of the ecosystem spell it. `cuts` are places that no piece reaches across.
    """

    def __init__(self, template: str, published: str, cuts: Cuts = CUTS) -> None:
        self.published = published
        self.cuts = cuts
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


def count_pieces(
    texts: Iterable[str], pattern: Pattern, warn: Callable[[str], None] = lambda sentence: None
) -> Counter[str]:
    """How often each piece occurs in all texts together, without holding the texts.

    Memory is bounded: when there are more than MAX_PIECES distinct pieces, or their characters are more than
    MAX_CHARACTERS, half of that is kept: the most frequent, and of equally frequent ones those whose CRC-32 is least,
    which is a fair sample of them. So of a very large corpus the counts of rare pieces are too low, or 0; `warn` is
    told how much was left out. The same texts in the same order give the same counts.
    """
    counts: Counter[str] = Counter()
    pending: list[str] = []
    seen = counted = 0
    is_sample = False
    for text in texts:
        seen += len(text)
        for pieces in pattern.segments(text):
            pending += pieces
            if len(pending) >= _PENDING_PIECES or seen - counted >= _PENDING_CHARACTERS:
                counts.update(pending)
                pending = []
                counted = seen
                if _are_too_many(counts):
                    _drop_rarest(counts)
                    is_sample = True
    counts.update(pending)
    if is_sample or _are_too_many(counts):
        _drop_rarest(counts)  # of the last texts no more than of the others
    left_out = 1 - sum(len(piece) * count for piece, count in counts.items()) / max(1, seen)
    if left_out:
        warn(
            f"The corpus has more different words than are counted at once: the tokenizer is built from a sample, "
            f"without {percent(left_out)} of the text, all of it rare words."
        )
    return counts


def _are_too_many(counts: Counter[str]) -> bool:
    return len(counts) > MAX_PIECES or sum(map(len, counts)) > MAX_CHARACTERS


def _drop_rarest(counts: Counter[str]) -> None:
    """Bring the pieces down to half of what may be held."""
    pieces_by_count: Counter[int] = Counter()
    characters_by_count: Counter[int] = Counter()
    for piece, count in counts.items():
        pieces_by_count[count] += 1
        characters_by_count[count] += len(piece)
    room, space = MAX_PIECES // 2, MAX_CHARACTERS // 2
    lowest = max(pieces_by_count) + 1  # of those that are kept to the last one
    for count in sorted(pieces_by_count, reverse=True):
        if pieces_by_count[count] > room or characters_by_count[count] > space:
            break
        room -= pieces_by_count[count]
        space -= characters_by_count[count]
        lowest = count
    in_part = max((count for count in pieces_by_count if count < lowest), default=0)
    candidates = [piece for piece, count in counts.items() if count == in_part]
    candidates.sort(key=lambda piece: (zlib.crc32(piece.encode("utf-8", "surrogatepass")), piece))
    sample = set()
    for piece in candidates:
        if room == 0 or len(piece) > space:
            break
        room -= 1
        space -= len(piece)
        sample.add(piece)
    for piece in [piece for piece, count in counts.items() if count < lowest and piece not in sample]:
        del counts[piece]


def _with_classes(template: str, classes: dict[str, str]) -> str:
    for name, members in classes.items():
        template = template.replace(name, members)
    return template


GPT2 = Pattern(
    r"'(?:[sdmt]|ll|ve|re)| ?[LETTER]+| ?[NUMBER]+| ?[^SPACELETTERNUMBER]+|[SPACE]+(?![^SPACE])|[SPACE]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
"""Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (encoder.py of the release)."""

_LLAMA3_TEMPLATE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\nLETTERNUMBER]?[LETTER]+|[NUMBER]{1,3}| ?[^SPACELETTERNUMBER]+[\r\n]*"
    r"|[SPACE]*[\r\n]+|[SPACE]+(?![^SPACE])|[SPACE]+"
)
LLAMA3 = Pattern(
    _LLAMA3_TEMPLATE,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    cuts=(re.compile(r"\S(?<=[\r\n].)", re.DOTALL), INNER_CUT),  # line breaks belong to what is before them
)
"""The expression in the tokenizer.json of Llama 3 (2024) and GPT-4; contractions in capitals, digits in threes, line
ends."""

QWEN = Pattern(
    _LLAMA3_TEMPLATE.replace("{1,3}", ""),
    LLAMA3.published.replace("{1,3}", ""),
    cuts=LLAMA3.cuts,
)
"""The expression in the tokenizer.json of Qwen 2 and 3: Llama 3's with single digits."""

GPT2_DIGITS = Pattern(
    r"'(?:[sdmt]|ll|ve|re)| ?[LETTER]+|[NUMBER]| ?[^SPACELETTERNUMBER]+|[SPACE]+(?=[NUMBER])"
    r"|[SPACE]+(?![^SPACE])|[SPACE]+",
    "",
)
"""GPT-2's after each digit was made a piece of its own, as in SmolLM and StarCoder; a tokenizer.json says that in two
steps."""

WORDS = Pattern(
    r" ?[LETTERMARKNUMBER_]+| ?[^SPACELETTERMARKNUMBER_]|[SPACE]",
    r" ?[\p{L}\p{M}\p{N}_]+| ?[^\s\p{L}\p{M}\p{N}_]|\s",
)
"""A word or one punctuation mark, each with the space before it; any other whitespace one character at a time."""

CHARACTERS = r"[\s\S]"
"""Any one character, as tokenizer.json files spell it."""

BYTE_LEVEL_PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3, "qwen": QWEN, "gpt2_digits": GPT2_DIGITS}
"""Those that byte-level BPE may use, by the name in its artifact."""
