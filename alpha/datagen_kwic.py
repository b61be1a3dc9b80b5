"""Concordances: keywords in context, each line showing a word between its neighbours, the keywords in one column.

Source of the form: Luhn, "Keyword-in-Context Index for Technical Literature", 1960. Made from generated text or,
reading them twice, from files.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alpha.datagen_chooser import Chooser
from alpha.datagen_encyclopaedia import ARTICLES
from alpha.datagen_output import DocumentWriter, Report, Summary, write_documents
from alpha.datagen_prose import tell
from alpha.datagen_sources import UnreadableError, paragraphs, skip, source_files, unchanged
from alpha.datagen_words import words
from alpha.errors import UsageError

_AROUND = ".,;:!?\"'()[]{}<>*_`~“”\u2018\u2019«»…|/\\=+#-\u2013—"
_FUNCTION_WORDS = frozenset(
    words("""a an and any as at be been but by did do for from had has have he her him his i if in into is it its me
        my no nor not of off on or our out she so than that the their them then there they this to too up us was we
        were what when where which while who why will with would you your""")
)
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


def generate(index: int, seed: int) -> str:
    """Concordance number `index`: some words of a generated text."""
    chooser = Chooser("concordance", index, seed)
    if chooser.chance(60):
        text = tell(chooser, 2)
    else:
        text = " ".join([" ".join(chooser.pick(ARTICLES)(chooser)[1]) for _ in range(chooser.between(3, 6))])
    words = chooser.between(5, 9)
    tokens = text.split()
    places: dict[str, list[int]] = {}
    for position, token in enumerate(tokens):
        key = key_of(token)
        if key and key not in _FUNCTION_WORDS:
            places.setdefault(key, []).append(position)
    frequent = [key for key, positions in places.items() if len(positions) > 1]
    rare = [key for key, positions in places.items() if len(positions) == 1]
    chosen = chooser.sample(frequent, min(chooser.between(3, 8), len(frequent)))
    chosen += chooser.sample(rare, min(chooser.between(4, 12), len(rare)))
    return "\n\n".join(
        [block(key, [context_of(tokens, place, words) for place in places[key][:12]]) for key in sorted(chosen)]
    )


def build(sources: str, out: Path, band: Band, limit: int, report: Report) -> Summary:
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
