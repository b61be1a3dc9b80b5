"""Stop requests: the first signal is noted, a second one ends the work, and handlers are given back."""

import signal

import pytest

from alpha.interrupt import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(number: int) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
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
