"""Worker processes: parts run beside the caller on common memory, errors reach it, and no process is left behind."""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

from alpha.errors import AlphaError
from alpha.workers import WorkerProcesses, shared_zeros

SECONDS = 10.0


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


class Counted:
    """Work that notes, for each part, how often it was done, by which process and on how many threads."""

    def __init__(self, parts: int) -> None:
        self.times, self.processes, self.threads = (shared_zeros((parts,), np.int64) for _ in range(3))
        self.workers = WorkerProcesses(self._work, parts)

    def _work(self, part: int, threads: int) -> None:
        self.times[part] += 1
        self.processes[part] = os.getpid()
        self.threads[part] = threads


def test_shared_memory_starts_as_zeros_of_the_shape_and_type() -> None:
    for shape in ((), (0,), (3,), (2, 3)):
        for dtype in (np.float32, np.float64, np.int32):
            array = shared_zeros(shape, dtype)
            assert (array.shape, array.dtype) == (shape, dtype)
            assert not array.any()
            array[...] = 1


@pytest.mark.parametrize("elements", [1 << 50, 1 << 70])
def test_memory_that_there_is_not_is_a_memory_error(elements: int) -> None:
    with pytest.raises(MemoryError, match=str(4 * elements)):
        shared_zeros((elements,), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_part_runs_once_on_as_many_processes_as_there_are_threads(threads: int, parts: int) -> None:
    work = Counted(parts)
    for repetition in range(1, 4):
        work.workers.run(threads)
        assert work.times.tolist() == [repetition] * parts
        assert work.processes[0] == os.getpid()
        count = min(threads, parts)
        assert len(set(work.processes.tolist())) == count
        assert work.threads.tolist() == [threads // count] * parts


def test_the_number_of_threads_may_change_between_runs() -> None:
    work = Counted(8)
    for threads in (1, 4, 2, 8, 1):
        work.workers.run(threads)
        assert len(set(work.processes.tolist())) == threads


def test_processes_see_what_changed_in_shared_memory_only() -> None:
    common, own, seen = shared_zeros((1,), np.int64), np.zeros(1, np.int64), shared_zeros((2, 2), np.int64)

    def work(part: int, threads: int) -> None:
        seen[part] = common[0], own[0]

    workers = WorkerProcesses(work, 2)
    for value in (1, 2):
        common[0] = own[0] = value
        workers.run(2)
        assert seen.tolist() == [[value, value], [value, 1]]


def test_they_end_when_the_work_is_forgotten() -> None:
    work = Counted(3)
    work.workers.run(3)
    processes = [process for process in work.processes.tolist() if process != os.getpid()]
    assert len(processes) == 2
    assert all(map(is_alive, processes))
    del work
    gc.collect()
    eventually(lambda: not any(map(is_alive, processes)))


def test_another_forked_process_does_not_end_them() -> None:
    work, other = Counted(2), shared_zeros((2,), np.int64)
    work.workers.run(2)
    helper = int(work.processes[1])

    def end_them(part: int, threads: int) -> None:
        if part == 1:
            for each in work.workers._helpers:  # as when its copy of them is forgotten
                each.end()
            other[part] = 1

    WorkerProcesses(end_them, 2).run(2)
    assert other.tolist() == [0, 1]
    work.workers.run(2)
    assert int(work.processes[1]) == helper


def test_they_end_when_the_calling_process_is_killed() -> None:
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        work = Counted(2)
        work.workers.run(2)
        os.write(writing, str(work.processes[1]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    helper = int(os.read(reading, 100))
    os.waitpid(middle, 0)

    def has_ended() -> bool:
        # Where nobody collects orphans, a process that has ended stays as a zombie.
        status = Path(f"/proc/{helper}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    eventually(has_ended)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("bad part"), (ValueError, RuntimeError)), (MemoryError("full"), MemoryError)]
)
def test_an_error_reaches_the_caller_and_the_next_run_works(
    failing: int, error: Exception, kind: type[Exception] | tuple[type[Exception], ...]
) -> None:
    fails, done = shared_zeros((1,), np.int64), shared_zeros((2,), np.int64)

    def work(part: int, threads: int) -> None:
        if fails[0] and part == failing:
            raise error
        done[part] += 1

    workers = WorkerProcesses(work, 2)
    for _ in range(3):
        fails[0] = 1
        with pytest.raises(kind, match=str(error)):
            workers.run(2)
        fails[0], done[:] = 0, 0
        workers.run(2)
        assert done.tolist() == [1, 1]


def test_a_process_that_is_gone_is_an_error_that_says_what_to_do() -> None:
    work = Counted(2)
    work.workers.run(2)
    os.kill(int(work.processes[1]), signal.SIGKILL)
    with pytest.raises(AlphaError, match="--threads=1"):
        work.workers.run(2)
    work.workers.run(2)
    assert len(set(work.processes.tolist())) == 2


def test_a_process_that_cannot_start_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    work = Counted(2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refuse)
        with pytest.raises(AlphaError, match=r"unavailable.*--threads=1"):
            work.workers.run(2)
        work.workers.run(1)
    work.workers.run(2)
    assert work.times.tolist() == [2, 2]


def test_signals_for_the_whole_group_do_not_end_them() -> None:
    work = Counted(2)
    work.workers.run(2)
    helper = int(work.processes[1])
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(helper, each)
    work.workers.run(2)
    assert int(work.processes[1]) == helper


def test_an_interrupt_while_the_caller_waits_leaves_the_work_usable() -> None:
    slow, done = shared_zeros((1,), np.int64), shared_zeros((2,), np.int64)

    def work(part: int, threads: int) -> None:
        if part == 1 and slow[0]:
            time.sleep(SECONDS)
        done[part] += 1

    workers = WorkerProcesses(work, 2)
    workers.run(2)
    slow[0] = 1
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.run(2)
    assert time.monotonic() - start < SECONDS / 2
    slow[0], done[:] = 0, 0
    workers.run(2)
    assert done.tolist() == [1, 1]


def test_they_hold_no_file_of_the_caller_open(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w"):
        work = Counted(3)
        work.workers.run(3)
        for process in set(work.processes.tolist()) - {os.getpid()}:
            opened = [each.readlink() for each in Path(f"/proc/{process}/fd").iterdir() if int(each.name) > 2]
            assert [str(each).partition(":")[0] for each in opened] == ["socket"]
