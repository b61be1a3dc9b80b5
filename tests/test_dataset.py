import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpha import corpus, corpus_files, dataset, token_cache, token_file, tokenizer_registry
from alpha.errors import AlphaError
from alpha.token_file import TokenFile
from alpha.tokenizer import Tokenizer
from alpha.tokenizer_bpe import build_bpe
from alpha.tokenizer_pattern import CUTS
from alpha.tokenizer_simple import build_char, build_word

quick = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prepare(
    data: str, val_data: str, tokenizer: dataset.Encoder, cache: Path, block: int, **options: Any
) -> dataset.Dataset:
    validation = corpus_files.find(val_data) if val_data else None
    return dataset.prepare(corpus_files.find(data), validation, tokenizer, cache, lambda file: block + 1, **options)


def encode_whole(data: str, tokenizer: dataset.Encoder, cache: Path, **options: Any) -> TokenFile:
    return dataset.encode_whole(corpus_files.find(data), tokenizer, cache, **options)


class ByteTokenizer:
    """One id for each byte of UTF-8, plus `shift`; the last id ends a text."""

    def __init__(self, vocab_size: int = 257, shift: int = 0, name: str = "bytes") -> None:
        self.vocab_size = vocab_size
        self.end_of_text = vocab_size - 1
        self.shift = shift
        self.name = name
        self.before_encoding: Callable[[], None] = lambda: None
        self.special_tokens = {"<|endoftext|>": self.end_of_text}
        self.cuts = CUTS

    def encode_to_array(self, text: str) -> npt.NDArray[np.int32]:
        self.before_encoding()
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.shift

    def decode_bytes(self, ids: Any) -> bytes:
        return bytes((np.asarray(ids) - self.shift).astype(np.uint8))

    def digest(self) -> str:
        return self.name


def lines(count: int, start: int = 0) -> str:
    return "".join(f"This is line number {number} of the corpus.\n" for number in range(start, start + count))


TOKENIZER = ByteTokenizer()

WORDS_OF_ALL_KINDS = (
    "word", " word", "Don't", "it'S", " 12345", "7", "_", ".", "...", " !?", "\u3002", "\u6c34", "e\u0301", "\u0301",
    " ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\n    ", " \n", ":\n", "\u00a0", "\u2028", "\x1c", "\x85", "-",
    "\U0001f642", "\u00b2", "\u2167", "(", ")", ",", ";",
)  # fmt: skip
TOKENIZERS: dict[str, Tokenizer] = {
    "gpt2": build_bpe(["".join(WORDS_OF_ALL_KINDS) * 3, lines(50)], 400),
    "llama3": build_bpe(["".join(WORDS_OF_ALL_KINDS) * 3, lines(50)], 400, pattern="llama3"),
    "word": build_word(["".join(WORDS_OF_ALL_KINDS)]),
    "char": build_char(["".join(WORDS_OF_ALL_KINDS)]),
}


def refuse() -> None:
    pytest.fail("nothing was to be encoded")


READER = ByteTokenizer()
READER.before_encoding = refuse


def texts(file: TokenFile | None) -> list[str]:
    """The documents of a token file."""
    if file is None:
        return []
    *whole, rest = bytes_of(file).split(b"\xff")
    assert rest == b"", "the last token ends a document"
    return [text.decode() for text in whole]


def bytes_of(file: TokenFile) -> bytes:
    return np.where(file.tokens == TOKENIZER.end_of_text, 255, file.tokens).astype(np.uint8).tobytes()


def write_json_lines(path: Path, documents: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


@pytest.fixture
def book(tmp_path: Path) -> str:
    """One document of some 90 kB."""
    (tmp_path / "book.txt").write_text(lines(2000))
    return str(tmp_path / "book.txt")


class TestContent:
    @quick
    @given(st.lists(st.text(max_size=30), min_size=1, max_size=12))
    def test_whole_corpus_equals_direct_encoding(self, tmp_path: Path, documents: list[str]) -> None:
        data = write_json_lines(tmp_path / "a.jsonl", documents)
        kept = [text for text in documents if text.strip()]
        if not kept:
            with pytest.raises(AlphaError, match="corpus is empty"):
                encode_whole(data, TOKENIZER, tmp_path / "cache")
            return
        for _ in range(2):
            file = encode_whole(data, TOKENIZER, tmp_path / "cache")
            assert file.tokens.tolist() == [token for text in kept for token in (*text.encode(), 256)]
            assert file.documents == len(kept)
            assert file.text_bytes == sum(len(text.encode()) for text in kept)

    @quick
    @given(
        st.lists(st.sampled_from(WORDS_OF_ALL_KINDS), min_size=150, max_size=600),
        st.sampled_from(["gpt2", "llama3", "word", "char"]),
        st.integers(20, 200),
    )
    def test_the_ids_of_a_file_do_not_depend_on_the_size_of_its_sections(
        self, tmp_path: Path, words: list[str], kind: str, size: int
    ) -> None:
        text = "".join(words)
        if not text.strip():
            return
        (tmp_path / "a.txt").write_bytes(text.encode())
        tokenizer = TOKENIZERS[kind]
        selection = corpus_files.find(str(tmp_path / "a.txt"))
        parts = list(corpus.sections(selection.files, size, cuts=tokenizer.cuts))
        ids = [token for part in parts for token in tokenizer.encode(part.text)]
        assert ids == tokenizer.encode(text)

    def test_a_file_has_the_same_ids_alone_and_beside_others(self, tmp_path: Path) -> None:
        tokenizer = TOKENIZERS["gpt2"]
        source = "".join(f"def name_{n}(x):\n    return x + {n}  # one\n\n\n" for n in range(900))
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "a.py").write_text(source)
        ids = [*tokenizer.encode(source), tokenizer.end_of_text]
        alone = encode_whole(str(folder), tokenizer, tmp_path / "cache")
        (folder / "b.txt").write_text(lines(200_000))
        beside = encode_whole(str(folder), tokenizer, tmp_path / "cache")
        assert alone.tokens.tolist() == ids == beside.tokens[: len(ids)].tolist()
        (folder / "b.txt").unlink()
        result = prepare(str(folder), "", tokenizer, tmp_path / "cache", block=64)
        assert result.validation is not None
        sides = [result.train.tokens.tolist(), result.validation.tokens.tolist()]
        assert sorted(sides[0] + sides[1]) == sorted([*ids, tokenizer.end_of_text])

    def test_only_markers_of_conversations_are_special(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_registry.build("bpe-chat-4k", [lines(20)])
        chat = "<|user|>Hi<|end|>\n<|assistant|>Ho<|end|>"
        spelled = "It says <|endoftext|>, <|user|> or </s>."
        messages = [{"role": "user", "content": spelled}, {"role": "assistant", "content": "<|end|>"}]
        rows = [{"text": spelled}, {"text": chat}, {"messages": messages}]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "b.txt").write_text(f"{chat}<|endoftext|>See <|user|>.")
        ids = encode_whole(f"{tmp_path}/a.jsonl,{tmp_path}/b.txt", tokenizer, tmp_path / "cache").tokens
        special = {number: name for name, number in tokenizer.special_tokens.items()}
        assert [special[token] for token in ids.tolist() if token in special] == [
            *["<|endoftext|>"] * 2, *("<|user|>", "<|end|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
            *("<|user|>", "<|end|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>",
        ]  # fmt: skip
        assert tokenizer.decode(ids).count("<|endoftext|>") == 7
        plain = encode_whole(f"{tmp_path}/b.txt", TOKENIZER, tmp_path / "cache")
        assert texts(plain) == [chat, "See <|user|>."], "a tokenizer without markers reads them as text"

    def test_divided_document_ends_once_on_each_side(self, book: str, tmp_path: Path) -> None:
        result = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        assert result.validation is not None
        for file in (result.train, result.validation):
            assert file.documents == len(texts(file)) == 1
            assert file.text_bytes == len(file.tokens) - 1

    def test_ids_take_two_bytes_while_the_vocabulary_fits(self, book: str, tmp_path: Path) -> None:
        for vocab_size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
            tokenizer = ByteTokenizer(vocab_size, shift=vocab_size - 300)
            file = encode_whole(book, tokenizer, tmp_path / "cache")
            assert file.tokens.dtype == dtype
            assert int(file.tokens[-1]) == vocab_size - 1
            assert file.tokens[0] == ord("T") + vocab_size - 300

    def test_token_file_is_what_numpy_itself_writes(self, book: str, tmp_path: Path) -> None:
        file = encode_whole(book, TOKENIZER, tmp_path / "cache")
        np.save(tmp_path / "other.npy", file.tokens)
        assert file.path.read_bytes() == (tmp_path / "other.npy").read_bytes()

    def test_tokens_are_read_only(self, book: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="read-only"):
            encode_whole(book, TOKENIZER, tmp_path / "cache").tokens[0] = 1

    def test_ids_outside_the_vocabulary_are_refused(self, book: str, tmp_path: Path) -> None:
        for shift in (-300, 200):
            with pytest.raises(ValueError, match="outside its vocabulary of 257"):
                encode_whole(book, ByteTokenizer(shift=shift), tmp_path / "cache")

    def test_many_flushes_give_the_same_tokens(
        self, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_file, "_FLUSH_TOKENS", 1000)
        file = encode_whole(book, TOKENIZER, tmp_path / "cache")
        assert texts(file) == [lines(2000)]

    def test_bits_are_equal_across_runs(self, book: str, tmp_path: Path) -> None:
        contents = []
        for name in ("one", "two"):
            prepare(book, "", TOKENIZER, tmp_path / name, block=64)
            entry = tmp_path / name
            contents.append({path.relative_to(entry): path.read_bytes() for path in entry.rglob("*") if path.is_file()})
        assert contents[0] == contents[1]
        assert len(contents[0]) == 5

    def test_skipped_files_are_counted(self, book: str, tmp_path: Path) -> None:
        (tmp_path / "picture.png").touch()
        (tmp_path / ".cache").mkdir()
        assert prepare(book, "", TOKENIZER, tmp_path / ".cache", block=64).skipped == 0
        assert prepare(str(tmp_path), "", TOKENIZER, tmp_path / ".cache", block=64).skipped == 2
        assert prepare(book, str(tmp_path), TOKENIZER, tmp_path / ".cache", block=64).skipped == 2

    def test_progress_reaches_the_end_of_each_stage(self, book: str, tmp_path: Path) -> None:
        reports: dict[str, list[tuple[int, int]]] = {}
        size = Path(book).stat().st_size

        def progress(stage: str, done: int, total: int) -> None:
            reports.setdefault(stage, []).append((done, total))

        prepare(book, "", TOKENIZER, tmp_path / "cache", block=64, progress=progress)
        assert list(reports) == ["hashing", "encoding"]
        assert all(steps == sorted(steps) and steps[-1] == (size, size) for steps in reports.values())


class TestSplit:
    @quick
    @given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([0.05, 0.3, 0.6]), st.booleans())
    def test_split_is_a_partition_in_order(
        self, tmp_path: Path, count: int, words: int, fraction: float, marked: bool
    ) -> None:
        all_lines = [f"{number} " + "word " * (number * 7919 % words) + "\n" for number in range(count)]
        text = "".join(line + "<|endoftext|>" * (marked and len(line) % 5 == 0) for line in all_lines)
        (tmp_path / "a.txt").write_text(text)
        result = prepare(
            str(tmp_path / "a.txt"), "", TOKENIZER, tmp_path / "cache", block=1, validation_fraction=fraction
        )
        files = [file for file in (result.train, result.validation) if file is not None]
        pieces = [bytes_of(file).replace(b"\xff", b"").decode() for file in files]
        assert sorted("".join(pieces)) == sorted("".join(all_lines))
        if len(files) == 2:
            share = len(files[1].tokens) / sum(len(file.tokens) for file in files)
            assert count < 100 or fraction / 1.6 < share < fraction * 1.6

    @quick
    @given(st.lists(st.sampled_from(["same", "other"]) | st.text("abc", min_size=1), min_size=1, max_size=6))
    def test_nothing_is_lost_and_each_side_has_something_whenever_there_are_two(
        self, tmp_path: Path, documents: list[str]
    ) -> None:
        data = write_json_lines(tmp_path / "a.jsonl", documents)
        for fraction in (0.1, 0.9):
            result = prepare(data, "", TOKENIZER, tmp_path / "cache", block=1, validation_fraction=fraction)
            assert result.validation is not None or len(documents) == 1
            sides = [bytes_of(file) for file in (result.train, result.validation) if file is not None]
            assert sorted(b"".join(sides)) == sorted(b"".join(text.encode() + b"\xff" for text in documents))

    def test_about_the_asked_part_is_held_out_and_equal_texts_stay_together(self, tmp_path: Path) -> None:
        documents = [f"Document number {number % 4000}." for number in range(6000)]
        data = write_json_lines(tmp_path / "a.jsonl", documents)
        for fraction in (0.1, 0.25):
            result = prepare(data, "", TOKENIZER, tmp_path / "cache", block=8, validation_fraction=fraction)
            train, validation = texts(result.train), texts(result.validation)
            assert abs(len(validation) / 6000 - fraction) < 0.02
            assert not set(train) & set(validation)

    def test_a_text_stays_on_its_side_when_the_corpus_grows(self, tmp_path: Path) -> None:
        documents = [f"Document number {number}." for number in range(3000)]
        small = prepare(
            write_json_lines(tmp_path / "a.jsonl", documents[:2000]), "", TOKENIZER, tmp_path / "c", block=8
        )
        large = prepare(write_json_lines(tmp_path / "b.jsonl", documents), "", TOKENIZER, tmp_path / "c", block=8)
        assert set(texts(small.validation)) == set(texts(large.validation)) & set(documents[:2000])

    @pytest.mark.parametrize("count", [6000, 25_000, 100_000])
    def test_small_corpus_of_one_file_has_about_a_tenth_held_out(self, tmp_path: Path, count: int) -> None:
        (tmp_path / "a.txt").write_text(lines(count))
        result = prepare(str(tmp_path), "", TOKENIZER, tmp_path / ".cache", block=64)
        assert result.validation is not None
        assert 0.07 < result.validation.text_bytes / len(lines(count)) < 0.14

    @pytest.mark.parametrize(
        "text",
        [
            "the river and the boat and the stone " * 3000, "the river and the boat\r" * 4000, "GATTACA" * 20_000,
            "same line\n" * 9000, "one line\n" + "GATTACA" * 20_000,
            "\u6c34\u3002\u706b" * 9000, "a\r\n\tb \r\n" * 9000,
            "word\u00a0" * 20_000, "x" * 400 + "\n",
        ],
        ids=["one line", "CR", "one word", "equal", "two lines", "no spaces", "CRLF", "no-break", "short"],
    )  # fmt: skip
    def test_a_tenth_is_held_out_of_any_text(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.txt").write_bytes(text.encode())
        for tokenizer in (TOKENIZER, TOKENIZERS["gpt2"], build_char([text])):
            result = prepare(str(tmp_path / "a.txt"), "", tokenizer, tmp_path / ".cache", block=16)
            assert result.validation is not None
            sides = (result.train, result.validation)
            whole = encode_whole(str(tmp_path / "a.txt"), tokenizer, tmp_path / ".cache")
            assert 0.06 < len(result.validation.tokens) / len(whole.tokens) < 0.16
            assert sum(side.text_bytes for side in sides) == whole.text_bytes == len(text.encode())
            assert result.train.digest != result.validation.digest != whole.digest

    def test_what_is_held_out_of_the_tail_is_described_as_it_is(self, tmp_path: Path) -> None:
        text = "GATTACA" * 300
        (tmp_path / "a.txt").write_text("first<|endoftext|>" + text)
        result = prepare(str(tmp_path / "a.txt"), "", TOKENIZER, tmp_path / ".cache", block=16)
        assert result.validation is not None
        assert (result.train.documents, result.validation.documents) == (2, 1)
        assert bytes_of(result.train) + bytes_of(result.validation) == b"first\xff" + text.encode() + b"\xff"
        for side in (result.train, result.validation):
            assert side.text_bytes == int(np.count_nonzero(side.tokens != TOKENIZER.end_of_text))
            assert side.digest == hashlib.sha256(side.tokens.tobytes()).hexdigest()

    def test_one_section_is_all_for_training(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(lines(10))
        result = prepare(str(tmp_path), "", TOKENIZER, tmp_path / ".cache", block=64)
        assert result.validation is None
        assert texts(result.train) == [lines(10)]

    def test_nothing_is_held_out_when_either_side_would_lack_a_window(self, tmp_path: Path) -> None:
        data = write_json_lines(tmp_path / "a.jsonl", ["a" * 50, "b" * 50])
        assert prepare(data, "", TOKENIZER, tmp_path / "cache", block=50).validation is not None
        result = prepare(data, "", TOKENIZER, tmp_path / "cache", block=51)
        assert result.validation is None
        assert texts(result.train) == ["a" * 50, "b" * 50]

    def test_corpus_shorter_than_a_window(self, tmp_path: Path) -> None:
        data = write_json_lines(tmp_path / "a.jsonl", ["a" * 50, "b" * 50])
        assert len(prepare(data, "", TOKENIZER, tmp_path / "cache", block=101).train.tokens) == 102
        message = "The training data has 102 tokens but one window needs 103; use a smaller --block or more data."
        with pytest.raises(AlphaError, match=re.escape(message)):
            prepare(data, "", TOKENIZER, tmp_path / "cache", block=102)

    def test_with_validation_data_all_other_data_is_for_training(self, book: str, tmp_path: Path) -> None:
        (tmp_path / "val.txt").write_text(lines(30, start=5000))
        result = prepare(book, str(tmp_path / "val.txt"), TOKENIZER, tmp_path / "cache", block=64)
        assert texts(result.train) == [lines(2000)]
        assert texts(result.validation) == [lines(30, start=5000)]
        with pytest.raises(AlphaError, match="The validation data has"):
            prepare(book, str(tmp_path / "val.txt"), TOKENIZER, tmp_path / "cache", block=5000)


class TestCache:
    def test_second_preparation_reads_the_cache(self, book: str, tmp_path: Path) -> None:
        first = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        moved = Path(book).rename(tmp_path / "moved.md")
        os.utime(moved, (1, 1))
        second = prepare(str(moved), "", READER, tmp_path / "cache", block=64)
        assert second.train.path == first.train.path
        assert np.array_equal(second.train.tokens, first.train.tokens)

    def test_entry_depends_on_content_tokenizer_and_part(self, book: str, tmp_path: Path) -> None:
        paths = set()

        def add(tokenizer: ByteTokenizer = TOKENIZER, fraction: float = 0.1) -> None:
            result = prepare(book, "", tokenizer, tmp_path / "cache", block=64, validation_fraction=fraction)
            assert ord("T") + tokenizer.shift in result.train.tokens[:2]
            paths.add(result.train.path)

        add()
        add(fraction=0.2)
        add(ByteTokenizer(name="shifted", shift=1, vocab_size=300))
        wider = ByteTokenizer(vocab_size=300)
        wider.end_of_text = 256
        add(wider)
        wider.end_of_text = 299
        add(wider)
        with Path(book).open("r+b") as file:
            file.seek(50_000)
            file.write(b"!")
        add()
        assert len(paths) == 6

    def test_same_text_in_other_files_is_another_entry(self, tmp_path: Path) -> None:
        folders = {"one": ["ab", "c"], "two": ["a", "bc"]}
        for name, contents in folders.items():
            (tmp_path / name).mkdir()
            for number, content in enumerate(contents):
                (tmp_path / name / f"{number}.txt").write_text(content)
            assert texts(encode_whole(str(tmp_path / name), TOKENIZER, tmp_path / "cache")) == contents

    @pytest.mark.parametrize(
        "damage",
        ["truncate", "flip", "header", "missing", "no validation", "not json", "list", "key", "counts", "foreign ids"],
    )
    def test_damaged_entry_is_built_again(self, book: str, tmp_path: Path, damage: str) -> None:
        def ready() -> dataset.Dataset:
            return prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)

        first = ready()
        train, description = first.train.path, first.train.path.with_name("dataset.json")
        tokens, content, record = first.train.tokens.tolist(), train.read_bytes(), json.loads(description.read_text())
        del first
        self.damage(damage, train, description)
        again = ready()
        assert again.train.tokens.tolist() == tokens
        assert again.validation is not None
        assert (train.read_bytes(), json.loads(description.read_text())) == (content, record)
        prepare(book, "", READER, tmp_path / "cache", block=64)

    @staticmethod
    def damage(kind: str, train: Path, description: Path) -> None:
        content = bytearray(train.read_bytes())
        record = json.loads(description.read_text())
        if kind == "truncate":
            train.write_bytes(content[:-1])
        elif kind == "flip":
            content[1000] ^= 1
            train.write_bytes(content)
        elif kind == "header":
            train.write_bytes(content.replace(b"<u2", b"<i2"))
        elif kind == "missing":
            train.unlink()
        elif kind == "no validation":
            train.with_name("validation.npy").unlink()
        elif kind == "not json":
            description.write_text("{")
        elif kind == "list":
            description.write_text("[]")
        elif kind == "key":
            description.write_text(json.dumps({**record, "key": "0" * 32}))
        elif kind == "counts":
            record["train"]["textBytes"] = "5"
            description.write_text(json.dumps(record))
        elif kind == "foreign ids":
            content[-2:] = b"\xff\xff"
            train.write_bytes(content)
            record["train"]["sha256"] = hashlib.sha256(content[128:]).hexdigest()
            description.write_text(json.dumps(record))

    def test_interrupted_preparation_leaves_nothing(self, book: str, tmp_path: Path) -> None:
        tokenizer = ByteTokenizer()
        calls = 0

        def interrupt() -> None:
            nonlocal calls
            calls += 1
            if calls == 20:
                raise KeyboardInterrupt

        tokenizer.before_encoding = interrupt
        with pytest.raises(KeyboardInterrupt):
            prepare(book, "", tokenizer, tmp_path / "cache", block=64)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_bad_corpus_leaves_nothing(self, book: str, tmp_path: Path) -> None:
        with Path(book).open("ab") as file:
            file.write(b"\xff")
        with pytest.raises(AlphaError, match=r"book\.txt is not a text file"):
            prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_file_that_changes_meanwhile_is_refused(self, book: str, tmp_path: Path) -> None:
        tokenizer = ByteTokenizer()
        tokenizer.before_encoding = lambda: os.utime(book, (1, 1))
        with pytest.raises(AlphaError, match=r"book\.txt was changed while it was being read"):
            prepare(book, "", tokenizer, tmp_path / "cache", block=64)
        assert len(prepare(book, "", TOKENIZER, tmp_path / "cache", block=64).train.tokens) > 0

    def test_where_the_cache_cannot_be_written_token_files_are_temporary(
        self, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").touch()
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        warnings: list[str] = []
        result = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64, warn=warnings.append)
        assert "XDG_CACHE_HOME" in warnings[0]
        assert str(tmp_path / "temporary") in warnings[0]
        assert len(result.train.tokens) > 64
        result.train.require_whole()
        assert list((tmp_path / "temporary").iterdir()) == []
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        with pytest.raises(AlphaError, match="set XDG_CACHE_HOME or TMPDIR"):
            prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)

    def test_a_full_cache_says_how_to_have_it_elsewhere(
        self, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", disk_is_full)
        with pytest.raises(AlphaError, match=r"^Cannot write .*\.npy: No space left on device\. .*XDG_CACHE_HOME"):
            prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)

    def test_a_cache_that_may_only_be_read_is_read(self, book: str, tmp_path: Path) -> None:
        prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_cache, "is_writable", lambda cache: pytest.fail("nothing was to be written"))
            patch.setattr(os, "utime", refuse_to_write)
            prepare(book, "", READER, tmp_path / "cache", block=64)

    def test_the_cache_is_bounded_and_the_least_recently_used_goes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALPHA_TOKEN_CACHE_MIB", "1")
        cache = tmp_path / "cache"

        def add(number: int) -> Path:
            path = tmp_path / f"{number}.txt"
            path.write_text(lines(5000, start=10_000 * number))  # some 410 kB of tokens
            return encode_whole(str(path), TOKENIZER, cache).path.parent

        for foreign in ("notes", "0" * 31):
            (cache / foreign).mkdir(parents=True)
            (cache / foreign / "train.npy").write_bytes(bytes(1 << 21))
        folders = [add(1), add(2)]
        (folders[0] / "mine.txt").touch()
        for age, folder in enumerate(folders):
            os.utime(folder / "dataset.json", (1000 - age, 1000 - age))  # the second was used less recently
        folders.append(add(3))
        assert [folder.exists() for folder in folders] == [True, False, True]
        assert add(1) == folders[0]  # from the cache: now used
        folders.append(add(4))
        assert [folder.exists() for folder in folders] == [True, False, False, True]
        os.utime(folders[0] / "dataset.json", (1, 1))
        add(5)
        add(6)
        assert [path.name for path in folders[0].iterdir()] == ["mine.txt"], "only what is ours is deleted"
        assert (cache / "notes" / "train.npy").exists()
        assert (cache / ("0" * 31) / "train.npy").exists()
        assert sum(entry.size for entry in token_cache.entries(cache)) <= 1 << 20

    def test_an_entry_that_is_too_large_or_grew_much_is_warned_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dataset, "_NOT_SMALL", 1 << 16)
        data = tmp_path / "a.txt.gz"
        data.write_bytes(gzip.compress(b"0" * 1_000_000))
        warnings: list[str] = []
        encode_whole(str(data), TOKENIZER, tmp_path / "one", warn=warnings.append)
        assert len(warnings) == 1
        assert "2 MB" in warnings[0] and "they hold far more than they seem to" in warnings[0]
        monkeypatch.setenv("ALPHA_TOKEN_CACHE_MIB", "1")
        encode_whole(str(data), TOKENIZER, tmp_path / "two", warn=warnings.append)
        assert len(warnings) == 2
        assert "ALPHA_TOKEN_CACHE_MIB" in warnings[1]

    def test_a_file_that_is_cut_short_meanwhile_is_noticed(self, book: str, tmp_path: Path) -> None:
        train = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64).train
        train.require_whole()
        os.truncate(train.path, 4096)
        with pytest.raises(AlphaError, match=r"train\.npy was cut short by another program"):
            train.require_whole()
        assert len(prepare(book, "", TOKENIZER, tmp_path / "cache", block=64).train.tokens) == len(train.tokens)


def refuse_to_write(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def disk_is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CHILD = """
import os, signal, sys, time
from pathlib import Path
from tests.test_dataset import ByteTokenizer, prepare
book, cache, action = sys.argv[1:]
tokenizer = ByteTokenizer()
calls = 0
def slowly():
    global calls
    calls += 1
    if action == "die" and calls == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002)
tokenizer.before_encoding = slowly
print(len(prepare(book, "", tokenizer, Path(cache), block=64).train.tokens))
"""


class TestProcesses:
    def start(self, book: str, cache: Path, action: str) -> "subprocess.Popen[str]":
        environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, book, str(cache), action], stdout=subprocess.PIPE, text=True, env=environment
        )

    def test_killed_preparation_is_done_again(self, book: str, tmp_path: Path) -> None:
        child = self.start(book, tmp_path / "cache", "die")
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert not list(tmp_path.rglob("dataset.json"))
        assert not list(tmp_path.rglob("train.npy"))
        assert len(list(tmp_path.rglob(".*.tmp"))) == 4
        (tmp_path / "other.txt").write_text(lines(100))
        encode_whole(str(tmp_path / "other.txt"), TOKENIZER, tmp_path / "cache")
        assert not list(tmp_path.rglob(".*.tmp")), "the next that comes by removes what was left, whatever it encodes"
        result = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        shutil.rmtree(tmp_path / "cache")
        assert np.array_equal(
            result.train.tokens, prepare(book, "", TOKENIZER, tmp_path / "cache", block=64).train.tokens
        )

    def test_processes_that_prepare_the_same_data_at_once(self, book: str, tmp_path: Path) -> None:
        children = [self.start(book, tmp_path / "cache", "finish") for _ in range(3)]
        outputs = [child.communicate()[0] for child in children]
        assert [child.returncode for child in children] == [0, 0, 0]
        result = prepare(book, "", READER, tmp_path / "cache", block=64)
        assert outputs == [f"{len(result.train.tokens)}\n"] * 3
        assert sorted(path.name for path in result.train.path.parent.iterdir()) == [
            "dataset.json",
            "train-places.npy",
            "train.npy",
            "validation-places.npy",
            "validation.npy",
        ]
