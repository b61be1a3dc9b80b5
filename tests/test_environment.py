"""Environment variables: declared once, read strictly, each read somewhere."""

import re
from pathlib import Path

import pytest

import alpha
from alpha import environment
from alpha.errors import UsageError

NAME = "ALPHA_CALLBACK_YIELD_EVERY"


def test_default_value_and_empty_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    assert environment.read(NAME) == 25
    monkeypatch.setenv(NAME, "")
    assert environment.read(NAME) == 25
    monkeypatch.setenv(NAME, "3")
    assert environment.read(NAME) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", f"The environment variable {NAME} must be a whole number, not 'many'."),
        ("1.5", f"The environment variable {NAME} must be a whole number, not '1.5'."),
        ("0", f"The environment variable {NAME} must be at least 1, not 0."),
        ("1e30", f"The environment variable {NAME} must be at most 9223372036854775807, not 1e30."),
        ("9" * 5000, f"The environment variable {NAME} must be at most 9223372036854775807, not {'9' * 80}."),
    ],
)
def test_bad_values_are_refused(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(UsageError) as caught:
        environment.read(NAME)
    assert str(caught.value) == message


def test_misspelt_variables_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_CALLBACK_YIELD_EVRY", "1")
    monkeypatch.setenv(NAME, "1")
    monkeypatch.setenv("ALPHABET", "1")
    assert environment.misspelt() == [
        f"Alpha reads no environment variable ALPHA_CALLBACK_YIELD_EVRY. Did you mean '{NAME}'?"
    ]


def test_every_variable_is_read_and_every_variable_read_is_declared() -> None:
    folder = Path(alpha.__file__).parent
    reading = re.compile(r'environment\.(?:read|word)\("(ALPHA_\w+)"\)')
    read = {name for path in folder.glob("*.py") for name in reading.findall(path.read_text())}
    assert read == {variable.name for variable in environment.VARIABLES}
