"""Which Alpha this is: the commit of the sources, and the facts of a built executable."""

import json
import subprocess
from pathlib import Path

import pytest

from alpha import __version__, installation
from alpha.cli import main
from alpha.errors import AlphaError


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    module = package / "__init__.py"
    module.write_text("")
    assert installation.commit_of(package) == "unknown"
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--quiet", "-m", "without the package")
    assert installation.commit_of(package) == "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "with it")
    git(tmp_path, "tag", "v1", "-m", "v1")
    assert installation.commit_of(package) == git(tmp_path, "rev-parse", "HEAD")[:12]
    module.write_text("changed")
    assert installation.commit_of(package) == git(tmp_path, "rev-parse", "HEAD")[:12] + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installation.commit_of(package) == "unknown"


def test_an_executable_is_asked_for_its_own_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (installation.IS_EXECUTABLE, installation.built()) == (False, "")
    monkeypatch.setattr(installation, "IS_EXECUTABLE", True)
    monkeypatch.setattr(installation, "FILES", tmp_path)
    (tmp_path / "build.json").write_text(json.dumps({"commit": "abc", "date": "2026-11-25", "version": "1"}))
    assert (installation.commit(), installation.built()) == ("abc", "2026-11-25")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "\xff"])
def test_facts_that_are_missing_are_an_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "build.json").write_text(content, encoding="latin-1")
    with pytest.raises(AlphaError, match="copy the executable's whole folder again"):
        installation.facts(tmp_path)


@pytest.mark.parametrize("built", ["", "2026-11-25T12:00:00+00:00"])
def test_the_version_says_what_this_is(
    built: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "built", lambda: built)
    monkeypatch.setattr(installation, "commit", lambda: "0123456789ab-dirty")
    assert main(["--version"]) == 0
    version, commit, origin, *backends = capsys.readouterr().out.splitlines()
    assert version == f"alpha {__version__}"
    assert commit.split(maxsplit=1) == ["commit", "0123456789ab-dirty"]
    assert origin.split(maxsplit=1) == (["built", built] if built else ["sources", str(installation.PACKAGE)])
    assert backends[0].split(maxsplit=1) == ["cpu_ref", "available"]
    name, state = backends[1].split(maxsplit=1)
    assert name == "helios"
    assert state.startswith(("available, ", "not available: "))
