"""How many steps a time makes, which is looked at again while a run goes on."""

import bisect
import dataclasses
import math
import time
from dataclasses import dataclass

from alpha.config import TrainingConfig
from alpha.training_step import stable_until

FIRST_LOOK = 8
"""The number of steps is looked at again after this part of those before the decay, and then after twice as many."""
NOTABLE_CHANGE = 0.01
"""It is left as it is where a smaller part of it would change."""


@dataclass
class TimeLimit:
    """When a run is to end, by time.perf_counter(); the seconds that evaluations, samples and checkpoints take for each
    step, as far as is known, and once after the last."""

    end: float
    beside: float
    after: float
    _next_look: int = 0

    def steps(self, seconds: float) -> int:
        """How many steps of so many seconds are left."""
        return max(0, math.floor((self.end - self.after - time.perf_counter()) / (seconds + self.beside)))

    def iters(self, training: TrainingConfig, done: int, started: int, seconds: float) -> int:
        """The number of steps by now, where `done` took so many seconds each: that of `training`, or another.

        Another only before the learning rate decays, and only so that all that were `started` keep theirs.
        """
        self._next_look = self._next_look or max(1, stable_until(training) // FIRST_LOOK)
        if done < self._next_look:
            return training.iters
        self._next_look *= 2
        if stable_until(training) < started:
            self._next_look = training.iters + 1
            return training.iters
        iters = done + self.steps(seconds)
        if _stable_until(training, iters) < started:
            iters = bisect.bisect_left(
                range(training.iters + 1), started, key=lambda number: _stable_until(training, number)
            )
        iters = max(iters, started)
        return iters if abs(iters - training.iters) >= NOTABLE_CHANGE * training.iters else training.iters


def _stable_until(training: TrainingConfig, iters: int) -> int:
    return stable_until(dataclasses.replace(training, iters=iters))
