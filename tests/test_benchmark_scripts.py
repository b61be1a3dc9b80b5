"""The benchmark scripts with an executable that is slow, flaky or broken: what they record, say and return."""

import argparse
import contextlib
import csv
import dataclasses
import importlib
import json
import math
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

import disk
import pytest
from helios_device import helios

from alpha.bench_cases import SUBJECTS

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests" / "fake_alpha"
COLUMNS_OF_OLD = (
    "timestamp,git_commit,steps,backend,compile_ms,run_ms,avg_tok_s,last_tok_s,speedup_pct,run_dir,log_file,status"
)

Row = dict[str, str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts and one commit, whose executable would be the fake one."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "perf", folder / "perf", ignore=shutil.ignore_patterns("*.csv", "*.env", "*.log", ".run*"))
    (folder / "alpha").mkdir()
    (folder / "alpha" / "module.py").write_text("")
    (folder / "alpha.py").write_text(FAKE.read_text())
    (folder / "build_scripts").mkdir()
    shutil.copy(ROOT / "build_scripts" / "script.bash", folder / "build_scripts")
    build(folder, f'mkdir -p dist/alpha && cp "{FAKE}" dist/alpha/alpha && touch dist/alpha/alpha')
    (folder / ".gitignore").write_text("dist/\nruns/\ndata/\n__pycache__/\nperf/run-*\n")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def build(checkout: Path, body: str) -> None:
    """What build_scripts/exe does, in the checkout's folder; it counts its calls."""
    script = checkout / "build_scripts" / "exe"
    script.write_text(f'#!/bin/sh\ncd "$(dirname "$0")/.."\necho >>dist.builds\n{body}\n')
    script.chmod(0o755)
    (script.parent / "environment").write_text("#!/bin/sh\n")
    (script.parent / "environment").chmod(0o755)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "a change")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def variables(checkout: Path, behaviour: str, **others: str) -> dict[str, str]:
    count = checkout.parent / "count"
    count.unlink(missing_ok=True)
    chosen = {"PYTHON": sys.executable, "FAKE_ALPHA": behaviour, "FAKE_ALPHA_COUNT": str(count), **others}
    return {name: value for name, value in os.environ.items() if name != "ALPHA"} | chosen


def script(
    checkout: Path, name: str, behaviour: str, *arguments: str, **others: str
) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "perf" / f"{name}.sh"), *arguments]
    environment = variables(checkout, behaviour, **others)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)


def benchmark(
    checkout: Path, behaviour: str, *arguments: str, steps: int = 40, **others: str
) -> subprocess.CompletedProcess[str]:
    return script(checkout, "run-compiled-benchmark", behaviour, str(steps), *arguments, **others)


def history(checkout: Path) -> list[Row]:
    path = checkout / "perf" / "compiled-loop-history.csv"
    if not path.exists():
        return []
    assert path.read_text().endswith("\n")
    with path.open() as file:
        return list(csv.DictReader(file, strict=True))


def last(checkout: Path) -> Row:
    """last-benchmark.env, as a shell reads it."""
    command = f'set -a; . "{checkout}/perf/last-benchmark.env"; env -0'
    done = subprocess.run(["env", "-i", "sh", "-c", command], capture_output=True, text=True, check=True)
    return dict(line.partition("=")[::2] for line in done.stdout.split("\0") if "=" in line)


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_good_run_is_built_measured_and_recorded(checkout: Path) -> None:
    code = git(checkout, "rev-parse", "--short=12", "HEAD")
    done = benchmark(checkout, "100")
    assert (done.returncode, done.stderr) == (0, "")
    [row] = history(checkout)
    expected = {
        **{"git_commit": code, "steps": "40", "backend": "cpu_ref", "status": "ok", "reason": "", "attempts": "1"},
        **{"machine": "Fake, 3 GHz, 2 cores", "workload": "quickstart", "executable": "dist/alpha/alpha"},
        # The first steps take long and change the number of threads; then the median step takes 100 ms for 16 x 10.
        **{"threads": "1", "warmup_steps": "7", "measured_steps": "33", "median_ms": "100", "median_tok_s": "1600.0"},
        **{"verdict": "first of its kind", "speedup_pct": "", "configuration": "threads=0"},
    }
    assert {name: row[name] for name in expected} == expected
    assert float(row["avg_tok_s"]) == pytest.approx(1600, rel=0.01)
    assert float(row["last_tok_s"]) == pytest.approx(1600, rel=0.02)
    assert 0 < float(row["spread_pct"]) < 3
    assert 0 <= float(row["busy_cores"]) <= (os.cpu_count() or 1)
    assert float(row["load_average"]) >= 0
    assert row["niceness"].split("/")[0] == str(os.nice(0))
    assert int(row["compile_ms"]) > 0
    assert int(row["run_ms"]) > 0
    assert ",".join(row).startswith(COLUMNS_OF_OLD)
    assert {name: last(checkout)[name] for name in row} == row
    assert (checkout / row["run_dir"] / "metrics.jsonl").is_file()
    assert not list((checkout / row["run_dir"]).glob("*.safetensors"))
    assert "tokens/s" in (checkout / row["log_file"]).read_text()
    assert "1,600 tokens/s" in done.stdout
    assert not list((checkout / "perf").glob(".*"))


def test_the_executable_is_built_only_when_a_source_is_newer(checkout: Path) -> None:
    builds = checkout / "dist.builds"
    benchmark(checkout, "100")
    benchmark(checkout, "100")
    assert builds.read_text() == "\n"
    # A build that leaves an executable alone, since only the times of its sources have changed, is not made again.
    build(checkout, "true")
    for path, age in ((checkout / "dist" / "alpha" / "alpha", 100), (checkout / "alpha" / "module.py", 50)):
        os.utime(path, (time.time() - age, time.time() - age))
    benchmark(checkout, "100")
    benchmark(checkout, "100")
    assert builds.read_text() == "\n\n"
    assert [bool(row["compile_ms"]) for row in history(checkout)] == [True, False, True, False]


def test_another_executable_is_measured_without_a_build(checkout: Path) -> None:
    assert benchmark(checkout, "100", f"--alpha={FAKE}").returncode == 0
    assert benchmark(checkout, "100", f"--alpha={checkout}/alpha.py").returncode == 0
    assert benchmark(checkout, "100", ALPHA=str(FAKE)).returncode == 0
    assert [row["executable"] for row in history(checkout)] == [str(FAKE), "alpha.py", str(FAKE)]
    assert not (checkout / "dist.builds").exists()
    assert benchmark(checkout, "100", "--alpha=/nowhere/alpha").returncode == 1
    assert history(checkout)[-1]["reason"] == "there is no file /nowhere/alpha"


@pytest.mark.parametrize(
    ("behaviour", "status", "reason", "code"),
    [
        ("100 unsteady", "unstable", "the steps' times spread by ", 0),
        ("1", "unstable", "the measured steps took only 0.02 s, so give more steps or a larger workload", 0),
        ("100 skips", "unstable", "1 steps were skipped", 0),
        ("100 nan", "smoke_fail", "the loss of step 13 is not a number", 1),
        ("100 stupid", "smoke_fail", "the loss did not fall: 4.000 at first, 4.000 in the end", 1),
        ("100 smoke", "smoke_fail", "the smoke test of the device failed", 1),
        ("100 marked", "smoke_fail", "the smoke test of the device failed", 1),
        ("100 crash", "failed", "alpha ended with 1; the log says why", 1),
        ("100 killed", "failed", "ended by SIGKILL", 1),
        ("100 hang", "failed", "not done after 1 s", 1),
        ("100 short", "failed", "metrics.jsonl has 39 rows, not 40", 1),
        ("100 garbage", "failed", "metrics.jsonl cannot be read: ", 1),
    ],
)
def test_every_status(checkout: Path, behaviour: str, status: str, reason: str, code: int) -> None:
    done = benchmark(checkout, behaviour, "--retries=0", f"--timeout={1 if 'hang' in behaviour else 60}")
    assert done.returncode == code, done.stdout + done.stderr
    [row] = history(checkout)
    assert row["status"] == status
    assert row["reason"].startswith(reason)
    assert f"{status}: {reason}" in done.stdout
    assert ("run-compiled-benchmark: error: the benchmark failed; its log is " in done.stderr) == bool(code)
    assert bool(row["median_tok_s"]) == (status == "unstable")
    assert last(checkout)["status"] == status


def test_what_ignores_the_end_of_its_time_is_killed(checkout: Path) -> None:
    library = checkout / "perf" / "library.sh"
    library.write_text(library.read_text().replace("--kill-after=10", "--kill-after=1"))
    done = benchmark(checkout, "100 stubborn", "--retries=0", "--timeout=1")
    assert done.returncode == 1
    assert history(checkout)[0]["reason"] == "not done after 1 s"


# --- several attempts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviours", "status", "attempts", "milliseconds"),
    [
        ("100 crash,100", "ok", 2, "100"),
        ("100 unsteady,100 crash,50", "ok", 3, "50"),
        ("100 nan,100 unsteady,100 crash", "unstable", 3, "100"),
        ("100 unsteady,50 unsteady,80 unsteady", "unstable", 3, "50"),
        ("100 crash,100 nan,100 crash", "smoke_fail", 3, ""),
        ("100 crash", "failed", 3, ""),
    ],
)
def test_the_best_of_three_attempts_is_kept(
    checkout: Path, behaviours: str, status: str, attempts: int, milliseconds: str
) -> None:
    done = benchmark(checkout, behaviours)
    assert done.returncode == (status in ("smoke_fail", "failed"))
    [row] = history(checkout)
    assert (row["status"], row["attempts"], row["median_ms"]) == (status, str(attempts), milliseconds)
    assert len((checkout.parent / "count").read_text()) == attempts


def test_a_change_is_told_from_noise(checkout: Path) -> None:
    for milliseconds in ("100", "101", "99", "100", "102"):
        benchmark(checkout, milliseconds)
    for milliseconds, verdict in (("101", "no change"), ("80", "faster"), ("125", "slower")):
        benchmark(checkout, milliseconds, "--commit=abc")
        row = history(checkout)[-1]
        assert row["verdict"] == verdict
        assert float(row["speedup_pct"]) == pytest.approx(100 * (100 / float(milliseconds) - 1), abs=2)
        assert float(row["speedup_low_pct"]) < float(row["speedup_pct"]) < float(row["speedup_high_pct"])
    assert history(checkout)[-1]["git_commit"] == "abc"


def test_only_ok_rows_of_the_same_configuration_are_compared(checkout: Path) -> None:
    benchmark(checkout, "100")
    benchmark(checkout, "100 unsteady", "--retries=0")
    benchmark(checkout, "200", "--threads=2")
    assert [row["verdict"] for row in history(checkout)] == [
        "first of its kind", "too few runs to say", "first of its kind",
    ]  # fmt: skip
    settings = checkout.parent / "a.env"
    settings.write_text("# why\nthreads=2\nrecompute=true\n")
    for arguments in ([f"--envFile={settings}"], ["--workload=gpt2"], ["--", "--fp16"]):
        benchmark(checkout, "100", *arguments)
        assert history(checkout)[-1]["verdict"] == "first of its kind"
    assert [row["configuration"] for row in history(checkout)[2:]] == [
        "threads=2", "threads=0 threads=2 recompute=true", "threads=0", "threads=0 --fp16",
    ]  # fmt: skip
    benchmark(checkout, "80")
    row = history(checkout)[-1]
    assert (row["verdict"], row["speedup_pct"], row["speedup_low_pct"]) == ("too few runs to say", "25.00", "")


# --- what can go wrong outside ----------------------------------------------------------------------------------------


def test_a_broken_build_is_a_row(checkout: Path) -> None:
    build(checkout, "exit 1")
    done = benchmark(checkout, "100", "--retries=1")
    assert done.returncode == 1
    assert "failed: the build failed" in done.stdout
    assert (checkout / "dist.builds").read_text() == "\n\n"
    build(checkout, "sleep 60")
    assert benchmark(checkout, "100", "--retries=0", "--buildTimeout=1").returncode == 1
    (checkout / "build_scripts" / "exe").unlink()
    assert benchmark(checkout, "100").returncode == 1
    assert [(row["status"], row["reason"]) for row in history(checkout)] == [
        ("failed", "the build failed"),
        ("failed", "the build failed"),
        ("failed", "there is no build_scripts/exe; use --alpha=alpha.py"),
    ]


@pytest.mark.parametrize("tool", ["timeout", "flock"])
def test_a_missing_tool_is_a_row(checkout: Path, tool: str) -> None:
    tools = checkout.parent / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cut", "date", "dirname", "basename", "env", "find", "flock", "getconf", "git", "grep",
                 "mkdir", "mktemp", "mv", "nice", "rm", "sed", "tail", "tee", "timeout", "tr", "wc"):  # fmt: skip
        found = shutil.which(name)
        assert found is not None
        if name != tool:
            (tools / name).symlink_to(found)
    done = benchmark(checkout, "100", PATH=str(tools))
    assert done.returncode == 1
    [row] = history(checkout)
    assert (row["status"], row["reason"]) == ("failed", f"{tool} is not installed")


def test_a_missing_python_is_said(checkout: Path) -> None:
    done = benchmark(checkout, "100", PYTHON="/nowhere/python")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "run-compiled-benchmark: error: '/nowhere/python' is no Python 3.11 or newer; name one with PYTHON=...\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7"], "the number of steps must be at least 20, not '7'."),
        (["many"], "the number of steps must be at least 20, not 'many'."),
        (["--speed=1"], "unknown option '--speed=1'; see --help."),
        (["--workload=huge"], "there is no workload 'huge'; valid: cpu-quickstart"),
        (["--threads=two"], "--threads must be a whole number, not 'two'."),
        (["--timeout=0"], "--timeout must be a number of seconds, not '0'."),
        (["--envFile=/nowhere"], "there is no file '/nowhere'."),
    ],
)
def test_wrong_usage(checkout: Path, arguments: list[str], message: str) -> None:
    done = script(checkout, "run-compiled-benchmark", "100", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run-compiled-benchmark: error: {message}")
    assert history(checkout) == []


def test_an_unknown_backend_is_a_row(checkout: Path) -> None:
    assert benchmark(checkout, "100", "--backend=helios").returncode == 1
    assert history(checkout)[0]["reason"].endswith("devices --json' names no device for helios")


def test_a_full_disk_leaves_the_history_whole(checkout: Path, tmp_path: Path) -> None:
    with disk.tiny_disk(tmp_path / "small", "40k") as folder:
        assert benchmark(checkout, "100", f"--out={folder}").returncode == 0
        path = folder / "compiled-loop-history.csv"
        before = path.read_text()
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        done = benchmark(checkout, "100", f"--out={folder}")
        assert done.returncode != 0
        assert "No space left on device" in done.stderr + done.stdout
        assert path.read_text() == before
        (folder / "filler").unlink()
        assert benchmark(checkout, "100", f"--out={folder}").returncode == 0
        assert path.read_text().startswith(before)
        assert path.read_text().count("\n") == 3


def test_a_row_that_does_not_fit_is_taken_back(checkout: Path) -> None:
    benchmark(checkout, "100")
    path = checkout / "perf" / "compiled-loop-history.csv"
    before = path.read_text()
    limit = len(before) + 10

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = "import sys; sys.path.insert(0, sys.argv[1]); import history, pathlib; history.append("
    code += "pathlib.Path(sys.argv[2]), [{'status': 'failed', 'reason': 'x' * 100}])"
    command = [sys.executable, "-c", code, str(checkout / "perf"), str(path)]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert path.read_text() == before


def test_half_a_line_is_cut_off_before_the_next_row(checkout: Path) -> None:
    benchmark(checkout, "100")
    path = checkout / "perf" / "compiled-loop-history.csv"
    with path.open("a") as file:
        file.write("2026-01-01T00:00:00Z,abc,4")
    benchmark(checkout, "100")
    assert [row["status"] for row in history(checkout)] == ["ok", "ok"]


def test_a_history_with_other_columns_is_left_alone(checkout: Path) -> None:
    path = checkout / "perf" / "compiled-loop-history.csv"
    path.write_text("a,b\n1,2\n")
    done = benchmark(checkout, "100")
    assert done.returncode == 1
    assert "has other columns than this version writes" in done.stderr
    assert path.read_text() == "a,b\n1,2\n"


def test_concurrent_runs_both_append_whole_lines(checkout: Path) -> None:
    environment = variables(checkout, "100")
    command = [str(checkout / "perf" / "run-compiled-benchmark.sh"), "40", f"--alpha={FAKE}"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    rows = history(checkout)
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert len({row["run_dir"] for row in rows}) == 4


def kill_session(leader: int) -> None:
    """Kill all processes of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
            if int(session) == leader:
                os.kill(int(folder.name), signal.SIGKILL)


@contextlib.contextmanager
def started(checkout: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A script whose training run hangs, in a session of its own that is killed in the end."""
    environment = variables(checkout, "100 hang")
    command = [str(checkout / "perf" / f"{name}.sh"), "40", *arguments, f"--alpha={FAKE}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while not (checkout.parent / "count").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            yield process
        finally:
            kill_session(process.pid)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_benchmark_is_a_row(checkout: Path, number: signal.Signals, code: int) -> None:
    with started(checkout, "run-compiled-benchmark") as process:
        process.send_signal(number)
        start = time.monotonic()
        assert process.wait(20) == code
        assert time.monotonic() - start < 8
    [row] = history(checkout)
    assert (row["status"], row["reason"]) == ("failed", "interrupted")
    assert not list((checkout / "perf").glob(".run-*"))


def test_a_killed_benchmark_becomes_a_row_when_the_next_one_runs(checkout: Path) -> None:
    with started(checkout, "run-compiled-benchmark") as process:
        benchmark(checkout, "100", f"--alpha={FAKE}")
        assert [row["status"] for row in history(checkout)] == ["ok"]  # the other one is alive
        process.kill()
        process.wait()
    benchmark(checkout, "100", f"--alpha={FAKE}")
    rows = history(checkout)
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"] == "the benchmark itself was killed"
    assert rows[1]["timestamp"] <= rows[0]["timestamp"]
    assert not list((checkout / "perf").glob(".run-*"))


# --- rows of other machines -------------------------------------------------------------------------------------------


def test_rows_of_another_machine_are_imported_once(checkout: Path, tmp_path: Path) -> None:
    benchmark(checkout, "100")
    benchmark(checkout, "90", f"--out={tmp_path / 'other'}")
    other = tmp_path / "other" / "compiled-loop-history.csv"
    command = [sys.executable, str(checkout / "perf" / "history.py"), "import", str(other)]
    for count in (1, 0):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{other}: {count} new rows\n"
    assert [row["median_ms"] for row in history(checkout)] == ["100", "90"]
    done = subprocess.run([*command, "/nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "history: error: there is no file /nowhere.\n")


# --- tuning -----------------------------------------------------------------------------------------------------------


def tune(checkout: Path, behaviour: str, *arguments: str, **others: str) -> tuple[int, str, list[Row]]:
    done = script(checkout, "tune-adaptive", behaviour, *arguments, f"--alpha={FAKE}", **others)
    [path] = (checkout / "perf").glob("tune-*.csv")
    with path.open() as file:
        return done.returncode, done.stdout + done.stderr, list(csv.DictReader(file))


def module_of(name: str) -> ModuleType:
    """A program of perf/, which is no package, as a module."""
    sys.path.insert(0, str(ROOT / "perf"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "perf"))


@pytest.fixture
def tuning() -> ModuleType:
    return module_of("tuning")


def test_tuning_finds_the_setting_that_is_faster(checkout: Path) -> None:
    # One core leaves two settings to try.
    code, said, rows = tune(checkout, "100", "40", "8", FAKE_ALPHA_FACTOR="0.8", OMP_NUM_THREADS="1")
    assert code == 0, said
    assert [row["candidate"] for row in rows[:2]] == ["threads=1", "recompute=true"]
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["first"] for row in rows} == {"default", "candidate"}
    faster = [float(row["speed_ratio"]) for row in rows if "recompute=true" in row["candidate"]]
    assert len(faster) == 4
    assert min(faster) == pytest.approx(1.25, abs=0.02)
    settings = (checkout / "perf" / "best-cpu_ref-quickstart.env").read_text().splitlines()
    assert [line for line in settings if not line.startswith("#")] == ["recompute=true"]
    assert "speed +25.0 % (+25.0 to +25.0) beside the defaults" in said


def simulated(tuning: ModuleType, speed: Callable[[str, int], float | None], loops: int) -> tuple[list[Row], Any]:
    """The rows of a sweep of three settings, and the result; `speed` is a candidate's in a loop, None when not ok."""
    names = ["a=1", "a=2", "b=1"]
    rows: list[Row] = []
    for loop in range(1, loops + 1):
        candidate = tuning.next_candidate(names, rows, loops)
        ratio = speed(candidate, loop)
        found = (
            {"status": "unstable", "speed_ratio": ""} if ratio is None else {"status": "ok", "speed_ratio": str(ratio)}
        )
        rows.append({"loop": str(loop), "candidate": candidate, **found})
    return rows, tuning.best(rows, names, loops)


def test_settings_that_help_are_combined(tuning: ModuleType) -> None:
    speeds = {"a=1": 1.1, "a=2": 1.2, "b=1": 1.3, "b=1 a=2": 1.5}
    rows, best = simulated(tuning, lambda candidate, loop: speeds[candidate] + 0.01 * (loop % 2), 16)
    assert [row["candidate"] for row in rows[:3]] == ["a=1", "a=2", "b=1"]
    assert {row["candidate"] for row in rows[3:]} == set(speeds)
    assert best[0] == "b=1 a=2"
    assert best[1].verdict == "faster"


def test_a_lucky_first_loop_proves_nothing(tuning: ModuleType) -> None:
    rows, best = simulated(tuning, lambda candidate, loop: 2.0 if loop <= 3 else 1 + 0.02 * (loop // 4 % 3 - 1), 16)
    assert best[1].verdict == "no change"
    assert best[1].ratio < 1.1
    assert len(rows) == 16


def test_what_is_not_ok_does_not_count(tuning: ModuleType) -> None:
    _, best = simulated(tuning, lambda candidate, loop: 1.5 if candidate == "a=2" and loop % 2 else None, 16)
    assert best is None or best[0] == "a=2"
    assert simulated(tuning, lambda candidate, loop: None, 8)[1] is None


def test_candidates_follow_the_device_and_the_variables(tuning: ModuleType) -> None:
    variables = [
        {"name": "ALPHA_DEBUG", "default": 0},
        {"name": "ALPHA_FAIL_ON_SMOKE_TEST", "default": 1},
        {"name": "ALPHA_STEPS_IN_FLIGHT", "default": 3},
        {"name": "ALPHA_CALLBACK_YIELD_EVERY", "default": 25},
        {"name": "ALPHA_TUNE", "default": "auto"},
    ]
    display = ["ALPHA_CALLBACK_YIELD_EVERY=12", "ALPHA_CALLBACK_YIELD_EVERY=50"]
    found = tuning.candidates(variables, "cpu_ref", 5)
    assert found == ["threads=1", "threads=2", "threads=4", "recompute=true", *display]
    found = tuning.candidates(variables, "helios", 5)
    assert found == ["recompute=true", "ALPHA_STEPS_IN_FLIGHT=1", "ALPHA_STEPS_IN_FLIGHT=6", *display]


def test_the_workload_fits_the_device() -> None:
    benchmark = module_of("benchmark")
    gpu = {"backend": "helios", "device": 0, "name": "Big", "kind": "discrete", "memoryBytes": 80 << 30, "missing": []}
    lavapipe = gpu | {"device": 1, "name": "llvmpipe", "kind": "cpu"}
    cpu = {"backend": "cpu_ref", "processor": "A", "cores": 16.0}
    devices = {"devices": [cpu, lavapipe, gpu]}
    assert benchmark.machine(devices, "cpu_ref") == ("A, 16 cores", "chars10m-b8")
    assert benchmark.machine(devices, "helios") == ("Big", "gpt2")
    assert benchmark.machine(devices, "helios", 1) == ("llvmpipe", "cpu-quickstart")
    assert benchmark.machine({"devices": [gpu | {"memoryBytes": 8 << 30}]}, "helios") == ("Big", "chars10m")
    with pytest.raises(ValueError, match="no device for helios"):
        benchmark.machine({"devices": [cpu, gpu | {"missing": ["int64"]}]}, "helios")


def test_tuning_accepts_only_ok_and_fails_without_any(checkout: Path) -> None:
    code, said, rows = tune(checkout, "100,100 unsteady,100 nan,100 crash,100 unsteady", "40", "3")
    assert code == 1
    assert [row["status"] for row in rows] == ["unstable", "smoke_fail", "failed"]
    assert {row["speed_ratio"] for row in rows} == {""}
    assert "none of 3 loops was valid" in said
    assert not list((checkout / "perf").glob("best-*"))


def test_an_interrupted_tuning_says_where_its_loops_are(checkout: Path) -> None:
    with started(checkout, "tune-adaptive") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert process.stderr is not None
        assert "interrupted; what was measured is in " in process.stderr.read()


# --- regressions ------------------------------------------------------------------------------------------------------


def slower(checkout: Path, factor: float) -> None:
    """Change the sources so that a step takes `factor` times as long."""
    source = checkout / "alpha.py"
    source.write_text(FAKE.read_text().replace("/ 1e3", f"/ 1e3 * {factor} * (1 + 0.01 * (time.time_ns() % 3))"))


def check(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return script(checkout, "check-regression", "100", *arguments)


@pytest.mark.parametrize(("factor", "code", "verdict"), [(1.0, 0, ""), (1.1, 0, "slower"), (0.5, 0, "faster")])
def test_a_commit_that_is_not_much_slower_passes(checkout: Path, factor: float, code: int, verdict: str) -> None:
    slower(checkout, factor)
    commit(checkout)
    done = check(checkout, "--short")
    assert done.returncode == code, done.stderr
    assert f"in 6 paired rounds: {verdict}" in done.stdout
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_a_slower_commit_fails_after_a_second_look(checkout: Path) -> None:
    slower(checkout, 1.5)
    commit(checkout)
    done = check(checkout, "--short")
    assert done.returncode == 1
    assert done.stdout.count("in 6 paired rounds: slower") == 2
    assert done.stderr == "check-regression: error: slower than HEAD^ by more than 25 %, twice in a row.\n"
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_changes_that_are_not_committed_are_compared_with_the_last_commit(checkout: Path) -> None:
    slower(checkout, 1.5)
    done = check(checkout, "--short", "--rounds=3")
    assert (done.returncode, "slower than HEAD by" in done.stderr) == (1, True)


def test_executables_of_both_revisions_are_built(checkout: Path) -> None:
    base = git(checkout, "rev-parse", "HEAD")
    build(
        checkout, f'mkdir -p dist/alpha && sed "s|/ 1e3|/ 1e3 * 2|" "{FAKE}" >dist/alpha/alpha; chmod +x dist/alpha/*'
    )
    commit(checkout)
    commit(checkout)
    done = check(checkout, f"--base={base}", "--rounds=3")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "speed -50.0 % (-50.0 to -50.0)" in done.stdout
    assert check(checkout, "--rounds=3").returncode == 0


def test_without_a_base_there_is_nothing_to_compare(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "checkout", "--quiet", "--", ".")
    for folder, message in (
        (checkout, "the commit before this one is not here"),
        (tmp_path / "shallow", "the commit before this one is not here"),
        (tmp_path / "no_git", "this is no git checkout"),
    ):
        if folder.name == "shallow":
            commit(checkout)
            git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", str(folder))
        if folder.name == "no_git":
            shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git"))
        done = check(folder, "--short")
        assert (done.returncode, done.stderr) == (0, "")
        assert message in done.stdout
    done = check(checkout, "--base=nowhere")
    assert (done.returncode, done.stderr) == (2, "check-regression: error: there is no revision 'nowhere'.\n")


def test_a_base_that_cannot_run_is_nothing_to_compare_with_but_this_checkout_must_run(checkout: Path) -> None:
    working = (checkout / "alpha.py").read_text()
    (checkout / "alpha.py").write_text("raise SystemExit('broken')")
    commit(checkout)
    done = check(checkout, "--short")
    assert done.returncode == 1
    assert "this checkout could not be measured" in done.stderr
    assert "broken" in done.stderr
    (checkout / "alpha.py").write_text(working)
    commit(checkout)
    done = check(checkout, "--short")
    assert (done.returncode, done.stderr) == (0, "")
    assert "HEAD^ could not be measured, so there is nothing to compare with" in done.stdout
    assert check(checkout, "--short", "--base=HEAD^").returncode == 1


# --- ratios -----------------------------------------------------------------------------------------------------------


def test_the_interval_of_paired_ratios() -> None:
    ratio = module_of("ratio")
    # Logarithms 0, 0.1, 0.2: mean 0.1, standard error 0.1 / sqrt(3), Student's t with 2 degrees of freedom 4.303.
    found = ratio.paired([math.exp(each) for each in (0.0, 0.1, 0.2)])
    assert math.log(found.ratio) == pytest.approx(0.1)
    assert math.log(found.high) == pytest.approx(0.1 + 4.303 * 0.1 / math.sqrt(3))
    assert math.log(found.low) == pytest.approx(0.1 - 4.303 * 0.1 / math.sqrt(3))
    assert found.verdict == "no change"
    assert (found.inverse().low, found.inverse().high) == (1 / found.high, 1 / found.low)
    assert ratio.paired([1.5]).verdict == "too few runs to say"
    assert ratio.paired([1.5, 1.501]).verdict == "faster"
    assert ratio.paired([0.5, 0.501]).verdict == "slower"


def test_one_odd_run_in_the_history_does_not_hide_a_change() -> None:
    ratio = module_of("ratio")
    assert ratio.against_history(80.0, 0.001, [99.0, 100.0, 101.0, 102.0, 130.0]).verdict == "slower"
    assert ratio.against_history(80.0, 0.001, [80.0, 100.0, 120.0, 140.0, 60.0]).verdict == "no change"
    assert ratio.against_history(99.0, 0.05, [100.0, 100.0, 100.0]).verdict == "no change"


@pytest.mark.parametrize(
    ("times", "code"),
    [
        ([1.5, 1.5, 1.5, 1.51], 1),
        ([0.9, 3.0, 1.2, 2.0], 0),  # slower on the average, but not surely
        ([1.05, 1.05, 1.06, 1.05], 0),  # surely slower, but within the margin
        ([1.0, 1.0, 1.0, 1.0], 0),
    ],
)
def test_only_a_sure_slow_down_beyond_the_margin_counts(times: list[float], code: int) -> None:
    command = [sys.executable, str(ROOT / "perf" / "ratio.py"), "--margin=10"]
    pairs = "".join(f"2.0 {2 * each}\n" for each in times)
    assert subprocess.run(command, input=pairs, text=True, capture_output=True, check=False).returncode == code


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_a_floor_is_below_the_step_that_is_measured() -> None:
    """Also where a single operation takes less than what is around it."""
    scaling, backend = module_of("scaling"), helios()
    subject = dataclasses.replace(SUBJECTS["cpu-quickstart"], batch=4)
    ceilings = scaling.ceilings(backend, subject, 64, 0.2)
    row = scaling.point(backend, subject, argparse.Namespace(dtype="f32", seconds=0.2), *ceilings)
    assert 0 < row["floorMilliseconds"] < row["milliseconds"]
    picture = ElementTree.fromstring(scaling.picture("a model", [{"axis": "batch", **row}]))
    words = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a model: milliseconds of a training step", "measured", "floor", "batch", "4", "GiB"} <= set(words)


# --- PyTorch's side ---------------------------------------------------------------------------------------------------


def test_a_step_that_is_a_graph_keeps_what_the_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds no tensors, only their addresses, as a stand-in for torch does here."""
    torch = MagicMock()
    torch.nn.Module = object
    for name, module in (("torch", torch), ("torch.nn", torch.nn)):
        monkeypatch.setitem(sys.modules, name, module)
    peer = runpy.run_path(str(ROOT / "perf" / "torch_peer.py"))
    steps = []

    def step() -> None:
        steps.append(1)

    run, kept = peer["Captured"](step), weakref.ref(step)
    del step
    run()
    assert len(steps) == peer["BATCHES"] + 1
    torch.cuda.CUDAGraph.return_value.replay.assert_called_once_with()
    assert kept() is not None


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipes(
    folder: Path, behaviour: str, *arguments: str, options: tuple[str, ...] = ("--data=x", "--valData=HELD")
) -> subprocess.CompletedProcess[str]:
    """compare_recipes.py with the fake program, into `folder`/out."""
    (folder / "held-out").write_text("text")
    (folder / "count").unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    common = [each.replace("HELD", str(folder / "held-out")) for each in options]
    own = [*arguments, f"--alpha={FAKE}", f"--out={folder / 'out'}"]
    command = [sys.executable, str(ROOT / "perf" / "compare_recipes.py"), *own, "--", "--batch=4", *common]
    environment = {**os.environ, "FAKE_ALPHA": behaviour, "FAKE_ALPHA_COUNT": str(folder / "count")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_recipes_are_compared_by_pairs_of_seeds(tmp_path: Path) -> None:
    done = recipes(tmp_path, "10", "--lr=0.5 --iters=20", "--lr=0.25 --iters=40", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The noise of the runs is 0, 1, 2 and 1, 2, 0 thousandths: of the differences 1, 1, -2, standard error 1.
    assert found["difference"] == {
        "mean": pytest.approx(-0.25),
        "low": pytest.approx(-0.25 - 4.303e-3),
        "high": pytest.approx(-0.25 + 4.303e-3),
        "better": "B",
    }
    assert [row["seed"] for row in found["seeds"]] == [1, 2, 3]
    assert [round(row["A"]["bitsPerByte"], 3) for row in found["seeds"]] == [2.6, 2.701, 2.802]
    assert (found["A"]["steps"], found["B"]["steps"], found["B"]["tokens"]) == (20, 40, 40 * 4 * 10)
    assert found["B"]["seconds"] == pytest.approx(0.01 * (35 + 5 * 50), rel=0.01)
    first = [min("AB", key=lambda side: (tmp_path / "out" / f"{side}-{seed}").stat().st_mtime_ns) for seed in (1, 2, 3)]
    assert first == ["A", "B", "A"]
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    # For people; a difference that the noise can make is none, and one seed tells nothing.
    same = recipes(tmp_path, "10", "--lr=0.5 --iters=9", "--lr=0.5 --iters=9")
    assert "B - A" in same.stdout
    assert "+0.0000 (-0.0043 to +0.0043): no difference beyond the noise" in same.stdout
    alone = recipes(tmp_path, "10", "--iters=9", "--iters=9", "--seeds=1")
    assert "+0.0010: one seed says nothing about the noise" in alone.stdout


def test_recipes_get_equal_time(tmp_path: Path) -> None:
    # A trial of each, then the pair: with 100 ms a step as many steps in 3 s as that is, and with 60 ms more.
    done = recipes(tmp_path, "100,60,100,60", "--lr=0.5", "--lr=0.25", "--seeds=1", "--seconds=3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["A"]["steps"], found["B"]["steps"]) == (30, 50)


def test_recipes_hold_out_whole_documents(tmp_path: Path) -> None:
    done = recipes(tmp_path, "10", "--iters=9", "--iters=9", "--seeds=1", options=())
    assert done.returncode == 0, done.stderr
    training, held_out = (
        (tmp_path / "out" / f"{name}.txt").read_text().split(",") for name in ("training", "held-out")
    )
    assert not set(training) & set(held_out)
    assert len(held_out) == -(-len(training + held_out) // 10)
    assert any(path.endswith("/json/decoder.py") for path in training + held_out)


@pytest.mark.parametrize(
    ("behaviour", "arguments", "code", "message"),
    [
        ("10,10 crash", ("--iters=9", "--iters=9 --lr=2"), 1, " --lr=2 "),
        ("10,10,10 diverges", ("--iters=9", "--iters=9", "--json"), 1, "B with seed 2 has no bits per byte of "),
        ("10", ("--iters=9", "", "--alphaB=/nowhere/alpha"), 1, "/nowhere/alpha cannot be run: No such file"),
        ("10", ("--iters=5", "", "--seconds=3"), 2, "leave out --iters"),
        ("10", ("", "--data=x"), 2, "give --valData=PATHS as well"),
        ("10", ("", "", "--seeds=0"), 2, "--seeds must be 1 at least"),
        ("10", ("",), 2, "required: B"),
    ],
)
def test_recipes_that_cannot_be_compared(
    tmp_path: Path, behaviour: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    options = () if "--data=x" in arguments else ("--data=x", "--valData=HELD")
    done = recipes(tmp_path, behaviour, *arguments, options=options)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "better" not in done.stdout


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_run(checkout: Path) -> None:
    def plot(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(checkout / "perf" / "plot.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert plot().returncode == 1
    for behaviour, arguments in (("100", ()), ("90", ("--threads=2",)), ("100 unsteady", ()), ("100 crash", ())):
        benchmark(checkout, behaviour, "--retries=0", *arguments)
    benchmark(checkout, "5000", "--workload=gpt2", "--", "--odd=<&>")
    assert plot().returncode == 0
    root: Any = ElementTree.fromstring((checkout / "perf" / "history.svg").read_text())
    name = "{http://www.w3.org/2000/svg}"
    groups = root.findall(f"{name}g")
    assert len(groups) == 5
    assert sum(group.find(f"{name}circle") is not None for group in groups) == 4
    words = [element.text for element in root.findall(f"{name}text")]
    assert words.count("tokens per second") == 2
    assert "Fake, 3 GHz, 2 cores: cpu_ref, gpt2" in words
    assert any("--odd=<&>" in word for word in words)
    heights = [float(group.find(f"{name}circle").get("cy")) for group in groups[:3]]
    assert heights[1] < heights[0] == heights[2]  # 90 ms is faster, and drawn higher


def test_the_losses_of_a_run_as_a_picture(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "losses.svg"
    run.mkdir()
    command = [sys.executable, str(ROOT / "perf" / "plot.py"), f"--run={run}", f"--out={out}"]

    def plot(rows: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert (plot([{"step": 1}]).returncode, out.exists()) == (1, False)
    rows: list[dict[str, Any]] = [{"step": step, "loss": 4.0 - step / 200} for step in range(1, 401)]
    rows[199]["valLoss"], rows[399]["valLoss"], rows[0]["loss"] = 3.5, 2.5, None
    done = plot(rows)
    assert (done.returncode, done.stderr) == (0, "")
    root: Any = ElementTree.fromstring(out.read_text())
    name = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.findall(f"{name}text")]
    assert {"loss, nats per token", "step", "training, means of 3 steps", "validation", "400"} <= set(words)
    points = [tuple(map(float, point.split(","))) for point in root.find(f"{name}polyline").get("points").split()]
    assert len(points) == 133
    assert points == sorted(points)  # from left to right, and a falling loss downwards
    (x, y), (last_x, last_y), _legend = [
        (float(each.get("cx")), float(each.get("cy"))) for each in root.findall(f"{name}circle")
    ]
    assert (x < last_x, y < last_y) == (True, True)
    nearest = min(points, key=lambda point: abs(point[0] - x))
    assert y < nearest[1]  # 3.5 is above the training loss of 3.0 there
