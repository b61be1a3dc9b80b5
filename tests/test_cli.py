"""The command line as a person or a script uses it: what is printed where, and the exit code."""

import ast
import contextlib
import errno
import importlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import write_corpus

from alpha import __version__, cli, environment, tokenizer_registry
from alpha.cli import COMMANDS, main
from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import AlphaError
from alpha.option import names_of, options_of
from alpha.run import Run

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ALPHA_")}
SCRIPT = [sys.executable, str(ROOT / "alpha.py")]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same is computed wherever the tests run."""
    monkeypatch.setattr("alpha.backend_helios_device.has_gpu", lambda: False)


def alpha(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *arguments], env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False
    )


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line on standard error of a command that must print nothing else."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("alpha: error: ")
    assert printed.err.count("\n") == 1
    return code, printed.err.removeprefix("alpha: error: ").rstrip("\n")


# --- finding the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_command_with_a_line_each(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in COMMANDS.items():
        assert any(line.split("  ")[1:] == [name, *line.split("  ")[2:]] and line.endswith(summary) for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--nonsense", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{COMMANDS[name]}\n\nUsage:\n  alpha {name}")
    assert max(map(len, printed.splitlines())) <= 100
    for options_class in cli._module(name).OPTIONS:
        for each in options_of(options_class):
            assert f"  --{each.flag}" in printed


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"alpha {__version__}\ncommit ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["devicse"], "Unknown command 'devicse'. Did you mean 'devices'?"),
        (["ENV"], "Unknown command 'ENV'. Did you mean 'env'?"),
        (["zzz"], f"Unknown command 'zzz'. Valid: {', '.join(sorted(COMMANDS))}."),
        ([""], None),
        (["a\nb\x1b[31m"], None),
        (["--verison"], "Unknown option '--verison'. Did you mean '--version'?"),
        (["--json", "env"], "Unknown option '--json'. Valid: --help, --version."),
        (["env", "--jsno"], "Unknown option '--jsno'. Did you mean '--json'?"),
        (["env", "--json=perhaps"], "--json must be true or false, not 'perhaps'."),
        (["env", "all"], "Unexpected argument 'all': options are written as --name=value. See alpha env --help."),
        (["env", "-j"], None),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = fails(capsys, *arguments)
    assert code == 2
    assert message is None or line == message
    assert "\x1b" not in line


# --- endings ----------------------------------------------------------------------------------------------------------


def replace_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(given: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("alpha.command_env"), "run", run)


def test_an_error_is_one_harmless_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_run(monkeypatch, AlphaError("Cannot read a\nb\x1b[2J."))
    assert fails(capsys, "env") == (1, "Cannot read a\\nb\\x1b[2J.")


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run(monkeypatch, AlphaError("No."))
    monkeypatch.setenv("ALPHA_DEBUG", "1")
    assert main(["env"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback ")
    assert printed.endswith("alpha: error: No.\n")


def test_an_interrupt_is_one_line_and_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_run(monkeypatch, KeyboardInterrupt())
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "alpha: interrupted\n"


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["env"])


@pytest.mark.parametrize(
    "command",
    ["import --from=@ --out=model", "import --from=model --out=@", "tokenizer build --input=text.txt --out=@",
     "sample --checkpoint=@", "bench --out=@", "runs --dir=@", "serve --dir=@", "merge --checkpoint=@ --out=model"],
)  # fmt: skip
def test_a_path_that_the_system_refuses_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, message = fails(capsys, *command.replace("@", "x" * 300).split())
    assert code == 1
    assert "x" * 300 in message


def test_a_reader_that_goes_away_ends_the_command_silently() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen([*SCRIPT, "env"], env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert process.communicate() == (None, "")
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["env", "train --data=text.txt --tokenizer=char --block=8 --showData=2"])
def test_output_that_cannot_be_written_is_an_error(command: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c d\n" * 200)
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*SCRIPT, *command.split()],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr == "alpha: error: Cannot write to standard output: No space left on device.\n"


@pytest.mark.parametrize("arguments", [["--version"], ["env", "--help"], ["env"], ["train", "--data=x"]], ids=" ".join)
def test_a_closed_standard_output_is_an_error_before_anything_is_done(arguments: list[str]) -> None:
    command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "alpha: error: Standard output is closed; where the result does not matter, add >/dev/null.\n"
    )


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | true"])
def test_what_standard_error_does_not_take_is_lost_and_the_result_is_not(redirected: str, tmp_path: Path) -> None:
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    (tmp_path / "out").touch()
    code = (
        "import sys; from alpha import cli; from alpha.process import start; from alpha.terminal import print_note\n"
        "def run(*_): print_note('aside'); open('done', 'w').close(); print('result')\n"
        "cli._run = run; sys.exit(start())"
    )
    command = [sys.executable, "-c", code, "env"]
    shell = f'"$@" {redirected}' if "|" in redirected else f'"$@" {redirected} >out'
    subprocess.run(["/bin/sh", "-c", shell, "sh", *command], cwd=tmp_path, env=variables, check=True)
    assert (tmp_path / "done").exists()
    assert (tmp_path / "out").read_text() == ("" if "|" in redirected else "result\n")


def test_the_terminals_encoding_may_lack_characters() -> None:
    result = alpha("env", PYTHONIOENCODING="ascii", PYTHONUTF8="1", ALPHA_CALLBACK_YIELD_EVERY="\N{SNOWMAN}")
    assert result.returncode == 2
    assert "\\u2603" in result.stdout
    assert result.stderr.startswith("alpha: error: The environment variable ALPHA_CALLBACK_YIELD_EVERY must be")


@pytest.mark.parametrize(
    ("context", "number"),
    [("contextlib.nullcontext", signal.SIGINT), ("interruptible", signal.SIGINT), ("interruptible", signal.SIGTERM)],
)
def test_an_interrupt_waits_until_an_import_is_done(context: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "as_numpy.py").write_text(
        "import os, time\ntry:\n    os.kill(os.getpid(), number)\n    time.sleep(0.05)\n"
        "except KeyboardInterrupt:\n    raise ImportError('the C extensions failed')\n".replace(
            "number", str(int(number))
        )
    )
    code = (
        "import contextlib, sys, time; from alpha import cli; from alpha.interrupt import interruptible\n"
        f"from alpha.process import start; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"def run(name, arguments):\n    with {context}():\n        import as_numpy\n        time.sleep(60)\n"
        "cli._run = run; sys.exit(start())"
    )
    command = [sys.executable, "-c", code, "env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "alpha: interrupted\n")


def test_no_process_and_no_thread_more_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "Another process or thread cannot start: this user or container has as many as it may have."
    for error in (
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
    ):
        replace_run(monkeypatch, error)
        assert fails(capsys, "env") == (1, limit)


def test_the_version_needs_no_other_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert main(["--version"]) == 0
    assert "commit   unknown\n" in capsys.readouterr().out


def test_an_interrupt_of_the_process() -> None:
    code = (
        "import sys, time; from alpha import cli, command_env\n"
        "def run(given): print('ready', flush=True); time.sleep(60)\n"
        "command_env.run = run; sys.exit(cli.main(['env']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "alpha: interrupted\n"
    assert process.returncode == 130


def test_an_interrupt_that_was_blocked_until_now_is_one_line() -> None:
    def interrupt_and_wait() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        os.kill(os.getpid(), signal.SIGINT)

    command = [sys.executable, str(ROOT / "alpha.py"), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=interrupt_and_wait)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "alpha: interrupted\n")


def test_an_interrupt_before_the_command_line_is_read() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'alpha.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from alpha.process import start; sys.exit(start())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "alpha: interrupted\n")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_standard_stream_that_is_closed_is_no_place_for_a_file(closed: tuple[int, ...], tmp_path: Path) -> None:
    code = (
        "import os, sys; from alpha import cli; from alpha.process import start\n"
        "def main():\n"
        "    names = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
        f"    with open({str(tmp_path / 'found')!r}, 'w') as file: file.write(str([file.fileno() > 2, names]))\n"
        "cli.main = main; sys.exit(start())"
    )
    command = [sys.executable, "-c", code]
    redirected = "".join(f" {number}>&-" for number in closed)
    subprocess.run(["/bin/sh", "-c", f'exec "$@"{redirected}', "sh", *command], cwd=ROOT, check=True)
    apart, names = ast.literal_eval((tmp_path / "found").read_text())
    assert apart
    assert [names[number] for number in closed] == [os.devnull] * len(closed)


# --- starting ---------------------------------------------------------------------------------------------------------


def test_help_starts_fast_because_it_imports_nothing_heavy() -> None:
    code = "import sys; from alpha.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stderr.split()}
    assert not loaded & {"numpy", "rich", "safetensors", "docopt", "dataclasses", "typing_extensions", "hypothesis"}
    own = {name for name in result.stderr.split() if name.startswith("alpha.")}
    assert own == {"alpha.cli", "alpha.errors", "alpha.terminal"}
    assert _processor_seconds(*SCRIPT, "--help") - _processor_seconds(sys.executable, "-c", "pass") < 0.04


def test_help_of_a_command_imports_neither_numpy_nor_rich() -> None:
    for name in set(COMMANDS) - {"datagen"}:  # whose options are declared beside its generators, which need numpy
        arguments = [*name.split(), "--help"]
        code = f"import sys; from alpha.cli import main; main({arguments}); print(*sys.modules, file=sys.stderr)"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert not {"numpy", "rich", "safetensors"} & set(result.stderr.split())


def test_only_what_needs_the_package_of_an_extra_asks_for_it(tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [
        re.split("[<>=]", each)[0].replace("-", "_") for extra in ("serve", "tui", "hub") for each in extras[extra]
    ]
    assert "jinja2" in names
    corpus, chats = write_corpus(tmp_path), tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you."}]
    chats.write_text(f"{json.dumps({'messages': turns})}\n" * 40)
    small = ["--backend=cpu_ref", "--layers=1", "--dim=8", "--heads=2", "--block=8", "--batch=2", "--iters=1"]
    run, tokenizer = str(tmp_path / "run"), str(tmp_path / "tokenizer.json")
    commands = [
        ["train", f"--data={corpus}", "--tokenizer=char", f"--runDir={run}", *small],
        ["sample", f"--checkpoint={run}", "--steps=2"],
        ["eval", f"--checkpoint={run}", f"--data={corpus}"],
        ["export", f"--checkpoint={run}", "--format=hf", f"--out={tmp_path / 'hf'}"],
        ["tokenizer", "build", f"--input={corpus}", f"--out={tokenizer}"],
        ["runs", f"--dir={tmp_path}"],
        ["train", f"--data={chats}", "--tokenizer=bpe-chat-4k", f"--runDir={tmp_path / 'chat'}", *small],
    ]
    block = f"import sys; sys.modules.update(dict.fromkeys({names}))"
    code = f"{block}; from alpha.cli import main; sys.exit(any([main(each) for each in {commands}]))"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    commands = [["train", f"--data={chats}", "--tokenizer=char", f"--runDir={tmp_path / 'plain'}", *small]]
    code = f"{block}; from alpha.cli import main; sys.exit(any([main(each) for each in {commands}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert "needs the package jinja2: run pip install '.[serve]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def _processor_seconds(*command: str) -> float:
    """The processor time, which other processes disturb less than the time, of the fastest of several runs."""
    # Compiled once and kept, also where the tests' own Python keeps nothing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_env_prints_every_variable_and_warns_of_misspelt_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_CALLBACK_YIELD_EVERY", "7")
    monkeypatch.setenv("ALPHA_DEBUGG", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["env"]) == 0
    printed = capsys.readouterr()
    # The lines of a row after its first begin in the column of the meanings.
    table, cache = printed.out.split("\n\n")
    rows = {line.split()[0]: line.split()[1:3] for line in table.splitlines()[1:] if not line.startswith(" ")}
    folders = ("XDG_CACHE_HOME", "XDG_STATE_HOME")
    assert rows.keys() == {*(each.name for each in environment.VARIABLES), *environment.TEXTS, *folders}
    assert re.fullmatch(r"Encoded corpora: 0\.0 MiB of at most 16384 MiB, 0 in .*/alpha/tokens\..*\n", cache)
    assert rows["ALPHA_CALLBACK_YIELD_EVERY"] == ["7", "25"]
    assert printed.err == (
        "alpha: warning: Alpha reads no environment variable ALPHA_DEBUGG. Did you mean 'ALPHA_DEBUG'?\n"
    )


def test_env_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_CALLBACK_YIELD_EVERY", "7")
    assert main(["env", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "value", "default", "meaning"} == rows[0].keys()
    assert [(row["value"], row["default"]) for row in rows if row["name"] == "ALPHA_CALLBACK_YIELD_EVERY"] == [(7, 25)]


def test_env_shows_a_bad_value_and_refuses_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_CALLBACK_YIELD_EVERY", "\x1b[31moften")
    assert main(["env"]) == 2
    printed = capsys.readouterr()
    assert "\\x1b[31moften" in printed.out
    assert printed.err.startswith("alpha: error: The environment variable ALPHA_CALLBACK_YIELD_EVERY must be a whole")


def test_a_bad_debug_variable_is_refused_by_every_command() -> None:
    result = alpha("--version", ALPHA_DEBUG="x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "alpha: error: The environment variable ALPHA_DEBUG must be a whole number, not 'x'.\n"


def test_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert main(["devices", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    device, *others = described["devices"]
    assert device["backend"] == "cpu_ref"
    assert 0 < device["cores"] <= (os.cpu_count() or 1)
    assert 0 < device["availableBytes"] <= device["memoryBytes"]
    assert device["blas"][0]["threads"] >= 1
    assert main(["devices"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert device["processor"] in printed.out
    assert device["blas"][0]["coreType"] in printed.out
    assert all(other["name"] in printed.out for other in others)
    assert described["note"]
    assert described["note"].split(".")[0] in printed.out


def test_devices_warns_of_forced_kernels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert main(["devices"]) == 0
    assert capsys.readouterr().err.startswith("alpha: warning: OPENBLAS_CORETYPE=Haswell is set")


def test_runs_of_an_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["runs", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"There are no runs in {tmp_path}; alpha train makes one.\n"
    assert main(["runs", f"--dir={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: one finished its 3 steps, one has lost its numbers to a value that is not finite."""
    for name, rows in (
        ("first", [{"step": 2, "loss": 2.5}, {"step": 3, "loss": 1.25, "valLoss": 1.5, "tokens_per_sec": 12_345.6}]),
        ("second\x1b[31m", [{"step": 1, "loss": math.nan}]),
    ):
        with Run.create(ModelConfig(), TrainingConfig(iters=3), tmp_path / name) as run:
            for row in rows:
                run.add_metrics(row)
    return tmp_path


def test_runs_are_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--dir={runs}"]) == 0
    printed = capsys.readouterr().out
    heading, *rows = printed.splitlines()
    assert heading.split() == ["run", "status", "step", "of", "loss", "val", "loss", "tokens/s", "updated"]
    by_name = {row.split()[0]: row.split()[1:-2] for row in rows}
    assert by_name == {
        "first": ["interrupted", "3", "3", "1.2500", "1.5000", "12,346"],
        "second\\x1b[31m": ["interrupted", "1", "3"],
    }
    assert "\x1b" not in printed


def test_what_a_file_says_fits_its_column(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 10**3999, "loss": 1e308, "valLoss": -1e300, "tokens_per_sec": 1e307}
    (runs / "first" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    os.utime(runs / "first" / "metrics.jsonl", (10**12, 10**12))
    assert main(["runs", f"--dir={runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 160


def test_runs_are_listed_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--dir={runs}", "--json"]) == 0
    listed = {each["runId"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed.keys() == {"first", "second\x1b[31m"}
    first = listed["first"]
    assert (first["step"], first["iters"], first["loss"], first["valLoss"]) == (3, 3, 1.25, 1.5)
    assert (first["status"], first["folder"]) == ("interrupted", str(runs / "first"))
    assert listed["second\x1b[31m"]["loss"] is None


@pytest.mark.parametrize("file_format", ["alpha", "tokenizer.json"])
def test_a_tokenizer_is_built_written_and_described(
    file_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat " * 50)
    out = tmp_path / "tokenizer.json"
    arguments = ["tokenizer", "build", f"--input={corpus}", "--vocab-size=270", f"--out={out}", "--json"]
    assert main([*arguments, f"--format={file_format}"]) == 0
    described = json.loads(capsys.readouterr().out)
    tokenizer = tokenizer_registry.load(out)
    assert (described["vocabSize"], described["digest"]) == (tokenizer.vocab_size, tokenizer.digest())
    assert described["vocabSize"] <= 270
    assert ("format" in json.loads(out.read_text())) == (file_format == "alpha")
    assert main(["tokenizer", "build", f"--input={corpus}", "--type=char", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(rf"Wrote {out}: char, 1\d tokens, from 1 file in \d+\.\d s\.\n", printed)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "alpha tokenizer build needs --input=PATHS: Corpus"),
        (["--input=FILE"], 2, "alpha tokenizer build needs --out=FILE: "),
        (["--input=FILE", "--out=OUT", "--type=chr"], 2, "Unknown tokenizer 'chr'. Did you mean 'char'?"),
        (["--input=FILE", "--out=OUT", "--type=char", "--vocabSize=9"], 2, "The tokenizer char has one token per"),
        (["--input=FILE", "--out=OUT"], 1, "There is no file or folder 'FILE'"),
        (["--input=FILE", "--out=."], 1, "--out=. is a folder"),
    ],
)
def test_a_tokenizer_that_cannot_be_built(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, line = fails(capsys, "tokenizer", "build", *arguments)
    assert failed == code
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("train", 2, "Say what to train on with --data=PATHS"),
        ("train --data=c.txt --tokeniser=char", 2, "Unknown option '--tokeniser'. Did you mean '--tokenizer'?"),
        ("train --data=c.txt --dim=100 --heads=8", 2, "--dim=100 is not a multiple of --heads=8"),
        ("train --data=c.txt --domain=novel", 2, "There is no domain 'novel'. Did you mean 'novels'?"),
        ("train --data=c.txt --lr=fast", 2, "--lr must be a number, not 'fast'."),
        ("train --data=c.txt --config=none.json", 1, "Cannot read the configuration none.json: No such file"),
        ("train --resume=none", 1, "There is no file, folder or run 'none'"),
        ("sample", 2, "alpha sample needs --checkpoint=RUN"),
        ("sample --checkpoint=none", 1, "There is no file, folder or run 'none'"),
        ("sample --checkpoint=c.txt", 1, "c.txt is not a whole safetensors file"),
        ("sample --checkpoint=c.txt --beam=2 --n=2", 2, "--beam searches for one text"),
        ("eval --checkpoint=none", 2, "alpha eval needs --data=PATHS"),
        ("eval --checkpoint=none --data=c.txt", 1, "There is no file, folder or run 'none'"),
        ("datagen --out=x.txt", 2, "--domain is missing"),
        ("datagen --out=x.txt --domain=abd", 2, "There is no domain 'abd'. Did you mean 'abc'?"),
        ("datagen --out=x.txt --mode=corpus --sources=none", 2, "--sources: there is no file or folder none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: str,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("text")
    failed, line = fails(capsys, *arguments.split())
    assert failed == code
    assert line.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("command", ["train", "sample", "eval", "bench"])
def test_where_to_compute_and_on_how_many_threads_is_chosen_unless_it_is_said(command: str) -> None:
    declared = names_of(each for kind in cli._module(command).OPTIONS for each in options_of(kind))
    assert (declared["backend"].default, declared["threads"].default) == ("auto", 0)


def test_from_a_corpus_to_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(command: str) -> str:
        assert main(command.split()) == 0
        result = capsys.readouterr()
        assert "\x1b" not in result.out + result.err
        return result.out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert json.loads(printed("datagen --domain=chords --size=20kB --out=chords.txt --json"))["bytes"] >= 20_000
    Path("settings.json").write_text('{"block": 16, "layers": 1, "dim": 8, "heads": 2, "batch": 2, "iters": 9}')
    options = "--config=settings.json --tokenizer=char --steps=3 --eval-iters 1 --min-tokens-per-param=0"
    assert "Backend: cpu_ref, since there is no GPU" in printed(f"train --data=chords.txt {options} --runDir=runs/b")
    assert "To see what it writes" in printed(f"train --data=chords.txt {options} --runDir=runs/a")
    assert "Resuming runs/a after step 3 of 5" in printed("train --resume=a --iters=5")
    run, _ = sorted(json.loads(printed("runs --json")), key=lambda each: str(each["runId"]))
    assert (run["runId"], run["status"], run["step"], run["iters"]) == ("a", "finished", 5, 5)
    sampled = json.loads(printed("sample --checkpoint=a --prompt=Key --steps=4 --n=2 --json"))
    assert (sampled["step"], sampled["prompt"], len(sampled["texts"])) == (5, "Key", 2)
    assert main(["sample", "--checkpoint=a", "--steps=4", "--json"]) == 0
    assert capsys.readouterr().err == "alpha: Backend: cpu_ref, since there is no GPU that Alpha can use.\n"
    assert main(["sample", "--checkpoint=a", "--steps=4", "--topk=1"]) == 0
    output = capsys.readouterr()
    assert (output.out.count("\n"), "decode" in output.out, "decode" in output.err) == (1, False, True)
    (greedy,) = json.loads(printed("sample --checkpoint=a --steps=9 --temp=0 --json"))["texts"]
    for search in ("", "--beam=2"):
        (whole,) = json.loads(printed(f"sample --checkpoint=a --steps=9 --temp=0 {search} --json"))["texts"]
        stop = whole[2:4]
        stopped = printed(f"sample --checkpoint=a --steps=9 --temp=0 {search} --stop=~~ --stop={stop} --json")
        assert not search or json.loads(stopped)["texts"][0].count(stop) == 0
        assert search or json.loads(stopped)["texts"] == [greedy[: greedy.index(stop)]]
    assert main(["sample", "--checkpoint=a", "--steps=1", f"--prompt={'K' * 20}", "--n=2"]) == 0
    assert "20 tokens and the model's context holds 16, so the first 4 do not count" in capsys.readouterr().err
    begun = "sample --checkpoint=a --json --stopAtEnd=false --prompt=Key"
    full, fourteen, fifteen = (
        json.loads(printed(f"{begun} {more}"))["texts"] for more in ("--slide=false", "--steps=14", "--steps=15")
    )
    assert full == fourteen != fifteen  # three tokens, and of the last one nothing is read
    (unlike,) = json.loads(printed(f"{begun} --steps=4 --temp=0 --repetitionPenalty=100"))["texts"]
    assert len(set("Key" + unlike)) == 7
    assert json.loads(printed(f"{begun} --steps=9 --temp=1 --minp=1"))["texts"] == [
        json.loads(printed(f"{begun} --steps=9 --temp=0"))["texts"][0]
    ]
    for wrong, message in (("--stop=", "--stop must be text"), ("--beam=2 --repetitionPenalty=2", "--beam searches")):
        assert main(["sample", "--checkpoint=a", *wrong.split()]) == 2
        assert message in capsys.readouterr().err
    evaluated = json.loads(printed("eval --checkpoint=a --data=chords.txt --nBatches=2 --json"))
    assert evaluated["perplexity"] == pytest.approx(math.exp(evaluated["loss"]))
    assert printed("eval --checkpoint=a --data=chords.txt --evalIters=2").startswith(f"loss {evaluated['loss']:.4f} ")


# --- any arguments ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def inert_commands() -> Any:
    """Commands that are read as ever and then do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in COMMANDS:
            patch.setattr(cli._module(name), "run", lambda given: None)
        yield


FLAGS = sorted({each.flag for name in COMMANDS for kind in cli._module(name).OPTIONS for each in options_of(kind)})
WORDS = st.one_of(
    st.sampled_from([word for name in COMMANDS for word in name.split()]),
    st.sampled_from(["-h", "--help", "--version", "--", "-", "--json", "5", "-1", "true", "1e400", ""]),
    st.sampled_from(FLAGS).map(lambda flag: f"--{flag}"),
    st.builds(lambda flag, value: f"--{flag}={value}", st.sampled_from(FLAGS), st.text(max_size=5) | st.integers()),
    st.text(st.characters(), max_size=6),
)


@given(st.sampled_from(sorted(COMMANDS)), st.lists(WORDS, max_size=6), st.booleans())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_no_arguments_give_a_traceback(name: str, words: list[str], with_command: bool) -> None:
    out, err = io.StringIO(), io.StringIO()
    with inert_commands(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*name.split(), *words] if with_command else words)
    assert code in (0, 2)
    assert err.getvalue().count("\n") == (1 if code else 0)
    assert err.getvalue() == "" or err.getvalue().startswith("alpha: error: ")


def test_ctrl_c_in_the_middle_of_a_class_statement_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_given: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("alpha.cli._dispatch", interrupted)
    assert main(["runs"]) == 130
    assert capsys.readouterr().err == "alpha: interrupted\n"
