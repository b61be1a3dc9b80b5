"""Usage texts, and reading a command line with them.

The text of a command is rendered from its option classes, and the same text is what docopt reads the arguments with, so
that the help and the parser cannot disagree. Before docopt sees them, flags are spelled as the text has them: `--key
value` and `--key=value`, camelCase, kebab-case and aliases are all accepted, a flag that is given twice counts as its
last, unless it is one for several, and a misspelt one is answered with the nearest.
"""

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

from docopt import docopt

from alpha.errors import UsageError
from alpha.option import Option, camel_case, convert, names_of, options_of, suggestion

NARROW = 80
WIDE = 100
_FLAG_COLUMN = 26
_GLUE = "\N{NO-BREAK SPACE}"


def render(command: str, summary: str, options_classes: Sequence[type], details: str = "", width: int = WIDE) -> str:
    """The usage text of a command, in lines of at most `width` columns.

    Groups of options stand in the order of their first ones. `details` is printed below them; its lines are wrapped
    but for indented ones, such as examples.
    """
    options = [each for options_class in options_classes for each in options_of(options_class)]
    parts = [summary, f"Usage:\n  {_synopsis(command, options)}"]
    groups: dict[str, list[str]] = {}
    for each in options:
        head = f"--{each.flag}" if _is_switch(each) else f"--{each.flag}={each.metavar}"
        entry = _entry(head, _description(each), width)
        groups.setdefault(each.group, []).append(entry)
    help_entry = _entry("-h, --help", "Show this text.", width)
    sections = [*groups.items(), ("Help", [help_entry])]
    parts += [f"{group}:\n" + "\n".join(entries) for group, entries in sections]
    if details:
        parts.append("\n".join(_wrapped(line, width) for line in details.strip("\n").splitlines()))
    return "\n\n".join(parts)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether `-h` or `--help` stands among the arguments, before a `--`."""
    before = itertools.takewhile(lambda argument: argument != "--", arguments)
    return any(argument in ("-h", "--help") for argument in before)


def parse(command: str, text: str, options_classes: Sequence[type], arguments: Sequence[str]) -> dict[str, Any]:
    """The options given explicitly, by field name; `text` is what `render` made of the same classes.

    Raises UsageError for an unknown flag, a bad value, a missing required option, or an argument that is no flag.
    """
    options = [each for options_class in options_classes for each in options_of(options_class)]
    spelled = _spelled(command, options, arguments)
    # Docopt accepts what is missing or too much, because its messages would not say what to do about it.
    several = "".join(f" [--{each.flag}={each.metavar}]..." for each in options if each.repeated)
    lenient = text.replace(_synopsis(command, options), f"alpha {command}{several} [options] [<argument>]...", 1)
    argv = [*command.split(), *(each for each in spelled.values() if each is not None)]
    parsed = docopt(lenient, argv, default_help=False)
    for unexpected in parsed["<argument>"]:
        raise UsageError(f"Unexpected argument {unexpected!r}: options are written as --name=value. {_see(command)}")
    given: dict[str, Any] = {str(name): False for name, argument in spelled.items() if argument is None}
    for each in options:
        found, where = parsed[f"--{each.flag}"], f"--{each.flag}"
        if each.required and not found:
            raise UsageError(f"alpha {command} needs {where}={each.metavar}: {each.help}")
        if each.repeated and found:
            given[each.name] = tuple(convert(each, value, where) for value in found)
        elif found not in (None, False, []):
            given[each.name] = convert(each, found, where)
    return given


def _synopsis(command: str, options: Sequence[Option]) -> str:
    required = "".join(f" --{each.flag}={each.metavar}" for each in options if each.required)
    return f"alpha {command}{required} [options]"


def _is_switch(option: Option) -> bool:
    """Whether docopt sees a flag without a value; `--flag=false` is then the same as leaving it out."""
    return option.kind is bool and option.default is False


def _spelled(command: str, options: Sequence[Option], arguments: Sequence[str]) -> dict[str | int, str | None]:
    """The arguments with every flag as the usage text spells it; None for a switch that is turned off.

    The argument after a flag is its value unless it begins with two dashes. The keys are the names of options, so that
    the last of equal ones stays, and numbers for what may stand there several times.
    """
    declared = names_of(options)
    spelled: dict[str | int, str | None] = {}
    remaining = list(reversed(arguments))
    while remaining:
        place = len(remaining)
        name, equals, value = (argument := remaining.pop()).partition("=")
        if not name.startswith("-"):
            spelled[place] = argument
            continue
        option = declared.get(camel_case(name[2:])) if name.startswith("--") else None
        if option is None:
            raise UsageError(f"Unknown option {name!r}. {suggestion(name, declared, _see(command))}")
        if not equals:
            if remaining and not remaining[-1].startswith("--"):
                value = remaining.pop()
                for _ in range(option.words - 1):
                    if remaining and not remaining[-1].startswith("--"):
                        value += f",{remaining.pop()}"
            elif option.kind is bool:
                value = "true"
            else:
                raise UsageError(f"{name} needs a value: {name}={option.metavar}.")
        flag = f"--{option.flag}"
        if _is_switch(option):
            spelled[option.name] = flag if convert(option, value, flag) else None
        else:
            spelled[place if option.repeated else option.name] = f"{flag}={value}"
    return spelled


def _see(command: str) -> str:
    return f"See alpha {command} --help."


def _description(option: Option) -> str:
    """The help text with the choices that it does not name itself, and the default where it says something."""
    text = option.help
    if any(choice not in text for choice in option.choices):
        text = f"{text.rstrip('.')}: {', '.join(option.choices)}."
    if option.aliases:
        text += f" Also {', '.join(f'--{alias}' for alias in option.aliases)}."
    if option.default in ("", ()) or option.required or _is_switch(option):
        return text
    return f"{text} (default{_GLUE}{_default(option.default)})"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _wrapped(line: str, width: int) -> str:
    return line if line.startswith(" ") else textwrap.fill(line, width, break_on_hyphens=False, break_long_words=False)


def _entry(flags: str, description: str, width: int) -> str:
    # docopt takes a line that starts with a dash for an option, so a dash stays with the word before it.
    glued = description.replace(" -", f"{_GLUE}-")
    lines = textwrap.wrap(glued, width - _FLAG_COLUMN - 2, break_on_hyphens=False, break_long_words=False)
    indent = " " * (_FLAG_COLUMN + 2)
    block = "\n".join(indent + line.replace(_GLUE, " ") for line in lines)
    head = f"  {flags}"
    # At least two spaces divide a flag from its text; a longer flag has a line of its own.
    return head.ljust(len(indent)) + block.lstrip() if len(head) + 2 <= len(indent) else f"{head}\n{block}"
