"""The tests of the sidecar once more, with its C code watched by AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c11", "-g", "-O1", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
def test_no_error_of_memory_and_no_undefined_behaviour(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("NO C COMPILER, so the sidecar cannot be built with sanitizers here")
    shutil.copytree(ROOT / "alpha", tmp_path / "alpha", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = tmp_path / "alpha" / ("_helios" + sysconfig.get_config_var("EXT_SUFFIX"))
    sources = sorted((ROOT / "native").glob("*.c"))
    built = subprocess.run(
        [compiler, *FLAGS, "-o", library, *sources, "-ldl", "-lm", "-pthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"THE C COMPILER HAS NO SANITIZERS, so the sidecar is not tested with them here: {built.stderr}")
    command = [compiler, "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    variables = {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": runtime,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and Mesa keep much until the process ends
    }
    names = ("test_helios_device.py", "test_helios_faults.py", "test_rows.py", "test_training_rows.py")
    tests = [str(ROOT / "tests" / name) for name in names]
    used = "import alpha.backend_helios_device as module; print(module.library_files()[0], module._library()._name)"
    for arguments in (["-c", used], ["-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_timeout", *tests]):
        result = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert arguments[0] != "-c" or result.stdout.split() == [str(library)] * 2
