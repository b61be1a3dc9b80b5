"""Documents of the domain fine_corpus: one to three articles with headings and cross-references."""

from collections.abc import Callable

from alpha import datagen_gazetteer as gazetteer
from alpha import datagen_science as science
from alpha.datagen_chooser import Chooser

Article = Callable[[Chooser], tuple[str, list[str]]]
"""Writes one article: its heading and its paragraphs."""

ARTICLES: tuple[Article, ...] = (  # repeated ones are commoner
    *(gazetteer.town, gazetteer.person, gazetteer.animal) * 2, gazetteer.town, gazetteer.person, gazetteer.river,
    gazetteer.dynasty, gazetteer.bridge, gazetteer.election, *(science.number, science.year) * 2, science.element,
    science.compound, science.planet, science.figure, science.interest, science.motion, science.sample, science.country,
)  # fmt: skip


def generate(index: int, seed: int) -> str:
    """Document number `index`."""
    chooser = Chooser("fine_corpus", index, seed)
    style = chooser.below(3)
    written = [chooser.pick(ARTICLES)(chooser) for _ in range(chooser.pick((1, 1, 2, 3)))]
    parts = []
    for heading, paragraphs in written:
        title = (heading, f"# {heading}", "")[style]
        parts.append("\n\n".join([title, *paragraphs] if title else paragraphs))
    if len(written) > 1 and chooser.chance(60):
        parts.append("See also: " + "; ".join([heading for heading, _ in written]) + ".")
    return "\n\n".join(parts)
