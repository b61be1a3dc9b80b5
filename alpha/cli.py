"""The `alpha` command: finds the command that is meant, runs it, and turns errors into one line and an exit code.

The module of a command is imported when it runs, so that `alpha --help` needs next to nothing. Such a module has
OPTIONS (the classes whose fields are its flags), DETAILS (text below them in the help) and `run`, which takes the
options given explicitly.

Exit codes: 0 done, 1 an error the user can act on, 2 wrong usage, 3 a device that computes wrongly, 130 interrupted,
141 the reader of a pipe went away.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from alpha import __version__
from alpha.errors import AlphaError, UsageError
from alpha.terminal import escape_line, print_text, terminal_width

COMMANDS = {
    "train": "Train a model.",
    "sample": "Continue a prompt with a trained model.",
    "serve": "Trained models for OpenAI's clients, over HTTP.",
    "eval": "A trained model's loss on a text.",
    "export": "A trained model as other programs read it.",
    "import": "A checkpoint of weights that exist.",
    "merge": "An adapter and its base as one model.",
    "hub push": "A trained model to Hugging Face's Hub.",
    "hub pull": "A model from the Hub, as a checkpoint.",
    "hub space": "A Space that serves a trained model.",
    "datagen": "Make text to train on.",
    "tokenizer build": "Make a tokenizer from a corpus.",
    "bench": "How fast this machine computes.",
    "runs": "The training runs in a folder.",
    "tui": "The runs in a folder, live, in this terminal.",
    "devices": "What there is to compute on.",
    "env": "The environment variables that Alpha reads.",
}
"""Name and summary of every command; `a b` lives in the module `command_a_b`."""

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the terminal's encoding lacks are printed as escapes.
            stream.reconfigure(errors="backslashreplace")
    can_be_asked = False
    try:
        if sys.stdout is None:
            raise AlphaError("Standard output is closed; where the result does not matter, add >/dev/null.")
        _wants_traceback()
        can_be_asked = True
        _dispatch(given)
    except BrokenPipeError:
        return _BROKEN_PIPE
    except (AlphaError, MemoryError, OSError, RuntimeError, KeyboardInterrupt) as error:
        # Python 3.11 makes a RuntimeError of Ctrl-C in the middle of a class statement, as when a module is imported.
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
            print("alpha: interrupted", file=sys.stderr)
            return _INTERRUPTED
        explained = _explained(error)
        if explained is None:
            raise
        return _report(explained, can_be_asked and _wants_traceback())  # a file of --envFile may have changed it
    return 0


def _explained(error: BaseException) -> AlphaError | None:
    """The error as one that the user can act on; None when it is the program's own."""
    if isinstance(error, AlphaError):
        return error
    if isinstance(error, MemoryError):
        return AlphaError("There is not enough memory for this; use a smaller model, --batch or --block.")
    if isinstance(error, OSError) and error.filename is not None:
        # Whether a file is there can be asked anywhere, and be refused: its name too long, its folder another user's.
        return AlphaError(f"Cannot reach {os.fsdecode(error.filename)}: {error.strerror}.")
    if isinstance(error, BlockingIOError) or "start new thread" in str(error):
        return AlphaError("Another process or thread cannot start: this user or container has as many as it may have.")
    return None


def overview() -> str:
    """What `alpha --help` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "Train, evaluate, sample, serve and show GPT language models, from scratch.",
            "",
            "Usage:",
            "  alpha <command> [options]",
            "  alpha <command> --help",
            "  alpha --version",
            "",
            "Commands:",
            *lines,
        ]
    )


def usage_text(name: str, width: int) -> str:
    """What `alpha <name> --help` prints on a terminal of `width` columns."""
    from alpha import usage

    return usage.render(name, COMMANDS[name], _options_of(name), _module(name).DETAILS, width)


def _dispatch(given: Sequence[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print_text(overview())
    elif given[0] == "--version":
        print_text(_version())
    else:
        name, rest = _split(given)
        _run(name, rest)


def _version() -> str:
    """What `alpha --version` prints: the version, the commit, when or of what it was built, and its backends."""
    from alpha import backends, installation

    built = installation.built()
    facts = {
        "commit": installation.commit(),
        "built" if built else "sources": built or str(installation.PACKAGE),
        **backends.availability(),
    }
    return "\n".join([f"alpha {__version__}", *(f"{name:<8} {value}" for name, value in facts.items())])


def _split(given: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The command's name, which is one word or two, and its arguments."""
    for count in (2, 1):
        name = " ".join(given[:count])
        if name in COMMANDS:
            return name, given[count:]
    from alpha.option import nearest

    if given[0].startswith("-"):
        raise UsageError(f"Unknown option {given[0]!r}. {nearest(given[0], ('--help', '--version'))}")
    first_words = {name.split()[0] for name in COMMANDS}
    words = [word for word in given[:2] if not word.startswith("-")] if given[0] in first_words else given[:1]
    raise UsageError(f"Unknown command {' '.join(words)!r}. {nearest(' '.join(words), COMMANDS)}")


def _run(name: str, arguments: Sequence[str]) -> None:
    from alpha import usage

    if usage.wants_help(arguments):
        width = min(max(terminal_width() or usage.WIDE, usage.NARROW), usage.WIDE)
        print_text(usage_text(name, width))
        return
    given = usage.parse(name, usage_text(name, usage.WIDE), _options_of(name), arguments)
    if path := given.pop("env_file", ""):
        from pathlib import Path

        from alpha.environment import apply_file
        from alpha.option import options_of

        given = apply_file(Path(path), [each for part in _options_of(name) for each in options_of(part)], given)
    from alpha.interrupt import interruptible

    with interruptible():
        _module(name).run(given)


def _options_of(name: str) -> tuple[type, ...]:
    """The classes of a command's options and of those that every command has."""
    from alpha.environment import EnvFileOptions

    return (*_module(name).OPTIONS, EnvFileOptions)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"alpha.command_{name.replace(' ', '_')}")


def _wants_traceback() -> bool:
    if "ALPHA_DEBUG" not in os.environ:
        return False
    from alpha import environment

    return environment.read("ALPHA_DEBUG") > 0


def _report(error: AlphaError, with_traceback: bool) -> int:
    if with_traceback:
        import traceback

        traceback.print_exception(error)
    print(f"alpha: error: {escape_line(str(error))}", file=sys.stderr)
    return error.exit_code
