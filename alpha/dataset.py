"""The training and validation data of a run: a corpus encoded once, divided, and kept in a cache of token files.

A cache entry is a folder named by what its content depends on: the bytes of the corpus files, the tokenizer, the part
to hold out and the version of the format. It has `train.npy`, `validation.npy` when a part is held out, and
`dataset.json`, which is written last. An entry that is incomplete or damaged is built again. Two processes that build
the same entry at once write the same bytes.

The split is by section (see corpus): a section is held out when a hash of its content says so, so that the same text is
always on the same side. An end-of-text id ends each document on each side that has a part of it. Knows nothing about
windows of tokens or about models.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from alpha import corpus, files
from alpha.errors import AlphaError
from alpha.token_file import Ids, TokenFile, TokenWriter, open_token_file

FORMAT_VERSION = 2
"""To be raised when the same corpus and tokenizer would give other token files than before."""

VALIDATION_FRACTION = 0.1

_FORMAT = "alpha-tokens"
_CHUNK_BYTES = 1 << 20
_SIDES = ("train", "validation")
_FEWEST_SECTIONS = 256  # aimed at when the corpus is small, so that about the asked part of it can be held out
_SMALLEST_SECTION = 1024  # characters

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, bytes_done, bytes_in_all) while a corpus is read; the stages: "hashing", "encoding"."""


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int: ...

    def encode_to_array(self, text: str, allow_special: bool = False) -> Ids: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class Dataset:
    """What a run trains on; `validation` is None when the corpus is too small to hold a part out."""

    train: TokenFile
    validation: TokenFile | None
    skipped: int
    """Files beside the corpus that were not read because they are hidden or of an unknown kind."""


def prepare(
    data: str,
    val_data: str,
    tokenizer: Encoder,
    cache_folder: Path,
    block: int,
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: Progress | None = None,
) -> Dataset:
    """The training and validation data of a run, from the cache where they are in it.

    With `val_data` all of `data` is for training; otherwise about `validation_fraction` of it is held out, unless that
    leaves either side without one window of `block` + 1 tokens: then nothing is. Raises AlphaError when the training
    data, or validation data that was asked for, has no such window, and for anything wrong with the files.
    """
    selection = corpus.find(data)
    if val_data:
        val_selection = corpus.find(val_data)
        train = _whole(selection, tokenizer, cache_folder, progress)
        validation = _whole(val_selection, tokenizer, cache_folder, progress)
        _require_window(train, block, "training")
        _require_window(validation, block, "validation")
        return Dataset(train, validation, selection.skipped + val_selection.skipped)
    train, held_out = _entry(selection.files, tokenizer, cache_folder, validation_fraction, progress)
    if held_out is not None and min(len(train.tokens), len(held_out.tokens)) <= block:
        train, held_out = _whole(selection, tokenizer, cache_folder, progress), None
    _require_window(train, block, "training")
    return Dataset(train, held_out, selection.skipped)


def encode_whole(data: str, tokenizer: Encoder, cache_folder: Path, progress: Progress | None = None) -> TokenFile:
    """All of a corpus as one token file of any length, from the cache where it is in it; what evaluation reads."""
    return _whole(corpus.find(data), tokenizer, cache_folder, progress)


def _whole(selection: corpus.Selection, tokenizer: Encoder, cache_folder: Path, progress: Progress | None) -> TokenFile:
    return _entry(selection.files, tokenizer, cache_folder, 0.0, progress)[0]


def _require_window(file: TokenFile, block: int, what: str) -> None:
    if len(file.tokens) <= block:
        raise AlphaError(
            f"The {what} data has {len(file.tokens):,} tokens but one window needs {block + 1:,}; "
            f"use a smaller --block or more data."
        )


def _entry(
    corpus_files: Sequence[corpus.CorpusFile],
    tokenizer: Encoder,
    cache_folder: Path,
    fraction: float,
    progress: Progress | None,
) -> tuple[TokenFile, TokenFile | None]:
    """The token files of one cache entry, which is built when it is not there or not intact."""
    states = [_state(file) for file in corpus_files]
    size = sum(state[0] for state in states)
    key = _key(corpus_files, tokenizer, fraction, _counter("hashing", size, progress))
    folder = cache_folder / key
    ready = _open(folder, key, tokenizer.vocab_size)
    if ready is None:
        section_characters = _section_characters(size)
        split = _choose_split(corpus_files, section_characters, fraction)

        def encode(outputs: Mapping[str, BinaryIO]) -> dict[str, Any]:
            sections = corpus.sections(corpus_files, section_characters, _counter("encoding", size, progress))
            records = _encode(sections, split, tokenizer, outputs)
            _require_unchanged(corpus_files, states)
            return records

        _build(folder, key, held_out=split.threshold > 0, encode=encode)
        ready = _open(folder, key, tokenizer.vocab_size)
    if ready is None:
        raise AlphaError(f"The token files in {folder} cannot be read back as they were written; check the disk.")
    return ready


def _open(folder: Path, key: str, vocab_size: int) -> tuple[TokenFile, TokenFile | None] | None:
    """The token files of an entry; None when it is missing, incomplete, damaged or not this entry at all."""
    try:
        description = files.read_json(folder / "dataset.json", "token cache", limit=1 << 16)
    except AlphaError:
        return None  # the entry is built again, and then whatever forbids that is reported
    if not isinstance(description, dict) or description.get("key") != key:
        return None
    train = open_token_file(_array(folder, "train"), description.get("train"), vocab_size)
    if train is None:
        return None
    if description.get("validation") is None:
        return train, None
    validation = open_token_file(_array(folder, "validation"), description["validation"], vocab_size)
    return None if validation is None else (train, validation)


def _build(folder: Path, key: str, held_out: bool, encode: Callable[[Mapping[str, BinaryIO]], dict[str, Any]]) -> None:
    """Write an entry; the arrays get their names when both are complete, and `dataset.json` is written last."""
    with contextlib.ExitStack() as stack:
        sides = _SIDES if held_out else _SIDES[:1]
        records = encode({side: stack.enter_context(files.replacing(_array(folder, side))) for side in sides})
    description = {"format": _FORMAT, "version": FORMAT_VERSION, "key": key, **dict.fromkeys(_SIDES), **records}
    files.write_json(folder / "dataset.json", description)


def _encode(
    sections: Iterator[corpus.Section], split: "_Split", tokenizer: Encoder, outputs: Mapping[str, BinaryIO]
) -> dict[str, Any]:
    """Write the tokens of each side to its file; returns the record of each."""
    writers = {side: TokenWriter(file, tokenizer.vocab_size) for side, file in outputs.items()}
    number = -1
    side = _SIDES[0]
    for section in sections:
        text = section.text.encode()
        if not section.continues_line:
            number += 1
            side = split.side(number, text)
        ids = tokenizer.encode_to_array(section.text, allow_special=True)  # a corpus of chats spells its markers
        writers[side].add_text(ids, len(text))
        if section.ends_document:
            for writer in writers.values():
                writer.end_document(tokenizer.end_of_text)
    return {side: writer.finish() for side, writer in writers.items()}


def _array(folder: Path, side: str) -> Path:
    return folder / f"{side}.npy"


@dataclass(frozen=True)
class _Split:
    """Holds out sections whose hash is below `threshold`, of 2^64; section number `exception` goes the other way."""

    threshold: int
    exception: int

    def side(self, number: int, text: bytes) -> str:
        return _SIDES[(_split_hash(text) < self.threshold) != (number == self.exception)]


_NO_SPLIT = _Split(threshold=0, exception=-1)


def _split_hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _section_characters(size: int) -> int:
    """The usual section length, less for a small corpus; a power of two, so that it seldom changes as one grows."""
    aim = max(_SMALLEST_SECTION, size // _FEWEST_SECTIONS)
    return min(corpus.SECTION_CHARACTERS, 1 << (aim.bit_length() - 1))


def _choose_split(corpus_files: Sequence[corpus.CorpusFile], section_characters: int, fraction: float) -> _Split:
    """The split that leaves a section on each side whenever there are two; reads until it has seen one of each."""
    threshold = int(fraction * 2.0**64)
    if threshold == 0:
        return _NO_SPLIT
    hashes: list[int] = []
    for section in corpus.sections(corpus_files, section_characters):
        if section.continues_line:
            continue
        hashes.append(_split_hash(section.text.encode()))
        if (hashes[-1] < threshold) != (hashes[0] < threshold):
            return _Split(threshold, exception=-1)
    if len(hashes) < 2:
        return _NO_SPLIT
    nearest = max(hashes) if hashes[0] < threshold else min(hashes)
    return _Split(threshold, exception=hashes.index(nearest))


def _key(
    corpus_files: Sequence[corpus.CorpusFile], tokenizer: Encoder, fraction: float, on_read: corpus.ReadReport
) -> str:
    contents = [[file.json_lines, file.compressed, _content_hash(file.path, on_read)] for file in corpus_files]
    dependencies = {
        "format": _FORMAT,
        "version": FORMAT_VERSION,
        "tokenizer": tokenizer.digest(),
        "vocabSize": tokenizer.vocab_size,
        "endOfText": tokenizer.end_of_text,
        "validationFraction": fraction,
        "files": contents,
    }
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:32]


def _content_hash(path: Path, on_read: corpus.ReadReport) -> str:
    digest = hashlib.sha256()
    try:
        with files.open_regular(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                on_read(len(chunk))
    except OSError as error:
        raise AlphaError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def _state(file: corpus.CorpusFile) -> tuple[int, int, int]:
    try:
        status = file.path.stat()
    except OSError as error:
        raise AlphaError(f"Cannot read {file.path}: {error.strerror or error}.") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def _require_unchanged(corpus_files: Sequence[corpus.CorpusFile], states: Sequence[tuple[int, int, int]]) -> None:
    for file, state in zip(corpus_files, states, strict=True):
        if _state(file) != state:
            raise AlphaError(f"{file.path} was changed while it was being read; start again when it is complete.")


def _counter(stage: str, total: int, progress: Progress | None) -> corpus.ReadReport:
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress(stage, done, total)

    return count
