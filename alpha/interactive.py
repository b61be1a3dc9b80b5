"""A conversation with a model in the terminal, or through a pipe: what is typed, what is answered, and the commands.

The answers go to standard output, everything else on a terminal's screen is prompts and asides.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

from alpha.config import DrawingOptions
from alpha.conversation import Chat, Conversation, Text
from alpha.errors import AlphaError, UsageError
from alpha.generation import Generator, sampling_of
from alpha.interrupt import StopRequest
from alpha.line_input import InterruptedLineError, LineInput
from alpha.option import convert, nearest, options_of
from alpha.terminal import TextPrinter, print_aside, print_text

COMMANDS = {
    "help": "what can be typed",
    "retry": "another answer instead of the last one",
    "reset": "begin anew",
    "system": "TEXT: what the model is told before a chat; without TEXT, nothing",
    "set": "NAME VALUE: change an option; without, show all",
    "exit": "end; so does Ctrl-D",
}


class Session:
    """Takes entries and answers them, until their end or `/exit`."""

    def __init__(
        self, conversation: Chat | Text, generator: Generator, options: DrawingOptions, lines: LineInput
    ) -> None:
        """The generator has an engine."""
        self._conversation: Conversation = conversation
        self._generator = generator
        self._options = options
        self._lines = lines
        self._answers = 0
        self._before_answer: Any = None

    def run(self, first: str = "") -> None:
        """Begin with an entry, if there is a `first`. On a terminal an error ends an answer only, unless there can be
        no others; elsewhere it is raised."""
        was_interrupted = False
        goes_on = True
        while goes_on:
            try:
                entry, first = first or self._lines.read(), ""
                was_interrupted = False
                goes_on = entry is not None and self._do(entry)
            except InterruptedLineError as interrupted:
                is_empty = not interrupted.given_up.strip()
                goes_on = not (is_empty and was_interrupted)
                was_interrupted = is_empty
                print_aside("\nCtrl-C again, or Ctrl-D, ends." if is_empty and goes_on else "")
            except AlphaError as error:
                engine = self._generator.engine
                if not self._lines.is_terminal or (engine and engine.failure):
                    raise
                print_aside(str(error))

    def _do(self, entry: str) -> bool:
        """Whether to go on after it."""
        if not entry.startswith("/"):
            if entry.strip() or isinstance(self._conversation, Text):
                self._say(entry)
            return True
        name, _, rest = entry[1:].partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            raise UsageError(
                f"There is no /{name[:20]}. {nearest(name[:20], COMMANDS)} A text may begin so after a space."
            )
        if name == "help":
            self._help()
        elif name == "retry":
            self._retry()
        elif name == "reset":
            self._conversation.reset()
            self._before_answer = None
        elif name == "system":
            if not isinstance(self._conversation, Chat):
                raise UsageError("This model knows no chats, so there is nothing to tell it before one.")
            self._conversation.system = rest
        elif name == "set":
            self._set(rest)
        return name != "exit"

    def _help(self) -> None:
        width = max(map(len, COMMANDS)) + 1
        lines = [f"{'/' + name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()]
        if isinstance(self._conversation, Text):
            lines.append("What is typed is added to the text as it is; an empty line goes on.")
        lines += [
            "A line that ends with \\ goes on with the next one; several lines may stand",
            'between """ and """. Ctrl-C stops an answer.',
        ]
        print_aside("\n".join(lines))

    def _set(self, rest: str) -> None:
        declared = {each.flag: each for each in options_of(DrawingOptions)}
        name, _, value = rest.replace("=", " ").partition(" ")
        if not name:
            print_aside("   ".join(f"{flag} {getattr(self._options, each.name):g}" for flag, each in declared.items()))
            return
        if name not in declared:
            raise UsageError(f"There is no option {name[:20]!r} to set. {nearest(name[:20], declared)}")
        new = convert(declared[name], value.strip(), name)
        self._options = dataclasses.replace(self._options, **{declared[name].name: new})

    def _retry(self) -> None:
        if self._before_answer is None:
            raise UsageError("There is no answer yet.")
        answered, self._conversation.content = self._conversation.content, self._before_answer
        try:
            self._answer()
        except AlphaError:
            self._conversation.content = answered
            raise

    def _say(self, text: str) -> None:
        before = self._conversation.content
        self._conversation.said(text)
        try:
            self._answer()
        except AlphaError:
            self._conversation.content = before
            raise

    def _answer(self) -> None:
        """What the model says now, while it is drawn."""
        conversation, options = self._conversation, self._options
        asked = conversation.asked()
        if conversation.forgotten:
            print_aside(f"(The context is full: the oldest {conversation.forgotten} messages are forgotten.)")
        self._before_answer = conversation.content
        room = conversation.room(asked)
        steps = options.steps if room is None else min(options.steps, room)
        seed = (options.seed + self._answers) % (1 << 64)  # each answer has its own
        sampling = sampling_of(dataclasses.replace(options, seed=seed))
        drawn = self._generator.generate(asked.ids, steps, sampling, ends=asked.ends, first=asked.first)
        self._answers += 1
        ids: list[int] = []
        text = ""
        printer = TextPrinter()
        with StopRequest((signal.SIGINT,) if self._lines.is_terminal else ()) as stop, contextlib.closing(drawn):

            def tokens() -> Iterator[int]:
                for [token] in drawn:
                    if token is None or stop.requested:
                        return
                    ids.append(token)
                    yield token

            try:
                for part in asked.parts(tokens()):
                    printer.part(part)
                    text += part
            finally:
                printer.close()
        conversation.answered(text)
        if stop.requested:
            print_aside("(Stopped.)")
        elif bool(ids) and asked.ends(ids):
            if isinstance(conversation, Text):
                print_aside("(The text ends here.)")
        elif isinstance(conversation, Chat):
            print_aside(f"(Cut off: {'the context is full' if steps == room else f'{steps:,} tokens'}.)")


def begin(conversation: Chat | Text, generator: Generator, options: DrawingOptions, first: str = "") -> None:
    """Converse until the end of what is typed; `first` counts as typed before."""
    with LineInput() as lines:
        if first and lines.is_terminal:
            print_text(f"> {first}")
        Session(conversation, generator, options, lines).run(first)
