"""Reading the text of a corpus: which files belong to it, which documents they hold, and how long ones are divided.

Plain text (.txt .text .md .rst .py) and JSON lines (.jsonl, the `text` field of each object) are read, each also
compressed (.gz). A document is one line of a .jsonl file; or a whole plain file, or each part of it between
`<|endoftext|>` markers (the markers are no part of the text). Documents without text are left out.

Text is streamed as sections of about 32 KiB, cut between paragraphs or lines, so that neither a file larger than memory
nor a document of that size is ever held whole. Knows nothing about tokens or about training and validation.
"""

import glob
import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from alpha.errors import AlphaError, UsageError
from alpha.files import open_regular
from alpha.tokenizer import END_OF_TEXT

"""Divides the documents of a plain text file."""

SECTION_CHARACTERS = 32 * 1024
"""Sections have half to one and a half times as many characters, unless a line is longer."""

PLAIN_ENDINGS = (".txt", ".text", ".md", ".rst", ".py")
JSON_LINES_ENDING = ".jsonl"
_ACCEPTED = f"{' '.join(PLAIN_ENDINGS)} {JSON_LINES_ENDING}, each also with .gz"

_BUFFER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_LONGEST_PIECE = 1 << 20  # characters of one line that are held at once
_LONGEST_JSON_LINE = 32 << 20  # bytes; a parsed line can take twenty times its size
_BYTE_ORDER_MARK = "\ufeff"

ReadReport = Callable[[int], None]
"""Called with the number of bytes of the files (as they are on disk) read since the last call."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus and how to read it."""

    path: Path
    json_lines: bool
    compressed: bool


@dataclass(frozen=True)
class Selection:
    """The files that `--data` names, in reading order, and how many others lay beside them and were skipped."""

    files: tuple[CorpusFile, ...]
    skipped: int


class Section(NamedTuple):
    """A part of a document; the sections of a document, joined, are its text.

    A section ends after a line break or at the document's end. Only a line that is too long to hold (a million
    characters) goes on in the next section, which then `continues_line`.
    """

    text: str
    continues_line: bool
    ends_document: bool


def find(data: str) -> Selection:
    """The files of a file name, folder (read recursively), glob, or several of these separated by commas.

    Each part's files are sorted by path, and a file that is named twice counts once. Hidden files and folders, folders
    behind symbolic links and files of unknown endings are skipped and counted when a folder or glob leads to them.
    Raises UsageError when `data` names nothing, AlphaError for a missing or unreadable path and when no file is left.
    """
    found: dict[Path, CorpusFile] = {}
    skipped: set[Path] = set()
    for part in _parts(data):
        try:
            for path, named in _candidates(part, skipped):
                file = _recognize(path)
                if file is not None:
                    found.setdefault(path.resolve(), file)
                elif named:
                    raise AlphaError(f"Cannot read {path}: expected a regular file with ending {_ACCEPTED}.")
                else:
                    skipped.add(path)
        except OSError as error:
            raise AlphaError(f"Cannot read {error.filename or part}: {error.strerror or error}.") from error
    if not found:
        others = f" ({len(skipped)} other files were skipped)" if skipped else ""
        raise AlphaError(f"No corpus file matches {data!r}{others}; endings that are read: {_ACCEPTED}.")
    return Selection(tuple(found.values()), len(skipped))


def sections(
    files: Sequence[CorpusFile], section_characters: int = SECTION_CHARACTERS, on_read: ReadReport = lambda count: None
) -> Iterator[Section]:
    """The text of all documents in order, divided into sections.

    Raises AlphaError for an unreadable file, bytes that are not UTF-8 text, a bad line of JSON (each named by file and
    place), and when there is no text at all.
    """
    empty = True
    for file in files:
        for section in _divide(_texts(file, on_read), section_characters):
            empty = False
            yield section
    if empty:
        raise AlphaError(f"The corpus is empty: no text in {_names(files)}.")


def _names(files: Sequence[CorpusFile]) -> str:
    first = str(files[0].path) if files else "no files"
    return first if len(files) < 2 else f"{first} and {len(files) - 1} more files"


def _parts(data: str) -> list[str]:
    if "\0" in data:
        raise UsageError(f"The path {data!r} contains a NUL character.")
    parts = [data] if _exists(data) else [part.strip() for part in data.split(",") if part.strip()]
    if not parts:
        raise UsageError("No corpus is named; give a file, folder or glob, several separated by commas.")
    return parts


def _exists(path: str) -> bool:
    return bool(path) and os.path.lexists(path)


def _candidates(part: str, skipped: set[Path]) -> Iterator[tuple[Path, bool]]:
    """The files that one part of `data` leads to, and whether it names them itself."""
    if _exists(part):
        path = Path(part)
        if path.is_dir():
            yield from ((each, False) for each in _walk(path, skipped))
        else:
            yield path, True
    elif glob.has_magic(part):
        for match in sorted(glob.glob(part, recursive=True)):  # noqa: PTH207 (Path.glob refuses absolute patterns)
            path = Path(match)
            files = _walk(path, skipped) if path.is_dir() else [path]
            yield from ((each, False) for each in files)
    else:
        raise AlphaError(f"There is no file or folder {part!r}; check the path of the corpus.")


def _walk(folder: Path, skipped: set[Path]) -> list[Path]:
    """Every visible file below `folder`, sorted; what is hidden or behind a link goes into `skipped`."""

    def refuse(error: OSError) -> None:
        raise error

    files = []
    for parent, folder_names, file_names in os.walk(folder, onerror=refuse):
        here = Path(parent)
        for name in list(folder_names):
            if name.startswith(".") or (here / name).is_symlink():
                folder_names.remove(name)
                skipped.add(here / name)
        for name in file_names:
            if name.startswith("."):
                skipped.add(here / name)
            else:
                files.append(here / name)
    return sorted(files)


def _recognize(path: Path) -> CorpusFile | None:
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compressed = endings[-1:] == [".gz"]
    if compressed:
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending not in (*PLAIN_ENDINGS, JSON_LINES_ENDING) or not stat.S_ISREG(path.stat().st_mode):
        return None
    return CorpusFile(path, json_lines=ending == JSON_LINES_ENDING, compressed=compressed)


def _texts(file: CorpusFile, on_read: ReadReport) -> Iterator[str | None]:
    """The text of a file in order, None wherever a document ends."""
    try:
        with open_regular(file.path) as raw:
            # The gzip reader decompresses only as much as is asked for, so a small file of huge content stays small.
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES) if file.compressed else raw
            read = _json_texts if file.json_lines else _plain_texts
            yield from read(file, stream, _reporter(raw, on_read))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AlphaError(f"Cannot decompress {file.path}: {error}.") from error
    except OSError as error:
        raise AlphaError(f"Cannot read {file.path}: {error.strerror or error}.") from error


def _reporter(raw: BinaryIO, on_read: ReadReport) -> Callable[[], None]:
    reported = 0

    def report() -> None:
        nonlocal reported
        position = raw.tell()
        on_read(position - reported)
        reported = position

    return report


def _plain_texts(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> Iterator[str | None]:
    longest_beginning = len(END_OF_TEXT) - 1  # of a marker whose rest is in the next chunk
    tail = ""
    for chunk in _decoded_chunks(file, stream, report):
        *ended, tail = (tail + chunk).split(END_OF_TEXT)
        for text in ended:
            yield text
            yield None
        if len(tail) > longest_beginning:
            yield tail[:-longest_beginning]
            tail = tail[-longest_beginning:]
    yield tail
    yield None


def _decoded_chunks(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> Iterator[str]:
    offset = 0
    undecoded = b""
    while True:
        chunk = stream.read(_CHUNK_BYTES)
        report()
        data = undecoded + chunk
        text, used = _decode(file, data, offset, final=not chunk)
        yield text.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else text
        if not chunk:
            return
        offset += used
        undecoded = data[used:]


def _json_texts(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> Iterator[str | None]:
    offset = 0
    number = 0
    next_report = 0
    while line := stream.readline(_LONGEST_JSON_LINE + 1):
        if offset >= next_report:
            report()
            next_report = offset + _CHUNK_BYTES
        number += 1
        if len(line) > _LONGEST_JSON_LINE:
            raise AlphaError(f"Line {number} of {file.path} is longer than {_LONGEST_JSON_LINE >> 20} MiB; divide it.")
        content, _ = _decode(file, line, offset, final=True)
        content = content.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else content
        offset += len(line)
        if content.strip():
            yield _text_of(content, f"Line {number} of {file.path}")
            yield None
    report()


def _text_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AlphaError(f"{where} is not valid JSON: {error}.") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise AlphaError(f'{where} is not an object with a string "text", such as {{"text": "Once upon a time"}}.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AlphaError(f'{where} has half of a surrogate pair at character {error.start} of its "text".') from error
    return text


def _decode(file: CorpusFile, data: bytes, offset: int, final: bool) -> tuple[str, int]:
    """UTF-8 `data`, which stands at byte `offset` of the file, and how many of its bytes were used.

    Unless this is the `final` data, a character that is cut at the end is left for the next call.
    """
    valid, problem = len(data), ""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        valid = error.start
        cut_at_the_end = error.end == len(data) and error.reason == "unexpected end of data"
        problem = "" if cut_at_the_end and not final else "is not UTF-8"
        text = data[:valid].decode()
    zero = data.find(b"\0", 0, valid)
    if zero >= 0:
        valid, problem = zero, "is a NUL byte"
    if problem:
        after = " after decompression" if file.compressed else ""
        raise AlphaError(f"{file.path} is not a text file: byte {offset + valid:,}{after} {problem}.")
    return text, valid


def _divide(texts: Iterator[str | None], size: int) -> Iterator[Section]:
    """Sections of about `size` characters from the text of documents, each of which ends with None."""
    buffer = ""
    continues = False
    starts_document = True
    for text in texts:
        ended = text is None
        buffer += text or ""
        if ended and starts_document and len(buffer) <= size and not buffer.strip():
            buffer = ""
            continue
        start = 0
        while (end := _section_end(buffer, start, size, ended)) is not None:
            yield Section(buffer[start:end], continues, ends_document=ended and end == len(buffer))
            continues = buffer[end - 1] != "\n"
            starts_document = False
            start = end
        buffer = buffer[start:]
        if ended:
            continues = False
            starts_document = True


def _section_end(text: str, start: int, size: int, ended: bool) -> int | None:
    """Where the section that begins at `start` ends; None when that needs more text or nothing is left."""
    if start == len(text):
        return None
    rest = len(text) if ended else None
    available = len(text) - start
    if available <= size + size // 2:
        return rest
    end = _last_break(text, start + size // 2, start + size) or _first_break(text, start + size, start + _LONGEST_PIECE)
    if end is None and available <= _LONGEST_PIECE:
        return rest
    if end is None:
        end = _last_break(text, start, start + size // 2) or _inside_line(text, start)
    return end if end < len(text) else rest


def _last_break(text: str, low: int, high: int) -> int | None:
    """The end of the last paragraph in text[low:high], or else of the last line.

    The blank line after a paragraph begins the next section. GPT-2's division of a text, too, cuts line breaks before
    the last one, so that byte pair encoding of such sections gives the tokens of the undivided text.
    """
    for mark in ("\n\n", "\n\r\n", "\n"):
        position = text.rfind(mark, low, high)
        if position >= 0:
            return position + 1
    return None


def _first_break(text: str, low: int, high: int) -> int | None:
    position = text.find("\n", low, high)
    return position + 1 if position >= 0 else None


def _inside_line(text: str, start: int) -> int:
    """Where to cut a line that is too long to hold: before its last space, since a space belongs to the word after."""
    space = text.rfind(" ", start + _LONGEST_PIECE // 2, start + _LONGEST_PIECE)
    return space if space >= 0 else start + _LONGEST_PIECE
