"""Files of documents: writing them, reading text files that somebody else made, and a clean corpus of such files.

Writing: plain text or JSON lines, optionally gzipped, atomically; equal documents give equal files, gzipped ones too.
Reading: in a stream, in pieces of bounded size. Nothing is decoded by guessing: a file that is not UTF-8 is left out
and counted.
"""

import gzip
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from html.parser import HTMLParser
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeVar

from alpha import domain
from alpha.errors import AlphaError, UsageError
from alpha.files import open_regular, replacing
from alpha.tokenizer import END_OF_TEXT

T = TypeVar("T")

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")

_REPORT_EVERY = 1 << 18

Report = Callable[[int, int], None]
"""Told now and then: bytes of text written so far, and bytes wanted (0 when that is not known)."""


@dataclass
class Summary:
    """What was written and, for text made from sources, what was read and what was left out."""

    path: Path
    documents: int = 0
    bytes: int = 0  # of text, before compression
    files_read: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # files left out, by reason
    duplicate_documents: int = 0
    duplicate_paragraphs: int = 0
    keywords: int = 0


class DocumentWriter:
    """Appends documents to an open file; `limit` is the number of bytes of text after which it is `full` (0: never)."""

    def __init__(
        self, file: BinaryIO | gzip.GzipFile, json_lines: bool, limit: int, summary: Summary, report: Report
    ) -> None:
        self._file = file
        self._json_lines = json_lines
        self._limit = limit
        self._summary = summary
        self._report = report
        self._reported = 0

    @property
    def full(self) -> bool:
        """Whether the wanted size is reached."""
        return 0 < self._limit <= self._summary.bytes

    def document(self, parts: Iterable[str]) -> bool:
        """Write a document that comes in parts, as they come; one without any part is not written (False).

        A document of several parts is cut short when the file becomes full.
        """
        begun = False
        for part in parts:
            if not begun:
                self._begin()
                begun = True
            self._write(json.dumps(part, ensure_ascii=False)[1:-1] if self._json_lines else part)
            if self.full:
                break
        if begun and self._json_lines:
            self._write('"}\n')
        return begun

    def conversation(self, messages: Iterable[tuple[str, str]]) -> None:
        """Write a document of messages (role marker, text) as JSON lines say it; in plain text markers are spelled."""
        if not self._json_lines:
            self.document([domain.dialogue(messages)])
            return
        values = [{"role": role.strip("<|>"), "content": text} for role, text in messages]
        self._write(json.dumps({"messages": values}, ensure_ascii=False) + "\n")
        self._summary.documents += 1

    def _begin(self) -> None:
        if self._json_lines:
            self._write('{"text": "')
        elif self._summary.documents:
            self._write(END_OF_TEXT)
        self._summary.documents += 1

    def _write(self, text: str) -> None:
        content = text.encode()
        self._file.write(content)
        self._summary.bytes += len(content)
        if self._summary.bytes - self._reported >= _REPORT_EVERY:
            self._reported = self._summary.bytes
            self._report(self._summary.bytes, self._limit)


def check_name(out: Path) -> None:
    """Raise UsageError when `out` cannot be the name of an output file."""
    if not out.name.endswith(ENDINGS):
        raise UsageError(
            f"--out={out} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, which choose the format."
        )
    if out.is_dir():
        raise UsageError(f"--out={out} is a folder; name a file in it.")


def write_documents(
    out: Path, limit: int, summary: Summary, report: Report, produce: Callable[[DocumentWriter], None]
) -> None:
    """Create `out` with the documents that `produce` hands to its writer. Raises UsageError and AlphaError."""
    check_name(out)
    json_lines = ".jsonl" in out.suffixes[-2:]
    with replacing(out) as file:
        if out.suffix == ".gz":
            # No name and no time in the header, so that equal text gives equal bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as compressed:
                produce(DocumentWriter(compressed, json_lines, limit, summary, report))
        else:
            produce(DocumentWriter(file, json_lines, limit, summary, report))
    report(summary.bytes, limit)


# --- reading ----------------------------------------------------------------------------------------------------------

TEXT_ENDINGS = (".txt", ".md", ".rst", ".py", ".html", ".htm")

_PIECE = 1 << 20  # characters read at a time, and the longest paragraph
_HTML_LIMIT = 1 << 26  # characters; the parser keeps an unfinished tag in memory

# Controls but tab and line feed, zero-width characters, byte order marks and direction marks say nothing to a reader.
_DELETED = dict.fromkeys(
    (
        *(*range(9), *range(14, 32), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD, 0x200B, 0x2060, 0xFEFF),
        *(0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xFFF9, 0xFFFC)),
    )
)
_CLEANING = _DELETED | dict.fromkeys([0x0B, 0x0C, 0x85, 0x2028, 0x2029], "\n")
_NOT_WORDS = re.compile(r"[\W_]+")


class UnreadableError(Exception):
    """A file that is left out; the argument says why, in the words of the summary."""


def source_files(sources: str, out: Path, summary: Summary) -> list[Path]:
    """The files that `sources` (paths separated by commas) names, folders in sorted order, without `out` itself.

    Of folders, files with the endings of text are taken and the rest is counted in `summary`; hidden files and
    symbolic links are not followed. Raises UsageError for a path that does not exist and when nothing is left.
    """
    names = [name.strip() for name in sources.split(",") if name.strip()]
    if not names:
        raise UsageError("--sources is missing: name the files or folders to read, separated by commas.")
    found: dict[Path, Path] = {}  # by resolved path, so that nothing is read twice
    for name in names:
        path = Path(name)
        if path.is_dir():
            for file in _walk(path, summary):
                found.setdefault(file.resolve(), file)
        elif path.is_file():
            found.setdefault(path.resolve(), path)
        else:
            raise UsageError(f"--sources: there is no file or folder {name}.")
    if found.pop(out.resolve(), None) is not None:
        skip(summary, "the output itself")
    if not found:
        raise UsageError(f"--sources={sources} has no text files ({', '.join(TEXT_ENDINGS)}).")
    return list(found.values())


def _walk(folder: Path, summary: Summary) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise AlphaError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files]
    for path in sorted(found):
        if path.name.startswith(".") or path.is_symlink() or not path.is_file():
            skip(summary, "hidden, a link or not a plain file")
        elif path.suffix.lower() not in TEXT_ENDINGS:
            skip(summary, "not a text file by its name")
        else:
            yield path


def skip(summary: Summary, reason: str) -> None:
    """Count a file that is left out."""
    summary.skipped[reason] = summary.skipped.get(reason, 0) + 1


def paragraphs(path: Path) -> Iterator[str | None]:
    """The clean paragraphs of a file; None stands where `<|endoftext|>` ends a document.

    Clean means: Unicode NFC, no control characters, no trailing spaces. Paragraphs and lines of more than about 2^20
    characters are divided.
    Raises UnreadableError when the file proves not to be text.
    """
    lines: list[str] = []
    size = 0
    for line in _lines(path):
        if not line or size + len(line) > _PIECE:
            if lines:
                yield "\n".join(lines)
            lines, size = [], 0
        if line is None:
            yield None
        elif line:
            lines.append(line)
            size += len(line)
    if lines:
        yield "\n".join(lines)


def unchanged(path: Path, parts: Iterator[T]) -> Iterator[T]:
    """What is read from a file that was readable before. Raises AlphaError when it no longer is."""
    try:
        yield from parts
    except UnreadableError as reason:
        raise AlphaError(f"{path} changed while it was being read: {reason}.") from reason


def _lines(path: Path) -> Iterator[str | None]:
    """Clean lines, without their ends; None where a document ends."""
    for raw in _raw_text(path):
        for number, part in enumerate(raw.split(END_OF_TEXT)):
            if number:
                yield None
            text = unicodedata.normalize("NFC", part.translate(_CLEANING))
            for line in text.removesuffix("\n").split("\n") if text else ():
                yield line.rstrip()


def _raw_text(path: Path) -> Iterator[str]:
    """The file's text in lines, or pieces of very long lines."""
    try:
        if path.suffix.lower() in (".html", ".htm"):
            yield from _html_text(path)
            return
        with _opened(path) as file:
            rest = ""
            while line := file.readline(_PIECE):
                if "\0" in line:
                    raise UnreadableError("binary")
                # A line that is too long is cut after a space, so that words and markers stay whole.
                too_long = len(line) == _PIECE and not line.endswith("\n")
                end = line.rfind(" ") + 1 if too_long and " " in line else len(line)
                yield rest + line[:end]
                rest = line[end:]
            yield rest
    except UnicodeDecodeError:
        raise UnreadableError("not UTF-8") from None
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror})") from error


def _opened(path: Path) -> TextIOWrapper:
    return TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=None)


def _html_text(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        text = file.read(_HTML_LIMIT + 1)
    if len(text) > _HTML_LIMIT:
        raise UnreadableError("HTML of more than 64 Mi characters")
    if "\0" in text:
        raise UnreadableError("binary")
    parser = _HtmlText()
    parser.feed(text)
    parser.close()
    yield from "".join(parser.pieces).splitlines(keepends=True)


class _HtmlText(HTMLParser):
    """Collects what a reader of a page sees; blocks become paragraphs."""

    _HIDDEN = frozenset(("script", "style", "head", "template", "noscript"))
    _BLOCKS = frozenset(
        (
            *("address", "article", "aside", "blockquote", "body", "dd", "div", "dl", "dt", "fieldset", "figcaption"),
            *("figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main"),
            *("nav", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"),
        )
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden.append(tag)
        elif tag in self._BLOCKS:
            self.pieces.append("\n\n")
        elif tag == "br":
            self.pieces.append("\n")
        self._verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in self._BLOCKS:
            self.pieces.append("\n\n")
        self._verbatim -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data if self._verbatim > 0 else re.sub(r"\s+", " ", data))


def normalized(text: str) -> str:
    """The text's letters and digits alone: equal for texts that differ in case, punctuation or spacing."""
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


# --- a clean corpus ---------------------------------------------------------------------------------------------------

_SHORTEST_REPEAT = 64  # shorter paragraphs (headings, captions) may repeat


def write_corpus(sources: str, out: Path, limit: int, report: Report) -> Summary:
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
    """Documents as iterators of paragraphs, which end where the next is taken."""
    for ended, document in groupby(all_paragraphs, lambda paragraph: paragraph is None):
        if not ended:
            yield (paragraph for paragraph in document if paragraph is not None)


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
