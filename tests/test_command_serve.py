"""alpha serve as a person starts and stops it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from exchange_models import make_checkpoint

from alpha.cli import main
from alpha.interrupt import SIGNALS

SCRIPT = [sys.executable, str(Path(__file__).resolve().parent.parent / "alpha.py"), "serve", "--backend=cpu_ref"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", "--backend=cpu_ref", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("alpha: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    path = make_checkpoint(tmp_path / "toy", "gpt2")
    command = [*SCRIPT, f"--checkpoint={path.parent}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {path.parent} at http://127.0.0.1:")
        with urllib.request.urlopen(f"{line.split()[-1]}/models", timeout=60) as answer:
            assert [each["id"] for each in json.load(answer)["data"]] == ["toy"]
        os.kill(process.pid, number)
        assert process.wait(60) == 0
        assert process.stdout.read() + process.stderr.read() == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_folder_without_runs_is_said_and_left_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*SCRIPT, f"--dir={tmp_path}", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"Serving the runs in {tmp_path}/ at http://127.0.0.1:")
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == f"alpha: There are no runs in {tmp_path}/ yet; those that will be there are served, too.\n"


def test_what_cannot_be_served_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_checkpoint(tmp_path / "toy", "gpt2")
    other = make_checkpoint(tmp_path / "other" / "toy", "gpt2")
    assert "names no model" in refused(capsys, "--checkpoint=,")
    assert "--cacheMemory must be a number of bytes or" in refused(capsys, "--cacheMemory=4X")
    assert "need 8,192 bytes at least" in refused(capsys, f"--checkpoint={path}", "--port=0", "--cacheMemory=7kB")
    assert "There is no file" in refused(capsys, "--checkpoint=nowhere", "--port=0")
    assert "Not a directory" in refused(capsys, f"--dir={path}", "--port=0")
    assert "No such file or directory" in refused(capsys, f"--dir={tmp_path}/misspelled", "--port=0")
    assert "same name, toy@10" in refused(capsys, f"--checkpoint={path},{other}", "--port=0")
    assert "Cannot listen at no.such.host.invalid" in refused(
        capsys, f"--checkpoint={path}", "--host=no.such.host.invalid"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(capsys, f"--checkpoint={path}", f"--port={port}")
    assert message == (
        f"alpha: error: Cannot listen at 127.0.0.1 port {port}: Address already in use. Choose another --port or "
        "--host.\n"
    )


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "alpha.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "run pip install '.[serve]' in Alpha's folder" in refused(capsys, "--checkpoint=toy")
