"""When a run looks at the memory of a device, and what it says of it."""

import pytest

from alpha.backend_cpu_ref import CpuRef
from alpha.training_step import MemoryWatch


class Device(CpuRef):
    """A backend whose memory in use is the next of `used` at each look."""

    def __init__(self, used: list[int]) -> None:
        super().__init__()
        self.used = used

    def memory_in_use(self) -> tuple[int, int]:
        return self.used.pop(0), 1000


def test_the_first_step_reports_and_then_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_GPU_METRICS_SAMPLE_EVERY", "5")
    monkeypatch.setenv("ALPHA_ADAPTIVE_MEM_STATS_POLL_EVERY", "2")
    device = Device([10, 70, 90, 40, 50, 30, 20])
    watch = MemoryWatch(device)
    reports = {}
    for step in range(1, 12):
        watch.after_step()
        if report := watch.report():
            reports[step] = report
    assert reports == {
        1: {"gpuMemory": 10, "gpuMemoryPeak": 10, "gpuMemoryBudget": 1000},
        6: {"gpuMemory": 40, "gpuMemoryPeak": 90, "gpuMemoryBudget": 1000},
        11: {"gpuMemory": 20, "gpuMemoryPeak": 50, "gpuMemoryBudget": 1000},
    }
    assert device.used == []


def test_a_report_waits_for_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_GPU_METRICS_SAMPLE_EVERY", "2")
    watch = MemoryWatch(Device([1, 2]))
    for _ in range(3):
        watch.after_step()
    assert watch.report()["gpuMemory"] == 1
    watch.after_step()
    assert watch.report() == {}
    watch.after_step()
    assert watch.report()["gpuMemory"] == 2


def test_nothing_is_said_of_memory_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA_GPU_METRICS_SAMPLE_EVERY", "1")
    watch = MemoryWatch(CpuRef())
    watch.after_step()
    assert watch.report() == {}
