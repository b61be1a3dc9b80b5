"""perf/gpu.sh with parts that fail, hang or find nothing: what it runs, says and leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ALPHA = """
import json, os, sys
if sys.argv[1] == "devices":
    device = {"backend": "helios", "device": 0, "name": "Fake", "missing": [], "memoryBytes": 1 << 30}
    devices = [device, device | {"device": 1, "name": "Second"}]
    print(json.dumps({"devices": [each | {"kind": os.environ["KIND"]} for each in devices]}))
else:
    print("serve/gpt2-124m  shape             reps     median       ±            rate")
    print(f"decode_1         1 x 1 + 400 tokens  3  195.000 ms  0.1 ms  2,054 tokens/s")
    print(f"decode_8         8 x 1 + 400 tokens  3  195.000 ms  0.1 ms  {len(os.environ['ALPHA_RELAY'])}.5 tokens/s")
"""
PROMPT = '{"tokens": 512, "milliseconds": {"lowerQuartile": 2.7, "median": 2.84}, "busyMilliseconds": {"median": 1.0}}'
LEAVES_A_PROCESS = f"""
import pathlib, subprocess, sys, time
ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
left = subprocess.Popen([sys.executable, "-c", ignores], stdout=subprocess.PIPE)
left.stdout.readline()
print('{PROMPT}', flush=True)
pathlib.Path(__file__).with_name("left").write_text(str(left.pid))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script and an Alpha that has measured already."""
    folder = tmp_path / "checkout"
    (folder / "perf").mkdir(parents=True)
    (folder / "build_scripts").mkdir()
    shutil.copy(ROOT / "build_scripts" / "script.bash", folder / "build_scripts")
    for name in ("gpu.sh", "library.sh", "benchmark.py", "history.py", "ratio.py"):
        shutil.copy(ROOT / "perf" / name, folder / "perf")
    (folder / "alpha.py").write_text(ALPHA)
    (folder / "tests").mkdir()
    (folder / "pyproject.toml").write_text("")
    return folder


def begin(checkout: Path, *arguments: str, kind: str = "discrete") -> subprocess.Popen[str]:
    command = [str(checkout / "perf" / "gpu.sh"), f"--out={checkout / 'out'}", *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "KIND": kind}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=checkout.parent, stdout=pipe, stderr=pipe, text=True)


def run(checkout: Path, *arguments: str, kind: str = "discrete") -> tuple[int, list[str], str]:
    """The exit code, the lines that are printed, and the complaints."""
    process = begin(checkout, *arguments, kind=kind)
    said, complaints = process.communicate(timeout=120)
    return process.returncode, said.splitlines(), complaints


def change(checkout: Path, before: str, after: str) -> None:
    script = checkout / "perf" / "gpu.sh"
    assert script.read_text().count(before) == 1
    script.write_text(script.read_text().replace(before, after))


def is_alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_parts_are_listed_with_their_seconds_and_chosen_by_what_their_names_begin_with(checkout: Path) -> None:
    code, lines, complaints = run(checkout, "--list")
    assert (code, complaints) == (0, "")
    names = [line.split()[0] for line in lines]
    assert names[:2] == ["tests-inference", "serve-barriers"]
    assert len(names) == len(set(names)) == 13
    assert lines[4] == "train-f16        200 of 500 s  training steps in float16 beside PyTorch, with --torch"
    code, lines, _ = run(checkout, "--list", "tests", "serve-relay")
    assert [line.split()[0] for line in lines] == ["tests-inference", "serve-relay", "tests-rest"]
    assert not (checkout / "out").exists()


def test_results_are_printed_at_once_and_in_a_table(checkout: Path) -> None:
    code, lines, complaints = run(checkout, "serve-barriers", "serve-relay", "train", "learn-torch")
    assert (code, complaints) == (0, "")
    assert lines[0] == f"gpu: Fake; logs in {checkout / 'out'}"
    results = ["    decode_1 2,054 tokens/s", "    decode_8 3.5 tokens/s"]
    assert lines[1:4] == ["gpu: serve-barriers: an engine at work, gpt2-124m in float16", *results]
    table = lines[lines.index("") + 1 :]
    assert table[0].startswith("Fake, ")
    assert [line[:16].strip() for line in table[1:]] == [
        *("serve-barriers", "serve-relay", "train-f16", "train-f32", "train-large", "learn-torch"),
    ]
    assert table[1].endswith(" s  ok              decode_1 2,054 tokens/s; decode_8 3.5 tokens/s")
    assert table[2].endswith(" s  ok              decode_1 2,054 tokens/s; decode_8 2.5 tokens/s")
    assert table[3].endswith("left out        for want of --torch")
    assert table[6].endswith("left out        for want of --corpus")
    assert (checkout / "out" / "serve-relay.log").read_text().startswith("serve/gpt2-124m")


WRONG = "def test_wrong():\n    assert False\n"


def put_tests(checkout: Path, engine: str) -> None:
    for name in (
        "helios_relay",
        "helios_stages",
        "helios_orthogonal",
        "helios_matmul",
        "helios_attention",
        "helios_x",
        "backend_ops",
        "kernels",
    ):
        (checkout / "tests" / f"test_{name}.py").write_text("def test_right():\n    pass\n")
    (checkout / "tests" / "test_helios_engine.py").write_text(engine)
    change(checkout, "-rfE -n 4", "-rfE -n 2")


def test_names_of_tests_that_fail_are_kept(checkout: Path) -> None:
    put_tests(checkout, WRONG)
    code, lines, complaints = run(checkout, "tests")
    assert code == 1
    wrong = "tests/test_helios_engine.py::test_wrong"
    assert lines.count(f"    {wrong}") == 1
    assert f"gpu: error: failed with 1; the end of {checkout / 'out'}/tests-inference.log:" in complaints
    first, second = lines[-2:]
    assert first.startswith("tests-inference ")
    assert f"failed with 1   {wrong}; 1 failed, 5 passed in " in first
    assert second.startswith("tests-rest ")
    assert "ok              3 passed in " in second


def test_an_installed_pytest_benchmark_is_left_out(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns that it does nothing where tests run side by side, and warnings are errors here."""
    put_tests(checkout, "def test_right():\n    pass\n")
    (checkout / "plugin.py").write_text("def pytest_configure():\n    raise RuntimeWarning\n")
    (checkout / "plugin-1.dist-info").mkdir()
    (checkout / "plugin-1.dist-info" / "entry_points.txt").write_text("[pytest11]\nbenchmark = plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    code, lines, complaints = run(checkout, "tests-inference")
    assert code == 0, complaints
    assert "ok              6 passed in " in lines[-1]


@pytest.mark.slow
def test_names_of_tests_that_fail_are_kept_when_others_take_too_long(checkout: Path) -> None:
    put_tests(checkout, WRONG + "def test_long():\n    import time; time.sleep(300)\n")
    change(checkout, "part tests-inference 200 600", "part tests-inference 1 15")
    code, lines, _ = run(checkout, "tests-inference")
    assert code == 1
    assert lines[-1].endswith("out of time     tests/test_helios_engine.py::test_wrong")


@pytest.mark.parametrize(
    ("ends", "verdict", "code"),
    [
        ("time.sleep(300)", "out of time     512 tokens 2.84 ms", 1),
        ("", "ok              512 tokens 2.84 ms", 0),
        ("raise SystemExit('broken')", "failed with 1   512 tokens 2.84 ms", 1),
    ],
)
def test_a_part_leaves_no_process_behind_however_it_ends(checkout: Path, ends: str, verdict: str, code: int) -> None:
    (checkout / "perf" / "prefill.py").write_text(LEAVES_A_PROCESS + ends)
    change(checkout, "part serve-prompts 20 90", "part serve-prompts 1 3")
    found, lines, complaints = run(checkout, "serve-prompts")
    assert found == code, complaints
    assert verdict in lines[-1]
    assert ("broken" in complaints) == ("broken" in ends)
    assert not is_alive(int((checkout / "perf" / "left").read_text()))


def test_a_part_without_results_has_failed(checkout: Path) -> None:
    (checkout / "perf" / "prefill.py").write_text("print('nothing')")
    code, lines, complaints = run(checkout, "serve-prompts")
    assert code == 1
    assert lines[-1].rstrip().endswith("no result")
    assert complaints.endswith("prompts.log:\nnothing\n")


def test_no_part_is_begun_that_would_not_fit_and_none_goes_on_for_longer(checkout: Path) -> None:
    (checkout / "perf" / "prefill.py").write_text(LEAVES_A_PROCESS + "time.sleep(300)")
    change(checkout, "part serve-prompts 20 90", "part serve-prompts 1 90")
    start = time.monotonic()
    code, lines, _ = run(checkout, "--within=4", "serve-relay", "serve-prompts")
    assert time.monotonic() - start < 20
    assert code == 1
    assert "left out        it takes about 45 s, and " in lines[-2]
    assert "out of time     512 tokens 2.84 ms" in lines[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_shows_what_it_has(checkout: Path, number: signal.Signals, code: int) -> None:
    (checkout / "perf" / "prefill.py").write_text(LEAVES_A_PROCESS + "time.sleep(300)")
    process = begin(checkout, "serve-relay", "serve-prompts")
    left = checkout / "perf" / "left"
    deadline = time.monotonic() + 30
    while not (left.exists() and left.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code
    relay, prompts = said.splitlines()[-2:]
    assert "ok              decode_1" in relay
    assert prompts.rstrip().endswith("interrupted")
    assert not is_alive(int(left.read_text()))


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "message"),
    [
        (["--list", "serv"], "discrete", 2, "there is no part 'serv'; there are tests-inference, "),
        (["--fast"], "discrete", 2, "there is no option '--fast'; see --help."),
        (["--within=soon"], "discrete", 2, "--within must be a number of seconds, not 'soon'."),
        (["--corpus=/nowhere"], "discrete", 2, "perf/corpus_tokens.py has not written /nowhere."),
        (["serve"], "cpu", 1, "Fake is no GPU; with --processor this goes on all the same, and takes hours."),
    ],
)
def test_what_cannot_be_run_is_refused(
    checkout: Path, arguments: list[str], kind: str, code: int, message: str
) -> None:
    found, lines, complaints = run(checkout, *arguments, kind=kind)
    assert (found, lines) == (code, [])
    assert f"gpu: error: {message}" in complaints


def test_the_device_is_that_of_alphas_variable(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_DEVICE", "1")
    code, lines, _ = run(checkout, "serve-relay")
    assert (code, lines[0].partition(";")[0]) == (0, "gpu: Second")


def test_a_processor_is_measured_where_that_is_asked_for(checkout: Path) -> None:
    code, lines, _ = run(checkout, "--processor", "serve-relay", kind="cpu")
    assert (code, lines[0].partition(";")[0]) == (0, "gpu: Fake")
