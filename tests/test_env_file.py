"""--envFile: which lines it takes, what wins over them, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alpha import cli, environment
from alpha.cli import main
from alpha.errors import AlphaError

NAME = "ALPHA_CALLBACK_YIELD_EVERY"


@pytest.fixture(autouse=True)
def environment_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")
    monkeypatch.setenv("ALPHA_DEBUG", "")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the commands train, bench and sample are run with."""
    found: list[dict[str, Any]] = []
    for name in ("train", "bench", "sample"):
        monkeypatch.setattr(cli._module(name), "run", found.append)
    return found


def written(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "a.env"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"--envFile={path}"


def test_variables_and_knobs_are_taken(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    option = written(tmp_path, f"# the best\n\n {NAME} = 7 \r\nthreads=3\ncheckpoint=true\n")
    assert main(["train", option]) == 0
    assert seen == [{"threads": 3, "recompute": True}]
    assert os.environ[NAME] == "7"


def test_the_command_line_and_the_environment_win(
    tmp_path: Path, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, "5")
    assert main(["train", "--threads=2", written(tmp_path, f"{NAME}=7\nthreads=3\nrecompute=false")]) == 0
    assert seen == [{"threads": 2, "recompute": False}]
    assert os.environ[NAME] == "5"


def test_a_knob_does_not_concern_a_command_without_it(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    option = written(tmp_path, "recompute=true\nthreads=2")
    assert main(["bench", option]) == 0
    assert main(["sample", "--checkpoint=runs/a", option]) == 0
    assert seen == [{"threads": 2}, {"checkpoint": "runs/a", "threads": 2}]


def test_the_table_of_variables_shows_the_files_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json", written(tmp_path, f"{NAME}=7")]) == 0
    assert {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)}[NAME] == 7


def test_the_file_may_ask_for_tracebacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = written(tmp_path, "ALPHA_DEBUG=1")
    assert main(["sample", f"--checkpoint={tmp_path}/none", option]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ALPHA_DEBUGG=1", "Unknown key 'ALPHA_DEBUGG' in line 1 of {path}. Did you mean 'ALPHA_DEBUG'?"),
        ("PATH=/tmp", "Unknown key 'PATH' in line 1 of {path}. Valid: "),
        ("lr=1", "Unknown key 'lr' in line 1 of {path}."),
        ("\nthreads", "Expected KEY=value in line 2 of {path}."),
        ("threads=", "Expected KEY=value in line 1 of {path}."),
        ("=3", "Expected KEY=value in line 1 of {path}."),
        ("threads=1\nthreads=2", "threads is set a second time in line 2 of {path}; keep one."),
        (f"{NAME}=1\n{NAME}=2", f"{NAME} is set a second time in line 2 of {{path}}; keep one."),
        ("threads=many", "threads in line 1 of {path} must be a whole number, not 'many'."),
        ("threads=5000", "threads in line 1 of {path} must be at most 1024, not 5000."),
        (f"{NAME}=0", f"{NAME} in line 1 of {{path}} must be at least 1, not 0."),
        (f"{NAME}=x", f"{NAME} in line 1 of {{path}} must be a whole number, not 'x'."),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_is_set(
    content: str, message: str, tmp_path: Path, seen: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    option = written(tmp_path, f"ALPHA_DEBUG=1\n{content}" if "ALPHA_DEBUG" not in content else content)
    number = int("ALPHA_DEBUG" not in content)
    expected = message.replace("line 2", f"line {2 + number}").replace("line 1", f"line {1 + number}")
    assert main(["train", option]) == 2
    assert capsys.readouterr().err.startswith(f"alpha: error: {expected.format(path=tmp_path / 'a.env')}")
    assert seen == []
    assert os.environ["ALPHA_DEBUG"] == ""


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "Cannot read the environment file .*none: No such file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(AlphaError, match=message):
            environment.apply_file(path, [], {})
    written(tmp_path, b"\xff\xfe")
    with pytest.raises(AlphaError, match="is not UTF-8 text"):
        environment.apply_file(tmp_path / "a.env", [], {})
    written(tmp_path, "#" * (environment.LARGEST_FILE + 1))
    with pytest.raises(AlphaError, match="65,537 bytes, more than"):
        environment.apply_file(tmp_path / "a.env", [], {})
