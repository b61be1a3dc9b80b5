"""Curves for eyes: smoothed, and thinned to what a screen can show. Knows nothing about what they measure.

A curve is two arrays of equal length: `x`, which never decreases, and `y`; neither has NaN. Smoothing comes before
thinning, because the mean of a thinned curve is not that of the curve.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]

_NEGLIGIBLE = 1e-12
_BLOCKS = "▁▂▃▄▅▆▇█"


def smooth(y: Curve, memory: float) -> Curve:
    """The exponential moving average m_i = memory m_(i-1) + (1 - memory) y_i from m_(-1) = 0, divided by its weights'
    sum 1 - memory^(i+1); `memory` is in [0, 1), and 0 changes nothing.

    Computed by doubling: after pass k, each sum holds its last 2^k values. Terms whose weight is below 1e-12 are left
    out. Source of the correction: Kingma and Ba, "Adam", 2014, section 3.
    """
    if not memory or not len(y):
        return y
    sums = (1 - memory) * y
    distance, weight = 1, memory
    while distance < len(y) and weight > _NEGLIGIBLE:
        sums[distance:] += weight * sums[:-distance]
        distance, weight = 2 * distance, weight * weight
    return sums / -np.expm1(np.log(memory) * np.arange(1, len(y) + 1))


def thin(x: Curve, y: Curve, edges: Curve) -> npt.NDArray[np.int64]:
    """Which points draw the same picture as all: in each pixel, the first of the lowest and of the highest.

    `edges` are the pixels' borders in x, ascending; pixel i is [edges[i], edges[i + 1]), and the last has its upper
    border, too. The nearest point on either side of the picture is among them, so that lines run on to its border, and
    so are the first and the last inside. Returns ascending indices, at most 2 pixels + 4.
    """
    borders = np.searchsorted(x, edges, side="left")
    borders[-1] = np.searchsorted(x, edges[-1], side="right")
    low, high = int(borders[0]), int(borders[-1])
    around = np.arange(max(0, low - 1), min(len(x), high + 1))
    if len(around) <= 2 * (len(edges) - 1) + 4:
        return around
    starts = np.unique(borders[:-1][np.diff(borders) > 0])
    inside = y[low:high]
    chosen = [around[[0, -1]], np.array([low, high - 1])]
    lengths = np.diff(np.append(starts, high))
    for extreme in (np.minimum, np.maximum):
        of_pixel = np.repeat(extreme.reduceat(inside, starts - low), lengths)
        places = np.flatnonzero(inside == of_pixel) + low
        chosen.append(places[np.unique(np.searchsorted(starts, places, side="right"), return_index=True)[1]])
    return np.unique(np.concatenate(chosen))


def pixel_edges(low: float, high: float, pixels: int, is_logarithmic: bool = False) -> Curve:
    """The borders of `pixels` equal pixels from `low` to `high`, which is above it; on a logarithmic axis both are
    above 0."""
    if is_logarithmic:
        edges = np.exp(np.linspace(np.log(low), np.log(high), pixels + 1))
        edges[[0, -1]] = low, high
        return edges
    return np.linspace(low, high, pixels + 1)


def sparkline(values: Sequence[float] | Curve) -> str:
    """A character for each value, by its height between the lowest and the highest; a space where it is not finite."""
    y = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y)
    if not finite.any():
        return " " * len(y)
    low, high = y[finite].min(), y[finite].max()
    span = high / 2 - low / 2  # which is finite
    heights = np.zeros(len(y), dtype=np.int64)
    if span:
        heights[finite] = np.rint((y[finite] / 2 - low / 2) / span * (len(_BLOCKS) - 1))
    return "".join(_BLOCKS[height] if is_finite else " " for height, is_finite in zip(heights, finite, strict=True))
