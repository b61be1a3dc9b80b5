import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpha.series import pixel_edges, smooth, sparkline, thin

NUMBERS = st.floats(-1e6, 1e6)


def curve(steps: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.cumsum(np.abs(np.array(steps, dtype=np.float64)))
    return x, np.random.default_rng(seed).standard_cauchy(len(x)).round(1)  # with ties and spikes


@settings(deadline=None)
@given(st.lists(NUMBERS, max_size=300), st.floats(0, 0.999))
def test_smoothing_is_the_corrected_moving_average(values: list[float], memory: float) -> None:
    expected, total, weight = [], 0.0, 0.0
    for value in values:
        total = memory * total + (1 - memory) * value
        weight = memory * weight + (1 - memory)
        expected.append(total / weight)
    y = np.array(values, dtype=np.float64)
    np.testing.assert_allclose(smooth(y, memory), expected, rtol=1e-7, atol=1e-4)
    assert y.tolist() == values  # the operand is left as it was


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 30.0]), min_size=1, max_size=400),
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.floats(-0.2, 1.2),
    st.floats(0.01, 1.2),
)
def test_no_extreme_of_a_pixel_is_lost(steps: list[float], seed: int, pixels: int, begin: float, width: float) -> None:
    x, y = curve(steps, seed)
    span = x[-1] - x[0] + 1
    low = x[0] + begin * span
    edges = pixel_edges(low, low + width * span, pixels)
    chosen = thin(x, y, edges)
    assert len(chosen) <= 2 * pixels + 4
    assert (np.diff(chosen) > 0).all()
    for i in range(pixels):
        is_last = i == pixels - 1
        inside = (x >= edges[i]) & ((x <= edges[i + 1]) if is_last else (x < edges[i + 1]))
        if inside.any():
            kept = y[chosen[inside[chosen]]]
            assert (kept.min(), kept.max()) == (y[inside].min(), y[inside].max())
    visible = np.flatnonzero((x >= edges[0]) & (x <= edges[-1]))
    if len(visible):
        first, last = visible[0], visible[-1]
        assert {first, last, max(first - 1, 0), min(last + 1, len(x) - 1)} <= set(chosen.tolist())


def test_a_few_points_are_all_kept() -> None:
    x = np.arange(5.0)
    assert thin(x, -x, pixel_edges(1.0, 3.0, 10)).tolist() == [0, 1, 2, 3, 4]
    assert thin(x, -x, pixel_edges(10.0, 30.0, 10)).tolist() == [4]  # only the way to the border
    assert thin(x[:0], x[:0], pixel_edges(0.0, 1.0, 10)).tolist() == []


def test_one_spike_in_a_million_is_seen() -> None:
    x = np.arange(1_000_000.0)
    y = np.zeros_like(x)
    y[765_432] = 9.0
    chosen = thin(x, y, pixel_edges(0.0, 1e6, 100))
    assert 765_432 in chosen
    assert len(chosen) < 210


def test_pixels_of_a_logarithmic_axis_grow_by_a_factor() -> None:
    np.testing.assert_allclose(pixel_edges(1.0, 1000.0, 3, is_logarithmic=True), [1, 10, 100, 1000])


@example([])
@example([float("nan")] * 3)
@example([1e308, -1e308])
@given(st.lists(st.floats()))
def test_a_sparkline_has_a_character_for_each_value(values: list[float]) -> None:
    assert len(sparkline(values)) == len(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 7, 3.4, float("nan")], "▁█▄ "), ([5, 5], "▁▁"), ([1e308, -1e308], "█▁")],
)
def test_sparklines(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected
