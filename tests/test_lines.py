import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import tiny_disk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from json_lines import rows_in

from alpha import files
from alpha.errors import AlphaError
from alpha.files import LineFile, finite, read_rows_backwards


def appended(path, *rows):
    file = LineFile(path)
    for row in rows:
        file.append_row(row)
    file.close()
    return path


def test_rows_are_read_back_from_the_last_to_the_first(tmp_path):
    rows = [{"step": step, "text": "é🙂\n" * (step % 5), "loss": 1 / (step + 1)} for step in range(3000)]
    path = appended(tmp_path / "x.jsonl", *rows)
    assert rows_in(path) == rows
    assert list(read_rows_backwards(path, 1 << 30)) == rows[::-1]
    assert path.read_bytes().count(b"\n") == 3000


@settings(max_examples=60, deadline=None, derandomize=True)
@example(lengths=[3, 3], limit=18, block=40)
@example(lengths=[3, 3], limit=36, block=40)
@given(lengths=st.lists(st.integers(0, 40), max_size=12), limit=st.integers(0, 300), block=st.integers(1, 40))
def test_backwards_is_the_reverse_of_the_whole_rows_within_the_limit(tmp_path_factory, lengths, limit, block):
    path = tmp_path_factory.getbasetemp() / "backwards.jsonl"
    path.unlink(missing_ok=True)
    rows = [{"n": number, "x": "y" * length} for number, length in enumerate(lengths)]
    appended(path, *rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_BYTES", block)
        found = list(read_rows_backwards(path, limit))
    content = path.read_bytes()
    whole = content if limit >= len(content) else content[len(content) - limit :].partition(b"\n")[2]
    assert found == [json.loads(line) for line in reversed(whole.splitlines())]


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    row = {"loss": math.nan, "a": [np.float32(np.inf), (np.int64(2), np.bool_(True))], "b": {"c": -math.inf}, "d": None}
    path = appended(tmp_path / "x.jsonl", row)
    text = path.read_text()
    assert text == '{"loss":null,"a":[null,[2,true]],"b":{"c":null},"d":null}\n'
    assert finite(1.5) == 1.5


def test_text_that_is_not_unicode_is_still_a_valid_row(tmp_path):
    path = appended(tmp_path / "x.jsonl", {"text": "a\udc80b"})
    assert list(read_rows_backwards(path, 100)) == [{"text": "a\udc80b"}]


@pytest.mark.parametrize("torn", ['{"step":3', '{"step":3}', "\x00" * 70_000, "x" * 200_000])
def test_a_torn_last_line_is_passed_over_and_cut_when_the_file_is_opened(tmp_path, torn):
    path = appended(tmp_path / "x.jsonl", {"step": 1}, {"step": 2})
    path.write_text(path.read_text() + torn)
    assert list(read_rows_backwards(path, 1 << 20)) == [{"step": 2}, {"step": 1}]
    appended(path, {"step": 3})
    assert path.read_text() == '{"step":1}\n{"step":2}\n{"step":3}\n'


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step":1}')
    assert list(read_rows_backwards(tmp_path / "x.jsonl", 100)) == []
    appended(tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_text() == ""


def test_a_missing_file_has_no_rows(tmp_path):
    assert list(read_rows_backwards(tmp_path / "x", 100)) == []


@pytest.mark.parametrize("bad", ["[1]", "{", "", "\xff", "[" * 100_000, "9" * 5000])
def test_a_damaged_line_is_passed_over(tmp_path, bad):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step":1}\n' + bad.encode("latin-1") + b'\n{"step":3}\n')
    assert list(read_rows_backwards(path, 1 << 20)) == [{"step": 3}, {"step": 1}]


def test_an_endless_line_and_a_pipe_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "long").write_bytes(b"x" * 2000 + b"\n")
    with pytest.raises(AlphaError, match="a line of more than 1,000 bytes"):
        LineFile(tmp_path / "long").keep_through(1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AlphaError, match="not a regular file"):
        list(read_rows_backwards(tmp_path / "pipe", 100))


def test_rows_beyond_a_step_and_damaged_lines_are_removed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step":1}\n\x00\x00\n{"step":2}\n{"step":"3"}\n{"step":3}\n{"loss":1}\n{"step":4}\n')
    file = LineFile(path)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    assert file.keep_through(2) == 5
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    file.append_row({"step": 3, "again": True})
    assert file.keep_through(3) == 0
    file.close()
    assert rows_in(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_write_that_fails_half_way_is_taken_back(tmp_path, monkeypatch):
    file = LineFile(tmp_path / "x.jsonl")
    file.append_row({"step": 1})
    write, calls = os.write, []

    def fill(descriptor: int, content: bytes) -> int:
        calls.append(content)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:5])

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", fill)
        with pytest.raises(AlphaError, match=r"Cannot write .*x\.jsonl: No space left on device\.$"):
            file.append_row({"step": 2})
    assert len(calls) == 2
    file.append_row({"step": 3})
    file.close()
    assert rows_in(tmp_path / "x.jsonl") == [{"step": 1}, {"step": 3}]


def test_a_write_in_several_parts_is_one_line(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    path = appended(tmp_path / "x.jsonl", {"step": 123456})
    assert path.read_text() == '{"step":123456}\n'


def test_a_full_disk_keeps_whole_lines(tmp_path):
    with tiny_disk(tmp_path / "disk", "16k") as disk:
        file = LineFile(disk / "x.jsonl")
        with pytest.raises(AlphaError, match="No space left on device"):
            for step in range(1000):
                file.append_row({"step": step, "text": "x" * 300})
        with pytest.raises(AlphaError, match="No space left on device"):
            file.keep_through(10)
        file.close()
        rows = rows_in(disk / "x.jsonl")
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert (disk / "x.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("operation", ["open", "fsync", "pread"])
def test_refusals_of_the_system_name_the_file(tmp_path, monkeypatch, operation):
    path = appended(tmp_path / "x.jsonl", {"step": 1})

    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, operation, refuse)
    with pytest.raises(AlphaError, match=r"Cannot write .*x\.jsonl: Input/output error\.$"):
        LineFile(path).sync()
