"""Every `ALPHA_*` environment variable, declared once with its meaning; `alpha env` prints this table."""

import os
from dataclasses import dataclass

from alpha.errors import UsageError


@dataclass(frozen=True)
class Variable:
    """A run-time knob that is a whole number of at least `minimum`."""

    name: str
    default: int
    help: str
    minimum: int = 0


VARIABLES = (
    Variable("ALPHA_CALLBACK_YIELD_EVERY", 25, "Steps between refreshes of the progress display.", minimum=1),
    Variable("ALPHA_DEBUG", 0, "Detail of diagnostic output, 0 (none) to 4."),
)


def read(name: str) -> int:
    """The value of a declared variable. Raises UsageError when it is set to something that is not such a number."""
    declared = next(variable for variable in VARIABLES if variable.name == name)
    text = os.environ.get(name, "")
    if not text:
        return declared.default
    try:
        value = int(text)
    except ValueError:
        raise UsageError(f"The environment variable {name} must be a whole number, not {text!r}.") from None
    if value < declared.minimum:
        raise UsageError(f"The environment variable {name} must be at least {declared.minimum}, not {value}.")
    return value
