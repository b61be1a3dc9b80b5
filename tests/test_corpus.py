import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traced_memory import traced_peak

from alpha import corpus, corpus_encoding, corpus_files
from alpha.errors import AlphaError

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


def marked(section: corpus.Section) -> list[str]:
    return [section.text[start:end] for start, end in section.markers]


class TestDocuments:
    def test_plain_file_is_one_document_kept_exactly(self, write: Write) -> None:
        text = "One\r\n\r\n  two\t\n\n\nthree ünï 語 🙂"
        assert documents(read(write("a.txt", text))) == [text]

    def test_markers_divide_a_plain_file(self, write: Write) -> None:
        text = "<|endoftext|>first\n<|endoftext|>\nsecond<|endoftext|><|endoftext|> \n <|endoftext|>third<|endoftext"
        assert documents(read(write("a.md", text))) == ["first\n", "\nsecond", "third<|endoftext"]

    def test_only_a_plain_document_that_begins_with_a_role_is_a_conversation(self, write: Write) -> None:
        chat = "<|user|>Hi<|end|>\n<|assistant|>A <|b|> <|user<|end|>"
        data = write("a.txt", f"The marker <|user|> begins a turn.<|endoftext|>\n{chat}<|endoftext|><|end|> no")
        expected = [[], ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"], []]
        for chunk in (1, 9, 1 << 20):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(corpus_encoding, "CHUNK_BYTES", chunk)
                sections = read(data)
            assert [marked(section) for section in sections] == expected
            assert sections[1].text == "\n" + chat

    def test_messages_are_a_conversation_whose_contents_are_text(self, write: Write) -> None:
        messages = [{"role": "user", "content": "Say <|end|>."}, {"role": "assistant", "content": "<|user|>" * 30}]
        line = json.dumps({"messages": messages})
        text = f"<|user|>Say <|end|>.<|end|>\n<|assistant|>{'<|user|>' * 30}<|end|>"
        whole = read(write("a.jsonl", line + "\n" + json.dumps({"text": text})))
        assert [section.text for section in whole] == [text, text]
        assert [marked(section) for section in whole] == [["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"], []]
        divided = read(write("b.jsonl", line), 10)
        assert len(divided) > 1
        assert [each for section in divided for each in marked(section)] == marked(whole[0])

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
            monkeypatch.setattr(corpus_encoding, "CHUNK_BYTES", chunk)
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
            ('{"messages": "a"}', 'is not an object with a string "text"'),
            ('{"text": "ab\\ud800"}', "has half of a surrogate pair at character 2"),
        ],
    )
    def test_bad_line_is_named_by_file_and_number(self, write: Write, line: str, message: str) -> None:
        self.fails(write("a.jsonl", '{"text": "fine"}\n\n' + line + "\n"), rf"Line 3 of .*a\.jsonl {message}")

    def test_bad_message_is_named_by_its_number(self, write: Write) -> None:
        good = '{"role": "user", "content": "a"}'
        self.fails(write("a.jsonl", f'{{"messages": [{good}, 1]}}'), r'Message 2 in line 1 of .* with a "role"')

    @pytest.mark.parametrize(
        ("content", "advice"),
        [
            ("Schöne Grüße".encode("latin-1"), r"Latin-1 .*iconv -f ISO-8859-1 -t UTF-8 .*a\.txt > converted\.txt"),
            ("“Do” said one".encode("cp1252"), "WINDOWS-1252"),
            ("Ordinary text".encode("utf-16"), "UTF-16; convert"),
            ("Ordinary text".encode("utf-16-le"), "UTF-16LE"),
            ("Ordinary text".encode("utf-16-be"), "UTF-16BE"),
            ("Ordinary text".encode("utf-32"), "UTF-32"),
            ("Совсем другой текст, какого тут ещё нет".encode("cp1251"), "looks like WINDOWS-1251"),
            ("English with: совсем другой текст, какого тут ещё нет".encode("koi8-r"), "looks like KOI8-R"),
            ("Совсем другой текст, какого тут ещё нет".upper().encode("cp1251"), "looks like WINDOWS-1251"),
            ("Совсем другой текст, какого тут ещё нет".upper().encode("koi8-r"), "looks like KOI8-R"),
            ("日本語のテキストです。".encode("shift_jis"), "looks like SHIFT_JIS"),
            ("日本語のテキストです。".encode("euc_jp"), "looks like EUC-JP"),
            ("这是一个中文文本。我们在上面".encode("gbk"), "looks like GB18030"),
            ("這是一個中文文本。我們在上面".encode("big5"), "looks like BIG5"),
            ("이것은 한국어 텍스트입니다".encode("euc_kr"), "looks like EUC-KR"),
            ("Größe und naïve déjà vu".encode("latin-1"), "looks like Latin-1"),
            ("Schöne Grüße, ".encode() + b"\xe9 damaged", r"is UTF-8 otherwise; .*iconv -c -f UTF-8"),
            ("Größe ".encode() + "und naïve déjà vu ".encode("latin-1") * 9, "looks like Latin-1"),
            ("Hello there, how are you? ".encode("cp500") * 9, "older encoding"),
            (bytes(range(128, 256)) * 4, "older encoding"),
            (gzip.compress(b"text", mtime=0), "ending .gz"),
            (bytes(range(256)) * 4, r"is a NUL byte\.$"),
        ],
    )
    def test_the_likely_encoding_is_named(self, write: Write, content: bytes, advice: str) -> None:
        self.fails(write("a.txt", content), advice)

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
    def test_division_loses_nothing_and_is_the_same_however_the_file_is_read(
        self, tmp_path: Path, text: str, size: int, longest: int
    ) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(text.encode())
        results = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus, "_LONGEST_PIECE", longest + size)
            for chunk in (1, 7, 1 << 20):
                patch.setattr(corpus_encoding, "CHUNK_BYTES", chunk)
                try:
                    results.append(read(str(path), size))
                except AlphaError:
                    results.append([])
        sections = results[0]
        assert results[1] == sections
        assert results[2] == sections
        wanted = [part for part in text.split("<|endoftext|>") if part.strip() or len(part) > size]
        assert documents(sections) == wanted
        assert all(0 < len(section.text) <= max(4 * size, longest + size) for section in sections)

    def test_sections_end_with_lines_and_have_the_asked_size(self, write: Write) -> None:
        text = "".join("A line of a paragraph.\n" * 8 + "\n" for _ in range(2000))
        sections = read(write("a.txt", text))
        assert len(sections) > 8
        assert all(section.text.startswith("\nA") or section.text.startswith("\n\nA") for section in sections[1:])
        assert all(1 << 15 <= len(section.text) <= 3 << 14 for section in sections[:-1])
        assert [section.ends_document for section in sections] == [False] * (len(sections) - 1) + [True]

    def test_long_json_document_is_divided_too(self, write: Write) -> None:
        text = "A line.\n" * 20_000
        sections = read(write("a.jsonl", json.dumps({"text": text}) + "\n" + json.dumps({"text": "next"})))
        assert len(sections) > 4
        assert documents(sections) == [text, "next"]

    def test_a_line_longer_than_sections_is_cut_before_a_space_and_a_word_that_cannot_be_held_anywhere(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpus, "_LONGEST_PIECE", 40)
        sections = [section.text for section in read(write("a.txt", "word " * 30 + "x" * 100 + "\nline\n"), 8)]
        assert sections[:2] == ["word word", " word word"]
        assert [text for text in sections if "x" in text] == [" " + "x" * 39, "x" * 40, "x" * 21]

    @pytest.mark.parametrize("content", [b"a", b"line of text\n"])
    def test_huge_content_of_a_small_file_takes_little_memory(self, tmp_path: Path, content: bytes) -> None:
        size = 48 << 20
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content * (size // len(content)), 1))
        files = corpus_files.find(str(tmp_path)).files

        def read_all() -> None:
            assert sum(len(section.text) for section in corpus.sections(files)) == size // len(content) * len(content)

        assert traced_peak(read_all) < 16 << 20
