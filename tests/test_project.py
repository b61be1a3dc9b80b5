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
sys.path.insert(0, str(ROOT / "build_scripts"))

import write_docs  # noqa: E402  (not a package)

PACKAGE = ROOT / "alpha"
NATIVE = ROOT / "native"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
LONGEST_MODULE = 600
LONGEST_FUNCTION = 80
TOP_LEVEL = {
    *("pyproject.toml", "alpha.py", "alpha", "native", "kernels", "build_scripts", "perf", "tests"),
    *("README.md", "ARCHITECTURE.md", "LICENSE", "CHANGELOG.md"),
}
IMPORT_NAMES = {"docopt-ng": "docopt", "prometheus-client": "prometheus_client"}
BOUNDARIES = {
    "autograd": "ops",
    "braille": "run terminal",
    "backend_cpu_ref_kernels": "workers",
    "bench": "bench_cases",
    "checkpoint": "backend gpt autograd ops parameters",
    "config": "files backend",
    "conversation": "terminal line_input interactive",
    "dataset": "gpt sampler trainer",
    "domain": "datagen",
    "engine": "tokenizer corpus dataset files",
    "sampling_device": "engine gpt scheduler",
    "engine_steps": "engine tokenizer corpus files",
    "followed_files": "run",
    "gpt": "tokenizer corpus optimizer files",
    "lora": "gpt ops autograd backend files",
    "loss_mask": "tokenizer chat_format",
    "mixture": "gpt files",
    "optimizer": "gpt training_step",
    "run_metrics": "trainer training_step run_reader",
    "sampler": "files corpus dataset tokenizer gpt",
    "series": "run files",
    "trainer": "training_setup progress usage",
    "training_step": "sampler dataset files",
    "tui": "trainer training_step gpt engine backend",
    "tui_monitor": "tui",
    "tui_tables": "tui",
}
"""What a module that says what it knows nothing about does not import: modules, and all whose names begin so."""


def documented_order() -> list[str]:
    """The modules as ARCHITECTURE.md lists them."""
    return write_docs.listed((ROOT / "ARCHITECTURE.md").read_text())


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


def test_the_list_has_exactly_the_modules_that_exist() -> None:
    listed = documented_order()
    assert sorted(listed) == MODULES
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module: str) -> None:
    order = documented_order()
    above = order[: order.index(module)]
    imported = set(imported_modules((PACKAGE / f"{module}.py").read_text()))
    assert sorted(imported - set(above)) == []


@pytest.mark.parametrize("module", [each for each in MODULES if not each.startswith("backend_helios")])
def test_what_a_module_knows_nothing_about_it_does_not_import(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    docstring = " ".join((ast.get_docstring(ast.parse(source)) or "").lower().split())
    assert "knows nothing" not in docstring or module in BOUNDARIES, "say it only where this test enforces it"
    for unknown in BOUNDARIES.get(module, "").split():
        assert not [name for name in imported_modules(source) if name == unknown or name.startswith(f"{unknown}_")]


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
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["hub"], *extras["serve"], *extras["tui"]]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    imported = set().union(*(outside_packages((PACKAGE / f"{module}.py").read_text()) for module in MODULES))
    assert sorted(imported) == sorted(IMPORT_NAMES.get(name, name) for name in declared)


def test_nothing_is_imported_by_a_computed_name_but_commands() -> None:
    users = [module for module in MODULES if "import_module" in (PACKAGE / f"{module}.py").read_text()]
    assert users == ["cli"]


def test_the_top_level_is_fixed() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {name.split("/")[0] for name in listing.splitlines()}
    assert sorted(name for name in entries - TOP_LEVEL if not name.startswith(".")) == []


def test_the_list_of_modules_is_current() -> None:
    command = [sys.executable, "build_scripts/write_docs.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


DOCUMENT = "# A\n\n```\nalpha/\n  # all\n  one.py   what it was\n    for\n\n  two.py\n```\n\nEnd.\n"


def test_the_list_is_written_from_docstrings(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('"""One `thing` a.b: two; three. And more."""')
    (tmp_path / "two.py").write_text('"""' + "word " * 30 + '\n\nMore."""')
    document = DOCUMENT.replace("    for", " " * 34 + "for")
    written = write_docs.current(document, tmp_path)
    head, tail = "# A\n\n```\nalpha/\n  # all\n", "```\n\nEnd.\n"
    assert written.startswith(head + "  one.py".ljust(34) + "One thing a.b: two; three\n\n  two.py")
    assert written.endswith(" word\n" + tail)
    assert max(map(len, written.splitlines())) <= 120
    assert write_docs.current(written, tmp_path) == written
    assert write_docs.listed(written) == ["one", "two"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (DOCUMENT.replace("  two.py\n", ""), "lists two.py 0 times"),
        (DOCUMENT.replace("  two.py\n", "  two.py\n" * 2), "lists two.py 2 times"),
        (DOCUMENT.replace("  two.py\n", "  two.py\n  six.py\n"), "lists six.py, which is not there"),
        (DOCUMENT.replace("    for\n", "  for\n"), "'  for' in ARCHITECTURE.md is neither"),
        (DOCUMENT.replace("alpha/", "beta/"), "no list of modules"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, document: str, message: str) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text('"""What."""')
    with pytest.raises(SystemExit, match=re.escape(message)):
        write_docs.current(document, tmp_path)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


def test_scripts_can_be_run() -> None:
    scripts = [path for path in (ROOT / "build_scripts").iterdir() if not path.suffix and path.is_file()]
    scripts += [path for path in (ROOT / "perf").glob("*.sh") if path.name != "library.sh"]  # it is read by the others
    for script in [*scripts, ROOT / ".ci" / "run"]:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert 'exec "$(dirname "$0")/../build_scripts/test"' in (ROOT / ".ci" / "run").read_text()
