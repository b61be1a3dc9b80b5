"""A clean corpus from folders of text: normalized, without repeated documents and paragraphs.

Files are read twice, once to judge and once to write, so that only hashes stay in memory (8 bytes of digest for each
document and each long paragraph).
"""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from alpha.datagen_output import DocumentWriter, Report, Summary, write_documents
from alpha.datagen_sources import UnreadableError, normalized, paragraphs, skip, source_files, unchanged
from alpha.errors import AlphaError

_SHORTEST_REPEAT = 64  # shorter paragraphs (headings, captions) may repeat


def build(sources: str, out: Path, limit: int, report: Report) -> Summary:
    """Write the corpus of `sources` to `out`, at most about `limit` bytes of text (0: all).

    Raises UsageError and AlphaError as reading and writing do.
    """
    summary = Summary(out)
    files = source_files(sources, out, summary)
    seen_documents: set[int] = set()
    seen_paragraphs: set[int] = set()

    def produce(writer: DocumentWriter) -> None:
        for path in files:
            try:
                digests = _document_digests(path)
            except UnreadableError as reason:
                skip(summary, str(reason))
                continue
            summary.files_read += 1
            documents = _split(unchanged(path, paragraphs(path)))
            for digest in digests:
                document = next(documents, None)
                if document is None:
                    raise AlphaError(f"{path} changed while it was being read: it has fewer documents than before.")
                if digest in seen_documents:
                    summary.duplicate_documents += 1
                else:
                    seen_documents.add(digest)
                    keep_all = path.suffix.lower() == ".py"  # code without one of its paragraphs is broken
                    writer.document(_separated(document if keep_all else _new(document, seen_paragraphs, summary)))
                if writer.full:
                    return
                for _ in document:  # what was not written still has to be read past
                    pass

    write_documents(out, limit, summary, report, produce)
    return summary


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _document_digests(path: Path) -> list[int]:
    """A digest of each document in the file, from its normalized paragraphs. Raises UnreadableError."""
    return [_digest_of_all(document) for document in _split(paragraphs(path))]


def _digest_of_all(document: Iterator[str]) -> int:
    state = blake2b(digest_size=8)
    for paragraph in document:
        state.update(normalized(paragraph).encode() + b"\n")
    return int.from_bytes(state.digest(), "little")


def _split(all_paragraphs: Iterator[str | None]) -> Iterator[Iterator[str]]:
    """Documents as iterators of paragraphs; each must be read to its end before the next is taken."""
    ended = False

    def document(first: str) -> Iterator[str]:
        nonlocal ended
        yield first
        for paragraph in all_paragraphs:
            if paragraph is None:
                return
            yield paragraph
        ended = True

    while not ended:
        first = next((each for each in all_paragraphs if each is not None), None)
        if first is None:
            return
        yield document(first)


def _new(document: Iterator[str], seen: set[int], summary: Summary) -> Iterator[str]:
    """The paragraphs that have not been written before."""
    for paragraph in document:
        plain = normalized(paragraph)
        if len(plain) >= _SHORTEST_REPEAT:
            digest = _digest(plain)
            if digest in seen:
                summary.duplicate_paragraphs += 1
                continue
            seen.add(digest)
        yield paragraph


def _separated(document: Iterator[str]) -> Iterator[str]:
    """The paragraphs with a blank line before all but the first."""
    for number, paragraph in enumerate(document):
        yield f"\n\n{paragraph}" if number else paragraph
