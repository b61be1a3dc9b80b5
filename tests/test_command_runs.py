"""`alpha runs` as a person or a script uses it."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from alpha.cli import main
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.run import Run

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = [sys.executable, str(ROOT / "alpha.py")]


def make(root: Path, name: str, steps: int, offset: float, **options: object) -> None:
    model = resolve_model(ModelConfig(block=16, dim=32, heads=2))
    training = resolve_training(TrainingConfig(iters=100, **options))
    tokens = training.batch * training.accum_steps * model.block
    with Run.create(model, training, root / name) as run:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": offset + 1 / step, "tokens": step * tokens, "elapsed_ms": 50.0 * step}
            run.add_metrics(row | ({"valLoss": offset + 2 / step} if step % 20 == 0 else {}))


@pytest.fixture
def runs(tmp_path: Path) -> str:
    make(tmp_path, "small", 100, 2.0, batch=4)
    make(tmp_path, "large", 60, 1.0, batch=8, lr=0.01)
    return f"--dir={tmp_path}"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["runs", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["runs", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.startswith("alpha: error: ")
    return captured.err


def test_runs_beside_each_other(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, runs, "--compare", "small", "large")
    options, steps, tokens = text.split("\n\n")
    assert [line.split() for line in options.splitlines()] == [
        ["option", "small", "large"],
        ["batch", "4", "8"],
        ["lr", "0.0003", "0.01"],
        ["lrMin", "3e-05", "0.001"],
    ]
    headings, *rows = [line.split() for line in steps.splitlines()]
    assert headings == ["step", "loss", "small", "loss", "large", "val", "small", "val", "large"]
    assert [row[0] for row in rows] == [str(step) for step in range(6, 61, 6)]
    assert len(rows[0]) == 3  # nothing was validated by then
    assert rows[-1][3:] == [f"{2 + 2 / 60:.4f}", f"{1 + 2 / 60:.4f}"]
    last_of_tokens = tokens.splitlines()[-1].split()
    assert last_of_tokens[0] == f"{100 * 4 * 16:,}"  # 100 steps of the small batch, 50 of the large one
    assert last_of_tokens[3:] == [f"{2 + 2 / 100:.4f}", f"{1 + 2 / 40:.4f}"]


def test_a_model_from_elsewhere_is_no_run(runs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert [line.split()[0] for line in printed(capsys, runs).splitlines()] == ["run", "large", "small"]
    assert "There is no run 'llama'" in refused(capsys, runs, "--run=llama", "--rename=mine")
    assert [path.name for path in (tmp_path / "llama").iterdir()] == ["config.json"]


def test_a_misspelled_folder_is_an_error(
    runs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ((), ("--json",), ("--run=small",), ("--compare=small,large",)):
        message = refused(capsys, f"{runs}x", *arguments)
        assert message == f"alpha: error: Cannot list the runs in {tmp_path}x: No such file or directory.\n"
    monkeypatch.chdir(tmp_path)
    assert printed(capsys) == "There are no runs in runs; alpha train makes one.\n"  # the default need not be there


def test_comparing_as_json_and_csv(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(printed(capsys, runs, "--compare=small,large", "--json"))
    assert values["runs"] == ["small", "large"]
    assert values["options"] == {"batch": [4, 8], "lr": [0.0003, 0.01], "lrMin": [0.0003 / 10, 0.001]}
    assert values["byStep"][-1]["valLoss"] == [2 + 2 / 60, 1 + 2 / 60]
    assert values["byStep"][-1]["loss"][0] == pytest.approx(2 + 1 / 50, abs=0.02)  # a mean of the last steps
    rows = list(csv.DictReader(io.StringIO(printed(capsys, runs, "--compare=small,large", "--csv"))))
    assert len(rows) == 160
    assert rows[159] == {"run": "large", "step": "60", "loss": repr(1 + 1 / 60), "tokens": "7680", "elapsed_ms": "3000",
                         "valLoss": repr(1 + 2 / 60)}  # fmt: skip


def test_runs_that_have_nothing_in_common(runs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make(tmp_path, "empty", 0, 0.0, batch=4)
    make(tmp_path, "empty too", 0, 0.0, batch=4)
    text = printed(capsys, runs, "--compare", "empty", "empty too")
    assert text.splitlines()[0] == "The options of these runs are the same."
    assert "There is no step that all of these runs have reached." in text
    assert "needs two runs" in refused(capsys, runs, "--compare=small")


def test_one_run(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(line.split(maxsplit=1) for line in printed(capsys, runs, "--run=large").splitlines())
    assert rows["run"] == "large"
    assert rows["step"] == "60 of 100"
    # Values that follow from others are no choice of anybody.
    assert rows["options"] == "block=16 dim=32 heads=2 iters=100 batch=8 lr=0.01"
    described = json.loads(printed(capsys, runs, "--run=large", "--json"))
    assert described["options"] == {"block": 16, "dim": 32, "heads": 2, "iters": 100, "batch": 8, "lr": 0.01}
    rows_of_csv = list(csv.DictReader(io.StringIO(printed(capsys, runs, "--run=small", "--csv"))))
    assert [row["valLoss"] for row in rows_of_csv[18:21]] == ["", repr(2.1), ""]


def test_what_people_write(runs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = printed(capsys, runs, "--run=small", "--rename=baseline", "--group=lr", "--notes=It works.")
    assert text == "small: name 'baseline', group 'lr', notes 'It works.'.\n"
    heading, row = printed(capsys, runs, "--group=lr").splitlines()
    assert heading.split()[:3] == ["run", "group", "status"]
    assert row.split()[:2] == ["baseline", "lr"]
    assert "It works." in printed(capsys, runs, "--run=baseline")
    (described,) = json.loads(printed(capsys, runs, "--group=lr", "--json"))
    assert (described["runId"], described["name"], described["notes"]) == ("small", "baseline", "It works.")
    (row_of_csv,) = csv.DictReader(io.StringIO(printed(capsys, runs, "--group=lr", "--csv")))
    assert (row_of_csv["runId"], row_of_csv["step"], row_of_csv["loss"]) == ("small", "100", "2.01")
    assert printed(capsys, runs, "--run=baseline", "--group=") == "small: no group.\n"
    assert printed(capsys, runs, "--group=lr").startswith("There are no runs in")
    assert "one line" in refused(capsys, runs, "--run=small", "--rename=a\nb")
    assert "There is no run '../small'" in refused(capsys, runs, "--run=../small", "--rename=x")
    assert "Say which run" in refused(capsys, runs, "--rename=x")
    assert "do not go together" in refused(capsys, runs, "--run=small", "--rename=x", "--delete", "--yes")
    assert (tmp_path / "small").exists()


def test_deleting_needs_a_yes(runs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "small" / "thesis.tex").touch()
    command = [*SCRIPT, "runs", runs, "--run=small", "--delete"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (result.returncode, "give --yes" in result.stderr) == (2, True)
    for answer, returncode in ((b"n\n", 1), (b"\n", 1), (b"\x04", 1), (b"yes\n", 0)):
        assert (tmp_path / "small" / "config.json").exists()
        leader, follower = pty.openpty()
        os.write(leader, answer)
        asked = subprocess.run(command, stdin=follower, capture_output=True, text=True, check=False, timeout=60)
        os.close(leader)
        os.close(follower)
        assert asked.stdout.startswith("Delete the run small, interrupted at step 100? [y/N] ")
        assert asked.returncode == returncode, asked.stderr
    assert "Not Alpha's, and left in" in asked.stderr
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["thesis.tex"]
    assert printed(capsys, runs, "--run=large", "--delete", "--yes") == f"Deleted {tmp_path / 'large'}.\n"
    assert not (tmp_path / "large").exists()


def test_names_with_markup_and_escapes_stay_text(runs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hostile = "[red]\x1b[31m=1+1\u202e"
    (tmp_path / "small").rename(tmp_path / hostile)
    (tmp_path / hostile / "notes.json").write_text(json.dumps({"name": "[bold]\x1b]0;x\x07"}))
    for arguments in ([], ["--csv"], [f"--run={hostile}"], ["--compare", hostile, "large"]):
        text = printed(capsys, runs, *arguments)
        assert "[red]" in text or "[bold]" in text
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
