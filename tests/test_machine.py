"""What the computer offers, as the kernel's files say it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alpha import machine

Give = Callable[..., None]
MISSING = Path("/none")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_kernel_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CPU_INFO", "_MEMORY_INFO", "_MEMORY_LIMIT", "_MEMORY_USED", "_MEMORY_KINDS", "_CPU_LIMIT"):
        monkeypatch.setattr(machine, name, MISSING)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Give:
    def write(**files: str) -> None:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
            monkeypatch.setattr(machine, name, tmp_path / name)

    return write


def test_a_system_without_such_files_still_has_an_answer() -> None:
    assert machine.processor()
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
    total, available = machine.memory()
    assert total == available > 0


def test_the_processors_name(give: Give) -> None:
    give(_CPU_INFO="processor\t: 0\nmodel name\t: Fast CPU: 9000\n\nprocessor\t: 1\nmodel name\t: other\n")
    assert machine.processor() == "Fast CPU: 9000"


@pytest.mark.parametrize(("limit", "cores"), [("50000 100000", 0.5), ("max 100000", None), ("9900000 100000", None)])
def test_a_control_groups_time_limits_the_cores(limit: str, cores: float | None, give: Give) -> None:
    unlimited = machine.usable_cores()
    give(_CPU_LIMIT=f"{limit}\n")
    assert machine.usable_cores() == (cores or unlimited)


def test_memory_of_the_whole_machine(give: Give) -> None:
    total, _ = machine.memory()
    give(_MEMORY_INFO="MemTotal: 9 kB\nMemAvailable:    2048 kB\n", _MEMORY_LIMIT="max\n", _MEMORY_USED="77\n")
    assert machine.memory() == (total, 2048 * 1024)


def test_memory_within_a_control_group(give: Give) -> None:
    give(
        _MEMORY_INFO=f"MemAvailable: {GIB} kB\n",
        _MEMORY_LIMIT="1000000\n",
        _MEMORY_USED="700000\n",
        _MEMORY_KINDS="anon 300000\ninactive_file 400000\n",
    )
    assert machine.memory() == (1_000_000, 700_000)


def test_numpys_linear_algebra_is_described() -> None:
    (blas, *_) = machine.blas_libraries()
    assert blas.threads >= 1
    assert blas.name
