"""A copy of the checkout to which a toy is added, as somebody adds a real thing: a test counts what that costs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("alpha", "kernels", "build_scripts")

Edits = Mapping[str, Sequence[tuple[str, str]]]
"""By file: before what, and the lines that are added there; nothing stands before those of a new file."""


def copy_of_checkout(folder: Path) -> Path:
    """What runs Alpha and makes its kernels, copied to a folder that is empty."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "alpha.py", folder)
    tools = ROOT / ".cache" / "kernel_tools"
    if tools.exists():
        (folder / ".cache").mkdir()
        (folder / ".cache" / "kernel_tools").symlink_to(tools)
    return folder


def add(checkout: Path, edits: Edits) -> None:
    """Make the edits; what each stands before must be there exactly once."""
    for name, places in edits.items():
        path = checkout / name
        text = path.read_text() if path.exists() else ""
        for before, lines in places:
            assert text.count(before) == 1 if before else not text, f"{name}: {before!r}"
            text = text.replace(before, lines + before) if before else lines
        path.write_text(text)


def places(edits: Edits) -> int:
    """How many places somebody has to know to make the edits."""
    return sum(map(len, edits.values()))


def lines(edits: Edits) -> int:
    return sum(added.count("\n") for each in edits.values() for _, added in each)


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments in the checkout, whose modules come first."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'build_scripts'}", "COLUMNS": "100"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


COMPILE = """
import sys
import kernel_bundle, kernel_compiler, kernel_manifest
compiler = kernel_compiler.find("glslc")
for kernel in kernel_manifest.read():
    if kernel.name in sys.argv[1:] and compiler:
        kernel_bundle.compile_variant(kernel.variants[0], compiler, None)
"""
"""A program that compiles the first variant of each named kernel, where there is a compiler."""
