"""Usage texts, and reading a command line with them.

The text of a command is rendered from its option classes, and the same text is what docopt parses the arguments with,
so that the help and the parser cannot disagree. Before docopt sees them, arguments are put into one spelling:
`--key value`, `--key=value`, camelCase, kebab-case and aliases are all accepted, an option that is given twice takes
its last value, unless it is one for several, and a misspelt one is answered with the nearest. Knows nothing about what
commands do.
"""

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

    Groups of options stand in alphabetical order, so that they may come from several classes. `details` is printed
    below them; its lines are wrapped but for indented ones, such as examples.
    """
    options = [each for options_class in options_classes for each in options_of(options_class)]
    required = "".join(f" --{each.flag}={each.metavar}" for each in options if each.required)
    parts = [summary, f"Usage:\n  alpha {command}{required} [options]"]
    groups: dict[str, list[str]] = {}
    for each in options:
        head = f"--{each.flag}" if _is_switch(each) else f"--{each.flag}={each.metavar}"
        entry = _entry(head, _description(each), width)
        groups.setdefault(each.group, []).append(entry)
    help_entry = _entry("-h, --help", "Show this text.", width)
    sections = [*sorted(groups.items()), ("Help", [help_entry])]
    parts += [f"{group}:\n" + "\n".join(entries) for group, entries in sections]
    if details:
        parts.append("\n".join(_wrapped(line, width) for line in details.strip("\n").splitlines()))
    return "\n\n".join(parts)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether `-h` or `--help` stands among the arguments, before a `--`."""
    for argument in arguments:
        if argument == "--":
            return False
        if argument in ("-h", "--help"):
            return True
    return False


def parse(command: str, text: str, options_classes: Sequence[type], arguments: Sequence[str]) -> dict[str, Any]:
    """The options given explicitly, by field name; `text` is what `render` made of the same classes.

    Raises UsageError for an unknown flag, a bad value, a missing required option, or an argument that is no flag.
    """
    options = [each for options_class in options_classes for each in options_of(options_class)]
    given_values = _read_flags(command, options, arguments)
    values = {flag: each[-1] for flag, each in given_values.items()}
    for each in options:
        if each.required and not values.get(each.flag):
            raise UsageError(f"alpha {command} needs --{each.flag}={each.metavar}: {each.help}")
    argv = command.split()
    switched_off = {}
    for each in options:
        if each.flag not in values:
            continue
        if not _is_switch(each):
            argv.append(f"--{each.flag}={values[each.flag]}")
        elif convert(each, values[each.flag], f"--{each.flag}"):
            argv.append(f"--{each.flag}")
        else:
            switched_off[each.name] = False
    parsed = docopt(text, argv, default_help=False)
    given = ((each, parsed[f"--{each.flag}"]) for each in options)
    converted = {
        each.name: convert(each, value, f"--{each.flag}") for each, value in given if value not in (None, False)
    }
    repeated = {
        each.name: tuple(convert(each, value, f"--{each.flag}") for value in given_values[each.flag])
        for each in options
        if each.repeated and each.flag in given_values
    }
    return converted | switched_off | repeated


def _is_switch(option: Option) -> bool:
    """Whether docopt sees a flag without a value; `--flag=false` is then the same as leaving it out."""
    return option.kind is bool and option.default is False


def _read_flags(command: str, options: Sequence[Option], arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values given for each flag, by its camelCase name."""
    declared = names_of(options)
    values: dict[str, list[str]] = {}
    remaining = list(reversed(arguments))
    while remaining:
        argument = remaining.pop()
        if not argument.startswith("-"):
            raise UsageError(f"Unexpected argument {argument!r}: options are written as --name=value. {_see(command)}")
        name, equals, value = argument.partition("=")
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
        values.setdefault(option.flag, []).append(value)
    return values


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
