"""The house rules that a reader relies on: the order of modules, their size, and documents that say what is there."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alpha"
NATIVE = ROOT / "native"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
LONGEST_MODULE = 700
LONGEST_FUNCTION = 80
TOP_LEVEL = {
    *("pyproject.toml", "alpha.py", "alpha", "native", "kernels", "build_scripts", "perf", "tests"),
    *("README.md", "ARCHITECTURE.md", "LICENSE", "CHANGELOG.md"),
}
IMPORT_NAMES = {"docopt-ng": "docopt"}


def documented_order() -> list[str]:
    """The modules as the README lists them."""
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"## The modules, in order\n.*?```\nalpha/\n(.*?)```", readme, re.DOTALL)
    assert tree, "the README has no tree of modules"
    lines = [re.fullmatch(r"  (\w+)\.py {2,}\S.*", line) for line in tree.group(1).splitlines()]
    assert all(lines), "a line of the README's tree is not `  module.py   comment`"
    return [line.group(1) for line in lines if line]


def imported_modules(source: str) -> Iterator[str]:
    """The modules of this package that a source text imports, wherever in the text it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "alpha":
            yield from (alias.name if alias.name in MODULES else "__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from ([node.module.split(".")[1]] if (node.module or "").startswith("alpha.") else [])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from ([(alias.name + ".__init__").split(".")[1]] if alias.name.split(".")[0] == "alpha" else [])


def outside_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
    return names - set(sys.stdlib_module_names) - {"alpha"}


def test_imports_are_found_wherever_they_are() -> None:
    source = """
from alpha import __version__, files
import alpha.rng
def later():
    from alpha.option import nearest
    import numpy
"""
    assert set(imported_modules(source)) == {"__init__", "files", "rng", "option"}
    assert outside_packages(source) == {"numpy"}


def test_the_readme_lists_exactly_the_modules_that_exist() -> None:
    listed = documented_order()
    assert sorted(listed) == MODULES
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module: str) -> None:
    order = documented_order()
    above = order[: order.index(module)]
    imported = set(imported_modules((PACKAGE / f"{module}.py").read_text()))
    assert sorted(imported - set(above)) == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short_and_explained(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert len(source.splitlines()) <= LONGEST_MODULE
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = [each.name for each in functions if (each.end_lineno or 0) - each.lineno >= LONGEST_FUNCTION]
    assert too_long == []


def test_the_files_of_the_sidecar_need_each_other_in_one_direction() -> None:
    """A file needs another when it names a function that the other one defines. Raises CycleError for a circle."""
    texts = {path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in NATIVE.glob("*.c")}
    defined = re.compile(r"^(?!static\b)(?:EXPORT )?\w[\w ]*?[ *]+(\w+)\([^;{]*\) \{$", re.MULTILINE)
    owners = {name: file for file, text in texts.items() for name in defined.findall(text)}
    assert {owners["helios_open"], owners["helios_submit"], owners["fail"]} == {"device.c", "program.c", "error.c"}
    needs = {
        file: {owners[word] for word in set(re.findall(r"\w+", text)) & owners.keys()} - {file}
        for file, text in texts.items()
    }
    assert list(graphlib.TopologicalSorter(needs).static_order())[-1] == "device.c"


def test_only_declared_packages_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    imported = set().union(*(outside_packages((PACKAGE / f"{module}.py").read_text()) for module in MODULES))
    assert sorted(imported) == sorted(IMPORT_NAMES.get(name, name) for name in declared)


def test_nothing_is_imported_by_a_computed_name_but_commands() -> None:
    users = [module for module in MODULES if "import_module" in (PACKAGE / f"{module}.py").read_text()]
    assert users == ["cli"]


def test_the_top_level_is_fixed() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {name.split("/")[0] for name in listing.splitlines()}
    assert sorted(name for name in entries - TOP_LEVEL if not name.startswith(".")) == []


def test_the_help_texts_in_the_readme_are_current() -> None:
    command = [sys.executable, "build_scripts/write_docs.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_scripts_can_be_run() -> None:
    scripts = [path for path in (ROOT / "build_scripts").iterdir() if not path.suffix and path.is_file()]
    scripts += [path for path in (ROOT / "perf").glob("*.sh") if path.name != "library.sh"]  # it is read by the others
    for script in [*scripts, ROOT / ".ci" / "run"]:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert 'exec "$(dirname "$0")/../build_scripts/test"' in (ROOT / ".ci" / "run").read_text()
