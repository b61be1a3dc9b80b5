"""Stop requests: the first signal is noted, a second one ends the work, and handlers are given back."""

import os
import pty
import signal
import sys
from pathlib import Path

import pytest

from alpha.interrupt import SIGNALS, StopRequest

BY_HAND = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def test_the_signals_are_those_that_end_a_terminal_or_a_job() -> None:
    names = "SIGINT SIGQUIT SIGTERM SIGHUP SIGXCPU SIGUSR1 SIGUSR2"
    assert {each.name for each in SIGNALS} == set(names.split())


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(number: int) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", sorted(set(SIGNALS) - {*BY_HAND}))
def test_what_comes_several_times_by_itself_is_one_request(first: int, second: int) -> None:
    with StopRequest() as stop:
        for number in (first, second, second):
            signal.raise_signal(number)
        assert stop.requested


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", BY_HAND)
def test_a_second_signal_ends_the_work(first: int, second: int) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(first)
        assert stop.requested
        signal.raise_signal(second)
        pytest.fail("the second signal was ignored")


def test_handlers_are_given_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_request_inside_another_leaves_the_outer_one_alone() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner.requested
        assert not outer.requested
        signal.raise_signal(signal.SIGINT)
        assert outer.requested


SLOW = """
import sys, time
from alpha import cli, tokenizer_registry

def build(*arguments, progress, **more):
    for done in range(10_000):
        progress("reading", done, 10_000)
        time.sleep(0.02)

tokenizer_registry.build = build
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["train --data=a.txt", "tokenizer build --input=a.txt --out=b.json"])
def test_whatever_stops_a_command_the_cursor_comes_back(tmp_path: Path, command: str, number: int) -> None:
    (tmp_path / "a.txt").write_text("a text")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
        os.execve(sys.executable, [sys.executable, "-c", SLOW, *command.split()], environment)
    shown, is_sent = b"", False
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
            if not is_sent and b"\x1b[?25l" in shown and shown.count(b"reading") > 1:  # rich has set everything up
                os.kill(process, number)
                is_sent = True
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    finally:
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    assert is_sent, shown
    assert os.waitstatus_to_exitcode(status) == 130, shown.decode()
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert b"Traceback" not in shown
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
