"""Too little memory on the device: found before the first step where it can be, and said so that one can act on it."""

import re
from pathlib import Path
from typing import Any

import pytest
from helios_device import helios
from small_training import RecordingDisplay, begin, rows_of, train, write_corpus
from test_training_step import MODEL, make_step

from alpha import backends
from alpha.backend_helios_device import Device, MemoryKind, OutOfDeviceMemory
from alpha.backend_helios_memory import DEVICE_BLOCK, DeviceMemory
from alpha.errors import AlphaError

LARGE_BATCH = 20_000
"""So many sequences do not fit the memory that the tests' backend has already taken."""


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers use the device that the tests share."""
    backend = helios()
    monkeypatch.setattr(backends, "create", lambda *_: backend)


def refused(tmp_path: Path, **options: Any) -> str:
    """The error of a run with a step that is too large, of which nothing was run or saved."""
    run, trainer = begin(write_corpus(tmp_path), tmp_path / "run", model=MODEL, backend="helios", **options)
    with run, pytest.raises(AlphaError, match=r"Nothing of the run .* is saved yet\.$") as caught:
        trainer.train(run)
    assert rows_of(run.folder) == []
    return str(caught.value)


@pytest.mark.usefixtures("shared")
def test_the_plan_is_said_before_the_first_step(tmp_path: Path) -> None:
    display = RecordingDisplay()
    train(write_corpus(tmp_path), tmp_path / "run", display, model=MODEL, backend="helios", iters=2, eval_interval=0)
    [plan] = [each for each in display.messages if each.startswith("Device memory")]
    number = r"(\d+\.\d) MiB"
    found = re.fullmatch(
        rf"Device memory: {number}, of which {number} weights, {number} gradients, {number} optimizer, "
        rf"{number} activations\.",
        plan,
    )
    assert found
    whole, *parts = map(float, found.groups())
    assert whole == pytest.approx(sum(parts), abs=0.25)


def test_the_plan_counts_every_array() -> None:
    step = make_step(backend=helios())
    weights = 4 * step.model.parameters.size
    plan = step.plan(4)
    assert plan.pop("activations") > 4 * MODEL.layers * 4 * MODEL.block * MODEL.dim
    assert plan == {"weights": weights, "gradients": weights, "optimizer": 2 * weights + 8}  # two moments, two powers
    assert make_step().plan(4) == {}


@pytest.mark.usefixtures("shared")
def test_a_step_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "memory", lambda _: (900 << 20, 895 << 20))
    monkeypatch.setattr(Device, "submit", None)
    found = re.match(
        r"There is no memory for a step; use a smaller --batch with more --accumSteps, or --recompute, or "
        r"--dtype=f16\. ([\d,.]+) MiB more of the device's memory are needed, but of the 900\.0 MiB that this process "
        r"may use 5\.0 MiB are free: ([\d,.]+) MiB are missing\. Nothing",
        refused(tmp_path, batch=LARGE_BATCH),
    )
    assert found
    needed, missing = (float(each.replace(",", "")) for each in found.groups())
    assert needed - missing == pytest.approx(5.0, abs=0.11)


@pytest.mark.usefixtures("shared")
def test_a_step_that_the_driver_refuses_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OutOfDeviceMemory("vkAllocateMemory returned VK_ERROR_OUT_OF_DEVICE_MEMORY.")

    monkeypatch.setattr(Device, "allocate", refuse)
    assert refused(tmp_path, batch=LARGE_BATCH, recompute=True).startswith(
        "There is no memory for a step; use a smaller --batch with more --accumSteps, or --dtype=f16. vkAllocateMemory "
        "returned VK_ERROR_OUT_OF_DEVICE_MEMORY. Nothing"
    )


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = helios()
    monkeypatch.setattr(backends, "create", lambda *_: backend)
    monkeypatch.setattr(backend, "memory", DeviceMemory(backend.device))
    monkeypatch.setattr(Device, "memory", lambda _: (900 << 20, 900 << 20))
    with pytest.raises(AlphaError, match=r"no memory for a model of [\d,]+ parameters; make it smaller\. .* 0\.0 MiB "):
        begin(write_corpus(tmp_path), tmp_path / "run", model=MODEL, backend="helios")


def test_when_memory_is_short_unused_blocks_go_back_and_no_more_than_needed_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = helios().device
    memory, taken = DeviceMemory(device), []
    allocate = device.allocate

    def watched(size: int, kind: MemoryKind = MemoryKind.DEVICE) -> Any:
        taken.append(size)
        return allocate(size, kind)

    monkeypatch.setattr(device, "allocate", watched)
    monkeypatch.setattr(device, "free", lambda each: taken.append(-each.bytes))
    monkeypatch.setattr(device, "memory", lambda: (1 << 30, (1 << 30) - (DEVICE_BLOCK << 1) + sum(taken)))
    first = memory.allocate(1000)
    del first
    second, third = memory.allocate(DEVICE_BLOCK + 256), memory.allocate(DEVICE_BLOCK - 256)
    assert taken == [DEVICE_BLOCK, -DEVICE_BLOCK, DEVICE_BLOCK + 256, DEVICE_BLOCK - 256]
    with pytest.raises(OutOfDeviceMemory, match=r"^0\.0 MiB more .* of the 1,024\.0 MiB .* 0\.0 MiB are missing"):
        memory.allocate(256)
    del second, third
    memory.allocate(256)
