"""The training and validation data of a run: a corpus encoded once, divided, and kept in a cache of token files.

An entry of the cache (see token_cache) is named by what its content depends on: the bytes of the corpus files, the
tokenizer, the part to hold out and the version of the format. One that is incomplete or damaged is built again. Two
processes that build the same entry at once write the same bytes.

The split is by section (see corpus): a section is held out when a hash of its content says so, so that the same text is
always on the same side. Where that holds out far more or less than asked, because there are few places to cut or few
documents, the last tokens are held out. Sections are cut where the tokenizer allows, so that the ids of a file do not
depend on what is beside it. An end-of-text id ends each document on each side that has a part of it. Knows nothing
about windows of tokens or about models.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from alpha import corpus, files, token_cache
from alpha.corpus_files import CorpusFile, Selection
from alpha.errors import AlphaError
from alpha.files import Progress
from alpha.token_file import Flags, Ids, TokenFile, TokenWriter, open_token_file
from alpha.tokenizer_pattern import Cuts

FORMAT_VERSION = 5
"""To be raised when the same corpus and tokenizer would give other token files than before."""

VALIDATION_FRACTION = 0.1

_FORMAT = "alpha-tokens"
_CHUNK_BYTES = 1 << 20
_SIDES = ("train", "validation")
_PLACES = "-places"
_FEWEST_SECTIONS = 256  # aimed at when the corpus is small, so that about the asked part of it can be held out
_SMALLEST_SECTION = 1024  # characters
_FAR = 1.5  # times more or less than asked
_SUSPICIOUS_GROWTH = 50  # bytes of token files for each of the corpus, when it is not small
_NOT_SMALL = 1 << 26

Warn = Callable[[str], None]


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]: ...

    @property
    def cuts(self) -> Cuts: ...

    def encode_to_array(self, text: str) -> Ids: ...

    def decode_bytes(self, ids: Ids) -> bytes: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class Dataset:
    """What a run trains on; `validation` is None when the corpus is too small to hold a part out."""

    train: TokenFile
    validation: TokenFile | None
    skipped: int
    """Files beside the corpus that were not read because they are hidden or of an unknown kind, and folders of runs."""


def prepare(
    data: Selection,
    val_data: Selection | None,
    tokenizer: Encoder,
    cache_folder: Path,
    least: Callable[[TokenFile], int],
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: Progress | None = None,
    warn: Warn = lambda sentence: None,
    write: corpus.Writer | None = None,
) -> Dataset:
    """The training and validation data of a run, from the cache where they are in it.

    With `val_data` all of `data` is for training; otherwise about `validation_fraction` of it is held out, unless that
    leaves either side with less than the `least` tokens that such data needs: then nothing is. Raises AlphaError when
    the training data, or validation data that was asked for, has less, and for anything wrong with the files. Where the
    cache cannot be written, token files live as long as the process, and `warn` gets the remedy. `write` writes
    conversations, otherwise they have Alpha's markers.
    """
    cache = _Cache(cache_folder, progress, warn, write)
    if val_data is not None:
        train = cache.whole(data.files, tokenizer)
        validation = cache.whole(val_data.files, tokenizer)
        _require_least(train, least, "training")
        _require_least(validation, least, "validation")
        return Dataset(train, validation, data.skipped + val_data.skipped)
    train, held_out = cache.entry(data.files, tokenizer, validation_fraction)
    by_hash = (train, held_out) if held_out is not None and _have_least(train, held_out, least) else None
    if by_hash is None or not _is_near(validation_fraction, *by_hash):
        whole = cache.whole(data.files, tokenizer)
        train, held_out = _hold_out_tail(whole, tokenizer, validation_fraction, least) or by_hash or (whole, None)
    _require_least(train, least, "training")
    return Dataset(train, held_out, data.skipped)


def encode_whole(
    data: Selection,
    tokenizer: Encoder,
    cache_folder: Path,
    progress: Progress | None = None,
    warn: Warn = lambda sentence: None,
    write: corpus.Writer | None = None,
) -> TokenFile:
    """All of a corpus as one token file of any length, from the cache where it is in it; what evaluation reads."""
    return _Cache(cache_folder, progress, warn, write).whole(data.files, tokenizer)


def _have_least(train: TokenFile, held_out: TokenFile, least: Callable[[TokenFile], int]) -> bool:
    return all(len(each.tokens) >= least(each) for each in (train, held_out))


def _is_near(fraction: float, train: TokenFile, held_out: TokenFile) -> bool:
    share = len(held_out.tokens) / (len(train.tokens) + len(held_out.tokens))
    return fraction / _FAR <= share <= fraction * _FAR


def _hold_out_tail(
    whole: TokenFile, tokenizer: Encoder, fraction: float, least: Callable[[TokenFile], int]
) -> tuple[TokenFile, TokenFile] | None:
    """The last `fraction` of the tokens held out; None when that leaves a side without a window."""
    count = int(fraction * len(whole.tokens))
    if min(count, len(whole.tokens) - count) < least(whole):
        return None
    tail = whole.tokens[len(whole.tokens) - count :]
    text_bytes = len(tokenizer.decode_bytes(tail[tail != tokenizer.end_of_text]))
    return whole.divide(count, text_bytes)


def _require_least(file: TokenFile, least: Callable[[TokenFile], int], what: str) -> None:
    if len(file.tokens) < least(file):
        raise AlphaError(
            f"The {what} data has {len(file.tokens):,} tokens but one window needs {least(file):,}; "
            f"use a smaller --block or more data."
        )


@dataclass(frozen=True)
class _Cache:
    """A cache folder, and whom to tell about the work on it."""

    folder: Path
    progress: Progress | None
    warn: Warn
    write: corpus.Writer | None

    def whole(self, corpus_files: Sequence[CorpusFile], tokenizer: Encoder) -> TokenFile:
        """All of a corpus as one token file."""
        return self.entry(corpus_files, tokenizer, 0.0)[0]

    def entry(
        self, corpus_files: Sequence[CorpusFile], tokenizer: Encoder, fraction: float
    ) -> tuple[TokenFile, TokenFile | None]:
        """The token files of one entry, which is built when it is not there or not intact."""
        states = [_state(file) for file in corpus_files]
        size = sum(state[0] for state in states)
        template = self.write.template if self.write else ""
        key = _key(corpus_files, tokenizer, fraction, template, corpus.counter("hashing", size, self.progress))
        ready = _open(self.folder / key, key, tokenizer.vocab_size)
        if ready is not None:
            token_cache.mark_used(self.folder / key)
            token_cache.trim(self.folder, kept={self.folder / key})
            return ready

        def encode(outputs: Mapping[str, BinaryIO]) -> dict[str, Any]:
            on_read = corpus.counter("encoding", size, self.progress)
            forms: Counter[str] = Counter()
            sections = corpus.sections(corpus_files, section_characters, on_read, tokenizer.cuts, forms, self.write)
            records = _encode(sections, split, tokenizer, outputs)
            records["train"]["forms"] = dict(forms)
            _require_unchanged(corpus_files, states)
            return records

        section_characters = _section_characters(size) if fraction else corpus.SECTION_CHARACTERS
        split = _choose_split(corpus_files, section_characters, tokenizer.cuts, fraction, self.write)
        with self._place(key) as folder, files.cache_room():
            _build(folder, key, held_out=split.threshold > 0, encode=encode)
            ready = _open(folder, key, tokenizer.vocab_size)
            if ready is None:
                raise AlphaError(
                    f"The token files in {folder} cannot be read back as they were written; check the disk."
                )
            self._warn_of_size(folder, sum(file.size for file in ready if file is not None), size)
        return ready

    @contextlib.contextmanager
    def _place(self, key: str) -> Iterator[Path]:
        """The folder of a new entry: in the cache, or a temporary one that goes at once, its files being open."""
        if token_cache.is_writable(self.folder):
            yield self.folder / key
            token_cache.trim(self.folder, kept={self.folder / key})
            return
        try:
            temporary = Path(tempfile.mkdtemp(prefix="alpha-tokens-"))
        except OSError as error:
            raise AlphaError(
                f"Neither the cache {self.folder} nor a folder for temporary files can be written "
                f"({error.strerror or error}); set XDG_CACHE_HOME or TMPDIR to a folder that can."
            ) from error
        self.warn(
            f"The cache {self.folder} cannot be written; the encoded corpus is in {temporary.parent} and lasts as long "
            f"as this process. Set XDG_CACHE_HOME to a folder that can be written to keep it."
        )
        try:
            yield temporary / key
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _warn_of_size(self, folder: Path, size: int, corpus_size: int) -> None:
        large = f"The encoded corpus takes {size / 1e6:,.0f} MB in {folder.parent}"
        if size > token_cache.limit():
            self.warn(
                f"{large}, more than the limit of the cache; it is deleted when another is encoded. "
                f"ALPHA_TOKEN_CACHE_MIB sets the limit."
            )
        elif size > _NOT_SMALL and size > _SUSPICIOUS_GROWTH * corpus_size:
            self.warn(
                f"{large}, though its files have {corpus_size / 1e6:,.1f} MB: they hold far more than they seem to."
            )


def _open(folder: Path, key: str, vocab_size: int) -> tuple[TokenFile, TokenFile | None] | None:
    """The token files of an entry; None when it is missing, incomplete, damaged or not this entry at all."""
    try:
        description = files.read_json(folder / token_cache.DESCRIPTION, "token cache", limit=1 << 16)
    except AlphaError:
        return None  # the entry is built again, and then whatever forbids that is reported
    if not isinstance(description, dict) or description.get("key") != key:
        return None
    train = open_token_file(_array(folder, "train"), description.get("train"), vocab_size, _places(folder, "train"))
    if train is None:
        return None
    if description.get("validation") is None:
        return train, None
    record = description["validation"]
    validation = open_token_file(_array(folder, "validation"), record, vocab_size, _places(folder, "validation"))
    return None if validation is None else (train, validation)


def _build(folder: Path, key: str, held_out: bool, encode: Callable[[Mapping[str, BinaryIO]], dict[str, Any]]) -> None:
    """Write an entry; the arrays get their names when both are complete, and the description is written last."""
    with contextlib.ExitStack() as stack:
        sides = _SIDES if held_out else _SIDES[:1]
        outputs = {
            name: stack.enter_context(files.replacing(path))
            for side in sides
            for name, path in ((side, _array(folder, side)), (side + _PLACES, _places(folder, side)))
        }
        records = encode(outputs)
    description = {"format": _FORMAT, "version": FORMAT_VERSION, "key": key, **dict.fromkeys(_SIDES), **records}
    files.write_json(folder / token_cache.DESCRIPTION, description)


def _encode(
    sections: Iterator[corpus.Section], split: "_Split", tokenizer: Encoder, outputs: Mapping[str, BinaryIO]
) -> dict[str, Any]:
    """Write the tokens of each side to its file; returns the record of each."""
    writers = {
        side: TokenWriter(outputs[side], outputs[side + _PLACES], tokenizer.vocab_size)
        for side in _SIDES
        if side in outputs
    }
    for number, section in enumerate(sections):
        text = section.text.encode()
        writers[split.side(number, text)].add_text(*_ids(section, tokenizer), len(text))
        if section.ends_document:
            for writer in writers.values():
                writer.end_document(tokenizer.end_of_text)
    return {side: writer.finish() for side, writer in writers.items()}


def _ids(section: corpus.Section, tokenizer: Encoder) -> tuple[Ids, Flags | None]:
    """The ids of a section, its markers being special tokens where the tokenizer has them; and of each, in a
    conversation, whether it is an assistant's.

    No token reaches across the beginning or the end of an answer.
    """
    if not section.parts:
        return tokenizer.encode_to_array(section.text), None
    ids: list[Ids] = []
    answers: list[Flags] = []

    def add(added: Ids, is_answer: bool) -> None:
        ids.append(added)
        answers.append(np.full(len(added), is_answer))

    def add_text(text: str, is_answer: bool) -> None:
        if text:
            add(tokenizer.encode_to_array(text), is_answer)

    text, said = "", False  # what is to be encoded in one go, and whose it is
    for part in section.parts:
        here = section.text[part.start : part.end]
        marker = tokenizer.special_tokens.get(here) if part.is_marker else None
        if marker is not None or part.is_answer != said:
            add_text(text, said)
            text, said = "", part.is_answer
        if marker is None:
            text += here
        else:
            add(np.array([marker], np.uint32), part.is_answer)
    add_text(text, said)
    return np.concatenate(ids), np.concatenate(answers)


def _array(folder: Path, side: str) -> Path:
    return folder / token_cache.ARRAYS[side]


def _places(folder: Path, side: str) -> Path:
    return folder / token_cache.PLACES[side]


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


def _choose_split(
    corpus_files: Sequence[CorpusFile],
    section_characters: int,
    cuts: Cuts,
    fraction: float,
    write: corpus.Writer | None,
) -> _Split:
    """The split that leaves a section on each side whenever there are two; reads until it has seen one of each."""
    threshold = int(fraction * 2.0**64)
    if threshold == 0:
        return _NO_SPLIT
    hashes: list[int] = []
    for section in corpus.sections(corpus_files, section_characters, cuts=cuts, write=write):
        hashes.append(_split_hash(section.text.encode()))
        if (hashes[-1] < threshold) != (hashes[0] < threshold):
            return _Split(threshold, exception=-1)
    if len(hashes) < 2:
        return _NO_SPLIT
    nearest = max(hashes) if hashes[0] < threshold else min(hashes)
    return _Split(threshold, exception=hashes.index(nearest))


def _key(
    corpus_files: Sequence[CorpusFile],
    tokenizer: Encoder,
    fraction: float,
    template: str,
    on_read: corpus.ReadReport,
) -> str:
    contents = [
        [
            file.json_lines,
            file.json_array,
            file.compressed,
            file.text_field,
            file.skip_bad_lines,
            _content_hash(file, on_read),
        ]
        for file in corpus_files
    ]
    dependencies = {
        "format": _FORMAT,
        "version": FORMAT_VERSION,
        "tokenizer": tokenizer.digest(),
        "vocabSize": tokenizer.vocab_size,
        "template": template,
        "endOfText": tokenizer.end_of_text,
        "validationFraction": fraction,
        "files": contents,
    }
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:32]


def _content_hash(file: CorpusFile, on_read: corpus.ReadReport) -> str:
    digest = hashlib.sha256()
    try:
        with file.open() as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
                on_read(len(chunk))
    except OSError as error:
        raise AlphaError(f"Cannot read {file.path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def _state(file: CorpusFile) -> tuple[int, int, int]:
    status = corpus.status_of(file)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _require_unchanged(corpus_files: Sequence[CorpusFile], states: Sequence[tuple[int, int, int]]) -> None:
    for file, state in zip(corpus_files, states, strict=True):
        if _state(file) != state:
            raise AlphaError(f"{file.path} was changed while it was being read; start again when it is complete.")
