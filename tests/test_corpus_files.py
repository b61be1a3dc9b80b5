"""Which files are a corpus: folders, globs, names, pipes; what is passed over, and what is said."""

import contextlib
import functools
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
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

    def write_file(name: str, content: str = "some text\n") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode(), 1) if name.endswith(".gz") else content.encode())
        return str(path)

    return write_file


def found(data: str, base: Path) -> list[str]:
    return [file.path.relative_to(base).as_posix() for file in corpus_files.find(data).files]


def text_of(data: str) -> str:
    return "".join(section.text for section in corpus.sections(corpus_files.find(data).files))


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
        with pytest.raises(AlphaError, match=r"^Cannot read x+: File name too long\.$"):
            corpus_files.find("x" * 300)

    def test_no_matching_file_says_how_many_were_skipped(self, write: Write, tmp_path: Path) -> None:
        write("a.png")
        with pytest.raises(AlphaError, match=r"No corpus file .*1 other files were skipped.*\.jsonl"):
            corpus_files.find(str(tmp_path))
        with pytest.raises(AlphaError, match="No corpus file"):
            corpus_files.find(f"{tmp_path}/*.txt")

    @pytest.mark.parametrize("name", ["notes.log", "README", "page.html", "a.json", "b.log.gz"])
    def test_a_named_file_may_have_any_ending(self, write: Write, tmp_path: Path, name: str) -> None:
        selection = corpus_files.find(write(name, "plain\n"))
        assert [file.json_lines for file in selection.files] == [False]
        assert selection.notes[0].endswith("compressed plain text." if name.endswith(".gz") else "plain text.")
        assert text_of(str(tmp_path / name)) == "plain\n"
        write("b.txt")
        assert found(str(tmp_path), tmp_path) == ["b.txt"], "a folder leads to known endings only"

    def test_json_lines_are_known_by_their_first_line(self, write: Write) -> None:
        data = write("a.json", '{"text": "one"}\n{"text": "two"}\n')
        assert text_of(data) == "onetwo"
        assert text_of(write("a.ndjson", '{"text": "one"}\n')) == "one"

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("a b.csv", r"as JSON lines.* python3 -c '.*' .*a b\.csv' > corpus\.jsonl"),
            ("a.parquet", "pandas.read_parquet"),
            ("a.txt.zst", r"zstd -dc .*a\.txt\.zst \| alpha train --data=-"),
            ("a.csv.gz", r"gunzip -k .*a\.csv\.gz"),
            ("a.tar.gz", r"tar -xOf .*a\.tar\.gz \| alpha train --data=-"),
            ("a.docx", "Convert it to plain text"),
        ],
    )
    def test_what_is_no_text_is_refused_with_advice(self, write: Write, tmp_path: Path, name: str, advice: str) -> None:
        data = write(name)
        for each in (data, str(tmp_path)):
            with pytest.raises(AlphaError, match=advice):
                corpus_files.find(each)

    def test_the_advised_conversion_of_a_table_works(self, write: Write, tmp_path: Path) -> None:
        data = write("a b.csv", 'id,text\n1,"one, ""two"""\n2,drei ü\n')
        with pytest.raises(AlphaError) as caught:
            corpus_files.find(data)
        command = str(caught.value).split('"text": ', 1)[1].replace("python3", sys.executable)
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
        assert rows == [{"text": 'one, "two"'}, {"text": "drei ü"}]

    def test_devices_are_refused(self) -> None:
        with pytest.raises(AlphaError, match="neither a regular file nor a pipe"):
            corpus_files.find("/dev/zero")

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

    @pytest.mark.parametrize("data", [".", "*", "**/*.jsonl", "texts", "texts/*/*.jsonl", "a.txt,runs"])
    def test_folders_of_runs_are_passed_over(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for run in ("model", "runs/one", "texts/run"):
            write(f"{run}/config.json", '{"runId": "r", "model": {}, "training": {}}')
            for name in ("metrics.jsonl", "log.txt", "inner/notes.txt"):
                write(f"{run}/{name}")
        for name in ("a.txt", "texts/b.jsonl", "runs/c.txt", "texts/other/config.json", "texts/other/d.jsonl"):
            write(name)
        expected = {
            "**/*.jsonl": ["texts/b.jsonl", "texts/other/d.jsonl"], "texts": ["texts/b.jsonl", "texts/other/d.jsonl"],
            "texts/*/*.jsonl": ["texts/other/d.jsonl"], "a.txt,runs": ["a.txt", "runs/c.txt"],
        }  # fmt: skip
        every = ["a.txt", "runs/c.txt", "texts/b.jsonl", "texts/other/d.jsonl"]
        selection = corpus_files.find(data)
        assert [str(file.path) for file in selection.files] == expected.get(data, every)
        assert selection.skipped >= 1
        (tmp_path / "link").symlink_to("model")
        for run in ("model", "link"):
            with pytest.raises(AlphaError, match="is the folder of a run"):
                corpus_files.find(run)

    def test_unreadable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(AlphaError, match=r"Cannot read .*: Permission denied"):
            corpus_files.find(str(tmp_path))


class TestPipes:
    def give(self, pipe: Path, content: bytes) -> threading.Thread:
        """Write to a named pipe, which is open for writing when this returns, from another thread."""
        os.mkfifo(pipe)
        keeper = os.open(pipe, os.O_RDWR)  # so that opening for writing does not wait
        writer = os.open(pipe, os.O_WRONLY)

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as file:
                file.write(content)

        thread = threading.Thread(target=write)
        thread.start()
        threading.Timer(0.3, os.close, [keeper]).start()
        return thread

    @pytest.mark.parametrize("json_lines", [False, True])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_pipe_is_read_once_and_its_text_many_times(
        self, tmp_path: Path, json_lines: bool, compressed: bool
    ) -> None:
        text = "A line.\n" * 20_000
        content = (json.dumps({"text": text}) if json_lines else text).encode()
        thread = self.give(tmp_path / "pipe", gzip.compress(content) if compressed else content)
        data = str(tmp_path / "pipe")
        selection = corpus_files.find(data)
        thread.join()
        kind = f"{'compressed ' if compressed else ''}{'JSON lines' if json_lines else 'plain text'}"
        assert selection.notes == (f"The pipe {data} is read as {kind}.",)
        for _ in range(2):
            assert text_of(data) == text
            assert corpus_files.find(data).files == selection.files

    def test_a_full_temporary_folder_is_named_and_not_the_pipe(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "r+b"))
        thread = self.give(tmp_path / "pipe", b"word " * 100)
        with pytest.raises(AlphaError, match=r"temporary file, .* \(No space left on device\); .* with TMPDIR"):
            corpus_files.find(str(tmp_path / "pipe"))
        thread.join()

    def test_a_pipe_that_nobody_writes_to_is_an_error_and_no_wait(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(AlphaError, match="gave no text"):
            corpus_files.find(str(tmp_path / "pipe"))

    def test_a_pipe_without_end_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALPHA_TOKEN_CACHE_MIB", "1")
        thread = self.give(tmp_path / "pipe", b"word " * (1 << 18))
        with pytest.raises(AlphaError, match="more than the 1 MiB of ALPHA_TOKEN_CACHE_MIB"):
            corpus_files.find(str(tmp_path / "pipe"))
        thread.join()

    def test_standard_input_must_not_be_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        for stream in (Terminal(), None):
            monkeypatch.setattr(sys, "stdin", stream)
            with pytest.raises(UsageError, match="pipe a text into it"):
                corpus_files.find("-")
