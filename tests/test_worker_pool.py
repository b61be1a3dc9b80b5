"""The worker pool: each part runs once, errors reach the caller, and nothing is left behind."""

import signal
import threading
import time
import weakref
from concurrent.futures import Executor

import numpy as np
import pytest
from waiting import eventually

from alpha import workers
from alpha.errors import AlphaError
from alpha.workers import WorkerPool, available_cpus

SECONDS = 10.0


def raise_on_a_helper(pool: WorkerPool, error: BaseException) -> None:
    """Run two parts side by side, the one on a helper raising `error`."""
    both_run = threading.Barrier(2, timeout=SECONDS)
    caller = threading.current_thread()

    def work(part: int) -> None:
        both_run.wait()
        if threading.current_thread() is not caller:
            raise error

    pool.run(work, [0, 1])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_every_part_runs_exactly_once(threads: int, count: int) -> None:
    taken = np.zeros(count, np.int64)

    def take(part: int) -> None:
        taken[part] += 1

    WorkerPool(threads).run(take, range(count))
    assert (taken == 1).all()


def test_parts_run_side_by_side() -> None:
    together = threading.Barrier(3, timeout=SECONDS)
    names = []

    def work(part: int) -> None:
        together.wait()
        names.append(threading.current_thread().name)

    WorkerPool(3).run(work, range(3))
    assert len(set(names)) == 3


def test_one_thread_runs_everything_in_order_on_the_calling_thread() -> None:
    seen = []
    WorkerPool(1).run(lambda part: seen.append((part, threading.current_thread())), range(5))
    assert seen == [(part, threading.current_thread()) for part in range(5)]


def test_no_more_threads_start_than_there_is_work_for() -> None:
    def alpha_workers() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name.startswith("alpha-worker")}

    before = alpha_workers()
    pool = WorkerPool(4)
    pool.run(lambda part: None, range(1))
    assert alpha_workers() == before
    pool.run(lambda part: None, range(2))
    assert len(alpha_workers() - before) == 1
    for _ in range(3):
        pool.run(lambda part: None, range(50))
    assert len(alpha_workers() - before) == 3
    assert all(each.daemon for each in alpha_workers())  # so that they never keep the process from ending


def test_many_small_jobs_are_quick() -> None:
    pool = WorkerPool(2)
    counter = np.zeros(4, np.int64)

    def count(part: int) -> None:
        counter[part] += 1

    start = time.monotonic()
    for _ in range(2000):
        pool.run(count, range(4))
    assert (counter == 2000).all()
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [ValueError("bad part"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_error_reaches_the_caller_and_the_pool_stays_usable(threads: int, error: BaseException) -> None:
    pool = WorkerPool(threads)

    def fail(part: int) -> None:
        if part == 3:
            raise error

    for _ in range(3):
        with pytest.raises(type(error)) as raised:
            pool.run(fail, range(10))
        assert raised.value is error
        done = []
        pool.run(done.append, range(10))
        assert sorted(done) == list(range(10))


@pytest.mark.parametrize("error", [ValueError("bad part"), KeyboardInterrupt()], ids=repr)
def test_an_error_on_a_helper_reaches_the_caller(error: BaseException) -> None:
    pool = WorkerPool(2)
    for _ in range(3):  # the helper must survive its own error
        with pytest.raises(type(error)) as raised:
            raise_on_a_helper(pool, error)
        assert raised.value is error


def test_the_caller_waits_for_the_others_before_it_raises() -> None:
    failed, finished = threading.Event(), threading.Event()
    caller = threading.current_thread()
    both_run = threading.Barrier(2, timeout=SECONDS)

    def work(part: int) -> None:
        both_run.wait()
        if threading.current_thread() is caller:
            failed.set()
            raise ValueError("bad part")
        assert failed.wait(SECONDS)
        time.sleep(0.05)
        finished.set()

    with pytest.raises(ValueError, match="bad part"):
        WorkerPool(2).run(work, [0, 1])
    assert finished.is_set()


def test_an_interrupt_while_the_caller_waits_leaves_the_pool_usable() -> None:
    pool = WorkerPool(2)
    caller = threading.current_thread()
    both_run, interrupted = threading.Barrier(2, timeout=SECONDS), threading.Event()

    def work(part: int) -> None:
        both_run.wait()
        if threading.current_thread() is not caller:
            time.sleep(0.05)  # by then the caller has no part left and waits
            signal.pthread_kill(caller.ident or 0, signal.SIGINT)
            assert interrupted.wait(SECONDS)

    with pytest.raises(KeyboardInterrupt):
        pool.run(work, [0, 1])
    interrupted.set()
    done = []
    pool.run(done.append, range(10))
    assert sorted(done) == list(range(10))


def test_after_an_error_the_rest_is_skipped() -> None:
    done = []

    def work(part: int) -> None:
        if part == 0:
            raise ValueError("bad part")
        time.sleep(0.001)
        done.append(part)

    with pytest.raises(ValueError, match="bad part"):
        WorkerPool(2).run(work, range(10_000))
    assert len(done) < 1000


def test_parts_see_the_numpy_error_state_of_the_caller() -> None:
    together = threading.Barrier(2, timeout=SECONDS)
    states = []

    def work(part: int) -> None:
        together.wait()
        states.append(np.geterr()["over"])

    with np.errstate(over="call"):
        WorkerPool(2).run(work, range(2))
    assert states == ["call", "call"]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_idle_pool_keeps_nothing_of_its_last_job(threads: int) -> None:
    array = np.zeros(3)
    alive = weakref.ref(array)
    pool = WorkerPool(threads)

    def work(part: tuple[np.ndarray, int]) -> None:
        part[0][part[1]] += 1

    pool.run(work, [(array, index) for index in range(3)])
    assert array.tolist() == [1, 1, 1]
    del array
    eventually(lambda: alive() is None)


def test_the_cpus_of_this_process_are_counted() -> None:
    assert available_cpus() >= 1


def test_a_thread_that_cannot_start_is_an_error_to_act_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(AlphaError, match=r"Another thread cannot start \(can't start new thread\); use --threads=1\."):
        WorkerPool(2).run(lambda part: None, [1, 2])


def _on_each(pool: Executor) -> tuple[list[int], set[str]]:
    """Squares, and the names of the threads that made them."""
    names: set[str] = set()

    def square(value: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.002)
        return value * value

    return list(pool.map(square, range(50))), names


@pytest.mark.parametrize("most", [0, 1, 2, 9])
def test_tasks_run_on_the_threads_that_can_start(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cpus", lambda: 3)
    start, before = threading.Thread.start, threading.active_count()

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() - before >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with workers.task_threads("test-task") as pool:
        values, names = _on_each(pool)
        failed = pool.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result()
    assert values == [value * value for value in range(50)]
    assert len(names) == max(1, min(most, 3))
    assert all(name.startswith("test-task") for name in names) or most == 0
    assert names == {threading.current_thread().name} or most > 0
    assert threading.active_count() == before
