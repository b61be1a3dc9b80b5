"""Options: one declaration reads the command line and JSON, and no value from outside gets past its limits."""

import dataclasses
import importlib
import io
import math
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import UsageError
from alpha.option import (
    HABITS,
    camel_case,
    convert,
    from_mapping,
    names_of,
    nearest,
    option,
    options_of,
    read_mapping,
    spelled,
    suggestion,
    to_mapping,
)


@dataclass(frozen=True)
class Example:
    """One option of each kind."""

    count: int = option(3, "A count.", minimum=1, maximum=9, aliases=("number",))
    lots: int = option(0, "No declared limits.")
    free: float = option(0.0, "No declared limits.")
    rate: float = option(0.5, "A rate.", minimum=0, maximum=1)
    is_on: bool = option(False, "A switch.")
    name: str = option("", "A name.")
    kind: str = option("red", "A kind.", choices=("red", "green"))


DECLARED = {each.name: each for each in options_of(Example)}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("count", "+7", 7),
        ("lots", "1e3", 1000),
        ("lots", "2.5E3", 2500),
        ("lots", "-3e0", -3),
        ("lots", "9007199254740993e0", 9007199254740993),
        ("lots", "1e18", 10**18),
        ("lots", "0.001e3", 1),
        ("lots", "-0e9999", 0),
        ("lots", "0" * 500 + "5", 5),
        ("rate", "1e-3", 0.001),
        ("rate", ".5", 0.5),
        ("rate", "1", 1.0),
        ("is_on", "true", True),
        ("is_on", "No", False),
        ("is_on", "1", True),
        ("name", "", ""),
        ("name", "été \udcff", "été \udcff"),
        ("kind", "green", "green"),
    ],
)
def test_text_becomes_the_options_type(name: str, text: str, value: Any) -> None:
    converted = convert(DECLARED[name], text, "--x")
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "three", "--x must be a whole number, not 'three'."),
        ("count", "2.5", "--x must be a whole number, not '2.5'."),
        ("count", "\N{FULLWIDTH DIGIT ONE}", "--x must be a whole number, not '\N{FULLWIDTH DIGIT ONE}'."),
        ("count", "1_0", "--x must be a whole number, not '1_0'."),
        ("count", " 1", "--x must be a whole number, not ' 1'."),
        ("lots", "1e-1", "--x must be a whole number, not '1e-1'."),
        ("lots", "2.5e0", "--x must be a whole number, not '2.5e0'."),
        ("lots", "1e30", "--x must be at most 9223372036854775807, not 1e30."),
        ("lots", "-1e99999", "--x must be at least -9223372036854775808, not -1e99999."),
        ("lots", "1.23e1", "--x must be a whole number, not '1.23e1'."),
        ("rate", "1e999", "--x must be at most 1, not 1e999."),
        ("free", "1e999", "--x must be at most 1.79769e+308, not 1e999."),
        ("free", "-1e999", "--x must be at least -1.79769e+308, not -1e999."),
        ("lots", "5k", "--x must be a whole number, not '5k'; write it out, such as 5e3."),
        ("lots", "1.5M", "--x must be a whole number, not '1.5M'; write it out, such as 1.5e6."),
        ("rate", "\N{ARABIC-INDIC DIGIT ONE}", "--x must be a number, not '\N{ARABIC-INDIC DIGIT ONE}'."),
        ("rate", "0_1", "--x must be a number, not '0_1'."),
        ("count", 2.0, "--x must be a whole number, not 2.0."),
        ("count", True, "--x must be a whole number, not True."),
        ("count", None, "--x must be a whole number, not None."),
        ("count", "0", "--x must be at least 1, not 0."),
        ("count", "10", "--x must be at most 9, not 10."),
        ("lots", "9223372036854775808", "--x must be at most 9223372036854775807, not 9223372036854775808."),
        ("rate", "nan", "--x must be a number, not 'nan'."),
        ("rate", "-inf", "--x must be a number, not '-inf'."),
        ("rate", math.inf, "--x must be a number, not inf."),
        ("rate", "1.01", "--x must be at most 1, not 1.01."),
        ("is_on", "maybe", "--x must be true or false, not 'maybe'."),
        ("is_on", 1, "--x must be true or false, not 1."),
        ("name", "a\0b", "--x must be text, not 'a\\x00b'."),
        ("name", "\ud800", "--x must be text, not '\\ud800'."),
        ("name", ["a"], "--x must be text, not ['a']."),
        ("kind", "grean", "--x cannot be 'grean'. Did you mean 'green'?"),
        ("kind", "blue", "--x cannot be 'blue'. Valid: green, red."),
    ],
)
def test_bad_values_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        convert(DECLARED[name], value, "--x")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["x" * 100_000, "9" * 100_000, "0" * 100_000, "1e" + "9" * 400, 10**400])
def test_long_values_are_shortened_in_errors(text: object) -> None:
    with pytest.raises(UsageError) as caught:
        convert(DECLARED["count"], text, "--count")
    assert len(str(caught.value)) < 200


@given(st.sampled_from(list(DECLARED)), st.text(max_size=30) | st.from_regex(r"-?\d+(\.\d+)?(e-?\d+)?", fullmatch=True))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_is_converted_within_limits_or_refused(name: str, text: str) -> None:
    _converts_within_limits_or_refuses(name, text)


@given(st.sampled_from(list(DECLARED)), JSON_VALUES | st.sampled_from([10**400, -(10**400), 1e308]))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_json_value_is_converted_within_limits_or_refused(name: str, value: Any) -> None:
    _converts_within_limits_or_refuses(name, value)


def _converts_within_limits_or_refuses(name: str, value: Any) -> None:
    declared = DECLARED[name]
    try:
        converted = convert(declared, value, "--x")
    except UsageError:
        return
    assert type(converted) is declared.kind
    assert not declared.choices or converted in declared.choices
    assert declared.minimum is None or converted >= declared.minimum
    assert declared.maximum is None or converted <= declared.maximum


@pytest.mark.parametrize("name", ["evalInterval", "eval-interval", "eval_interval"])
def test_flag_spellings(name: str) -> None:
    assert camel_case(name) == "evalInterval"


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("EVALINTERVAL", ["evalInterval", "evalIters"]) == "Did you mean 'evalInterval'?"
    assert nearest("--eval-intervall", ["--evalInterval", "--lr"]) == "Did you mean '--evalInterval'?"


@pytest.mark.parametrize(
    ("command", "habit", "flag"),
    [
        ("train", "--batch_size", "--batch"),
        ("train", "--learning-rate", "--lr"),
        ("train", "--n_embd", "--dim"),
        ("train", "--max_iters", "--iters"),
        ("train", "--per_device_train_batch_size", "--batch"),
        ("train", "--gradient-checkpointing", "--recompute"),
        ("sample", "--temperature", "--temp"),
        ("sample", "--max_new_tokens", "--steps"),
        ("sample", "--n_predict", "--steps"),
        ("sample", "--repeat-penalty", "--repetitionPenalty"),
        ("train", "--tie_word_embeddings", "--tied"),
        ("sample", "--num_return_sequences", "--n"),
        ("sample", "--model", "--checkpoint"),
        ("eval", "--batch_size", "--batch"),
    ],
)
def test_the_habits_of_other_programs_are_understood(command: str, habit: str, flag: str) -> None:
    options_classes = importlib.import_module(f"alpha.command_{command}").OPTIONS
    declared = names_of(option for each in options_classes for option in options_of(each))
    assert suggestion(habit, declared, "See there.") == f"Did you mean {flag!r}?"


def test_every_habit_means_an_option_and_is_none_itself() -> None:
    modules = ("train", "sample", "eval", "datagen", "tokenizer_build")
    commands = [importlib.import_module(f"alpha.command_{each}").OPTIONS for each in modules]
    names = [{name for each in classes for name in names_of(options_of(each))} for classes in commands]
    assert set(HABITS) <= set().union(*names)
    for own, others in HABITS.items():
        for other in others.split():
            assert not any(camel_case(other) in each for each in names if own in each)


@pytest.mark.parametrize("value", ["run", "my run", "it's", "-x", "a\n$b\x1b[31m'\\", "\udcff", "\u202eabc", ""])
def test_what_is_to_be_typed_into_a_shell_is_quoted(value: str) -> None:
    typed = spelled("resume", value)
    assert typed.isprintable()
    result = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True)
    assert result.stdout == os.fsencode(f"--resume={value}")


def test_what_the_terminals_encoding_lacks_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spelled("resume", "r\u00fcn") == "--resume='r\u00fcn'"
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert spelled("resume", "r\u00fcn") == "--resume=$'r\\xc3\\xbcn'"


def test_nearest_lists_few_and_refers_for_many() -> None:
    assert nearest("zzz", ["b", "a"], "See there.") == "Valid: a, b."
    assert nearest("zzz", [f"a{number}" for number in range(50)], "See there.") == "See there."


@given(
    st.builds(
        Example,
        count=st.integers(1, 9),
        lots=st.integers(-(2**63), 2**63 - 1),
        rate=st.floats(0, 1),
        is_on=st.booleans(),
        name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        kind=st.sampled_from(["red", "green"]),
    )
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_mappings_read_back_what_they_write(instance: Example) -> None:
    assert from_mapping(Example, to_mapping(instance), "test") == instance


def test_mappings_take_defaults_aliases_and_whole_numbers_for_rates() -> None:
    assert from_mapping(Example, {}, "test") == Example()
    assert read_mapping((Example,), {"number": 4, "rate": 1, "isOn": True}, "test") == {
        "count": 4,
        "rate": 1.0,
        "is_on": True,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "Unknown key 'cuont' in c.json. Did you mean 'count'?"),
        ({"is_on": True}, "Unknown key 'is_on' in c.json. Did you mean 'isOn'?"),
        ({"count": 1, "number": 2}, "c.json sets 'count' twice, once by its alias; keep one."),
        ({"rate": 2}, "'rate' in c.json must be at most 1, not 2."),
    ],
)
def test_mappings_refuse_unknown_keys_and_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_mapping((Example,), values, "c.json")
    assert str(caught.value) == message


def test_every_default_of_the_configuration_is_a_valid_value() -> None:
    for options_class in (ModelConfig, TrainingConfig):
        for each in options_of(options_class):
            assert convert(each, each.default, each.flag) == each.default


def test_flags_of_the_configuration_are_unique() -> None:
    declared = [each for options_class in (ModelConfig, TrainingConfig) for each in options_of(options_class)]
    flags = [flag for each in declared for flag in (each.flag, *each.aliases)]
    assert len(flags) == len(set(flags)) == len(names_of(declared))
    assert [each.name for each in declared] == [
        field.name for options_class in (ModelConfig, TrainingConfig) for field in dataclasses.fields(options_class)
    ]
