"""The scripts of a first visit say what is missing, in a line that names the package to install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "build_scripts").mkdir()
    shutil.copy(ROOT / "build_scripts" / "environment", tmp_path / "build_scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def put_python(checkout: Path, name: str, body: str) -> None:
    script = checkout / "bin" / name
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)


def environment(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}"}
    command = [str(checkout / "build_scripts" / "environment"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_an_old_python_is_named(checkout: Path) -> None:
    for name in PYTHONS:
        run_as_old = f"{sys.executable} -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])'"
        put_python(checkout, name, f'test "$1" = --version && echo Python 3.9.2 || exec {run_as_old} "$2"')
    result = environment(checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "environment: error: Alpha needs Python 3.11 or newer, but there is Python 3.9.2; "
        "on Debian or Ubuntu: sudo apt-get install python3.11-venv.\n"
    )


def test_a_missing_venv_module_is_named_with_its_package(checkout: Path) -> None:
    for name in PYTHONS:
        put_python(checkout, name, "exit 1")
    put_python(checkout, "python3.12", 'case $2 in *ensurepip*) exit 1 ;; *"%d.%d"*) echo 3.12 ;; esac')
    result = environment(checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("on Debian or Ubuntu: sudo apt-get install python3.12-venv.\n")
    assert "python3.12 cannot make virtual environments" in result.stderr


def test_an_unknown_argument_is_refused(checkout: Path) -> None:
    result = environment(checkout, "production")
    assert result.returncode == 1
    assert result.stderr == "environment: error: unknown argument 'production'; there are 'dev' and 'exe'.\n"


def test_an_environment_that_is_up_to_date_is_left_alone(checkout: Path) -> None:
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f"VIRTUAL_ENV={checkout}/.venv\n")
    put_python(checkout, "../.venv/bin/python", 'test "$2" = ""')
    for name in PYTHONS:
        put_python(checkout, name, "exit 1")
    project = (checkout / "pyproject.toml").read_text()
    stamp = subprocess.run(["cksum"], input=project, capture_output=True, text=True, check=True).stdout
    (checkout / ".venv" / "installed-dev").write_text(stamp)
    for arguments in ((), ("dev",)):
        result = environment(checkout, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    (checkout / "pyproject.toml").write_text("changed")
    assert environment(checkout).returncode == 1
