"""How dispatches reach the device: what was only needed for a while comes back, and replays use their slots again."""

import numpy as np
import pytest
from helios_device import helios

from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_program import RecordedProgram


def test_programs_and_uploads_come_back_when_the_device_is_done_with_them() -> None:
    backend = helios()
    for number in range(30):
        doubled = backend.add(backend.from_numpy(np.full(7, number, np.float32)), float(number))
        assert backend.to_numpy(doubled).tolist() == [2.0 * number] * 7
    assert len(backend._running) <= 3
    assert len(backend.memory._returns) <= 3


def test_replays_use_the_same_slots_while_their_results_are_let_go() -> None:
    backend = helios()
    program = backend.record(lambda x: backend.multiply(x, 3.0))
    for number in range(20):
        result = program(backend.from_numpy(np.full(5, number, np.float32)))
        assert backend.to_numpy(result).tolist() == [3.0 * number] * 5
    assert len(program._slots) <= 2
    held = [program(backend.from_numpy(np.full(5, number, np.float32))) for number in range(6)]
    assert [backend.to_numpy(each)[0] for each in held] == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0]
    assert len(program._slots) >= 6


def test_operands_of_the_host_are_copied_by_the_program_itself_also_where_one_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the step for a piece of a prompt that draws nothing."""
    backend = helios()
    program = backend.record(lambda x, nothing: backend.multiply(x, 3.0))
    sent: list[int] = []
    submit = backend.device.submit
    monkeypatch.setattr(backend.device, "submit", lambda *programs: (sent.append(len(programs)), submit(*programs))[1])
    for number in range(3):
        operands = np.full(5, number, np.float32), np.zeros((5, 0), np.int32)
        result = program(*map(backend.from_numpy, operands))
        assert backend.to_numpy(result).tolist() == [3.0 * number] * 5
    assert sent == [1, 1, 1]


def test_a_program_that_is_forgotten_while_it_runs_keeps_what_it_reads_and_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = helios()
    program = backend.record(lambda x: backend.multiply(x, 3.0))
    program(backend.from_numpy(np.ones(5, np.float32)))
    (slot,) = program._slots
    used = slot.operands.address, slot._result.address
    with monkeypatch.context() as patched:
        spaces = backend.memory.upload_space, backend.memory.read_back_space
        done = slot.done
        patched.setattr(backend.device, "completed", lambda: done - 1)
        del program, slot
        assert [take(20).address == address for take, address in zip(spaces, used, strict=True)] == [False, False]
    backend.synchronize()
    assert [take(20).address == address for take, address in zip(spaces, used, strict=True)] == [True, True]


def test_a_small_result_is_written_where_the_host_reads_it_unless_others_use_it() -> None:
    backend = helios()
    store, x = backend.zeros((4,)), backend.from_numpy(np.arange(4, dtype=np.float32))

    def doubled(x: HeliosArray) -> HeliosArray:
        return backend.multiply(x, 2.0)

    def kept(x: HeliosArray) -> HeliosArray:
        y = doubled(x)
        backend.copy_into(store, y)
        return y

    for made, count in ((doubled, 1), (kept, 3)):
        program = backend.record(made)
        assert backend.to_numpy(program(x)).tolist() == [0, 2, 4, 6]
        assert isinstance(program, RecordedProgram)
        assert len(program._slots[0]._others) == count
    assert backend.to_numpy(store).tolist() == [0, 2, 4, 6]
