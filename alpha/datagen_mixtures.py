"""Documents made of other documents: mixtures of every kind of text, and concordances.

A mixture (the domain chaos) joins tables, code, logs, lists and letters with pieces of the other domains. A concordance
shows keywords in context, each line a word between its neighbours, the keywords in one column: of generated text or,
reading them twice, of files. Source of the form: Luhn, "Keyword-in-Context Index for Technical Literature", 1960.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from alpha.datagen_articles import article_text
from alpha.datagen_files import (
    DocumentWriter,
    Report,
    Summary,
    UnreadableError,
    paragraphs,
    skip,
    source_files,
    unchanged,
    write_documents,
)
from alpha.datagen_grammar import PLACES, Chooser, items, plural
from alpha.datagen_music import chart, tune
from alpha.datagen_stories import market_day, people, tell
from alpha.errors import UsageError

# --- mixtures -------------------------------------------------------------------------------------------------------

_OBJECTS, _FOODS = items("words.object"), items("words.food")
_FUNCTIONS: tuple[tuple[str, Callable[[int, int, int], int]], ...] = (  # lines of a body, and what it computes
    ("return {a} * x + {b}", lambda x, a, b: a * x + b),
    ("if x > {b}:/    return x - {b}/return {a} * x", lambda x, a, b: x - b if x > b else a * x),
    ("total = 0/for number in range(x):/    total += number * {a}/return total", lambda x, a, b: a * x * (x - 1) // 2),
    ("return x % {a} + x // {a}", lambda x, a, b: x % a + x // a),
    ("while x >= {a}:/    x -= {a}/return x + {b}", lambda x, a, b: x % a + b),
)


def _lines(c: Chooser, symbol: str, fewest: int, most: int) -> list[str]:
    return [c.write(symbol) for _ in range(c.between(fewest, most))]


def _code(c: Chooser) -> str:
    """A Python function with calls and their results."""
    name, a, b = f"{c.write('chaos.verb')}_{c.pick(_OBJECTS)}", c.between(2, 20), c.between(1, 50)
    body, compute = c.pick(_FUNCTIONS)
    lines = [f"def {name}(x):"]
    if c.chance(50):
        lines.append(f'    """{c.write("chaos.task").capitalize()}."""')
    lines += [f"    {line}" for line in body.format(a=a, b=b).split("/" if "//" not in body else "\n")]
    arguments = sorted({c.between(0, 40) for _ in range(3)})
    return "\n".join([*lines, "", *[f">>> {name}({x})\n{compute(x, a, b)}" for x in arguments]])


def _strings(c: Chooser) -> str:
    """An interactive Python session on a list of words."""
    name, words, other = c.write("chaos.variable"), c.sample(_OBJECTS, c.between(3, 5)), c.pick(_FOODS)
    calls: list[tuple[str, object]] = [
        (f"len({name})", len(words)),
        (f"{name}[-1]", words[-1]),
        (f"sorted({name})", sorted(words)),
        (f"[len(word) for word in {name}]", [len(word) for word in words]),
        (f"max({name})", max(words)),
        (f"{name}[0].upper()", words[0].upper()),
        (f"{name}[1][::-1]", words[1][::-1]),
        (f"{other!r} in {name}", other in words),
        (f"'-'.join({name})", "-".join(words)),
    ]
    shown = [f">>> {call}\n{result!r}" for call, result in c.sample(calls, c.between(2, 5))]
    return "\n".join([f">>> {name} = {words!r}", *shown])


def _record(c: Chooser) -> str:
    """A JSON object."""
    someone = people(c, 1)[0]
    values = {
        "name": f"{someone.name} {someone.surname}", "trade": someone.trade, "age": c.between(18, 90),
        "town": c.pick(PLACES), "married": c.chance(50), "likes": c.sample(_FOODS, c.between(1, 4)),
        "pets": {c.write("words.animal"): c.between(1, 5)}, "phone": None,
    }  # fmt: skip
    keys = c.sample(list(values), c.between(3, 7))
    return json.dumps({key: values[key] for key in keys}, indent=c.pick((None, 2, 2)))


def _log(c: Chooser) -> str:
    """Log lines in the order of their times."""
    moment, lines = datetime(2024, 1, 1) + timedelta(seconds=c.below(400 * 24 * 3600)), []
    for line in _lines(c, "chaos.log_line", 4, 10):
        moment += timedelta(seconds=c.pick((1, 2, 5, 30, 300)) * c.between(1, 9))
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S} {line}")
    return "\n".join(lines)


def _play(c: Chooser) -> str:
    """Two people counting out something between them."""
    (one, other), count = (person.name.upper() for person in people(c, 2)), c.between(5, 60)
    lines = [f"{one}: I have {count} {plural(c.pick(_OBJECTS))}."]
    for _ in range(c.between(2, 5)):
        amount, more = c.between(1, max(count - 1, 1)), c.between(1, 20)
        if count > 1 and c.chance(60):
            count -= amount
            lines += [f"{other}: Give me {amount}.", f"{one}: Then I have {count} left."]
        else:
            count += more
            lines += [f"{other}: Take {more} of mine.", f"{one}: Now I have {count}."]
    return "\n".join([*lines, f"{other}: {c.write('chaos.sentence')}"])


def _article(c: Chooser) -> str:
    heading, *text = article_text(c).split("\n\n")
    return "\n".join([f"## {heading}", *text[:2]])


_CODED: dict[str, Callable[[Chooser], str]] = {
    "code": _code, "strings": _strings, "record": _record, "log": _log, "play": _play, "article": _article,
    "market_day": market_day, "chart": chart, "tune": lambda c: tune(c, c.between(1, 999)),
    "story": lambda c: tell(c, 1),
}  # fmt: skip


def piece(c: Chooser, kind: str) -> str:
    """A piece of a kind that the list "chaos.kind" has."""
    return _CODED[kind](c) if kind in _CODED else c.write(f"chaos.{kind}")


def chaos(index: int, seed: int) -> str:
    """Document number `index` of the domain chaos: one to four pieces of different kinds."""
    chooser = Chooser("chaos", index, seed)
    return "\n\n".join([piece(chooser, kind) for kind in chooser.sample(items("chaos.kind"), chooser.between(1, 4))])


# --- concordances ---------------------------------------------------------------------------------------------------

_AROUND = ".,;:!?\"'()[]{}<>*_`~“”\u2018\u2019«»…|/\\=+#-\u2013—"
_FUNCTION_WORDS = frozenset(items("words.function_word"))
_LONGEST_WORD = 64  # characters of a token that are looked at, so that contexts are small
_MOST_WORDS = 1_000_000  # distinct words counted at a time; the rarest are dropped beyond

Context = tuple[str, str, str]
"""Left neighbours, the word as it stands, right neighbours."""


@dataclass(frozen=True)
class Band:
    """Which words become keywords, and how much is shown of them."""

    context: int  # words on each side
    keywords: int  # at most so many, the most frequent of the band
    lines: int  # at most so many of each, spread evenly over the text
    min_count: int
    max_count: int  # 0: a five-hundredth of all words, which leaves out function words


def key_of(token: str) -> str:
    """The word in a token, for comparison: without surrounding punctuation and in small letters; may be empty."""
    word = token.strip(_AROUND).casefold()
    return word if any(map(str.isalpha, word)) else ""


def context_of(tokens: list[str], position: int, words: int) -> Context:
    """The neighbours of one token, `words` on each side or fewer at the ends."""
    left = " ".join(tokens[max(position - words, 0) : position])
    return left, tokens[position], " ".join(tokens[position + 1 : position + 1 + words])


def block(keyword: str, contexts: Iterable[Context]) -> str:
    """The lines of one keyword under it, with the keyword in the same column of each."""
    lines = list(contexts)
    width = max(len(left) for left, _, _ in lines)
    return "\n".join([keyword, *[f"{left:>{width}}  {word}  {right}".rstrip() for left, word, right in lines]])


def concordance(index: int, seed: int) -> str:
    """Concordance number `index` of the domain concordance: some words of a generated text."""
    c = Chooser("concordance", index, seed)
    if c.chance(60):
        text = tell(c, 2)
    else:
        text = " ".join([article_text(c).partition("\n\n")[2] for _ in range(c.between(3, 6))])
    width, tokens, places = c.between(5, 9), text.split(), dict[str, list[int]]()
    for position, token in enumerate(tokens):
        key = key_of(token)
        if key and key not in _FUNCTION_WORDS:
            places.setdefault(key, []).append(position)
    frequent = [key for key, positions in places.items() if len(positions) > 1]
    rare = [key for key, positions in places.items() if len(positions) == 1]
    chosen = c.sample(frequent, min(c.between(3, 8), len(frequent)))
    chosen += c.sample(rare, min(c.between(4, 12), len(rare)))
    return "\n\n".join(
        [block(key, [context_of(tokens, place, width) for place in places[key][:12]]) for key in sorted(chosen)]
    )


def write_concordance(sources: str, out: Path, band: Band, limit: int, report: Report) -> Summary:
    """Write the concordance of `sources` to `out`, one document a keyword, in alphabetical order.

    Raises UsageError when no word is in the band, and for the same reasons as reading and writing do.
    """
    summary = Summary(out)
    readable: list[Path] = []
    counts, total = _count(source_files(sources, out, summary), readable, summary)
    highest = band.max_count or max(total // 500, band.min_count)
    eligible = [(-count, word) for word, count in counts.items() if band.min_count <= count <= highest]
    chosen = {word: -count for count, word in sorted(eligible)[: band.keywords]}
    if not chosen:
        raise UsageError(
            f"No word occurs between {band.min_count} and {highest} times in --sources={sources}; set --minCount and "
            "--maxCount."
        )
    contexts = _collect(readable, chosen, band)
    summary.keywords = len(chosen)

    def produce(writer: DocumentWriter) -> None:
        for word in sorted(chosen):
            if writer.full:
                return
            writer.document([block(word, contexts[word])])

    write_documents(out, limit, summary, report, produce)
    return summary


def _count(files: list[Path], readable: list[Path], summary: Summary) -> tuple[Counter[str], int]:
    """How often each word occurs, and how many words there are; files that are text are appended to `readable`.

    Of more distinct words than `_MOST_WORDS` the rarest are dropped on the way (Manku and Motwani's lossy counting,
    2002, without its error terms), so rare words of an enormous corpus are undercounted.
    """
    counts: Counter[str] = Counter()
    total = 0
    for path in files:
        found: Counter[str] = Counter()
        try:
            words_of_file = 0
            for tokens in _tokens(path):
                found.update(filter(None, map(key_of, tokens)))
                words_of_file += len(tokens)
                _drop_rarest(found)
        except UnreadableError as reason:
            skip(summary, str(reason))
            continue
        readable.append(path)
        total += words_of_file
        counts.update(found)
        _drop_rarest(counts)
    summary.files_read = len(readable)
    return counts, total


def _drop_rarest(counts: Counter[str]) -> None:
    lowest = 1
    while len(counts) > _MOST_WORDS:
        for word in [word for word, count in counts.items() if count <= lowest]:
            del counts[word]
        lowest += 1


def _tokens(path: Path) -> Iterator[list[str]]:
    """The words of each paragraph, over-long ones cut. Raises UnreadableError."""
    for paragraph in paragraphs(path):
        if paragraph is not None:
            yield [token[:_LONGEST_WORD] for token in paragraph.split()]


def _collect(files: list[Path], chosen: dict[str, int], band: Band) -> dict[str, list[Context]]:
    """For each chosen word (with its count) contexts at even distances through all files."""
    strides = {word: max(count // band.lines, 1) for word, count in chosen.items()}
    seen = dict.fromkeys(chosen, 0)
    contexts: dict[str, list[Context]] = {word: [] for word in chosen}
    for path in files:
        for tokens in unchanged(path, _tokens(path)):
            for position, token in enumerate(tokens):
                word = key_of(token)
                stride = strides.get(word)
                if stride is None:
                    continue
                if seen[word] % stride == 0 and len(contexts[word]) < band.lines:
                    contexts[word].append(context_of(tokens, position, band.context))
                seen[word] += 1
    return contexts
