"""Every `ALPHA_*` environment variable, declared once with its meaning; `alpha env` prints this table."""

import os
from dataclasses import dataclass

from alpha.errors import UsageError
from alpha.option import nearest

_PREFIX = "ALPHA_"


@dataclass(frozen=True)
class Variable:
    """A run-time knob that is a whole number of at least `minimum`."""

    name: str
    default: int
    help: str
    minimum: int = 0


VARIABLES = (
    Variable("ALPHA_CALLBACK_YIELD_EVERY", 25, "Most steps between two refreshes of the progress display.", minimum=1),
    Variable("ALPHA_DEBUG", 0, "1 adds the traceback to the error message of a command."),
)
BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str) -> int:
    """The value of a declared variable. Raises UsageError when it is set to something that is not such a number."""
    text = os.environ.get(name, "")
    return number(name, text, f"The environment variable {name}") if text else BY_NAME[name].default


def number(name: str, text: str, where: str) -> int:
    """The value that a text gives to a declared variable; `where` begins the sentence of the UsageError otherwise."""
    minimum = BY_NAME[name].minimum
    try:
        value = int(text)
    except ValueError:
        raise UsageError(f"{where} must be a whole number, not {text!r}.") from None
    if value < minimum:
        raise UsageError(f"{where} must be at least {minimum}, not {value}.")
    return value


def misspelt() -> list[str]:
    """One sentence for each variable that is set, looks like one of Alpha's, and is none."""
    names = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in BY_NAME)
    return [f"Alpha reads no environment variable {name}. {nearest(name, BY_NAME)}" for name in names]
