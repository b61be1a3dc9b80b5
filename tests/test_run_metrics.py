import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpha import run_metrics
from alpha.files import LineFile
from alpha.run_metrics import Columns, RunMetrics, preview

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["loss", "valLoss", "lr"]), VALUES).flatmap(
        lambda row: st.integers(-1, 30).map(lambda step: {"step": step} | row)
    ),
    max_size=40,
)


def expected_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the rule of one row after the other."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if row["step"] >= 0:
            kept = [each for each in kept if each["step"] < row["step"]] + [row]
    return kept


def number(value: Any) -> float:
    try:
        result = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
    return result if math.isfinite(result) else math.nan


@settings(deadline=None)
@example(rows=[{"step": 1, "loss": 10**400}, {"step": 2, "loss": 1 << 60}], sizes=[1])
@given(ROWS, st.lists(st.integers(1, 10), min_size=1, max_size=40))
def test_columns_are_the_rows_that_no_later_one_supersedes(rows: list[dict[str, Any]], sizes: list[int]) -> None:
    columns, begin = Columns(), 0
    for size in [*sizes, 1000]:
        last = max(columns.column("step"), default=-1)
        part = rows[begin : begin + size]
        assert columns.append(part) == any(0 <= row["step"] <= last for row in part)
        begin += size
    expected = expected_rows(rows)
    assert columns.column("step").tolist() == [row["step"] for row in expected]
    for name in ("loss", "valLoss", "lr"):
        np.testing.assert_array_equal(columns.column(name), [number(row.get(name)) for row in expected])


def test_a_file_with_ever_new_names_does_not_fill_the_memory() -> None:
    columns = Columns()
    columns.append([{"step": step, f"name{step}": 1.0} for step in range(1000)])
    assert len(columns.names) == 100
    assert len(columns) == 1000


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_resumed_run_replaces_what_it_trains_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = RunMetrics(path)
    assert metrics.update()
    assert (len(metrics.columns), metrics.share) == (0, 1.0)
    file = LineFile(path)
    for step in range(1, 11):
        file.append_row({"step": step, "loss": float(step)})
    metrics.update()
    version = metrics.version
    assert metrics.update()
    assert metrics.version == version
    file.keep_through(6)
    file.append_row({"step": 7, "loss": 70.0})
    metrics.update()
    assert metrics.version[0] != version[0]
    assert metrics.columns.column("loss").tolist() == [1, 2, 3, 4, 5, 6, 70]
    # As a copy on another machine has it when only new lines are added to it.
    with path.open("a") as copy:
        copy.write('{"step":3,"loss":30}\nno JSON\n{"step":4,"lo')
    metrics.update()
    assert metrics.columns.column("loss").tolist() == [1, 2, 30]
    assert metrics.others == 1
    path.unlink()
    metrics.update()
    assert (len(metrics.columns), metrics.others) == (0, 0)
    file.close()


def test_a_long_file_is_seen_as_a_whole_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_metrics, "_LARGE_BYTES", 1 << 16)
    monkeypatch.setattr(run_metrics, "_BLOCK_BYTES", 1 << 12)
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1 / step, "padding": "x" * (step % 90)} for step in range(1, 20_001)]
    write(path, rows)
    metrics = RunMetrics(path)
    assert not metrics.update(0.0)
    steps = metrics.columns.column("step")
    assert 900 < len(steps) < 1100
    assert (steps[0], steps[-1]) == (1, 20_000)
    assert np.diff(steps).max() < 100
    assert 0 < metrics.share < 0.1
    while not metrics.update(0.0):
        assert len(metrics.columns) == len(steps)
    assert metrics.columns.column("step").tolist() == [row["step"] for row in rows]
    assert metrics.share == 1.0


@pytest.mark.parametrize("content", ["", "no line end", "\n" * 5000, "x" * 10_000 + "\n", '{"step":1,"loss":2}\n{"st'])
def test_a_preview_of_anything(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    assert len(preview(path, 10)) == content.count('loss":2}')
    assert len(preview(tmp_path / "missing", 10)) == 0


def test_axes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(
        path,
        [
            {"step": 1, "loss": 3.0, "elapsed_ms": 500.0},  # as earlier versions wrote it
            {"step": 2, "loss": 2.0, "elapsed_ms": 1000.0, "tokens": 90, "time": 1e9},
            {"step": 4, "elapsed_ms": 2000.0, "tokens": 150, "time": 1e9 - 3600},  # the clock was set back
            {"step": 5, "loss": 1.0, "elapsed_ms": None, "tokens": 180, "time": 1e9 + 2},
        ],
    )
    metrics = RunMetrics(path)
    metrics.update()
    nan = math.nan
    np.testing.assert_array_equal(metrics.axis("step"), [1, 2, 4, 5])
    np.testing.assert_array_equal(metrics.axis("elapsed"), [0.5, 1, 2, nan])
    np.testing.assert_array_equal(metrics.axis("tokens"), [nan, 90, 150, 180])
    np.testing.assert_array_equal(metrics.axis("tokens", tokens_per_step=32), [32, 90, 150, 180])
    np.testing.assert_array_equal(metrics.axis("time"), [nan, 1e9, 1e9, 1e9 + 2])
    np.testing.assert_array_equal(metrics.axis("time", created=1e9 - 1)[0], 1e9 - 0.5)
    x, y = metrics.curve("loss", metrics.axis("elapsed"))
    assert (x.tolist(), y.tolist()) == ([0.5, 1.0], [3.0, 2.0])


def test_reading_gives_way_when_its_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": step, "loss": 1.0} for step in range(100_000)])
    metrics = RunMetrics(path)
    begin, looks = time.monotonic(), 1
    while not metrics.update(0.0):
        looks += 1
    assert looks > 5
    assert len(metrics.columns) == 100_000
    assert time.monotonic() - begin < 60
