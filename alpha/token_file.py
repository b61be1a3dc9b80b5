"""A flat array of token ids on disk: written in one pass, checked when opened, memory-mapped.

The file is an .npy file (uint16 while the vocabulary fits, otherwise uint32), so `numpy.load` reads it too. Its length,
SHA-256 and what it was made from are a record that the caller keeps (see dataset).
"""

import hashlib
import mmap
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError
from alpha.files import open_regular

_CHUNK_BYTES = 1 << 20
_FLUSH_TOKENS = 1 << 18
_HEADER_BYTES = 128
_LARGEST_COUNT = 1 << 48
_PLACE = np.dtype("<i8")

Ids = npt.NDArray[np.integer[Any]]
Tokens = npt.NDArray[np.unsignedinteger[Any]]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

NO_PLACES: Places = np.zeros(0, np.int64)


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped flat array of token ids, with the documents and UTF-8 bytes of the text it was made from."""

    path: Path
    tokens: Tokens
    documents: int
    text_bytes: int
    digest: str
    """SHA-256 of the tokens as they are stored."""
    mapping: mmap.mmap | None = None
    """The whole file, mapped; None for tokens that are in memory."""
    forms: Mapping[str, int] = field(default_factory=dict)
    """How many lines of JSON of each form its corpus has."""
    flips: Places = field(default_factory=lambda: NO_PLACES)
    """Where answers begin and end: up to the first of these places tokens are of plain text or of an answer, up to the
    second they are of the rest of a conversation, and so on in turn."""
    ends: Places = field(default_factory=lambda: NO_PLACES)
    """Where documents end: the places after their ends of text."""

    @property
    def size(self) -> int:
        """The bytes of the file, as it was opened."""
        return 0 if self.mapping is None else len(self.mapping)

    def require_whole(self) -> None:
        """Raise AlphaError when another program has cut the file short: to touch what is missing would end the process.

        Cheap enough for every batch.
        """
        if self.mapping is not None and self.mapping.size() < len(self.mapping):  # the file's size now and then
            raise AlphaError(
                f"{self.path} was cut short by another program while it was in use; "
                f"start again, and it is made anew from the corpus."
            )

    def divide(self, count: int, text_bytes: int) -> "tuple[TokenFile, TokenFile]":
        """All tokens but the last `count`, and these, whose text has `text_bytes` bytes, as two token files."""
        place = len(self.tokens) - count
        first, last = self.tokens[:place], self.tokens[place:]
        ended = int(np.searchsorted(self.ends, place, "right"))
        flipped = int(np.searchsorted(self.flips, place))
        goes_on = [0] if flipped % 2 and self.flips[flipped : flipped + 1].tolist() != [place] else []
        if flipped % 2 and not goes_on:
            flipped += 1
        last_flips = np.concatenate([np.array(goes_on, np.int64), self.flips[flipped:] - place])
        return (
            self._part(first, max(0, self.text_bytes - text_bytes), self.flips[:flipped], self.ends[:ended]),
            self._part(last, text_bytes, last_flips, self.ends[ended:] - place),
        )

    def _part(self, tokens: Tokens, text_bytes: int, flips: Places, ends: Places) -> "TokenFile":
        documents = len(ends) + int(ends[-1:].tolist() != [len(tokens)])
        digest = hashlib.sha256(tokens.view(np.uint8).data).hexdigest()
        return replace(
            self, tokens=tokens, documents=documents, text_bytes=text_bytes, digest=digest, flips=flips, ends=ends
        )


class TokenWriter:
    """Writes one token file, and its flips and ends to another file, in this order.

    Holds a bounded number of ids, but all places; headers have the length, so they are written at the end.
    """

    def __init__(self, file: BinaryIO, places_file: BinaryIO, vocab_size: int) -> None:
        self._file = file
        self._places_file = places_file
        self._flips = array("q")
        self._ends = array("q")
        self._vocab_size = vocab_size
        self._pending: list[Ids] = []
        self._pending_tokens = 0
        self._digest = hashlib.sha256()
        self._in_document = False
        self._tokens = 0
        self._text_bytes = 0
        for each in (file, places_file):
            each.write(bytes(_HEADER_BYTES))

    def add_text(self, ids: Ids, answers: Flags | None, text_bytes: int) -> None:
        """Append the ids of a part of a document that has `text_bytes` bytes of UTF-8; `answers` says of each id of a
        conversation whether it is an assistant's."""
        self._in_document = True
        self._text_bytes += text_bytes
        if answers is not None and len(answers):
            self._flip(self._tokens + self._pending_tokens, bool(answers[0]))
            changes = np.flatnonzero(answers[1:] != answers[:-1]) + 1
            for place in changes.tolist():
                self._flip(self._tokens + self._pending_tokens + place, bool(answers[place]))
        self._add(ids)

    def end_document(self, end_of_text: int) -> None:
        """Append the id that ends the current document, if any text was added since the last call."""
        if self._in_document:
            self._in_document = False
            place = self._tokens + self._pending_tokens
            begun = self._ends[-1] if self._ends else 0
            if self._flips and (len(self._flips) % 2 or self._flips[-1] > begun):
                self._flip(place, False)
            self._add(np.array([end_of_text], np.uint32))
            self._flip(place + 1, True)
            self._ends.append(place + 1)

    def _flip(self, place: int, counts: bool) -> None:
        """Note that tokens from here on are of plain text or of an answer, or are not."""
        if (len(self._flips) % 2 == 0) == counts:
            return
        if self._flips and self._flips[-1] == place:
            self._flips.pop()
        else:
            self._flips.append(place)

    def finish(self) -> dict[str, Any]:
        """Complete the file; returns the record (JSON values) that `open_token_file` checks it against."""
        self._flush()
        self._file.seek(0)
        self._file.write(_header(_dtype(self._vocab_size), self._tokens))
        places = np.array([*self._flips, *self._ends], _PLACE)
        self._places_file.write(places.tobytes())
        self._places_file.seek(0)
        self._places_file.write(_header(_PLACE, len(places)))
        return {
            "tokens": self._tokens,
            "documents": len(self._ends),
            "textBytes": self._text_bytes,
            "sha256": self._digest.hexdigest(),
            "flips": len(self._flips),
            "placesSha256": hashlib.sha256(places.tobytes()).hexdigest(),
        }

    def _add(self, ids: Ids) -> None:
        self._pending.append(ids)
        self._pending_tokens += len(ids)
        if self._pending_tokens >= _FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending_tokens:
            return
        ids = np.concatenate(self._pending)
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
            raise ValueError(f"the tokenizer gave an id outside its vocabulary of {self._vocab_size}")
        content = ids.astype(_dtype(self._vocab_size)).tobytes()
        self._digest.update(content)
        self._file.write(content)
        self._tokens += len(ids)
        self._pending = []
        self._pending_tokens = 0


def open_token_file(path: Path, record: Any, vocab_size: int, places_path: Path) -> TokenFile | None:
    """The token file at `path`, and its places; None unless both are there and exactly what `record` describes."""
    counts = _counts(record)
    if counts is None:
        return None
    tokens, documents, text_bytes = counts
    dtype = _dtype(vocab_size)
    try:
        with open_regular(path) as file:
            size = _HEADER_BYTES + tokens * dtype.itemsize
            if os.fstat(file.fileno()).st_size != size or file.read(_HEADER_BYTES) != _header(dtype, tokens):
                return None
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if int(np.frombuffer(chunk, dtype).max()) >= vocab_size:
                    return None
            if digest.hexdigest() != record.get("sha256"):
                return None
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            content: Tokens = np.frombuffer(mapping, dtype, tokens, _HEADER_BYTES)
        places = _read_places(places_path, record)
    except (OSError, ValueError):  # it was cut short meanwhile, or cannot be read
        return None  # the caller makes the file again, and then whatever forbids that is reported
    forms = record.get("forms", {})
    return places and TokenFile(path, content, documents, text_bytes, digest.hexdigest(), mapping, forms, *places)


def _read_places(path: Path, record: Mapping[str, Any]) -> tuple[Places, Places] | None:
    """Flips and ends."""
    flips = record.get("flips")
    if type(flips) is not int or not 0 <= flips <= record["tokens"] + 1:
        return None
    count = flips + record["documents"]
    with open_regular(path) as file:
        size = _HEADER_BYTES + count * _PLACE.itemsize
        if os.fstat(file.fileno()).st_size != size or file.read(_HEADER_BYTES) != _header(_PLACE, count):
            return None
        content = file.read(size)
    places = np.frombuffer(content, _PLACE)
    is_whole = hashlib.sha256(content).hexdigest() == record.get("placesSha256")
    return (places[:flips], places[flips:]) if is_whole else None


def _counts(record: Any) -> tuple[int, int, int] | None:
    if not isinstance(record, dict):
        return None
    counts: list[Any] = [record.get(name) for name in ("tokens", "documents", "textBytes")]
    forms = record.get("forms", {})
    if not isinstance(forms, dict):
        return None
    if not all(type(count) is int and 0 < count < _LARGEST_COUNT for count in (*counts, *forms.values())):
        return None
    tokens, documents, text_bytes = counts
    return tokens, documents, text_bytes


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _header(dtype: np.dtype[Any], tokens: int) -> bytes:
    """The header of an .npy file, version 1.0, of a flat array; the same bytes whatever version of numpy is used."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({tokens},), }}"
    length = _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + f"{description:<{length - 1}}\n".encode()
