"""Articles, mixtures of every kind of text, and concordances.

What an article (the domain fine_corpus) tells of figures follows from others in it, and what it says of the real world
comes from tables. A mixture (the domain chaos) joins tables, code, logs, lists and letters with pieces of the other
domains. A concordance shows keywords in context, each line a word between its neighbours, the keywords in one column:
of generated text or, reading them twice, of files. Source of the form: Luhn, "Keyword-in-Context Index for Technical
Literature", 1960.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
from alpha.datagen_grammar import Chooser, items
from alpha.datagen_music import chart, tune
from alpha.datagen_stories import market_day, tell
from alpha.errors import UsageError

# --- articles and mixtures ------------------------------------------------------------------------------------------


def article(c: Chooser) -> str:
    """A heading, and paragraphs about an invented place or person, a number, a year, a figure or a substance."""
    return c.write(f"articles.{c.write('articles.article_kind')}_article")


def fine_corpus(c: Chooser) -> str:
    """A document of the domain fine_corpus: one to three articles."""
    style = c.below(3)
    articles = [article(c) for _ in range(c.pick((1, 1, 2, 3)))]
    headings = [each.partition("\n\n")[0] for each in articles]
    if style == 1:
        articles = [f"# {each}" for each in articles]
    elif style == 2:
        articles = [each.partition("\n\n")[2] for each in articles]
    if len(articles) > 1 and c.chance(60):
        articles.append(f"See also: {'; '.join(headings)}.")
    return "\n\n".join(articles)


def _beginning(c: Chooser) -> str:
    heading, *text = article(c).split("\n\n")
    return "\n".join([f"## {heading}", *text[:2]])


_BORROWED: dict[str, Callable[[Chooser], str]] = {
    "article": _beginning, "market_day": market_day, "chart": chart, "tune": lambda c: tune(c, c.between(1, 999)),
    "story": lambda c: tell(c, 1),
}  # fmt: skip


def piece(c: Chooser, kind: str) -> str:
    """A piece of a kind that the list "chaos.kind" has."""
    return _BORROWED[kind](c) if kind in _BORROWED else c.write(f"chaos.{kind}")


def chaos(c: Chooser) -> str:
    """A document of the domain chaos: one to four pieces of different kinds."""
    return "\n\n".join([piece(c, kind) for kind in c.sample(items("chaos.kind"), c.between(1, 4))])


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


def concordance(c: Chooser) -> str:
    """A document of the domain concordance: some words of a generated text."""
    articles = [] if c.chance(60) else [article(c).partition("\n\n")[2] for _ in range(c.between(3, 6))]
    text = " ".join(articles) or tell(c, 2)
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
