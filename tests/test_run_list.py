import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_checkpoint import MODEL, TRAINING, small_checkpoint

from alpha import files, run_list
from alpha.errors import AlphaError
from alpha.run import Run
from alpha.run_list import list_runs, resolve


def make_run(root: Path, name: str, *, last_step: int = 0, saved_step: int | None = None) -> Path:
    with Run.create(MODEL, TRAINING, folder=root / name) as new:
        for step in range(1, last_step + 1):
            row = {"step": step, "loss": 4.0 - step / 100, "tokens_per_sec": 1000.0 + step}
            new.add_metrics(row | ({"valLoss": 5.0 + step} if step % 10 == 0 else {}))
        if saved_step is not None:
            new.save(small_checkpoint(saved_step))
    return root / name


def test_the_state_of_each_run_comes_from_its_files(tmp_path):
    make_run(tmp_path, "a-empty")
    make_run(tmp_path, "b-interrupted", last_step=25, saved_step=20)
    make_run(tmp_path, "c-killed-before-the-first-checkpoint", last_step=5)
    make_run(tmp_path, "d-finished", last_step=30, saved_step=30)
    damaged = make_run(tmp_path, "e-damaged", last_step=3)
    (damaged / "config.json").write_text("{")
    with Run.open(make_run(tmp_path, "f-running", last_step=12)):
        summaries = {summary.run_id: summary for summary in list_runs(tmp_path)}
    assert {name: summary.status for name, summary in summaries.items()} == {
        "a-empty": "empty",
        "b-interrupted": "interrupted",
        "c-killed-before-the-first-checkpoint": "interrupted",
        "d-finished": "finished",
        "e-damaged": "damaged",
        "f-running": "running",
    }
    interrupted = summaries["b-interrupted"]
    assert (interrupted.step, interrupted.iters, interrupted.loss) == (25, 30, 3.75)
    assert (interrupted.val_loss, interrupted.tokens_per_sec, interrupted.domain) == (25.0, 1025.0, "abc")
    assert interrupted.folder == tmp_path / "b-interrupted"
    empty = summaries["a-empty"]
    assert (empty.step, empty.loss, empty.val_loss, empty.tokens_per_sec) == (None, None, None, None)
    assert summaries["e-damaged"].iters is None
    assert {summary.run_id: summary.status for summary in list_runs(tmp_path)}["f-running"] == "interrupted"


def test_all_rows_written_but_no_final_checkpoint_is_not_finished(tmp_path):
    make_run(tmp_path, "x", last_step=30, saved_step=20)
    assert list_runs(tmp_path)[0].status == "interrupted"


def test_runs_are_listed_by_when_they_were_updated(tmp_path):
    for age, name in enumerate(["b", "a", "c"]):
        folder = make_run(tmp_path, name, last_step=1)
        for path in folder.iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "c" / "metrics.jsonl", (1.5e9, 1.5e9))
    summaries = list_runs(tmp_path)
    assert [summary.run_id for summary in summaries] == ["c", "b", "a"]
    assert summaries[0].updated == datetime.fromtimestamp(1.5e9, UTC)


@pytest.mark.parametrize("year", [33_658, 9_999, -5])
def test_a_date_that_no_calendar_has_is_passed_over(tmp_path, year, monkeypatch):
    folder = make_run(tmp_path, "x", last_step=1)
    for path in folder.iterdir():
        os.utime(path, (1.5e9, 1.5e9))
    # Not every file system holds such dates.
    modified, seconds = run_list._modified, (year - 1970) * 365.2425 * 86400 + 364.9 * 86400
    monkeypatch.setattr(run_list, "_modified", lambda file: seconds if file.name == "metrics.jsonl" else modified(file))
    (summary,) = list_runs(tmp_path)
    assert summary.updated == datetime.fromtimestamp(1.5e9, UTC)
    summary.updated.astimezone()


def test_only_the_end_of_long_metrics_is_read(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "x")
    row = '{{"step":{step},"loss":2.0,"padding":"' + "x" * 100 + '"}}\n'
    (folder / "metrics.jsonl").write_text("".join(row.format(step=step) for step in range(10_000)))
    read = []
    parse = files._parse
    monkeypatch.setattr(files, "_parse", lambda line: (read.append(len(line)), parse(line))[1])
    summary = list_runs(tmp_path)[0]
    assert (summary.step, summary.val_loss) == (9_999, None)
    assert sum(read) <= 1 << 20 < (folder / "metrics.jsonl").stat().st_size
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step":10000,"valLoss":1.5}\n')
    read.clear()
    assert list_runs(tmp_path)[0].val_loss == 1.5
    assert len(read) == 1


def test_garbage_is_passed_over(tmp_path):
    make_run(tmp_path, "good", last_step=2)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "config-is-a-folder" / "config.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "folder" / "config.json")
    hostile = make_run(tmp_path, "hostile", last_step=1)
    (hostile / "metrics.jsonl").unlink()
    os.mkfifo(hostile / "metrics.jsonl")
    (hostile / ".lock").unlink()
    os.mkfifo(hostile / ".lock")
    number = make_run(tmp_path, "number")
    config = json.loads((number / "config.json").read_text())
    (number / "config.json").write_text(json.dumps(config | {"training": {"lr": 10**400}}))
    summaries = {summary.run_id: summary.status for summary in list_runs(tmp_path)}
    assert summaries == {"good": "interrupted", "hostile": "empty", "number": "damaged"}
    assert list_runs(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "row",
    [
        {"step": "x", "loss": "y", "valLoss": [], "tokens_per_sec": None},
        {"step": -1, "loss": None},
        {"step": True, "loss": ""},
        {"step": 10**3999},
        {"step": 1.5, "loss": 10**400, "valLoss": -(10**400), "tokens_per_sec": {}},
        {},
        {"loss": float("nan"), "valLoss": float("inf")},
    ],
)
def test_hostile_rows_show_as_unknown(tmp_path, row):
    folder = make_run(tmp_path, "x")
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    summary = list_runs(tmp_path)[0]
    assert (summary.step, summary.loss, summary.val_loss, summary.tokens_per_sec) == (None, None, None, None)


def test_a_path_wins_over_an_id_and_an_id_is_found_in_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(Path("runs"), "20261123-084907-abcdef", last_step=1, saved_step=1)
    assert resolve("20261123-084907-abcdef") == folder
    assert resolve(str(folder)) == folder
    assert resolve(f"{folder}/checkpoint-1.safetensors") == folder / "checkpoint-1.safetensors"
    Path("20261123-084907-abcdef").touch()
    assert resolve("20261123-084907-abcdef") == Path("20261123-084907-abcdef")


def test_an_unknown_name_suggests_the_nearest_runs(tmp_path):
    with pytest.raises(AlphaError, match=r"There is no file, folder or run 'x', and .*/ has no runs\.$"):
        resolve("x", tmp_path)
    for number in range(12):
        make_run(tmp_path, f"20261123-0849{number:02}-abcdef")
    with pytest.raises(AlphaError, match=r"Did you mean '20261123-084900-abcdef'\?$"):
        resolve("20261123-084900-abcdeg", tmp_path)
    with pytest.raises(AlphaError) as caught:
        resolve("zzz", tmp_path)
    assert "20261123-084911-abcdef" in str(caught.value)
    assert "20261123-084901-abcdef" not in str(caught.value), "only the newest are listed"


@pytest.mark.parametrize("text", ["", "..", "../x", "a\0b", "x" * 5000, "a/../b", "/"])
def test_names_from_outside_never_leave_the_root(tmp_path, monkeypatch, text):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    make_run(tmp_path / "runs", "a", last_step=1)
    if text in {"..", "/"}:
        assert resolve(text, tmp_path / "runs") == Path(text)
    else:
        with pytest.raises(AlphaError, match=r"There is no file, folder or run|Cannot use"):
            resolve(text, tmp_path / "runs")
