"""`alpha datagen`: text to train on, made by rule for any domain, or cleaned or indexed from files.

Rule-made documents are functions of (domain, seed, index): a file is reproducible, and a small one is the beginning of
a large one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alpha import (
    datagen_chat,
    datagen_files,
    datagen_mixtures,
    datagen_music,
    datagen_stories,
    domain,
)
from alpha.datagen_files import DocumentWriter, Report, Summary, write_documents
from alpha.datagen_grammar import Chooser
from alpha.errors import UsageError
from alpha.option import option, parse_size


def _chat(make: Callable[[Chooser], datagen_chat.Dialogue], chooser: Chooser) -> str:
    return domain.dialogue(make(chooser).turns)


GENERATORS: dict[str, Callable[[Chooser], str]] = {
    "novels": datagen_stories.novel,
    "chords": datagen_music.chart,
    "abc": lambda chooser: datagen_music.tune(chooser, chooser.index + 1),
    "dumb_finance": datagen_stories.market_day,
    "chaos": datagen_mixtures.chaos,
    "concordance": datagen_mixtures.concordance,
    "fine_corpus": datagen_mixtures.fine_corpus,
    **{name: functools.partial(_chat, make) for name, make in datagen_chat.CONVERSATIONS.items()},
}

DEFAULT_SIZE = 5_000_000
_MOST_DOCUMENTS = 1 << 32  # the random numbers of more would repeat


def document(domain_id: str, index: int, seed: int) -> str:
    """Document number `index` of the endless sequence of a domain's documents that a seed stands for."""
    return GENERATORS[domain_id](Chooser(domain_id, index, seed))


@dataclass(frozen=True)
class DatagenOptions:
    """Options of `alpha datagen`."""

    out: str = option(
        "", "File to write: .txt (documents divided by <|endoftext|>) or .jsonl, either with .gz.",
        metavar="FILE", required=True,
    )  # fmt: skip
    mode: str = option(
        "rules",
        "rules: made for a domain; corpus: sources, cleaned; concordance: words of sources in their contexts.",
        choices=("rules", "corpus", "concordance"),
    )
    domain: str = option("", "Domain whose text to make by rule.", metavar="ID")
    sources: str = option(
        "", "Files and folders to read, separated by commas, for corpus and concordance.", metavar="PATHS"
    )
    size: str = option(
        "",
        "Stop after about this much text, such as 500kB or 2GB; default 5MB for rules, else no limit.",
        metavar="SIZE",
    )
    seed: int = option(42, "Seed of rule-made text.", minimum=0, maximum=(1 << 64) - 1)
    context: int = option(8, "Words shown on each side of a keyword.", group="Concordance", minimum=1, maximum=100)
    keywords: int = option(
        1000, "Keywords at most, the most frequent.", group="Concordance", minimum=1, maximum=1_000_000
    )
    lines: int = option(20, "Lines at most for each keyword.", group="Concordance", minimum=1, maximum=10_000)
    min_count: int = option(5, "Fewest occurrences of a keyword.", group="Concordance", minimum=1)
    max_count: int = option(
        0, "Most occurrences of a keyword; 0 = one in 500 of all words.", group="Concordance", minimum=0
    )


def run(options: DatagenOptions, report: Report) -> Summary:
    """Do what the options say. Raises UsageError for options that contradict each other, AlphaError for files."""
    out = Path(options.out)
    size = parse_size(options.size, "--size") if options.size else 0
    if not options.out:
        raise UsageError("--out is missing: name the file to write.")
    if options.mode == "rules":
        if options.sources:
            raise UsageError("--sources is for --mode=corpus or --mode=concordance; choose one of them.")
        if not options.domain:
            raise UsageError(f"--domain is missing; choose one of {', '.join(GENERATORS)}.")
        return write(options.domain, out, seed=options.seed, report=report, size_bytes=size or DEFAULT_SIZE)
    if options.domain:
        raise UsageError(f"--domain is for text made by rule; leave it out with --mode={options.mode}.")
    if options.mode == "corpus":
        return datagen_files.write_corpus(options.sources, out, size, report)
    if 0 < options.max_count < options.min_count:
        raise UsageError(f"--maxCount={options.max_count} is below --minCount={options.min_count}.")
    band = datagen_mixtures.Band(options.context, options.keywords, options.lines, options.min_count, options.max_count)
    return datagen_mixtures.write_concordance(options.sources, out, band, size, report)


def write(domain_id: str, out: Path, *, seed: int, report: Report, size_bytes: int = 0, documents: int = 0) -> Summary:
    """Write rule-made documents of a domain: so many, or as many as it takes to reach `size_bytes` of text."""
    domain_id = domain.get(domain_id).id
    if (size_bytes > 0) == (documents > 0):
        raise UsageError("Give either a size or a number of documents, more than zero.")
    summary = Summary(out)

    def produce(writer: DocumentWriter) -> None:
        for index in range(documents or _MOST_DOCUMENTS):
            if writer.full:
                return
            text = document(domain_id, index, seed)
            if messages := domain.messages(text):
                writer.conversation(messages)
            else:
                writer.document([text])

    write_documents(out, size_bytes, summary, report, produce)
    return summary
