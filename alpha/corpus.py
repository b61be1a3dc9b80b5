"""Reading the text of a corpus: the documents of its files, and how long ones are divided.

Plain files: a document is the whole file, or each part of it between `<|endoftext|>` separators (which are no part of
the text). One that begins with `<|system|>`, `<|user|>` or `<|assistant|>` is a conversation, in which these and
`<|end|>` are markers, as `alpha datagen` writes it. JSON lines: a document is the `text` of an object, in which nothing
is a separator or a marker, or its `messages`, objects of `role` and `content`, a conversation whose contents are text
whatever they spell; other forms of both are in `corpus_forms`. A JSON array has the same objects. Documents without
text are left out.

Text is streamed as sections of bounded size, cut where the caller's expressions allow, so that neither a file larger
than memory nor a document of that size is ever held whole.
"""

import bisect
import functools
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

from alpha.corpus_encoding import BYTE_ORDER_MARK, CHUNK_BYTES, decode, decoded_chunks
from alpha.corpus_files import CorpusFile
from alpha.corpus_forms import BAD_LINE, ROLE_MARKERS, Line, Turns, read_line
from alpha.errors import AlphaError
from alpha.files import Progress
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_pattern import CUTS, Cuts

SECTION_CHARACTERS = 32 * 1024
"""Sections have this many characters and go on to the next place to cut, for a section and a half at their document's
end."""

_FURTHEST_CUT = 4  # sections; where there is no cut by the preferred expression, the next one is tried
_BUFFER_BYTES = 1 << 20
_LONGEST_PIECE = 1 << 20  # characters that are held at once; without a place to cut among them, they are cut anywhere
_LONGEST_JSON_LINE = 32 << 20  # bytes; a parsed line can take twenty times its size

_ASSISTANT, _END_MARKER = CHAT_TOKENS[1], CHAT_TOKENS[-1]
_MARKERS = re.compile("(" + "|".join(map(re.escape, CHAT_TOKENS)) + ")")
_LOOKED_AT = 1 << 10  # characters of a document in which a conversation must begin
_BEFORE_ITEM = re.compile(r"\s*([\[,\]])\s*")
_LONGEST_MARKER = max(map(len, CHAT_TOKENS))

ReadReport = Callable[[int], None]
"""Called with the number of bytes of the files (as they are on disk) read since the last call."""


class Part(NamedTuple):
    """A part of a conversation's text: where it is, whether it may be a special token, and whether it is what an
    assistant says, with the marker at its end."""

    start: int
    end: int
    is_marker: bool
    is_answer: bool


class Section(NamedTuple):
    """A part of a document; the sections of a document, joined, are its text."""

    text: str
    ends_document: bool
    parts: tuple[Part, ...] = ()
    """All of the text of a conversation; nothing for other documents."""

    @property
    def markers(self) -> list[tuple[int, int]]:
        """Where in the text of a conversation its markers are: start and end of each."""
        return [(part.start, part.end) for part in self.parts if part.is_marker]


class Piece(str):
    """A part of a conversation on its way to a section: see `Part`."""

    is_marker = False
    is_answer = False

    @classmethod
    def of(cls, text: str, is_marker: bool = False, is_answer: bool = False) -> "Piece":
        piece = cls(text)
        piece.is_marker, piece.is_answer = is_marker, is_answer
        return piece


class Writer(Protocol):
    """What makes of the turns of a conversation its text, in pieces; which depend on `template` alone."""

    @property
    def template(self) -> str: ...

    def __call__(self, turns: Turns) -> Iterator[str]: ...


def sections(
    files: Sequence[CorpusFile],
    section_characters: int = SECTION_CHARACTERS,
    on_read: ReadReport = lambda count: None,
    cuts: Cuts = CUTS,
    forms: Counter[str] | None = None,
    write: Writer | None = None,
) -> Iterator[Section]:
    """The text of all documents in order, divided into sections; in `forms`, lines of JSON are counted by their form.

    Conversations of JSON lines are written with Alpha's markers, or as `write` does.

    Raises AlphaError for an unreadable file, bytes that are not UTF-8 text, a bad line of JSON (each named by file and
    place), and when there is no text at all.
    """
    empty = True
    counted = Counter() if forms is None else forms
    for file in files:
        for section in _divide(_texts(file, on_read, counted, write), section_characters, cuts):
            empty = False
            yield section
    if empty:
        raise AlphaError(f"The corpus is empty: no text in {_names(files)}.")


def texts(
    files: Sequence[CorpusFile],
    special_names: Collection[str],
    progress: Progress | None = None,
    write: Writer | None = None,
) -> Iterator[str]:
    """The text that a tokenizer with these special tokens is built from: all of it but such markers."""
    for section in sections(files, on_read=counter("reading", size_of(files), progress), write=write):
        place = 0
        for start, end in section.markers:
            if section.text[start:end] in special_names:
                yield section.text[place:start]
                place = end
        yield section.text[place:]


def size_of(files: Sequence[CorpusFile]) -> int:
    """The bytes of the files as they are on disk. Raises AlphaError."""
    return sum(status_of(file).st_size for file in files)


def status_of(file: CorpusFile) -> os.stat_result:
    """Size, times and identity of a file. Raises AlphaError."""
    try:
        return file.status()
    except OSError as error:
        raise AlphaError(f"Cannot read {file.path}: {error.strerror or error}.") from error


def counter(stage: str, total: int, progress: Progress | None) -> ReadReport:
    """What adds up the bytes that were read, and tells `progress`."""
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress(stage, done, total)

    return count


def _names(files: Sequence[CorpusFile]) -> str:
    first = str(files[0].path) if files else "no files"
    return first if len(files) < 2 else f"{first} and {len(files) - 1} more files"


def _texts(file: CorpusFile, on_read: ReadReport, forms: Counter[str], write: Writer | None) -> Iterator[str | None]:
    """The text of a file in order, None wherever a document ends."""
    try:
        with file.open() as raw:
            # The gzip reader decompresses only as much as is asked for, so a small file of huge content stays small.
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES) if file.compressed else raw
            report = _reporter(raw, on_read)
            if file.json_lines or file.json_array:
                yield from _json_texts(file, stream, report, forms, write)
            else:
                yield from _conversations(_plain_texts(file, stream, report))
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
    for chunk in decoded_chunks(file, stream, report):
        *ended, tail = (tail + chunk).split(END_OF_TEXT)
        for text in ended:
            yield text
            yield None
        if len(tail) > longest_beginning:
            yield tail[:-longest_beginning]
            tail = tail[-longest_beginning:]
    yield tail
    yield None


def _conversations(texts: Iterator[str | None]) -> Iterator[str | None]:
    """The text of plain documents; in those that begin with a role's marker, markers come by themselves."""
    held = ""
    is_conversation: bool | None = None
    is_answer = False
    for text in texts:
        held += text or ""
        if is_conversation is None:
            begun = held.lstrip()
            if text is not None and len(begun) < _LONGEST_MARKER and len(held) < _LOOKED_AT:
                continue
            is_conversation = begun.startswith(tuple(ROLE_MARKERS))
        if is_conversation:
            *parts, held = _MARKERS.split(held)
            for part in parts:
                is_marker = bool(_MARKERS.fullmatch(part))
                is_answer = is_answer and part not in ROLE_MARKERS
                yield Piece.of(part, is_marker, is_answer)
                if is_marker:
                    is_answer = part == _ASSISTANT
        keep = _LONGEST_MARKER - 1 if is_conversation and text is not None else 0  # of a marker that may go on
        place = max(0, len(held) - keep)
        yield Piece.of(held[:place], is_answer=is_answer) if is_conversation else held[:place]
        held = held[place:]
        if text is None:
            is_conversation, is_answer = None, False
            yield None


def _json_texts(
    file: CorpusFile, stream: BinaryIO, report: Callable[[], None], forms: Counter[str], write: Writer | None
) -> Iterator[str | None]:
    for where, read in (_json_items if file.json_array else _json_lines)(file, stream, report):
        try:
            value = read()
            said = None if value is None else read_line(value, where, file.text_field)
            pieces = [] if said is None else _pieces(said, write, where)
        except AlphaError:
            if not file.skip_bad_lines:
                raise
            forms[BAD_LINE] += 1
            said = None
        if said is not None:
            forms[said.form] += 1
            yield from pieces
            yield None


_Values = Iterator[tuple[str, Callable[[], Any]]]
"""Where a value stands, and what reads it, which raises AlphaError."""


def _json_lines(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> _Values:
    """The values of JSON lines, None for an empty one."""
    offset = 0
    number = 0
    next_report = 0
    while line := stream.readline(_LONGEST_JSON_LINE + 1):
        if offset >= next_report:
            report()
            next_report = offset + CHUNK_BYTES
        number += 1
        where = f"Line {number} of {file.path}"
        if len(line) > _LONGEST_JSON_LINE:
            raise AlphaError(f"{where} is longer than {_LONGEST_JSON_LINE >> 20} MiB; divide it.")
        yield where, functools.partial(_json_line, file, line, offset, where)
        offset += len(line)
    report()


def _json_items(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> _Values:
    """The values of one JSON array, of which no more is held than the one that is read."""
    decoder = json.JSONDecoder()
    text, place, number = "", 0, 0
    before, where, problem = "[", "", ""
    enough = 0  # characters; an item that was cut is read again when there are twice as many, or no more
    for chunk in decoded_chunks(file, stream, report):
        text, place = text[place:] + chunk, 0
        if chunk and len(text) < enough:
            continue
        while before and (gap := _BEFORE_ITEM.match(text, place)):
            if gap[1] == "]" and number:
                before, place = "", gap.end()
                break
            where = f"Item {number + 1} of {file.path}"
            if gap[1] != before:
                raise AlphaError(f"{where} is not valid JSON.")
            try:
                value, end = decoder.raw_decode(text, gap.end())
            except (ValueError, RecursionError) as error:  # or the rest of it is in the next chunk
                problem = str(error)
                if isinstance(error, json.JSONDecodeError):  # its own text has the place in a chunk
                    problem = f"{error.msg}: character {error.pos - gap.end():,} of it"
                break
            if not _BEFORE_ITEM.match(text, end):
                problem = "neither a comma nor the end of the array follows it"
                break
            number, place, before = number + 1, end, ","
            yield where, functools.partial(_itself, value)
        enough = 2 * (len(text) - place)
        if not before and text[place:].strip():
            raise AlphaError(f"{file.path} is not valid JSON: there is something after its array.")
        if len(text) - place > _LONGEST_JSON_LINE:
            raise AlphaError(f"{where} is longer than {_LONGEST_JSON_LINE >> 20} MiB, or not valid JSON: {problem}.")
    if before:
        raise AlphaError(f"{where} is not valid JSON: {problem}.")


def _itself(value: Any) -> Any:
    return value


def _pieces(said: Line, write: Writer | None, where: str) -> list[str]:
    try:
        return list((write or _conversation)(said.turns)) if said.turns else [said.text]
    except AlphaError as error:
        raise AlphaError(f"{where}: {error}") from error


def _json_line(file: CorpusFile, line: bytes, offset: int, where: str) -> Any:
    """The value of a line; None where it is empty."""
    content, _ = decode(file, line, offset, final=True)
    content = content.removeprefix(BYTE_ORDER_MARK) if offset == 0 else content
    if not content.strip():
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AlphaError(f"{where} is not valid JSON: {error}.") from error


def _conversation(turns: Turns) -> Iterator[str]:
    for number, (role, content) in enumerate(turns):
        if number:
            yield Piece.of("\n")
        is_answer = role == _ASSISTANT
        yield Piece.of(role, is_marker=True)
        yield Piece.of(content, is_answer=is_answer)
        yield Piece.of(_END_MARKER, is_marker=True, is_answer=is_answer)


def _divide(texts: Iterator[str | None], size: int, cuts: Cuts) -> Iterator[Section]:
    """Sections of about `size` characters from the text of documents, each of which ends with None."""
    buffer = ""
    parts: list[Part] = []
    roles: list[int] = []  # where turns begin
    is_conversation = False
    starts_document = True
    for text in texts:
        ended = text is None
        if isinstance(text, Piece) and text:
            part = Part(len(buffer), len(buffer) + len(text), text.is_marker, text.is_answer)
            if parts and not part.is_marker and parts[-1][2:] == part[2:]:  # read in two pieces
                part = Part(parts.pop().start, *part[1:])
            parts.append(part)
            is_conversation = True
            if text.is_marker and text in ROLE_MARKERS:
                roles.append(len(buffer))
        buffer += text or ""
        if ended and starts_document and len(buffer) <= size and not buffer.strip():
            buffer = ""
            continue
        start = 0
        while (
            end := _turn_end(buffer, start, size, ended, roles)
            if is_conversation
            else _section_end(buffer, start, size, ended, cuts)
        ) is not None:
            inside = tuple(_cut(part, start, end) for part in parts if part.start < end and part.end > start)
            yield Section(buffer[start:end], ended and end == len(buffer), inside)
            starts_document = False
            start = end
        if start:  # not for each text of a long conversation, which has many
            buffer = buffer[start:]
            parts = [_cut(part, start, part.end) for part in parts if part.end > start]
            roles = [place - start for place in roles if place >= start]
        if ended:
            starts_document, is_conversation = True, False


def _cut(part: Part, start: int, end: int) -> Part:
    """What of a part is in a section; a marker that is divided is text."""
    is_whole = part.start >= start and part.end <= end
    return Part(max(part.start, start) - start, min(part.end, end) - start, part.is_marker and is_whole, part.is_answer)


def _turn_end(text: str, start: int, size: int, ended: bool, roles: Sequence[int]) -> int | None:
    """The same for a conversation, which is divided before a role's marker: `roles` are the places of such.

    Only a turn of more than can be held is divided anywhere.
    """
    available = len(text) - start
    if available <= size + size // 2:
        return len(text) if ended and available else None
    if (next_turn := bisect.bisect_left(roles, start + size)) < len(roles):
        return roles[next_turn]
    if available > _LONGEST_PIECE:
        earlier = bisect.bisect_right(roles, start)
        return roles[-1] if earlier < len(roles) else start + _LONGEST_PIECE
    return len(text) if ended else None


def _section_end(text: str, start: int, size: int, ended: bool, cuts: Cuts) -> int | None:
    """Where the section that begins at `start` ends; None when that needs more text or nothing is left.

    The same whatever was read of the text so far, and such that a text without a place to cut is cut at the same places
    for every `size`: a multiple of what can be held after the last such place.
    """
    available = len(text) - start
    rest = len(text) if ended and available else None
    if available <= size + size // 2:
        return rest
    furthest = start + _FURTHEST_CUT * size
    for cut in cuts:
        if match := cut.search(text, start + size, furthest):
            return match.start()
        if len(text) < furthest and not ended:
            return None
    longest = start + _LONGEST_PIECE
    after = [match.start() for cut in cuts if (match := cut.search(text, furthest, longest))]
    if not after and available > _LONGEST_PIECE:
        before = [match.start() for cut in cuts for match in cut.finditer(text, start + 1, start + size)]
        return max(before, default=longest)
    return min(after) if after else rest
