"""The choice of a number of threads, with a clock that the test sets."""

from collections.abc import Callable

import pytest

from alpha import thread_choice
from alpha.backend_cpu_ref import CpuRef
from alpha.thread_choice import ROUNDS, ThreadChoice


class Machine(CpuRef):
    """A backend whose work takes as long as `seconds` says for a number of threads and a repetition."""

    def __init__(self, seconds: Callable[[int, int], float], choices: list[int]) -> None:
        super().__init__()
        self.used: list[int] = []
        self.now = 100.0
        self._seconds = seconds
        self._choices = choices

    def thread_choices(self) -> list[int]:
        return self._choices

    def work(self) -> None:
        self.now += self._seconds(self.threads, len(self.used))
        self.used.append(self.threads)


def repeat(machine: Machine, choice: ThreadChoice, times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work so often; returns the reports."""
    monkeypatch.setattr(thread_choice.time, "perf_counter", lambda: machine.now)
    reports = []
    for _ in range(times):
        with choice.measured():
            machine.work()
        reports.append(choice.report())
    return [report for report in reports if report]


@pytest.mark.parametrize("fastest", [1, 2, 4])
def test_the_fastest_is_found_in_rounds_and_kept(fastest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, _: 0.01 if threads == fastest else 0.02, [1, 2, 4])
    reports = repeat(machine, ThreadChoice(machine), 16, monkeypatch)
    assert machine.used == [1, *(ROUNDS * [1, 2, 4]), *(6 * [fastest])]
    figures = ", ".join(f"{count}: {'10.0' if count == fastest else '20.0'} ms" for count in (1, 2, 4))
    assert reports == [f"Fastest number of threads here: {fastest} ({figures})."]


def test_the_first_repetition_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # One thread is the fastest but for the first repetition, which would move the median of 1, 1 and 3 from 1 to 2.
    machine = Machine(
        lambda threads, repetition: 1.5 if threads == 2 else {0: 9.0, 5: 3.0}.get(repetition, 1.0), [1, 2]
    )
    repeat(machine, ThreadChoice(machine), 10, monkeypatch)
    assert machine.threads == 1


def test_one_disturbed_repetition_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, repetition: 9.0 if repetition == 4 else 3.0 - threads, [1, 2])
    repeat(machine, ThreadChoice(machine), 10, monkeypatch)
    assert machine.used[4] == 2
    assert machine.threads == 2


def test_a_machine_that_grows_slower_meets_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, repetition: (3.0 - threads) * 1.3**repetition, [1, 2])
    repeat(machine, ThreadChoice(machine), 10, monkeypatch)
    assert machine.threads == 2


def test_a_requested_number_is_taken_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, _: 1.0 / threads, [1, 2, 4])
    assert repeat(machine, ThreadChoice(machine, requested=3), 20, monkeypatch) == []
    assert machine.used == [3] * 20


def test_where_there_is_no_choice_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, _: 1.0, [1])
    assert repeat(machine, ThreadChoice(machine), 5, monkeypatch) == []
    assert machine.used == [1] * 5


def test_work_that_fails_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, _: 3.0 - threads, [1, 2])
    choice = ThreadChoice(machine)
    repeat(machine, choice, 1, monkeypatch)
    with pytest.raises(ZeroDivisionError), choice.measured():
        raise ZeroDivisionError
    assert len(repeat(machine, choice, 10, monkeypatch)) == 1
    assert machine.threads == 2
