import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpha import followed_files
from alpha.errors import AlphaError
from alpha.files import parse_row
from alpha.followed_files import LineFollower, parse_lines


class Reader:
    """Whole lines as somebody has them who only asks for what is new."""

    def __init__(self, path: Path) -> None:
        self.follower = LineFollower(path)
        self.lines: list[bytes] = []
        self.was_told = 0

    def look(self, limit: int) -> bool:
        piece = self.follower.read(limit)
        if piece.restarted:
            self.lines = []
        assert piece.content[-1:] in (b"", b"\n")
        self.lines += piece.content.splitlines(keepends=True)
        self.was_told += len(piece.content)
        return piece.is_end

    def catch_up(self, limit: int) -> list[bytes]:
        while not self.look(limit):
            pass
        return self.lines


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("tear"), st.integers(1, 300)),  # a write that was cut short after so many bytes
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),  # and the next writer cuts the torn line
        st.tuples(st.just("resume"), st.integers(0, 30)),  # the last lines are dropped, in a new file
        st.tuples(st.just("in place"), st.integers(0, 30)),  # the same, as rsync --inplace does it
        st.tuples(st.just("vanish"), st.just(0)),
        st.tuples(st.just("look"), st.integers(1, 400)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS, limit=st.integers(1, 500))
def test_who_follows_has_the_whole_lines_of_the_file(tmp_path_factory, actions, limit):
    path = tmp_path_factory.mktemp("follow") / "metrics.jsonl"
    reader, content, number = Reader(path), b"", 0
    for action, amount in actions:
        number += 1
        line = b'{"step":%d,"text":"%s"}\n' % (number, b"x" * (number * 37 % 200))
        if action == "look":
            reader.look(amount)
            continue
        if action == "tear":
            content += line[:amount]
        elif action == "finish":
            content = content if content.endswith(b"\n") else content + b"\n"
        elif action == "crash":
            content = content[: content.rfind(b"\n") + 1] + line
        elif action == "vanish":
            content = b""
            path.unlink(missing_ok=True)
            continue
        else:
            whole = content.splitlines(keepends=True)
            content = b"".join(whole[: len(whole) - amount] if amount < len(whole) else []) + line
        if action == "resume":
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
        else:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(content)
                file.truncate()
    expected = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    assert reader.catch_up(limit) == expected
    assert reader.catch_up(limit) == expected


def test_nothing_is_read_twice(tmp_path):
    path = tmp_path / "x"
    reader = Reader(path)
    for number in range(200):
        with path.open("a") as file:
            file.write(f"line {number}\nhalf of the ne")
        reader.catch_up(1 << 20)
        with path.open("r+") as file:
            file.truncate(path.stat().st_size - len("half of the ne"))
    assert reader.was_told == path.stat().st_size
    assert len(reader.lines) == 200


def test_a_line_that_is_longer_than_memory_should_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(followed_files, "MAX_LINE_BYTES", 100)
    path = tmp_path / "x"
    path.write_bytes(b"first\n" + b"y" * 1000 + b"\nlast\n")
    assert Reader(path).catch_up(10) == [b"first\n", b"last\n"]
    path.write_bytes(b"z" * 1000)
    reader = Reader(path)
    assert reader.catch_up(10) == []
    path.write_bytes(b"z" * 1000 + b"\nnew\n")
    assert reader.catch_up(10) == [b"new\n"]


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_only_regular_files_are_followed(tmp_path, what):
    path = tmp_path / "x"
    path.mkdir() if what == "folder" else os.mkfifo(path)
    with pytest.raises(AlphaError, match="it is not a regular file"):
        LineFollower(path).read()


JSON_LINES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)


@settings(deadline=None)
@example([b'{"a":1},{"b":2}', b'{"a":[1', b"2]}", b' {"a":1} ', b"{", b"\xff", b'{"\xff":1}', b"[" * 100_000])
@given(st.lists(JSON_LINES.map(str.encode) | st.binary(max_size=20).map(lambda line: line.replace(b"\n", b""))))
def test_lines_are_parsed_as_one_by_one(content):
    rows, others = parse_lines(b"".join(line + b"\n" for line in content))
    expected = [row for line in content if (row := parse_row(line.decode(errors="replace").encode())) is not None]
    assert repr(rows) == repr(expected)  # in which NaN equals NaN
    assert others == len(content) - len(expected)
