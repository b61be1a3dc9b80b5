"""Nothing that others wrote can do anything to a terminal but show characters."""

import json
import math
import os
import pty
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha.terminal import (
    TextPrinter,
    duration,
    escape_line,
    escape_text,
    print_json,
    print_json_array,
    print_table,
    print_text,
)

HOSTILE = "a\x1b]0;title\x07b\x9bc\rd\x7fe\u202ef\ud800g\u2028h\ti\nj"


def is_harmless(text: str) -> bool:
    categories = {unicodedata.category(character) for character in text}
    return not categories & {"Cc", "Cs", "Zl", "Zp"} and not any(
        unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for character in text
    )


def test_escapes_are_visible() -> None:
    line = "a\\x1b]0;title\\x07b\\x9bc\\rd\\x7fe\\u202ef\\ud800g\\u2028h"
    assert escape_text(HOSTILE) == f"{line}\ti\nj"
    assert escape_line(HOSTILE) == f"{line}\\ti\\nj"


@given(st.text(st.characters()))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_becomes_harmless(text: str) -> None:
    assert is_harmless(escape_line(text))
    assert is_harmless(escape_text(text).replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize("text", ["plain", "naïve 中文 русский", "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{GIRL}", "a\\x1b"])
def test_ordinary_text_stays(text: str) -> None:
    assert escape_line(text) == text


def test_json_is_harmless_exact_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": HOSTILE, "loss": math.nan, "rows": [(1, math.inf)], "e": "é"})
    printed = capsys.readouterr().out
    assert is_harmless(printed.replace("\n", ""))
    assert "é" in printed
    assert json.loads(printed) == {"text": HOSTILE, "loss": None, "rows": [[1, None]], "e": "é"}


def test_tables_are_aligned_escaped_and_free_of_codes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "step"), [["[bold]x[/bold]", "7"], ["\x1b[31mred\n", "1234"]], right=("step",))
    assert capsys.readouterr().out.splitlines() == [
        "name            step",
        "[bold]x[/bold]     7",
        "\\x1b[31mred\\n   1234",
    ]


def test_a_table_that_grows_is_aligned_before_its_rows_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Iterator[list[str]]:
        assert capsys.readouterr().out == "name       step\n"
        yield ["a", "7"]
        assert capsys.readouterr().out == "a             7\n"
        yield ["\x1blong", "1234"]

    print_table(("name", "step"), rows(), right=("step",), widest=["12345678", "12345"])
    assert capsys.readouterr().out == "\\x1blong   1234\n"


def test_an_array_is_printed_value_by_value(capsys: pytest.CaptureFixture[str]) -> None:
    def values() -> Iterator[object]:
        yield {"loss": math.nan}
        assert capsys.readouterr().out == '[\n{"loss": null}'
        yield [HOSTILE]

    print_json_array(values())
    printed = capsys.readouterr().out
    assert is_harmless(printed.replace("\n", ""))
    assert json.loads('[{"loss": null}' + printed) == [{"loss": None}, [HOSTILE]]
    print_json_array([])
    assert capsys.readouterr().out == "[]\n"


def test_text_is_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("a\x1bb")
    assert capsys.readouterr().out == "a\\x1bb\n"


def test_text_on_a_terminal_is_harmless_and_in_a_file_as_it_is(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["cat\r", "\ndog\r", "x\u200f\u200b\u061c\ufeff ", "\x1b[31m\x9b\u202e\n", "a\r\n\n", "\r"]

    def print_parts() -> None:
        printer = TextPrinter()
        for part in parts:
            printer.part(part)
        printer.close()

    print_parts()
    assert capfdbinary.readouterr().out.decode() == "".join(parts) + "\n"
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        print_parts()
        lines_shown = b""
        while lines_shown.count(b"\n") < 5:  # what is not there yet is waited for
            lines_shown += screen.read(1000)
        shown = lines_shown.decode()
    lines = ["cat", "dog\\rx\u200f\u200b\u061c\ufeff \\x1b[31m\\x9b\\u202e", "a", "", "\\r", ""]
    assert shown == "\r\n".join(lines)  # the terminal makes CR LF of a newline


def test_marks_that_mislead_in_a_name_are_visible_there() -> None:
    assert escape_line("a\u200fb\ufeff\r\n") == "a\\u200fb\\ufeff\\r\\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (360_061, "100:01:01"), (2e6, "23.15 days")]
)
def testdurations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
