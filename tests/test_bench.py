"""Benchmarks: the statistics, the table of cases, the rows that come out, and the comparison with another program."""

import collections
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helios_device import helios

from alpha import bench, bench_cases, bench_operations, command_bench
from alpha.backend_cpu_ref import CpuRef
from alpha.bench import Case, Limits, Measurement, Work
from alpha.bench_cases import Subject
from alpha.cli import main
from alpha.command_bench import SUITES
from alpha.engine import Engine, Generation, Request
from alpha.errors import AlphaError

ROOT = Path(__file__).resolve().parent.parent
TINY = Subject(layers=2, heads=2, dim=8, block=6, batch=3, vocabulary=11)
ONCE = Limits(repetitions=2, seconds=0.0, threads=1)
FIELDS = {
    *("suite", "case", "shape", "dtype", "threads", "repetitions", "medianSeconds", "deviationSeconds", "rate", "unit"),
    *(
        "callsPerStep",
        "loadAverage",
        "commit",
        "date",
        "processor",
        "cores",
        "backend",
        "warmUpSeconds",
        "numpy",
        "blas",
        "coreType",
    ),
}


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "median", "deviation"),
    [([100.0, 1.0, 9.0, 2.0, 4.0], 4.0, 3.0), ([3.0, 1.0], 2.0, 1.0), ([5.0], 5.0, 0.0), ([1.0, 1.0, 8.0], 1.0, 0.0)],
)
def test_median_and_deviation(values: list[float], median: float, deviation: float) -> None:
    assert bench.median_and_deviation(values) == (median, deviation)


@pytest.mark.parametrize(
    ("limits", "count"),
    [(Limits(100, 10.0), 5), (Limits(4, 10.0), 4), (Limits(100, 1.0), 3), (Limits(2, 1.0), 2), (Limits(100, 8.0), 4)],
)
def test_repetitions_end_by_number_or_by_time_but_not_before_three(limits: Limits, count: int) -> None:
    calls: list[int] = []
    # A repetition takes 2 seconds of this clock, the third one 3.
    clock = iter([0.0, 2.0, 4.0, 7.0, 9.0, 11.0])
    seconds = bench.repetitions(lambda: calls.append(1), limits, lambda: next(clock))
    assert len(calls) == count
    assert seconds == [2.0, 2.0, 3.0, 2.0, 2.0][:count]


@pytest.mark.parametrize(
    ("amount", "unit", "rate"), [(3e9, "GFLOP/s", 1.5), (4e9, "GB/s", 2.0), (1e6, "MB/s", 0.5), (500, "tokens/s", 250)]
)
def test_rates(amount: float, unit: str, rate: float) -> None:
    case = Case("ops/a/b", Work("1", amount, unit, lambda backend: lambda: None))
    assert Measurement(case, 1, 3, 2.0, 0.1, 0.0).rate == rate


class TwoSpeeds(CpuRef):
    """Pretends to have three numbers of threads to choose from."""

    def thread_choices(self) -> list[int]:
        return [1, 2, 3]


@pytest.mark.parametrize(("asked", "used"), [(0, 2), (3, 3)])
def test_the_fastest_number_of_threads_is_used_unless_one_is_given(asked: int, used: int) -> None:
    backend = TwoSpeeds()
    work = Work("1", 1, "tokens/s", lambda _: lambda: time.sleep(0.001 if backend.threads == 2 else 0.004))
    [found] = bench.measure([Case("ops/a/b", work)], backend, Limits(2, 0.0, asked))
    assert (found.threads, found.repetitions) == (used, 2)
    assert found.median >= (0.001 if used == 2 else 0.004)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_case_has_a_name_of_its_own_a_known_suite_and_an_amount() -> None:
    cases = bench_cases.all_cases()
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert {case.suite for case in cases} == set(SUITES) - {"all"}
    assert all(case.work.amount > 0 and case.work.unit in bench.UNITS for case in cases)


def tiny_cases() -> list[Case]:
    return [
        *bench_cases.operation_cases("tiny", TINY),
        *bench_cases.other_operation_cases("tiny", TINY),
        *bench_cases.end_to_end_cases("tiny", TINY),
        *bench_cases.serving_cases("tiny", TINY),
        Case("train/tiny", bench_cases.training_step(TINY)),
        *(Case(f"e2e/tokenizer/{name}", bench_cases.tokenizer(name, 2000)) for name in bench_cases.TOKENIZERS),
    ]


def test_every_kind_of_case_gives_a_row_with_all_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(bench, "_TRIAL_SECONDS", 0.0)
    backend = CpuRef()
    circumstances = bench.circumstances(backend)
    cases = tiny_cases()
    rows = [circumstances | each.row() for each in bench.measure(cases, backend, ONCE)]
    assert [row["case"] for row in rows] == [case.name for case in cases]
    for row in json.loads(json.dumps(rows, allow_nan=False)):
        assert row.keys() == FIELDS
        assert (row["backend"], row["threads"], row["repetitions"]) == ("cpu_ref", 1, 2)
        assert row["medianSeconds"] > row["deviationSeconds"] >= 0
        assert row["rate"] >= 0
        assert row["shape"]
        assert row["coreType"]


def test_a_device_is_kept_busy_for_half_a_second_after_the_first_time_which_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = 0.0, []

    def repeat() -> None:
        nonlocal now
        now += 0.1 if calls else 3.0
        calls.append(now)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    backend = CpuRef()
    monkeypatch.setattr(backend, "name", "helios")
    bench._warm_up(repeat, backend, threads=1)
    assert calls[-1] - calls[0] >= 0.5
    assert bench.circumstances(backend)["warmUpSeconds"] == 0.5


def test_amounts_are_the_operations_that_the_formula_needs() -> None:
    works = bench_operations.linear(2, 3, 5)
    assert {half: work.amount for half, work in works.items()} == {"forward": 60, "backward": 120}
    works = bench_operations.attention(2, 4, 3, 5)
    assert works["forward"].amount == 2 * (2 * 2 * 3 * 4 * 4 * 5) / 2
    assert bench_operations.cross_entropy(2, 3, 5)[""].amount == 3 * 60
    assert bench_operations.adamw_update(10)[""].amount == 280
    assert bench_operations.layer_norm(2, 3)["backward"].amount == 72
    assert bench_operations.activation(2, 6, "swiglu")["forward"].amount == 4 * 2 * (6 + 3)


class Counting(CpuRef):
    """Counts the calls of some operations, and the elements that those of the optimizer work on."""

    COUNTED = (
        *("linear", "linear_backward", "layer_norm", "layer_norm_backward", "attention", "attention_backward"),
        *("cross_entropy", "gather_rows", "scatter_add_rows", "add"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in Counting.COUNTED:
            return attribute

        def counted(*arguments: Any, **options: Any) -> Any:
            is_scalar = name == "add" and np.size(arguments[0]) <= 1
            self.counts[name] += not is_scalar
            return attribute(*arguments, **options)

        return counted

    def adamw_update(self, parameter: Any, *arguments: Any) -> None:
        self.counts["adamw_update"] += parameter.size
        super().adamw_update(parameter, *arguments)


def test_the_table_has_the_operations_of_a_training_step_as_often_as_a_step_does_them() -> None:
    backend = Counting()
    run_step = bench_cases.training_step(TINY).prepare(backend)
    backend.counts.clear()
    run_step()
    cases = bench_cases.operation_cases("tiny", TINY)
    calls = {case.name.removeprefix("ops/tiny/"): case.calls_per_step for case in cases}
    linear = ("attention_input", "attention_output", "feed_forward_input", "feed_forward_output")
    assert backend.counts == {
        "linear": sum(calls[f"{each}.forward"] for each in linear),
        "linear_backward": sum(calls[f"{each}.backward"] for each in linear),
        "layer_norm": calls["layer_norm.forward"],
        "layer_norm_backward": calls["layer_norm.backward"],
        "attention": calls["attention.forward"],
        "attention_backward": calls["attention.backward"],
        "cross_entropy": calls["cross_entropy"],
        "gather_rows": calls["embedding.forward"],
        "scatter_add_rows": calls["embedding.backward"],
        "add": calls["position.forward"] + calls["add_gradients"],
        "adamw_update": calls["adamw_update"] * TINY.parameters,
    }


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_model_that_is_served_is_stored_as_one_that_is_loaded(precision: str) -> None:
    backend = helios(precision)
    model, trained = (TINY.model(backend, trained).parameters for trained in (False, True))
    assert model["wte.weight"].data.itemsize == 2 and trained["wte.weight"].data.itemsize == 4
    rounded = backend.cast(trained["wte.weight"].data, backend.weight_dtype)
    assert backend.to_numpy(rounded).tobytes() == backend.to_numpy(model["wte.weight"].data).tobytes()


def test_decoding_counts_the_tokens_that_are_made() -> None:
    work = bench_cases.decode(TINY, sequences=3)
    drawn = work.prepare(CpuRef())()
    assert isinstance(drawn, list)
    assert sum(len(each) for each in drawn) == work.amount == 3 * (TINY.block - 1)


def test_texts_are_continued_with_the_likeliest_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    class Watched(Engine):
        def submit(self, request: Request) -> Generation:
            asked.append(request)
            return super().submit(request)

    monkeypatch.setattr(bench_cases, "Engine", Watched)
    cases = {case.name: case.work for case in bench_cases.serving_cases("tiny", TINY)}
    cases["serve/tiny/decode_8"].prepare(CpuRef())()
    assert [(each.sampling.temperature, each.max_tokens) for each in asked] == [(0.0, TINY.block // 2)] * 8
    assert cases["serve/tiny/decode_8"].amount == 8 * (TINY.block // 2)


def test_no_prompt_that_is_measured_is_found_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Engine] = []

    class Watched(Engine):
        def step(self) -> None:
            engines.append(self)
            super().step()

    monkeypatch.setattr(bench_cases, "Engine", Watched)
    subject = Subject(layers=2, heads=2, dim=8, block=40, batch=3, vocabulary=11)
    repeat = bench_cases.served(subject, 2, subject.block, 1).prepare(CpuRef())
    for _ in range(3):
        repeat()
    assert engines[-1].reused_tokens == 0


def test_the_text_of_the_tokenizers_has_the_bytes_that_are_counted() -> None:
    texts = bench_cases._prose(5000)
    assert len("".join(texts).encode()) == 5000


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_same_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    out = tmp_path / "new" / "rows.json"
    chosen = ["--suite=ops", "--match=cpu-quickstart/add_gradients", "--iters=3"]
    assert main(["bench", *chosen, "--json", f"--out={out}"]) == 0
    printed = capsys.readouterr()
    [row] = json.loads(printed.out)
    assert [row] == json.loads(out.read_text())
    assert row.keys() == FIELDS
    assert (row["case"], row["repetitions"]) == ("ops/cpu-quickstart/add_gradients", 3)
    assert "OPENBLAS_CORETYPE=Haswell is set" in printed.err
    assert main(["bench", *chosen, "--threads=2"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row["commit"]] in [line[1:] for line in words if line[:1] == ["commit"]]
    [found] = [line for line in words if line[:1] == ["add_gradients"]]
    assert found[1:4] == ["512x64", "2", "3"]


@pytest.mark.parametrize("form", ["--json", "--threads=1"])
def test_what_was_measured_stays_when_the_rest_is_cut_off(
    form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(cases: list[Case], *_: object) -> Iterator[Measurement]:
        for case in cases[:2]:
            yield Measurement(case, 1, 3, 0.25, 0.01, 0.0)
        raise AlphaError("Cut off.")

    monkeypatch.setattr(bench, "measure", cut_off)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    out = tmp_path / "rows.json"
    assert main(["bench", "--suite=ops", "--match=cpu-quickstart/", f"--out={out}", form]) == 1
    printed = capsys.readouterr()
    assert printed.err == "alpha: error: Cut off.\n"
    rows = json.loads(out.read_text())
    assert [row["case"].rpartition("/")[2] for row in rows] == ["embedding.forward", "embedding.backward"]
    if form == "--json":
        assert json.loads(printed.out + "]") == rows
        assert [json.loads(line.rstrip(",")) for line in printed.out.splitlines()[1:]] == rows
        return
    heading, first, second = printed.out.splitlines()[-3:]
    assert [line.split()[0] for line in (heading, first, second)] == [
        "ops/cpu-quickstart",
        *("embedding." + each for each in ("forward", "backward")),
    ]
    assert heading.index("median") + len("median") == first.index("250.000 ms") + len("250.000 ms")
    assert first.index("250.000 ms") == second.index("250.000 ms")


@pytest.mark.parametrize(
    ("match", "subjects"),
    [("train/chars10m", ["chars10m"]), ("train/chars", ["chars10m-b8", "chars10m"]), ("350m", ["gpt2-350m"])],
)
def test_a_whole_name_chooses_one_case_and_a_part_of_one_all_that_have_it(match: str, subjects: list[str]) -> None:
    chosen = command_bench._chosen(command_bench.BenchOptions(match=match, backend="helios"))
    assert [case.name for case in chosen] == [f"train/{each}" for each in subjects]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--suite=opps"], 2, "--suite cannot be 'opps'. Did you mean 'ops'?"),
        (["--suite=e2e", "--match=add"], 2, "No case of --suite=e2e has 'add' in its name; leave out --match."),
        (["--iters=0"], 2, "--iters must be at least 1, not 0."),
        ([f"--out={ROOT}"], 1, f"--out={ROOT} is a folder; name a file in it."),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", None)
    assert main(["bench", *options]) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"alpha: error: {message}\n")


def test_a_busy_machine_is_said_to_be_busy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: [])
    for load, is_busy in ((3.14159, True), (0.1, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert main(["bench", "--suite=train", "--json"]) == 0
        assert ("The load average is 3.14:" in capsys.readouterr().err) == is_busy


# --- the comparison with another program ------------------------------------------------------------------------------

FAKE_PEER = """
import json, os, sys
assert "OPENBLAS_CORETYPE" not in os.environ and "OPENBLAS_L2_SIZE" not in os.environ
_, device, mode, config = sys.argv
assert (device, config) == ("--cpu", "cpu-quickstart")
speed = {"1": 1000.0, "2": 500.0}[os.environ["OMP_NUM_THREADS"]]
print("a line that does not matter", file=sys.stderr)
print(json.dumps({"config": config, "mode": mode, "params": PARAMETERS, "tok_s": speed}))
"""


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """perf/peer.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("peer", ROOT / "perf" / "peer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module  # where its dataclasses look their types up
    spec.loader.exec_module(module)
    return module


def side(peer: ModuleType, name: str, rates: dict[int, list[float]]) -> Any:
    return peer.Side(name, lambda threads: {"rate": 1.0}, rates)


def test_each_side_runs_on_its_fastest_number_of_threads(peer: ModuleType) -> None:
    one = side(peer, "alpha", {1: [100.0], 2: [95.0], 4: [80.0]})
    one.keep_near_the_fastest()
    assert one.rates == {1: [100.0], 2: [95.0]}
    one.rates[1].append(60.0)
    one.rates[2].append(99.0)
    assert (one.threads, one.best) == (2, [95.0, 99.0])
    one.rates[1] += [100.0]
    assert (one.threads, one.best) == (1, [100.0, 60.0, 100.0])


def test_a_comparison_gives_the_rounds_ratios(peer: ModuleType) -> None:
    alpha = side(peer, "alpha", {1: [120.0, 100.0, 150.0]})
    other = side(peer, "fp32", {1: [50.0, 40.0, 60.0], 2: [100.0, 100.0, 100.0]})
    found = peer.compare(alpha, other, is_quiet=True)
    assert found == {
        "mode": "fp32",
        **{"alphaTokensPerSecond": 120.0, "alphaThreads": 1, "peerTokensPerSecond": 100.0, "peerThreads": 2},
        **{"ratio": 1.2, "leastRatio": 1.0, "greatestRatio": 1.5, "verdict": "no difference beyond the spread"},
    }
    assert peer.compare(alpha, other, is_quiet=False)["verdict"] == "none: other processes were busy"


@pytest.mark.parametrize(
    ("least", "greatest", "verdict"),
    [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.9, 1.1, "no difference beyond the spread")],
)
def test_verdicts(peer: ModuleType, least: float, greatest: float, verdict: str) -> None:
    assert peer.verdict(least, greatest) == verdict


def test_busy_cores_are_those_of_other_processes(peer: ModuleType) -> None:
    code = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.2)
        assert peer.busy_cores(0.5) > 0.8
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def run_peer(tmp_path: Path, program: str, *options: str, load: float = 9.0) -> tuple[int, list[str], str]:
    """Exit code, lines printed and errors of the comparison with a program that pretends to be a peer."""
    script = tmp_path / "fake.py"
    script.write_text(program)
    code = (
        f"import os, sys; os.getloadavg = lambda: ({load}, 0, 0); sys.argv[0] = {str(ROOT / 'perf' / 'peer.py')!r}\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    fixed = ["--python", sys.executable, "--peer", str(script), "--config=cpu-quickstart", "--mode=a", "--seconds=0"]
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_L2_SIZE": "1"}  # no machine of today
    done = subprocess.run(
        [sys.executable, "-c", code, *fixed, *options],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_whole_comparison(tmp_path: Path) -> None:
    program = FAKE_PEER.replace("PARAMETERS", str(bench_cases.SUBJECTS["cpu-quickstart"].parameters))
    code, lines, errors = run_peer(tmp_path, program, "--rounds=1", "--threads=1,2", "--even-if-busy")
    assert (code, errors) == (0, "")
    assert lines[0] == "load average of the last minute: 9.00"
    result = json.loads(lines[-1])
    assert result["config"] == "cpu-quickstart"
    assert result["coreType"] != "Nehalem"
    [found] = result["comparisons"]
    assert (found["mode"], found["peerTokensPerSecond"], found["peerThreads"]) == ("a", 1000.0, 1)
    assert found["ratio"] == pytest.approx(found["alphaTokensPerSecond"] / 1000.0, rel=1e-3)
    assert found["verdict"] == "none: other processes were busy"
    assert f"{found['ratio']:.3f}" in lines[-2]


def test_a_busy_machine_is_not_measured(tmp_path: Path) -> None:
    code, lines, errors = run_peer(tmp_path, "raise SystemExit(1)", load=0.5)
    assert (code, lines) == (1, ["load average of the last minute: 0.50"])
    assert "other processes are busy" in errors


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (FAKE_PEER.replace("PARAMETERS", "7"), "cpu-quickstart has 7 parameters there, 110,336 here."),
        ('print(\'{"error": "no compiler"}\')', "no compiler"),
        ("print('no JSON')", "ended with 0: no JSON"),
        ("print('{}'); raise SystemExit('broken')", "ended with 1: {}"),
    ],
)
def test_a_peer_that_fails_is_reported(peer: ModuleType, tmp_path: Path, program: str, message: str) -> None:
    script = tmp_path / "fake.py"
    script.write_text(program)
    with pytest.raises(peer.RunError, match=message):
        peer.run_peer(sys.executable, str(script), "cpu-quickstart", "a", 1)
