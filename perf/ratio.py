"""How two speeds compare, with what can be said about the error: ratios of paired rounds and their 95 % intervals.

    python perf/ratio.py [--margin=PERCENT] <PAIRS

PAIRS has a line for each round: the seconds that the old and the new took, one after the other on the same machine, so
that what disturbs a round disturbs both. Prints the verdict; exits with 1 when the new one is slower by more than the
margin in the whole interval.

Logarithms of the ratios are averaged, and the interval is Student's t, which knows how little a few rounds say.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

FEWEST_EARLIER = 3
MAD_TO_DEVIATION = 1.4826
"""The standard deviation of many normal values is this many of their median absolute deviations."""


@dataclass(frozen=True)
class Interval:
    """A ratio and the bounds between which it lies with 95 % confidence; without bounds, one value is all there is."""

    ratio: float
    low: float | None
    high: float | None

    def inverse(self) -> "Interval":
        """The same of the other side: a ratio of times as one of speeds."""
        return Interval(1 / self.ratio, *(None if bound is None else 1 / bound for bound in (self.high, self.low)))

    @property
    def verdict(self) -> str:
        """What a ratio of speeds, new to old, amounts to."""
        if self.low is None or self.high is None:
            return "too few runs to say"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no change"

    def __str__(self) -> str:
        """As a change in per cent, such as `+3.1 % (-0.2 to +6.5)`."""
        if self.low is None or self.high is None:
            return f"{percent(self.ratio):+.1f} %"
        return f"{percent(self.ratio):+.1f} % ({percent(self.low):+.1f} to {percent(self.high):+.1f})"


def percent(ratio: float) -> float:
    """By how many per cent something of this ratio is more."""
    return 100 * (ratio - 1)


def quantile(degrees_of_freedom: int) -> float:
    """Student's t: two-sided, 95 %; beyond the table its last value, which is on the safe side."""
    return T_QUANTILES[min(degrees_of_freedom, len(T_QUANTILES)) - 1]


def paired(ratios: Sequence[float]) -> Interval:
    """The geometric mean of the ratios of rounds, and where it would be after endless rounds."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logarithms)
    if len(logarithms) < 2:
        return Interval(math.exp(mean), None, None)
    error = quantile(len(logarithms) - 1) * statistics.stdev(logarithms) / math.sqrt(len(logarithms))
    return Interval(math.exp(mean), math.exp(mean - error), math.exp(mean + error))


def robust_deviation(values: Sequence[float]) -> float:
    """The standard deviation, estimated by the median absolute deviation, which one change of speed does not inflate.

    The factors make it unbiased for few values (Croux and Rousseeuw 1992, "Time-efficient algorithms for two highly
    robust estimators of scale").
    """
    median = statistics.median(values)
    factor = {3: 1.495, 4: 1.363, 5: 1.206}.get(len(values), 1.0)
    return factor * MAD_TO_DEVIATION * statistics.median(abs(each - median) for each in values)


def against_history(value: float, own_error: float, earlier: Sequence[float]) -> Interval:
    """One new value against the median of earlier ones, which were measured at other times.

    The interval is that in which a further value would lie if nothing had changed, moved to the new one. `own_error` is
    the relative standard error of the new value by itself; the earlier values can hardly have a smaller one.
    """
    ratio = value / statistics.median(earlier)
    if len(earlier) < FEWEST_EARLIER:
        return Interval(ratio, None, None)
    deviation = max(robust_deviation([math.log(each) for each in earlier]), own_error)
    error = quantile(len(earlier) - 1) * deviation * math.sqrt(1 + 1 / len(earlier))
    return Interval(ratio, ratio * math.exp(-error), ratio * math.exp(error))


def main() -> int:
    """Read the pairs and print the verdict."""
    parser = argparse.ArgumentParser(description="Compare the seconds of paired rounds.")
    parser.add_argument("--margin", type=float, default=0.0, metavar="PERCENT", help="slow-down that is accepted")
    arguments = parser.parse_args()
    pairs = [(float(old), float(new)) for old, new in (line.split() for line in sys.stdin if line.strip())]
    if len(pairs) < 2:
        print(f"ratio: error: {len(pairs)} rounds are too few to know the noise; two at least.", file=sys.stderr)
        return 2
    times = paired([new / old for old, new in pairs])
    print(f"speed {times.inverse()} in {len(pairs)} paired rounds: {times.inverse().verdict}")
    return int(times.low is not None and times.low > 1 + arguments.margin / 100)


if __name__ == "__main__":
    sys.exit(main())
