"""The one family of errors that a user is meant to see, and how shares stand in their sentences.

Each message is a whole sentence: what is wrong, where, and what to do about it. The command line prints it without a
traceback. Anything that is not an AlphaError is a programming error and keeps its traceback.
"""


class AlphaError(Exception):
    """Something the user can act on; the process ends with exit code 1."""

    exit_code = 1
    may_pass = False
    """Whether the same, tried again, may well succeed."""


class UsageError(AlphaError):
    """The command line or a configuration value is wrong; the process ends with exit code 2."""

    exit_code = 2


def percent(share: float) -> str:
    """A share between 0 and 1 in words of a sentence: "12.5%", "0.0031%", "100%"; only all is said to be all."""
    if 0.9995 <= share < 1:
        return "more than 99.9%"
    return f"{100 * share:.3g}%" if share >= 1e-6 else "less than 0.0001%"
