"""What somebody types, an entry at a time: lines that can be edited and called back, from a terminal or a pipe.

An entry is a line. One that ends with a backslash goes on with the next one; one that begins with three quotes goes on
up to the next three. On a terminal, lines are edited with Python's readline, where it is there, and earlier entries are
kept in a file that only the user can read.
"""

import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator
from types import FrameType, ModuleType

from alpha import environment, files
from alpha.errors import AlphaError
from alpha.terminal import print_warning

QUOTES = '"""'
MOST_CHARACTERS = 1 << 20
"""An entry may have so many."""

_FIRST, _NEXT = "> ", ". "
_LONGEST_KEPT = 10_000
_LARGEST_FILE = 1 << 26


class InterruptedLineError(Exception):
    """Ctrl-C was typed; `given_up` is what there was of a line."""

    def __init__(self, given_up: str) -> None:
        super().__init__(given_up)
        self.given_up = given_up


class LineInput:
    """Entries from standard input. Where that is a terminal, a prompt asks for each line; only for the main thread."""

    def __init__(self) -> None:
        self._input = sys.stdin or io.StringIO()  # it may be closed
        self.is_terminal = self._input.isatty()
        # A prompt is no part of the result, so where that goes elsewhere, prompts do not go with it.
        self._editor = _readline() if self.is_terminal and sys.stdout.isatty() else None
        self._history = files.state_folder() / "history"
        self._most = environment.read("ALPHA_HISTORY") if self._editor else 0
        self._entered: list[str] = []
        self._characters = 0  # of the entry that is read

    def __enter__(self) -> "LineInput":
        if isinstance(self._input, io.TextIOWrapper):
            self._input.reconfigure(errors="replace")
        if self._editor is not None:
            self._editor.set_auto_history(False)  # an entry is kept whole, of however many lines
            self._editor.clear_history()
            for entry in self._kept():
                self._editor.add_history(entry)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._most and self._entered:
            try:
                self._keep()
            except AlphaError as error:
                print_warning(f"What was typed is not kept for the next time. {error}")

    def read(self) -> str | None:
        """The next entry, None at the end of the input. On a terminal, InterruptedLineError at Ctrl-C.

        Raises AlphaError when it is too long.
        """
        self._characters = 0
        line = self._line(_FIRST)
        if line is None:
            return None
        entry = "\n".join(self._quoted(line) if line.startswith(QUOTES) else self._joined(line))
        if self._editor is not None and entry.strip() and entry not in self._entered[-1:]:
            self._entered.append(entry)
            self._editor.add_history(entry)
        return entry

    def _joined(self, line: str) -> list[str]:
        """The lines of an entry, of which all but the last end with a backslash."""
        lines: list[str] = []
        while line.endswith("\\") and (after := self._line(_NEXT)) is not None:
            lines.append(line.removesuffix("\\"))
            line = after
        return [*lines, line]

    def _quoted(self, line: str) -> list[str]:
        """The lines of an entry between quotes, of which the first has those at its beginning."""
        lines: list[str] = []
        rest: str | None = line.removeprefix(QUOTES)
        while rest is not None:
            line, quotes, _ = rest.partition(QUOTES)
            lines.append(line)
            rest = None if quotes else self._line(_NEXT)
        return lines

    def _line(self, prompt: str) -> str | None:
        """A line without its end; None where there are no more."""
        with self._interrupting() if self.is_terminal else contextlib.nullcontext():
            line = self._typed(prompt) if self.is_terminal else self._input.readline(MOST_CHARACTERS + 1)
        self._characters += len(line)
        if self._characters > MOST_CHARACTERS:
            raise AlphaError(f"What was typed has more than {MOST_CHARACTERS:,} characters.")
        return line.removesuffix("\n") if line else None

    def _typed(self, prompt: str) -> str:
        """A line with its end, for which a prompt asks; nothing where there are no more."""
        if self._editor is not None:
            try:
                return input(prompt) + "\n"
            except EOFError:
                print()
                return ""
        print(prompt, end="", file=sys.stderr, flush=True)
        line = self._input.readline(MOST_CHARACTERS + 1)
        if not line:
            print(file=sys.stderr)
        return line

    @contextlib.contextmanager
    def _interrupting(self) -> Iterator[None]:
        """Inside, Ctrl-C gives up the line, and nothing else."""

        def give_up(number: int, frame: FrameType | None) -> None:
            raise InterruptedLineError(self._editor.get_line_buffer() if self._editor else "")

        previous = signal.signal(signal.SIGINT, give_up)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _kept(self) -> list[str]:
        """The entries of earlier times; lines that are damaged are passed over."""
        if not self._most:
            return []
        try:
            lines = files.read_bytes(self._history, "history", _LARGEST_FILE).splitlines()
        except AlphaError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                print_warning(str(error))
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, str) and "\0" not in entry][-self._most :]

    def _keep(self) -> None:
        # Read again: others may have kept something since.
        entries = [*self._kept(), *(each for each in self._entered if len(each) <= _LONGEST_KEPT)][-self._most :]
        lines = "".join(json.dumps(each) + "\n" for each in entries)
        files.write_bytes(self._history, lines.encode(), mode=0o600)


def _readline() -> ModuleType | None:
    """The module that gives `input` editing; not every Python has it."""
    try:
        import readline
    except ImportError:
        return None
    return readline
