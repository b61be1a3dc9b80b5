"""Stop requests: the first signal is noted, a second one ends the work, and handlers are given back."""

import signal

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
