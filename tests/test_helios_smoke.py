"""The start-up test of the Vulkan backend: it passes here, and finds a kernel that computes something else."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from backend_case import Composition
from helios_device import helios, helios_in_pieces
from small_training import rows_of, train, write_corpus

from alpha import backend_helios, backends, cli
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import open_helios, smoke_test
from alpha.backend_helios_kernels import Kernel
from alpha.errors import UsageError


@pytest.mark.parametrize("precision", ["f32", pytest.param("f16", marks=pytest.mark.matrix_units), "bf16"])
def test_the_device_passes(precision: str) -> None:
    assert smoke_test(helios(precision), precision) == ""


def test_a_device_without_16_bit_numbers_computes_in_float32_and_in_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = helios().device_info
    plain = {each for each in info.features if "float" not in each and "matrix" not in each}
    without = dataclasses.replace(info, features=frozenset(plain))
    monkeypatch.setattr(backend_helios, "choose_device", lambda _: without)
    assert not open_helios(precision="f32").smoke_test_failed
    with pytest.raises(UsageError, match=r" has no float16; leave out --dtype=f16, or choose another --device\.$"):
        open_helios(precision="f16")


@pytest.mark.parametrize(
    ("kernel", "field", "change", "wrong"),
    [
        ("activation", "x", 16, "an activation"),
        ("activation_backward", "dy", 16, "an activation"),
        ("matmul", "depth", -1, "a matrix product"),
        ("attention_forward", "key", 16, "attention"),
        ("attention_backward", "gradient", 16, "attention"),
        ("norm", "epsilon", 0.01, "layer norm"),
        ("norm_backward", "dy", 16, "layer norm"),
        ("reduce", "terms", -1, "a sum"),
    ],
)
def test_a_kernel_that_is_given_something_else_is_found(
    kernel: str, field: str, change: float, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that is four elements off (GPUs round less away), one term too few, another constant."""
    pack = Kernel.pack

    def broken(self: Kernel, values: Mapping[str, Any]) -> bytes:
        changed = {field: values[field] + change} if self.name.startswith(kernel) and field in values else {}
        return pack(self, {**values, **changed})

    backend = helios()
    monkeypatch.setattr(Kernel, "pack", broken)
    assert smoke_test(backend, "f32").startswith(f"{wrong} differs from the CPU by ")


@pytest.mark.matrix_units
def test_wrong_products_of_pieces_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device has them; here rows seem to be shorter than they are."""
    backend = helios_in_pieces(monkeypatch)
    assert smoke_test(backend, "f32") == ""
    pack = Kernel.pack

    def broken(self: Kernel, values: Mapping[str, Any]) -> bytes:
        return pack(self, {**values, "columns": values["columns"] - 8} if self.name == "pieces" else values)

    monkeypatch.setattr(Kernel, "pack", broken)
    assert smoke_test(backend, "f32").startswith("a matrix product on matrix units differs from the CPU by ")


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_precision_needs_what_its_plain_kernels_require_and_no_more(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = helios(precision).device_info
    everything_but = dataclasses.replace(info, features=info.features - {"float16"})
    monkeypatch.setattr(backend_helios, "choose_device", lambda index: everything_but)
    with pytest.raises(UsageError, match=f"has no float16; leave out --dtype={precision}"):
        open_helios(precision=precision)
    monkeypatch.setattr(
        backend_helios, "choose_device", lambda index: dataclasses.replace(info, features=frozenset({"float16"}))
    )
    assert open_helios(precision=precision).precision == precision


class NotANumber(Composition):
    def sum_of_squares(self, x: Any) -> Any:
        return super().sum_of_squares(x) * math.nan


def test_a_result_that_is_not_a_number_is_found() -> None:
    assert smoke_test(NotANumber(), "f32").startswith("a sum differs from the CPU by nan ")


# --- what is done about it --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start-up test finds something, on the device that the tests share."""
    shared = helios()
    monkeypatch.setattr(shared, "smoke_test_failed", False)
    monkeypatch.setattr(backend_helios, "Helios", lambda *_: shared)
    monkeypatch.setattr(backend_helios, "smoke_test", lambda *_: "a sum differs from the CPU by 1")


@pytest.mark.usefixtures("broken")
def test_the_run_stops_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path)
    folder = tmp_path / "run"
    assert cli.main(["train", f"--data={corpus}", "--backend=helios", f"--runDir={folder}", "--tokenizer=char"]) == 3
    error = capsys.readouterr().err
    assert f"{helios().device_info.name} computes wrongly: a sum differs from the CPU by 1. A newer driver" in error
    assert "ALPHA_FAIL_ON_SMOKE_TEST=0 goes on regardless." in error
    assert not folder.exists()


@pytest.mark.usefixtures("broken")
def test_the_device_is_used_and_marked_when_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALPHA_FAIL_ON_SMOKE_TEST", "0")
    assert open_helios().smoke_test_failed
    assert "computes wrongly: a sum differs from the CPU by 1. Going on, because" in capsys.readouterr().err
    monkeypatch.setenv("ALPHA_CHECK", "1")
    assert backends.create("helios").smoke_test_failed


@pytest.mark.parametrize("failed", [False, True])
def test_the_metrics_of_a_marked_device_say_so(failed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuRef, "smoke_test_failed", failed)
    rows = rows_of(train(write_corpus(tmp_path), tmp_path / "run", iters=2))
    assert [row.get("smokeTest") for row in rows] == ["failed" if failed else None] * 2
