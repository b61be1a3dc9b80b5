"""A flat array of token ids on disk: written in one pass, checked when opened, memory-mapped.

The file is an .npy file (uint16 while the vocabulary fits, otherwise uint32), so `numpy.load` reads it too. Its length,
SHA-256 and what it was made from are a record that the caller keeps (see dataset).
"""

import hashlib
import mmap
import os
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

Ids = npt.NDArray[np.integer[Any]]
Tokens = npt.NDArray[np.unsignedinteger[Any]]


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

    def divide(self, count: int, end_of_text: int, text_bytes: int) -> "tuple[TokenFile, TokenFile]":
        """All tokens but the last `count`, and these, whose text has `text_bytes` bytes, as two token files."""
        place = len(self.tokens) - count
        first, last = self.tokens[:place], self.tokens[place:]
        return (
            self._part(first, end_of_text, max(0, self.text_bytes - text_bytes)),
            self._part(last, end_of_text, text_bytes),
        )

    def _part(self, tokens: Tokens, end_of_text: int, text_bytes: int) -> "TokenFile":
        documents = int(np.count_nonzero(tokens == end_of_text)) + int(tokens[-1] != end_of_text)
        digest = hashlib.sha256(tokens.view(np.uint8).data).hexdigest()
        return replace(self, tokens=tokens, documents=documents, text_bytes=text_bytes, digest=digest)


class TokenWriter:
    """Writes one token file. Holds a bounded number of ids; the header has the length, so it is written at the end."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self._file = file
        self._vocab_size = vocab_size
        self._pending: list[Ids] = []
        self._pending_tokens = 0
        self._digest = hashlib.sha256()
        self._in_document = False
        self._tokens = 0
        self._documents = 0
        self._text_bytes = 0
        file.write(bytes(_HEADER_BYTES))

    def add_text(self, ids: Ids, text_bytes: int) -> None:
        """Append the ids of a part of a document that has `text_bytes` bytes of UTF-8."""
        self._in_document = True
        self._text_bytes += text_bytes
        self._add(ids)

    def end_document(self, end_of_text: int) -> None:
        """Append the id that ends the current document, if any text was added since the last call."""
        if self._in_document:
            self._in_document = False
            self._documents += 1
            self._add(np.array([end_of_text], np.uint32))

    def finish(self) -> dict[str, Any]:
        """Complete the file; returns the record (JSON values) that `open_token_file` checks it against."""
        self._flush()
        self._file.seek(0)
        self._file.write(_header(_dtype(self._vocab_size), self._tokens))
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "textBytes": self._text_bytes,
            "sha256": self._digest.hexdigest(),
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


def open_token_file(path: Path, record: Any, vocab_size: int) -> TokenFile | None:
    """The token file at `path`; None unless it is there and is exactly the file that `record` describes."""
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
            array: Tokens = np.frombuffer(mapping, dtype, tokens, _HEADER_BYTES)
    except (OSError, ValueError):  # it was cut short meanwhile, or cannot be read
        return None  # the caller makes the file again, and then whatever forbids that is reported
    return TokenFile(path, array, documents, text_bytes, digest.hexdigest(), mapping, record.get("forms", {}))


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
