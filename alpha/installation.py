"""Which Alpha this is: the commit of its code, when it was built into an executable, if it was, and its compiled part.

A built executable finds the facts in `build.json` in its folder, which `build_scripts/exe` writes; sources are asked
for their git commit.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from alpha.errors import AlphaError

PACKAGE = Path(__file__).resolve().parent
IS_EXECUTABLE = "__compiled__" in globals()
"""Whether this is the built executable; Nuitka defines that name in what it compiles."""

FILES = PACKAGE.parent if IS_EXECUTABLE else PACKAGE
"""Folder of the package's files that are not Python. The executable has the package's name, so they lie beside it."""

FACTS = "build.json"


def missing_package(what: str, package: str, extra: str) -> AlphaError:
    """The error where a package is not there that only `what` needs, which pyproject.toml has among an extra's."""
    return AlphaError(f"{what} needs the package {package}: run pip install '.[{extra}]' in Alpha's folder.")


def command() -> list[str]:
    """What starts this Alpha once more, with further arguments after it."""
    if IS_EXECUTABLE:
        return [str(PACKAGE)]  # the executable has the package's name
    start = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from alpha.process import start; sys.exit(start())"
    )
    return [sys.executable, "-c", start]


def library_files() -> Sequence[Path]:
    """Where the native sidecar is, if it was built: named as Python names extensions."""
    return [FILES / f"_helios{suffix}" for suffix in EXTENSION_SUFFIXES]


def commit() -> str:
    """The git commit of this code, with "-dirty" when it has changes; "unknown" where git does not track it."""
    return facts(FILES)["commit"] if IS_EXECUTABLE else commit_of(PACKAGE)


def built() -> str:
    """When the executable was built, by the clock of its commit (ISO 8601); "" when sources are run."""
    return facts(FILES)["date"] if IS_EXECUTABLE else ""


def facts(folder: Path) -> dict[str, str]:
    """`commit` and `date` of the executable in `folder`. Raises AlphaError when the file that says so is not there."""
    path = folder / FACTS
    try:
        found = json.loads(path.read_bytes())
        return {name: str(found[name]) for name in ("commit", "date")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AlphaError(f"{path} cannot be read ({error}); copy the executable's whole folder again.") from error


def commit_of(folder: Path) -> str:
    """The git commit of the package in `folder`; see `commit`."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*arguments: str) -> str | None:
        command = [git, "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # no process can be started
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    is_tracked = ask("ls-files", "--error-unmatch", "__init__.py") is not None
    described = ask("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if is_tracked else None
    return described or "unknown"
