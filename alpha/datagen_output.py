"""Writing generated documents to one file: plain text or JSON lines, optionally gzipped, atomically.

Knows nothing about where the documents come from. Equal documents give equal files, gzipped ones too.
"""

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from alpha.errors import UsageError
from alpha.files import replacing
from alpha.tokenizer import END_OF_TEXT

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
