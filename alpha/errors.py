"""The one family of errors that a user is meant to see, and how shares stand in their sentences.

Each message is a whole sentence: what is wrong, where, and what to do about it. The command line prints it without a
traceback. Anything that is not an AlphaError is a programming error and keeps its traceback.
"""


class AlphaError(Exception):
    """Something the user can act on; the process ends with exit code 1."""

    exit_code = 1
    may_pass = False
    """Whether the same, tried again, may well succeed."""


class ResultsLost(AlphaError):  # noqa: N818  (a condition)
    """What was under way has no results, and nothing else is lost: who asks for the same again gets them."""

    may_pass = True


class UsageError(AlphaError):
    """The command line or a configuration value is wrong; the process ends with exit code 2."""

    exit_code = 2


def percent(share: float) -> str:
    """A share from 0 to 1 in per cent, with two digits; what is not nothing or all does not look so."""
    if 0.995 <= share < 1:
        return "more than 99%"
    if 0 < share < 0.0001:
        return "less than 0.01%"
    return f"{100 * share:.0f}%" if share >= 0.1 or not share else f"{100 * share:.2g}%"
