"""Random choices for generated documents, the grammar that words them, and how numbers and lists are put into words.

A document's choices depend only on (name of the generator, seed, document index), so documents can be made in any order
and the first documents of a large file are those of a small one. Sentences, words and facts are in the files
`datagen_*.txt`; `Grammar` says how they are written.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from math import isqrt
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from alpha import installation
from alpha.errors import AlphaError
from alpha.rng import random_bits, stream_of

T = TypeVar("T")

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


@lru_cache(maxsize=64)
def _stream(name: str) -> int:
    return stream_of("datagen", name)


class Chooser:
    """The random choices of one document, each a function of the generator's name, the seed, the index and the past."""

    __slots__ = ("_functions", "_word", "index")

    def __init__(self, name: str, index: int, seed: int) -> None:
        self.index = index
        self._word = _words(seed, _stream(name), index).__next__
        self._functions = FUNCTIONS | {
            "between": self.between, "chance": self.chance, "sample": self.sample, "write": self.write,
            "pick": lambda *options: self.pick(options if len(options) > 1 else options[0]),
        }  # fmt: skip

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

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different positions of the options, in random order (Fisher and Yates)."""
        remaining = list(options)
        length = len(remaining)
        for place in range(count):
            other = place + (self._word() * (length - place) >> 32)
            remaining[place], remaining[other] = remaining[other], remaining[place]
        return remaining[:count]

    def write(self, symbol: str, /, **values: object) -> str:
        """A text of a symbol such as "novels.setting"; see `Grammar`."""
        return self.expand(symbol, values)

    def expand(self, symbol: str, values: Mapping[str, object]) -> str:
        """As `write`, for values that are at hand in a dictionary."""
        return _expand(self, GRAMMAR.rules[symbol], values)

    def values(self, rule: "_Rule", given: Mapping[str, object]) -> Mapping[str, object]:
        """What a text of a rule may use: the values that are given, and those that the rule computes from them. Whoever
        gives the last of these gives all."""
        if not rule.lets or rule.lets[-1][0][-1] in given:  # computed already
            return given
        scope: dict[str, Any] = {**self._functions, **given}
        scope["expand"] = lambda symbol: self.expand(symbol, scope)
        for names, code in rule.lets:
            if names[-1] not in given:
                found = eval(code, scope)  # of a file of this package
                parts = [found] if len(names) == 1 else map(found.get, names) if isinstance(found, dict) else found
                scope.update(zip(names, parts, strict=True))
        return scope


# --- the grammar ----------------------------------------------------------------------------------------------------

_SECTION = re.compile(r"\[([^]]+?)(: words)?\]")
_PLACEHOLDER = re.compile(r"\{(\^?)([as] )?([^{} ]+)\}")


def read_lists(text: str) -> dict[str, tuple[str, ...]]:
    """The lists of a data file. `[name]` begins a list with an item on each line, `[name: words]` one whose items are
    single words. An indented line continues the one before it, `\\n` in an item is a line break, and a line that begins
    with # is a comment. Raises ValueError for what is neither."""
    lists: dict[str, list[str]] = {}
    name, of_words = "", False
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if section := _SECTION.fullmatch(line):
            name, of_words = section[1], bool(section[2])
            if name in lists:
                raise ValueError(f"[{name}] occurs twice")
            lists[name] = []
        elif not name:
            raise ValueError(f"{line!r} stands before the first [name]")
        elif of_words:
            lists[name] += line.split()
        elif line[0] == " ":
            lists[name][-1] += f" {line.strip()}"
        else:
            lists[name].append(line.rstrip())
    return {name: tuple(re.sub(r" ?\\n ?", "\n", item) for item in items) for name, items in lists.items()}


class Grammar:
    """Context-free rules: a list is a symbol, its items are the ways to write it, and `{name}` in an item stands for
    a text of that list, or for a value that the code gives where no list has the name.

    A line `= name: expression` in a list is a value that is computed before a text is written, unless the code gives
    it: `= half: number // 2`. Of several names each takes its part of a sequence, or the column of that name of a
    table's row. Expressions are Python's, of the values above them, the random choices of `Chooser`, `FUNCTIONS`, and
    `expand("file.name")`, a text of another list with the values of this one.

    Names are looked for in the item's own file and then in the file `words`; the code says "file.name". One that
    neither the lists nor the values know is a KeyError. `{a name}` puts "a" or "an" before the text, `{s name}` makes
    a noun plural, `{^name}` or `{^a name}` gives a capital letter, and `{name:,}` formats a number.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        written = {f"{file}.{name}": items for file in files for name, items in read_lists(files[file]).items()}
        self.lists = {symbol: tuple(item for item in items if item[:2] != "= ") for symbol, items in written.items()}
        if starts := self.lists.get("words.place_start"):  # a letter that meets itself is written once: Oldham
            ends = self.lists["words.place_end"]
            self.lists["words.place"] = tuple(
                start + (end[1:] if end[0] == start[-1] else end) for start in starts for end in ends
            )
        self.rules = {symbol: _Rule() for symbol in self.lists}
        for symbol, items in self.lists.items():
            self.rules[symbol] += [self._compile(symbol.split(".")[0], item) for item in items]
            for line in (item[2:] for item in written.get(symbol, ()) if item[:2] == "= "):
                names, _, expression = line.partition(": ")
                for name in names.split():
                    if name in FUNCTIONS or self.resolve(symbol.split(".")[0], name):
                        raise ValueError(f"a value of [{symbol}] cannot be called {name}, as a function or a list is")
                self.rules[symbol].lets.append((names.split(), compile(expression.strip(), symbol, "eval")))

    def resolve(self, file: str, name: str) -> str | None:
        """The symbol that `{name}` stands for in a file; None when it is a value."""
        return next((symbol for symbol in (f"{file}.{name}", f"words.{name}") if symbol in self.lists), None)

    def _compile(self, file: str, item: str) -> "_Item":
        literal, *rest = _PLACEHOLDER.split(item)
        if "{" in "".join(rest[3::4]) + literal:
            raise ValueError(f"a brace is not closed or does not hold a name in {item!r} of {file}")
        parts = []
        for capital, form, name, following in zip(*(iter(rest),) * 4, strict=True):
            symbol = self.resolve(file, name)
            change = _CHANGES.get(capital + form if form else capital)
            parts.append((self.rules[symbol] if symbol else None, name, change, following))
        if not parts:
            return literal
        if all(rule is None and change is None for rule, _, change, _ in parts):
            return item.format_map  # the fastest way, where nothing is left to chance
        return literal, tuple(parts)


_Change = Callable[[str], str]
_Part = tuple["_Rule | None", str, _Change | None, str]
_Item = str | Callable[[Mapping[str, object]], str] | tuple[str, tuple[_Part, ...]]
"""A text as it is, a template that needs values alone, or a beginning and parts: rule, name, change, what follows."""


class _Rule(list[_Item]):
    """The ways to write a symbol, and what is computed before: names and an expression."""

    def __init__(self) -> None:
        super().__init__()
        self.lets: list[tuple[list[str], CodeType]] = []


def _expand(chooser: Chooser, rule: _Rule, values: Mapping[str, object]) -> str:
    values = chooser.values(rule, values)
    item = chooser.pick(rule) if len(rule) > 1 else rule[0]
    if isinstance(item, str):
        return item
    if not isinstance(item, tuple):
        return item(values)
    text, parts = item
    for inner_rule, name, change, following in parts:
        if inner_rule is None:
            value, _, form = name.partition(":")
            inner = format(values[value], form)
        else:
            inner = _expand(chooser, inner_rule, values)
        text += (inner if change is None else change(inner)) + following
    return text


# --- English --------------------------------------------------------------------------------------------------------


def capitalized(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def article(word: str) -> str:
    """The word with "a" or "an" before it, by sound for the words of the lists: an hour, a unicorn, an umbrella."""
    lower = word.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("eu", "one", "uni", "use", "usu"))
    silent_h = lower.startswith(("heir", "honest", "honour", "hour"))
    return f"an {word}" if vowel or silent_h else f"a {word}"


def plural(word: str) -> str:
    """The plural of a noun of the lists."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man"):
        return f"{word[:-2]}en"
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


_CHANGES: dict[str, _Change] = {
    "^": capitalized, "a ": article, "s ": plural,
    "^a ": lambda text: capitalized(article(text)), "^s ": lambda text: capitalized(plural(text)),
}  # fmt: skip


def in_words(number: int) -> str:
    """A whole number from 0 to 999,999 in English words: 342 is "three hundred and forty-two"."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_UNITS[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{in_words(thousands)} thousand" + (joint + in_words(rest) if rest else "")


def ordinal(number: int) -> str:
    """1 is "1st", 12 is "12th", 23 is "23rd"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def roman(number: int) -> str:
    """A whole number from 1 to 3999 as a Roman numeral."""
    text = ""
    for value, sign in zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), _ROMAN, strict=True):
        count, number = divmod(number, value)
        text += sign * count
    return text


def listed(words: Sequence[object]) -> str:
    """The words as an English list: "a", "a and b", "a, b and c"."""
    texts = [str(word) for word in words]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)


def rounded(numerator: int, denominator: int) -> int:
    """The quotient of two natural numbers, rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)


def decimal(value: int, places: int) -> str:
    """A natural number of tenths (places 1), hundredths (2) and so on: 123456 with 2 places is "1,234.56"."""
    whole, fraction = divmod(value, 10**places)
    return f"{whole:,}.{fraction:0{places}d}"


def quotient(numerator: int, denominator: int, places: int) -> str:
    """The quotient of two natural numbers with so many decimal places, rounded half up."""
    return decimal(rounded(numerator * 10**places, denominator), places)


# --- what expressions compute ---------------------------------------------------------------------------------------


def in_years(count: int) -> str:
    """1 is "1 year", 2 is "2 years"."""
    return "1 year" if count == 1 else f"{count} years"


def change_in_words(old: int, new: int) -> str:
    """How a number changed, in per cent with one decimal place."""
    if new == old:
        return "the same number"
    return f"{'an increase' if new > old else 'a decrease'} of {quotient(abs(new - old) * 100, old, 1)} per cent"


def day_of(day: date) -> str:
    """A day of the year, such as "4 May"."""
    return f"{day.day} {items('words.month')[day.month - 1]}"


def factors_of(number: int) -> list[int]:
    """The prime factors of a number above 1, each as often as it divides."""
    for divisor in range(2, isqrt(number) + 1):
        if number % divisor == 0:
            return [divisor, *factors_of(number // divisor)]
    return [number]


def atoms_of(formula: str) -> list[tuple[str, int]]:
    """The elements of a chemical formula and their numbers: H2O is H 2, O 1."""
    return [(symbol, int(count or 1)) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)]


def session(program: str, calls: Sequence[str]) -> str:
    """What a Python prompt shows of calls after a program; both are texts of this package's lists."""
    scope: dict[str, object] = {}
    exec(program, scope)
    return "\n".join([f">>> {call}\n{eval(call, scope)!r}" for call in calls])


# --- the data -------------------------------------------------------------------------------------------------------


def data_files(folder: Path) -> dict[str, str]:
    """The texts of a folder's data files, by what comes after "datagen_"."""
    if paths := sorted(folder.glob("datagen_*.txt")):
        return {path.stem.removeprefix("datagen_"): path.read_text(encoding="utf-8") for path in paths}
    raise AlphaError(f"The files datagen_*.txt are missing from {folder}; install Alpha again.")


def items(symbol: str) -> tuple[str, ...]:
    """The items of a list as they are written, such as those of "words.animal"."""
    return GRAMMAR.lists[symbol]


@cache
def table(symbol: str) -> tuple[dict[str, str], ...]:
    """The rows of a list that is a table, by the names in its first line; columns are divided by `|`."""
    names, *rows = (line.split(" | ") for line in items(symbol))
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


FUNCTIONS: dict[str, Any] = {
    **{each.__name__: each for each in (
        *(abs, all, dict, divmod, enumerate, int, isqrt, len, map, max, min, range, set, sorted, str, sum, zip),
        *(accumulate, date, datetime, pairwise, timedelta, article, capitalized, decimal, in_words, listed, ordinal),
        *(plural, quotient, roman, rounded, atoms_of, change_in_words, day_of, factors_of, in_years, session),
        *(items, table),
    )},
    "json": json.dumps, "lines": lambda texts, apart=1: ("\n" * apart).join(texts), "__builtins__": {},
    "element": lambda symbol: next(row for row in table("facts.element") if row["symbol"] == symbol),
}  # fmt: skip
"""What expressions of the data files may call beside the choices of the document."""

GRAMMAR = Grammar(data_files(installation.FILES))

_UNITS, _ROMAN = items("words.below_twenty"), items("words.roman_sign")
_TENS = ("", "", *items("words.tens"))
_IRREGULAR = {row["one"]: row["more"] for row in table("words.irregular_plural")}
