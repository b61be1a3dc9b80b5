import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpha import corpus, corpus_files
from alpha.errors import AlphaError, UsageError

quick = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files below the test's folder: write("a/b.txt", "text") returns the path."""

    def write_file(name: str, content: str | bytes = "some text\n") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        return str(path)

    return write_file


def found(data: str, base: Path) -> list[str]:
    return [file.path.relative_to(base).as_posix() for file in corpus_files.find(data).files]


def read(data: str, size: int = corpus.SECTION_CHARACTERS) -> list[corpus.Section]:
    return list(corpus.sections(corpus_files.find(data).files, size))


def documents(sections: list[corpus.Section]) -> list[str]:
    texts = [""]
    for section in sections:
        texts[-1] += section.text
        if section.ends_document:
            texts.append("")
    assert texts.pop() == "", "the last section ends a document"
    return texts


class TestFind:
    def test_folder_is_read_recursively_in_sorted_order_and_skips_are_counted(
        self, write: Write, tmp_path: Path
    ) -> None:
        for name in ("b.txt", "a/z.md", "a/c.jsonl.gz", "c.PY", "d.rst", "e.text"):
            write(name)
        for name in (".hidden.txt", ".git/config.txt", "image.png", "a/noending", "archive.gz", "data.json"):
            write(name)
        (tmp_path / "loop").symlink_to(tmp_path)
        selection = corpus_files.find(str(tmp_path))
        names = [file.path.relative_to(tmp_path).as_posix() for file in selection.files]
        assert names == ["a/c.jsonl.gz", "a/z.md", "b.txt", "c.PY", "d.rst", "e.text"]
        assert selection.skipped == 7
        assert [(file.json_lines, file.compressed) for file in selection.files[:2]] == [(True, True), (False, False)]

    def test_glob_with_folders_and_other_files(self, write: Write, tmp_path: Path) -> None:
        for name in ("x1.txt", "x2.txt", "x3.png", "y.txt", "xx/deep/in.txt"):
            write(name)
        assert found(f"{tmp_path}/x*", tmp_path) == ["x1.txt", "x2.txt", "xx/deep/in.txt"]
        assert corpus_files.find(f"{tmp_path}/x*").skipped == 1
        assert found(f"{tmp_path}/**/*.txt", tmp_path) == ["x1.txt", "x2.txt", "xx/deep/in.txt", "y.txt"]

    def test_parts_keep_their_order_and_a_file_counts_once(self, write: Write, tmp_path: Path) -> None:
        first, second = write("first.txt"), write("second.txt")
        assert found(f"{second}, {tmp_path} ,{first}", tmp_path) == ["second.txt", "first.txt"]

    def test_existing_name_with_comma_and_brackets_is_taken_as_it_is(self, write: Write, tmp_path: Path) -> None:
        assert found(write("a,[b]*.txt"), tmp_path) == ["a,[b]*.txt"]

    @pytest.mark.parametrize("data", ["", " , ", "a\0b.txt"])
    def test_naming_nothing_is_a_usage_error(self, data: str) -> None:
        with pytest.raises(UsageError):
            corpus_files.find(data)

    def test_missing_path(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(AlphaError, match=r"no file or folder .*absent\.txt"):
            corpus_files.find(f"{write('a.txt')},{tmp_path}/absent.txt")

    def test_no_matching_file_says_how_many_were_skipped(self, write: Write, tmp_path: Path) -> None:
        write("a.png")
        with pytest.raises(AlphaError, match=r"No corpus file .*1 other files were skipped.*\.jsonl"):
            corpus_files.find(str(tmp_path))
        with pytest.raises(AlphaError, match="No corpus file"):
            corpus_files.find(f"{tmp_path}/*.txt")

    def test_named_file_of_another_kind(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(AlphaError, match=r"a\.json: expected a regular file with ending"):
            corpus_files.find(write("a.json"))
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(AlphaError, match="expected a regular file"):
            corpus_files.find(str(tmp_path / "pipe.txt"))

    def test_broken_links(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").symlink_to("a.txt")
        (tmp_path / "b.txt").symlink_to("absent")
        for name in ("a.txt", "b.txt"):
            with pytest.raises(AlphaError, match=f"Cannot read .*{name}"):
                corpus_files.find(str(tmp_path / name))

    @quick
    @given(
        st.text(alphabet=st.sampled_from("ab.*?[]!-,~\0é\ud800") | st.characters(exclude_characters="/"), max_size=20)
    )
    def test_any_text_gives_files_or_an_alpha_error(self, tmp_path: Path, data: str) -> None:
        inner = tmp_path / "inner"  # so that ".." has no files either
        inner.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(inner)
            with pytest.raises(AlphaError):
                corpus_files.find(data)

    def test_unreadable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(AlphaError, match=r"Cannot read .*: Permission denied"):
            corpus_files.find(str(tmp_path))


class TestDocuments:
    def test_plain_file_is_one_document_kept_exactly(self, write: Write) -> None:
        text = "One\r\n\r\n  two\t\n\n\nthree ünï 語 🙂"
        assert documents(read(write("a.txt", text))) == [text]

    def test_markers_divide_a_plain_file(self, write: Write) -> None:
        text = "<|endoftext|>first\n<|endoftext|>\nsecond<|endoftext|><|endoftext|> \n <|endoftext|>third<|endoftext"
        assert documents(read(write("a.md", text))) == ["first\n", "\nsecond", "third<|endoftext"]

    def test_each_json_line_is_a_document(self, write: Write) -> None:
        texts = [
            "one\n",
            "tw<|endoftext|>o",
            "",
            "drei ü\ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16"),
        ]
        lines = [json.dumps({"text": text, "id": 7}) for text in texts]
        data = write("a.jsonl", "\n".join([lines[0], "", "  \r", *lines[1:]]))
        assert documents(read(data)) == ["one\n", "tw<|endoftext|>o", texts[3]]

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_byte_order_mark_is_dropped_at_the_beginning_only(self, write: Write, name: str) -> None:
        content = '{"text": "a\ufeff"}' if name == "a.jsonl" else "a\ufeff"
        assert documents(read(write(name, "\ufeff" + content))) == ["a\ufeff"]

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_compressed_files_read_the_same(self, write: Write, name: str) -> None:
        lines = [json.dumps({"text": f"line {number} " * number}) + "\n" for number in range(1, 300)]
        assert read(write(name, "".join(lines))) == read(write(name + ".gz", "".join(lines)))

    def test_files_follow_each_other(self, write: Write) -> None:
        assert documents(read(f"{write('b.txt', 'b')},{write('a.txt', 'a')}")) == ["b", "a"]

    def test_progress_adds_up_to_the_size_on_disk(self, write: Write) -> None:
        for name in ("a.txt", "a.jsonl.gz"):
            files = corpus_files.find(write(name, json.dumps({"text": "word " * 400_000}) + "\n")).files
            counts: list[int] = []
            list(corpus.sections(files, on_read=counts.append))
            assert sum(counts) == files[0].path.stat().st_size


class TestErrors:
    def fails(self, data: str, message: str) -> None:
        with pytest.raises(AlphaError, match=message):
            read(data)

    def test_binary_junk_is_named_by_file_and_byte(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        for chunk in (1, 3, 1 << 20):
            monkeypatch.setattr(corpus, "_CHUNK_BYTES", chunk)
            self.fails(write("a.txt", b"ab\xc3\xa9\0"), r"a\.txt is not a text file: byte 4 is a NUL byte")
            self.fails(write("a.txt", b"ab\xc3\xa9\xff\0"), "byte 4 is not UTF-8")
            self.fails(write("a.txt", b"\xe8\xaa\x9e\xe8\xaa"), "byte 3 is not UTF-8")
            self.fails(write("a.txt.gz", b"ab\xe8\xaa."), "byte 2 after decompression is not UTF-8")
        self.fails(write("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'), "byte 24 is not UTF-8")
        self.fails(write("a.jsonl", b'{"text": "a"}\n\0\n'), "byte 14 is a NUL byte")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "is not valid JSON"),
            ("[" * 100_000, "is not valid JSON"),
            ('{"text": ' + "9" * 5000 + "}", "is not valid JSON"),
            ("[1]", 'is not an object with a string "text"'),
            ('{"txt": "a"}', 'is not an object with a string "text"'),
            ('{"text": null}', 'is not an object with a string "text"'),
            ('{"text": "ab\\ud800"}', "has half of a surrogate pair at character 2"),
        ],
    )
    def test_bad_line_is_named_by_file_and_number(self, write: Write, line: str, message: str) -> None:
        self.fails(write("a.jsonl", '{"text": "fine"}\n\n' + line + "\n"), rf"Line 3 of .*a\.jsonl {message}")

    def test_json_line_is_bounded(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corpus, "_LONGEST_JSON_LINE", 20)
        assert documents(read(write("a.jsonl", '{"text":"456789012"}'))) == ["456789012"]
        self.fails(write("a.jsonl", '{"text":"456789012"} '), r"Line 1 of .*a\.jsonl is longer than")

    def test_damaged_compression(self, write: Write, tmp_path: Path) -> None:
        whole = gzip.compress(os.urandom(1000).hex().encode())
        for damaged in (whole[:-9], whole[:100] + b"\xff" * 50 + whole[150:], b"not gzip", whole[:4], whole + b"junk"):
            (tmp_path / "a.txt.gz").write_bytes(damaged)
            self.fails(str(tmp_path / "a.txt.gz"), r"Cannot decompress .*a\.txt\.gz")

    def test_empty_corpus(self, write: Write) -> None:
        empty = f"{write('a.txt', '')},{write('b.txt.gz', '')},{write('c.jsonl', '')}"
        self.fails(empty, r"The corpus is empty: no text in .*a\.txt and 2 more files")
        self.fails(write("a.txt", " \n\n"), "The corpus is empty")

    def test_file_that_vanishes(self, write: Write) -> None:
        files = corpus_files.find(write("a.txt")).files
        files[0].path.unlink()
        with pytest.raises(AlphaError, match=r"Cannot read .*a\.txt: No such file"):
            list(corpus.sections(files))

    @quick
    @given(
        st.sampled_from(["a.txt", "a.jsonl", "raw.txt.gz", "raw.jsonl.gz", "a.txt.gz", "a.jsonl.gz"]),
        st.binary(max_size=200)
        | st.text().map(lambda text: (json.dumps({"text": text}) + "\n").encode())
        | st.lists(st.sampled_from([b"\x1f\x8b\x08\0", b"\0" * 9, b'{"text":', b'"a\\ud800"', b"}\n", b"\xe8"])).map(
            b"".join
        ),
    )
    def test_any_bytes_give_text_or_an_alpha_error(self, tmp_path: Path, name: str, content: bytes) -> None:
        compress = name.endswith(".gz") and not name.startswith("raw")
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if compress else content)
        try:
            texts = documents(read(str(tmp_path / name)))
        except AlphaError:
            return
        assert all(text.encode() for text in texts)


line_texts = st.text(alphabet=st.sampled_from("ab \r\té語🙂"), max_size=12)
plain_texts = st.lists(line_texts | st.just("") | st.just("<|endoftext|>"), max_size=30).map("\n".join)


class TestSections:
    @quick
    @given(plain_texts, st.integers(1, 40), st.integers(1, 30))
    def test_division_loses_nothing_and_never_cuts_a_line(
        self, tmp_path: Path, text: str, size: int, longest: int
    ) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(text.encode())
        results = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus, "_LONGEST_PIECE", longest + size)
            for chunk in (1, 7, 1 << 20):
                patch.setattr(corpus, "_CHUNK_BYTES", chunk)
                try:
                    results.append(read(str(path), size))
                except AlphaError:
                    results.append([])
        sections = results[0]
        assert results[1] == sections, "the division does not depend on how the file is read"
        assert results[2] == sections
        wanted = [part for part in text.split("<|endoftext|>") if part.strip() or len(part) > size]
        assert documents(sections) == wanted
        starts_document = True
        previous = ""
        for section in sections:
            assert 0 < len(section.text) <= max(size + size // 2, longest + size)
            if not starts_document:
                assert section.continues_line == (not previous.endswith("\n"))
            starts_document, previous = section.ends_document, section.text

    def test_sections_end_at_paragraphs_and_have_the_asked_size(self, write: Write) -> None:
        text = "".join("A line of a paragraph.\n" * 8 + "\n" for _ in range(2000))
        sections = read(write("a.txt", text))
        assert len(sections) > 8
        assert all(section.text.startswith("\nA") for section in sections[1:])
        assert all(1 << 14 <= len(section.text) <= 3 << 14 for section in sections)
        assert [section.ends_document for section in sections] == [False] * (len(sections) - 1) + [True]

    def test_long_json_document_is_divided_too(self, write: Write) -> None:
        text = "A line.\n" * 20_000
        sections = read(write("a.jsonl", json.dumps({"text": text}) + "\n" + json.dumps({"text": "next"})))
        assert len(sections) > 4
        assert documents(sections) == [text, "next"]

    def test_line_too_long_to_hold_is_cut_before_a_space(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corpus, "_LONGEST_PIECE", 40)
        sections = read(write("a.txt", "ab\n" + "word " * 30 + "\nnext line\n"), 8)
        assert sections[0] == corpus.Section("ab\n", False, False)
        assert sections[1].text == "word" + " word" * 7
        assert [section.continues_line for section in sections] == [False, False, True, True, True, True, False]
        assert documents(sections) == ["ab\n" + "word " * 30 + "\nnext line\n"]

    @pytest.mark.parametrize("content", [b"a", b"line of text\n"])
    def test_huge_content_of_a_small_file_takes_little_memory(self, tmp_path: Path, content: bytes) -> None:
        size = 48 << 20
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content * (size // len(content)), 1))
        files = corpus_files.find(str(tmp_path)).files
        tracemalloc.start()
        total = sum(len(section.text) for section in corpus.sections(files))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == size // len(content) * len(content)
        assert peak < 16 << 20
