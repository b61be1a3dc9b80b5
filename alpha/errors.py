"""The one family of errors that a user is meant to see.

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
