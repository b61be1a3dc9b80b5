"""What reaches the terminal: text made harmless, tables, JSON.

Model output, file names and file contents are written by others, so a control character in them must not reach the
terminal, where it could move the cursor, change the title or hide text.
"""

import io
import json
import os
import re
import select
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from alpha.errors import AlphaError

# Controls (C0 but tab and newline, DEL, C1), line separators, embeddings and overrides that reorder text, and lone
# surrogates. Marks of direction belong to texts written from right to left; in a name they could only mislead.
_HARMFUL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_HARMFUL_IN_TEXT = re.compile(f"[{_HARMFUL}]")
_HARMFUL_IN_LINE = re.compile(f"[{_HARMFUL}\t\n\u061c\u200e\u200f\ufeff]")
_WIDTH_OF_A_PIPE = 160
_STANDARD_OUTPUT = 1
_DAYS_FROM = 10 * 86400


def escape_text(text: str) -> str:
    """`text` with control characters visible as in `\\x1b`; tabs and newlines stay, and CR LF is a newline."""
    return _HARMFUL_IN_TEXT.sub(_visible, text.replace("\r\n", "\n"))


def escape_line(text: str) -> str:
    """`text` as one line: tabs and newlines are made visible too."""
    return _HARMFUL_IN_LINE.sub(_visible, text)


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is, None when it is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def is_terminal_gone() -> bool:
    """Whether standard output, whatever `sys.stdout` is now, is a terminal whose other end was closed."""
    watched = select.poll()
    watched.register(_STANDARD_OUTPUT, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in watched.poll(0))


def print_text(text: str) -> None:
    """Print `text`, escaped, and a newline to standard output."""
    _write(escape_text(text))


def print_part(text: str) -> None:
    """Print `text`, escaped, to standard output, without a newline."""
    _write(escape_text(text), end="")


class TextPrinter:
    """Prints a text in parts, each at once: escaped on a terminal, into a file or a pipe as it is."""

    def __init__(self) -> None:
        self._is_terminal = terminal_width() is not None
        self._held = ""

    def part(self, text: str) -> None:
        """Print a part of the text."""
        if self._is_terminal:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # perhaps half of a line end
            text = escape_text(text.removesuffix("\r"))
        _write(text, end="")

    def close(self) -> None:
        """End the text with a newline."""
        print_text(self._held)
        self._held = ""


def print_aside(text: str) -> None:
    """Print `text`, escaped, and a newline to standard error: what is not the result itself."""
    print(escape_text(text), file=sys.stderr)


def print_warning(message: str) -> None:
    """Print one line to standard error."""
    print(f"alpha: warning: {escape_line(message)}", file=sys.stderr)


def print_note(message: str) -> None:
    """Print one line that is no part of the result to standard error."""
    print(f"alpha: {escape_line(message)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print `value` as JSON for another program: numbers that are not finite become null, nothing needs a terminal."""
    _write(_json(value, indent=2))


def print_json_array(values: Iterable[Any]) -> None:
    """Print a JSON array as `print_json` does, but each value in a line of its own, as soon as it comes."""
    mark = "["
    for value in values:
        _write(f"{mark}\n{_json(value)}", end="")
        mark = ","
    _write("[]" if mark == "[" else "\n]")


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
    styles: Mapping[str, str] = MappingProxyType({}),
    widest: Sequence[str] = (),
) -> None:
    """Print aligned columns; those named in `right` hold numbers and are aligned to the right.

    With `widest`, a row whose cells are as wide as any that will come, each row is printed as soon as it comes. On a
    terminal the headings are bold, and cells whose text is in `styles` have that style of rich's. There is none of that
    where NO_COLOR is set or the output is a pipe or a file.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sides: list[Literal["left", "right"]] = ["right" if heading in right else "left" for heading in headings]
    widths = [max(len(heading), len(cell)) for heading, cell in zip(headings, widest or headings, strict=True)]

    def filled(cells: Sequence[str]) -> Iterator[str]:
        for cell, side, width in zip(map(escape_line, cells), sides, widths, strict=True):
            yield cell.rjust(width) if side == "right" else cell.ljust(width)

    def show(rows: Iterable[Sequence[str]], has_headings: bool) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=has_headings)
        for heading, side in zip(filled(headings), sides, strict=True):
            table.add_column(Text(heading), justify=side, overflow="fold")
        for row in rows:
            table.add_row(
                *(Text(each, style=styles.get(cell, "")) for each, cell in zip(filled(row), row, strict=True))
            )
        width = terminal_width()
        rendered = io.StringIO()
        Console(file=rendered, force_terminal=width is not None, width=width or _WIDTH_OF_A_PIPE).print(table)
        _write("\n".join(line.rstrip() for line in rendered.getvalue().splitlines()))

    if not widest:
        show(rows, True)
        return
    show([], True)
    for row in rows:
        show([row], False)


def print_parts(parts: Sequence[tuple[str, bool]]) -> None:
    """Print a text of which only some parts matter: the others are dim on a terminal; elsewhere these are in ⟦ ⟧."""
    if terminal_width() is None:
        print_text("".join(f"⟦{text}⟧" if matters else text for text, matters in parts))
        return
    from rich.console import Console
    from rich.text import Text

    rendered = io.StringIO()
    text = Text.assemble(*((escape_text(part), "" if matters else "dim") for part, matters in parts))
    Console(file=rendered, force_terminal=True, width=terminal_width()).print(text, soft_wrap=True)
    _write(rendered.getvalue().removesuffix("\n"))


def duration(seconds: float) -> str:
    """A time span in words of a clock: `0:09`, `1:02:03`, `12 days`."""
    if seconds >= _DAYS_FROM:
        return f"{seconds / 86400:.4g} days"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _json(value: Any, indent: int | None = None) -> str:
    from alpha.files import finite

    text = json.dumps(finite(value), indent=indent, ensure_ascii=False)
    return _HARMFUL_IN_TEXT.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _write(text: str, end: str = "\n") -> None:
    """Print harmless text. Raises BrokenPipeError when the reader went away, AlphaError when it cannot be written."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        lost = output_lost(error)
        if lost is error:
            raise
        raise lost from error


def output_lost(error: OSError) -> Exception:
    """What to raise when standard output cannot be written: a BrokenPipeError when its reader went away, else an
    AlphaError. What is printed from now on goes nowhere, as Python flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return error
    return AlphaError(f"Cannot write to standard output: {error.strerror or error}.")


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if match.group() in "\t\n\r":
        return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}[match.group()]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
