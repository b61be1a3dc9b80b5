"""Disks that refuse: full and read-only ones, for tests of what happens then."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` mounted on `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or os.geteuid() != 0:
        pytest.skip("mounting a tiny file system needs root: a really full disk is NOT tested here")
    result = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"mounting is not allowed ({result.stderr.strip()}): a really full disk is NOT tested here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only_folder(*contents: Path) -> Iterator[Path]:
    """A folder with copies of files that this process may read but not write to, root or not."""
    folder = Path(tempfile.mkdtemp())
    for content in contents:
        copy = folder / content.name
        copy.write_bytes(content.read_bytes())
        copy.chmod(0o444)
    folder.chmod(0o555)
    owner = os.geteuid()
    try:
        if owner == 0:
            os.seteuid(NOBODY)
        if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
            pytest.skip(f"{folder} is not open to others: a read-only folder is NOT tested here")
        yield folder
    finally:
        if owner == 0:
            os.seteuid(owner)
        folder.chmod(0o755)
        shutil.rmtree(folder)
