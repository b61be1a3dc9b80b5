"""Help texts and reading a command line: what is printed is what is parsed."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docopt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alpha
from alpha import usage
from alpha.errors import UsageError
from alpha.option import Option, option, options_of

COMMAND_MODULES = sorted(path.stem for path in Path(alpha.__file__).parent.glob("command_*.py"))


@dataclass(frozen=True)
class Example:
    """One option of each kind."""

    text: str = option("", "Text, which may begin with a dash such as --this or -1 or -x.", required=True)
    eval_interval: int = option(100, "Steps.", aliases=("every",), minimum=1)
    lr: float = option(1e-8, "Rate, with a very long text " + "that goes on " * 12 + "- and -on.", group="Numbers")
    is_on: bool = option(False, "A switch.", group="Numbers")
    bias: bool = option(True, "On unless told otherwise.")
    kind: str = option("red", "Kind.", choices=("red", "green"))
    several: tuple[str, ...] = option((), "Texts.", group="Several")
    a_name_longer_than_its_column: str = option("", "Text below its flag.", metavar="FILE")


TEXT = usage.render("try it", "Tries it.", (Example,), "Examples:\n  alpha try it --text=x")


def parse(*arguments: str) -> dict[str, Any]:
    return usage.parse("try it", TEXT, (Example,), arguments)


def test_the_text_in_full() -> None:
    assert usage.render("try it", "Tries it.", (Example,), "More " * 20 + "- and.\n  alpha  try", 80) == (
        """Tries it.

Usage:
  alpha try it --text=TEXT [options]

Options:
  --text=TEXT               Text, which may begin with a dash such as --this
                            or -1 or -x.
  --evalInterval=N          Steps. Also --every. (default 100)
  --bias=BOOL               On unless told otherwise. (default true)
  --kind=NAME               Kind: red, green. (default red)
  --aNameLongerThanItsColumn=FILE
                            Text below its flag.

Numbers:
  --lr=X                    Rate, with a very long text that goes on that goes
                            on that goes on that goes on that goes on that goes
                            on that goes on that goes on that goes on that goes
                            on that goes on that goes on - and -on.
                            (default 1e-8)
  --isOn                    A switch.

Several:
  --several=TEXT            Texts.

Help:
  -h, --help                Show this text.

More More More More More More More More More More More More More More More More
More More More More - and.
  alpha  try"""
    )


@pytest.mark.parametrize("width", range(usage.NARROW, usage.WIDE + 1))
def test_docopt_sees_the_declared_options_at_every_width(width: int) -> None:
    text = usage.render("try it", "Tries it.", (Example,), "", width)
    assert max(map(len, text.splitlines())) <= width
    flags = {f"--{each.flag}" for each in options_of(Example)} | {"--help"}
    assert {each.longer for each in docopt.parse_options(text.split("\n\n", 2)[2])} == flags


def _some_value(declared: Option) -> Any:
    """A value that the option accepts."""
    return declared.default if declared.default != "" else "text"


@pytest.mark.parametrize("module", COMMAND_MODULES)
def test_the_help_of_every_command_is_what_docopt_parses(module: str) -> None:
    command = importlib.import_module(f"alpha.{module}")
    name = module.removeprefix("command_").replace("_", " ")
    text = usage.render(name, "Summary.", command.OPTIONS, command.DETAILS, usage.NARROW)
    examples = [line for line in text.splitlines() if line.startswith("  alpha ")]
    assert max(map(len, set(text.splitlines()) - set(examples))) <= usage.NARROW
    assert max(map(len, examples)) <= usage.WIDE
    declared = [each for options_class in command.OPTIONS for each in options_of(options_class)]
    arguments = [f"--{each.flag}={_some_value(each)}" for each in declared]
    given = usage.parse(name, text, command.OPTIONS, arguments)
    assert given.keys() == {each.name for each in declared}
    for each in declared:
        assert f"  --{each.flag}" in text
    for options_class in command.OPTIONS:
        options_class()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--evalInterval=5"], {"eval_interval": 5}),
        (["--evalInterval", "5"], {"eval_interval": 5}),
        (["--eval-interval=5"], {"eval_interval": 5}),
        (["--eval-interval", "5"], {"eval_interval": 5}),
        (["--every", "5"], {"eval_interval": 5}),
        (
            ["--several", "a b", "--bias=no", "--several=", "--several=-c"],
            {"several": ("a b", "", "-c"), "bias": False},
        ),
        (["--every=5", "--evalInterval=6", "--eval-interval", "7"], {"eval_interval": 7}),
        (["--isOn"], {"is_on": True}),
        (["--is-on", "--lr=1"], {"is_on": True, "lr": 1.0}),
        (["--isOn=true"], {"is_on": True}),
        (["--isOn", "false"], {"is_on": False}),
        (["--isOn", "--isOn=false"], {"is_on": False}),
        (["--isOn=false", "--isOn"], {"is_on": True}),
        (["--bias"], {"bias": True}),
        (["--bias=no"], {"bias": False}),
        (["--lr", "-1e-3"], {"lr": -0.001}),
        (["--text=a=b c"], {"text": "a=b c"}),
        (["--text", "-x"], {"text": "-x"}),
        (["--text=--lr=1"], {"text": "--lr=1"}),
        (["--kind=green"], {"kind": "green"}),
        (["--aNameLongerThanItsColumn="], {"a_name_longer_than_its_column": ""}),
        (["--lr=1e-8"], {"lr": 1e-8}),
    ],
)
def test_spellings(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse("--text=t", *arguments) == {"text": "t", **expected}


def test_only_what_is_given_is_returned() -> None:
    assert parse("--text=t") == {"text": "t"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evalIntervall=5"], "Unknown option '--evalIntervall'. Did you mean '--evalInterval'?"),
        (["--evl-interval", "5"], "Unknown option '--evl-interval'. Did you mean '--evalInterval'?"),
        (["--eval=5"], None),
        (["-lr=5"], "Unknown option '-lr'. Did you mean '--lr'?"),
        (["--"], None),
        (["-"], None),
        (["--=5"], None),
        (["--evalInterval"], "--evalInterval needs a value: --evalInterval=N."),
        (["--eval-interval", "--isOn"], "--eval-interval needs a value: --eval-interval=N."),
        (["--evalInterval="], "--evalInterval must be a whole number, not ''."),
        (["--evalInterval=x"], "--evalInterval must be a whole number, not 'x'."),
        (["--isOn", "maybe"], "--isOn must be true or false, not 'maybe'."),
        (["--isOn="], "--isOn must be true or false, not ''."),
        (["--kind=grey"], "--kind cannot be 'grey'. Did you mean 'green'?"),
        (["file.txt"], "Unexpected argument 'file.txt': options are written as --name=value. See alpha try it --help."),
        ([""], None),
    ],
)
def test_errors_are_one_sentence_that_helps(arguments: list[str], message: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parse("--text=t", *arguments)
    assert message is None or str(caught.value) == message


@pytest.mark.parametrize("arguments", [[], ["--text="]])
def test_a_required_option_must_be_given(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^alpha try it needs --text=TEXT: Text, which"):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-h"], True),
        (["--nonsense", "--help"], True),
        (["--text", "--help"], True),
        (["--text=--help"], False),
        (["--", "-h"], False),
        ([], False),
    ],
)
def test_help_is_found_anywhere(arguments: list[str], expected: bool) -> None:
    assert usage.wants_help(arguments) is expected


WORDS = st.sampled_from(
    [
        *(f"--{flag}" for flag in ("text", "eval-interval", "every", "lr", "isOn", "bias", "kind", "help", "try", "")),
        *(
            "-h",
            "-",
            "--",
            "5",
            "-5",
            "true",
            "red",
            "=",
            "--=",
            "--lr=1",
            "--lr=x",
            "--text=t",
            "try",
            "it",
            "[options]",
        ),
    ]
)


@given(st.lists(WORDS | st.text(max_size=8) | st.text(max_size=8).map(lambda text: "--" + text), max_size=8))
@settings(max_examples=500, derandomize=True, deadline=None)
def test_any_arguments_are_read_or_refused(arguments: list[str]) -> None:
    try:
        given = parse(*arguments)
    except UsageError:
        return
    Example(**given)
    assert given["text"]


def test_recomputation_keeps_its_older_name() -> None:
    from alpha import command_train

    text = usage.render("train", "Trains.", command_train.OPTIONS)
    for flag in ("--recompute", "--checkpoint", "--checkpoint=true"):
        assert usage.parse("train", text, command_train.OPTIONS, [flag]) == {"recompute": True}
