import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpha import corpus, corpus_files, dataset, token_file
from alpha.errors import AlphaError
from alpha.token_file import TokenFile
from alpha.tokenizer_pattern import CUTS

quick = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prepare(
    data: str, val_data: str, tokenizer: dataset.Encoder, cache: Path, block: int, **options: Any
) -> dataset.Dataset:
    validation = corpus_files.find(val_data) if val_data else None
    return dataset.prepare(corpus_files.find(data), validation, tokenizer, cache, block, **options)


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


TOKENIZER = ByteTokenizer()


def refuse() -> None:
    pytest.fail("nothing was to be encoded")


READER = ByteTokenizer()
READER.before_encoding = refuse


def lines(count: int, start: int = 0) -> str:
    return "".join(f"This is line number {number} of the corpus.\n" for number in range(start, start + count))


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
        assert len(contents[0]) == 3

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
    def test_split_is_a_partition_in_order_that_never_cuts_a_line(
        self, tmp_path: Path, count: int, words: int, fraction: float, marked: bool
    ) -> None:
        all_lines = [f"{number} " + "word " * (number * 7919 % words) + "\n" for number in range(count)]
        text = "".join(line + "<|endoftext|>" * (marked and len(line) % 5 == 0) for line in all_lines)
        (tmp_path / "a.txt").write_text(text)
        result = prepare(
            str(tmp_path / "a.txt"), "", TOKENIZER, tmp_path / "cache", block=1, validation_fraction=fraction
        )
        sides = ["".join(texts(file)).splitlines(keepends=True) for file in (result.train, result.validation)]
        numbers = [[int(line.split()[0]) for line in side] for side in sides]
        assert sorted(sides[0] + sides[1], key=lambda line: int(line.split()[0])) == all_lines
        assert all(side == sorted(side) for side in numbers)

    @quick
    @given(st.lists(st.sampled_from(["same", "other"]) | st.text("abc", min_size=1), min_size=1, max_size=6))
    def test_each_side_has_a_section_whenever_there_are_two(self, tmp_path: Path, documents: list[str]) -> None:
        data = write_json_lines(tmp_path / "a.jsonl", documents)
        for fraction in (0.1, 0.9):
            result = prepare(data, "", TOKENIZER, tmp_path / "cache", block=1, validation_fraction=fraction)
            assert (result.validation is not None) == (len(documents) > 1)
            assert sorted(texts(result.train) + texts(result.validation)) == sorted(documents)

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

    def test_line_longer_than_a_section_stays_on_one_side(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpus, "_LONGEST_PIECE", 2000)
        giants = ["".join(f"{number}-{word} " for word in range(2000)) + "\n" for number in range(12)]
        (tmp_path / "a.txt").write_text("".join(giants))
        result = prepare(str(tmp_path), "", TOKENIZER, tmp_path / ".cache", block=64, validation_fraction=0.4)
        sides = ["".join(texts(file)).splitlines(keepends=True) for file in (result.train, result.validation)]
        assert sides[0] and sides[1]
        assert sorted(sides[0] + sides[1]) == sorted(giants)

    def test_one_line_longer_than_a_section_is_all_for_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpus, "_LONGEST_PIECE", 2000)
        (tmp_path / "a.txt").write_text("words " * 2000)
        result = prepare(str(tmp_path), "", TOKENIZER, tmp_path / ".cache", block=64)
        assert result.validation is None
        assert texts(result.train) == ["words " * 2000]

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
            assert result.train.tokens[0] == ord("T") + tokenizer.shift
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

    def test_cache_that_cannot_be_written(self, book: str, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        with pytest.raises(AlphaError, match=r"Cannot write .*train\.npy"):
            prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)


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
        assert len(list(tmp_path.rglob(".*.tmp"))) == 2
        result = prepare(book, "", TOKENIZER, tmp_path / "cache", block=64)
        assert not list(tmp_path.rglob(".*.tmp"))
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
            "train.npy",
            "validation.npy",
        ]
