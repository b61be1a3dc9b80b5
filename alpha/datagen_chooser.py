"""Random choices for generated documents, and a small grammar that expands rules with them.

A document's choices depend only on (name of the generator, seed, document index), so documents can be made in any order
and the first documents of a large file are those of a small one. Knows nothing about what the documents say.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from alpha.datagen_words import (
    MEN,
    PLACE_ENDS,
    PLACE_STARTS,
    SURNAME_ENDS,
    SURNAME_STARTS,
    WOMEN,
    article,
    capitalized,
    plural,
)
from alpha.rng import random_bits, stream_of

T = TypeVar("T")

Generator = Callable[[int, int], str]
"""Makes document number `index` of the endless sequence that a seed stands for: (index, seed) to text."""

_GROUP = 64  # documents whose random words are drawn together: numpy's cost a call is spread over them
_BLOCK = 256  # random words that a document takes at a time


@lru_cache(maxsize=32)
def _block(seed: int, stream: int, group: int, block: int) -> list[int]:
    words: list[int] = random_bits(_GROUP * _BLOCK, seed, stream, group, block * _GROUP * _BLOCK).tolist()
    return words


def _words(seed: int, stream: int, index: int) -> Iterator[int]:
    group, member = divmod(index, _GROUP)
    block = 0
    while True:
        yield from _block(seed, stream, group, block)[member * _BLOCK : (member + 1) * _BLOCK]
        block += 1


class Chooser:
    """The random choices of one document, each a function of the generator's name, the seed, the index and the past."""

    __slots__ = ("_word",)

    def __init__(self, name: str, index: int, seed: int) -> None:
        self._word = _words(seed, _stream(name), index).__next__

    def below(self, limit: int) -> int:
        """A whole number from 0 to limit - 1 (limit at most 2^32)."""
        return self._word() * limit >> 32

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + (self._word() * (high - low + 1) >> 32)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self._word() * 100 >> 32 < percent

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all alike; repeat an option to make it likelier."""
        return options[self._word() * len(options) >> 32]

    def skewed(self, options: Sequence[T]) -> T:
        """One of the options, early ones likelier, as words are in a language: position is n u^2."""
        word = self._word()
        return options[(word * word >> 32) * len(options) >> 32]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different positions of the options, in random order (Fisher and Yates)."""
        remaining = list(options)
        length = len(remaining)
        for place in range(count):
            other = place + (self._word() * (length - place) >> 32)
            remaining[place], remaining[other] = remaining[other], remaining[place]
        return remaining[:count]

    def surname(self) -> str:
        """A surname of two parts, such as Thornfield."""
        return self.pick(SURNAME_STARTS) + self.pick(SURNAME_ENDS)

    def place(self) -> str:
        """A town's or river's name of two parts, such as Heronbridge."""
        start, end = self.pick(PLACE_STARTS), self.pick(PLACE_ENDS)
        return start + (end[1:] if end[0] == start[-1] else end)

    def first_name(self) -> str:
        """A first name, of a woman or a man alike."""
        return self.pick(WOMEN if self.chance(50) else MEN)


@lru_cache(maxsize=64)
def _stream(name: str) -> int:
    return stream_of("datagen", name)


_Part = tuple[str, bool, bool, bool]  # symbol, in the plural, with an article, with a capital letter
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class Grammar:
    """Context-free rules: a symbol names productions, and a production is text with `{symbol}` in it.

    `{a symbol}` puts "a" or "an" before the expansion, `{s symbol}` makes a noun plural and `{^symbol}` gives a capital
    letter. The values given to `expand` come before the rules, so that a document's state enters its sentences.
    """

    def __init__(self, rules: Mapping[str, Sequence[str]]) -> None:
        self._rules = {symbol: tuple(map(_compile, productions)) for symbol, productions in rules.items()}

    def expand(self, chooser: Chooser, symbol: str, values: Mapping[str, str]) -> str:
        """One text of the symbol. A symbol that neither `values` nor the rules know is a KeyError."""
        value = values.get(symbol)
        if value is not None:
            return value
        literal, parts = chooser.pick(self._rules[symbol])
        text = literal
        for (inner, in_plural, with_article, with_capital), following in parts:
            expansion = self.expand(chooser, inner, values)
            if in_plural:
                expansion = plural(expansion)
            if with_article:
                expansion = article(expansion)
            if with_capital:
                expansion = capitalized(expansion)
            text += expansion + following
        return text

    def symbols(self) -> set[str]:
        """Every symbol that some production uses, defined by a rule or expected among the values."""
        return {
            part[0]
            for productions in self._rules.values()
            for _, parts in productions
            for part, _ in parts
        }  # fmt: skip

    def defined(self) -> set[str]:
        """Every symbol that has a rule."""
        return set(self._rules)


def _compile(production: str) -> tuple[str, tuple[tuple[_Part, str], ...]]:
    literal, *rest = _PLACEHOLDER.split(production)
    parts = []
    for placeholder, following in zip(rest[::2], rest[1::2], strict=True):
        with_capital = placeholder.startswith("^")
        symbol = placeholder.removeprefix("^")
        name = symbol.removeprefix("a ").removeprefix("s ")
        parts.append(((name, symbol.startswith("s "), symbol.startswith("a "), with_capital), following))
    return literal, tuple(parts)
