import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoint import MODEL, TRAINING, small_checkpoint

from alpha.errors import AlphaError, UsageError
from alpha.run import Run
from alpha.run_api import EditingNotAllowedError, RunNotFoundError, RunsApi, View
from alpha.run_notes import read_notes, write_notes
from alpha.run_reader import FollowedRun

ROOT = Path(__file__).resolve().parent.parent


def make(root: Path, name: str, steps: int = 100) -> Path:
    with Run.create(MODEL, TRAINING, folder=root / name) as run:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 1 / step, "clipped": step % 10 == 0, "elapsed_ms": 10.0 * step}
            run.add_metrics(
                row | ({"skipped": True} if step == 50 else {}) | ({"valLoss": 2.0} if step % 25 == 0 else {})
            )
        run.add_sample({"step": 50, "prompt": "p", "text": "t"})
        run.save(small_checkpoint(steps, val_loss=2.0))
    return root / name


@pytest.fixture
def api(tmp_path: Path) -> RunsApi:
    make(tmp_path / "runs", "a")
    make(tmp_path / "runs", "b", steps=20)
    return RunsApi(tmp_path / "runs")


def is_json(answer: Any) -> bool:
    return json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_every_answer_is_json(api: RunsApi) -> None:
    listed = api.runs()
    assert {each["runId"] for each in listed["runs"]} == {"a", "b"}
    assert listed["allowEdit"] is False
    run = api.run("a")
    assert (run["step"], run["rows"], run["changed"]["iters"], run["model"]["dim"]) == (100, 100, 30, 8)
    samples, log, checkpoints = api.samples("a"), api.log("a"), api.checkpoints("a")
    assert samples == {"samples": [{"step": 50, "prompt": "p", "text": "t"}]}
    assert api.samples("a", after=50) == {"samples": []}
    assert "Saved checkpoint-100.safetensors." in log["lines"][-1]
    (checkpoint,) = checkpoints["checkpoints"]
    assert (checkpoint["name"], checkpoint["valLoss"], checkpoint["parameters"]) == (
        "checkpoint-100.safetensors",
        2.0,
        96,
    )
    metrics = api.metrics("a", ["loss", "valLoss", "missing"], View())
    assert all(
        map(is_json, (listed, run, samples, log, checkpoints, metrics, api.compare(["a", "b"]), api.event("a")[1]))
    )


def test_metrics_are_what_a_picture_needs(api: RunsApi) -> None:
    whole = api.metrics("a", ["loss", "valLoss"], View())
    assert whole["extent"] == [1.0, 100.0]
    assert whole["columns"]["loss"] == {
        "x": list(range(1, 101)),
        "y": [1 / step for step in range(1, 101)],
        "count": 100,
    }
    assert whole["columns"]["valLoss"] == {"x": [25, 50, 75, 100], "y": [2.0] * 4, "count": 4}
    assert whole["marks"] == {"clipped": list(range(10, 101, 10)), "skipped": [50]}
    part = api.metrics("a", ["loss"], View(low=20, high=30, pixels=3))["columns"]["loss"]
    assert part["x"][0] == 19  # on the way into the picture
    assert part["x"][-1] == 31
    assert {1 / 20, 1 / 30} <= set(part["y"])
    seconds = api.metrics("a", ["loss"], View(axis="elapsed"))
    assert seconds["extent"] == [0.01, 1.0]


def test_zooming_in_changes_no_smoothed_point(api: RunsApi) -> None:
    whole = api.metrics("a", ["loss"], View(smoothing=0.9))["columns"]["loss"]
    part = api.metrics("a", ["loss"], View(smoothing=0.9, low=40, high=60))["columns"]["loss"]
    assert (
        dict(zip(part["x"], part["y"], strict=True)).items() <= dict(zip(whole["x"], whole["y"], strict=True)).items()
    )


@pytest.mark.parametrize(
    "wrong",
    [{"axis": "stp"}, {"pixels": 0}, {"pixels": 5000}, {"smoothing": 1.0}, {"smoothing": math.nan},
     {"low": 2, "high": 1}, {"low": math.nan}, {"high": math.inf}],
)  # fmt: skip
def test_views_that_no_picture_has(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        View(**wrong)


@settings(deadline=None)
@given(
    low=st.none() | st.floats(-1e300, 1e300), high=st.none() | st.floats(-1e300, 1e300), pixels=st.integers(1, 4096),
    smoothing=st.floats(0, 0.9999), axis=st.sampled_from(["step", "tokens", "elapsed", "time"]), log=st.booleans(),
)  # fmt: skip
def test_any_view_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory,
    low: float | None, high: float | None, pixels: int, smoothing: float, axis: str, log: bool,
) -> None:  # fmt: skip
    root = tmp_path_factory.getbasetemp() / "views"
    if not root.exists():
        make(root, "a")
    try:
        view = View(axis, low, high, pixels, smoothing, log)
    except UsageError:
        assert low is not None and high is not None and low >= high
        return
    assert is_json(RunsApi(root).metrics("a", ["loss", "valLoss"], view))


@pytest.mark.parametrize("run_id", ["", ".", "..", "../outside", "a/../../outside", "/etc", "a/", "a\0", "A", "a.."])
def test_no_id_leads_elsewhere(api: RunsApi, run_id: str, tmp_path: Path) -> None:
    make(tmp_path, "outside")
    api.allow_edit = True
    for ask in (
        api.run, api.samples, api.log, api.checkpoints, api.event, api.delete,
        lambda each: api.metrics(each, [], View()), lambda each: api.compare([each]),
        lambda each: api.write(each, {"name": "x"}), lambda each: api.checkpoint_path(each, "checkpoint-1.safetensors"),
    ):  # fmt: skip
        with pytest.raises(RunNotFoundError):
            ask(run_id)
    with pytest.raises(RunNotFoundError):
        api.checkpoint_path("a", "../../outside/checkpoint-100.safetensors")
    with pytest.raises(RunNotFoundError):
        api.checkpoint_path("a", "config.json")
    assert api.checkpoint_path("a", "checkpoint-100.safetensors").is_file()


def test_events_say_what_is_new(api: RunsApi) -> None:
    event_id, first = api.event("a")
    assert first["reset"] is True
    assert api.event("a", event_id)[0] == event_id
    assert api.event("a", event_id)[1]["metrics"] == {}
    folder = api.root / "a"
    with Run.open(folder) as run:
        run.add_metrics({"step": 101, "loss": 0.5})
        run.add_metrics({"step": 102, "loss": math.nan})
        run.add_sample({"step": 102, "prompt": "q", "text": "new"})
        later_id, news = api.event("a", event_id)
        assert "reset" not in news
        assert (news["metrics"]["step"], news["metrics"]["loss"]) == ([101, 102], [0.5, None])
        assert [each["text"] for each in news["samples"]] == ["new"]
        assert len(news["log"]) == 1
        assert news["run"]["status"] == "running"
        assert later_id != event_id
        run.rewind(101)
    again_id, news = api.event("a", later_id)
    assert news["reset"] is True
    assert api.event("a", again_id)[1]["metrics"] == {}
    for unknown in ("", "x", "1-2", "1-2-3-4-5-6-7", "-".join(["9" * 30] * 6), "9-9-9-9-9-9", "\u0661-0-0-0-0-0"):
        assert api.event("a", unknown)[1]["reset"] is True


def test_nothing_is_changed_unless_it_is_allowed(api: RunsApi) -> None:
    with pytest.raises(EditingNotAllowedError):
        api.write("a", {"name": "x"})
    with pytest.raises(EditingNotAllowedError):
        api.delete("a")
    before = sorted(path.name for path in (api.root / "a").iterdir())
    api.allow_edit = True
    for wrong in ({}, {"status": "finished"}, {"name": 3}, {"name": "x", "folder": "/"}):
        with pytest.raises(UsageError):
            api.write("a", wrong)
    with pytest.raises(AlphaError, match="one line"):
        api.write("a", {"name": "a\nb"})
    assert sorted(path.name for path in (api.root / "a").iterdir()) == before
    assert api.write("a", {"name": "best", "notes": "n"})["name"] == "best"
    (api.root / "b" / "mine.txt").touch()
    assert api.delete("b") == {"left": ["mine.txt"]}
    with pytest.raises(RunNotFoundError):
        api.run("b")


def test_a_damaged_run_is_described_and_breaks_nothing(api: RunsApi) -> None:
    (api.root / "a" / "config.json").write_text("{}")
    (api.root / "a" / "checkpoint-7.safetensors").write_bytes(b"\0" * 100)
    run = api.run("a")
    assert (run["status"], run["model"]) == ("damaged", {})
    assert "does not have the objects" in run["problem"]
    assert ["problem" in each for each in api.checkpoints("a")["checkpoints"]] == [False, True]
    with pytest.raises(AlphaError):
        api.compare(["a", "b"])
    assert len(api.runs()["runs"]) == 2


def test_runs_that_were_not_asked_about_lately_are_forgotten(api: RunsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpha.run_api._MOST_FOLLOWED", 1)
    followed = []
    original = FollowedRun.__init__
    monkeypatch.setattr(
        FollowedRun, "__init__", lambda self, folder: (followed.append(folder.name), original(self, folder))[1]
    )
    for run_id in ("a", "a", "b", "a"):
        api.run(run_id)
    assert followed == ["a", "b", "a"]
    assert np.isfinite(api.metrics("a", ["loss"], View())["extent"]).all()


_ASKING = """
import json, sys
from pathlib import Path
from alpha.errors import AlphaError
from alpha.run_api import RunsApi, View
api = RunsApi(Path(sys.argv[1]), allow_edit=True)
def told(ask, *arguments):
    try:
        return ask(*arguments)
    except AlphaError as error:
        return str(error)
print(json.dumps({
    "runs": [run["runId"] for run in api.runs()["runs"]],
    "of": {name: {
        "problem": told(api.run, name)["problem"],
        "loss": told(api.metrics, name, ["loss"], View()),
        "checkpoints": told(api.checkpoints, name),
        "csv": told(lambda: list(api.csv([name], ["loss"], View()))),
    } for name in ("config.json", "metrics.jsonl", "log.txt", "samples.jsonl", "list", "checkpoint-20.safetensors")},
    "compared": told(api.compare, ["config.json", "log.txt"]),
    "written": told(api.write, "notes.json", {"group": "g"}),
    "models": len(api.models()["models"]),
}))
"""


def test_what_is_not_ours_to_read_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    """As a user who is not root, or as root without that power."""
    names = ("config.json", "metrics.jsonl", "log.txt", "samples.jsonl", "notes.json", "checkpoint-20.safetensors")
    for name in names:
        folder = make(tmp_path, name, steps=20)
        write_notes(folder, name="kept")
        (folder / name).chmod(0)
    make(tmp_path, "folder", steps=20).chmod(0)
    make(tmp_path, "list", steps=20).chmod(0o311)
    powerless = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search",
    ]
    command = [*(powerless if os.getuid() == 0 else []), sys.executable, "-c", _ASKING, str(tmp_path)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert answer.returncode == 0, answer.stderr
    finally:
        for name in ("folder", "list"):
            (tmp_path / name).chmod(0o755)
    told = json.loads(answer.stdout)
    assert set(told["runs"]) == {*names, "list"}
    for name, of in told["of"].items():
        is_read = name in ("config.json", "metrics.jsonl", "log.txt", "samples.jsonl")
        assert of["problem"].endswith(f"{tmp_path / name / name}: Permission denied.") == is_read, name
        assert len(of["loss"]["columns"]["loss"]["x"]) == (0 if name == "metrics.jsonl" else 20), name
        assert isinstance(of["csv"], str) == (name == "metrics.jsonl"), name
        assert isinstance(of["checkpoints"], str) == (name == "list"), name
    assert "Permission denied" in told["of"]["checkpoint-20.safetensors"]["checkpoints"]["checkpoints"][0]["problem"]
    assert "Permission denied" in told["compared"]
    assert "Permission denied" in told["written"]
    (tmp_path / "notes.json" / "notes.json").chmod(0o644)
    assert read_notes(tmp_path / "notes.json").name == "kept"
    assert told["models"] == len(names)
