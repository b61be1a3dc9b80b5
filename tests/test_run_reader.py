import json
import os
import shutil
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_checkpoint import MODEL, TRAINING, small_checkpoint

from alpha import files, run_reader
from alpha.errors import AlphaError
from alpha.followed_files import FollowedLines
from alpha.run import Run
from alpha.run_notes import write_notes
from alpha.run_reader import (
    RunIndex,
    find_run,
    folder_of,
    list_runs,
    read_samples,
    resolve,
    summarize,
)


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
    name = "metrics.jsonl"
    modified, seconds = run_reader._modified, (year - 1970) * 365.2425 * 86400 + 364.9 * 86400
    monkeypatch.setattr(run_reader, "_modified", lambda file: seconds if file.name == name else modified(file))
    (summary,) = list_runs(tmp_path)
    assert summary.updated == datetime.fromtimestamp(1.5e9, UTC)
    summary.updated.astimezone()


def test_only_the_end_of_long_metrics_is_read(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "x")
    row = '{{"step":{step},"loss":2.0,"padding":"' + "x" * 100 + '"}}\n'
    (folder / "metrics.jsonl").write_text("".join(row.format(step=step) for step in range(10_000)))
    read = []
    parse = files.parse_row
    monkeypatch.setattr(files, "parse_row", lambda line: (read.append(len(line)), parse(line))[1])
    summary = list_runs(tmp_path)[0]
    assert (summary.step, summary.val_loss) == (9_999, None)
    assert sum(read) <= 1 << 20 < (folder / "metrics.jsonl").stat().st_size
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step":10000,"valLoss":1.5}\n')
    read.clear()
    assert list_runs(tmp_path)[0].val_loss == 1.5
    assert len(read) == 1


def test_what_is_no_folder_is_not_taken_for_one_without_runs(tmp_path):
    assert list_runs(tmp_path / "absent") == []
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "pipe"):
        with pytest.raises(AlphaError, match=rf"^Cannot list the runs in .*{name}: Not a directory\.$"):
            list_runs(tmp_path / name)


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


# --- heartbeats -------------------------------------------------------------------------------------------------------


def write_status(folder: Path, **values: object) -> None:
    known = {"phase": "training", "time": time.time(), "pid": 1, "host": "elsewhere"}
    (folder / "status.json").write_text(json.dumps(known | values))


def test_a_run_on_another_machine_is_alive_while_its_heartbeat_is_recent(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "x", last_step=3)
    assert summarize(folder).status == "interrupted"
    write_status(folder, phase="evaluating")
    index = RunIndex(tmp_path)
    (summary,) = index.list()
    assert (summary.status, summary.phase) == ("running", "evaluating")
    now = time.time()
    monkeypatch.setattr(run_reader.time, "time", lambda: now + 200)
    (summary,) = index.list()  # though no file has changed
    assert (summary.status, summary.phase) == ("interrupted", "")
    monkeypatch.undo()
    for values in ({"phase": "ended"}, {"host": socket.gethostname()}, {"time": now - 1000}, {"time": now + 1000}):
        write_status(folder, **values)
        assert summarize(folder).status == "interrupted"


def test_a_run_that_ended_by_an_error_has_failed(tmp_path):
    with pytest.raises(AlphaError), Run.create(MODEL, TRAINING, folder=tmp_path / "x") as run:
        run.beat("training")
        raise AlphaError("The weights are not finite.")
    summary = summarize(tmp_path / "x")
    assert (summary.status, summary.error) == ("failed", "AlphaError: The weights are not finite.")
    with Run.open(tmp_path / "x"):
        assert (summarize(tmp_path / "x").status, summarize(tmp_path / "x").error) == ("running", "")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"time":"now"}', '{"time":1e999}', '{"time":null}', "x" * 100_000])
def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path, content):
    folder = make_run(tmp_path, "x", last_step=3)
    (folder / "status.json").write_text(content)
    assert (summarize(folder).status, summarize(folder).heard) == ("interrupted", None)


def test_the_time_left_goes_by_the_pace_of_the_last_steps(tmp_path):
    with Run.create(MODEL, TRAINING, folder=tmp_path / "x") as run:
        for step in range(1, 21):
            run.add_metrics({"step": step, "elapsed_ms": 100.0 * step if step < 10 else 2000.0 * step})
        assert summarize(run.folder).seconds_left == pytest.approx((40.0 - 0.1) / 19 * 10)
    assert summarize(tmp_path / "x").seconds_left is None


# --- an index ---------------------------------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    for name in "abc":
        make_run(tmp_path, name, last_step=2)
    index = RunIndex(tmp_path)
    first = index.list()
    read = []
    summarize_one = run_reader.summarize
    monkeypatch.setattr(run_reader, "summarize", lambda folder: (read.append(folder.name), summarize_one(folder))[1])
    assert index.list() == first
    assert read == []
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step":9,"loss":1.0}\n')
    assert {summary.run_id: summary.step for summary in index.list()} == {"a": 2, "b": 9, "c": 2}
    write_notes(tmp_path / "c", name="best")
    assert {summary.run_id: summary.title for summary in index.list()} == {"a": "a", "b": "b", "c": "best"}
    with Run.open(tmp_path / "a"):
        index.list()
    shutil.rmtree(tmp_path / "b")
    assert {summary.run_id for summary in index.list()} == {"a", "c"}
    assert read == ["b", "c", "a", "a"]


def test_runs_are_found_by_id_and_by_name_but_never_elsewhere(tmp_path):
    root = tmp_path / "runs"
    for name in ("a", "b", "c"):
        make_run(root, name, last_step=1)
    make_run(tmp_path, "outside", last_step=1)
    write_notes(root / "a", name="b")
    write_notes(root / "b", name="twice")
    write_notes(root / "c", name="twice")
    assert find_run("a", root) == root / "a"
    assert find_run("b", root) == root / "b"  # an id comes before a name
    for text in ("../outside", str(tmp_path / "outside"), "..", ".", "", "a/../../outside", "a\0", "a/"):
        with pytest.raises(AlphaError, match="There is no run"):
            find_run(text, root)
    with pytest.raises(AlphaError, match="2 runs have the name 'twice'; give the id: b, c"):
        find_run("twice", root)
    with pytest.raises(AlphaError, match="has no runs"):
        find_run("a", tmp_path / "missing")


def test_a_name_that_is_not_utf8_is_found_as_it_is_and_as_it_is_listed(tmp_path):
    root = tmp_path / "runs"
    folder = make_run(root, os.fsdecode(b"caf\xe9 \xc3\xa9"), last_step=1)
    assert [each.run_id for each in list_runs(root)] == ["caf\\xe9 é"]
    for text in (folder.name, "caf\\xe9 é"):
        assert find_run(text, root) == folder == folder_of(text, root) == resolve(text, root)
    spelled = make_run(root, "caf\\xe9 é", last_step=1)
    assert find_run("caf\\xe9 é", root) == spelled
    for text in ("caf\\xe8 é", "\\xff", "\\x2f", "\ud800"):
        with pytest.raises(AlphaError):
            find_run(text, root)


def test_a_folder_that_vanishes_meanwhile(tmp_path):
    folder = make_run(tmp_path, "x", last_step=3)
    lines_of_log = FollowedLines(folder / "log.txt")
    lines_of_log.update()
    assert lines_of_log.count
    shutil.rmtree(folder)
    lines_of_log.update()
    assert (lines_of_log.count, lines_of_log.generation) == (0, 1)
    assert summarize(folder).status == "damaged"


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_that_a_resumed_run_made_again_replace_the_old_ones(tmp_path):
    rows = [(10, "a"), (20, "b"), (30, "c"), (20, "d"), (None, "e"), (40, 5), (50, "f")]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({"step": step, "prompt": "p", "text": text}) + "\n" for step, text in rows))
    samples = FollowedLines(path)
    samples.update()
    assert [(row["step"], row["text"]) for row in read_samples(samples)] == [(10, "a"), (20, "d"), (50, "f")]
